"""docs/executorch.md says what the committed result says, and names the methods that there are."""

from __future__ import annotations

import json
import re

from benchmarks import render_targets


def test_the_table_is_what_the_file_gives() -> None:
    result = json.loads(render_targets.RESULT.read_text())
    page = render_targets.PAGE.read_text()
    assert page == render_targets.render(page, result)
    assert [row["target"] for row in result["targets"]] == list(render_targets.NAMES)
    assert all(result["same_first_loss"].values())


def test_the_methods_are_all_there() -> None:
    from fedmpq.export.executorch.methods import NUMBERS

    page = render_targets.PAGE.read_text().partition("## Memory")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(NUMBERS)
