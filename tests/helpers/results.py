"""Figures of emulated runs that the documentation quotes: written as JSON where FEDMPQ_RESULTS names a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def keep(name: str, facts: dict[str, Any]) -> None:
    """Writes `name`.json and prints it."""
    text = json.dumps(facts, indent=1) + "\n"
    print(text)
    folder = os.environ.get("FEDMPQ_RESULTS")
    if folder:
        (Path(folder) / f"{name}.json").write_text(text)
