"""The commands of docs/walkthrough.md, as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "walkthrough.md"
#: Any free port instead of the usual one, and lines that do not wrap.
ENVIRONMENT = {**os.environ, "FEDMPQ_COORDINATOR_SERVE_PORT": "0", "COLUMNS": "160"}


def commands(section: int) -> list[list[str]]:
    """The indented lines of the section of that number, outside fences, each split as a shell does."""
    parts = re.split(r"^## (\d+)\. .*$", PAGE.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", parts[parts.index(str(section)) + 1], flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ") and line.strip()]


def module() -> str:
    """The page's net.py."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)[0]


def promised() -> list[str]:
    """Lines of output that the page shows."""
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def line_of(words: list[str]) -> list[str]:
    """A command of the page for this interpreter."""
    assert words[0] == "fedmpq", words
    return [sys.executable, "-m", "fedmpq", *words[1:]]


def run(words: list[str], folder: Path, **environment: str) -> str:
    """Runs a command of the page in a folder; returns all it said."""
    done = subprocess.run(
        line_of(words), cwd=folder, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout[-800:], done.stderr[-800:])
    return done.stdout + done.stderr
