"""Small runs of a preset's shape: results, tables, plots, going on, refusals."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmpq.errors import ConfigError, DataError, StateError
from fedmpq.experiments import plots
from fedmpq.experiments import run as runner
from fedmpq.experiments.play import play
from fedmpq.experiments.presets import Cell
from fedmpq.experiments.setting import Setting, claim, prepare

SETTING = Setting(data="digits", clients=3, alpha=None, budgets=(2, 4, 8), rounds=2, train=96, test=60, batch=16)
CELLS = [
    Cell("FedMPQ", "digits", "fedmpq", SETTING, (), 67.1),
    Cell("AQFL", "digits", "aqfl", SETTING, (("lr", 0.05),), 58.0),
    Cell("FedPAQ", "digits", "fedpaq", SETTING),
]


def quiet(description: str, total: int | None) -> Any:
    del description, total
    return nullcontext(lambda done: None)


def played(out: Path, cells: list[Cell] = CELLS, **options: Any) -> dict[str, Any]:
    return play("table1", cells, out, command="fedmpq simulate …", workers=1, progress=quiet, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("preset")
    return out, played(out)


def test_results_stand_beside_the_papers(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    assert json.loads((out / "result.json").read_text()) == result
    assert [cell["row"] for cell in result["cells"]] == ["FedMPQ", "AQFL", "FedPAQ"]
    table = (out / "table.md").read_text()
    ours = result["cells"][0]
    assert f"| FedMPQ | {ours['final_accuracy']:.2f} (67.1) |" in table
    assert "    fedmpq simulate …" in table
    assert f"{ours['bytes_up'] // 6:,}" in table
    assert f"{result['cells'][2]['device_bytes']:,}" in table
    # The full-precision system sends less than floats would take and needs more memory than any of the integers.
    floats = result["cells"][2]
    assert floats["bytes_up"] < floats["bytes_down"] / 4
    assert floats["device_bytes"] > ours["device_bytes"] >= ours["least_device_bytes"]


def test_plots_are_drawn(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    for name in ("accuracy.png", "bits.png"):
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / f"{CELLS[0].name}.json").read_text())
    table = plots.mean_bits(found["rounds"])
    assert table.shape == (2, len(found["layers"]))
    assert ((table >= 1) & (table <= 8)).all()
    assert result["cells"][0]["accuracy"] == [row["accuracy"] for row in found["rounds"]]


def test_epochs_are_drawn_where_they_differ(tmp_path: Path) -> None:
    plots.by_epochs(tmp_path / "epochs.png", "Figure 2", {"AQFL": [(2, 40.0), (1, 30.0)], "FedMPQ": [(1, 35.0)]})
    assert (tmp_path / "epochs.png").stat().st_size > 1000


def test_finished_runs_are_not_run_again(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    out, result = done
    monkeypatch.setattr("fedmpq.experiments.play.run", None)
    assert played(out) == result


def test_a_changed_configuration_is_refused_by_its_key(done: tuple[Path, dict[str, Any]]) -> None:
    out, _ = done
    with pytest.raises(ConfigError, match=r"was run with scale = 'mse', not 'max'"):
        played(out, settings={"scale": "max"})
    with pytest.raises(ConfigError, match=r"was run with policy = 'walk', not 'literal'"):
        played(out, paper_literal=True)
    with pytest.raises(ConfigError, match=r"was run with setting.train = 96, not 90"):
        played(out, [replace(CELLS[0], setting=replace(SETTING, train=90))])


def test_an_interrupted_run_of_another_setting_is_refused(tmp_path: Path) -> None:
    prepared = prepare(SETTING)
    runner.run("aqfl", prepared, tmp_path, workers=1, progress=quiet)
    other = prepare(replace(SETTING, train=90))
    with pytest.raises(ConfigError, match="holds a run with train = 96, not 90"):
        runner.run("aqfl", other, tmp_path, workers=1, progress=quiet)
    with pytest.raises(ConfigError, match="holds a run with lr"):
        runner.run("aqfl", prepared, tmp_path, settings={"lr": 0.01}, workers=1, progress=quiet)


def test_a_document_that_was_cut_off_is_named(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = done
    claim(tmp_path, SETTING)
    claim(tmp_path, SETTING)
    assert [path.name for path in tmp_path.iterdir()] == ["setting.json"]
    for text in ("", '{"data": "dig', "[]"):
        (tmp_path / "setting.json").write_text(text)
        with pytest.raises(StateError, match=r"setting\.json is damaged .*--out"):
            claim(tmp_path, SETTING)
    path = out / f"{CELLS[0].name}.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(StateError, match=r"\.json is damaged .*remove it"):
        played(out)
    path.write_text(whole)
    # A write that is cut off leaves the old document.
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        played(out)
    assert json.loads((out / "result.json").read_text()) == result


def test_paper_literal_changes_what_the_server_does() -> None:
    prepared = prepare(SETTING)
    for name in ("fedmpq", "aqfl", "ablation-3-both"):
        ours = runner.config_of(name, prepared, {})
        literal = runner.config_of(name, prepared, {}, paper_literal=True)
        assert (literal.scale, literal.aggregation, literal.rounding) == ("max", "models", "nearest")
        assert (ours.scale, ours.aggregation) == ("mse", "changes")
    assert runner.config_of("fedmpq", prepared, {}, paper_literal=True).policy == "literal"
    assert runner.config_of("fedavg", prepared, {}, paper_literal=True).weighting == "samples"


def test_a_client_without_images_is_named() -> None:
    few = replace(SETTING, clients=40, alpha=0.05, train=60)
    with pytest.raises(DataError, match=r"leaves clients? \d"):
        prepare(few)
    assert 0 < len(prepare(replace(few, on_empty="drop")).fleet) < 40


def test_validation_images_come_from_the_training_set() -> None:
    prepared = prepare(replace(SETTING, train=None, validation=100))
    assert (prepared.judged_on, prepared.judged.count) == ("validation", 100)
    assert sum(samples.count for samples in prepared.fleet.values()) == 1437 - 100
