"""From a compiled model and a plan to an artifact, and between artifacts and core sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fedmpq
from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.artifact import PLAN_FIELDS, Artifact
from fedmpq.edge_runtime.weights import LayerBlobs
from fedmpq.export.budget import average_bits
from fedmpq.export.model import CompiledModel
from fedmpq.models import initial
from fedmpq.models.codec import Scale
from fedmpq.models.reference.program import parse


def initial_states(model: CompiledModel, plan: core.Plan, scale: Scale = "mse") -> list[core.LayerState]:
    """The model's float values as layer states at the plan's bits."""
    program = parse(model.program)
    values = [model.state[record.name] for record in program.weight_layers]
    states = initial.states(program, plan, values, scale)
    return [core.LayerState(s.bits, s.guard, s.step, s.planes, s.params) for s in states]


def build_artifact(
    model: CompiledModel, plan: core.Plan, *, scale: Scale = "mse", manifest: dict[str, Any] | None = None
) -> Artifact:
    """The artifact of a model at a plan.

    Args:
        model: the compiled model.
        plan: bits, batch and options.
        scale: how a layer's step is chosen: "max" (eq. 14) or "mse" (least squared error).
        manifest: further entries, for example the budget that led to the plan.
    """
    program = core.Program(model.program)
    planned = core.plan_memory(program, plan).total
    thetas = [layer.theta for layer in program.weight_layers]
    entries = {
        "model": model.name,
        "fedmpq": fedmpq.__version__,
        "core": core.version(),
        "scale": scale,
        "planned_bytes": planned,
        "average_bits": round(average_bits(plan.bits, thetas), 4),
        **(manifest or {}),
    }
    return with_states(model.program, plan, initial_states(model, plan, scale), entries)


def with_states(
    program: bytes, plan: core.Plan, states: Sequence[core.LayerState], manifest: dict[str, Any]
) -> Artifact:
    """An artifact of layer states; the plan's bits become those of the states (training may have dropped planes)."""
    thetas = [layer.theta for layer in core.Program(program).weight_layers]
    layers = tuple(
        LayerBlobs(s.bits, s.guard, s.step, theta, tuple(map(bytes, s.planes)), bytes(s.params))
        for s, theta in zip(states, thetas, strict=True)
    )
    fields = {name: getattr(plan, name) for name in PLAN_FIELDS}
    fields.update(bits=[s.bits for s in states], micro_batch=plan.micro_batch or plan.batch)
    return Artifact(program, layers, fields, manifest)


def plan_of(artifact: Artifact) -> core.Plan:
    """The artifact's default plan."""
    return core.Plan(**{**artifact.plan, "bits": tuple(artifact.plan["bits"])})


def states_of(artifact: Artifact) -> list[core.LayerState]:
    """The artifact's weights as layer states."""
    return [core.LayerState(x.bits, x.guard, x.step, x.planes, x.params) for x in artifact.layers]


def open_session(
    program: core.Program, plan: core.Plan, states: Sequence[core.LayerState], limit: int | None = None
) -> core.Session:
    """A session with the states loaded.

    Raises:
        ArenaTooSmall: the plan takes more than `limit` bytes.
    """
    session = core.Session(program, plan, limit)
    for index, state in enumerate(states):
        session.load(index, state)
    return session
