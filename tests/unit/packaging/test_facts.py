"""README's facts are those of the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import facts

ROOT = Path(__file__).parents[3]


def result(measured: int = 204800) -> dict:
    device = {"bits": 2.04, "planned_bytes": 204800, "measured_bytes": measured}
    last = {"accuracy": 95.0, "bytes_up": 65536, "bytes_down": 1, "devices": [device, device | {"bits": 7.9}]}
    return {"final_accuracy": 95.04, "aqfl_accuracy": 90, "rounds": [last]}


def test_readme_is_up_to_date():
    done = subprocess.run([sys.executable, "benchmarks/facts.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_row_is_made_of_the_result(tmp_path):
    (tmp_path / "demo-digits.json").write_text(json.dumps(result()))
    table = facts.facts(tmp_path)
    assert table.splitlines()[-1] == "| digits | 95.0 % | 90.0 % | 2.0 / 7.9 | 200 / 200 KiB | 32 KiB on average |"
    text = facts.rewrite(f"a\n{facts.BEGIN}\nold\n{facts.END}\nb\n", table)
    assert "old" not in text
    assert facts.rewrite(text, table) == text
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")


def test_planned_must_equal_measured(tmp_path):
    (tmp_path / "demo-digits.json").write_text(json.dumps(result(measured=1)))
    with pytest.raises(SystemExit, match="measured 1 of 204800"):
        facts.facts(tmp_path)


def test_a_readme_without_marks_is_told(tmp_path):
    with pytest.raises(SystemExit, match="marks"):
        facts.rewrite("nothing", "")
