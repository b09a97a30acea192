"""`.pte` files on the command line: exported, inspected, trained; missing packages and wrong files named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmpq.cli._main import run
from fedmpq.edge_runtime import artifact
from fedmpq.export.executorch import library, pte

FAST = ("--data", "digits", "--epochs", "1", "--train-limit", "200")


def result(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact and its `.pte`, which allows the arena exactly its bytes."""
    folder = tmp_path_factory.mktemp("files")
    model, program = folder / "d.fmpq", folder / "d.pte"
    assert run(["export", "resnet8", "--bits", "3", "--data", "digits", "--batch", "20", "--out", str(model)]) == 0
    planned = str(artifact.read(model).manifest["planned_bytes"])
    assert run(["export", str(model), "--target", "executorch", "--memory", planned, "--out", str(program)]) == 0
    return model, program


def test_a_pte_shows_what_its_artifact_shows(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, program = (result(capsys, "inspect", str(file)) for file in files)
    assert program.pop("file") != model.pop("file")
    assert program.pop("bytes") > model.pop("bytes")
    assert program == model


def test_it_is_shown_without_torch_and_executorch(files: tuple[Path, Path]) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, executorch=None)\n"
        "from fedmpq.cli._main import run\n"
        f"sys.exit(run(['inspect', {str(files[1])!r}, '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["average_bits"] == 3


def test_training_it_gives_the_artifacts_bits_and_a_pte(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, program = files
    native = result(capsys, "train", str(model), *FAST, "--out", str(tmp_path / "n.fmpq"))
    delegate = result(capsys, "train", str(program), *FAST, "--out", str(tmp_path / "e.pte"))
    assert (native["engine"], delegate["engine"]) == ("core", "executorch")
    for key in ("state", "test_accuracy", "test_loss", "planned_bytes", "measured_bytes"):
        assert native[key] == delegate[key]
    assert pte.read(tmp_path / "e.pte").layers == artifact.read(tmp_path / "n.fmpq").layers


def test_a_larger_batch_than_the_file_allows_is_refused_with_both_numbers(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(files[1]), *FAST, "--batch", "64"]) == 7
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{artifact.read(files[0]).manifest['planned_bytes']} are allowed" in said


def test_files_of_others_are_named(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.pte"
    foreign.write_bytes(bytes([28, 0, 0, 0]) + b"ET12" + bytes(200))
    for command in (("inspect", str(foreign)), ("train", str(foreign), *FAST)):
        assert run(list(command)) == 5
        assert "without a fedmpq training step (fedmpq export --target executorch)" in capsys.readouterr().err
    assert run(["export", str(files[0]), "--target", "onnx"]) == 2


def test_the_engine_and_its_file_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["device", "run", "--insecure", "--data", str(tmp_path / "x.shard"), "--pte", "x.pte"]
    assert run(arguments) == 2
    assert "--pte is for --engine executorch" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["fedmpq.export.executorch.lowering", "fedmpq.export.executorch.library"])
def test_a_missing_executorch_is_named_with_its_extra(module: str) -> None:
    program = (
        "import sys; sys.modules['executorch'] = None\n"
        "from fedmpq.errors import MissingExtraError\n"
        f"try:\n    import {module} as m; m.library()\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'fedmpq[export]'" in done.stdout, done.stderr


def test_an_executorch_without_a_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(library, "find_spec", lambda _: Spec())
    with pytest.raises(library.ConfigError, match=r"has no C\+\+ runtime .*pip install executorch=="):
        library.runtime()
