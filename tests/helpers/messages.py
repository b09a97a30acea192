"""A valid message of every type, for tests that then damage it."""

from __future__ import annotations

from fedmpq.edge_runtime import protocol as p

HASH = "0123456789abcdef" * 4
FX = (2**30 + 12345, -33)


def settings(**changes: object) -> p.Settings:
    fields: dict[str, object] = {
        "batch": 8, "micro_batch": None, "act_bits": 4, "guard": 0, "momentum": True,
        "crop": True, "flip": False, "decay_bn": True, "recompute": True,
    }  # fmt: skip
    return p.Settings(**{**fields, **changes})  # type: ignore[arg-type]


def layer(bits: int = 2) -> p.LayerBlobs:
    return p.LayerBlobs(bits, FX, (HASH,) * (bits + 1), HASH)


def plan(**changes: object) -> p.PlanMessage:
    fields: dict[str, object] = {
        "run": "r1", "round": 3, "program": HASH, "program_size": 128, "settings": settings(),
        "layers": (layer(2), layer(8)), "epochs": 2, "seed": 7, "client": 5, "lr": FX, "weight_decay": (0, 0),
        "momentum_q15": 29491, "lasso": (FX, (0, 0)), "eps_q16": 1966, "planned_bytes": 1000,
        "sent_ms": 5, "deadline_ms": 6,
    }  # fmt: skip
    return p.PlanMessage(**{**fields, **changes})  # type: ignore[arg-type]


def profile(**changes: object) -> p.Profile:
    fields: dict[str, object] = {
        "device": "pi-1", "run": "r1", "program": HASH, "samples": 100, "budget_bytes": 10**6,
        "limit_source": "option", "ram_bytes": 10**9, "available_bytes": 10**8, "cgroup_bytes": None,
        "peak_bytes": 10**7, "plans": tuple(p.PlanSize(b, b * 1000, b * 1000 if b < 5 else None) for b in range(1, 9)),
        "machine": "aarch64", "isa": "neon", "cpus": 4, "threads": 1, "version": "0.1.0",
    }  # fmt: skip
    return p.Profile(**{**fields, **changes})  # type: ignore[arg-type]


def update(**changes: object) -> p.Update:
    fields: dict[str, object] = {
        "run": "r1", "round": 3, "plan": HASH, "samples": 100, "steps": 12, "count": 96, "correct": 50,
        "loss_q16": 123456, "planned_bytes": 1000, "measured_bytes": 1000, "train_ms": 10, "layers": (layer(),),
    }  # fmt: skip
    return p.Update(**{**fields, **changes})  # type: ignore[arg-type]


def one_of_each() -> dict[str, p.Control]:
    """Topic kind -> message (several kinds carry more than one type: the keys then end in #n)."""
    job = p.Job(HASH, 256, settings())
    return {
        "coord/state": p.CoordState("r1", True, 4, job),
        "coord/state#2": p.CoordState("r1", False, 4, None),
        "round": p.RoundState("r1", 3, 50, "collect", 1_700_000_000_000, 1),
        "state": p.DeviceState("pi-1", True, 9, "0.1.0"),
        "up/profile": profile(),
        "up/req": p.Request("r1", 3, False, (p.Want(HASH, "ff01"),)),
        "up/update": update(),
        "up/update#2": p.Refusal("r1", 3, HASH, "memory", 2000, 1000, "the plan takes 2000 bytes"),
        "dn/plan": plan(),
        "dn/ack": p.Ack("r1", 3, "update", HASH, False, "stale-round", "round 3 is closed"),
        "dn/ack#2": p.Need("r1", 3, HASH, (p.Want(HASH, "01"),)),
    }
