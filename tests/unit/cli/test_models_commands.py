"""export, inspect, plan and train on the command line: one JSON document, clear errors, equal bytes."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmpq.cli._main import run
from fedmpq.edge_runtime import artifact


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(list(arguments))
    out, err = capsys.readouterr()
    assert code != 0
    assert out == ""
    return code, err


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ResNet8 for digits at 4 bits."""
    file = tmp_path_factory.mktemp("exported") / "digits.fmpq"
    assert run(["export", "resnet8", "--data", "digits", "--batch", "32", "--out", str(file)]) == 0
    return file.read_bytes()


@pytest.fixture
def digits(tmp_path: Path, exported: bytes) -> Path:
    """The same in a folder of its own."""
    file = tmp_path / "digits.fmpq"
    file.write_bytes(exported)
    return file


def test_inspect_says_what_of_a_model_has_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = "import torch\nfrom torch import nn\n\ndef net(act):\n    return nn.Sequential("
    net += "nn.Conv2d(1, 4, 3), act, nn.Flatten(), nn.Linear(144, 3))\n"
    (tmp_path / "nets.py").write_text(net + "good, bad = net(nn.ReLU()), net(nn.GELU())\n")
    monkeypatch.chdir(tmp_path)
    seen = result(capsys, "inspect", "nets.py:good", "--input", "1x8x8")
    assert seen["coverage"]["parameters"] == seen["coverage"]["parameters_covered"] == 4 * 9 + 4 + 3 * 144 + 3
    assert seen["coverage"]["macs_covered"] == seen["macs"] == 4 * 9 * 36 + 3 * 144
    assert [layer["kind"] for layer in seen["layers"]] == ["conv+bias+relu", "classifier"]
    assert run(["inspect", "nets.py:bad", "--input", "1x8x8", "--json"]) == 6
    covered = json.loads(capsys.readouterr().out)["coverage"]
    assert covered["without_record"] == {"aten.gelu": 1}
    assert covered["problems"][0].startswith("aten.gelu in 1")
    assert run(["inspect", "nets.py:bad", "--input", "1x8x8"]) == 6
    out, err = capsys.readouterr()
    assert "3 of 4 operations have a record" in out
    assert "aten.gelu in 1" in err
    assert run(["inspect", "nets.fmpq", "--input", "1x8x8"]) == 2


