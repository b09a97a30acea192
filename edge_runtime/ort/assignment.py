"""One full-precision plan and what becomes of it on the device: judge, fetch the state, train, answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np

from fedmpq.edge_runtime import faults, memory, sampling
from fedmpq.edge_runtime.assignment import Assignment
from fedmpq.edge_runtime.fetch import Fetch
from fedmpq.edge_runtime.ort import augment, coding
from fedmpq.edge_runtime.ort.bundle import Bundle
from fedmpq.edge_runtime.ort.engine import Engine, Floats, Sgd
from fedmpq.edge_runtime.profile import Limits
from fedmpq.edge_runtime.protocol import FloatPlan, FloatUpdate, digest, encode
from fedmpq.edge_runtime.store import Store
from fedmpq.edge_runtime.trainer import Progress, Samples

log = logging.getLogger("fedmpq.device")


class FloatAssignment(Assignment):
    """Work on one full-precision plan.

    Args:
        plan: as decoded.
        bundle: of the run.
        engine: with the bundle loaded.
        store: keeps blobs and the answer.
        samples: the device's shard.
        limits: memory and threads the user grants.
        step_bytes: what a training step takes, as the trial measured it.
        idle_bytes: resident size of this process before its first training.
    """

    def __init__(
        self,
        plan: FloatPlan,
        bundle: Bundle,
        engine: Engine,
        store: Store,
        samples: Samples,
        limits: Limits,
        step_bytes: int,
        idle_bytes: int,
    ) -> None:
        self.plan: Any = plan
        self.fetch: Fetch | None = None
        self.progress = Progress()
        self.trained = False
        self._bundle, self._engine = bundle, engine
        self._store, self._samples, self._limits = store, samples, limits
        self._planned, self._idle = step_bytes, idle_bytes
        self._start: Floats | None = None
        self._steps: Iterator[Progress] | None = None
        self._began = 0.0

    def start(self) -> None:
        """Judge the plan before anything is downloaded: refuse it, or fetch the state."""
        plan, bundle = self.plan, self._bundle
        if plan.bundle != bundle.sha256 or plan.values != bundle.size:
            self._refuse("program", "the plan is for another bundle than the one profiled")
            return
        limit = memory.measure(self._limits.memory).budget
        if self._planned > limit:
            self._refuse("memory", f"a training step takes {self._planned} bytes, the limit is {limit}", limit)
            return
        self.fetch = Fetch(self._store, self.blob_sizes())

    def blob_sizes(self) -> dict[str, int]:
        """Bytes of the plan's one blob."""
        return {self.plan.state: 4 * self.plan.values}

    def close(self) -> None:
        """Forget the training under way."""
        self._steps = None
        self._start = None

    # --- inside -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._began = monotonic()
        self._start = np.frombuffer(self._blob(self.plan.state), "<f4").astype(np.float32)
        self._engine.load(self._start)
        self.progress = Progress()
        self._steps = train(self._engine, self.plan, self._samples)
        faults.point("training:begun")
        log.info("round %d: training in full precision", self.plan.round)

    def _answer(self) -> None:
        plan = self.plan
        assert self._start is not None
        rng = coding.generator(plan.seed, plan.round, plan.client)
        blob = coding.encode(plan.method, self._engine.state() - self._start, rng)
        self._store.put(blob)
        update = FloatUpdate(
            run=plan.run,
            round=plan.round,
            plan=plan.identity,
            samples=self._samples.count,
            steps=self.progress.steps,
            count=self.progress.count,
            correct=self.progress.correct,
            loss_q16=self.progress.loss_q16,
            measured_bytes=max(0, memory.status("VmHWM") - self._idle),
            train_ms=int((monotonic() - self._began) * 1000),
            blob=digest(blob),
            blob_size=len(blob),
        )
        faults.point("training:finished")
        self._store.update(update=encode(update), settled=False)
        self.trained = True
        faults.point("training:stored")
        log.info("round %d: trained %d steps", plan.round, self.progress.steps)
        self.close()


def train(engine: Engine, plan: FloatPlan, samples: Samples) -> Iterator[Progress]:
    """Trains a plan's epochs on the loaded state; yields the running sums after each step."""
    rates = Sgd(_number(plan.lr), plan.momentum_q15 / 32768, _number(plan.weight_decay))
    progress = Progress()
    chosen = sampling.batches(samples.count, plan.batch, plan.epochs, plan.seed, plan.round, plan.client)
    for indices in chosen:
        images, labels = samples.batch(indices)
        key = (plan.seed, plan.round, plan.client, progress.steps)
        x = augment.centred(images, engine.bundle)
        x = augment.crop_and_flip(x, engine.bundle.crop_pad, key, crop=plan.crop, flip=plan.flip)
        targets = np.frombuffer(labels, np.uint16).astype(np.int64)
        loss, correct = engine.step(augment.network_input(x), targets, rates)
        progress.steps += 1
        progress.loss_q16 += round(loss * 65536) * len(targets)
        progress.correct += correct
        progress.count += len(targets)
        yield progress


def _number(pair: tuple[int, int]) -> float:
    """The value of an fx pair."""
    return float(np.ldexp(float(pair[0]), pair[1]))
