"""The `.pte`: one delegate state behind all methods, the same bits as the core, memory refused, files checked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpq.edge_runtime import artifact, core
from fedmpq.errors import ArenaTooSmall, CoreError, FedmpqError, FormatError, ModelError, VersionError
from fedmpq.export import build, from_module, resolve
from fedmpq.export.executorch import library, lowering, pte
from fedmpq.export.executorch.methods import Method
from fedmpq.export.executorch.session import ExecutorchSession
from fedmpq.export.model import CompiledModel
from fedmpq.export.onnx_step.session import OnnxSession
from fedmpq.models.reference.session import ReferenceSession
from tests.unit.export.nets import ds_cnn

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet8": (lambda: resolve("resnet8", num_classes=10, in_channels=3, width=8), (3, 8, 8)),
    "ds_cnn": (lambda: ds_cnn(8), (1, 49, 10)),
}


@cache
def compiled(name: str) -> CompiledModel:
    torch.manual_seed(2)
    factory, shape = NETS[name]
    return from_module(factory(), shape, mean=(120, 110, 100)[: shape[0]], crop_pad=1)


@cache
def exported(name: str) -> tuple[artifact.Artifact, bytes]:
    """An artifact of mixed bits and its `.pte`."""
    model = compiled(name)
    plan = core.Plan(bits=tuple(1 + i % 8 for i in range(len(model.thetas))), batch=6, momentum=True)
    held = build.build_artifact(model, plan)
    return held, lowering.build(held)


def batch(program: core.Program, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = (np.arange(count) % program.classes).astype(np.uint16)
    return rng.integers(0, 256, (count, *program.in_shape), dtype=np.uint8), labels


def loaded(session: Any, states: list[core.LayerState]) -> Any:
    for index, state in enumerate(states):
        session.load(index, state)
    return session


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("bits", [2, 4, 8, None])
def test_ten_steps_equal_core_onnx_and_reference(name: str, bits: int | None) -> None:
    """Native core = delegate = ONNX graph = PyTorch reference at n = 2, 4, 8 and mixed, from the exported weights."""
    held, program = exported(name)
    plan = build.plan_of(held)
    if bits is not None:
        plan = replace(plan, bits=(bits,) * len(plan.bits), momentum=bits != 4)
    parsed = core.Program(held.program)
    states = build.initial_states(compiled(name), plan)
    sessions = [
        core.Session(parsed, plan),
        ExecutorchSession(program, plan),
        OnnxSession(held.program, plan),
        ReferenceSession(held.program, plan),
    ]
    for session in sessions:
        loaded(session, states)
    for step in range(10):
        images, labels = batch(parsed, 6 if step % 3 else 4)
        hyper = core.Hyper(core.fx(0.1 / (1 + step)), core.fx(5e-4))
        stats = {str(s.step(images, labels, hyper, (1, 2, 3, step))) for s in sessions[:3]}
        told = sessions[3].step(images, labels, hyper, (1, 2, 3, step))
        assert stats == {str(core.Stats(told.loss_q16, told.correct, told.count))}
    assert len({session.state_hash() for session in sessions}) == 1
    images, labels = batch(parsed, 6)
    assert sessions[0].evaluate(images, labels) == sessions[1].evaluate(images, labels)
    assert sessions[0].predict(images) == sessions[1].predict(images)


def test_a_file_serves_every_plan_of_its_program() -> None:
    """Guard planes, micro-batches, the Lasso, pruning, threads and other bits, one after the other in one session."""
    held, program = exported("resnet8")
    parsed, count = core.Program(held.program), len(held.layers)
    for plan in (
        core.Plan(bits=(3,) * count, batch=12, micro_batch=5, threads=2, crop=False, flip=False),
        core.Plan(bits=(2, 7) * (count // 2), batch=4, act_bits=8, decay_bn=False, recompute=False),
    ):
        states = build.initial_states(compiled("resnet8"), plan)
        ours, theirs = loaded(core.Session(parsed, plan), states), loaded(ExecutorchSession(program, plan), states)
        hyper = core.Hyper(core.fx(0.05), core.fx(5e-4), 0, (core.fx(0.05),) * count)
        images, labels = batch(parsed, plan.batch)
        for step in range(3):
            assert ours.step(images, labels, hyper, (7, 0, 1, step)) == theirs.step(
                images, labels, hyper, (7, 0, 1, step)
            )
        assert ours.prune(1 << 13) == theirs.prune(1 << 13)
        assert [ours.read(i) for i in range(count)] == [theirs.read(i) for i in range(count)]


def test_guard_planes_up_to_those_of_the_file_are_carried() -> None:
    held, _ = exported("ds_cnn")
    plan = replace(build.plan_of(held), guard=2, bits=(4,) * len(held.layers))
    states = build.initial_states(compiled("ds_cnn"), plan)
    made = build.with_states(held.program, plan, states, {})
    session = ExecutorchSession(lowering.build(made))
    assert [session.read(i) for i in range(len(states))] == states


def test_two_programs_have_sessions_of_their_own() -> None:
    held, program = exported("ds_cnn")
    first, second = ExecutorchSession(program), ExecutorchSession(program)
    images, labels = batch(first.program, 6)
    first.step(images, labels, core.Hyper(core.fx(0.5)), (0, 0, 0, 0))
    assert first.state_hash() != second.state_hash()
    assert [second.read(i) for i in range(len(held.layers))] == build.states_of(held)


def test_the_file_holds_the_artifact_once_and_plans_no_other_memory() -> None:
    held, program = exported("resnet8")
    assert artifact.pack(pte.unpack(program, "x")) == artifact.pack(held)
    assert program.count(artifact.pack(held)) == program.count(b"FMPQART1") == 1
    assert len(program) < len(artifact.pack(held)) + 16384
    session = ExecutorchSession(program)
    planned = core.plan_memory(session.program, session.plan).total
    assert session.figures()["arena_bytes"] == session.planned_bytes == planned
    assert session.figures()["other_bytes"] < 8192


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_delegate_refuses_a_plan_over_the_limit_with_both_numbers() -> None:
    _, program = exported("resnet8")
    needed = ExecutorchSession(program).planned_bytes
    assert ExecutorchSession(program, limit=needed).measured_bytes == needed
    with pytest.raises(ArenaTooSmall, match=f"takes {needed} bytes but {needed - 1} are allowed, 1 too few") as caught:
        ExecutorchSession(program, limit=needed - 1)
    assert (caught.value.needed, caught.value.available) == (needed, needed - 1)


def test_a_smaller_plan_fits_where_the_files_own_does_not() -> None:
    held, program = exported("resnet8")
    small = core.Plan(bits=(1,) * len(held.layers), batch=1)
    limit = core.plan_memory(core.Program(held.program), small).total
    session = ExecutorchSession(program, small, limit)
    assert session.figures()["arena_bytes"] == limit
    with pytest.raises(CoreError, match="has not been loaded"):
        session.step(*batch(session.program, 1), core.Hyper(core.fx(0.1)), (0, 0, 0, 0))


def test_a_limit_in_the_file_holds_on_every_device() -> None:
    held, _ = exported("ds_cnn")
    needed = core.plan_memory(core.Program(held.program), build.plan_of(held)).total
    program = lowering.build(held, limit=needed)
    assert ExecutorchSession(program).figures()["limit_bytes"] == needed
    with pytest.raises(ArenaTooSmall, match=f"but {needed} are allowed"):
        ExecutorchSession(program, replace(build.plan_of(held), batch=64))
    with pytest.raises(ArenaTooSmall, match="too few"):
        lowering.build(held, limit=needed - 1)


# --- bad inputs -----------------------------------------------------------------------------------------------------


def test_tensors_aliased_as_two_inputs_are_refused() -> None:
    class Pair(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    shared = torch.zeros(4)
    for second in (shared, shared.view(2, 2), shared[1:]):
        with pytest.raises(ModelError, match=r"pair: inputs 0 and 1 are the same tensor or share its memory.*clone"):
            lowering.lower({"pair": Method(Pair(), (shared, second), (None, None))}, [])
    lowering.check_inputs("pair", (torch.zeros(4), torch.zeros(4)))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 10], np.uint16), "label 10 of sample 1 is not in 0..9"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.array([0], np.uint16), "labels has 1 elements, 2 are needed"),
    ],
)
def test_bad_batches_are_named(images: np.ndarray, labels: np.ndarray, said: str) -> None:
    session = ExecutorchSession(exported("resnet8")[1])
    with pytest.raises(CoreError, match=said):
        session.step(images, labels, core.Hyper(core.fx(0.1)), (0, 0, 0, 0))


def test_calls_that_are_out_of_range_are_named() -> None:
    _, program = exported("resnet8")
    session = ExecutorchSession(program)
    for name, inputs, said in (
        ("read_planes", [torch.tensor([99])], "layer 99 is not in 0..7"),
        ("prune", [torch.tensor([-1])], "eps is not in"),
        ("plan", [torch.tensor([1, 2, 4, 0, 0, 1, 0, 0, 0, 0, *[4] * 8])], "micro_batch exceeds batch"),
        ("plan", [torch.tensor([1, 1, 4, 0, 0, 1, 0, 0, 0, 0, *[9] * 8])], "layer 0 has 9 bits"),
        ("plan", [torch.tensor([1, 1, 5, 0, 0, 1, 0, 0, 0, 0, *[4] * 8])], "plan:"),
    ):
        with pytest.raises(FedmpqError, match=said):
            session._run(name, *inputs)
    section = torch.zeros(100, dtype=torch.uint8)
    with pytest.raises(FormatError, match="does not hold exactly one layer"):
        session._run("load_planes", torch.tensor([0]), section)


def test_damaged_weights_are_refused() -> None:
    held, program = exported("resnet8")
    session = ExecutorchSession(program)
    state = build.states_of(held)[1]
    negative_zero = (b"\xff" * len(state.planes[0]), *(bytes(len(plane)) for plane in state.planes[1:]))
    with pytest.raises(FedmpqError, match="sign"):
        session.load(1, replace(state, planes=negative_zero))


def test_files_of_another_version_are_refused() -> None:
    _, program = exported("ds_cnn")
    newer = program.replace(b"FMPQDLGT" + struct.pack("<H", 1), b"FMPQDLGT" + struct.pack("<H", 2))
    assert newer != program
    with pytest.raises(VersionError, match="delegates have version 2, this backend runs version 1: export"):
        ExecutorchSession(newer)


def test_files_that_are_no_program_of_ours_are_refused(tmp_path: Path) -> None:
    _, program = exported("ds_cnn")
    at = program.index(b"FMPQART1")
    for data, said in (
        (b"", "not an ExecuTorch program"),
        (b"FMPQART1" + bytes(80), "not an ExecuTorch program"),
        (program[:at] + bytes(8) + program[at + 8 :], "without a fedmpq training step"),
        (program[: at + 20], "artifact"),
        (program[: at + 500], "artifact"),
        (program[: at + 600] + bytes([program[at + 600] ^ 1]) + program[at + 601 :], "artifact"),
    ):
        with pytest.raises(FormatError, match=said):
            pte.unpack(data, "x.pte")
    file = tmp_path / "x.pte"
    file.write_bytes(program)
    assert pte.is_pte(file)
    assert not pte.is_pte(tmp_path / "absent")
    assert pte.open_any(file).program == exported("ds_cnn")[0].program


def test_a_machine_without_compiler_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FedmpqError, match=r"no no-such-compiler \(install g\+\+, set CXX"):
        library.build()
