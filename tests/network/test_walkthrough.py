"""docs/walkthrough.md, typed as it stands: its module, its commands, its fleet. Cross builds are in tests/arm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fedmpq.coordinator.broker import find_mosquitto
from fedmpq.data.sources import find_named
from tests.helpers import edge, walkthrough
from tests.helpers.waiting import wait_for

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(find_mosquitto() is None, reason="there is no mosquitto on this machine"),
    pytest.mark.skipif(not find_named("fashion-mnist"), reason="fashion-mnist is not on this machine (make system)"),
]

#: Programs of the page that never end by themselves, or only with the run.
_BESIDE = (["coordinator", "serve"], ["device", "run"])


@contextmanager
def beside(words: list[str], folder: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a terminal of its own."""
    command, environment = walkthrough.line_of(words), walkthrough.ENVIRONMENT
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def test_the_page_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(walkthrough.module())
    said = "".join(walkthrough.run(words, tmp_path) for section in (1, 2, 3) for words in walkthrough.commands(section))
    assert "1,506,176" in said

    # "The bits of the result do not depend on your processor": on fewer images, for the slowest kernels.
    train = ["600" if word == "12000" else word for word in walkthrough.commands(3)[0]]
    results = set()
    for isa in ("", "scalar"):
        walkthrough.run(train, tmp_path, FEDMPQ_ISA=isa)
        results.add((tmp_path / "trained.fmpq").read_bytes())
    assert len(results) == 1

    on_a_board(tmp_path)
    said += in_a_fleet(tmp_path)
    for line in walkthrough.promised():
        if not line.startswith("state="):
            assert line.partition(" ")[2] in said, line


def on_a_board(folder: Path) -> None:
    """Section 4 with the program built for this machine."""
    partition, build, *there = walkthrough.commands(4)
    walkthrough.run(partition, folder)
    assert build[:2] == ["fedmpq", "build"]
    board = folder / "linux-board"
    board.mkdir()
    shutil.copy(folder / "out" / "small.fmpq", board)
    shutil.copy(folder / "shards" / "client-0.shard", board)
    for program, command, *rest in there:
        assert program == "./fedmpq-edge"
        done = subprocess.run(
            [str(edge.native()), command, *rest], cwd=board, capture_output=True, text=True, timeout=300, check=True
        )
        last = json.loads(done.stdout.splitlines()[-1])
    assert len(last["state"]) == 64


def in_a_fleet(folder: Path) -> str:
    """Section 6; what all of its commands said."""
    said = ""
    with ExitStack() as stack:
        processes = []
        for number, words in enumerate(walkthrough.commands(6)):
            if words[1:3] in _BESIDE:
                log = folder / f"{number}.log"
                processes.append(stack.enter_context(beside(words, folder, log)))
                if words[2] == "serve":
                    wait_for(lambda log=log: "fleet" in log.read_text())
                continue
            if words[2] != "enroll":
                for process in processes:
                    assert process.wait(timeout=240) == 0
                processes.clear()
            said += walkthrough.run(words, folder)
        assert (folder / "merged.fmpq").is_file()
    return said + "".join(log.read_text() for log in sorted(folder.glob("*.log")))
