"""`fedmpq train`: one device, no network."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, json_option, note, progress


@click.command(
    epilog=example(
        "fedmpq train digits.fmpq --data digits --epochs 10",
        "fedmpq train resnet20.fmpq --data cifar10 --epochs 30 --lr 0.1 --validation 5000 --out trained.fmpq",
        "fedmpq train digits.pte --data digits --epochs 10",
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data set: a name, a folder or an archive of images.")
@click.option("--epochs", type=click.IntRange(1, 100_000), required=True, help="Passes over the training images.")
@click.option("--lr", type=click.FloatRange(0, 100, min_open=True), default=0.1, help="Learning rate at the start.")
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", help="Of the learning rate.")
@click.option("--momentum", type=click.FloatRange(0, 0.999), help="Coefficient; 0 keeps none.  [default: 0.9 if the "
              "artifact's plan keeps momentum]")  # fmt: skip
@click.option("--weight-decay", type=click.FloatRange(0, 1), default=5e-4, help="L2 factor.")
@click.option("--batch", type=click.IntRange(1, 65535), help="Samples of a step.  [default: the artifact's]")
@click.option("--micro-batch", type=click.IntRange(1, 65535), help="Samples in memory at once.  [default: the batch]")
@click.option("--threads", type=click.IntRange(1, 64), help="Threads.  [default: the artifact's]")
@click.option("--validation", type=click.FloatRange(0), default=0, help="Images (or a share below 1) to hold out.")
@click.option("--train-limit", type=click.IntRange(1), help="Train on at most so many images.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Fixes every random choice.")
@click.option("--engine", type=click.Choice(["core", "onnx", "executorch"]), help="The C core, the ONNX graph of the "
              "step in onnxruntime (slower) or the delegate in ExecuTorch; same bits.  [default: by FILE]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Trained artifact, or a folder for it.  [default: FILE "
              "with .trained]")  # fmt: skip
@json_option
def command(file: Path, data: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Train an artifact on this machine, without a network.

    The same integer core that devices run trains FILE on a data set and writes the trained artifact; equal options give
    equal bytes on every machine. FILE is an artifact or a .pte.
    """
    from fedmpq import local
    from fedmpq.data import load
    from fedmpq.edge_runtime import core
    from fedmpq.export import build
    from fedmpq.export.executorch import pte

    options["engine"] = options["engine"] or ("executorch" if pte.is_pte(file) else "core")
    held = pte.open_any(file)
    target = _target(file, out)
    program = core.Program(held.program)
    plan = _plan(build.plan_of(held), options)
    images = load(data, validation=options["validation"], seed=options["seed"], report=progress)
    images = images.limit(train=options["train_limit"], seed=options["seed"])
    local.check_data(program, images)
    coefficient = 0.9 if options["momentum"] is None else options["momentum"]
    recipe = local.Recipe(
        options["epochs"], options["lr"], options["schedule"], options["weight_decay"], coefficient, options["seed"]
    )
    session = _session(options["engine"], file, held, plan)
    started = time.monotonic()
    epochs = []
    size = len(images.train) // min(plan.batch, len(images.train)) * min(plan.batch, len(images.train))
    with progress("training", total=size * recipe.epochs) as advance:
        for epoch in local.train(session, images, recipe, advance):
            epochs.append(asdict(epoch))
            note(_line(epochs[-1]))
    seconds = time.monotonic() - started
    loss, accuracy = local.evaluate(session, images.test)
    states = [session.read(index) for index in range(len(program.weight_layers))]
    trained = {
        "data": images.name,
        "test_accuracy": round(accuracy, 4),
        "state": session.state_hash(),
        "recipe": asdict(recipe),
    }
    manifest = {key: value for key, value in held.manifest.items() if key != "sha256"}
    written = _write(target, build.with_states(held.program, plan, states, {**manifest, "trained": trained}))
    result = {
        "file": target,
        "bytes": written,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "epochs": epochs,
        "seconds": seconds,
        "images_per_second": size * recipe.epochs / seconds,
        "engine": options["engine"],
        "planned_bytes": getattr(session, "planned_bytes", None),
        "measured_bytes": getattr(session, "measured_bytes", None),
        "isa": core.isa() if options["engine"] == "core" else None,
        "state": trained["state"],
    }
    emit(result, as_json, _print)


