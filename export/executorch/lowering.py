"""From an artifact to a `.pte`: one delegated operator a method, the artifact once in the program's named data."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from fedmpq.edge_runtime import artifact as artifacts
from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.artifact import Artifact
from fedmpq.errors import ArenaTooSmall, MissingExtraError, ModelError
from fedmpq.export.build import plan_of
from fedmpq.export.executorch.methods import LEAST_BATCH, NAMESPACE, NUMBERS, Method, methods
from fedmpq.export.executorch.pte import ALIGNMENT


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the compiler's remarks about its own parts off the terminal."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


try:
    with quiet():
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir._serialize._named_data_store import NamedDataStore
        from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
        from executorch.exir.backend.compile_spec_schema import CompileSpec
        from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
        from executorch.exir.passes import MemoryPlanningPass
except ModuleNotFoundError as _missing:
    raise MissingExtraError(_missing.name or "executorch", "export") from None

#: Name under which the backend library registers, key of the artifact, version of a delegate's blob.
BACKEND: Final = "FedmpqBackend"
ARTIFACT_KEY: Final = "fmpq.artifact"
BLOB_VERSION: Final = 1
LIMIT_KEY: Final = "memory_limit"


class FedmpqBackend(BackendDetails):  # type: ignore[misc]
    """Turns a partition into the backend's blob: a magic, a version and the method's number."""

    @staticmethod
    def preprocess(edge_program: torch.export.ExportedProgram, compile_specs: list[CompileSpec]) -> PreprocessResult:
        """The blob of the one operator in the partition, and the artifact for the program's named data."""
        names = [_method(node) for node in edge_program.graph.nodes if _method(node)]
        store = NamedDataStore()
        data = next(spec.value for spec in compile_specs if spec.key == ARTIFACT_KEY)
        store.add_named_data(ARTIFACT_KEY, data, alignment=ALIGNMENT)
        compile_specs[:] = [spec for spec in compile_specs if spec.key != ARTIFACT_KEY]
        blob = struct.pack("<8sHHI", b"FMPQDLGT", BLOB_VERSION, NUMBERS[names[0]], 0)
        return PreprocessResult(processed_bytes=blob, data_store_output=store.get_named_data_store_output())


class _Operators(Partitioner):  # type: ignore[misc]
    """Delegates every operator of ours, each in a partition of its own."""

    def __init__(self, specs: list[CompileSpec]) -> None:
        super().__init__()
        self._specs = specs

    def partition(self, exported_program: torch.export.ExportedProgram) -> PartitionResult:
        """Tags the operators."""
        tags: dict[str, DelegationSpec] = {}
        for node in exported_program.graph.nodes:
            if name := _method(node):
                node.meta["delegation_tag"] = f"{NAMESPACE}_{name}_{len(tags)}"
                tags[node.meta["delegation_tag"]] = DelegationSpec(BACKEND, list(self._specs))
        return PartitionResult(exported_program, tags)


def build(held: Artifact, *, limit: int | None = None) -> bytes:
    """The bytes of the `.pte` of an artifact.

    Args:
        held: program, weights and default plan.
        limit: bytes that the arena may take on any device that loads the file; None: the device decides.

    Raises:
        ArenaTooSmall: the artifact's plan takes more than the limit.
    """
    program, plan = core.Program(held.program), plan_of(held)
    planned = core.plan_memory(program, plan).total
    if limit is not None and planned > limit:
        raise ArenaTooSmall(planned, limit)
    made = methods(program, plan.guard, max(plan.batch, LEAST_BATCH))
    specs = [CompileSpec(ARTIFACT_KEY, artifacts.pack(held)), CompileSpec(LIMIT_KEY, struct.pack("<Q", limit or 0))]
    return lower(made, specs)


def lower(made: Mapping[str, Method], specs: Sequence[CompileSpec]) -> bytes:
    """The `.pte` of these methods.

    Raises:
        ModelError: two inputs of a method share memory.
    """
    for name, method in made.items():
        check_inputs(name, method.inputs)
    with quiet():
        exported = {
            name: torch.export.export(method.module, method.inputs, dynamic_shapes=(method.dynamic,))
            for name, method in made.items()
        }
        lowered = to_edge_transform_and_lower(
            exported,
            partitioner=[_Operators(list(specs))],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        # inputs and outputs are the caller's: nothing is planned, the program itself takes no activation memory
        planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
        program = lowered.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    return bytes(program.buffer)


def check_inputs(method: str, inputs: Sequence[torch.Tensor]) -> None:
    """Refuses example inputs that share memory: export would silently make one input of them.

    Raises:
        ModelError: naming both inputs.
    """
    taken: dict[int, int] = {}
    for index, tensor in enumerate(inputs):
        if not tensor.numel():
            continue
        place = tensor.untyped_storage().data_ptr()
        if place in taken:
            raise ModelError(
                f"method {method}: inputs {taken[place]} and {index} are the same tensor or share its memory, "
                "and would become one input of the exported program",
                "give each input a tensor of its own, for example by .clone()",
            )
        taken[place] = index


def _method(node: Any) -> str:
    """The method whose operator a node calls; "" for other nodes."""
    if node.op != "call_function":
        return ""
    space, _, rest = str(getattr(node.target, "_name", None) or node.target).replace("::", ".").partition(".")
    name = rest.partition(".")[0]
    return name if space == NAMESPACE and name in NUMBERS else ""
