"""The global model: units of batch-norm state, bytes, parameter checks."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpq.coordinator import bn_units, initial, planes
from fedmpq.coordinator.global_model import GlobalModel, read_layer
from fedmpq.coordinator.samples import ArraySamples
from fedmpq.edge_runtime import artifact, core
from fedmpq.edge_runtime.weights import LayerBlobs
from fedmpq.errors import FormatError, HashError, TruncatedError
from tests.helpers import programs
from tests.helpers.fleet import LAYOUT, NET, PROGRAM, first_model, samples


@pytest.mark.parametrize("act_bits", [4, 8])
def test_statistics_survive_a_change_of_bits(act_bits: int) -> None:
    """To a device's y units and back: the error is half a unit of the device's own field."""
    shape = LAYOUT.layers[2]
    mean = [int(x * 2.0**32) for x in (-130.5, 0.0, 0.75, 900.25)]
    var = [int(x * 2.0**48) for x in (0.5, 3.0, 1000.0, 90000.0)]
    for bits in range(1, 9):
        step = (1 << 30, -32 - bits)
        rm, rv = bn_units.to_device(shape, bits, act_bits, step, mean, var)
        back_mean, back_var = bn_units.to_global(shape, bits, act_bits, step, rm, rv)
        unit = 2.0 ** (shape.unit_exponent(bits, act_bits) - 2 - bits) / 65536
        for a, b in zip(mean, back_mean, strict=True):
            assert abs(a - b) * 2.0**-32 <= unit / 2 + 2.0**-32
        for a, b in zip(var, back_var, strict=True):
            assert abs(a - b) * 2.0**-48 <= (unit * unit * 65536) / 2 + 2.0**-48


def test_shift_k_is_the_cores() -> None:
    """docs/arithmetic.md section 5 for the first and an inner layer."""
    first, inner = LAYOUT.layers[0], LAYOUT.layers[2]
    assert (first.fan_in, first.reads_pixels, inner.fan_in, inner.reads_pixels) == (9, True, 36, False)
    assert first.accumulator_shift(8, 4) == (3 * 255 * 255).bit_length() - 13
    assert inner.accumulator_shift(8, 4) == (6 * 15 * 255).bit_length() - 13
    assert inner.accumulator_shift(1, 4) == 0
    assert inner.accumulator_shift(8, 8) == (6 * 255 * 255).bit_length() - 13


def test_evaluation_does_not_depend_on_the_bits_the_statistics_came_from() -> None:
    """Statistics gathered at 8 bits and moved to 5 judge like statistics of the same real values."""
    from fedmpq.coordinator.config import RunConfig
    from fedmpq.coordinator.engine import Engine

    config = RunConfig(batch=64, flip=False, crop=False)
    engine = Engine("core", PROGRAM)
    data = samples(64, 5)
    model = first_model()
    session = engine.session(config.settings, (8,) * len(LAYOUT.layers))
    load(session, model, 8)
    hyper = core.Hyper(lr=core.fx(0.0), weight_decay=core.fx(0.0))
    for step in range(40):  # rate 0: only the running statistics move, to those of this batch
        session.step(data.images(0, 64), data.labels(0, 64), hyper, (1, 1, 1, step))
    moved = GlobalModel.of_device_layers(LAYOUT, [from_core(session, i) for i in range(len(LAYOUT.layers))], 4)
    losses = {8: mean_loss(session, data)}
    for bits in (8, 7, 6, 5):
        other = engine.session(config.settings, (bits,) * len(LAYOUT.layers))
        load(other, moved, bits)
        losses[bits + 100] = mean_loss(other, data)
    assert losses[108] == pytest.approx(losses[8], rel=0.02)
    assert losses[107] == pytest.approx(losses[8], rel=0.1)
    assert losses[105] == pytest.approx(losses[8], rel=0.4)


def mean_loss(session: core.Session, data: ArraySamples) -> float:
    stats = session.evaluate(data.images(0, 64), data.labels(0, 64))
    return float(stats.loss_q16 / stats.count / 65536)


def load(session: core.Session, model: GlobalModel, bits: int) -> None:
    for i in range(len(LAYOUT.layers)):
        layer = planes.pack(model.layer_state(i, bits, 4))
        session.load(i, core.LayerState(bits, 0, layer.step, layer.planes, layer.params))


def from_core(session: core.Session, i: int) -> planes.DeviceLayer:
    state = session.read(i)
    return planes.unpack(
        LAYOUT.layers[i], state.bits, state.step, [bytes(p) for p in state.planes], bytes(state.params)
    )


def test_bytes_round_trip_and_damage_is_named() -> None:
    model = first_model()
    data = model.to_bytes()
    again = GlobalModel.from_bytes(data, LAYOUT)
    assert again.to_bytes() == data
    with pytest.raises(TruncatedError):
        GlobalModel.from_bytes(data[:40], LAYOUT)
    for at in (5, 60, len(data) // 2, len(data) - 1):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(FormatError):
            GlobalModel.from_bytes(bytes(broken), LAYOUT)
    with pytest.raises(HashError):
        GlobalModel.from_bytes(data[:-1] + b"x", LAYOUT)


def test_an_artifact_becomes_the_model_it_stands_for() -> None:
    states = programs.states(NET, 5, guard=3)
    plan = {
        "bits": [5] * len(states), "batch": 16, "micro_batch": 16, "act_bits": 4, "guard": 3, "momentum": True,
        "threads": 1, "crop": False, "flip": False, "decay_bn": True, "recompute": True,
    }  # fmt: skip
    blobs = tuple(
        LayerBlobs(s.bits, s.guard, s.step, shape.theta, s.planes, s.params)
        for s, shape in zip(states, LAYOUT.layers, strict=True)
    )
    model = initial.of_artifact(LAYOUT, artifact.Artifact(PROGRAM, blobs, plan))
    q = planes.unpack(LAYOUT.layers[1], 8, states[1].step, states[1].planes, states[1].params).q
    expected = q * (states[1].step[0] * 2.0 ** (states[1].step[1] - 3))
    assert np.abs(model.layers[1].weights * 2.0**-32 - expected).max() < 2.0**-32


@pytest.mark.parametrize(("at", "what"), [(0, "gamma"), (16, "beta"), (48, "running variance")])
def test_parameters_out_of_range_are_refused(at: int, what: str) -> None:
    shape = LAYOUT.layers[1]
    layer = first_model().layer_state(1, 4, 4)
    params = bytearray(layer.params)
    params[at : at + 8] = b"\xff\xff\xff\x7f" * 2 if what != "running variance" else b"\xff" * 8
    broken = planes.DeviceLayer(4, layer.step, layer.q, bytes(params))
    with pytest.raises(FormatError, match=what):
        read_layer(shape, broken, 4)


def test_planes_of_wrong_length_pad_bits_and_negative_zero_are_refused() -> None:
    shape = LAYOUT.layers[-1]  # 16 * 4 = 64 weights: no pad bits; the first layer has 36
    first = LAYOUT.layers[0]
    packed = planes.pack(first_model().layer_state(0, 3, 4))
    with pytest.raises(TruncatedError, match="plane 1 has 4 bytes instead of 5"):
        planes.unpack(
            first, 3, packed.step, [packed.planes[0], packed.planes[1][:-1], *packed.planes[2:]], packed.params
        )
    with pytest.raises(FormatError, match="3 planes for 3 bits"):
        planes.unpack(first, 3, packed.step, packed.planes[:3], packed.params)
    padded = bytearray(packed.planes[2])
    padded[-1] |= 0x80
    with pytest.raises(FormatError, match="beyond the last weight"):
        planes.unpack(first, 3, packed.step, [*packed.planes[:2], bytes(padded), packed.planes[3]], packed.params)
    zero = bytes(shape.plane_bytes)
    with pytest.raises(FormatError, match="zero weight has a negative sign"):
        planes.unpack(shape, 1, packed.step, [b"\x01" + zero[1:], zero], bytes(shape.params_bytes))


def test_pack_is_the_inverse_of_unpack() -> None:
    model = first_model()
    for index, shape in enumerate(LAYOUT.layers):
        for bits in (1, 4, 8):
            layer = model.layer_state(index, bits, 4, scale="mse")
            packed = planes.pack(layer)
            again = planes.unpack(shape, bits, packed.step, packed.planes, packed.params)
            assert np.array_equal(again.q, layer.q)
