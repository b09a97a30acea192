"""`fedmpq build` and the compilation under it: options, FEDMPQ_JOBS, and what is compiled again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedmpq.cli._main import run
from fedmpq.errors import ConfigError
from fedmpq.toolchain import gateway
from fedmpq.toolchain.compile import compile_all
from fedmpq.toolchain.sources import Unit


def test_records_reach_the_gateways_firmware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def build(*_: object, records: int = 0, **__: object) -> Path:
        asked.append(records)
        made = tmp_path / "gateway.elf"
        made.write_bytes(b"elf")
        return made

    monkeypatch.setattr(gateway, "build", build)
    command = ["build", "--profile", "stm32f746", "--what", "gateway", "--out", str(tmp_path)]
    assert run([*command, "--records", "40"]) == 0
    assert run(command) == 0
    assert asked == [40, 0]


def test_records_of_anything_else_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "--profile", "stm32f746", "--what", "edge", "--records", "40"]) == 2
    assert "--records is for --what gateway" in capsys.readouterr().err
    assert run(["build", "--profile", "stm32f746", "--what", "gateway", "--records", "65"]) == 2


@pytest.mark.parametrize("value", ["abc", "0", "-2", "1.5", " "])
def test_a_number_of_jobs_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMPQ_JOBS", value)
    with pytest.raises(ConfigError, match="FEDMPQ_JOBS"):
        compile_all(["cc"], [], [], tmp_path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("edited", ["part one.c", "the sum #1.h"])
def test_what_was_edited_under_a_path_with_a_space_is_compiled_again(edited: str, tmp_path: Path) -> None:
    folder = tmp_path / "my own $5"
    folder.mkdir()
    (folder / "the sum #1.h").write_text("#define SUM 1\n")
    source = folder / "part one.c"
    source.write_text('#include "the sum #1.h"\nint sum = SUM;\n')

    def built() -> bytes:
        (made,) = compile_all(["gcc"], [Unit(source, ())], ["-O0"], folder / "out here")
        return made.read_bytes()

    first = built()
    assert built() == first
    path = folder / edited
    path.write_text(path.read_text().replace("SUM 1", "SUM 2").replace("= SUM", "= SUM + 4"))
    assert built() != first
