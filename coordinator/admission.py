"""From a device's measured memory to its budget: who may take part, and with how many bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedmpq.coordinator import policy
from fedmpq.coordinator.policy import Allotment, Bits, Situation
from fedmpq.edge_runtime import trainer
from fedmpq.edge_runtime.protocol import MAX_BITS, Profile, Settings
from fedmpq.errors import BudgetError, ConfigError, CoreError

PlanBytes = Callable[[Bits], int]


def planner_of(program: bytes, settings: Settings) -> PlanBytes:
    """Arena bytes of a plan by the core's planner, the same one the devices use; remembers what it was asked.

    Raises:
        ConfigError: the core cannot train the program at every bit-width, as the trial steps of devices do.
    """
    from fedmpq.edge_runtime import core

    parsed = core.Program(program)
    try:
        core.plan_memory(parsed, trainer.core_plan(core, settings, [MAX_BITS] * len(parsed.weight_layers)))
    except CoreError as error:
        chosen = f"act_bits = {settings.act_bits}, guard = {settings.guard}"
        raise ConfigError(
            f"this model does not train with {chosen}: {error.message}", "lower them, or use a narrower layer"
        ) from None

    @lru_cache(maxsize=65536)
    def plan_bytes(bits: Bits) -> int:
        return int(core.plan_memory(parsed, trainer.core_plan(core, settings, bits)).total)

    return plan_bytes


@dataclass(frozen=True)
class Admission:
    """The verdict on a profile.

    Attributes:
        admitted: whether the device may train.
        reason, detail: why not; empty if admitted.
        extra_bytes: how much more the device's own planner asks for than ours (threads), 0 normally.
        allotment: its bits at the time of admission, None if refused.
    """

    admitted: bool
    reason: str
    detail: str
    extra_bytes: int
    allotment: Allotment | None


def judge(
    profile: Profile,
    program: str,
    layers: int,
    plan_bytes: PlanBytes,
    allot: Callable[[int], Allotment],
) -> Admission:
    """Admits or refuses a device by its profile.

    Args:
        profile: what the device measured.
        program: SHA-256 of the run's program.
        layers: number of weight layers.
        plan_bytes: our planner.
        allot: the largest allotment for a limit in bytes; BudgetError if nothing fits.
    """
    if profile.program != program:
        return Admission(False, "program", f"profiled program {profile.program[:12]}, not {program[:12]}", 0, None)
    if profile.samples < 1:
        return Admission(False, "samples", "the device holds no samples", 0, None)
    extra = max(0, *(p.planned_bytes - plan_bytes((p.bits,) * layers) for p in profile.plans))
    try:
        return Admission(True, "", "", extra, allot(profile.budget_bytes - extra))
    except BudgetError as error:
        needed = error.needed + extra
        detail = f"the smallest plan takes {needed} bytes, the device allows {profile.budget_bytes}"
        return Admission(False, "budget", detail, extra, None)


class Allotter:
    """Allots bits to devices under one policy and the fleet's current mean bit-widths."""

    def __init__(
        self,
        policy_name: str,
        thetas: Sequence[int],
        plan_bytes: PlanBytes,
        noise: Sequence[Sequence[int]] = (),
    ) -> None:
        self.policy = policy.by_name(policy_name)
        self.thetas = tuple(thetas)
        self.plan_bytes = plan_bytes
        self.noise = noise

    def __call__(
        self, limit: int, cap16: int, mean_bits: Sequence[int] | None = None, fallen: Sequence[int] = ()
    ) -> Allotment:
        """The largest allotment that fits `limit` bytes and `cap16` sixteenths of a bit.

        Args:
            limit: memory for the arena in bytes.
            cap16: upper bound of the budget in sixteenths of a bit.
            mean_bits: round(n-bar) of the fleet; None before the first round, where a device starts from its own
                budget in every layer.
            fallen: Delta_l of the device's last training.

        Raises:
            BudgetError: nothing fits.
        """
        if mean_bits is not None:
            situation = Situation(self.thetas, tuple(mean_bits), cap16, tuple(fallen), self.noise)
            return policy.largest_fit(self.policy, situation, self.plan_bytes, limit, cap16=cap16)
        for bits in range(min(MAX_BITS, cap16 // policy.UNIT), 1, -1):
            situation = Situation(self.thetas, (bits,) * len(self.thetas), cap16, (), self.noise)
            cap = min(cap16, (bits + 1) * policy.UNIT - 1)
            try:
                return policy.largest_fit(
                    self.policy, situation, self.plan_bytes, limit, cap16=cap, floor16=bits * policy.UNIT
                )
            except BudgetError:
                continue
        situation = Situation(self.thetas, (1,) * len(self.thetas), cap16, (), self.noise)
        cap = min(cap16, 2 * policy.UNIT - 1)
        return policy.largest_fit(self.policy, situation, self.plan_bytes, limit, cap16=cap)
