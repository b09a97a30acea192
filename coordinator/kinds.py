"""The two kinds of runs: integers (the core on every device) and full precision (ONNX Runtime training).

Everything a service does differently for them is here; `float_machine` needs NumPy only, its engine ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fedmpq.coordinator import admission, evaluate, layout, source, strategies
from fedmpq.coordinator.admission import PlanBytes
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.layout import Layout
from fedmpq.coordinator.machine import Machine
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.source import DataShape, Source
from fedmpq.edge_runtime.shard import Images
from fedmpq.errors import ConfigError

#: Keys of a run that integer training alone keeps to and that would change who counts or how; and those that the
#: simulation of full precision, in which every client trains in every round, does not keep to either.
_INTEGER_ONLY = ("robust", "late_rounds", "server_momentum_q15")
_FLEET_ONLY = ("per_round", "over_selection")


def check_float(config: RunConfig, *, simulated: bool = False) -> None:
    """Refuses keys that a full-precision run would ignore; ConfigError names the key.

    Args:
        config: of the run.
        simulated: of `float_rounds.FloatRun`, not of a fleet.
    """
    for key in _INTEGER_ONLY + (_FLEET_ONLY if simulated else ()):
        value = getattr(config, key)
        if value != getattr(RunConfig, key):
            where = "integer runs" if key in _INTEGER_ONLY else "integer runs and fleets of devices"
            raise ConfigError(f"{key} = {value!r} is for {where}, not for {config.strategy} here", "leave it out")


class Kind(Protocol):
    """What depends on the kind of a run."""

    def of_file(self, path: Path) -> Source:
        """Program and first weights of a file."""

    def of_model(self, name: str, data: DataShape, mean: bytes, *, crop_pad: int, seed: int) -> Source:
        """A model by name, compiled for such images, with PyTorch's own initial weights for `seed`."""

    def layout_of(self, program: bytes) -> Layout:
        """The layout of the program (or bundle)."""

    def check_fit(self, program: bytes, data: DataShape, what: str) -> None:
        """Refuses data of another shape (DataError)."""

    def plan_bytes(self, program: bytes, config: RunConfig) -> PlanBytes:
        """The planner of the run."""

    def machine(self, run: RunState, test: Images | None) -> Machine:
        """The coordinator of an opened run, judging models on `test`."""


class IntegerKind:
    """Integer training."""

    def of_file(self, path: Path) -> Source:
        """An artifact."""
        return source.of_artifact(path)

    def of_model(self, name: str, data: DataShape, mean: bytes, *, crop_pad: int, seed: int) -> Source:
        """A program compiled from the model."""
        return source.of_model(name, data, mean, crop_pad=crop_pad, seed=seed)

    def layout_of(self, program: bytes) -> Layout:
        """Weight layers of the program."""
        return layout.of_program(program)

    def check_fit(self, program: bytes, data: DataShape, what: str) -> None:
        """Compares with the program's header."""
        source.check_fit(program, data, what)

    def plan_bytes(self, program: bytes, config: RunConfig) -> PlanBytes:
        """The core's planner."""
        return admission.planner_of(program, config.settings)

    def machine(self, run: RunState, test: Images | None) -> Machine:
        """A `Machine`."""
        judge = None if test is None else evaluate.TestSet(Engine("core", run.program), run.config, test)
        return Machine(run, judge)


class FloatKind:
    """Full precision."""

    def of_file(self, path: Path) -> Source:
        """A bundle."""
        from fedmpq.coordinator import float_source

        return float_source.of_file(path)

    def of_model(self, name: str, data: DataShape, mean: bytes, *, crop_pad: int, seed: int) -> Source:
        """A bundle exported from the model."""
        from fedmpq.coordinator import float_source

        return float_source.of_model(name, data, mean, crop_pad=crop_pad, seed=seed)

    def layout_of(self, program: bytes) -> Layout:
        """One layer with every value of the state."""
        from fedmpq.coordinator import float_source

        return float_source.layout_of(program)

    def check_fit(self, program: bytes, data: DataShape, what: str) -> None:
        """Compares with the bundle's manifest."""
        from fedmpq.coordinator import float_source

        float_source.check_fit(program, data, what)

    def plan_bytes(self, program: bytes, config: RunConfig) -> PlanBytes:
        """None: devices measure a trial step instead. ConfigError for what full-precision runs do not have."""
        check_float(config)

        def unplanned(_bits: Any) -> int:
            return 0

        return unplanned

    def machine(self, run: RunState, test: Images | None) -> Machine:
        """A `FloatMachine`."""
        from fedmpq.coordinator.float_machine import FloatMachine
        from fedmpq.coordinator.float_source import FloatTestSet

        judge: Any = None if test is None else FloatTestSet(run.program, run.config.batch, test)
        return FloatMachine(run, judge)


def of(config: RunConfig) -> Kind:
    """The kind of a run."""
    return FloatKind() if config.strategy in strategies.FLOAT_STRATEGIES else IntegerKind()