def _session(engine: str, file: Path, held: Any, plan: Any) -> Any:
    """A session of the engine with the artifact's weights."""
    from fedmpq.edge_runtime import core
    from fedmpq.export import build
    from fedmpq.export.executorch import pte

    states = build.states_of(held)
    if engine == "core":
        return build.open_session(core.Program(held.program), plan, states)
    session: Any
    if engine == "executorch":
        from fedmpq.export.executorch.session import ExecutorchSession

        session = ExecutorchSession(_pte(file, held) if not pte.is_pte(file) else file.read_bytes(), plan)
    else:
        from fedmpq.export.onnx_step.session import OnnxSession

        session = OnnxSession(held.program, plan, threads=plan.threads)
    for index, state in enumerate(states):
        session.load(index, state)
    return session


def _pte(file: Path, held: Any) -> bytes:
    """The `.pte` of an artifact file, for one training."""
    from fedmpq.export.executorch import lowering

    note(f"lowering {file} for ExecuTorch")
    return lowering.build(held)


def _target(file: Path, out: Path | None) -> Path:
    """Where the trained artifact goes: FILE with .trained, inside --out if that is a folder, or --out itself.

    What cannot be written is refused here, before the training that would be lost.
    """
    from fedmpq.errors import UsageError
    from fedmpq.export.executorch import pte

    default = file.with_suffix(".trained" + file.suffix)
    target = default if out is None else out / default.name if out.is_dir() else out
    if target.is_dir():
        raise UsageError(
            f"the trained artifact cannot be written to {target}, which is a folder", "name a file by --out"
        )
    if target.suffix == pte.SUFFIX:
        from fedmpq.export.executorch import lowering  # noqa: F401 -- says now if executorch is not installed
    parent = target.parent
    while not parent.exists() and parent != parent.parent:  # missing folders are made with the file
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent):  # tried, because permissions alone do not tell (root, read-only disks)
            pass
    except OSError as error:
        raise UsageError(f"cannot write {target}: {parent}: {error.strerror}", "name another file by --out") from None
    return target


def _write(target: Path, trained: Any) -> int:
    """Writes an artifact or, by its suffix, a `.pte`; returns its size."""
    from fedmpq.edge_runtime import artifact, container
    from fedmpq.export.executorch import pte

    if target.suffix != pte.SUFFIX:
        return artifact.write(target, trained)
    from fedmpq.export.executorch import lowering

    data = lowering.build(trained)
    container.write_atomic(target, data)
    return len(data)


def _plan(plan: Any, options: dict[str, Any]) -> Any:
    """The artifact's plan with the options that change it."""
    from fedmpq.errors import UsageError

    if options["batch"] is not None:
        plan = replace(plan, batch=options["batch"], micro_batch=None)
    if options["micro_batch"] is not None:
        plan = replace(plan, micro_batch=options["micro_batch"])
    if (plan.micro_batch or 1) > plan.batch:
        raise UsageError(f"--micro-batch {plan.micro_batch} exceeds the batch of {plan.batch}")
    if options["threads"] is not None:
        plan = replace(plan, threads=options["threads"])
    if options["momentum"] is not None:
        plan = replace(plan, momentum=options["momentum"] > 0)
    return plan


def _line(epoch: dict[str, Any]) -> str:
    held = epoch["validation_accuracy"]
    validation = "" if held is None else f", validation {held:.2f} %"
    return (
        f"epoch {epoch['epoch']}: loss {epoch['train_loss']:.4f}, training {epoch['train_accuracy']:.2f} %{validation}"
    )


def _print(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['file']}  test accuracy {result['test_accuracy']:.2f} %, loss {result['test_loss']:.4f}, "
        f"{result['images_per_second']:,.0f} images/s"
        + (f", {result['measured_bytes']:,} bytes of arena" if result["measured_bytes"] else "")
    )
