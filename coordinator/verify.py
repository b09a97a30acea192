"""Whether a data directory holds what its journal says: every page, blob, model, update and link between rounds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmpq.coordinator import layout, strategies, updates
from fedmpq.coordinator.blobs import BlobStore
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.journal import Journal, Row
from fedmpq.edge_runtime import protocol, topics
from fedmpq.errors import FedmpqError


def verify(directory: Path) -> dict[str, Any]:
    """Checks a data directory without changing it; its coordinator may be running.

    The journal is read as of one moment. A coordinator that commits a round meanwhile removes its updates, so what
    seems wrong is looked at again in a later moment, and only what is still wrong then is a problem.

    Returns:
        What was checked, and a list of problems: what is wrong, where, and what follows from it.
    """
    journal = Journal(directory, read_only=True)
    try:
        checks, problems = _look(directory, journal)
        if problems:
            checks, again = _look(directory, journal)
            problems = [problem for problem in again if problem in problems]
    finally:
        journal.close()
    return {"directory": str(directory), "checked": checks.counts, "problems": problems, "good": not problems}


def _look(directory: Path, journal: Journal) -> tuple[_Checks, list[str]]:
    """Every check on one moment of the journal."""
    checks = _Checks(directory, journal)
    with journal.snapshot():
        return checks, list(checks.all())


class _Checks:
    def __init__(self, directory: Path, journal: Journal) -> None:
        self.journal = journal
        self.blobs = BlobStore(directory / "blobs")
        self.counts = {"rounds": 0, "models": 0, "updates": 0, "blobs": 0, "plans": 0}

    def all(self) -> Iterator[str]:
        """Every problem found; a journal that cannot be read any further is the last one."""
        try:
            yield from self._all()
        except FedmpqError as error:
            yield error.message
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            # What a damaged page gives need not be of its column's type.
            yield f"journal: {type(error).__name__}: {error}: the rest cannot be checked"

    def _all(self) -> Iterator[str]:
        for line in self.journal.damage():
            yield f"journal: {line}"
        program = self.journal.meta("program")
        if program is None:
            yield "journal: names no program: the run was never started whole"
            return
        wanted = self.journal.blob_names()
        bad = set()
        for name in sorted(wanted):
            self.counts["blobs"] += 1
            try:
                self.blobs.get(name)
            except FedmpqError as error:
                bad.add(name)
                yield error.message
        if program in bad:
            return
        config = json.loads(self.journal.meta("config") or "{}")
        self.integer = config.get("strategy") not in strategies.FLOAT_STRATEGIES
        rounds = self.journal.rows("SELECT * FROM rounds ORDER BY round")
        yield from self._chain(rounds)
        if self.integer:
            try:
                self.shapes = layout.of_program(self.blobs.get(program))
            except FedmpqError as error:
                yield f"program {program[:12]}: {error.message}"
                return
            yield from self._models(rounds, bad)
        for row in rounds:
            yield from self._assignments(row, bad)

    def _chain(self, rounds: list[Row]) -> Iterator[str]:
        previous: Row | None = None
        for number, row in enumerate(rounds, 1):
            self.counts["rounds"] += 1
            if row["round"] != number:
                yield f"round {number} is missing: the next one is {row['round']}"
                return
            if previous is not None and row["base_model"] != previous["next_model"]:
                yield f"round {number} does not start from the model of round {number - 1}"
            if row["phase"] == "done" and not row["next_model"]:
                yield f"round {number} is committed without a model"
            if row["phase"] != "done" and row is not rounds[-1]:
                yield f"round {number} is in phase {row['phase']} although round {number + 1} exists"
            previous = row
        done = [row for row in rounds if row["phase"] == "done"]
        if done and self.journal.meta("model") != done[-1]["next_model"]:
            yield "the run's model is not that of its last committed round"

    def _models(self, rounds: list[Row], bad: set[str]) -> Iterator[str]:
        names = {self.journal.meta("model"), *(row[key] for row in rounds for key in ("base_model", "next_model"))}
        for name in sorted(names - bad - {None}):
            self.counts["models"] += 1
            try:
                GlobalModel.from_bytes(self.blobs.get(name), self.shapes)
            except FedmpqError as error:
                yield f"model {name[:12]}: {error.message}"

    def _assignments(self, row: Row, bad: set[str]) -> Iterator[str]:
        where = f"round {row['round']}"
        for assignment in self.journal.rows("SELECT * FROM assignments WHERE round=?", row["round"]):
            device = assignment["device"]
            try:
                if assignment["plan"] is not None:
                    self.counts["plans"] += 1
                    plan: Any = protocol.decode(topics.PLAN, assignment["plan"])
                    if plan.identity != assignment["plan_sha"]:
                        yield f"{where}, {device}: the plan is not the one its hash names"
                if assignment["state"] != "accepted":
                    continue
                if hashlib.sha256(assignment["manifest"] or b"").hexdigest() != assignment["ref"]:
                    yield f"{where}, {device}: the update is not the one that was acknowledged"
                elif self.integer and row["phase"] in {"collect", "aggregate"} and assignment["pack"] not in bad:
                    self.counts["updates"] += 1
                    update = protocol.decode(topics.UPDATE, assignment["manifest"])
                    assert isinstance(update, protocol.Update)
                    found = updates.unpack_file(self.shapes, update.layers, self.blobs.get(assignment["pack"]))
                    updates.check_contents(self.shapes, update.layers, found.__getitem__)
                    for name, data in found.items():
                        if hashlib.sha256(data).hexdigest() != name:
                            yield f"{where}, {device}: blob {name[:12]} of the update is another one"
            except FedmpqError as error:
                yield f"{where}, {device}: {error.message}"
