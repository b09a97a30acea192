"""The local training loop: what it asks of a session, and guard planes rounded away."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedmpq.edge_runtime import core, sampling, trainer
from fedmpq.edge_runtime.shard import Shard
from fedmpq.errors import DataError, FormatError
from tests.helpers import messages
from tests.helpers.scripted import PROGRAM, Rig


class RecordingSession:
    def __init__(self) -> None:
        self.calls: list[tuple[list[int], tuple[int, ...]]] = []

    def step(self, images: memoryview, labels: memoryview, hyper: object, key: tuple[int, ...]) -> SimpleNamespace:
        self.calls.append((list(labels), key))
        assert images.nbytes == labels.shape[0] * 64
        return SimpleNamespace(loss_q16=10, correct=1, count=len(labels))


@pytest.mark.parametrize(("micro", "stride"), [(None, 1), (3, 3), (8, 1)])
def test_steps_count_micro_batches(tmp_path: Path, micro: int | None, stride: int) -> None:
    rig = Rig(tmp_path)
    settings = messages.settings(batch=8, micro_batch=micro)
    plan = rig.coordinator.make_plan(3, settings=settings, epochs=2)
    session = RecordingSession()
    with Shard(rig.shard) as shard:
        *_, last = trainer.train_local(core, session, plan, shard)
        expected = list(sampling.batches(40, 8, 2, plan.seed, 3, plan.client))
        labels = shard.labels(0, 40).tolist()
    assert [key for _, key in session.calls] == [(plan.seed, 3, plan.client, stride * i) for i in range(10)]
    assert [got for got, _ in session.calls] == [[labels[i] for i in batch] for batch in expected]
    assert (last.steps, last.count, last.correct, last.loss_q16) == (10, 80, 10, 100)


def pack(flags: list[bool]) -> bytes:
    return sum(flag << i for i, flag in enumerate(flags)).to_bytes(5, "little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("guard", range(1, 9))
def test_guard_planes_are_rounded_as_the_arithmetic_says(bits: int, guard: int) -> None:
    rng = random.Random(10 * bits + guard)
    top = (1 << bits) - 1
    full = [rng.randint(-(top << guard), top << guard) for _ in range(33)] + [top << guard, -(top << guard), 0, 1]
    planes = (pack([q < 0 for q in full]), *(pack([abs(q) >> i & 1 == 1 for q in full]) for i in range(bits + guard)))
    rounded = [min(top, (abs(q) + (1 << guard - 1)) >> guard) * (-1 if q < 0 else 1) for q in full]
    expected = (
        pack([q < 0 for q in rounded]),
        *(pack([abs(q) >> i & 1 == 1 for q in rounded]) for i in range(bits)),
    )
    assert trainer.round_guard(planes, guard) == expected


@pytest.mark.parametrize("guard", [0, 3])
def test_a_layer_that_is_loaded_and_read_travels_unchanged(tmp_path: Path, guard: int) -> None:
    rig = Rig(tmp_path)
    plan = rig.coordinator.make_plan(1, bits=3, settings=messages.settings(guard=guard))
    session = core.Session(core.Program(PROGRAM), trainer.core_plan(core, plan.settings, plan.bits))
    trainer.load_layers(core, session, plan, rig.coordinator.blobs.__getitem__)
    layers = trainer.finish(session, messages.plan(layers=plan.layers, eps_q16=0, lasso=()))
    assert tuple(layer.reference() for layer in layers) == plan.layers


def test_pruning_happens_only_when_asked(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    plan = rig.coordinator.make_plan(1, bits=6)
    for eps, fewer in ((0, False), (60000, True)):
        session = core.Session(core.Program(PROGRAM), trainer.core_plan(core, plan.settings, plan.bits))
        trainer.load_layers(core, session, plan, rig.coordinator.blobs.__getitem__)
        layers = trainer.finish(session, messages.plan(layers=plan.layers, eps_q16=eps, lasso=()))
        assert all((layer.bits < 6) == fewer for layer in layers)
        assert all(len(layer.planes) == layer.bits + 1 for layer in layers)


def test_data_and_plans_that_do_not_fit_are_named() -> None:
    program = core.Program(PROGRAM)
    with pytest.raises(DataError, match="9×8×1 images of 10 classes"):
        trainer.check_samples(SimpleNamespace(shape=(9, 8, 1), classes=10, count=1), program)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="11 classes"):
        trainer.check_samples(SimpleNamespace(shape=(8, 8, 1), classes=11, count=1), program)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="2 layers, the program 8"):
        trainer.check_plan(messages.plan(), program)
