"""An aarch64 system with little RAM: a step that fits runs, the first that does not is refused and not killed.

Debian's arm64 kernel boots in qemu-system-aarch64 with the static program as its first and only process.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from fedmpq.edge_runtime import artifact, core
from fedmpq.edge_runtime.shard import write_shard
from fedmpq.firmware_profiles import load
from fedmpq.toolchain import edge as build
from tests.helpers import arm64, edge, initramfs, programs
from tests.helpers.artifacts import artifact_of
from tests.helpers.results import keep

pytestmark = [pytest.mark.arm, pytest.mark.timeout(2400)]

RAM_MIB = 96
BATCHES = [64, 192, 224, 256, 288, 320, 512]
#: As many as the largest batch that may fit.
IMAGES = 256


def net() -> programs.Builder:
    """Large maps, few products: much memory and little arithmetic a sample."""
    built = programs.Builder(64, 64, 3, 10, crop_pad=4, mean=(125, 123, 114))
    wide = built.conv("wide", 0, 16, kernel=1)
    small = built.conv("small", wide, 16, stride=4)
    built.classifier("fc", built.global_pool("pool", small))
    return built


NET = net()
PROGRAM = core.Program(NET.build())


def planned(batch: int) -> int:
    return core.plan_memory(PROGRAM, core.Plan(bits=(4,) * len(PROGRAM.weight_layers), batch=batch)).total


def sample_bytes(batch: int) -> int:
    """What the program holds beside the arena: a batch, and the order of the samples."""
    return batch * (64 * 64 * 3 + 2) + 4 * IMAGES


def boot(folder: Path, commands: tuple[str, ...]) -> str:
    """What the console shows from power on to power off."""
    images, labels = programs.images(NET, IMAGES)
    shard = folder / "own.shard"
    write_shard(shard, images.tobytes(), labels.tobytes(), shape=NET.shapes[0], classes=10, mean=bytes(NET.mean))
    file = folder / "model.fmpq"
    artifact.write(file, artifact_of(NET, 4, 16))
    program = build.build(load("rpi-zero-2w"), edge.BUILD / "rpi-zero-2w")
    files = {
        "init": program.read_bytes(), "model.fmpq": file.read_bytes(), "own.shard": shard.read_bytes(),
        "fedmpq-edge.commands": "".join(line + "\n" for line in commands).encode(),
    }  # fmt: skip
    archive = initramfs.write(folder / "initramfs.gz", files)
    command = [
        "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", f"{RAM_MIB}M", "-display", "none", "-serial",
        "stdio", "-monitor", "none", "-nic", "none", "-no-reboot", "-kernel", str(arm64.kernel()), "-initrd",
        str(archive), "-append", "console=ttyAMA0 loglevel=5 panic=-1 rdinit=/init",
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


def endings(console: str) -> dict[str, str]:
    """Command -> how it ended."""
    return dict(re.findall(r"^fedmpq-edge (.*): ((?:exit code|killed by signal) \d+)\r?$", console, re.MULTILINE))


def test_a_step_that_fits_runs_and_the_first_that_does_not_is_refused(tmp_path: Path) -> None:
    steps = [f"train /model.fmpq /own.shard --batch {batch}" for batch in BATCHES]
    reckless = f"{steps[-2]} --limit 1000000000"  # more than is free, less than the RAM: Linux promises it
    console = boot(tmp_path, ("profile", "profile /model.fmpq --batch 8", *steps, reckless, "profile"))
    ended = endings(console)
    ends = [ended[step] for step in steps]
    fitting = ends.count("exit code 0")
    assert 2 <= fitting <= len(steps) - 2, ended
    assert ends == ["exit code 0"] * fitting + ["exit code 7"] * (len(steps) - fitting)
    assert "error: the plan takes" in console
    before, reckless_part = console.split(f"fedmpq-edge {steps[-1]}: ")
    assert "Out of memory" not in before
    # the limit was real: without it the kernel kills the very step that was refused
    assert ended[reckless] == "killed by signal 9"
    assert "Out of memory" in reckless_part
    facts = [json.loads(line) for line in re.findall(r'^\{"version".*\}', console, re.MULTILINE)]
    assert facts[0]["ram_bytes"] < RAM_MIB << 20
    assert planned(BATCHES[fitting - 1]) <= facts[0]["budget_bytes"] < facts[0]["available_bytes"]
    assert planned(BATCHES[fitting]) + sample_bytes(BATCHES[fitting]) > facts[0]["budget_bytes"] - (2 << 20)
    peaks = [row["peak_bytes"] for row in facts[1]["plans"]]
    assert all(peak > row["planned_bytes"] for peak, row in zip(peaks, facts[1]["plans"], strict=True))
    keep(
        "arm-small-ram",
        {
            "command": "make test-gateway RESULTS=benchmarks/results",
            "ram_mib": RAM_MIB,
            **{name: facts[0][name] for name in ("ram_bytes", "available_bytes", "budget_bytes")},
            "steps": [
                {
                    "batch": batch,
                    "planned_bytes": planned(batch),
                    "sample_bytes": sample_bytes(batch),
                    "end": ended[step],
                }
                for batch, step in zip(BATCHES, steps, strict=True)
            ],
            "without_limit": ended[reckless],
        },
    )
