"""An artifact of a test program with random weights, and the training of one through the binding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import artifact, core
from fedmpq.edge_runtime.weights import LayerBlobs
from tests.helpers import programs


def artifact_of(
    net: programs.Builder,
    bits: int | tuple[int, ...],
    batch: int,
    *,
    seed: int = 0,
    manifest: dict[str, Any] | None = None,
    **plan: Any,
) -> artifact.Artifact:
    """`plan`: the fields that differ from those of a small plan without momentum."""
    widths = (bits,) * len(net.layers) if isinstance(bits, int) else bits
    fields = {
        "bits": list(widths), "batch": batch, "micro_batch": batch, "act_bits": 4, "guard": 0, "momentum": False,
        "threads": 1, "crop": True, "flip": True, "decay_bn": True, "recompute": True, **plan,
    }  # fmt: skip
    layers = tuple(
        LayerBlobs(s.bits, s.guard, s.step, rows * kh * kw * cin, s.planes, s.params)
        for s, (_, rows, kh, kw, cin) in zip(
            programs.states(net, widths, fields["guard"], seed), net.layers, strict=True
        )
    )
    return artifact.Artifact(net.build(), layers, fields, manifest or {})


def plan_of(held: artifact.Artifact) -> core.Plan:
    return core.Plan(**{**held.plan, "bits": tuple(held.plan["bits"])})


def session_of(path: Path) -> core.Session:
    """A session with the plan and the weights of an artifact file."""
    held = artifact.read(path)
    session = core.Session(core.Program(held.program), plan_of(held))
    for i, layer in enumerate(held.layers):
        session.load(i, core.LayerState(layer.bits, layer.guard, layer.step, layer.planes, layer.params))
    return session
