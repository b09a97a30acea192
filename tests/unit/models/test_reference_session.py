"""The reference as a session: states in and out, refusals, evaluation, micro-batches, learning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedmpq.errors import FedmpqError, FormatError, TruncatedError, UsageError
from fedmpq.models import codec
from fedmpq.models.reference import Hyper, LayerState, Plan, ReferenceSession
from tests.helpers import programs

NET = programs.resnet(1, size=(8, 8, 3), crop_pad=1, classes=4)
LAYERS = len(NET.layers)
HYPER = Hyper(programs.fx(0.05), programs.fx(5e-4))


def session(bits: int = 4, **options: object) -> ReferenceSession:
    plan = Plan(bits=(bits,) * LAYERS, **options)  # type: ignore[arg-type]
    result = ReferenceSession(NET.build(), plan)
    for i, state in enumerate(programs.states(NET, bits, plan.guard)):
        result.load(i, LayerState(*state))
    return result


@pytest.mark.parametrize(("bits", "guard"), [(1, 0), (4, 0), (8, 7), (2, 6)])
def test_read_returns_what_was_loaded(bits: int, guard: int) -> None:
    s = session(bits, guard=guard)
    for i, state in enumerate(programs.states(NET, bits, guard)):
        assert dataclasses.astuple(s.read(i)) == state


def test_a_step_depends_on_key_and_data_only() -> None:
    images, labels = programs.images(NET, 6)
    hashes = []
    for key, data in (
        ((1, 2, 3, 4), labels),
        ((1, 2, 3, 4), labels),
        ((1, 2, 3, 5), labels),
        ((1, 2, 3, 4), 3 - labels),
    ):
        s = session(momentum=True)
        s.step(images, data, HYPER, key)
        hashes.append(s.state_hash())
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("kind", ["array", "bytes", "tensor", "memoryview"])
def test_batches_come_as_any_buffer(kind: str) -> None:
    images, labels = programs.images(NET, 5)
    s = session()
    expected = s.evaluate(images, labels)
    given = {
        "array": (images, labels.astype(np.int64)),
        "bytes": (images.tobytes(), labels.tobytes()),
        "tensor": (torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))),
        "memoryview": (memoryview(images.tobytes()), memoryview(labels.tobytes())),
    }[kind]
    assert s.evaluate(*given) == expected


def test_evaluation_changes_nothing_and_adds_up_over_batches() -> None:
    images, labels = programs.images(NET, 10)
    s = session()
    before = s.state_hash()
    whole, parts = (
        s.evaluate(images, labels),
        [s.evaluate(images[i : i + 3], labels[i : i + 3]) for i in range(0, 10, 3)],
    )
    assert s.state_hash() == before
    assert whole.loss_q16 == sum(p.loss_q16 for p in parts)
    assert whole.correct == sum(p.correct for p in parts)


def test_one_micro_batch_is_the_whole_batch() -> None:
    images, labels = programs.images(NET, 6)
    whole, micro = session(momentum=True), session(momentum=True, micro_batch=6)
    for step in range(3):
        assert whole.step(images, labels, HYPER, (1, 2, 3, step)) == micro.step(images, labels, HYPER, (1, 2, 3, step))
    assert whole.state_hash() == micro.state_hash()


def test_a_rate_of_zero_moves_running_statistics_only() -> None:
    images, labels = programs.images(NET, 6)
    s = session()
    before = [s.read(i) for i in range(LAYERS)]
    s.step(images, labels, Hyper((0, 0), programs.fx(5e-4)), (1, 2, 3, 4))
    for i in range(LAYERS):
        after = s.read(i)
        assert after.planes == before[i].planes
        half = NET.layers[i][1] * 8
        assert after.params[:half] == before[i].params[:half]
        assert (after.params != before[i].params) == (i < LAYERS - 1)


def test_it_learns_to_tell_patterns_apart() -> None:
    s = session(momentum=True, flip=False)
    losses = []
    for step in range(40):
        images, labels = programs.images(NET, 32, seed=step)
        losses.append(s.step(images, labels, HYPER, (1, 2, 3, step)).loss_q16 / 65536 / 32)
    images, labels = programs.images(NET, 64, seed=1000)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert s.evaluate(images, labels).correct > 45


def test_pruning_rescales_running_statistics_with_the_unit_of_y() -> None:
    """Before and after, mean / (2^k · unit of y) is the same number."""
    s = session(8, act_bits=8)
    images, labels = programs.images(NET, 8)
    s.step(images, labels, HYPER, (1, 2, 3, 4))
    before = [s.layer(i).rm for i in range(LAYERS - 1)]
    bits = s.prune(65536)
    assert bits == (1,) * LAYERS
    for i in range(LAYERS - 1):
        record = s.layer(i).record
        j = s._y_shift(record, 8) - s._y_shift(record, 1)
        assert j > 0
        assert torch.equal(s.layer(i).rm, (before[i] << j).clamp(-(2**31) + 1, 2**31 - 1))
        assert codec.unpack(s.read(i).planes, 1 if i < 0 else s.layer(i).q.numel()).max() <= 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bits": 3}, FormatError, "3 bits"),
        ({"guard": 1}, FormatError, "1 guard"),
        ({"planes": ()}, FormatError, "0 planes"),
        ({"step": (5, 0)}, FormatError, "step"),
        ({"params": b""}, TruncatedError, "parameters"),
    ],
)
def test_bad_states_are_refused(change: dict[str, object], error: type[FedmpqError], text: str) -> None:
    s = session()
    state = dataclasses.replace(s.read(1), **change)  # type: ignore[arg-type]
    with pytest.raises(error, match=text):
        s.load(1, state)


def test_a_variance_out_of_range_is_refused() -> None:
    s = session()
    state = s.read(0)
    params = state.params[:-8] + (2**47).to_bytes(8, "little")
    with pytest.raises(FormatError, match="variance"):
        s.load(0, dataclasses.replace(state, params=params))


def test_wrong_use_is_refused() -> None:
    images, labels = programs.images(NET, 5)
    s = session()
    with pytest.raises(UsageError, match="has 4 labels"):
        s.evaluate(images, labels[:4])
    with pytest.raises(UsageError, match="label 4"):
        s.evaluate(images, labels * 0 + 4)
    with pytest.raises(UsageError, match="not been loaded"):
        ReferenceSession(NET.build(), Plan(bits=(4,) * LAYERS)).evaluate(images, labels)
    with pytest.raises(UsageError, match="bits for 2 layers"):
        ReferenceSession(NET.build(), Plan(bits=(4, 4)))
