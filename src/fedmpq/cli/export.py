"""`fedmpq export`: compile a model and write what a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, note
from fedmpq.cli._deploy import deploy, inference_option, print_forms
from fedmpq.cli._models import (
    MODEL_HELP,
    ModelOptions,
    PlanOptions,
    choose_plan,
    compile_model,
    given_options,
    is_artifact,
    load_model,
    model_options,
    notice_unfit,
    plan_options,
    refuse,
    take_model,
    take_plan,
)
from fedmpq.errors import UsageError

TARGETS = ("native", "c", "onnx", "executorch", "ort-training")


@click.command(
    epilog=example(
        "fedmpq export resnet20 --bits 4 --data cifar10 --out resnet20.fmpq",
        "fedmpq export resnet8 --profile stm32h743",
        "fedmpq export mypackage.net:build --input 1x28x28 --memory 300KiB",
        "fedmpq export resnet8 --bits 4 --target executorch --out resnet8.pte",
        "fedmpq export resnet8 --data fashion-mnist --target ort-training",
        "fedmpq export trained.fmpq --inference all --data digits",
    )
)
@click.argument("model")
@model_options
@plan_options
@click.option("--scale", type=click.Choice(["mse", "max"]), default="mse", help="How a layer's step is chosen.")
@click.option("--target", type=click.Choice(TARGETS), default="native", help="What to write.")
@inference_option
@click.option("--out", type=click.Path(path_type=Path), help="File or folder to write.  [default: MODEL.fmpq]")
@json_option
def command(
    model: str, scale: Any, target: str, inference: tuple[str, ...], out: Path | None, as_json: bool, **options: Any
) -> None:
    """Compile a PyTorch model into an artifact for a budget.

    MODEL is a built-in model (resnet8, resnet20, resnet44, ds-cnn), package.module:factory or file.py:factory. The
    budget is an average bit-width (--bits) or a number of bytes (--memory, --profile): then the plan with the most bits
    that fits is taken; micro-batch and, if need be, batch shrink before bits fall below 4. Targets: native (an artifact
    file), c (a header and a source with constants, for firmware), onnx (the training step as standard integer
    operators), executorch (a .pte whose delegate is the integer core and enforces --memory where it is loaded; MODEL
    may be an artifact), ort-training (the full-precision model for `fedmpq device run --engine ort-training` and ONNX
    Runtime's own training interface).

    With --inference, MODEL is a trained artifact: each form is judged beside the core on the test images of --data.
    """
    from fedmpq.edge_runtime import core
    from fedmpq.export.build import build_artifact

    model_choice, plan_choice = take_model(options), take_plan(options)
    given = given_options(ModelOptions, PlanOptions, also=["scale"])
    if inference:
        others = [*given_options(also=["target"]), *(option for option in given if option != "--data")]
        refuse(others, "--inference writes a trained artifact as it is")
        emit(_inference(model, inference, model_choice.data, out), as_json, print_forms)
        return
    if target == "ort-training" and not is_artifact(model):
        refuse(given_options(PlanOptions, also=["scale"]), "--target ort-training has full precision and no plan")
        emit(_ort_training(model, model_choice, out), as_json, _print_bundle)
        return
    if is_artifact(model):
        if target != "executorch":
            raise UsageError(f"{model} is an artifact already", f"MODEL is {MODEL_HELP}")
        refuse([option for option in given if option != "--memory"], f"{model} is an artifact and keeps its plan")
        emit(_of_artifact(Path(model), out, plan_choice.memory), as_json, _print)
        return
    compiled = compile_model(model, model_choice)
    program = core.Program(compiled.program)
    choice = choose_plan(program, plan_choice)
    notice_unfit(choice, plan_choice.batch or 64)
    budget = {
        "bits": plan_choice.bits if plan_choice.bits or plan_choice.memory or plan_choice.profile else 4.0,
        "memory": plan_choice.memory,
        "profile": plan_choice.profile,
    }
    built = build_artifact(
        compiled, choice.plan, scale=scale, manifest={"budget": budget, "data": model_choice.data, "target": target}
    )
    files = _write(built, target, out, model, plan_choice.memory)
    result = {
        "file": files[0],
        "files": files,
        "bytes": sum(file.stat().st_size for file in files),
        "target": target,
        "program": program.sha256,
        "records": len(program.records),
        "weights": sum(layer.theta for layer in program.weight_layers),
        "average_bits": round(choice.average_bits, 4),
        "bits": list(choice.plan.bits),
        "batch": choice.plan.batch,
        "micro_batch": choice.plan.micro_batch or choice.plan.batch,
        "planned_bytes": choice.memory.total,
    }
    emit(result, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    note(
        f"{result['records']} records, {result['weights']:,} weights, {result['average_bits']:g} bits; training takes "
        f"{result['planned_bytes']:,} bytes at batch {result['batch']} (micro-batch {result['micro_batch']})"
    )
    for file in result["files"]:
        click.echo(f"{file}  {human_bytes(file.stat().st_size)}")


def _inference(model: str, forms: tuple[str, ...], data: str | None, out: Path | None) -> dict[str, Any]:
    """Writes a trained artifact for inference."""
    from fedmpq.edge_runtime import artifact

    if not is_artifact(model):
        raise UsageError(f"{model} is not a trained artifact", "train it first: fedmpq train, or a federated run")
    test = None
    if data is not None:
        from fedmpq.cli._common import progress
        from fedmpq.coordinator.samples import ArraySamples
        from fedmpq.data import load

        found = load(data, report=progress)
        test = ArraySamples(found.test.images, found.test.labels, len(found.classes))
    source = Path(model)
    stem = (out / source.stem if out.is_dir() else out.with_suffix("")) if out is not None else Path(source.stem)
    return deploy(artifact.read(source), forms, stem, source.stem, test)


def _ort_training(model: str, choice: ModelOptions, out: Path | None) -> dict[str, Any]:
    """Writes a bundle of full-precision training files, and the files themselves beside it."""
    from fedmpq.edge_runtime import container
    from fedmpq.edge_runtime.ort import bundle
    from fedmpq.export import ort_training

    chosen = load_model(model, choice)
    channels, height, width = chosen.shape
    image = (height, width, channels)
    data = ort_training.build(
        chosen.module, image, chosen.classes, mean=chosen.mean, crop_pad=chosen.crop_pad, name=model
    )
    made = bundle.parse(data)
    file = _path(out, model.rsplit(":", 1)[-1].replace("/", "_"), ".ort")
    container.write_atomic(file, data)
    files = [file, *made.write_files(file.with_name(f"{file.stem}.ort-training"))]
    return {
        "file": file,
        "files": files,
        "bytes": len(data),
        "target": "ort-training",
        "bundle": made.sha256,
        "values": made.size,
        "trained": sum(value.size for value in made.values if value.trained),
        "batch_norms": len(made.statistics) // 2,
        "onnxruntime": made.engine,
    }


def _print_bundle(result: dict[str, Any]) -> None:
    note(
        f"{result['trained']:,} trained values, {result['batch_norms']} batch-norms, "
        f"for onnxruntime-training {result['onnxruntime']}"
    )
    for file in result["files"]:
        click.echo(f"{file}  {human_bytes(file.stat().st_size)}")


def _of_artifact(source: Path, out: Path | None, limit: int | None) -> dict[str, Any]:
    """Writes the `.pte` of an artifact file."""
    from fedmpq.edge_runtime import artifact, core

    held = artifact.read(source)
    program, plan = core.Program(held.program), held.plan
    weights = sum(layer.theta for layer in program.weight_layers)
    files = _write(held, "executorch", out, source.stem, limit)
    return {
        "file": files[0],
        "files": files,
        "bytes": sum(file.stat().st_size for file in files),
        "target": "executorch",
        "program": program.sha256,
        "records": len(program.records),
        "weights": weights,
        "average_bits": round(sum(layer.bits * layer.theta for layer in held.layers) / weights, 4),
        "bits": plan["bits"],
        "batch": plan["batch"],
        "micro_batch": plan["micro_batch"],
        "planned_bytes": held.manifest.get("planned_bytes"),
    }


def _write(built: Any, target: str, out: Path | None, model: str, limit: int | None) -> list[Path]:
    """Writes the target's files and returns their paths, the main one first."""
    from fedmpq.edge_runtime import artifact, container

    title = model.rsplit(":", 1)[-1].replace("/", "_")
    if target == "native":
        file = _path(out, title, ".fmpq")
        artifact.write(file, built)
        return [file]
    if target == "onnx":
        from fedmpq.export.build import plan_of, states_of
        from fedmpq.export.onnx_step.session import models

        first = _path(out, title, ".onnx")
        made = models(built.program, plan_of(built), states_of(built), lasso=True)
        files = [first.with_name(f"{first.stem}.{name}.onnx") for name in ("train", "eval", "init")]
        for file, name in zip(files, ("train", "eval", "init"), strict=True):
            container.write_atomic(file, made[name].SerializeToString())
        return files
    if target == "executorch":
        from fedmpq.export.executorch import lowering

        file = _path(out, title, ".pte")
        container.write_atomic(file, lowering.build(built, limit=limit))
        return [file]
    from fedmpq.export.c_source import c_sources

    header = _path(out, title, ".h")
    sources = c_sources(built, header.stem)
    for name, text in sources.items():
        container.write_atomic(header.with_name(name), text.encode())
    return [header.with_name(name) for name in sources]


def _path(out: Path | None, title: str, suffix: str) -> Path:
    """--out may be a file or a folder; without it the file lies in the current folder."""
    if out is None:
        return Path(title + suffix)
    return out / (title + suffix) if out.is_dir() or not out.suffix else out
