"""Robust rules: exact, free of order, equal to what they should be on small numbers, and bounded under attack."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.coordinator import robust
from fedmpq.coordinator.attacks import Attack
from fedmpq.coordinator.fixed import norm, rdiv
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.errors import ConfigError, UsageError
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, noise, samples

BIG = (1 << 38) - 1


def by_hand(values: list[int], weights: list[int], cut: int) -> int:
    """Everyone's value written down `weight` times, sorted, cut, averaged."""
    written = sorted(v for v, w in zip(values, weights, strict=True) for _ in range(w))
    kept = written[cut : len(written) - cut]
    return rdiv(sum(kept), len(kept))


clients = st.lists(st.tuples(st.integers(-BIG, BIG), st.integers(1, 9)), min_size=1, max_size=9)


@given(clients, st.integers(0, 49), st.randoms(use_true_random=False), st.booleans())
def test_trimmed_means_by_hand_and_in_any_order(
    found: list[tuple[int, int]], percent: int, order: random.Random, wide: bool
) -> None:
    values, weights = [v for v, _ in found], [w for _, w in found]
    total = sum(weights)
    cut = min(total * percent // 100, (total - 1) // 2)
    kind: object = object if wide else np.int64
    expected = by_hand(values, weights, cut)
    for _ in range(3):
        arrays = [np.array([v, -v], kind) for v, _ in found]  # type: ignore[call-overload]
        result = robust.trimmed_mean(arrays, np.array([w for _, w in found], np.int64), cut)
        assert int(result[0]) == expected
        order.shuffle(found)


def test_the_extreme_sums_do_not_overflow() -> None:
    weights = np.array([(1 << 24) - 1, 1 << 24], np.int64)
    values = [np.array([BIG, -BIG], np.int64)] * 2
    assert robust.trimmed_mean(values, weights, 0).tolist() == [BIG, -BIG]


def contribution(seed: int, weight: int = 10, factor: int = 1, bits: int = 8) -> robust.Contribution:
    base = first_model()
    moved = [
        [layer.weights, layer.weights + factor * noise(len(layer.weights), seed * 100 + i, 0.01)]
        for i, layer in enumerate(base.layers)
    ]

    def layer(index: int) -> tuple[object, object]:
        start, end = GlobalModel.from_bytes(base.to_bytes(), LAYOUT).layers[index], base.layers[index]
        changed = GlobalModel.from_bytes(base.to_bytes(), LAYOUT).layers[index]
        changed.weights = moved[index][1]
        changed.gamma = end.gamma * factor
        return start, changed

    count = len(LAYOUT.layers)
    return robust.Contribution(weight, [bits] * count, [norm(1, -bits)] * count, layer)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["clip", "trimmed", "median"])
@pytest.mark.parametrize("mode", ["models", "changes"])
def test_the_order_of_updates_changes_no_byte(rule: str, mode: str) -> None:
    made = [contribution(seed, weight=10 + seed, bits=2 + seed) for seed in range(5)]
    results = {robust.merge(rule, 20, mode, first_model(), list(order)).to_bytes()
               for order in (made, made[::-1], made[2:] + made[:2])}  # fmt: skip
    assert len(results) == 1
    assert robust.mean_bits(made) == robust.mean_bits(made[::-1])


@pytest.mark.parametrize("rule", ["clip", "trimmed", "median"])
def test_a_scaled_client_moves_the_model_no_further_than_an_honest_one_may(rule: str) -> None:
    honest = [contribution(seed) for seed in range(4)]
    base = first_model()
    calm = robust.merge(rule, 20, "changes", base, [*honest, contribution(4)])
    attacked = robust.merge(rule, 20, "changes", base, [*honest, contribution(4, factor=1000)])
    for old, left, right in zip(base.layers, calm.layers, attacked.layers, strict=True):
        moved, disturbed = np.linalg.norm(left.weights - old.weights), np.linalg.norm(right.weights - left.weights)
        assert disturbed <= moved * 1.5
        assert np.array_equal(left.gamma, right.gamma)  # the one in five that lies is cut off


def test_claimed_weights_are_capped() -> None:
    assert robust.cap_weights({"a": 5, "b": 10, "c": 1 << 40}) == {"a": 5, "b": 10, "c": 30}
    assert robust.cap_weights({}) == {}


def test_one_update_is_taken_as_it_is() -> None:
    """With nobody to compare with, every rule is the plain average."""
    one = contribution(1)
    for rule in ("clip", "trimmed", "median"):
        merged = robust.merge(rule, 40, "changes", first_model(), [one])
        for index, layer in enumerate(merged.layers):
            assert np.array_equal(layer.weights, one.layer(index)[1].weights)


@pytest.mark.parametrize("rule", ["none", "clip", "trimmed", "median"])
def test_a_simulation_under_attack_ends_and_repeats(tmp_path: Path, rule: str) -> None:
    fleet = {f"d{i}": samples(32, i) for i in range(5)}
    attack = Attack.parse("scale:0.2:10")
    models = []
    for life in range(2):
        made = config(min_devices=5, rounds=2, robust=rule)
        origin = Source(PROGRAM, LAYOUT, first_model, "tiny")
        run = Simulation(tmp_path / str(life), made, origin, fleet, None, attack=attack)
        assert len(run.attackers) == 1
        result = run.play()
        assert [row["accepted"] for row in result["rounds"]] == [5, 5]
        models.append(run.run.journal.meta("model"))
        run.close()
    assert models[0] == models[1]


def test_attacks_are_named() -> None:
    assert Attack.parse("label-flip:0.2") == Attack("label-flip", 0.2)
    assert Attack.parse("sign-flip:0.5") == Attack("sign-flip", 0.5, 1)
    assert len(Attack.parse("scale:0.2").attackers([f"c{i}" for i in range(10)], 1)) == 2
    flipped = samples(20, 1).flipped()
    assert [a + b for a, b in zip(flipped.labels(0, 20), samples(20, 1).labels(0, 20), strict=True)] == [3] * 20
    for text in ("", "scale", "scale:2", "scale:0.1:0", "noise:0.1", "scale:x"):
        with pytest.raises(UsageError, match="is not understood"):
            Attack.parse(text)
    assert Fraction(robust.CLIP, 1024) == Fraction(3, 2)


def test_a_simulation_with_a_referee(tmp_path: Path) -> None:
    fleet = {f"d{i}": samples(48, i) for i in range(5)}
    made = config(min_devices=5, rounds=2, robust="referee")
    origin = Source(PROGRAM, LAYOUT, first_model, "tiny")
    run = Simulation(
        tmp_path / "a", made, origin, fleet, None, attack=Attack.parse("label-flip:0.2"), referee=samples(64, 77)
    )
    run.play()
    out = run.run.journal.rows("SELECT device FROM events WHERE kind='left-out'")
    assert {row["device"] for row in out} <= set(fleet)
    run.close()
    without = Simulation(tmp_path / "b", made, origin, fleet, None)
    with pytest.raises(ConfigError, match="--referee SHARD"):
        without.play()
    without.close()
