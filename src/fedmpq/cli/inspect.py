"""`fedmpq inspect`: what an artifact, or an ExecuTorch program with one inside, holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, print_table

KINDS = {1: "conv+bn+relu", 2: "max pool", 3: "average pool", 4: "global pool", 5: "classifier"}
SKIPS = {0: "", 1: "identity", 2: "option A"}


@click.command(epilog=example("fedmpq inspect resnet20.fmpq", "fedmpq inspect resnet20.pte"))
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def command(file: Path, as_json: bool) -> None:
    """Show an artifact's layers, bits, memory plan and hashes.

    FILE is an artifact or a .pte that `fedmpq export --target executorch` wrote.
    """
    from fedmpq.edge_runtime import core
    from fedmpq.export.build import plan_of
    from fedmpq.export.executorch import pte

    held = pte.open_any(file)
    program = core.Program(held.program)
    plan = plan_of(held)
    memory = core.plan_memory(program, plan)
    layers = [_layer(program, index, held) for index in range(len(program.records))]
    weights = sum(layer["weights"] for layer in layers)
    result = {
        "file": file,
        "bytes": file.stat().st_size,
        "model": held.manifest.get("model"),
        "input": list(program.in_shape),
        "classes": program.classes,
        "mean": list(program.mean),
        "crop_pad": program.crop_pad,
        "weights": weights,
        "macs": sum(layer["macs"] for layer in layers),
        "average_bits": round(sum(layer["weights"] * (layer["bits"] or 0) for layer in layers) / weights, 4),
        "layers": layers,
        "plan": held.plan,
        "memory": {
            "planned_bytes": memory.total,
            "persistent": memory.persistent,
            "activations": memory.activations,
            "workspace": memory.workspace,
        },
        "sha256": held.manifest["sha256"],
        "manifest": held.manifest,
    }
    emit(result, as_json, _print)


def _layer(program: Any, index: int, held: Any) -> dict[str, Any]:
    """Facts of one record; weights, bits and bytes are 0, None and 0 for pooling."""
    record = program.records[index]
    facts: dict[str, Any] = {
        "record": index,
        "name": record.name,
        "kind": KINDS[record.kind],
        "kernel": f"{record.kh}x{record.kw}/{record.stride}" if record.kind != 5 else "",
        "groups": record.groups,
        "input": [record.h_in, record.w_in, record.cin],
        "output": [record.h_out, record.w_out, record.cout],
        "skip": SKIPS[record.skip_kind],
        "t_out": record.t_out,
        "weights": 0, "bits": None, "guard": None, "macs": 0, "plane_bytes": 0, "params_bytes": 0,
    }  # fmt: skip
    for number, layer in enumerate(program.weight_layers):
        if layer.record == index:
            blobs = held.layers[number]
            facts |= {
                "weights": layer.theta,
                "bits": blobs.bits,
                "guard": blobs.guard,
                "macs": layer.theta * record.h_out * record.w_out,
                "plane_bytes": sum(map(len, blobs.planes)),
                "params_bytes": len(blobs.params),
            }
    return facts


def _print(result: dict[str, Any]) -> None:
    height, width, channels = result["input"]
    click.echo(
        f"{result['file']}: {result['model']}, images {height}×{width}×{channels}, {result['classes']} classes, "
        f"{human_bytes(result['bytes'])}"
    )
    print_table(
        ["#", "name", "kind", "kernel", "input", "output", "skip", "bits", "weights", "MACs", "bytes"],
        [
            [
                layer["record"], layer["name"], layer["kind"], layer["kernel"], _by(layer["input"]),
                _by(layer["output"]), layer["skip"], layer["bits"] or "", layer["weights"], layer["macs"],
                layer["plane_bytes"] + layer["params_bytes"],
            ]
            for layer in result["layers"]
        ],
    )  # fmt: skip
    click.echo(
        f"{result['weights']:,} weights at {result['average_bits']:g} bits, {result['macs']:,} MACs a sample forward\n"
    )
    memory, plan = result["memory"], result["plan"]
    print_table(
        ["memory", "bytes"],
        [[key, value] for key, value in memory.items()],
        f"batch {plan['batch']}, micro-batch {plan['micro_batch']}, {plan['act_bits']}-bit activations, "
        f"guard {plan['guard']}, momentum {'on' if plan['momentum'] else 'off'}",
    )
    print_table(["section", "SHA-256"], result["sha256"].items())


def _by(shape: list[int]) -> str:
    return "×".join(map(str, shape))
