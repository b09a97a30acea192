"""Write README's table of facts from the measured results, or check that it still says what they say.

    python benchmarks/facts.py            rewrite the table
    python benchmarks/facts.py --check    exit 1 if README differs (CI)

Each benchmarks/results/demo-<data>.json is what `fedmpq demo --data <data> --json` printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- facts:begin (written by benchmarks/facts.py from benchmarks/results, checked in CI) -->"
END = "<!-- facts:end -->"


def facts(results: Path) -> str:
    """The table in markdown; empty where nothing has been measured yet."""
    rows = [_row(path) for path in sorted(results.glob("demo-*.json"))]
    if not rows:
        return ""
    head = [
        "Measured by `fedmpq demo` on a fleet of four whose memory limits differ, non-iid data, integers only:",
        "",
        "| data | test accuracy, FedMPQ | same fleet, AQFL | bits | memory, planned = measured | upload a round |",
        "|---|---:|---:|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _row(path: Path) -> str:
    result: dict[str, Any] = json.loads(path.read_text())
    devices = result["rounds"][-1]["devices"]
    for device in devices:
        if device["planned_bytes"] != device["measured_bytes"]:
            numbers = f"{device['measured_bytes']} of {device['planned_bytes']} planned bytes"
            raise SystemExit(f"{path.name}: a device measured {numbers}")
    cells = [
        path.stem.removeprefix("demo-"),
        f"{result['final_accuracy']:.1f} %",
        f"{result['aqfl_accuracy']:.1f} %",
        _list(f"{device['bits']:.1f}" for device in devices),
        _list(f"{device['planned_bytes'] / 1024:,.0f}" for device in devices) + " KiB",
        f"{result['rounds'][-1]['bytes_up'] / len(devices) / 1024:,.0f} KiB on average",
    ]
    return "| " + " | ".join(cells) + " |"


def _list(texts: Iterable[str]) -> str:
    return " / ".join(texts)


def rewrite(readme: str, table: str) -> str:
    """README with the part between the marks replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit("README.md lacks the marks of the facts table")
    return before + BEGIN + "\n" + table + END + after


def main() -> None:
    """Rewrite or check."""
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = rewrite(old, facts(ROOT / "benchmarks/results"))
    if sys.argv[1:] == ["--check"]:
        if new != old:
            raise SystemExit("README's facts are not those of benchmarks/results: run python benchmarks/facts.py")
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    else:
        readme.write_text(new)


if __name__ == "__main__":
    main()
