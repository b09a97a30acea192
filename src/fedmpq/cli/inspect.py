"""`fedmpq inspect`: what an artifact (or an ExecuTorch program with one inside) holds, what of a model has records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, print_table
from fedmpq.cli._models import ModelOptions, given_options, model_options, refuse, take_model

KINDS = {2: "max pool", 3: "average pool", 4: "global pool", 5: "classifier", 6: "concat"}
SKIPS = {0: "", 1: "identity", 2: "option A", 3: "concat"}


@click.command(epilog=example("fedmpq inspect resnet20.fmpq", "fedmpq inspect net.py:Net --input 3x32x32"))
@click.argument("model")
@model_options
@json_option
def command(model: str, as_json: bool, **options: Any) -> None:
    """Show what an artifact holds, or what of a model can be exported.

    MODEL is an artifact, a .pte that `fedmpq export --target executorch` wrote, or a model as in `fedmpq export`: then
    the coverage of its operations comes first, and the bytes are those of `fedmpq export` with its defaults.
    """
    if Path(model).is_file() or (":" not in model and Path(model).suffix):
        from fedmpq.edge_runtime import artifact
        from fedmpq.export.executorch import pte

        refuse(given_options(ModelOptions), f"{model} is a file, not a model")
        held = pte.open_any(Path(model)) if Path(model).is_file() else artifact.read(model)
        emit(_facts(model, Path(model).stat().st_size, held), as_json, _print)
        return
    _inspect_model(model, take_model(options), as_json)


def _inspect_model(name: str, options: ModelOptions, as_json: bool) -> None:
    """Coverage of a model, and if that is whole, the artifact that export would write."""
    from fedmpq.cli._models import PlanOptions, choose_plan, load_model
    from fedmpq.edge_runtime import artifact, core
    from fedmpq.export.build import build_artifact
    from fedmpq.export.coverage import coverage
    from fedmpq.export.problems import UnsupportedOperations

    loaded = load_model(name, options)
    found = coverage(loaded.module, loaded.shape, name)
    covered = {
        "operations": found.operations,
        "without_record": found.missing,
        "parameters": found.parameters,
        "parameters_covered": found.parameters - found.missing_parameters,
        "macs": found.macs,
        "macs_covered": found.macs - found.missing_macs,
        "problems": [str(problem) for problem in found.problems],
    }
    if found.problems:
        emit({"model": name, "coverage": covered}, as_json, _print_coverage)
        if as_json:  # one document on standard output
            raise click.exceptions.Exit(UnsupportedOperations.exit_code)
        raise UnsupportedOperations(f"{name} has {len(found.problems)} unsupported operations:", found.problems)
    compiled = loaded.compile()
    none = PlanOptions(**dict.fromkeys(PlanOptions.__dataclass_fields__))
    plan = choose_plan(core.Program(compiled.program), none).plan
    raw = artifact.pack(build_artifact(compiled, plan))
    result = _facts(name, len(raw), artifact.unpack(raw)) | {"coverage": covered}
    emit(result, as_json, _print)


def _facts(name: str, size: int, held: Any) -> dict[str, Any]:
    """All that is shown of an artifact."""
    from fedmpq.edge_runtime import core

    program = core.Program(held.program)
    plan = core.Plan(**{**held.plan, "bits": tuple(held.plan["bits"])})  # as build.plan_of, which needs torch
    memory = core.plan_memory(program, plan)
    layers = [_layer(program, index, held) for index in range(len(program.records))]
    weights = sum(layer["weights"] for layer in layers)
    return {
        "file": name,
        "bytes": size,
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
        "sha256": held.manifest.get("sha256", {}),
        "manifest": held.manifest,
    }


def kind_of(record: Any) -> str:
    """What a record computes, in words."""
    if record.kind in KINDS:
        return KINDS[record.kind]
    return "conv" + ("+bias" if record.flags & 2 else "+bn") + ("" if record.flags & 1 else "+relu")


def _layer(program: Any, index: int, held: Any) -> dict[str, Any]:
    """Facts of one record; weights, bits and bytes are 0, None and 0 for pooling."""
    record = program.records[index]
    facts: dict[str, Any] = {
        "record": index,
        "name": record.name,
        "kind": kind_of(record),
        "kernel": f"{record.kh}x{record.kw}/{record.stride}" if record.kind not in {5, 6} else "",
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


def _print_coverage(result: dict[str, Any]) -> None:
    """Which operations have a record, and how much of the model they are."""
    covered = result["coverage"]
    missing, total = covered["without_record"], sum(covered["operations"].values())
    shares = [
        f"{covered[f'{key}_covered']:,} of {covered[key]:,} {label}"
        for key, label in (("parameters", "parameters"), ("macs", "MACs"))
    ]
    click.echo(f"{total - sum(missing.values())} of {total} operations have a record: {', '.join(shares)}\n")
    rows = [[name.removeprefix("aten."), count, missing.get(name, "")] for name, count in covered["operations"].items()]
    print_table(["operation", "found", "without record"], rows)


def _print(result: dict[str, Any]) -> None:
    if "coverage" in result:
        _print_coverage(result)
    height, width, channels = result["input"]
    name = result["file"] if "coverage" in result else f"{result['file']}: {result['model']}"
    click.echo(
        f"{name}, images {height}×{width}×{channels}, {result['classes']} classes, {human_bytes(result['bytes'])}"
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
