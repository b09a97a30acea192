"""One plan and what becomes of it on the device: judge, fetch, train, answer. Knows no network.

The answer (an update or a refusal, as bytes) is in the store before anyone hears of it; from then on the round is
never trained again, whatever happens to the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import monotonic
from typing import Any

from fedmpq.edge_runtime import faults, memory
from fedmpq.edge_runtime.fetch import Fetch
from fedmpq.edge_runtime.profile import Limits
from fedmpq.edge_runtime.protocol import PlanMessage, Refusal, Update, encode
from fedmpq.edge_runtime.store import Store
from fedmpq.edge_runtime.trainer import (
    Progress,
    Samples,
    check_plan,
    check_samples,
    core_plan,
    finish,
    load_layers,
    train_local,
)
from fedmpq.errors import BudgetError, FedmpqError, LinkError

log = logging.getLogger("fedmpq.device")


class Assignment:
    """Work on one plan.

    Args:
        plan: as decoded.
        core: the core binding (or a module with the same names).
        program: `core.Program` of the run.
        store: keeps blobs and the answer.
        samples: the device's shard.
        limits: memory and threads the user grants.
    """

    def __init__(
        self, plan: PlanMessage, core: Any, program: Any, store: Store, samples: Samples, limits: Limits
    ) -> None:
        self.plan = plan
        self.fetch: Fetch | None = None
        self.progress = Progress()
        self.trained = False
        self._core, self._program, self._store = core, program, store
        self._samples, self._limits = samples, limits
        self._core_plan = core_plan(core, plan.settings, plan.bits, limits.threads)
        self._planned = 0
        self._session: Any = None
        self._steps: Iterator[Progress] | None = None
        self._began = 0.0

    @property
    def fetching(self) -> bool:
        """Blobs are still missing."""
        return self.fetch is not None and not self.fetch.done

    def start(self) -> None:
        """Judge the plan before anything is downloaded: refuse it, or list the blobs to fetch."""
        plan = self.plan
        try:
            if plan.program != self._program.sha256:
                self._refuse("program", "the plan is for another program than the one profiled")
                return
            check_plan(plan, self._program)
            check_samples(self._samples, self._program)
            self._planned = int(self._core.plan_memory(self._program, self._core_plan).total)
        except FedmpqError as error:
            self._refuse("shape", str(error))
            return
        limit = memory.measure(self._limits.memory).budget
        if self._planned > limit:
            self._refuse("memory", f"the plan takes {self._planned} bytes, the limit is {limit}", limit)
            return
        self.fetch = Fetch(self._store, self.blob_sizes())

    def blob_sizes(self) -> dict[str, int]:
        """Bytes of each blob of the plan, from the program."""
        sizes: dict[str, int] = {}
        for layer, shape in zip(self.plan.layers, self._program.weight_layers, strict=True):
            sizes.update(dict.fromkeys(layer.planes, -(-shape.theta // 8)))
            sizes[layer.params] = shape.params_bytes
        return sizes

    def train(self) -> bool:
        """Do one training step (the first call also loads the weights); True while there is more to do."""
        try:
            if self._steps is None:
                self._begin()
            assert self._steps is not None
            progress = next(self._steps, None)
            if progress is not None:
                self.progress = progress
                faults.point("training:step")
                return True
            self._answer()
        except _BlobGoneError:  # a blob was damaged on the disk: fetch it again
            self.fetch = Fetch(self._store, self.blob_sizes())
        except BudgetError as error:
            self._refuse("memory", str(error), error.available)
        except MemoryError:
            self._refuse("memory", "the system has no memory for the arena", memory.measure().budget)
        except LinkError:
            raise  # the device behind a gateway: `serial.gateway` trains the plan again
        except FedmpqError as error:
            self._refuse("internal", str(error))
        return False

    def close(self) -> None:
        """Give the arena back."""
        self._steps = None
        self._session = None

    # --- inside -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._began = monotonic()
        limit = memory.measure(self._limits.memory).budget
        self._session = self._core.Session(self._program, self._core_plan, limit)
        load_layers(self._core, self._session, self.plan, self._blob)
        self.progress = Progress()
        self._steps = train_local(self._core, self._session, self.plan, self._samples)
        faults.point("training:begun")
        log.info("round %d: training at %s bits", self.plan.round, _bits(self.plan.bits))

    def _answer(self) -> None:
        layers = finish(self._session, self.plan)
        for layer in layers:
            for blob in (*layer.planes, layer.params):
                self._store.put(blob)
        update = Update(
            run=self.plan.run,
            round=self.plan.round,
            plan=self.plan.identity,
            samples=self._samples.count,
            steps=self.progress.steps,
            count=self.progress.count,
            correct=self.progress.correct,
            loss_q16=self.progress.loss_q16,
            planned_bytes=self._planned,
            measured_bytes=int(self._session.measured_bytes),
            train_ms=int((monotonic() - self._began) * 1000),
            layers=tuple(layer.reference() for layer in layers),
        )
        faults.point("training:finished")
        self._store.update(update=encode(update), settled=False)
        self.trained = True
        faults.point("training:stored")
        log.info("round %d: trained %d steps", self.plan.round, self.progress.steps)
        self.close()

    def _refuse(self, reason: str, detail: str, limit: int = 0) -> None:
        log.warning("round %d refused: %s", self.plan.round, detail)
        refusal = Refusal(
            run=self.plan.run,
            round=self.plan.round,
            plan=self.plan.identity,
            reason=reason,
            planned_bytes=self._planned,
            limit_bytes=limit,
            detail=printable(detail),
        )
        self._store.update(update=encode(refusal), settled=False)
        self.close()

    def _blob(self, sha256: str) -> bytes:
        blob = self._store.get(sha256)
        if blob is None:
            self.close()
            raise _BlobGoneError
        return blob


class _BlobGoneError(Exception):
    """A blob that was in the store is damaged or gone."""


def printable(text: str) -> str:
    """A line that fits a message's text field."""
    return "".join(c if c.isprintable() else " " for c in text)[:400]


def _bits(bits: tuple[int, ...]) -> str:
    low, high = min(bits), max(bits)
    return str(low) if low == high else f"{low}..{high}"
