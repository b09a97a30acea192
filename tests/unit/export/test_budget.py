"""From budgets to plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpq.edge_runtime import core
from fedmpq.errors import BudgetError, UsageError
from fedmpq.export.budget import average_bits, bits_for, descending, fit_memory
from fedmpq.export.program import ProgramBuilder

THETAS = st.lists(st.integers(1, 100_000), min_size=1, max_size=20)


def program() -> core.Program:
    builder = ProgramBuilder((16, 16, 3))
    builder.conv("stem", 8, pad=1)
    builder.conv("wide", 64, pad=1, stride=2)
    builder.conv("wider", 96, pad=1, stride=2)
    builder.global_pool()
    builder.classifier("fc", 10)
    return core.Program(builder.build())


PROGRAM = program()
WANTED = core.Plan(bits=(), batch=32, momentum=True)


@given(THETAS, st.floats(1, 8))
def test_bits_come_as_near_to_the_average_as_whole_planes_allow(thetas: list[int], average: float) -> None:
    bits = bits_for(average, thetas)
    assert all(1 <= n <= 8 for n in bits)
    assert average_bits(bits, thetas) <= average
    assert max(bits) - min(bits) <= 1
    for i, n in enumerate(bits):  # one bit more anywhere is over the budget, or over 8
        grown = [*bits[:i], n + 1, *bits[i + 1 :]]
        assert n == 8 or max(grown) - min(grown) > 1 or average_bits(grown, thetas) > average


def test_whole_averages_are_uniform() -> None:
    assert bits_for(4, [10, 20, 30]) == (4, 4, 4)
    assert bits_for(8, [10, 20]) == (8, 8)
    with pytest.raises(UsageError, match="outside of 1…8"):
        bits_for(0.5, [10])


@given(THETAS)
def test_the_ladder_goes_down_plane_by_plane(thetas: list[int]) -> None:
    ladder = list(descending(thetas))
    assert ladder[0] == (8,) * len(thetas)
    assert ladder[-1] == (1,) * len(thetas)
    for above, below in pairwise(ladder):
        assert sum(above) - sum(below) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(30_000, 3_000_000))
def test_a_memory_limit_is_kept_and_used(limit: int) -> None:
    smallest = core.plan_memory(PROGRAM, replace(WANTED, batch=1, micro_batch=1, bits=(1,) * 4)).total
    if limit < smallest:
        with pytest.raises(BudgetError):
            fit_memory(PROGRAM, WANTED, limit)
        return
    choice = fit_memory(PROGRAM, WANTED, limit)
    assert choice.memory.total <= limit
    assert choice.memory.total == core.plan_memory(PROGRAM, choice.plan).total
    thetas = [layer.theta for layer in PROGRAM.weight_layers]
    for bits in descending(thetas):  # nothing with more bits fits at this batch
        if average_bits(bits, thetas) <= choice.average_bits:
            break
        assert core.plan_memory(PROGRAM, replace(choice.plan, bits=bits)).total > limit


def test_bits_fall_below_four_only_where_a_smaller_batch_does_not_help() -> None:
    low = core.plan_memory(PROGRAM, replace(WANTED, bits=(4,) * 4)).total - 1
    choice = fit_memory(PROGRAM, WANTED, low)
    assert choice.plan.micro_batch == 16
    assert choice.average_bits >= 4
    fixed = fit_memory(PROGRAM, WANTED, low, fixed_batch=True, fixed_micro_batch=True)
    assert fixed.plan.micro_batch == 32
    assert fixed.average_bits < 4


def test_the_cap_holds() -> None:
    choice = fit_memory(PROGRAM, WANTED, 100_000_000, cap=2.5)
    assert choice.average_bits <= 2.5
    assert choice.plan.batch == choice.plan.micro_batch == 32


def test_one_byte_too_few_says_both_numbers() -> None:
    smallest = core.plan_memory(PROGRAM, replace(WANTED, batch=1, micro_batch=1, bits=(1,) * 4)).total
    assert fit_memory(PROGRAM, WANTED, smallest).memory.total == smallest
    with pytest.raises(BudgetError, match=f"takes {smallest} bytes, {smallest - 1} are allowed") as caught:
        fit_memory(PROGRAM, WANTED, smallest - 1)
    assert (caught.value.needed, caught.value.available) == (smallest, smallest - 1)
    with pytest.raises(BudgetError, match="a smaller batch"):
        fit_memory(PROGRAM, WANTED, smallest, fixed_batch=True, fixed_micro_batch=True)


def test_a_layer_too_wide_for_eight_bits_gets_seven() -> None:
    builder = ProgramBuilder((128, 128, 3))
    builder.conv("flat", 2, kernel=1, flatten=True)
    builder.classifier("fc", 2)
    wide = core.Program(builder.build())
    assert fit_memory(wide, core.Plan(bits=(8, 8), batch=2), 1 << 24).plan.bits == (7, 8)
