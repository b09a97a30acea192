"""docs/results.md says what the committed result files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import render_results

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_files_give() -> None:
    assert (ROOT / "docs" / "results.md").read_text() == render_results.render()


@pytest.mark.parametrize(("data", "least"), [("digits", 94.0), ("fashion-mnist", 80.0)])
def test_the_committed_demos_reach_what_is_asked_of_them(data: str, least: float) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / f"demo-{data}.json").read_text())
    assert result["final_accuracy"] >= least
    for row in (*result["rounds"], *result["aqfl"]["rounds"]):
        for device in row["devices"]:
            assert device["planned_bytes"] == device["measured_bytes"] <= device["limit_bytes"]
