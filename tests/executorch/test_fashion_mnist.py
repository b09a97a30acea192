"""Real images: 2,000 of Fashion-MNIST, one epoch by the core, the `.pte` and the ONNX graph end in the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmpq.cli._main import run as main

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(3600)]


def test_one_epoch_gives_the_same_model_and_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> dict[str, object]:
        assert main([*arguments, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert isinstance(result, dict)
        return result

    model, program = tmp_path / "resnet8.fmpq", tmp_path / "resnet8.pte"
    run("export", "resnet8", "--bits", "4", "--data", "fashion-mnist", "--batch", "50", "--out", str(model))
    run("export", str(model), "--target", "executorch", "--out", str(program))
    data = ("--data", "fashion-mnist", "--epochs", "1", "--train-limit", "2000")
    results = [
        run("train", str(file), *data, "--engine", engine, "--out", str(tmp_path / f"{engine}{file.suffix}"))
        for file, engine in ((model, "core"), (program, "executorch"), (model, "onnx"))
    ]
    assert len({result["state"] for result in results}) == 1
    assert len({(result["test_accuracy"], result["test_loss"]) for result in results}) == 1
    assert float(str(results[0]["test_accuracy"])) > 30  # of ten classes, after 40 steps
