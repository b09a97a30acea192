"""SIGKILL of a real Mosquitto, again and again during a run: the same model, and nobody trains a round twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from fedmpq.coordinator.service import Service, Where
from fedmpq.coordinator.simulate import Simulation
from tests.faults.test_kills import FULL
from tests.helpers.fleet import config, samples
from tests.network.test_coordinator_mqtt import ORIGIN, Device, needed

pytestmark = pytest.mark.network
KILLS = 20


@pytest.mark.skipif(not FULL, reason="make test-kill")
@pytest.mark.timeout(900)
def test_the_broker_is_killed_at_random_moments(tmp_path: Path) -> None:
    made = config(min_devices=2, rounds=120, deadline_s=600.0)
    service = Service(tmp_path / "run", made, ORIGIN, None, Where(port=0))
    limits = {f"d{i}": needed(n, made.settings) for i, n in enumerate((2, 8))}
    enrolment = service.enrolment  # TLS and seals, as by default
    devices = [Device(name, service.url, tmp_path, limits[name], i, enrolment) for i, name in enumerate(limits)]
    for device in devices:
        device.start()
    draw = random.Random(5)
    kills = 0
    due = time.monotonic() + 0.4

    def kill(run: object) -> None:
        """Between 0.2 and 1 seconds after the broker is back, while rounds go on."""
        nonlocal kills, due
        broker = service.broker
        if broker is not None and broker.pid and kills < KILLS and time.monotonic() >= due:
            os.kill(broker.pid, signal.SIGKILL)
            kills += 1
            due = time.monotonic() + 1.2 + draw.random() * 2.5

    end = time.monotonic() + 600
    service.serve(stop=lambda: time.monotonic() > end, changed=kill, linger_s=1.0)
    assert service.machine.finished
    trained = sum(device.agent.rounds_trained for device in devices)
    for device in devices:
        device.stop.set()
        device.join(20)
        assert device.error is None
    model = service.run.journal.meta("model")
    service.close()
    simulated = Simulation(
        tmp_path / "simulated", made, ORIGIN, {f"d{i}": samples(48, i) for i in range(2)}, None, limits=limits
    )
    simulated.play()
    assert simulated.run.journal.meta("model") == model
    simulated.close()
    assert trained == 2 * made.rounds
    if "FEDMPQ_KILLS_REPORT" in os.environ:
        path = Path(os.environ["FEDMPQ_KILLS_REPORT"])
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**known, "broker": {"kills": kills, "rounds": made.rounds}}, indent=1) + "\n")
    assert kills >= KILLS
