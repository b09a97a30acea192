"""Bit-width policies: how one client's average budget is spent over the layers (paper Alg. 2, eq. 16).

A policy starts from the fleet's mean bit-widths and prunes or grows them to the client's budget. Budgets are in
sixteenths of a bit, so that everything is integer: `16 * sum(n * theta) <= budget16 * sum(theta)`.

The literal order has two known traps. It drains the largest layers to one plane for clients of small budgets (one plane
under max scaling is mostly zeros), and its small layers sit at 8 bits from the first round on, so the bit-widths that
training found are soon forgotten. `even` avoids the first and is close to AQFL; `noise` spends each stored bit where
it removes the most quantisation noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedmpq.errors import BudgetError, ConfigError

MAX_BITS = 8
#: Resolution of a budget: 1/16 bit.
UNIT = 16

Bits = tuple[int, ...]


@dataclass(frozen=True)
class Situation:
    """What a policy knows when it allots bits to one client.

    Attributes:
        thetas: weights per layer.
        mean_bits: the fleet's round(n-bar) per layer (eq. 15).
        budget16: the client's average bit-width b_k in sixteenths.
        fallen: per layer, by how many bits this client's last local training lowered it (Delta_l).
        noise: per layer, the noise at 0..8 bits in 2**-32 by the policy's own measure (TABLES), times the layer's
            sensitivity; empty if the policy does not need it.
    """

    thetas: Sequence[int]
    mean_bits: Sequence[int]
    budget16: int
    fallen: Sequence[int] = ()
    noise: Sequence[Sequence[int]] = ()

    def fits(self, bits: Sequence[int]) -> bool:
        """Whether these bit-widths are within the budget."""
        stored = sum(n * theta for n, theta in zip(bits, self.thetas, strict=True))
        return UNIT * stored <= self.budget16 * sum(self.thetas)

    def start(self) -> list[int]:
        """round(n-bar) within 1..8."""
        return [max(1, min(MAX_BITS, n)) for n in self.mean_bits]

    def fall_of(self, layer: int) -> int:
        """Delta_l, 0 where there was no earlier training."""
        return self.fallen[layer] if self.fallen else 0


Policy = Callable[[Situation], Bits]


def literal(situation: Situation) -> Bits:
    """Alg. 2 as printed: over budget, the largest layer goes down to 1 before the next; under, the smallest up to 8.

    Ties while pruning: the layer that fell more in this client's last training first; then record order.
    """
    bits = situation.start()
    layers = range(len(bits))
    if not situation.fits(bits):
        for layer in sorted(layers, key=lambda i: (-situation.thetas[i], -situation.fall_of(i), i)):
            while bits[layer] > 1 and not situation.fits(bits):
                bits[layer] -= 1
    else:
        for layer in sorted(layers, key=lambda i: (situation.thetas[i], situation.fall_of(i), i)):
            while bits[layer] < MAX_BITS and situation.fits(_changed(bits, layer, 1)):
                bits[layer] += 1
    return tuple(bits)


def even(situation: Situation) -> Bits:
    """One bit at a time: the widest layer goes down (largest first), the narrowest up (smallest first)."""
    bits = situation.start()
    while not situation.fits(bits) and max(bits) > 1:
        bits[max(range(len(bits)), key=lambda i: (bits[i], situation.thetas[i], situation.fall_of(i), -i))] -= 1
    while True:
        able = [i for i in range(len(bits)) if bits[i] < MAX_BITS and situation.fits(_changed(bits, i, 1))]
        if not able:
            return tuple(bits)
        bits[min(able, key=lambda i: (bits[i], situation.thetas[i], i))] += 1


def noise(situation: Situation) -> Bits:
    """The layer whose bit removes the least noise per stored bit goes down, the one that removes the most goes up.

    With batch-norm behind every convolution a layer's *relative* noise matters, whatever its size.
    """
    if len(situation.noise) != len(situation.thetas):
        raise ConfigError("policy 'noise' needs the layers' quantisation noise")
    thetas = situation.thetas
    bits = situation.start()
    room = situation.budget16 * sum(thetas) - UNIT * sum(n * theta for n, theta in zip(bits, thetas, strict=True))
    # Noise removed by plane n, per weight; scaled so that integer division keeps precision.
    worth = [
        [0, *((max(0, row[n - 1] - row[n]) << 32) // theta for n in range(1, MAX_BITS + 1))]
        for row, theta in zip(situation.noise, thetas, strict=True)
    ]
    layers = range(len(bits))
    while room < 0 and max(bits) > 1:
        layer = min((i for i in layers if bits[i] > 1), key=lambda i: (worth[i][bits[i]], -i))
        bits[layer] -= 1
        room += UNIT * thetas[layer]
    while True:
        able = [i for i in layers if bits[i] < MAX_BITS and UNIT * thetas[i] <= room]
        if not able:
            return tuple(bits)
        layer = max(able, key=lambda i: (worth[i][bits[i] + 1], -i))
        bits[layer] += 1
        room -= UNIT * thetas[layer]


def balanced(situation: Situation) -> Bits:
    """`noise` from scratch: water-filling from one plane in every layer, whatever the fleet's mean says."""
    blank = Situation(situation.thetas, [1] * len(situation.thetas), situation.budget16, (), situation.noise)
    return noise(blank)


