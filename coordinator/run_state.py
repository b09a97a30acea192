"""What the parts of a running coordinator share: the run's identity, its journal, its model and its planes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedmpq.coordinator.admission import Allotter, PlanBytes
from fedmpq.coordinator.blobs import BlobStore
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.journal import Journal, Row, ints
from fedmpq.coordinator.layout import Layout
from fedmpq.coordinator.partial import Summer
from fedmpq.coordinator.policy import TABLES
from fedmpq.coordinator.referee import Referee
from fedmpq.coordinator.serving import Serving
from fedmpq.errors import ConfigError, StateError

Clock = Callable[[], float]


@dataclass
class RunState:
    """One run on one data directory.

    Attributes:
        config: the run's configuration.
        layout, program: of the model that is trained.
        journal, blobs: durable state.
        plan_bytes: the planner.
        clock: Unix seconds.
        referee: judges updates for the rule "referee"; None where that rule is not used.
        sums: adds a round's updates up elsewhere (partial.Summer); None does it here.
        traffic: bytes up and down of each device since the round opened.
    """

    config: RunConfig
    layout: Layout
    program: bytes
    journal: Journal
    blobs: BlobStore
    plan_bytes: PlanBytes
    clock: Clock
    sums: Summer | None = None
    referee: Referee | None = None
    traffic: dict[str, list[int]] = field(default_factory=dict)
    _servings: dict[int, Serving] = field(default_factory=dict)
    _round: tuple[int, Row | None] = (-1, None)
    _noise: tuple[str, list[list[int]]] = ("", [])

    @classmethod
    def open(
        cls,
        directory: Path,
        config: RunConfig,
        layout: Layout,
        program: bytes,
        initial: Callable[[], GlobalModel],
        plan_bytes: PlanBytes,
        clock: Clock,
    ) -> RunState:
        """Starts a run in an empty directory or continues the one that is there.

        Args:
            directory: the data directory.
            config: must equal the journalled one when continuing.
            layout: of the model.
            program: of the model.
            initial: the first global model; called only for a new run.
            plan_bytes: the planner.
            clock: Unix seconds.

        Raises:
            StateError: the directory is in use or of another program; ConfigError: another configuration (names the
                key).
        """
        journal = Journal(directory)
        try:
            blobs = BlobStore(directory / "blobs")
            sha256 = hashlib.sha256(program).hexdigest()
            if sha256 != layout.program:
                raise StateError("the program's bytes and layout do not belong together")
            known = journal.meta("program")
            if known is None:
                blobs.put(program)
                model = blobs.put(initial().to_bytes())
                with journal.transaction("new-run"):
                    journal.set_meta("config", json.dumps(config.to_dict(), sort_keys=True))
                    journal.set_meta("model", model)
                    journal.set_meta("thetas", json.dumps(layout.thetas))
                    journal.set_meta("seq", "0")
                    journal.set_meta("started_at", repr(clock()))
                    journal.set_meta("program", sha256)
                    journal.event(clock(), "run-started", detail=config.run)
            elif known != sha256:
                raise StateError(
                    f"{directory} holds a run of program {known[:12]}, not {sha256[:12]}", "choose another directory"
                )
            else:
                _same_config(directory, config, json.loads(journal.meta("config") or "{}"))
        except BaseException:
            journal.close()
            raise
        return cls(config, layout, program, journal, blobs, plan_bytes, clock)

    @property
    def directory(self) -> Path:
        """The data directory."""
        return self.blobs.root.parent

    # --- rounds -------------------------------------------------------------------------------------------------

    def round_row(self) -> Row | None:
        """The latest round; read again only after a transaction."""
        changes = self.journal.changes
        if self._round[0] != changes:
            self._round = (changes, self.journal.row("SELECT * FROM rounds ORDER BY round DESC LIMIT 1"))
        return self._round[1]

    def assignments(self, round_no: int) -> list[Row]:
        """Everyone selected for a round, by name."""
        return self.journal.rows("SELECT * FROM assignments WHERE round=? ORDER BY device", round_no)

    def assignment(self, round_no: int, device: str) -> Row | None:
        """One device's part in a round."""
        return self.journal.row("SELECT * FROM assignments WHERE round=? AND device=?", round_no, device)

    def device(self, device: str) -> Row | None:
        """One device."""
        return self.journal.row("SELECT * FROM devices WHERE device=?", device)

    def late_work(self, update_round: int, device: str) -> tuple[Row, Row] | None:
        """The closed round and assignment that an update of an earlier round may still answer; None if it is too late.

        It is not where the device has been given a part in the present round.
        """
        row = self.round_row()
        if row is None or not 0 < row["round"] - update_round <= self.config.late_rounds:
            return None
        old = self.journal.row("SELECT * FROM rounds WHERE round=?", update_round)
        assignment = self.assignment(update_round, device)
        if old is None or assignment is None or assignment["state"] != "missed" or assignment["plan"] is None:
            return None
        return None if self.assignment(row["round"], device) else (old, assignment)

    # --- models -------------------------------------------------------------------------------------------------

    def model(self, sha256: str) -> GlobalModel:
        """A global model of this run."""
        return GlobalModel.from_bytes(self.blobs.get(sha256), self.layout)

    def serving(self, row: Row) -> Serving:
        """The planes of a round."""
        number = row["round"]
        if number not in self._servings:
            self._servings[number] = Serving(self.model(row["base_model"]), self.config, number, self.program)
            for old in [kept for kept in self._servings if not 0 <= number - kept <= self.config.late_rounds]:
                del self._servings[old]
        return self._servings[number]

    def allotter(self, row: Row | None) -> Allotter:
        """The policy, with the quantisation noise of a round's model where it needs it."""
        if self.config.policy in TABLES:
            sha256 = row["base_model"] if row is not None else self.journal.meta("model") or ""
            if self._noise[0] != sha256:
                self._noise = sha256, noise_of(self.config.policy, self.model(sha256), self.config.scale)
        return Allotter(self.config.policy, self.layout.thetas, self.plan_bytes, self._noise[1])

    def count(self, device: str, up: int = 0, down: int = 0) -> None:
        """Counts payload bytes of a device."""
        pair = self.traffic.setdefault(device, [0, 0])
        pair[0] += up
        pair[1] += down

    def close(self) -> None:
        """Closes the journal and gives up the directory."""
        self.journal.close()


def noise_of(policy: str, model: GlobalModel, scale: str) -> list[list[int]]:
    """The noise table that a policy asks for (policy.TABLES), of a model; empty if it needs none."""
    kind = TABLES.get(policy)
    if kind is None:
        return []
    return model.noise_table(scale) if kind == "error" else model.step_table(scale)


def mean_bits_of(row: Row | None) -> tuple[int, ...] | None:
    """round(n-bar) that a round starts from; None before the first aggregation."""
    if row is None:
        return None
    bits = row["next_bits"] if row["phase"] == "done" else row["mean_bits"]
    return ints(bits) if bits else None


def _same_config(directory: Path, new: RunConfig, old: dict[str, object]) -> None:
    for key, value in new.to_dict().items():
        if old.get(key) != value:
            raise ConfigError(
                f"{directory} holds a run with {key} = {old.get(key)!r}, not {value!r}",
                "start with the same configuration or choose another directory",
            )
