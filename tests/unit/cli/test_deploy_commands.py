"""`export --inference`, `export --target ort-training`, `coordinator export-model`: files, figures, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmpq.cli._main import run


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "net.fmpq"
    assert run(["export", "resnet8", "--data", "digits", "--bits", "4", "--out", str(file), "--json"]) == 0
    return file


def test_forms_are_written_and_judged_beside_the_core(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = artifact.parent / "ship.onnx"
    assert run(["export", str(artifact), "--inference", "onnx", "--data", "digits", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 360
    (form,) = result["forms"]
    assert form["files"] == [str(out)]
    assert form["difference"] == pytest.approx(form["accuracy"] - result["core_accuracy"], abs=1e-3)
    assert run(["export", str(artifact), "--inference", "onnx", "--data", "digits", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "to the core" in printed
    assert "ship.onnx" in printed


def test_training_files_for_onnx_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = tmp_path / "r.ort"
    assert run(["export", "resnet8", "--data", "digits", "--target", "ort-training", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["trained"] == 75_002
    assert result["batch_norms"] == 7
    names = {file.name for file in (tmp_path / "r.ort-training").iterdir()}
    expected = {"training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint", "manifest.json"}
    assert names == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "resnet8", "--inference", "onnx"], 2, "is not a trained artifact"),
        (["export", "ARTIFACT", "--inference", "onnx", "--data", "fashion"], 4, "no data set called fashion"),
        (["export", "ARTIFACT", "--inference", "tflite"], 2, "tflite"),
        (["export", "ARTIFACT", "--target", "ort-training"], 2, "is an artifact already"),
        (
            ["coordinator", "export-model", "--dir", "nowhere", "--out", "x", "--inference", "onnx"],
            10,
            "no coordinator",
        ),
    ],
)
def test_bad_input(
    artifact: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    found = run([str(artifact) if word == "ARTIFACT" else word for word in arguments])
    err = capsys.readouterr().err
    assert message in err
    assert found == code
