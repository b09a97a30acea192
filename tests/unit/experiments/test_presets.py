"""The paper's tables and figure as lists of runs."""

from __future__ import annotations

import pytest

from fedmpq.coordinator import strategies
from fedmpq.errors import ConfigError, UsageError
from fedmpq.experiments import paper
from fedmpq.experiments.presets import PRESETS, SCALES, cells
from fedmpq.experiments.setting import Setting


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_run_has_a_name_of_its_own_and_a_known_strategy(name: str, scale: str) -> None:
    found = cells(name, scale, [1, 2, 3])
    assert len({cell.name for cell in found}) == len(found)
    for cell in found:
        strategies.choices(cell.strategy)
        assert cell.strategy in paper.TITLES
    if scale == "small":
        for cell in found:
            assert (cell.setting.model, cell.setting.rounds, cell.setting.train) == ("resnet20", 20, 20_000)
            assert cell.setting.test == 10_000
    else:
        assert {cell.setting.rounds for cell in found} == {50}
        assert {cell.setting.train for cell in found} == {None}


@pytest.mark.parametrize(
    ("name", "runs"), [("table1", 6 * 3 * 3), ("table2", 6 * 3 * 2), ("table3", 15), ("table4", 12), ("figure2", 12)]
)
def test_full_presets_hold_all_the_cells_the_paper_prints(name: str, runs: int) -> None:
    found = cells(name, "full", [1])
    assert len(found) == runs
    assert all((cell.printed is None) == (name == "figure2") for cell in found)


def test_tables_agree_where_they_print_the_same_cell() -> None:
    for data in ("cifar10", "cifar100"):
        for system in paper.SYSTEMS:
            assert paper.TABLE1[data, system][1] == paper.TABLE2[data, system][0]
        position = ("cifar10", "cifar100").index(data)
        assert paper.TABLE4["aqfl"][position] == paper.TABLE1[data, "aqfl"][1]
        assert paper.TABLE4["ablation-5-all"][position] == paper.TABLE1[data, "fedmpq"][1]
    assert paper.TABLE3[0.01][2] == paper.TABLE1["cifar10", "fedmpq"][1]


def test_shared_cells_of_two_tables_are_the_same_run() -> None:
    one = {cell.name: cell.setting for cell in cells("table1", "small", [1])}
    two = {cell.name: cell.setting for cell in cells("table2", "small", [1])}
    shared = one.keys() & two.keys()
    assert len(shared) == len(paper.SYSTEMS)
    assert all(one[name] == two[name] for name in shared)


def test_tiny_imagenet_is_for_the_deeper_net() -> None:
    models = {cell.setting.data: cell.setting.model for cell in cells("table1", "full", [1])}
    assert models == {"cifar10": "resnet20", "cifar100": "resnet20", "tiny-imagenet": "resnet44"}


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'table9'.*table1"):
        cells("table9", "small", [1])
    with pytest.raises(ConfigError, match="unknown scale"):
        cells("table1", "huge", [1])
    with pytest.raises(ConfigError, match="table3 has no data set 'cifar100'"):
        cells("table3", "full", [1], ["cifar100"])


@pytest.mark.parametrize("bits", [0.5, 0, 9, -2])
def test_impossible_budgets_are_refused(bits: float) -> None:
    with pytest.raises(UsageError, match=f"a budget of {bits:g} bits is impossible"):
        Setting(budgets=(2, bits))
    with pytest.raises(UsageError, match="no budgets"):
        Setting(budgets=())
