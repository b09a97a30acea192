"""Four devices, three architectures, one global model: what the network run gives is what `simulate` gives.

Two devices are the aarch64 package in an aarch64 Python under qemu-user, one runs on this machine, one is a Cortex-M7
with 256 KB of RAM in qemu-system-arm behind `fedmpq device gateway`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from fedmpq.coordinator import service, status
from fedmpq.coordinator.samples import ArraySamples
from fedmpq.coordinator.simulate import Simulation
from fedmpq.edge_runtime.shard import write_shard
from tests.helpers import arm64, programs
from tests.helpers.emulated_board import emulated
from tests.helpers.origins import origin_of
from tests.helpers.results import keep

pytestmark = [pytest.mark.arm, pytest.mark.timeout(2400)]

#: ResNet8 on 32×32×3: what the M7 has room for.
NET = programs.resnet()
ROUNDS = 3
#: Device -> samples, arena limit (None: as it measures itself).
FLEET: dict[str, tuple[int, int | None]] = {
    "pi-small": (6, 140_000),
    "pi-large": (7, 170_000),
    "desk": (9, 4_000_000),
    "board": (5, None),
}
CHOICES = {
    "run": "mixed", "rounds": ROUNDS, "min_devices": len(FLEET), "batch": 1, "epochs": 1, "lr": 0.02, "momentum": False,
    "deadline_s": 1800.0, "seed": 11, "eval_budgets": False,
}  # fmt: skip


def private_data(name: str) -> tuple[Any, Any]:
    """Images and labels of one device."""
    return programs.images(NET, FLEET[name][0], seed=list(FLEET).index(name))


def command(name: str, broker: str, folder: Path, serial: str) -> list[str]:
    """What a user types for this device."""
    images, labels = private_data(name)
    shard = folder / f"{name}.shard"
    shape, mean = NET.shapes[0], bytes(NET.mean)
    write_shard(shard, images.tobytes(), labels.tobytes(), shape=shape, classes=NET.classes, mean=mean)
    python = str(arm64.python()) if name.startswith("pi-") else sys.executable
    kind = ["gateway", "--serial", serial] if name == "board" else ["run"]
    limit = FLEET[name][1]
    limits = [] if limit is None else ["--memory-limit", str(limit)]
    return [
        python, "-m", "fedmpq", "device", *kind, "--insecure", "--broker", broker, "--fleet", "lab", "--name", name,
        "--data", str(shard), "--state", str(folder / name), *limits, "--until-finished", "--json",
    ]  # fmt: skip


def federate(folder: Path, serial: str) -> tuple[service.Service, dict[str, dict[str, Any]]]:
    """The run over the network; returns its service, finished, and what each device printed at its end."""
    running = service.Service(
        folder / "coordinator", service.make_config("fedmpq", CHOICES), origin_of(NET, "ResNet8"), None,
        service.Where("lab", port=0, insecure=True),
    )  # fmt: skip
    stop = threading.Event()
    served = threading.Thread(target=lambda: running.serve(stop=stop.is_set))
    devices = {}
    for name in FLEET:
        log = (folder / f"{name}.log").open("w")
        devices[name] = subprocess.Popen(
            command(name, running.url, folder, serial), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            text=True, env=arm64.clean_environment() if name.startswith("pi-") else None,
        )  # fmt: skip
    try:
        served.start()
        end = monotonic() + 1500
        while served.is_alive() and monotonic() < end:
            for name, process in devices.items():
                assert process.poll() in (None, 0), (name, (folder / f"{name}.log").read_text()[-800:])
            sleep(0.2)
        assert not served.is_alive(), {name: (folder / f"{name}.log").read_text()[-400:] for name in devices}
        printed = {name: json.loads(process.communicate(timeout=120)[0]) for name, process in devices.items()}
    finally:
        stop.set()
        for process in devices.values():
            process.kill()
            process.wait()
        served.join(20)
    return running, printed


def simulate(folder: Path, limits: dict[str, int]) -> Simulation:
    clients = {name: ArraySamples(*private_data(name), NET.classes) for name in FLEET}
    simulation = Simulation(
        folder, service.make_config("fedmpq", CHOICES), origin_of(NET, "ResNet8"), clients, None,
        limits=limits, workers=1,
    )  # fmt: skip
    simulation.play()
    return simulation


def test_the_global_model_is_that_of_a_simulation(tmp_path: Path) -> None:
    with emulated("stm32f746") as board:
        running, printed = federate(tmp_path, board.url)
    profiles = {row["device"]: row for row in status.profiles(running.run.journal)}
    machines = {name: row["machine"] for name, row in profiles.items()}
    assert machines == {"pi-small": "aarch64", "pi-large": "aarch64", "desk": "x86_64", "board": "stm32f746"}
    assert profiles["board"]["isa"] == "dsp"
    assert profiles["board"]["limit_source"] == "board"
    limits = {name: row["limit_bytes"] for name, row in profiles.items()}
    assert limits["board"] < 256 * 1024
    twin = simulate(tmp_path / "simulated", limits)
    rounds, expected = (status.status(run.journal)["rounds"] for run in (running.run, twin.run))
    assert [r["accepted"] for r in rounds] == [len(FLEET)] * ROUNDS
    for real, simulated in zip(rounds, expected, strict=True):
        bits = [{d["device"]: (d["bits"], d["planned_bytes"]) for d in r["devices"]} for r in (real, simulated)]
        assert bits[0] == bits[1]
        assert all(d["planned_bytes"] == d["measured_bytes"] for d in real["devices"])
    assert {p["rounds_trained"] for p in printed.values()} == {ROUNDS}
    models = [run.blobs.get(run.journal.meta("model") or "") for run in (running.run, twin.run)]
    assert models[0] == models[1]
    last = {d["device"]: d for d in rounds[-1]["devices"]}
    keep(
        "arm-fleet",
        {
            "command": "make test-gateway RESULTS=benchmarks/results",
            "rounds": ROUNDS,
            "model_sha256": hashlib.sha256(models[0]).hexdigest(),
            "simulated_sha256": hashlib.sha256(models[1]).hexdigest(),
            "devices": [
                {
                    "device": name,
                    "machine": profiles[name]["machine"],
                    "isa": profiles[name]["isa"],
                    "limit_bytes": limits[name],
                    "limit_source": profiles[name]["limit_source"],
                    **{key: last[name][key] for key in ("bits", "planned_bytes", "measured_bytes")},
                }
                for name in FLEET
            ],
        },
    )
    running.close()
    twin.close()
