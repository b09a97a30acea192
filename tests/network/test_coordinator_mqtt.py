"""The coordinator on a real Mosquitto over the loopback interface, with real device agents."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmpq.coordinator import broker, status
from fedmpq.coordinator.broker import ManagedBroker
from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.service import Service, Where
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.mqtt import Broker, MqttTransport
from fedmpq.edge_runtime.profile import Limits, trials_in_process
from fedmpq.edge_runtime.store import Store
from fedmpq.errors import NetworkError
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, samples

pytestmark = pytest.mark.network


@pytest.fixture(scope="module", autouse=True)
def mosquitto() -> None:
    assert broker.find_mosquitto(), "these tests need mosquitto: make system"


ORIGIN = Source(PROGRAM, LAYOUT, first_model, "tiny")


def needed(bits: int, settings: object) -> int:
    from fedmpq.edge_runtime.trainer import core_plan

    plan = core_plan(core, settings, (bits,) * len(LAYOUT.layers))  # type: ignore[arg-type]
    return int(core.plan_memory(core.Program(PROGRAM), plan).total)


class Device(threading.Thread):
    """An agent in a thread."""

    def __init__(
        self, name: str, url: str, directory: Path, limit: int, number: int, enrolment: Enrolment | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        address, seal = Broker.from_url(url), None
        if enrolment is not None:
            credentials = enrolment.enroll(name, url)
            address, seal = Broker.from_credentials(credentials), credentials.seal
        transport = MqttTransport(address, f"fmpq-fleet-{name}")
        self.agent = Agent(
            Options("fleet", name, Limits(limit), until_finished=True, will_delay_s=0),
            transport,
            Store(directory / f"device-{name}", name),
            samples(48, number),
            core,
            seal=seal,
            trials=trials_in_process,
        )

    def run(self) -> None:
        try:
            self.agent.run(self.stop.is_set)
        except BaseException as error:  # noqa: BLE001
            self.error = error


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Service, list[Device]]]]:
    opened: list[tuple[Service, list[Device]]] = []

    def make(bits: tuple[int, ...], **values: object) -> tuple[Service, list[Device]]:
        made = config(**{"min_devices": len(bits), **values})
        service = Service(tmp_path / "run", made, ORIGIN, None, Where(port=0))
        devices = [
            Device(f"d{i}", service.url, tmp_path, needed(n, made.settings) if n else 1000, i, service.enrolment)
            for i, n in enumerate(bits)
        ]
        opened.append((service, devices))
        for device in devices:
            device.start()
        return service, devices

    yield make
    for service, devices in opened:
        for device in devices:
            device.stop.set()
        for device in devices:
            device.join(10)
        service.close()
        assert [device.error for device in devices] == [None] * len(devices)


def serve(service: Service, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    service.serve(stop=lambda: time.monotonic() > end, linger_s=0.5)
    assert service.machine.finished


def test_a_fleet_trains_over_mosquitto(start: Callable[..., tuple[Service, list[Device]]]) -> None:
    service, _ = start((2, 4, 8), rounds=3)
    serve(service)
    facts = status.status(service.run.journal)
    assert [row["accepted"] for row in facts["rounds"]] == [3, 3, 3]
    for row in facts["rounds"]:
        for device in row["devices"]:
            assert device["planned_bytes"] == device["measured_bytes"]
    budgets = [device["budget_bits"] for device in status.devices(service.run.journal)]
    # The arena's alignment leaves room for an eighth or so of a bit above the uniform plan.
    assert [round(budget) for budget in budgets] == [2, 4, 8]
    for row in status.profiles(service.run.journal):
        fitting = [plan for plan in row["plans"] if plan["fits"]]
        assert all(plan["planned_bytes"] == plan["measured_bytes"] for plan in fitting)


def test_a_simulated_run_commits_the_same_model(
    start: Callable[..., tuple[Service, list[Device]]], tmp_path: Path
) -> None:
    """Same names, data, limits and configuration: every byte of the result is that of the run over the broker."""
    service, _ = start((2, 8), rounds=2, min_devices=2)
    serve(service)
    made = service.run.config
    simulated = Simulation(
        tmp_path / "simulated",
        made,
        ORIGIN,
        {f"d{i}": samples(48, i) for i in range(2)},
        None,
        limits={f"d{i}": needed(n, made.settings) for i, n in enumerate((2, 8))},
    )
    simulated.play()
    assert simulated.run.journal.meta("model") == service.run.journal.meta("model")
    simulated.close()


def test_a_device_without_memory_is_refused_and_downloads_nothing(
    start: Callable[..., tuple[Service, list[Device]]],
) -> None:
    service, devices = start((8, 0), rounds=1, min_devices=1)
    serve(service)
    time.sleep(0.5)
    refused = status.status(service.run.journal)["refused"]
    assert [row["device"] for row in refused] == ["d1"]
    assert refused[0]["reason"] == "budget"
    assert f"{needed(1, service.run.config.settings)} bytes" in refused[0]["detail"]
    # The program (64 bytes a record) is all it ever got beside small messages.
    assert devices[1].agent._transport.traffic.received_bytes < 6000


def test_the_broker_may_die(start: Callable[..., tuple[Service, list[Device]]]) -> None:
    service, _ = start((4, 8), rounds=6)
    killed: list[int] = []

    def kill(run: object) -> None:
        row = service.run.round_row()
        assert service.broker is not None
        if row is not None and row["round"] in {2, 4} and row["round"] not in killed and service.broker.pid:
            killed.append(row["round"])
            os.kill(service.broker.pid, signal.SIGKILL)

    end = time.monotonic() + 90
    service.serve(stop=lambda: time.monotonic() > end, changed=kill, linger_s=1.0)
    assert service.machine.finished
    assert killed
    assert all(row["accepted"] == 2 for row in status.status(service.run.journal)["rounds"])


def test_a_killed_coordinator_goes_on_with_the_same_result(tmp_path: Path) -> None:
    """SIGKILL again and again during a run; the finished model is that of an undisturbed run."""
    made = config(min_devices=2, rounds=4, run="test")
    results = []
    for label, kills in (("plain", 0), ("killed", 6)):
        port = free_port()
        directory = tmp_path / label
        devices = [
            Device(f"d{i}", f"mqtt://127.0.0.1:{port}", directory, needed(n, made.settings), i)
            for i, n in enumerate((3, 8))
        ]
        process = coordinator(directory, port)
        wait_for_port(port)
        for device in devices:
            device.start()
        for life in range(1, kills + 1):
            wait_for_life(directory, life)
            time.sleep(0.15 * life)  # a later point of the run in every life
            process.kill()
            process.wait()
            process = coordinator(directory, port)
        assert process.wait(90) == 0
        for device in devices:
            device.join(20)
            assert device.error is None
        journal = Journal(directory, read_only=True)
        results.append(journal.meta("model"))
        trained = journal.rows("SELECT round, device FROM verdicts WHERE of='update' AND verdict='accepted'")
        assert len({(row["round"], row["device"]) for row in trained}) == len(trained) == 8
        journal.close()
    assert results[0] == results[1]


_SERVE = """
import sys, pathlib
from fedmpq.coordinator.service import Service, Where
from tests.helpers.fleet import config
from tests.network.test_coordinator_mqtt import ORIGIN
made = config(min_devices=2, rounds=4, run="test")
service = Service(pathlib.Path(sys.argv[1]), made, ORIGIN, None, Where(port=int(sys.argv[2]), insecure=True))
service.serve(linger_s=1.0)
service.close()
"""


def coordinator(directory: Path, port: int) -> subprocess.Popen[bytes]:
    directory.mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", _SERVE, str(directory), str(port)], cwd=root)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_life(directory: Path, life: int) -> None:
    """Until the coordinator has journalled its start number `life`."""
    for _ in range(400):
        if (directory / "journal.sqlite").is_file():
            journal = Journal(directory, read_only=True)
            seq = int(journal.meta("seq") or 0)
            journal.close()
            if seq >= life:
                return
        time.sleep(0.05)
    raise AssertionError("the coordinator did not start")


def wait_for_port(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("no broker")


# --- the managed broker -------------------------------------------------------------------------------------------


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(NetworkError, match=f"port {port} on 127.0.0.1 cannot be used"):
            ManagedBroker(tmp_path, port=port).start()


def test_an_unreachable_broker_is_one_clear_line(tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    with pytest.raises(NetworkError, match=f"broker {url} is unreachable"):
        Service(tmp_path / "run", config(), ORIGIN, None, Where(broker=url, insecure=True))
    Service(tmp_path / "run", config(), ORIGIN, None, Where(port=0)).close()  # the directory was given back


def test_a_surviving_broker_is_taken_over_with_its_sessions(tmp_path: Path) -> None:
    first = ManagedBroker(tmp_path, port=0)
    first.start()
    second = ManagedBroker(tmp_path, port=first.port)
    second.start()
    assert second.pid == first.pid
    second.stop()
    assert first.pid == 0


def test_a_surviving_broker_with_other_settings_is_ended(tmp_path: Path) -> None:
    said: list[str] = []
    first = ManagedBroker(tmp_path, port=0)
    first.start()
    old = first.pid
    second = ManagedBroker(tmp_path, port=0, warn=said.append)
    second.start()
    assert second.pid not in {0, old}
    assert first.pid == 0
    assert f"process {old}" in said[-1]
    second.stop()


def test_a_dead_broker_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    managed = ManagedBroker(tmp_path, port=0, warn=said.append)
    managed.start()
    os.kill(managed.pid, signal.SIGKILL)
    time.sleep(1.1)
    assert managed.ensure()
    assert managed.pid
    assert not managed.ensure()
    assert "starting it again" in said[-1]
    managed.stop()


def test_amqtt_is_the_fallback_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "find_mosquitto", lambda: None)
    said: list[str] = []
    made = config(min_devices=2, rounds=1)
    service = Service(tmp_path / "run", made, ORIGIN, None, Where(port=0, insecure=True), say=said.append)
    assert "amqtt" in said[0]
    devices = [Device(f"d{i}", service.url, tmp_path, needed(n, made.settings), i) for i, n in enumerate((4, 8))]
    for device in devices:
        device.start()
    serve(service)
    for device in devices:
        device.stop.set()
        device.join(15)
        assert device.error is None
    service.close()
    with pytest.raises(NetworkError, match="no mosquitto"):
        ManagedBroker(tmp_path, kind="mosquitto")
