"""`fedmpq plan`: the exact bytes of a training arena, planned and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, json_option, note, print_table
from fedmpq.cli._models import (
    ModelOptions,
    choose_plan,
    compile_model,
    given_options,
    is_artifact,
    model_options,
    notice_unfit,
    plan_options,
    refuse,
    take_model,
    take_plan,
)


@click.command(
    epilog=example(
        "fedmpq plan resnet20 --bits 4 --batch 1",
        "fedmpq plan resnet20.fmpq",
        "fedmpq plan resnet8 --profile stm32h743 --json",
        "fedmpq plan resnet8 --batch 1 --no-momentum --plot arena.svg",
    )
)
@click.argument("model")
@model_options
@plan_options
@click.option("--buffers", is_flag=True, help="List every buffer of the arena.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the arena over time (SVG).")
@json_option
def command(model: str, buffers: bool, plot: Path | None, as_json: bool, **options: Any) -> None:
    """Show the exact memory that training would take.

    MODEL is a model as for `fedmpq export`, or an artifact file, whose plan the options then change. The plan is made,
    an arena of just that size allocated, and one step trained in it to measure what it uses.
    """
    from fedmpq.edge_runtime import artifact, core
    from fedmpq.export import build
    from fedmpq.local import neutral_states, trial_step

    model_choice, plan_choice = take_model(options), take_plan(options)
    if is_artifact(model):
        refuse(given_options(ModelOptions), f"{model} is a file, not a model")
        held = artifact.read(model)
        program, base = core.Program(held.program), build.plan_of(held)
    else:
        program, base = core.Program(compile_model(model, model_choice).program), None
    choice = choose_plan(program, plan_choice, base)
    notice_unfit(choice, plan_choice.batch or (base.batch if base else 64))
    memory, plan = choice.memory, choice.plan
    session = build.open_session(program, plan, neutral_states(program, plan))
    trial_step(session)
    result = {
        "model": model,
        "program": program.sha256,
        "bits": list(plan.bits),
        "average_bits": round(choice.average_bits, 4),
        "batch": plan.batch,
        "micro_batch": plan.micro_batch or plan.batch,
        "act_bits": plan.act_bits,
        "guard": plan.guard,
        "momentum": plan.momentum,
        "threads": plan.threads,
        "planned_bytes": memory.total,
        "measured_bytes": session.measured_bytes,
        "persistent": memory.persistent,
        "activations": memory.activations,
        "workspace": memory.workspace,
        "layers": _layers(program, plan, memory),
        "buffers": [buffer._asdict() for buffer in memory.buffers],
    }
    if plot is not None:
        from fedmpq.cli import _arena_plot

        title = f"{Path(model).name}, batch {plan.micro_batch or plan.batch}: {memory.total:,} bytes"
        rows = [buffer._asdict() for buffer in memory.buffers]
        plot.write_text(_arena_plot.draw(title, memory.total, memory.ops, rows), encoding="utf-8")
        note(f"drew {plot}")
    emit(result, as_json, lambda shown: _print(shown, buffers))


def _layers(program: Any, plan: Any, memory: Any) -> list[dict[str, Any]]:
    """One entry for each record: its weights and the buffers it owns."""
    numbers = {layer.record: number for number, layer in enumerate(program.weight_layers)}
    layers = []
    for index, record in enumerate(program.records):
        number = numbers.get(index)
        layer = None if number is None else program.weight_layers[number]
        bits = None if number is None else plan.bits[number]
        planes = 0 if layer is None or bits is None else (1 + bits + plan.guard) * ((layer.theta + 7) // 8)
        own = [b for b in memory.buffers if b.record == index and b.kind != "state"]
        layers.append(
            {
                "record": index,
                "name": record.name,
                "output": [record.h_out, record.w_out, record.cout],
                "bits": bits,
                "weights": 0 if layer is None else layer.theta,
                "plane_bytes": planes,
                "params_bytes": 0 if layer is None else layer.params_bytes,
                "momentum_bytes": layer.theta if layer is not None and plan.momentum else 0,
                "activation_bytes": sum(b.size for b in own if b.kind != "work"),
                "workspace_bytes": max((b.size for b in own if b.kind == "work"), default=0),
            }
        )
    return layers


def _print(result: dict[str, Any], buffers: bool) -> None:
    print_table(
        ["#", "name", "output", "bits", "weights", "planes", "parameters", "momentum", "activations", "workspace"],
        [
            [
                layer["record"], layer["name"], "×".join(map(str, layer["output"])), layer["bits"] or "",
                layer["weights"], layer["plane_bytes"], layer["params_bytes"], layer["momentum_bytes"],
                layer["activation_bytes"], layer["workspace_bytes"],
            ]
            for layer in result["layers"]
        ],
        f"batch {result['batch']}, micro-batch {result['micro_batch']}, {result['average_bits']:g} bits on average",
    )  # fmt: skip
    if buffers:
        print_table(
            ["buffer", "kind", "offset", "bytes", "first op", "last op"],
            [[b["name"], b["kind"], b["offset"], b["size"], b["first"], b["last"]] for b in result["buffers"]],
        )
    note("activation buffers share space: their sum is more than the arena")
    print_table(
        ["arena", "bytes"],
        [[key, result[key]] for key in ("persistent", "activations", "workspace", "planned_bytes", "measured_bytes")],
    )