def test_export_then_inspect_and_plan_agree(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = result(capsys, "inspect", str(digits))
    planned = result(capsys, "plan", str(digits))
    assert seen["memory"]["planned_bytes"] == planned["planned_bytes"] == planned["measured_bytes"]
    assert seen["sha256"]["program"] == planned["program"]
    assert seen["input"] == [8, 8, 1]
    assert seen["average_bits"] == planned["average_bits"] == 4
    assert [layer["name"] for layer in seen["layers"]] == [layer["name"] for layer in planned["layers"]]
    first = seen["layers"][0]
    assert (first["weights"], first["macs"], first["plane_bytes"]) == (144, 144 * 64, 5 * 18)
    assert seen["manifest"]["budget"]["bits"] == 4


def test_export_is_the_same_bytes_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = []
    for name in ("a.fmpq", "b.fmpq"):
        result(capsys, "export", "resnet8", "--seed", "5", "--out", str(tmp_path / name))
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_a_memory_limit_gives_a_plan_within_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = result(capsys, "export", "resnet8", "--memory", "512KiB", "--out", str(tmp_path))
    assert made["planned_bytes"] <= 512 * 1024
    file = tmp_path / "resnet8.fmpq"
    assert Path(made["file"]) == file
    assert artifact.read(file).manifest["budget"]["memory"] == 512 * 1024
    planned = result(capsys, "plan", str(file))
    assert planned["measured_bytes"] == made["planned_bytes"]
    assert planned["bits"] == made["bits"]
    board = result(capsys, "plan", "resnet8", "--profile", "stm32h743")
    assert board["planned_bytes"] <= 901120


def test_the_c_target_writes_a_header_and_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = result(capsys, "export", "resnet8", "--batch", "1", "--target", "c", "--out", str(tmp_path / "fw"))
    assert [Path(file).name for file in made["files"]] == ["resnet8.h", "resnet8.c"]
    assert f"RESNET8_ARENA_BYTES {made['planned_bytes']}u" in (tmp_path / "fw" / "resnet8.h").read_text()


def test_the_onnx_target_writes_three_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = result(
        capsys, "export", "resnet8", "--data", "digits", "--target", "onnx", "--out", str(tmp_path / "net.onnx")
    )
    assert [Path(file).name for file in made["files"]] == ["net.train.onnx", "net.eval.onnx", "net.init.onnx"]
    code, err = failure(capsys, "export", "resnet8", "--micro-batch", "8", "--target", "onnx", "--out", str(tmp_path))
    assert code == 6
    assert "takes the batch as a whole" in err


def test_both_engines_train_to_the_same_bits(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(digits), "--data", "digits", "--epochs", "1", "--train-limit", "128"]
    made = [
        result(capsys, *arguments, "--engine", engine, "--out", str(tmp_path / f"{engine}.fmpq"))
        for engine in ("core", "onnx")
    ]
    assert made[0]["state"] == made[1]["state"]
    assert made[0]["test_accuracy"] == made[1]["test_accuracy"]


def test_plan_options_change_an_artifacts_plan(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = result(capsys, "plan", str(digits), "--bits", "2", "--batch", "1", "--guard", "2", "--no-momentum")
    assert (changed["batch"], changed["guard"], changed["momentum"]) == (1, 2, False)
    assert set(changed["bits"]) == {2}
    assert changed["planned_bytes"] == changed["measured_bytes"]


def test_training_learns_and_is_repeatable(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(digits), "--data", "digits", "--epochs", "2", "--train-limit", "640",
                 "--validation", "0.1"]  # fmt: skip
    first = result(capsys, *arguments, "--out", str(tmp_path / "a.fmpq"))
    second = result(capsys, *arguments, "--out", str(tmp_path / "b.fmpq"))
    assert first["test_accuracy"] > 55
    assert first["state"] == second["state"]
    assert (tmp_path / "a.fmpq").read_bytes() == (tmp_path / "b.fmpq").read_bytes()
    assert first["planned_bytes"] == first["measured_bytes"]
    assert [epoch["epoch"] for epoch in first["epochs"]] == [1, 2]
    assert first["epochs"][1]["validation_accuracy"] > first["epochs"][0]["validation_accuracy"] - 20
    seen = result(capsys, "inspect", str(tmp_path / "a.fmpq"))
    assert seen["manifest"]["trained"]["state"] == first["state"]
    again = result(capsys, *arguments, "--seed", "1", "--out", str(tmp_path / "c.fmpq"))
    assert again["state"] != first["state"]


def test_tables_are_for_people(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["inspect", str(digits)]) == 0
    assert run(["plan", str(digits), "--buffers"]) == 0
    out, _ = capsys.readouterr()
    for word in ("layer3.0.conv2", "option A", "conv+bn+relu", "planned_bytes", "measured_bytes", "fc work"):
        assert word in out


NET = """
import torch
from torch import nn

class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        return self.fc(torch.sigmoid(x).mean((2, 3)))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "resnet9"], 6, "there is no model 'resnet9'"),
        (["export", "resnet8", "--memory", "10KiB"], 7, "bytes, 10240 are allowed"),
        (["export", "resnet8", "--profile", "stm32h7"], 3, "there is no profile 'stm32h7'"),
        (["export", "resnet8", "--profile", "stm32h743", "--memory", "1MiB"], 2, "both give a limit"),
        (["export", "resnet8", "--input", "32x32"], 2, "is no image shape"),
        (["export", "resnet8", "--data", "digits", "--input", "3x32x32"], 2, "contradicts --data digits"),
        (["export", "resnet8", "--data", "digits", "--classes", "5"], 2, "fewer than the 10"),
        (["export", "resnet8", "--bits", "9"], 2, "bits"),
        (["export", "resnet8", "--mean", "300"], 6, "0…255"),
        (["export", "resnet8", "--mean", "nan"], 2, "is no list of numbers"),
        (["export", "resnet8", "--std", "inf"], 2, "is no list of numbers"),
        (["export", "resnet8", "--mean", "0.49,0.48,0.44"], 2, "pixels of 0…255 (write --mean 125,122,112)"),
        (["export", "resnet8", "--micro-batch", "128"], 2, "exceeds the batch of 64"),
        (["inspect", "nothing.fmpq"], 5, "there is no file nothing.fmpq"),
        (["plan", "nothing.fmpq"], 5, "there is no file nothing.fmpq"),
        (["train", "nothing.fmpq", "--data", "digits", "--epochs", "1"], 5, "there is no file"),
        (["train", "digits.fmpq", "--data", "nowhere", "--epochs", "1"], 4, "nowhere"),
        (["train", "digits.fmpq", "--data", "digits", "--epochs", "0"], 2, "epochs"),
        (["plan", "digits.fmpq", "--memory", "1KiB"], 7, "bytes, 1024 are allowed"),
        (["export", "digits.fmpq"], 2, "is an artifact already"),
        (["export", "digits.fmpq", "--target", "executorch", "--bits", "2"], 2, "keeps its plan: --bits cannot apply"),
        (["export", "digits.fmpq", "--target", "executorch", "--seed", "0", "--no-crop"], 2, "--seed, --crop cannot"),
        (["export", "digits.fmpq", "--target", "executorch", "--scale", "max"], 2, "--scale cannot apply"),
        (["export", "digits.fmpq", "--inference", "onnx", "--data", "digits", "--target", "c"], 2, "is: --target"),
        (["export", "digits.fmpq", "--inference", "onnx", "--memory", "1MiB"], 2, "as it is: --memory cannot apply"),
        (["export", "resnet8", "--target", "ort-training", "--bits", "2"], 2, "no plan: --bits cannot apply"),
        (["plan", "digits.fmpq", "--input", "3x32x32", "--data", "digits"], 2, "not a model: --input, --data cannot"),
        (["inspect", "digits.fmpq", "--seed", "1"], 2, "not a model: --seed cannot apply"),
        (["train", "digits.fmpq", "--data", "digits", "--epochs", "1", "--out", "net.py/x.fmpq"], 2,
         "cannot write net.py/x.fmpq: net.py: Not a directory"),
        (["train", "digits.fmpq", "--data", "digits", "--epochs", "1", "--out", "/proc/self/new/x.fmpq"], 2,
         "cannot write /proc/self/new/x.fmpq: /proc/self: "),
        (["export", "net.py:Bad"], 6, "2 unsupported operations:\n  - aten.tanh at net.py:12"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_line_and_a_code(
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(digits.parent)
    (digits.parent / "net.py").write_text(NET)
    before = digits.read_bytes()
    found, err = failure(capsys, *arguments)
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
    assert digits.read_bytes() == before
    assert sorted(p.name for p in digits.parent.iterdir() if p.is_file()) == ["digits.fmpq", "net.py"]


def test_where_the_training_goes_is_known_before_it(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", str(digits), "--data", "digits", "--epochs", "1", "--train-limit", "64"]
    (folder := tmp_path / "kept").mkdir()
    assert result(capsys, *arguments, "--out", str(folder))["file"] == str(folder / "digits.trained.fmpq")
    made = result(capsys, *arguments, "--out", str(tmp_path / "new" / "deep" / "x.fmpq"))  # folders are made
    assert Path(made["file"]).read_bytes() == (folder / "digits.trained.fmpq").read_bytes()
    monkeypatch.setattr("fedmpq.local.train", lambda *_: pytest.fail("trained what cannot be written"))
    (tmp_path / "digits.trained.fmpq").mkdir()
    code, err = failure(capsys, *arguments)
    assert code == 2
    assert "digits.trained.fmpq, which is a folder (name a file by --out)" in err
    monkeypatch.delattr("fedmpq.export.executorch.lowering", raising=False)
    monkeypatch.setitem(sys.modules, "fedmpq.export.executorch.lowering", None)  # as if executorch were not installed
    with pytest.raises(ModuleNotFoundError, match="lowering"):
        run([*arguments, "--out", str(tmp_path / "x.pte")])


def test_a_corrupt_artifact_is_named(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(digits.read_bytes())
    data[-100] ^= 1
    digits.write_bytes(bytes(data))
    for command in (["inspect", str(digits)], ["train", str(digits), "--data", "digits", "--epochs", "1"]):
        code, err = failure(capsys, *command)
        assert code == 5
        assert "digits.fmpq: section 'manifest' does not match its SHA-256" in err


def test_data_of_another_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "colour.fmpq"
    result(capsys, "export", "resnet8", "--out", str(file))
    code, err = failure(capsys, "train", str(file), "--data", "digits", "--epochs", "1")
    assert code == 4
    assert "8×8×1 of 10 classes, the artifact takes 32×32×3" in err
