"""The C core and the PyTorch reference agree bit for bit: weights, BN state, losses, momentum, random streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fedmpq.edge_runtime import core
from fedmpq.errors import CoreError
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
        Case("shared", programs.shared(), 4, batch=4, momentum=True),
        Case("shared-kept", programs.shared(), 5, batch=3, plan={"recompute": False, "threads": 2}),
        Case("shared-b1", programs.shared(), 4, batch=1),
        Case("shared-b1-roomy", programs.shared(), 8, batch=1, plan={"roomy": 2, "act_bits": 8}),
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


@pytest.mark.usefixtures("restored_isa")
@pytest.mark.parametrize("isa", sorted({core.isas()[0], core.isas()[-1]}))
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_large_maps_do_not_overflow(isa: str, batch: int, groups: int) -> None:
    """Above 66,311 positions a sample's sum of 255 · 127 leaves an int32: all pixels and so all errors are alike."""
    core.set_isa(isa)
    net = programs.Builder(512, 512, 2, 2)
    linear = net.conv("linear", 0, 2, kernel=1, groups=groups, linear=True, biased=True, t_out=6)
    net.classifier("fc", net.global_pool("pool", net.avg_pool("mean", linear, 16, 16)))
    case = Case("large", net, 4, batch=batch, plan={"guard": 8, "crop": False, "flip": False, "roomy": 2}, lr=0.1)
    integer, reference = _sessions(case)
    before = reference.read(0).planes
    images, labels = np.full((batch, 512, 512, 2), 255, np.uint8), np.ones(batch, np.uint16)
    integer.step(images, labels, _hyper(case), (1, 1, 1, 0))
    reference.step(images, labels, _hyper(case), (1, 1, 1, 0))
    assert reference.read(0).planes != before
    assert integer.state_hash() == reference.state_hash()


@pytest.mark.usefixtures("restored_isa")
@pytest.mark.parametrize("isa", core.isas())
def test_the_widest_layer_at_full_weights(isa: str) -> None:
    """65,280 · 255 · 127 is just below 2^31; with 8 bits it is refused."""
    core.set_isa(isa)
    net = programs.Builder(160, 136, 3, 2)
    net.classifier("fc", net.conv("flat", 0, 2, kernel=1, flatten=True))
    case = Case("wide", net, 7, batch=2, plan={"crop": False, "flip": False})
    integer, reference = _sessions(case)
    state = reference.read(0)
    ones = b"\xff" * len(state.planes[0])
    state = replace(state, planes=(bytes(len(ones)), *(ones,) * 7))
    integer.load(0, core.LayerState(state.bits, state.guard, state.step, state.planes, state.params))
    reference.load(0, state)
    images = np.stack([np.full((160, 136, 3), 255, np.uint8), np.zeros((160, 136, 3), np.uint8)])
    labels = np.array([0, 1], np.uint16)
    for step in range(2):
        integer.step(images, labels, _hyper(case), (1, 1, 1, step))
        reference.step(images, labels, _hyper(case), (1, 1, 1, step))
    assert integer.state_hash() == reference.state_hash()
    with pytest.raises(CoreError, match="too wide for its bits"):
        core.plan_memory(core.Program(net.build()), core.Plan(bits=(8, 7), batch=2))


def test_layers_whose_sums_may_leave_an_int32_are_not_planned() -> None:
    """Forward 33,026 · 255 · 255, to the input 7 · 7 · 4096 · 128 · 255; the classifier's sums have 64 bits."""
    flat = programs.Builder(8, 8, 1, 2)
    tall = flat.conv("more", 0, 517, kernel=1)
    flat.conv("flat", tall, 4, kernel=1, flatten=True)
    flat.classifier("fc", 2)
    wide = programs.Builder(7, 7, 1, 2)
    wide.classifier("fc", wide.conv("wide", wide.conv("stem", 0, 4), 4096, kernel=7, pad=0))
    last = programs.Builder(8, 8, 1, 2)
    last.classifier("fc", last.conv("more", 0, 1000, kernel=1))
    for net, layer, bits, act_bits, good in [
        (flat, 1, 8, 8, False),
        (flat, 1, 7, 8, True),
        (flat, 1, 8, 4, True),
        (wide, 1, 8, 4, False),
        (wide, 1, 6, 4, True),
        (last, 1, 8, 8, True),
    ]:
        widths = tuple(bits if i == layer else 2 for i in range(len(net.layers)))
        plan = core.Plan(bits=widths, batch=1, act_bits=act_bits)
        if good:
            assert core.plan_memory(core.Program(net.build()), plan).total
            continue
        with pytest.raises(CoreError, match="too wide for its bits") as caught:
            core.plan_memory(core.Program(net.build()), plan)
        assert caught.value.hint == "FMPQ_E_PLAN_SUMS"


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