def walk(situation: Situation) -> Bits:
    """`balanced` for the noise that training itself makes.

    A stochastically rounded update moves a weight by whole steps: after T updates of mean size u the weight has done a
    random walk of variance T * u * step. That falls by 2 with every bit, not by 4 as the error of rounding once does,
    so small layers get more bits than `balanced` gives them.
    """
    return balanced(situation)


def uniform(situation: Situation) -> Bits:
    """AQFL: every layer at floor(b_k)."""
    return (max(1, min(MAX_BITS, situation.budget16 // UNIT)),) * len(situation.thetas)


def eight(situation: Situation) -> Bits:
    """FPQ8: every layer at 8 bits, whatever the budget."""
    return (MAX_BITS,) * len(situation.thetas)


POLICIES: dict[str, Policy] = {
    "literal": literal,
    "even": even,
    "noise": noise,
    "balanced": balanced,
    "walk": walk,
    "uniform": uniform,
    "eight": eight,
}


#: What the noise table of a policy holds: the squared error of rounding once, or the step (see `walk`).
TABLES = {"noise": "error", "balanced": "error", "walk": "step"}


def by_name(name: str) -> Policy:
    """The policy of a name; ConfigError lists the names there are."""
    if name not in POLICIES:
        raise ConfigError(f"unknown bit-width policy {name!r}", f"one of {', '.join(POLICIES)}")
    return POLICIES[name]


@dataclass(frozen=True)
class Allotment:
    """Bits for one client and what they cost.

    Attributes:
        bits: per layer.
        budget16: the average bit-width budget in sixteenths that led to them.
        planned_bytes: arena bytes by the core's planner.
    """

    bits: Bits
    budget16: int
    planned_bytes: int


def largest_fit(
    policy: Policy,
    situation: Situation,
    plan_bytes: Callable[[Bits], int],
    limit: int,
    *,
    cap16: int = MAX_BITS * UNIT,
    floor16: int = UNIT,
    step16: int = 2,
) -> Allotment:
    """b_k: the largest average bit-width whose allotted plan fits `limit` bytes (steps of 1/8 bit by default).

    Args:
        policy: how a budget is spent.
        situation: layers and the fleet's means; its own budget is ignored.
        plan_bytes: the planner, bits to arena bytes.
        limit: the device's measured memory for an arena.
        cap16: never more than this budget.
        floor16: never less than this one.
        step16: resolution of the search.

    Raises:
        BudgetError: not even one plane in every layer fits; carries the two numbers.
    """
    for budget16 in range(_stepped(min(cap16, MAX_BITS * UNIT), step16), floor16 - 1, -step16):
        here = Situation(situation.thetas, situation.mean_bits, budget16, situation.fallen, situation.noise)
        bits = policy(here)
        needed = plan_bytes(bits)
        if needed <= limit:
            # What a policy leaves over is not part of the budget: b_k weighs the client's update (eq. 15).
            used16 = -(-UNIT * sum(n * t for n, t in zip(bits, here.thetas, strict=True)) // sum(here.thetas))
            return Allotment(bits, min(budget16, -(-used16 // step16) * step16), needed)
    floor = Situation(situation.thetas, [1] * len(situation.thetas), UNIT, (), situation.noise)
    needed = plan_bytes(policy(floor))
    raise BudgetError(
        f"the smallest plan takes {needed} bytes, the device allows {limit}",
        needed=needed,
        available=limit,
        hint="a smaller micro-batch or model, or more memory",
    )


def _stepped(budget16: int, step16: int) -> int:
    """A cap on the grid of the search."""
    return budget16 - budget16 % step16


def _changed(bits: Sequence[int], layer: int, by: int) -> list[int]:
    changed = list(bits)
    changed[layer] += by
    return changed
