"""docs/results.md says what the committed result files say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_files_give() -> None:
    spec = importlib.util.spec_from_file_location("render_results", ROOT / "benchmarks" / "render_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "results.md").read_text() == module.render()


@pytest.mark.parametrize(("data", "least"), [("digits", 94.0), ("fashion-mnist", 80.0)])
def test_the_committed_demos_reach_what_is_asked_of_them(data: str, least: float) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / f"demo-{data}.json").read_text())
    assert result["final_accuracy"] >= least
    for row in (*result["rounds"], *result["aqfl"]["rounds"]):
        for device in row["devices"]:
            assert device["planned_bytes"] == device["measured_bytes"] <= device["limit_bytes"]
