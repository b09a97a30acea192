"""Alg. 2 (eq. 16) and the other allocations; budgets from memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.coordinator import policy
from fedmpq.coordinator.admission import Allotter
from fedmpq.coordinator.policy import POLICIES, Situation
from fedmpq.errors import BudgetError, ConfigError
from fedmpq.export.budget import average_bits
from tests.helpers.fleet import LAYOUT, first_model, plan_bytes

THETAS = (100, 400, 400, 1000)


def situation(mean: list[int], bits: float, fallen: tuple[int, ...] = ()) -> Situation:
    return Situation(THETAS, mean, int(bits * 16), fallen)


def test_literal_prunes_the_largest_layer_to_one_before_the_next() -> None:
    # 1900 weights at 2.3 bits: 4370 stored bits. The largest at 1: 1000 + 3600 = 4600, still over; then one of the
    # middle layers (record order breaks the tie) goes down one bit: 4200.
    assert policy.literal(situation([4, 4, 4, 4], 2.3125)) == (4, 3, 4, 1)


def test_literal_breaks_ties_by_what_fell_in_training() -> None:
    assert policy.literal(situation([4, 4, 4, 4], 2.3125, (0, 0, 1, 0))) == (4, 4, 3, 1)


def test_literal_grows_the_smallest_first_and_never_passes_the_budget() -> None:
    # 1900 * 4.25 = 8075 stored bits, 7600 used: the smallest takes 4 more planes (400), nothing else fits in 75.
    assert policy.literal(situation([4, 4, 4, 4], 4.25)) == (8, 4, 4, 4)
    assert policy.literal(situation([4, 4, 4, 4], 8)) == (8, 8, 8, 8)


def test_mean_bits_outside_1_to_8_are_clamped() -> None:
    assert policy.literal(situation([0, 9, 9, 9], 8)) == (8, 8, 8, 8)


def test_uniform_is_aqfl_and_eight_is_fpq8() -> None:
    assert policy.uniform(situation([1, 2, 3, 4], 5.9)) == (5, 5, 5, 5)
    assert policy.eight(situation([1, 2, 3, 4], 2)) == (8, 8, 8, 8)


@given(
    name=st.sampled_from(["literal", "even", "noise", "balanced", "walk", "uniform"]),
    mean=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    budget16=st.integers(16, 128),
    noise=st.lists(st.integers(1, 1000), min_size=4, max_size=4),
)
def test_every_policy_keeps_the_budget(name: str, mean: list[int], budget16: int, noise: list[int]) -> None:
    table = [[(size << 32) >> (2 * n) for n in range(9)] for size in noise]
    here = Situation(THETAS, mean, budget16, (), table)
    bits = POLICIES[name](here)
    assert here.fits(bits)
    assert all(1 <= n <= 8 for n in bits)
    if name != "uniform":  # nothing that would still fit is left undone while there was something to grow
        grown = [list(bits) for _ in bits]
        for i, row in enumerate(grown):
            row[i] += 1
        over_at_start = not here.fits(here.start())
        if name != "literal" or not over_at_start:
            assert all(bits[i] == 8 or not here.fits(row) for i, row in enumerate(grown))


def test_noise_spends_bits_where_they_remove_most() -> None:
    table = [[(s << 32) >> (2 * n) for n in range(9)] for s in (1, 1, 1000, 1)]
    bits = policy.noise(Situation(THETAS, [4] * 4, 48, (), table))
    assert bits[2] > bits[1]
    with pytest.raises(ConfigError):
        policy.noise(situation([4] * 4, 3))


def test_training_noise_gives_small_layers_more_than_the_error_of_rounding_does() -> None:
    thetas = (400,) * 8 + (1600,) * 8
    steps = [[(1 << 32) >> n for n in range(9)] for _ in thetas]
    errors = [[(1 << 32) >> (2 * n) for n in range(9)] for _ in thetas]
    walk = policy.walk(Situation(thetas, [4] * 16, 4 * 16, (), steps))
    balanced = policy.balanced(Situation(thetas, [4] * 16, 4 * 16, (), errors))
    # A quarter of the weights is worth two bits against one, up to rounding.
    more = [sum(bits[:8]) / 8 - sum(bits[8:]) / 8 for bits in (walk, balanced)]
    assert more == [pytest.approx(2, abs=0.6), pytest.approx(1, abs=0.6)]


def test_step_table_halves_with_every_bit_of_max_scales() -> None:
    for row in first_model().step_table("max"):
        assert all(left > right for left, right in pairwise(row))
        assert row[3] / row[7] == pytest.approx(127 / 7, rel=1e-6)


def test_unknown_policy_lists_the_names() -> None:
    with pytest.raises(ConfigError, match="unknown bit-width policy 'best'"):
        policy.by_name("best")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("name", ["literal", "even", "uniform", "balanced"])
def test_budget_is_the_largest_that_fits_the_memory(name: str, bits: int) -> None:
    noise = first_model().noise_table("mse")
    allot = Allotter(name, LAYOUT.thetas, plan_bytes, noise)
    limit = plan_bytes((bits,) * len(LAYOUT.layers))
    found = allot(limit, 128)
    assert found.planned_bytes <= limit
    assert found.planned_bytes == plan_bytes(found.bits)
    assert bits - 0.13 <= found.budget16 / 16 <= bits
    again = allot(limit, 128, [4] * len(LAYOUT.layers))
    assert again.planned_bytes <= limit
    assert again.budget16 / 16 <= bits
    with pytest.raises(BudgetError, match="the smallest plan takes"):
        allot(plan_bytes((1,) * len(LAYOUT.layers)) - 1, 128)


def test_a_cap_holds_whatever_the_memory() -> None:
    allot = Allotter("literal", LAYOUT.thetas, plan_bytes)
    assert allot(10**9, 32).bits == (2,) * len(LAYOUT.layers)
    found = allot(10**9, 40, [3] * len(LAYOUT.layers))
    assert average_bits(found.bits, LAYOUT.thetas) <= 2.5


def test_noise_table_falls_with_every_bit_and_starts_at_one() -> None:
    for row in first_model().noise_table("mse"):
        assert row[0] == 1 << 32
        assert all(a > b >= 0 for a, b in pairwise(row))
