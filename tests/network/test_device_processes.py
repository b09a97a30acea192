"""Device processes as a user starts them, on a real broker: kill -9 in a round, memory of an idle agent, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmpq.coordinator import service, status
from fedmpq.coordinator.broker import ManagedBroker, find_mosquitto
from fedmpq.demo.fleet import DeviceProcess, Member
from fedmpq.edge_runtime.mqtt import Broker, MqttTransport
from fedmpq.edge_runtime.protocol import CoordState, DeviceState, Job, Profile, decode, digest, encode
from fedmpq.edge_runtime.shard import write_shard
from fedmpq.edge_runtime.topics import Topics
from fedmpq.edge_runtime.transport import Incoming
from tests.helpers import messages, programs
from tests.helpers.origins import origin_of
from tests.helpers.waiting import wait_for

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(find_mosquitto() is None, reason="there is no mosquitto on this machine"),
]

NET = programs.resnet(size=(8, 8, 1), width=4, crop_pad=1)
PROGRAM = NET.build()
MIB = 1024 * 1024


def shard_of(path: Path, count: int, seed: int = 0) -> Path:
    pixels, labels = programs.images(NET, count, seed)
    write_shard(path, pixels.tobytes(), labels.tobytes(), shape=(8, 8, 1), classes=10, mean=b"\x7d")
    return path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ManagedBroker]:
    managed = ManagedBroker(tmp_path / "broker", port=0)
    managed.start()
    yield managed
    managed.stop()


def test_a_killed_device_costs_its_round_one_update_and_is_back_in_the_next(tmp_path: Path) -> None:
    choices = {
        "run": "t", "rounds": 2, "min_devices": 3, "batch": 16, "epochs": 1, "lr": 0.05, "deadline_s": 12.0,
        "quorum_percent": 60, "flip": False, "seed": 3,
    }  # fmt: skip
    config = service.make_config("fedmpq", choices)
    where = service.Where("lab", port=0, insecure=True)
    running = service.Service(tmp_path / "c", config, origin_of(NET, "test net"), None, where)
    sizes = {"small-1": 64, "small-2": 64, "large": 30_000}
    folder = tmp_path / "devices"
    folder.mkdir()
    fleet = {
        name: DeviceProcess(
            Member(name, shard_of(tmp_path / f"{name}.shard", count), 10 * MIB), running.url, "lab", folder
        )
        for name, count in sizes.items()
    }
    over = threading.Event()
    served = threading.Thread(target=lambda: running.serve(stop=over.is_set))
    try:
        for device in fleet.values():
            device.start()
        served.start()
        victim = fleet["large"]
        wait_for(lambda: victim.log.exists() and "round 1: training" in victim.log.read_text())
        killed_at = time.time()
        victim.kill()
        # the journal belongs to the serving thread: read it the way `coordinator status` does, from its file
        wait_for(lambda: len(rounds_of(tmp_path / "c")) > 1)
        first = rounds_of(tmp_path / "c")[0]
        assert first["accepted"] == 2
        assert first["selected"] == 3
        assert time.time() - killed_at < 25
        victim.start()
        second = wait_for(lambda: next((r for r in rounds_of(tmp_path / "c")[1:] if r["accepted"] >= 1), None))
        assert second["round"] == 2
        wait_for(lambda: "round 2: training" in victim.log.read_text())
        assert "round 1: trained" not in victim.log.read_text()
        served.join(60)
        assert not served.is_alive()
        last = rounds_of(tmp_path / "c")[1]
        assert last["phase"] == "done"
    finally:
        over.set()
        for device in fleet.values():
            device.stop(2.0)
        served.join(10)
        running.close()


def rounds_of(directory: Path) -> list[dict[str, Any]]:
    from fedmpq.coordinator.journal import Journal

    journal = Journal(directory, read_only=True)
    try:
        rounds: list[dict[str, Any]] = status.status(journal)["rounds"]
        return rounds
    finally:
        journal.close()


def test_an_idle_agent_is_small_and_leaves_politely(tmp_path: Path, broker: ManagedBroker) -> None:
    topics = Topics("lab")
    link = MqttTransport(Broker.from_url(broker.url), "fmpq-lab-coordinator")
    link.connect(topics.for_coordinator())
    job = Job(digest(PROGRAM), len(PROGRAM), messages.settings(batch=16))
    link.publish(topics.coord_state, encode(CoordState("r1", True, 1, job)), retain=True)
    shard = shard_of(tmp_path / "own.shard", 20_000)
    device = DeviceProcess(Member("pi-1", shard, MIB), broker.url, "lab", tmp_path)
    device.start()
    try:
        serve_until_profiled(link, topics)
        time.sleep(1.0)
        status_text = Path(f"/proc/{device.pid}/status").read_text()
        (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", status_text)
        assert int(resident) <= 40 * 1024, f"{resident} kB"
        maps = Path(f"/proc/{device.pid}/maps").read_text()
        assert not [name for name in ("torch", "onnx", "numpy", "pandas") if name in maps]
        os.kill(device.pid, signal.SIGTERM)
        leave = wait_for(lambda: next_state(link, topics), 10)
        assert not leave.online
    finally:
        device.stop(5.0)
        link.close()


def serve_until_profiled(link: MqttTransport, topics: Topics) -> Profile:
    """Answer the device's request for the program and its profile."""
    from fedmpq.edge_runtime.chunks import encode_chunk
    from fedmpq.edge_runtime.protocol import Ack, Request

    end = time.monotonic() + 60
    while time.monotonic() < end:
        event = link.poll(0.5)
        if not isinstance(event, Incoming):
            continue
        message = decode(topics.parse(event.topic).kind, event.payload)
        if isinstance(message, Request):
            chunk = encode_chunk(digest(PROGRAM), PROGRAM, 0)
            link.publish(topics.device("pi-1", "dn/chunk"), chunk)
        if isinstance(message, Profile):
            ack = Ack("r1", 0, "profile", digest(event.payload), True, "", "")
            link.publish(topics.device("pi-1", "dn/ack"), encode(ack))
            return message
    raise AssertionError("no profile came")


