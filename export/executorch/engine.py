"""A core whose sessions live in ExecuTorch: the names of `edge_runtime.core`, for the device agent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from fedmpq.edge_runtime import container, core
from fedmpq.errors import FormatError
from fedmpq.export.executorch import library, pte
from fedmpq.export.executorch.session import ExecutorchSession


class ExecutorchCore:
    """The delegate of a `.pte` as a device's core; classes of values are those of `edge_runtime.core`.

    Args:
        file: a `.pte` of the run's program; None: made here once for each program and kept in the user's cache.
    """

    Program, Plan, LayerState, Hyper, Stats = core.Program, core.Plan, core.LayerState, core.Hyper, core.Stats
    fx = staticmethod(core.fx)
    plan_memory = staticmethod(core.plan_memory)

    def __init__(self, file: Path | None = None) -> None:
        library.library()  # says at once what is missing
        self._file = file
        self._given = None if file is None else container.read_bytes(file)
        if file is not None and self._given is not None:
            self._holds = core.Program(pte.unpack(self._given, str(file)).program).sha256

    def isa(self) -> str:
        """Runtime and kernels."""
        return f"executorch-{core.isa()}"

    def Session(self, program: core.Program, plan: core.Plan, limit: int | None = None) -> ExecutorchSession:  # noqa: N802
        """A session of the delegate at a plan; the delegate refuses it above `limit` bytes.

        Raises:
            FormatError: the file given is of another program.
            ArenaTooSmall: the plan takes more than `limit` bytes.
        """
        if self._given is None:
            return ExecutorchSession(_made(program.data, plan.batch, plan.guard), plan, limit)
        if self._holds != program.sha256:
            raise FormatError(
                f"{self._file} holds program {self._holds[:12]}, the run trains {program.sha256[:12]}",
                "export the run's model, or leave the file out",
            )
        return ExecutorchSession(self._given, plan, limit)


#: Name of the cached files: program, guard planes, largest batch.
_NAME: Final = "{}-g{}-b{}.pte"


@lru_cache(maxsize=4)
def _made(program: bytes, batch: int, guard: int) -> bytes:
    """The `.pte` of a program with zero weights, which a plan and a round's weights replace."""
    from fedmpq.export import build
    from fedmpq.local import neutral_states

    parsed = core.Program(program)
    file = library.cache() / _NAME.format(parsed.sha256[:24], guard, batch)
    if file.is_file():
        data = file.read_bytes()
        try:
            if pte.unpack(data, str(file)).program == program:
                return data
        except FormatError:
            pass  # written by another version or damaged: made again
    from fedmpq.export.executorch import lowering

    plan = core.Plan(bits=(1,) * len(parsed.weight_layers), batch=batch, micro_batch=1, guard=guard)
    data = lowering.build(build.with_states(program, plan, neutral_states(parsed, plan), {}))
    file.parent.mkdir(parents=True, exist_ok=True)
    container.write_atomic(file, data)
    return data
