"""docs/arm.md says what benchmarks/results/arm.json holds, and that keeps the promises of the page."""

from __future__ import annotations

import json

from benchmarks import arm


def test_the_tables_are_those_of_the_measurement():
    text = arm.PAGE.read_text()
    assert arm.page(text, json.loads(arm.RESULT.read_text())) == text


def test_boards_stay_within_their_ram_and_their_instructions():
    rows = json.loads(arm.RESULT.read_text())["boards"]
    assert all(row["total"] <= row["available"] for row in rows)
    assert any(row["available"] == 192 << 10 and row["bits"] == 2 for row in rows)
    assert any(
        row["available"] == 256 << 10 and row["bits"] == 4 and row["instructions"] <= 1.5 * arm.MACS for row in rows
    )
    assert any(row["core"] == "Cortex-M55" and row["instructions"] <= 0.3 * arm.MACS for row in rows)
