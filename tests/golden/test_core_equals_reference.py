"""The C core and the PyTorch reference agree bit for bit: weights, BN state, losses, momentum, random streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedmpq.edge_runtime import core
from fedmpq.models.reference import ReferenceSession
from tests.helpers import programs


@dataclass(frozen=True)
class Case:
    """One configuration; `plan` holds keyword arguments of `core.Plan`."""

    name: str
    net: programs.Builder
    bits: int | tuple[int, ...]
    batch: int = 5
    steps: int = 4
    plan: dict[str, Any] = field(default_factory=dict)
    lasso: float = 0.0
    lr: float = 0.05
    momentum: bool = False


def _mixed(net: programs.Builder) -> tuple[int, ...]:
    return tuple(1 + (3 * i) % 8 for i in range(len(net.layers)))


def _small() -> programs.Builder:
    return programs.resnet(1, size=(16, 16, 3), crop_pad=2)


def _cases() -> list[Case]:
    small, variety = _small(), programs.variety()
    cases = [Case(f"bits{n}", small, n, plan={"act_bits": 8 if n > 5 else 4}) for n in range(1, 9)]
    cases += [
        Case("n8a4", small, 8),
        Case("n1a8", small, 1, plan={"act_bits": 8}),
        Case("mixed", small, _mixed(small), momentum=True, lasso=0.01),
        Case("batch1", small, 4, batch=1, momentum=True),
        Case("batch32", small, 4, batch=32, momentum=True, lasso=0.01),
        Case("batch32-n8", small, 8, batch=32, plan={"act_bits": 8}),
        Case("momentum", small, 3, steps=8, momentum=True),
        Case("lasso", small, 3, steps=6, lasso=1.0),
        Case("plain", small, 4, plan={"crop": False, "flip": False}),
        Case("crop-only", small, 4, plan={"flip": False}),
        Case("flip-only", small, 4, plan={"crop": False}),
        Case("guard4", small, 2, steps=6, plan={"guard": 4}, momentum=True, lasso=0.1),
        Case("guard6", small, _mixed(small), plan={"guard": 6}),
        Case("guard7", small, 8, plan={"guard": 7, "act_bits": 8}, momentum=True),
        Case("micro", small, 4, batch=12, plan={"micro_batch": 4}, momentum=True),
        Case("micro-rest", small, 3, batch=11, plan={"micro_batch": 4}, lasso=0.1),
        Case("micro1", small, 4, batch=3, plan={"micro_batch": 1, "guard": 3}),
        Case("undecayed", small, 4, plan={"decay_bn": False}, momentum=True),
        Case("recompute-off", small, 4, plan={"recompute": False}, momentum=True),
        Case("threads", small, 4, batch=9, plan={"threads": 2}, momentum=True),
        Case("fast", small, 4, lr=8.0, steps=6, momentum=True),
        Case("residual0", programs.resnet(1, size=(16, 16, 3), t_residual=0), 4),
        Case("residual2", programs.resnet(1, size=(16, 16, 3), t_residual=2), 6, plan={"act_bits": 8}),
        Case("gray-odd", programs.resnet(1, size=(13, 11, 1), mean=(90,), classes=3), 4, batch=7, momentum=True),
        Case("digits", programs.resnet(1, size=(8, 8, 1), mean=(78,), crop_pad=1), _mixed(small), batch=32),
        Case("resnet20", programs.resnet(3), 4, batch=2, steps=2, momentum=True),
        Case("resnet20-mixed", programs.resnet(3, classes=100), (4, 8, 2, 1, 6) * 4, batch=3, steps=2, lasso=0.01),
        Case("variety", variety, 4, batch=6, steps=6, momentum=True),
        Case("variety-n8", variety, 8, batch=6, plan={"act_bits": 8}),
        Case("variety-mixed", variety, _mixed(variety), batch=3, plan={"guard": 2}, lasso=0.1),
        Case("flat", programs.variety(flat=True), 5, batch=6, momentum=True),
        Case("linear", programs.variety(linear=True), 3, batch=6, momentum=True),
    ]
    return cases


_CASES = _cases()


def _sessions(case: Case) -> tuple[core.Session, ReferenceSession]:
    net = case.net
    data = net.build()
    bits = (case.bits,) * len(net.layers) if isinstance(case.bits, int) else case.bits
    plan = core.Plan(**{"bits": bits, "batch": case.batch, "momentum": case.momentum, **case.plan})
    integer, reference = core.Session(core.Program(data), plan), ReferenceSession(data, plan)
    for i, state in enumerate(programs.states(net, bits, plan.guard, seed=len(case.name))):
        integer.load(i, core.LayerState(*state))
        reference.load(i, state)
    return integer, reference


def _hyper(case: Case) -> core.Hyper:
    thetas = [rows * kh * kw * cin for _, rows, kh, kw, cin in case.net.layers]
    lasso = tuple(core.fx(case.lasso * theta / sum(thetas)) for theta in thetas) if case.lasso else ()
    return core.Hyper(lr=core.fx(case.lr), weight_decay=core.fx(5e-4), momentum_q15=29491, lasso=lasso)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_training_evaluation_and_pruning_agree(case: Case) -> None:
    integer, reference = _sessions(case)
    assert integer.state_hash() == reference.state_hash()
    for step in range(case.steps):
        images, labels = programs.images(case.net, case.batch, seed=step)
        key = (7, 3, 0xFFFFFFF0, 11 * step)
        mine = integer.step(images, labels, _hyper(case), key)
        theirs = reference.step(images, labels, _hyper(case), key)
        assert (mine.loss_q16, mine.correct, mine.count) == (theirs.loss_q16, theirs.correct, theirs.count), step
        for i in range(len(case.net.layers)):
            a, b = integer.read(i), reference.read(i)
            assert (a.bits, a.guard, tuple(a.step)) == (b.bits, b.guard, b.step)
            assert tuple(map(bytes, a.planes)) == b.planes, f"step {step}, weights of layer {i}"
            assert bytes(a.params) == b.params, f"step {step}, parameters of layer {i}"
            assert tuple(integer.set_count(i)) == reference.set_count(i)
    images, labels = programs.images(case.net, case.batch, seed=99)
    mine, theirs = integer.evaluate(images, labels), reference.evaluate(images, labels)
    assert (mine.loss_q16, mine.correct, mine.count) == (theirs.loss_q16, theirs.correct, theirs.count)
    assert integer.prune(20000) == reference.prune(20000)
    assert integer.state_hash() == reference.state_hash()


@pytest.fixture
def restored_isa() -> Iterator[None]:
    chosen = core.isa()
    yield
    core.set_isa(chosen)


@pytest.mark.usefixtures("restored_isa")
@pytest.mark.parametrize("name", ["mixed", "batch32", "n8a4", "guard4", "variety-mixed", "flat", "digits"])
@pytest.mark.parametrize("isa", core.isas())
def test_every_instruction_set_agrees(isa: str, name: str) -> None:
    core.set_isa(isa)
    test_training_evaluation_and_pruning_agree(next(case for case in _CASES if case.name == name))


def test_a_smaller_batch_and_a_reload_clear_nothing_else() -> None:
    """A rest batch of an epoch, and momentum that starts afresh when a layer is loaded again."""
    case = Case("rest", _small(), 4, batch=8, momentum=True)
    integer, reference = _sessions(case)
    for step, count in enumerate((8, 3, 8, 1)):
        images, labels = programs.images(case.net, count, seed=step)
        integer.step(images, labels, _hyper(case), (1, 2, 3, step))
        reference.step(images, labels, _hyper(case), (1, 2, 3, step))
        if step == 1:
            for i in range(len(case.net.layers)):
                state = reference.read(i)
                integer.load(i, core.LayerState(state.bits, state.guard, state.step, state.planes, state.params))
                reference.load(i, state)
    assert integer.state_hash() == reference.state_hash()


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "steps"), [(1, 20), (3, 5)], ids=["resnet8", "resnet20"])
def test_many_steps_at_full_size(blocks: int, steps: int) -> None:
    """Twenty steps of ResNet8 and five of ResNet20 on 32 × 32 images with mixed bit-widths and everything on."""
    net = programs.resnet(blocks)
    case = Case("full", net, _mixed(net), batch=8, momentum=True, lasso=0.01)
    integer, reference = _sessions(case)
    for step in range(steps):
        images, labels = programs.images(net, case.batch, seed=step)
        mine = integer.step(images, labels, _hyper(case), (1, 2, 3, step))
        theirs = reference.step(images, labels, _hyper(case), (1, 2, 3, step))
        assert mine.loss_q16 == theirs.loss_q16
    assert integer.state_hash() == reference.state_hash()
