"""Writes tests/golden/edge.json, the golden runs, with the PyTorch reference: `python -m tests.golden.make_edge`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedmpq.models.reference import ReferenceSession
from tests.helpers import golden

FILE = Path(__file__).parent / "edge.json"


def main() -> None:
    results = {}
    for name, case in golden.CASES.items():
        results[name] = golden.run(case, ReferenceSession)
        print(name, results[name]["state"], file=sys.stderr)
    document = {
        "seed": golden.SEED,
        "generator": "tests/golden/make_edge.py with the PyTorch reference",
        "cases": results,
    }
    FILE.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
