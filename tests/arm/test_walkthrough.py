"""The cross builds of docs/walkthrough.md, and what they make in emulators: the same state as on this machine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.helpers import edge, walkthrough

pytestmark = pytest.mark.arm


def test_the_linux_board_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(walkthrough.module())
    partition, build, _, train = walkthrough.commands(4)
    few = ["240" if word == "12000" else word for word in partition]
    for words in (walkthrough.commands(2)[0], few, build):
        walkthrough.run(words, tmp_path)
    places = {"small.fmpq": "out", "client-0.shard": "shards", "trained.fmpq": ""}
    arguments = [str(tmp_path / places[word] / word) if word in places else word for word in train[1:]]
    emulator = ("qemu-aarch64-static", "-cpu", "cortex-a53")
    there = edge.run(*arguments, emulator=emulator, program=tmp_path / "edge" / "fedmpq-edge")
    here = edge.run(*arguments)
    states = [json.loads(text.splitlines()[-1])["state"] for text in (there, here)]
    assert states[0] == states[1]


def test_the_microcontroller_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(walkthrough.module())
    export, build = walkthrough.commands(2)[2], walkthrough.commands(5)[0]
    walkthrough.run(export, tmp_path)
    emulator = re.findall(r"run here\s+(\S.*image\.elf)", walkthrough.run(build, tmp_path))
    # Semihosting writes to the emulator's standard error.
    report = subprocess.run(
        shlex.split(emulator[0]), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300, check=True,
    ).stdout  # fmt: skip
    (promised,) = (line for line in walkthrough.promised() if line.startswith("state="))
    fields = [dict(word.split("=") for word in line.split()) for line in (report.splitlines()[-1], promised)]
    assert list(fields[0]) == list(fields[1])
    for name in ("arena", "data", "stack_kept"):
        assert fields[0][name] == fields[1][name]