def next_state(link: MqttTransport, topics: Topics) -> DeviceState | None:
    event = link.poll(0.1)
    if isinstance(event, Incoming) and topics.parse(event.topic).kind == "state":
        found = decode("state", event.payload)
        return found if isinstance(found, DeviceState) else None
    return None


def run_device(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpq", "device", "run", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_unreachable_broker_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "own.shard", 8)
    state = str(tmp_path / "state")
    done = run_device(
        "--insecure", "--broker", "mqtt://127.0.0.1:1", "--data", str(shard), "--name", "pi", "--state", state, "--json"
    )
    assert done.returncode == 9
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "mqtt://127.0.0.1:1 is unreachable" in errors[0]
    assert json.loads(done.stdout)["error"]["exit_code"] == 9


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--insecure", "--data", "absent.shard"], 4, "absent.shard"),
        (["--insecure", "--data", "own.shard", "--name", "Bad Name"], 2, "Bad Name"),
        (["--insecure", "--data", "own.shard", "--broker", "http://x"], 2, "http://x"),
        (["--insecure", "--data", "truncated.shard"], 4, "truncated.shard"),
        (["--insecure", "--data", "own.shard", "--memory-limit", "lots"], 2, "lots"),
        (["--data", "own.shard"], 2, "a device needs credentials"),
        (["--data", "own.shard", "--credentials", "absent.shard"], 3, "absent.shard"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, options: list[str], code: int, words: str) -> None:
    whole = shard_of(tmp_path / "own.shard", 8).read_bytes()
    (tmp_path / "truncated.shard").write_bytes(whole[:-5])
    options = [str(tmp_path / o) if o.endswith(".shard") else o for o in options]
    done = run_device(*options, "--state", str(tmp_path / "state"))
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
