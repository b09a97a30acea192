"""What `export --inference` and `coordinator export-model --inference` share: write the forms, judge them, print it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmpq.cli._common import human_bytes, note, print_table

if TYPE_CHECKING:
    from fedmpq.edge_runtime.artifact import Artifact
    from fedmpq.edge_runtime.shard import Images

FORMS = ("onnx", "pytorch", "executorch")

inference_option = click.option(
    "--inference",
    multiple=True,
    type=click.Choice(["all", *FORMS]),
    help="Write a trained model for inference: ONNX with integer weights, plain PyTorch, ExecuTorch for XNNPACK.",
)


def deploy(model: Artifact, asked: tuple[str, ...], stem: Path, title: str, test: Images | None) -> dict[str, Any]:
    """Writes the forms and, where there are test images, judges them beside the core.

    Args:
        model: the trained artifact.
        asked: forms, or "all".
        stem: path of the files without suffix.
        title: of the model.
        test: images no device trained on.
    """
    from fedmpq.export.inference import deploy as inference

    forms = [form for form in FORMS if form in asked or "all" in asked]
    if test is None:
        note("without test images the accuracies are not compared: name them with --data or --test")
    written = inference.deploy(model, forms, stem, title, test)
    result: dict[str, Any] = {
        "images": 0 if test is None else test.count,
        "core_accuracy": None if test is None else _percent(inference.core_correct(model, test), test.count),
        "forms": [],
    }
    for form in written:
        accuracy = None if form.correct is None or test is None else _percent(form.correct, test.count)
        result["forms"].append(
            {
                "form": form.form,
                "files": form.files,
                "bytes": sum(file.stat().st_size for file in form.files),
                "accuracy": accuracy,
                "difference": None if accuracy is None else round(accuracy - result["core_accuracy"], 4),
            }
        )
    return result


def print_forms(result: dict[str, Any]) -> None:
    """The files, and the accuracies beside the core's."""
    rows: list[list[Any]] = []
    for form in result["forms"]:
        files = ", ".join(map(str, form["files"]))
        rows.append([form["form"], files, human_bytes(form["bytes"]), form["accuracy"], form["difference"]])
    if result["core_accuracy"] is not None:
        rows.insert(0, ["core", "", "", result["core_accuracy"], None])
    print_table(["form", "files", "bytes", "accuracy %", "to the core"], rows, f"{result['images']} test images")


def _percent(correct: int, count: int) -> float:
    return round(100 * correct / count, 4)
