"""A coordinator, a real Mosquitto and thousands of connected devices on one machine: time, bytes and memory.

    python -m benchmarks.fleet round --devices 1000 --tls --out benchmarks/results/fleet-1000.json
    python -m benchmarks.fleet idle --devices 5000 --out benchmarks/results/fleet-idle.json
    python -m benchmarks.fleet soak --devices 20 --rounds 100 --out benchmarks/results/fleet-soak.json

Devices speak the whole protocol; only training is replaced by updates recorded beforehand (`recorded.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import recorded
from fedmpq.coordinator import status
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.service import Service, Where

FLEET = "load"


def serve(settings: dict[str, Any]) -> None:
    """The coordinator's process; ended by SIGTERM it takes its broker along."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    where = Where(FLEET, port=settings["port"], insecure=not settings["secrets"], workers=settings["workers"])
    service = Service(Path(settings["dir"]), RunConfig(**settings["config"]),
                      recorded.load(Path(settings["origin"])), None, where,
                      say=lambda line: print(line, file=sys.stderr, flush=True))  # fmt: skip
    assert service.broker is not None
    print(json.dumps({"url": service.url, "broker": service.broker.pid}), flush=True)
    try:
        service.serve(linger_s=0.5)
    finally:
        service.close()


def rss(pid: int) -> int:
    """Resident bytes of a process, 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def cpu(pid: int) -> float:
    """Seconds of processor time of a process, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody has."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def counts(path: Path) -> dict[str, Any]:
    """The last line of the devices' counts."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else {}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("mode", choices=("round", "idle", "soak"))
    options.add_argument("--devices", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--bits", type=int, default=4)
    options.add_argument("--distinct", type=int, default=20, help="different updates")
    options.add_argument("--tls", action="store_true", help="mutual TLS and seals, as `coordinator serve` by default")
    options.add_argument("--rate", type=float, default=200.0, help="devices that connect in a second")
    options.add_argument("--workers", type=int, default=0, help="processes that sum the updates")
    options.add_argument("--seconds", type=float, default=280.0, help="give up after")
    options.add_argument("--hold", type=float, default=15.0, help="seconds to stay connected (idle)")
    options.add_argument("--dir", type=Path, help="where the data directory lies")
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.dir, ignore_cleanup_errors=True) as folder:
        result = measure(asked, Path(folder))
    print(json.dumps(result, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run."""
    idle = asked.mode == "idle"
    config = {
        "run": "load", "rounds": asked.rounds, "min_devices": asked.devices + idle, "policy": "uniform",
        "deadline_s": 3600.0, "schedule": "constant",
    }  # fmt: skip
    port, directory = free_port(), folder / "run"
    recorded.save(recorded.resnet20(), folder)
    secrets, enrolled = "", 0.0
    if asked.tls:
        began = time.monotonic()
        (folder / "secrets").mkdir()
        enrolment = Enrolment(directory / "security", FLEET)
        for number in range(asked.devices):
            name = f"d{number:05d}"
            enrolment.enroll(name, f"mqtts://127.0.0.1:{port}").write(folder / "secrets" / f"{name}.json")
        enrolled = time.monotonic() - began
        secrets = str(folder / "secrets")
    settings = {
        "config": config, "port": port, "dir": str(directory), "secrets": secrets, "workers": asked.workers,
        "host": "127.0.0.1", "fleet": FLEET, "devices": asked.devices, "bits": asked.bits,
        "distinct": asked.distinct, "origin": str(folder), "rate": asked.rate,
    }  # fmt: skip
    text = json.dumps(settings)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with (folder / "counts").open("wb") as told, (folder / "coordinator.err").open("wb") as trouble:
        coordinator = subprocess.Popen([sys.executable, "-m", "benchmarks.fleet", "--serve", text], env=environment,
                                       stdout=subprocess.PIPE, stderr=trouble, text=True)  # fmt: skip
        load: subprocess.Popen[bytes] | None = None
        try:
            assert coordinator.stdout is not None
            line = coordinator.stdout.readline()
            assert line, (folder / "coordinator.err").read_text()
            broker = json.loads(line)["broker"]
            time.sleep(2.0)
            before, broker_before = rss(coordinator.pid), rss(broker)
            began = time.monotonic()
            load = subprocess.Popen([sys.executable, "-m", "benchmarks.load", text], env=environment, stdout=told)
            curve: list[tuple[float, int, int]] = []
            connected_at, end, rounds_seen = 0.0, began + asked.seconds, 0
            used = broker_used = load_used = 0.0
            connected_rss = broker_rss = 0
            while coordinator.poll() is None and load.poll() is None and time.monotonic() < end:
                time.sleep(0.5)
                now, size = time.monotonic() - began, rss(coordinator.pid)
                journal = Journal(directory, read_only=True)
                row = journal.row("SELECT MAX(round) AS n FROM rounds WHERE phase='done'")
                online = journal.rows("SELECT COUNT(*) AS n FROM devices WHERE admission='admitted' AND online=1")
                journal.close()
                if size:
                    rounds_seen = (row or {}).get("n") or 0
                    curve.append((round(now, 1), rounds_seen, size))
                    used, load_used = max(used, cpu(coordinator.pid)), max(load_used, cpu(load.pid))
                    broker_used, broker_rss = max(broker_used, cpu(broker)), rss(broker) or broker_rss
                if not connected_at and online[0]["n"] >= asked.devices:
                    connected_at, connected_rss = now, size
                    if idle:
                        end = time.monotonic() + asked.hold
            finished = coordinator.poll() == 0
        finally:
            for process in (load, coordinator):
                if process is not None and process.poll() is None:
                    process.terminate()
                    process.wait(20)
    journal = Journal(directory, read_only=True)
    facts = status.status(journal)
    admitted = facts["devices"]["admitted"]
    journal.close()
    seen = counts(folder / "counts")
    seen.pop("at", None)
    rounds = [
        {"round": r["round"], "seconds": round(r["seconds"], 2), "accepted": r["accepted"], "bytes_up": r["bytes_up"],
         "bytes_down": r["bytes_down"]}
        for r in facts["rounds"] if r["seconds"]
    ]  # fmt: skip
    peak = max((size for _, _, size in curve), default=0)
    words = [asked.mode, "--devices", asked.devices, *(["--rounds", asked.rounds] if asked.rounds > 1 else []),
             *(["--tls"] if asked.tls else []),
             *(["--rate", int(asked.rate)] if asked.rate != 200 else [])]  # fmt: skip
    result: dict[str, Any] = {
        "command": "python -m benchmarks.fleet " + " ".join(map(str, words)), "cores": os.cpu_count(),
        "devices": asked.devices, "tls": asked.tls, "model": "ResNet20, 32x32x3, 10 classes", "bits": asked.bits,
        "finished": finished, "admitted": admitted, "enrol_seconds": round(enrolled, 1),
        "connected_seconds": round(connected_at, 1), "rounds": rounds if asked.mode == "round" else len(rounds),
        "coordinator_rss_before": before, "coordinator_rss_connected": connected_rss, "coordinator_rss_peak": peak,
        "bytes_a_connected_device": round((connected_rss - before) / asked.devices),
        "coordinator_cpu_seconds": round(used, 1), "broker_rss_before": broker_before, "broker_rss_after": broker_rss,
        "broker_cpu_seconds": round(broker_used, 1), "devices_cpu_seconds": round(load_used, 1),
        "devices_saw": seen,
    }  # fmt: skip
    if asked.mode == "soak":
        step = max(1, len(curve) // 100)
        result["rss_curve"] = [{"s": s, "round": n, "bytes": size} for s, n, size in curve[::step]]
        seconds = sorted(r["seconds"] for r in rounds)
        result["round_seconds_median"] = seconds[len(seconds) // 2] if seconds else None
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
    else:
        main()
