"""Write README's table of facts from the measured results, or check that it still says what they say.

    python benchmarks/facts.py            rewrite the table
    python benchmarks/facts.py --check    exit 1 if README differs (CI)

Each benchmarks/results/demo-<data>.json is what `fedmpq demo --data <data> --json` printed; the other files and their
commands stand in docs/performance.md, docs/arm.md and docs/results.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
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


def lines(results: Path) -> str:
    """What the core, a board and one device reach."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((results / name).read_text())
        return found

    big, small, memory = read("bench-b64.json"), read("bench-b1.json"), read("bench-memory.json")
    ratios, ours = big["ratio_vs"], big["results"][0]
    bytes_of = {row["batch"]: row["planned_bytes"] for row in memory["results"]}
    board = next(
        row
        for row in read("arm.json")["boards"]
        if row["core"] == "Cortex-M7" and row["bits"] == 4 and row["available"] == 256 << 10
    )
    alone = [run for run in read("centralised-cifar10.json")["runs"] if not run["options"]["guard"]]
    runs = {
        setting: fmean(run["test_accuracy"] for run in alone if _setting(run) == setting)
        for setting in {_setting(run) for run in alone}
    }
    together = [run for run in read("federated-small.json")["runs"] if run["column"] == "cifar10, α = 0.5"]
    fleet = {
        name: fmean(run["final_accuracy"] for run in together if run["strategy"] == name)
        for name in {run["strategy"] for run in together}
    }
    whole = next(
        run
        for run in read("federated-full.json")["runs"]
        if run["strategy"] == "fedmpq" and run["column"] == "cifar10, α = 0.5"
    )
    texts = [
        (
            f"- **Speed**: a training step of ResNet20 at 4 bits on one core of a desk machine takes 64 images at"
            f" {ours['images_per_s']:,.0f} a second: {ratios['torch']:.1f} × PyTorch, {ratios['ort_training']:.1f} ×"
            f" ONNX Runtime training, {ratios['executorch']:,.0f} × ExecuTorch training in the same run; one image at"
            f" {small['ratio_vs']['torch']:.1f} × PyTorch ([performance](docs/performance.md))."
        ),
        (
            f"- **Memory**, everything a step needs, planned = measured: {bytes_of[1]:,} bytes for one image,"
            f" {bytes_of[64]:,} for 64."
        ),
        (
            f"- **A microcontroller**: ResNet8 on 32×32×3 at 4 bits, every layer with its batch-norm, in"
            f" {board['total']:,} of {board['available']:,} bytes of an (emulated) Cortex-M7 ([ARM](docs/arm.md))."
        ),
        (
            f"- **Learning**: ResNet20 on CIFAR-10, 10 epochs on one device: {runs['float']:.1f} % in fp32,"
            f" {runs[8, 8]:.1f} % at 8 bits, {runs[4, 4]:.1f} % at 4, {runs[2, 4]:.1f} % at 2"
            f" ([results](docs/results.md))."
        ),
        (
            f"- **A fleet**: ten clients of 2 to 8 bits in the paper's setting (ResNet20, CIFAR-10, α = 0.5):"
            f" {whole['final_accuracy']:.1f} %, where the paper has {whole['printed']} %. At the small scale, a"
            f" sixteenth of that training, FedMPQ has {fleet['fedmpq']:.1f} %, equal bits (AQFL) with the same server"
            f" {fleet['aqfl']:.1f} %; as published, AQFL {fleet['aqfl-paper']:.1f} % and 8 bits everywhere (FPQ8)"
            f" {fleet['fpq8']:.1f} %."
        ),
    ]
    return "\n" + "\n".join(texts) + "\n"


def _setting(run: dict[str, Any]) -> str | tuple[int, int]:
    options = run["options"]
    return "float" if options["engine"] == "float" else (options["bits"], options["act_bits"])


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
    results = ROOT / "benchmarks/results"
    new = rewrite(old, facts(results) + lines(results))
    if sys.argv[1:] == ["--check"]:
        if new != old:
            raise SystemExit("README's facts are not those of benchmarks/results: run python benchmarks/facts.py")
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    else:
        readme.write_text(new)


if __name__ == "__main__":
    main()
