"""In which functions a board's training step spends its instructions, as the emulator counts them.

    python benchmarks/arm_functions.py corstone-300 resnet8-n4-b1 2     profile, case, size of strips (core.Plan.roomy)

The difference of firmware that trains three steps and of one that trains one, so that start-up does not count. The
plugin edge_runtime/core/tests/qemu_counts.c counts; functions that the compiler put into others count as those.
"""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]


def functions(elf: Path) -> list[tuple[int, str]]:
    """Addresses and names of an ELF file's functions, in order."""
    listed = subprocess.run(["arm-none-eabi-nm", str(elf)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return sorted((int(r[0], 16) & ~1, r[2]) for r in rows if len(r) == 3 and r[1] in "tTwW" and r[2][0] != "$")


def executed(counts: Path, elf: Path) -> Counter[str]:
    """Function -> instructions, from the plugin's lines."""
    known = functions(elf)
    starts = [address for address, _ in known]
    found: Counter[str] = Counter()
    for line in counts.read_text().splitlines():
        address, instructions, executions = line.split()
        found[known[bisect_right(starts, int(address, 16)) - 1][1]] += int(instructions) * int(executions)
    return found


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.arm import MACS
    from fedmpq.edge_runtime import core
    from fedmpq.firmware_profiles import load
    from fedmpq.toolchain import firmware, sources, tools
    from tests.helpers import golden

    if len(sys.argv) != 4 or sys.argv[2] not in golden.CASES:
        raise SystemExit(__doc__)
    profile, chosen, roomy = load(sys.argv[1]), golden.CASES[sys.argv[2]], int(sys.argv[3])
    assert profile.board is not None
    arena = core.plan_memory(core.Program(chosen.net.build()), replace(chosen.plan, roomy=roomy)).total
    runs = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        plugin, source = folder / "counts.so", sources.root() / "tests" / "qemu_counts.c"
        subprocess.run(["gcc", "-O2", "-fPIC", "-shared", str(source), "-o", str(plugin)], check=True)
        for steps in (1, 3):
            given = {
                "FMPQ_CASE": f'"{chosen.name}"', "FMPQ_ARENA": arena, "FMPQ_BATCH": chosen.batch,
                "FMPQ_CLOCK": profile.board.clock, "FMPQ_RECOMPUTE": 1 + roomy, "FMPQ_STEPS": steps,
            }  # fmt: skip
            elf = firmware.program(profile, sources.ports(*firmware.PORTS), given, folder / str(steps), "steps.elf")
            command = [
                *tools.emulator(profile), "-nographic", "-semihosting-config", "enable=on,target=native",
                "-plugin", f"{plugin},out={folder / 'counts'}", "-kernel", str(elf),
            ]  # fmt: skip
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            runs.append(executed(folder / "counts", elf))
    sample = {name: (runs[1][name] - runs[0][name]) / 2 / chosen.batch for name in runs[1]}
    total = sum(sample.values())
    print(f"{total:13,.0f}  100.0 %  a sample, {total / MACS:.3f} a multiply-add of ResNet8")
    for name, count in sorted(sample.items(), key=lambda item: -item[1]):
        if count >= total / 1000:
            print(f"{count:13,.0f}  {100 * count / total:5.1f} %  {name}")


if __name__ == "__main__":
    main()
