"""A local Ray cluster trains and sums: the bytes of one worker, of two, and of no Ray at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpq.coordinator.attacks import Attack
from fedmpq.coordinator.ray_engine import RayEngine
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.errors import NetworkError
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, samples


def models(directory: Path, cluster: RayEngine | None, **values: object) -> list[str]:
    made = config(**{"min_devices": 5, "rounds": 2, **values})
    fleet = {f"d{i}": samples(48, i) for i in range(5)}
    run = Simulation(
        directory, made, Source(PROGRAM, LAYOUT, first_model, "tiny"), fleet, None, attack=Attack("scale", 0.2),
        cluster=cluster,
    )  # fmt: skip
    found = [row["model"] for row in run.play()["rounds"]]
    run.close()
    return found


def test_the_same_bytes_with_one_worker_two_and_none(tmp_path: Path) -> None:
    expected = models(tmp_path / "none", None)
    for workers in (1, 2):
        cluster = RayEngine("local", workers)
        try:
            assert cluster.workers == workers
            assert models(tmp_path / f"ray-{workers}", cluster) == expected
        finally:
            cluster.close()


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(NetworkError, match=r"Ray at 'auto' cannot be used"):
        RayEngine("auto")
