"""Global fixed point to planes and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpq.coordinator import fixed, quantise
from fedmpq.coordinator.config import fx_of
from fedmpq.models import codec
from tests.helpers.fleet import noise


def value(step: tuple[int, int]) -> float:
    return step[0] * 2.0 ** step[1]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scale", ["max", "mse"])
def test_quantising_is_nearest_and_within_range(bits: int, scale: quantise.Scale) -> None:
    weights = noise(5000, bits)
    step = quantise.step_of(quantise.full_range(weights, bits, scale), bits)
    q = quantise.quantise(weights, bits, step)
    levels = 2**bits - 1
    real = weights * 2.0**-32
    expected = np.clip(np.sign(real) * np.floor(np.abs(real) / value(step) + 0.5), -levels, levels)
    assert np.array_equal(q, expected)
    back = quantise.dequantise(q, step) * 2.0**-32
    assert np.abs(back - q * value(step)).max() <= 2.0**-33


@pytest.mark.parametrize(("bits", "sigmas"), [(1, 1.2), (2, 1.95), (3, 2.45), (4, 2.9)])
def test_mse_clips_a_gaussian_where_theory_says(bits: int, sigmas: float) -> None:
    """method.md section 2; levels are s/L, so the optimum differs by the step's definition only slightly."""
    weights = noise(200_000, 7)
    full = quantise.full_range(weights, bits, "mse") * 2.0**-32 / 0.1
    errors = []
    for factor in (0.85, 1.0, 1.15):
        step = quantise.step_of(int(full * factor * 0.1 * 2**32), bits)
        back = quantise.dequantise(quantise.quantise(weights, bits, step), step)
        errors.append(float((((back - weights) * 2.0**-32) ** 2).sum()))
    assert errors[1] == min(errors)
    assert full == pytest.approx(sigmas, rel=0.25)


def test_mse_beats_max_by_decibels_at_two_bits() -> None:
    weights = noise(50_000, 3)

    def decibels(scale: quantise.Scale, bits: int) -> float:
        step = quantise.step_of(quantise.full_range(weights, bits, scale), bits)
        error = (quantise.dequantise(quantise.quantise(weights, bits, step), step) - weights).astype(float)
        return float(10 * np.log10((weights.astype(float) ** 2).sum() / (error**2).sum()))

    assert decibels("mse", 2) == pytest.approx(13.3, abs=0.6)
    assert decibels("mse", 1) == pytest.approx(7.2, abs=0.6)
    assert decibels("max", 1) < 1.5


def test_stochastic_rounding_is_unbiased_and_keyed() -> None:
    weights = np.full(200_000, int(0.3 * 2**32), np.int64)
    step = fx_of(1.0)
    key = fixed.stream_key(1, 2, 3, 4, 5)
    q = quantise.quantise(weights, 1, step, "stochastic", key)
    assert set(np.unique(q)) == {0, 1}
    assert q.mean() == pytest.approx(0.3, abs=0.005)
    assert np.array_equal(q, quantise.quantise(weights, 1, step, "stochastic", key))
    other = quantise.quantise(weights, 1, step, "stochastic", fixed.stream_key(1, 2, 3, 4, 6))
    assert not np.array_equal(q, other)
    assert np.array_equal(-q, quantise.quantise(-weights, 1, step, "stochastic", key))


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("scale", ["max", "mse"])
def test_a_layer_of_zeros_has_a_valid_step(bits: int, scale: quantise.Scale) -> None:
    weights = np.zeros(10, np.int64)
    step = quantise.step_of(quantise.full_range(weights, bits, scale), bits)
    assert 1 << 30 <= step[0] < 1 << 31
    assert -512 <= step[1] <= 512
    assert not quantise.quantise(weights, bits, step).any()
    assert not quantise.quantise(weights, bits, step, "stochastic", (1, 2)).any()


@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(1e-6, 30.0))
@settings(max_examples=60, deadline=None)
def test_a_quantised_layer_survives_the_round_trip(seed: int, bits: int, size: float) -> None:
    """Weights that lie on the grid come back as themselves: nothing is lost by staying at the same bits."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-(2**bits - 1), 2**bits, 200).astype(np.int16)
    q[0] = 2**bits - 1
    step = fixed.div(fixed.norm(max(2**bits, int(size * 2**32)), -32), fixed.norm(2**bits - 1, 0))
    weights = quantise.dequantise(q, step)
    again = quantise.quantise(weights, bits, step)
    assert np.array_equal(again, q)


def test_fixed_point_agrees_with_the_reference_codec() -> None:
    """The codec quantises floats; where the fixed point is exact, both give the same integers."""
    weights = noise(3000, 11)
    for bits in (1, 2, 4, 8):
        step = quantise.step_of(quantise.full_range(weights, bits, "max"), bits)
        ours = quantise.quantise(weights, bits, step)
        theirs, their_step = codec.quantise(weights * 2.0**-32, bits)
        assert value(step) == pytest.approx(value(tuple(their_step)), rel=1e-6)
        assert (ours != theirs).mean() < 0.002  # halves and the last bit of the step


def test_random_words_are_those_of_the_devices() -> None:
    from fedmpq.edge_runtime import sampling

    key = fixed.stream_key(7, 8, 9, 10, 11)
    assert key == sampling.derive(7, 8, 9, 10, 11)
    assert fixed.random_words(key, 50).tolist() == [sampling.rand(key, i) for i in range(50)]


def test_fx_of_is_exact_for_float32() -> None:
    for number in (0.0, 1.0, 0.1, 5e-4, 29.99):
        assert value(fx_of(number)) == float(np.float32(number))
