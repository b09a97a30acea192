"""Writes the table of export targets into docs/executorch.md from benchmarks/results/targets.json.

fedmpq bench targets --json > benchmarks/results/targets.json; python benchmarks/render_targets.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "targets.json"
PAGE = ROOT / "docs" / "executorch.md"
BEGIN, END = "<!-- targets -->\n", "<!-- /targets -->\n"
NAMES = {
    "fedmpq": "native core",
    "executorch-delegate": "`.pte`, ExecuTorch",
    "onnx": "ONNX graph, onnxruntime",
    "ort-training": "ONNX Runtime training, fp32",
}


def table(result: dict[str, Any]) -> str:
    """The command, the machine and a row for each target."""
    channels, height, width = result["input"]
    command = (
        f"fedmpq bench targets --model {result['model']} --input {channels}x{height}x{width} --bits {result['bits']:g} "
        f"--batch {result['batch']} --repetitions {result['repetitions']} --seconds {result['turn_seconds']:g} --json"
    )
    machine = result["machine"]
    key = "step_ms" if result["ratio_basis"] == "wall" else "cpu_ms"
    lines = [
        f"    {command}",
        "",
        (
            f"One run on {machine['processor'].strip()}, {machine['date']}, one thread, targets in turns, medians of "
            f"{'wall' if key == 'step_ms' else 'processor'} time; load {result['load_before'][0]:g} to "
            f"{result['load_after'][0]:g} on {machine['cpus']} processors."
        ),
        "",
        "| target | files | runtime libraries | idle process | grows by | planned | step | × native |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["targets"]:
        planned = f"{row['planned_bytes']:,} B" if row["target"] in {"fedmpq", "executorch-delegate"} else "–"
        lines.append(
            f"| {NAMES[row['target']]} | {_size(row['file_bytes'])} | {_size(row['runtime_bytes'])} | "
            f"{_size(row['idle_bytes'])} | {_size(row['memory_bytes'])} | {planned} | {row[key]:.1f} ms | "
            f"{row['times_native']:.2f} |"
        )
    same = all(result["same_first_loss"].values())
    lines += [
        "",
        "The idle process is Python with the target's libraries before a model is loaded"
        + ("; the first three train the same integers, and their losses agree." if same else "."),
    ]
    return "\n".join(lines) + "\n"


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count < 10 * 1024 * 1024 else f"{count / 1024 / 1024:,.0f} MiB"


def render(page: str, result: dict[str, Any]) -> str:
    """The page with the table between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{table(result)}{END}{tail}"


if __name__ == "__main__":
    made = render(PAGE.read_text(), json.loads(RESULT.read_text()))
    if "--check" in sys.argv and made != PAGE.read_text():
        sys.exit("docs/executorch.md is not what the result says: run python benchmarks/render_targets.py")
    PAGE.write_text(made)
