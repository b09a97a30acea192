"""From a budget to a plan: bits for an average bit-width, or the best plan that fits a memory limit.

How a fleet's budgets are spent over layers is the coordinator's policy (`fedmpq.coordinator.policy`); here stands what
one export needs: the same bit-width everywhere, and where the average is fractional, one bit more in the layers with
the fewest weights first, as Alg. 2 of the paper grows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fedmpq.edge_runtime import core
from fedmpq.errors import BudgetError, CoreError, UsageError

MAX_BITS = 8
#: Average bits below which accuracy falls fast: a smaller micro-batch is preferred to fewer bits than this.
COMFORTABLE_BITS = 4.0

Bits = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """A plan that fits.

    Attributes:
        plan: the plan.
        memory: its exact bytes.
        average_bits: magnitude planes a weight, on average.
    """

    plan: core.Plan
    memory: core.MemoryPlan
    average_bits: float


def average_bits(bits: Sequence[int], thetas: Sequence[int]) -> float:
    """Σ n·θ / Σ θ: magnitude planes only; storage takes one sign plane more."""
    return sum(n * theta for n, theta in zip(bits, thetas, strict=True)) / sum(thetas)


def bits_for(average: float, thetas: Sequence[int]) -> Bits:
    """Bit-widths whose average is the largest possible one up to `average` (1…8)."""
    if not 1 <= average <= MAX_BITS:
        raise UsageError(f"--bits {average:g} is outside of 1…{MAX_BITS}")
    bits = [int(average)] * len(thetas)
    for layer in sorted(range(len(thetas)), key=lambda i: (thetas[i], i)):
        bits[layer] += 1
        if bits[layer] > MAX_BITS or average_bits(bits, thetas) > average:
            bits[layer] -= 1
    return tuple(bits)


def descending(thetas: Sequence[int]) -> Iterator[Bits]:
    """Bit-widths from 8 everywhere to 1 everywhere; layers fall one by one, those with most weights first."""
    order = sorted(range(len(thetas)), key=lambda i: (-thetas[i], i))
    bits = [MAX_BITS] * len(thetas)
    yield tuple(bits)
    for _ in range(MAX_BITS - 1):
        for layer in order:
            bits[layer] -= 1
            yield tuple(bits)


def fit_memory(
    program: core.Program,
    wanted: core.Plan,
    limit: int,
    *,
    cap: float = MAX_BITS,
    fixed_batch: bool = False,
    fixed_micro_batch: bool = False,
) -> Choice:
    """The plan with the most bits that takes at most `limit` bytes.

    Activation bits, momentum and guard planes stay as wanted; bit-widths, micro-batch and batch give way:

    1. The largest micro-batch (the batch, halved again and again) at which 4 bits on average fit. Each is tried as a
       part of the wanted batch first, and then as a batch of its own, which saves the sums over micro-batches
       (4 bytes a weight) but takes more and noisier steps.
    2. Where that is nowhere so, whatever allows the most bits; of equals, the one tried first.

    Args:
        program: the program.
        wanted: its bits are ignored.
        limit: bytes of the arena.
        cap: largest average bit-width.
        fixed_batch: leave the batch as wanted.
        fixed_micro_batch: leave the micro-batch as wanted (and with it the batch).

    Raises:
        BudgetError: not even the smallest plan fits; carries both numbers.
    """
    thetas = [layer.theta for layer in program.weight_layers]
    candidates = list(_batches(wanted, fixed_batch=fixed_batch, fixed_micro_batch=fixed_micro_batch))
    best: Choice | None = None
    for plan in candidates:
        found = _most_bits(program, plan, limit, cap, thetas)
        if found and (best is None or found.average_bits > best.average_bits):
            best = found
        if best and best.average_bits >= min(COMFORTABLE_BITS, cap):
            break
    if best is None:
        ones = (1,) * len(thetas)
        needed = min(core.plan_memory(program, replace(plan, bits=ones)).total for plan in candidates)
        raise BudgetError(
            f"the smallest plan (1 bit everywhere) takes {needed} bytes, {limit} are allowed",
            needed=needed,
            available=limit,
            hint="a smaller model or image" + (", or a smaller batch" if fixed_batch or fixed_micro_batch else ""),
        )
    return best


def _batches(wanted: core.Plan, *, fixed_batch: bool, fixed_micro_batch: bool) -> Iterator[core.Plan]:
    """Plans with the batches to be tried, in order of preference."""
    size = wanted.micro_batch or wanted.batch
    while size >= 1:
        yield replace(wanted, micro_batch=size)
        if fixed_micro_batch:
            return
        if size < wanted.batch and not fixed_batch:
            yield replace(wanted, batch=size, micro_batch=size)
        size //= 2


def _most_bits(
    program: core.Program, wanted: core.Plan, limit: int, cap: float, thetas: Sequence[int]
) -> Choice | None:
    """The most bits that fit at one batch. Not a bisection: alignment makes sizes a step function of the bits."""
    if core.plan_memory(program, replace(wanted, bits=(1,) * len(thetas))).total > limit:
        return None
    for bits in descending(thetas):
        average = average_bits(bits, thetas)
        if average <= cap:
            plan = replace(wanted, bits=bits)
            try:
                memory = core.plan_memory(program, plan)
            except CoreError as error:
                if error.hint != "FMPQ_E_PLAN_SUMS":  # so many bits are too many for a layer that wide, fewer are not
                    raise
                continue
            if memory.total <= limit:
                return Choice(plan, memory, average)
    return None
