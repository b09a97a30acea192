"""Bytes and instructions of a training step on emulated ARM boards and processors; docs/arm.md holds the tables.

    python benchmarks/arm.py             build, run, write benchmarks/results/arm.json and the tables
    python benchmarks/arm.py boards      only the boards, or `linux`: only the Linux processors
    python benchmarks/arm.py --render    only write the tables again
    python benchmarks/arm.py --check     exit 1 if docs/arm.md says something else than arm.json

Boards: firmware in qemu-system-arm counts with SysTick at one instruction a nanosecond (-icount shift=0). Linux: the
plugin edge_runtime/core/tests/qemu_counts.c counts in qemu-user (Debian's qemu-user, not the static one, loads it).
Instructions are what an emulator executed, never a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "arm.json"
PAGE = ROOT / "docs" / "arm.md"
MARKS = {name: (f"<!-- {name}:begin (benchmarks/arm.py) -->", f"<!-- {name}:end -->") for name in ("boards", "linux")}
#: Multiply-adds of a ResNet8 sample on 32x32x3: forward, error to the input (not of the first layer), weight gradient.
MACS = 3 * 12_239_488 - 442_368
#: Profile, case, size of strips (core.Plan.roomy).
BOARDS = [
    ("stm32f746", "resnet8-n1-b1", 2),
    ("stm32f746", "resnet8-n2-b1", 2),
    ("stm32f746", "resnet8-n4-b1", 2),
    ("stm32f746", "resnet8-n4-b1", 0),
    ("stm32h743", "resnet8-n8-b1", 2),
    ("nrf52840", "resnet8-n2-b1", 0),
    ("nrf52840", "resnet8-n2-b1", 1),
    ("corstone-300", "resnet8-n4-b1", 2),
]
#: Profile whose program runs, emulator and processor, kernel table, multiply-adds of its best instruction.
LINUX = [
    ("rpi-zero-2w", "qemu-aarch64", "cortex-a53", "neon", 8),
    ("rpi-zero-2w", "qemu-aarch64", "cortex-a76", "neondot", 16),
    ("rpi-zero-2w", "qemu-aarch64", "max", "neoni8mm", 32),
    ("armv7-neon", "qemu-arm", "cortex-a7", "neon", 8),
    ("rpi-zero", "qemu-arm", "arm1176", "scalar", 1),
]
FLOOR = {"dsp": 2, "mve": 16}


def boards(folder: Path) -> list[dict[str, Any]]:
    from fedmpq.edge_runtime import core
    from fedmpq.firmware_profiles import load
    from fedmpq.toolchain import firmware, tools
    from tests.helpers import edge, golden

    wanted = json.loads((ROOT / "tests" / "golden" / "edge.json").read_text())["cases"]
    rows = []
    for name, case, roomy in BOARDS:
        profile, chosen = load(name), golden.CASES[case]
        plan = replace(chosen.plan, roomy=roomy)
        arena = core.plan_memory(core.Program(chosen.net.build()), plan).total
        elf = firmware.build(profile, case, arena, chosen.batch, folder / f"{name}-{case}-{roomy}", roomy=roomy)
        options = ["-nographic", "-icount", "shift=0", "-semihosting-config", "enable=on,target=native"]
        command = [*tools.emulator(profile), *options, "-kernel", str(elf)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(case)]
        fields = edge.parse_selftest("\n".join(lines))[case]
        if fields["state"] != wanted[case]["state"]:
            raise SystemExit(f"{name} {case}: the state differs from the recorded one")
        parts = ("arena", "arena_state", "data", "bss", "stack", "stack_kept", "instructions")
        row: dict[str, Any] = {part: int(fields[part]) for part in parts}
        row["total"] = row["arena"] + row["data"] + row["bss"] + row["stack_kept"]
        about = {"profile": name, "core": profile.cpu.core, "case": case, "roomy": roomy, "kernels": fields["isa"]}
        rows.append({**about, "bits": plan.bits[0], **row, "available": profile.available})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def linux(folder: Path) -> list[dict[str, Any]]:
    from fedmpq.firmware_profiles import load
    from fedmpq.toolchain import edge, sources

    plugin = folder / "qemu_counts.so"
    tests = sources.root() / "tests"
    source = tests / "qemu_counts.c"
    subprocess.run(["gcc", "-O2", "-fPIC", "-shared", str(source), "-o", str(plugin)], check=True)
    rows = []
    for name, emulator, cpu, kernels, macs in LINUX:
        own = [tests / "count_steps.c", *sources.ports("golden.c", "pool_pthread.c", "sha256.c")]
        program = edge.program(load(name), "count_steps", own, ROOT / "build" / "edge" / name)
        totals = []
        for steps in (1, 3):
            counts = folder / "counts"
            command = [emulator, "-cpu", cpu, "-plugin", f"{plugin},out={counts}", str(program)]
            run = [*command, "resnet8-n4-b1", str(steps), kernels]
            subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            lines = [line.split() for line in counts.read_text().splitlines()]
            totals.append(sum(int(n) * int(times) for _, n, times in lines))
        sample = (totals[1] - totals[0]) // 2
        rows.append({"profile": name, "processor": cpu, "kernels": kernels, "instructions": sample, "macs": macs})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def tables(result: dict[str, Any]) -> dict[str, str]:
    head = (
        "| profile | bits | strips | arena | of it weights and tables | other data | stack used | stack kept | in all "
        "| RAM allowed | instructions a sample | a multiply-add | times the floor |\n"
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    strips = ("smallest", "larger", "whole maps")
    body = "".join(
        f"| {r['profile']} ({r['core'].removeprefix('Cortex-')}, {r['kernels']}) | {r['bits']} | {strips[r['roomy']]} "
        f"| {r['arena']:,} | {r['arena_state']:,} | {r['data'] + r['bss']:,} | {r['stack']:,} | {r['stack_kept']:,} "
        f"| {r['total']:,} | {r['available']:,} | {_shares(r['instructions'], FLOOR[r['kernels']])} |\n"
        for r in result["boards"]
    )
    linux_head = (
        "| program of | processor | kernels | instructions a sample | a multiply-add | times the floor |\n"
        "|---|---|---|---:|---:|---:|\n"
    )
    linux_body = "".join(
        f"| {r['profile']} | {r['processor']} | {r['kernels']} | {_shares(r['instructions'], r['macs'])} |\n"
        for r in result["linux"]
    )
    return {"boards": head + body, "linux": linux_head + linux_body}


def _shares(instructions: int, macs: int) -> str:
    return f"{instructions / 1e6:.1f} M | {instructions / MACS:.2f} | {instructions * macs / MACS:.1f}"


def page(text: str, result: dict[str, Any]) -> str:
    """docs/arm.md with its tables as `result` has them."""
    for name, table in tables(result).items():
        begin, end = MARKS[name]
        if begin not in text:
            continue
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table}{end}{after}"
    return text


def main() -> None:
    if not {"--render", "--check"} & set(sys.argv):
        sys.path.insert(0, str(ROOT))
        parts = {"boards": boards, "linux": linux}
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        result = {"command": "python benchmarks/arm.py", "macs": MACS, "boards": [], "linux": [], **kept}
        for part in set(sys.argv[1:]) & set(parts) or parts:
            with TemporaryDirectory() as name:
                result[part] = parts[part](Path(name))
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    text = PAGE.read_text()
    wanted = page(text, json.loads(RESULT.read_text()))
    if "--check" in sys.argv:
        raise SystemExit(0 if wanted == text else "docs/arm.md differs from benchmarks/results/arm.json")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
