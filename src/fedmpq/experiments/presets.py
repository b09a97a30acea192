"""The paper's tables and figure as lists of runs, in the paper's setting ("full") and in one for a small machine.

A cell is one run: its place in the table (row and column), its setting, its strategy and single keys, and the paper's
figure for it. Cells that several tables share have the same identity, so their results can be shared too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedmpq.errors import ConfigError
from fedmpq.experiments import paper
from fedmpq.experiments.setting import Setting

SCALES = ("full", "small")
#: Local epochs of Figure 2.
FIGURE_EPOCHS = (1, 2, 5)


@dataclass(frozen=True)
class Cell:
    """One run of a preset.

    Attributes:
        row, column: labels of its place in the table.
        strategy: system.
        setting: data, clients, training.
        keys: single keys of the run's configuration.
        printed: the paper's accuracy in percent; None where it prints none.
    """

    row: str
    column: str
    strategy: str
    setting: Setting
    keys: tuple[tuple[str, Any], ...] = ()
    printed: float | None = None

    @property
    def name(self) -> str:
        """Its identity: what makes two cells the same run, readable, as a folder's name."""
        s = self.setting
        parts = [
            s.data,
            "iid" if s.alpha is None else f"a{s.alpha:g}",
            f"k{s.clients}",
            f"e{s.epochs}",
            self.strategy,
            *(f"{key}={value:g}" for key, value in self.keys),
            f"s{s.seed}",
        ]
        return "-".join(parts)


@dataclass(frozen=True)
class Preset:
    """One table or figure.

    Attributes:
        name, title: of it.
        cells: base setting -> its runs.
        data: the data sets it has at full scale.
    """

    name: str
    title: str
    cells: Callable[[Setting], Iterator[Cell]]
    data: tuple[str, ...]


def setting_of(scale: str, data: str, seed: int) -> Setting:
    """The common setting of a data set: 10 clients, SGD at rate 0.1, batch 64, alpha 0.5."""
    if scale not in SCALES:
        raise ConfigError(f"unknown scale {scale!r}", f"one of {', '.join(SCALES)}")
    if scale == "small":
        return Setting(data=data, model="resnet20", rounds=20, epochs=2, train=20_000, test=10_000, seed=seed)
    model = "resnet44" if data == "tiny-imagenet" else "resnet20"
    return Setting(data=data, model=model, rounds=50, epochs=5, seed=seed)


def _table1(base: Setting) -> Iterator[Cell]:
    for system in paper.SYSTEMS:
        for alpha, printed in zip(paper.ALPHAS, paper.TABLE1[base.data, system], strict=True):
            column = f"{base.data}, α = {alpha:g}"
            yield Cell(paper.TITLES[system], column, system, replace(base, alpha=alpha), (), printed)


def _table2(base: Setting) -> Iterator[Cell]:
    for system in paper.SYSTEMS:
        for clients, printed in zip(paper.CLIENTS, paper.TABLE2[base.data, system], strict=True):
            column = f"{base.data}, {clients} clients"
            yield Cell(paper.TITLES[system], column, system, replace(base, clients=clients), (), printed)


def _table3(base: Setting) -> Iterator[Cell]:
    for strength in paper.LAMBDAS:
        for density, printed in zip(paper.EPSILONS, paper.TABLE3[strength], strict=True):
            keys = (("lasso", strength), ("prune_density", density))
            yield Cell(f"λ = {strength:g}", f"ε = {density:g}", "fedmpq", base, keys, printed)


def _table4(base: Setting) -> Iterator[Cell]:
    for system, printed in paper.TABLE4.items():
        yield Cell(paper.TITLES[system], base.data, system, base, (), printed[("cifar10", "cifar100").index(base.data)])


def _figure2(base: Setting) -> Iterator[Cell]:
    for system in ("fedavg", "fpq8", "aqfl", "fedmpq"):
        for epochs in FIGURE_EPOCHS:
            yield Cell(paper.TITLES[system], f"{epochs} local epochs", system, replace(base, epochs=epochs))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "table1",
            "Table 1: six systems at three degrees of heterogeneity",
            _table1,
            ("cifar10", "cifar100", "tiny-imagenet"),
        ),
        Preset("table2", "Table 2: number of clients", _table2, ("cifar10", "cifar100")),
        Preset("table3", "Table 3: Lasso's λ and pruning's ε", _table3, ("cifar10",)),
        Preset("table4", "Table 4: what each part of FedMPQ does", _table4, ("cifar10", "cifar100")),
        Preset("figure2", "Figure 2: local epochs", _figure2, ("cifar10",)),
    )
}


def cells(name: str, scale: str, seeds: Sequence[int], data: Sequence[str] = ()) -> list[Cell]:
    """All runs of a preset.

    Args:
        name: of the preset.
        scale: "full" or "small"; "small" has CIFAR-10 only unless `data` names more.
        seeds: every run is made once with each.
        data: data sets of the preset; empty for all.

    Raises:
        ConfigError: unknown preset, scale, or a data set the preset does not have.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", f"one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    chosen = tuple(data) or (("cifar10",) if scale == "small" else preset.data)
    for wanted in chosen:
        if wanted not in preset.data:
            raise ConfigError(f"{name} has no data set {wanted!r}", f"it has {', '.join(preset.data)}")
    return [cell for seed in seeds for source in chosen for cell in preset.cells(setting_of(scale, source, seed))]
