"""Training through ExecuTorch's Python runtime with the methods of `core.Session`, so that either can stand in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import numpy as np
import torch

from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.weights import LayerBlobs, pack_weights, unpack_weights
from fedmpq.errors import ArenaTooSmall, BudgetError, CoreError, FormatError, VersionError
from fedmpq.export.executorch import library, pte
from fedmpq.export.executorch.methods import LEAST_BATCH, PLAN_ORDER

_MEMORY: Final = "0x21"
_FORMAT: Final = "0x30"
#: The delegate's sentence where a plan takes more than the limit.
_REFUSED: Final = re.compile(r"takes (\d+) bytes but (\d+) are allowed")
_HEAD: Final = 40  # of a weights section of one layer


class ExecutorchSession:
    """A session whose arena, planes and steps live in the delegate of a `.pte`.

    Args:
        program: bytes of a `.pte` training program (`lowering.build`).
        plan: bits and options; None: those of the artifact inside. Any plan of the program will do as long as its batch
            is not larger than the file was exported for; all layers have to be loaded then.
        limit: bytes that the arena may take.

    Raises:
        FormatError: not such a program.
        ArenaTooSmall: the plan takes more than `limit` bytes.
    """

    def __init__(self, program: bytes, plan: core.Plan | None = None, limit: int | None = None) -> None:
        held = pte.unpack(program, "the .pte")
        self.program = core.Program(held.program)
        self.default = core.Plan(**{**held.plan, "bits": tuple(held.plan["bits"])})
        self.plan = plan or self.default
        self._check_bounds()
        self._library = library.library()
        self._buffer = program  # the runtime reads it in place
        self._methods: dict[str, Any] = {}
        self.planned_bytes = core.plan_memory(self.program, self.plan).total
        self._runtime = _load(program)
        self._library.fedmpq_executorch_limit(limit or 0)
        try:
            self._method("plan")
            fields = _fields(self.program, self.plan)
            if fields != _fields(self.program, self.default):
                self._run("plan", torch.tensor(fields))
            self._method("train_step")
        finally:
            self._library.fedmpq_executorch_limit(0)
        if self.measured_bytes != self.planned_bytes:
            raise CoreError(f"the delegate's arena takes {self.measured_bytes} bytes, planned are {self.planned_bytes}")

    @property
    def measured_bytes(self) -> int:
        """Bytes of the delegate's arena, as the delegate says."""
        return self.figures()["arena_bytes"]

    def figures(self) -> dict[str, int]:
        """What the delegate says of its memory: arena, other bytes it holds, its limit (0: none)."""
        told = self._run("plan", torch.zeros(len(PLAN_ORDER) + len(self.plan.bits), dtype=torch.int64)).tolist()
        return dict(zip(("arena_bytes", "other_bytes", "limit_bytes", "batch"), told, strict=True))

    def load(self, index: int, state: core.LayerState) -> None:
        """Puts one weight layer in and clears its momentum; see `core.Session.load`."""
        layer = self.program.weight_layers[index]
        if (state.bits, state.guard) != (self.plan.bits[index], self.plan.guard):
            raise FormatError(
                f"layer {layer.name}: {state.bits}+{state.guard} bits, planned are {self.plan.bits[index]}"
                f"+{self.plan.guard}"
            )
        blobs = LayerBlobs(
            state.bits, state.guard, state.step, layer.theta, tuple(map(bytes, state.planes)), bytes(state.params)
        )
        self._run("load_planes", torch.tensor([index]), _bytes(pack_weights([blobs])))

    def read(self, index: int) -> core.LayerState:
        """One weight layer as it is now."""
        data = self._run("read_planes", torch.tensor([index])).numpy().tobytes()
        bits, guard = data[8], data[9]
        theta, params = (int.from_bytes(data[at : at + 4], "little") for at in (12, 28))
        size = _HEAD + (1 + bits + guard) * ((theta + 7) // 8) + params
        (blobs,) = unpack_weights(data[:size], self.program.weight_layers[index].name)
        return core.LayerState(blobs.bits, blobs.guard, blobs.step, blobs.planes, blobs.params)

    def step(self, images: Any, labels: Any, hyper: core.Hyper, key: Sequence[int]) -> core.Stats:
        """One training step; see `core.Session.step`."""
        rates = [*hyper.lr, *hyper.weight_decay, hyper.momentum_q15]
        lasso = hyper.lasso or ((0, 0),) * len(self.plan.bits)
        batch = self._batch(images, labels)
        return _stats(
            self._run("train_step", *batch, torch.tensor(list(key)), torch.tensor(rates), torch.tensor(lasso))
        )

    def evaluate(self, images: Any, labels: Any) -> core.Stats:
        """Loss and accuracy with the running statistics, without augmentation."""
        return _stats(self._run("evaluate", *self._batch(images, labels)))

    def predict(self, images: Any) -> list[list[int]]:
        """Logits of each image, in 1/65536 nat."""
        logits: list[list[int]] = self._run("predict", self._images(images)).tolist()
        return logits

    def prune(self, eps_q16: int) -> tuple[int, ...]:
        """Drops top planes whose density is below eps (in 1/65536); returns the bits of every weight layer."""
        return tuple(self._run("prune", torch.tensor([eps_q16])).tolist())

    def state_hash(self) -> str:
        """SHA-256 over all layers' planes and parameters, in order."""
        digest = hashlib.sha256()
        for index in range(len(self.plan.bits)):
            state = self.read(index)
            for part in (*state.planes, state.params):
                digest.update(part)
        return digest.hexdigest()

    # --- inside -------------------------------------------------------------------------------------------------

    def _check_bounds(self) -> None:
        """Refuses plans beyond what the file's tensors were exported for."""
        most = max(self.default.batch, LEAST_BATCH)
        if self.plan.batch > most:
            raise CoreError(f"the .pte takes batches up to {most}, the plan has {self.plan.batch}", "export it anew")
        if self.plan.guard > self.default.guard:
            raise CoreError(
                f"the .pte carries {self.default.guard} guard planes, the plan has {self.plan.guard}", "export it anew"
            )

    def _method(self, name: str) -> Any:
        if name not in self._methods:
            try:
                self._methods[name] = self._runtime.load_method(name)
            except RuntimeError as problem:
                self._fail(name, str(problem))
        return self._methods[name]

    def _run(self, name: str, *inputs: torch.Tensor) -> torch.Tensor:
        method = self._method(name)
        try:
            result: torch.Tensor = method(inputs)[0]
        except RuntimeError as problem:
            self._fail(name, str(problem))
        return result

    def _fail(self, name: str, problem: str) -> NoReturn:
        """Raises our error for the runtime's, with the delegate's sentence."""
        told = self._library.fedmpq_executorch_error().decode() or problem
        where = f"ExecuTorch, {name}: {told}"
        if problem.endswith((_MEMORY, _MEMORY.replace("0x", "0x:"))):
            refused = _REFUSED.search(told)
            raise ArenaTooSmall(*map(int, refused.groups())) if refused else BudgetError(where)
        if problem.endswith((_FORMAT, _FORMAT.replace("0x", "0x:"))):
            raise (VersionError if "version" in told else FormatError)(where)
        raise CoreError(where)

    def _images(self, images: Any) -> torch.Tensor:
        height, width, channels = self.program.in_shape
        return _bytes(images).reshape(-1, height, width, channels)

    def _batch(self, images: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._images(images), torch.from_numpy(np.frombuffer(labels, np.uint16).astype(np.int64))


def _fields(program: core.Program, plan: core.Plan) -> list[int]:
    """A plan as the method `plan` takes it: the values of the C structure, the whole batch in front."""
    given = plan.struct(program)
    values = [plan.batch, given.batch, *(int(getattr(given, name)) for name in PLAN_ORDER[2:])]
    return [*values, *plan.bits]


def _load(program: bytes) -> Any:
    # the extension itself: executorch.runtime imports the whole compiler first (10 s, 130 MB)
    from executorch.extension.pybindings import _C

    try:
        return _C._load_program_from_buffer(program)
    except RuntimeError as problem:
        raise FormatError(f"ExecuTorch does not load the program: {problem}") from None


def _bytes(data: Any) -> torch.Tensor:
    """A tensor over the bytes of any buffer; copied where it is read-only, which torch does not know."""
    array = np.frombuffer(data, np.uint8)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _stats(sums: torch.Tensor) -> core.Stats:
    return core.Stats(*map(int, sums.tolist()))
