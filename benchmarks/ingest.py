"""How many full ResNet20 updates at 4 bits a coordinator takes in a second: decoded, checked, stored, journalled.

Everything but the socket: the very bytes a broker would deliver go into the machine, and every verdict is on the disk
before it is given. The time of the senders (this process as well) is not counted.

    python -m benchmarks.ingest --devices 200 --out benchmarks/results/ingest.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import recorded
from fedmpq.coordinator import admission
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.machine import Machine
from fedmpq.coordinator.run_state import RunState
from fedmpq.edge_runtime import protocol, topics


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--devices", type=int, default=200)
    options.add_argument("--bits", type=int, default=4)
    options.add_argument("--distinct", type=int, default=50, help="different updates (every device names its own)")
    options.add_argument("--batch", type=int, default=32, help="devices that send at the same time")
    options.add_argument("--dir", type=Path, help="where the data directory lies: the disk that is measured")
    options.add_argument("--out", type=Path)
    options.add_argument("--profile", action="store_true")
    asked = options.parse_args()
    origin = recorded.resnet20()
    config = RunConfig(run="ingest", rounds=1, min_devices=asked.devices, policy="uniform", deadline_s=86400.0)
    planner = admission.planner_of(origin.program, config.settings)
    sizes = [planner((n,) * len(origin.layout.layers)) for n in range(1, 9)]
    with tempfile.TemporaryDirectory(dir=asked.dir) as folder:
        run = RunState.open(Path(folder) / "run", config, origin.layout, origin.program, origin.initial, planner,
                            time.time)  # fmt: skip
        machine = Machine(run)
        names = [f"d{i:05d}" for i in range(asked.devices)]
        began = time.perf_counter()
        for name in names:
            machine.handle(topics.STATE, name, protocol.encode(protocol.DeviceState(name, True, 1, "recorded")))
            profile = recorded.profile_of(name, config.run, origin, sizes, asked.bits)
            machine.handle(topics.PROFILE, name, profile)
        admitted = time.perf_counter() - began
        began = time.perf_counter()
        plans = {message.device: message.payload for message in machine.tick() if message.kind == topics.PLAN}
        configured = time.perf_counter() - began
        recorder = recorded.Recorder(origin.layout)
        spent, cpu, sent = 0.0, 0.0, 0
        profiler = None
        if asked.profile:
            import cProfile

            profiler = cProfile.Profile()

        @contextmanager
        def measured() -> Iterator[None]:
            nonlocal spent, cpu
            if profiler is not None:
                profiler.enable()
            begun, used = time.perf_counter(), time.process_time()
            yield
            spent += time.perf_counter() - begun
            cpu += time.process_time() - used
            if profiler is not None:
                profiler.disable()

        row = run.round_row()
        assert row is not None
        machine.defer = True
        accepted = 0
        for at in range(0, asked.devices, asked.batch):
            waiting: list[tuple[str, bytes]] = []
            made: dict[str, dict[str, bytes]] = {}
            for number, name in list(enumerate(names))[at : at + asked.batch]:
                plan = protocol.decode(topics.PLAN, plans[name])
                assert isinstance(plan, protocol.PlanMessage)
                assert set(plan.bits) == {asked.bits}
                start = dict(run.serving(row).blobs_of(plan.bits))
                layers, made[name] = recorder.layers(plan, start, number % asked.distinct)
                waiting.append((name, recorded.update_of(plan, layers)))
            while waiting:
                sent += sum(len(payload) for _, payload in waiting)
                answers = []
                with measured():
                    for name, payload in waiting:
                        answers += machine.handle(topics.UPDATE, name, payload)
                    answers += machine.settle()
                waiting = []
                for answer in answers:
                    message = protocol.decode(topics.ACK, answer.payload)
                    if isinstance(message, protocol.Need):
                        assert answer.device is not None
                        waiting += [(answer.device, part) for part in recorded.upload(message, made[answer.device])]
                    else:
                        assert isinstance(message, protocol.Ack)
                        accepted += message.accepted
        begun, used = time.perf_counter(), time.process_time()
        machine.tick()
        closing = time.perf_counter() - begun
        used = time.process_time() - used
        done = machine.finished
        run.close()
    assert accepted == asked.devices
    assert done
    result = {
        "command": f"python -m benchmarks.ingest --devices {asked.devices}", "model": "ResNet20, 32x32x3, 10 classes",
        "bits": asked.bits, "devices": asked.devices, "cores": os.cpu_count(),
        "update_bytes": round(sent / asked.devices),
        "together": asked.batch, "ingest_seconds": round(spent, 3), "ingest_cpu_seconds": round(cpu, 3),
        "updates_per_cpu_second": round(asked.devices / cpu, 1), "updates_per_second": round(asked.devices / spent, 1),
        "admission_ms_a_device": round(1000 * admitted / asked.devices, 2),
        "configure_seconds": round(configured, 3), "close_and_aggregate_seconds": round(closing, 3),
        "close_and_aggregate_cpu_seconds": round(used, 3),
        "aggregate_updates_per_second": round(asked.devices / closing, 1),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    if profiler is not None:
        import pstats

        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
