"""Aggregation (eq. 15) gives identical bytes whatever the order of arrival and the shape of the merge tree."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpq.coordinator import aggregate, planes
from fedmpq.coordinator.aggregate import PartialSum
from fedmpq.coordinator.global_model import GlobalLayer, read_layer
from fedmpq.errors import RoundError
from tests.helpers import programs
from tests.helpers.fleet import LAYOUT, NET, first_model

CLIENTS = 7
BASE = first_model()


def client(number: int) -> tuple[int, list[int], list[GlobalLayer]]:
    """Weight, bits and layers of one client, at its own bit-widths."""
    rng = np.random.default_rng(number)
    bits = tuple(int(n) for n in rng.integers(1, 9, len(LAYOUT.layers)))
    states = programs.states(NET, bits, seed=number)
    layers = [
        read_layer(shape, planes.unpack(shape, s.bits, s.step, s.planes, s.params), 4)
        for shape, s in zip(LAYOUT.layers, states, strict=True)
    ]
    for layer in layers:  # statistics of some training, in global units
        layer.mean = [int(x * 2.0**32) for x in rng.normal(0, 50, len(layer.mean))]
        layer.var = [int(x * 2.0**48) for x in rng.uniform(1, 900, len(layer.var))]
    return int(rng.integers(1, 4_000_000)), list(bits), layers


EVERYONE = [client(number) for number in range(CLIENTS)]


def leaf(number: int, mode: aggregate.Mode) -> PartialSum:
    weight, bits, layers = EVERYONE[number]
    total = PartialSum.zero(LAYOUT, mode)
    total.add(weight, bits, layers, BASE.layers)
    return total


def reference(mode: aggregate.Mode) -> PartialSum:
    total = PartialSum.zero(LAYOUT, mode)
    for weight, bits, layers in EVERYONE:
        total.add(weight, bits, layers, BASE.layers)
    return total


@pytest.mark.parametrize("mode", ["models", "changes"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_any_order_and_any_merge_tree_give_the_same_bytes(mode: aggregate.Mode, seed: int) -> None:
    rng = random.Random(seed)
    parts = [leaf(number, mode) for number in range(CLIENTS)]
    rng.shuffle(parts)
    while len(parts) > 1:
        left = parts.pop(rng.randrange(len(parts)))
        right = parts.pop(rng.randrange(len(parts)))
        if rng.random() < 0.3:  # as it travels between workers
            right = PartialSum.from_bytes(right.to_bytes(), LAYOUT)
        left.merge(right)
        parts.append(left)
    expected = reference(mode)
    assert parts[0].to_bytes() == expected.to_bytes()
    pooled = rng.random() < 0.5
    ours, theirs = (total.finish(BASE, pooled_variance=pooled) for total in (parts[0], expected))
    assert ours.to_bytes() == theirs.to_bytes()


@pytest.mark.parametrize("mode", ["models", "changes"])
def test_the_mean_is_the_weighted_mean(mode: aggregate.Mode) -> None:
    """Against float64; the fixed point of 2^-32 leaves at most a few units of rounding."""
    total = reference(mode)
    model = total.finish(BASE)
    weights = np.array([weight for weight, _, _ in EVERYONE], float)
    for index, layer in enumerate(model.layers):
        clients = np.stack([layers[index].weights for _, _, layers in EVERYONE]).astype(float)
        expected = np.average(clients, axis=0, weights=weights)
        if mode == "changes":
            # Everyone starts from the base here, so the mean of changes is the mean of models.
            assert np.abs(layer.weights - expected).max() < 4
        else:
            assert np.abs(layer.weights - expected).max() < 2
        gammas = np.stack([layers[index].gamma for _, _, layers in EVERYONE]).astype(float)
        assert np.abs(layer.gamma - np.average(gammas, axis=0, weights=weights)).max(initial=0) <= 0.5 + 1e-6
    bits = np.array([bits for _, bits, _ in EVERYONE], float)
    assert total.mean_bits() == [int(np.floor(n + 0.5)) for n in np.average(bits, axis=0, weights=weights)]


def test_pooled_variance_is_that_of_the_pooled_population() -> None:
    total = reference("models")
    model = total.finish(BASE, pooled_variance=True)
    weights = np.array([weight for weight, _, _ in EVERYONE], float)
    for index, layer in enumerate(model.layers[:-1]):
        means = np.array([layers[index].mean for _, _, layers in EVERYONE], float) * 2.0**-32
        variances = np.array([layers[index].var for _, _, layers in EVERYONE], float) * 2.0**-48
        mean = np.average(means, axis=0, weights=weights)
        expected = np.average(variances, axis=0, weights=weights) + np.average(
            (means - mean) ** 2, axis=0, weights=weights
        )
        found = np.array(layer.var, float) * 2.0**-48
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["models", "changes"])
def test_server_momentum_repeats_a_share_of_the_last_movement(mode: aggregate.Mode) -> None:
    before = first_model(seed=5)
    plain = reference(mode).finish(BASE)
    moved = aggregate.go_on(plain, BASE, before, 1 << 14)
    for old, base, without, layer in zip(before.layers, BASE.layers, plain.layers, moved.layers, strict=True):
        step = (base.weights - old.weights).astype(float) / 2
        assert np.abs((layer.weights - without.weights) - step).max() <= 0.5
        assert np.array_equal(layer.gamma, without.gamma)
    assert aggregate.go_on(plain, BASE, before, 0).to_bytes() == plain.to_bytes()
    # The largest movement there is neither overflows nor leaves the range of a weight.
    limit = aggregate.quantise.WEIGHT_LIMIT
    low, high = first_model(), first_model()
    for layer in low.layers:
        layer.weights[:] = -limit
    for layer in high.layers:
        layer.weights[:] = limit
    assert all(int(layer.weights.max()) == limit for layer in aggregate.go_on(high, high, low, 32767).layers)


@given(weights=st.lists(st.integers(1, 2**40), min_size=1, max_size=300))
@settings(deadline=None)
def test_weights_of_any_size_are_shifted_under_the_bound(weights: list[int]) -> None:
    shift = aggregate.weight_shift(weights)
    scaled = [aggregate.scaled_weight(weight, shift) for weight in weights]
    assert sum(scaled) <= aggregate.WEIGHT_TOTAL
    assert min(scaled) >= 1
    if sum(weights) + 2 * len(weights) <= aggregate.WEIGHT_TOTAL:
        assert scaled == weights


def test_the_extreme_change_does_not_overflow() -> None:
    """Everyone moves every weight from one end of the range to the other at the largest total weight."""
    end, start = first_model().layers, first_model().layers
    for layer in (*end, *start):
        layer.weights[:] = aggregate.quantise.WEIGHT_LIMIT
    for layer in start:
        layer.weights *= -1
    total = PartialSum.zero(LAYOUT, "changes")
    half = aggregate.WEIGHT_TOTAL // 2
    for weight in (half, aggregate.WEIGHT_TOTAL - half):
        total.add(weight, [8] * len(end), end, start)
    expected = aggregate.WEIGHT_TOTAL * 2 * aggregate.quantise.WEIGHT_LIMIT
    assert expected < 2**63
    assert all(int(layer.weights[0]) == expected for layer in total.layers)
    with pytest.raises(RoundError, match="overflow bound"):
        total.add(1, [8] * len(end), end, start)
