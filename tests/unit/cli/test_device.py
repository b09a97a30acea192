"""`fedmpq device profile`: memory alone, and the sizes of an artifact's program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpq.edge_runtime import artifact, core
from fedmpq.edge_runtime.weights import LayerBlobs
from tests.helpers import programs


def profile(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpq", "device", "profile", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = programs.resnet(size=(8, 8, 1), width=4, crop_pad=1)
    data = net.build()
    shapes = core.Program(data).weight_layers
    layers = tuple(
        LayerBlobs(s.bits, s.guard, s.step, shape.theta, s.planes, s.params)
        for s, shape in zip(programs.states(net, 4), shapes, strict=True)
    )
    plan = {
        "bits": [4] * len(layers), "batch": 8, "micro_batch": 8, "act_bits": 4, "guard": 0, "momentum": True,
        "threads": 1, "crop": True, "flip": False, "decay_bn": True, "recompute": True,
    }  # fmt: skip
    path = tmp_path / "model.fmpq"
    artifact.write(path, artifact.Artifact(data, layers, plan, {}))
    return path


def test_memory_alone() -> None:
    done = profile("--json", "--memory-limit", "512KiB")
    found = json.loads(done.stdout)
    assert (found["budget_bytes"], found["limit_source"]) == (512 * 1024, "option")
    assert found["ram_bytes"] > 0
    assert "plans" not in found


def test_an_artifact_at_every_width(model: Path) -> None:
    found = json.loads(profile(str(model), "--json", "--batch", "4").stdout)
    assert [row["bits"] for row in found["plans"]] == list(range(1, 9))
    assert all(row["planned_bytes"] == row["measured_bytes"] for row in found["plans"])
    assert (found["largest_bits"], found["batch"]) == (8, 4)
    limit = found["plans"][2]["planned_bytes"]
    less = json.loads(profile(str(model), "--json", "--batch", "4", "--memory-limit", str(limit)).stdout)
    assert less["largest_bits"] == 3
    assert "largest width in every layer: none" in profile(str(model), "--memory-limit", "1000").stdout


def test_a_damaged_artifact_is_one_line(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1])
    done = profile(str(model))
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "model.fmpq" in done.stderr
