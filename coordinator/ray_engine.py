"""Ray as the engine of simulations and of aggregation: `pip install fedmpq[ray]`, `fedmpq simulate --ray`.

The coordinator's machine runs where the command runs; local trainings and partial sums are Ray tasks, on this machine
or on a cluster (`--ray ADDRESS`). A task gets its plan, blobs and samples and gives planes back; it keeps no state, so
where and in which order tasks run changes no bit of the result.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

from fedmpq.coordinator import partial
from fedmpq.coordinator.aggregate import PartialSum
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.partial import RoundInput, UpdateInput
from fedmpq.coordinator.virtual import Trained, train
from fedmpq.edge_runtime.protocol import PlanMessage
from fedmpq.edge_runtime.trainer import Samples
from fedmpq.errors import MissingExtraError, NetworkError

#: Times that a local cluster is started before giving up.
STARTS = 4


class RayEngine:
    """A connection to a Ray cluster.

    Args:
        address: of a cluster ("auto" for the one this machine belongs to); "local" starts one here.
        workers: trainings and sums at a time; 0 for as many as the cluster has processors.

    Raises:
        MissingExtraError: Ray is not installed; NetworkError: the cluster cannot be reached.
    """

    def __init__(self, address: str = "local", workers: int = 0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("ray", "ray") from None
        self._ray: Any = ray
        options: dict[str, Any] = {"num_cpus": workers or None} if address == "local" else {}
        for left in reversed(range(STARTS)):
            try:
                ray.init(
                    address=address,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
                )
                break
            except Exception as error:  # noqa: BLE001 - Ray raises bare ones
                ray.shutdown()
                first = str(error).split("\n")[0]
                if address == "local" and left and "timed out" in first:
                    continue  # it gives a busy machine half a minute
                raise NetworkError(f"Ray at {address!r} cannot be used: {first}", "is it up? `ray status`") from None
        self.workers = workers or int(ray.cluster_resources().get("CPU", 1))
        self._train = ray.remote(num_cpus=1, max_retries=3)(_train)
        self._part = ray.remote(num_cpus=1, max_retries=3)(_part)
        self._kept: dict[int, tuple[object, Any]] = {}

    def train(
        self, engine: Engine, plan: PlanMessage, blobs: Mapping[str, bytes], samples: Samples
    ) -> Future[tuple[Trained, int]]:
        """Trains a plan on the cluster; the samples travel once."""
        task = self._train.remote(engine.name, engine.program, plan, dict(blobs), self._put(samples))
        found: Future[tuple[Trained, int]] = task.future()
        return found

    def sum(self, given: RoundInput, updates: Iterable[UpdateInput], count: int) -> PartialSum:
        """A `partial.Summer`: shares are summed on the cluster and merged here."""
        common = self._ray.put(given)

        def submit(share: list[UpdateInput]) -> Future[bytes]:
            found: Future[bytes] = self._part.remote(common, share).future()
            return found

        return partial.gather(given, updates, count, self.workers, submit)

    def close(self) -> None:
        """Disconnects, and ends a cluster that was started here."""
        self._kept.clear()
        self._ray.shutdown()

    def _put(self, value: object) -> Any:
        kept = self._kept.get(id(value))
        if kept is None:
            kept = self._kept[id(value)] = (value, self._ray.put(value))
        return kept[1]


@lru_cache(maxsize=4)
def _engine(name: str, program: bytes) -> Engine:
    return Engine(name, program)


def _train(
    name: str, program: bytes, plan: PlanMessage, blobs: Mapping[str, bytes], samples: Samples
) -> tuple[Trained, int]:
    """The task of one local training."""
    began = time.monotonic()
    trained = train(_engine(name, program), plan, blobs, samples)
    return trained, int((time.monotonic() - began) * 1000)


def _part(given: RoundInput, updates: Sequence[UpdateInput]) -> bytes:
    """The task of one partial sum."""
    return partial.part(given, updates)
