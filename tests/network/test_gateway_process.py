"""`fedmpq device gateway` as a user starts it, on a real broker: a mixed fleet equals its simulation; bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedmpq.coordinator import service, status
from fedmpq.coordinator.broker import find_mosquitto
from fedmpq.coordinator.samples import ArraySamples
from fedmpq.coordinator.simulate import Simulation
from fedmpq.edge_runtime import artifact
from fedmpq.edge_runtime.shard import write_shard
from tests.helpers import edge, programs
from tests.helpers.artifacts import artifact_of
from tests.helpers.origins import origin_of
from tests.network.test_device_processes import NET

pytestmark = pytest.mark.network
needs_broker = pytest.mark.skipif(find_mosquitto() is None, reason="there is no mosquitto on this machine")

FLEET = {"desk": 40, "board": 24}
CHOICES = {
    "run": "mixed", "rounds": 2, "min_devices": 2, "batch": 8, "epochs": 1, "lr": 0.05, "deadline_s": 120.0, "seed": 5,
}  # fmt: skip


def private_data(name: str) -> tuple[Any, Any]:
    return programs.images(NET, FLEET[name], list(FLEET).index(name))


def shard_of(name: str, folder: Path) -> Path:
    images, labels = private_data(name)
    path = folder / f"{name}.shard"
    write_shard(path, images.tobytes(), labels.tobytes(), shape=(8, 8, 1), classes=10, mean=b"\x7d")
    return path


def command(name: str, broker: str, folder: Path) -> list[str]:
    """The board holds its images itself."""
    shard = shard_of(name, folder)
    serve = f"exec:{edge.native()} serve {shard} --limit 200000"
    kind = ["gateway", "--serial", serve] if name == "board" else ["run", "--data", str(shard)]
    limit = [] if name == "board" else ["--memory-limit", "100000"]
    return [
        sys.executable, "-m", "fedmpq", "device", *kind, "--insecure", "--broker", broker, "--fleet", "lab",
        "--name", name, "--state", str(folder / name), *limit, "--until-finished", "--json",
    ]  # fmt: skip


@needs_broker
def test_a_fleet_with_a_gateway_gives_the_model_of_its_simulation(tmp_path: Path) -> None:
    config = service.make_config("fedmpq", CHOICES)
    where = service.Where("lab", port=0, insecure=True)
    running = service.Service(tmp_path / "c", config, origin_of(NET, "test net"), None, where)
    stop = threading.Event()
    served = threading.Thread(target=lambda: running.serve(stop=stop.is_set))
    devices = [subprocess.Popen(command(name, running.url, tmp_path), stdout=subprocess.PIPE) for name in FLEET]
    try:
        served.start()
        served.join(120)
        assert not served.is_alive()
        resident = Path(f"/proc/{devices[1].pid}/status").read_text()
        printed = [json.loads(device.communicate(timeout=60)[0]) for device in devices]
    finally:
        stop.set()
        for device in devices:
            device.kill()
            device.wait()
        served.join(20)
    assert [row["rounds_trained"] for row in printed] == [2, 2]
    peak = re.search(r"VmHWM:\s+(\d+) kB", resident)
    assert peak is None or int(peak[1]) <= 40 * 1024
    limits = {row["device"]: row["limit_bytes"] for row in status.profiles(running.run.journal)}
    assert limits["desk"] == 100_000
    assert 190_000 < limits["board"] < 200_000
    clients = {name: ArraySamples(*private_data(name), NET.classes) for name in FLEET}
    twin = Simulation(tmp_path / "s", config, origin_of(NET, "test net"), clients, None, limits=limits, workers=1)
    twin.play()
    models = [run.blobs.get(run.journal.meta("model") or "") for run in (running.run, twin.run)]
    assert models[0] == models[1]
    running.close()
    twin.close()


@pytest.mark.parametrize(
    ("serial", "code", "words"),
    [
        ("/dev/absent", 9, "/dev/absent?baud=115200 cannot be opened"),
        ("tcp://127.0.0.1:1", 9, "tcp://127.0.0.1:1 cannot be opened"),
        ("exec:false", 9, "exec:false is gone"),
        ("http://board", 2, "is not an address of a device"),
        ("/dev/ttyS0?baud=12", 2, "baud"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, serial: str, code: int, words: str) -> None:
    options = ["--insecure", "--data", str(shard_of("desk", tmp_path)), "--serial", serial]
    done = subprocess.run(
        [sys.executable, "-m", "fedmpq", "device", "gateway", *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert words in line


def test_without_data_the_device_must_hold_images(tmp_path: Path) -> None:
    serial = f"exec:{edge.native()} serve --limit 200000"
    done = subprocess.run(
        [sys.executable, "-m", "fedmpq", "device", "gateway", "--insecure", "--serial", serial],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "fedmpq-edge holds no images of its own (give --data SHARD" in done.stderr.splitlines()[-1]


def test_profile_of_a_device_behind_a_line(tmp_path: Path) -> None:
    model = tmp_path / "model.fmpq"
    artifact.write(model, artifact_of(NET, 2, 8))
    serial = f"exec:{edge.native()} serve --limit 200000"
    options = ["--serial", serial, "--batch", "4", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "fedmpq", "device", "profile", str(model), *options],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert (facts["machine"], facts["limit_source"], facts["available_bytes"]) == ("fedmpq-edge", "board", 200_000)
    assert 199_000 < facts["budget_bytes"] < 200_000 - 4 * 66
    assert [row["planned_bytes"] for row in facts["plans"]] == [row["measured_bytes"] for row in facts["plans"]]
    assert facts["largest_bits"] == 8
