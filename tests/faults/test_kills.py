"""SIGKILL at every transition and inside every write: the same model, and nobody trains a round twice.

`make test-kill` (FEDMPQ_KILLS=full) passes every point as often as an undisturbed run does; the short form takes one
of each kind.
"""

from __future__ import annotations

import ast
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.killing import COORDINATOR, Hub, Kill, Operated, Outcome, memory_folder

FULL = os.environ.get("FEDMPQ_KILLS") == "full"
ROOT = Path(__file__).parents[2]
#: Points of messages are passed hundreds of times and are all alike: so many of them are drawn.
MESSAGES = 24
DEVICE_KILLS = 100 if FULL else 6
#: Transitions that no undisturbed run makes.
RARE = {"extend", "refusal", "complaint", "damaged", "malformed", "failed", "refused-update", "other"}
#: Those of a run with an operator and with devices whose memory changes.
OPERATED = {"control", "replan"}

report: dict[str, object] = {}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The undisturbed run."""
    outcome = Hub(tmp_path_factory.mktemp("plain") / "run").play()
    assert not outcome.kills
    unharmed(outcome, outcome)
    return outcome


@pytest.fixture(scope="module", autouse=True)
def written_report() -> Iterator[None]:
    yield
    if "FEDMPQ_KILLS_REPORT" in os.environ:
        path = Path(os.environ["FEDMPQ_KILLS_REPORT"])
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**known, **report}, indent=1) + "\n")


def unharmed(outcome: Outcome, plain: Outcome) -> None:
    """The result is that of the undisturbed run, and every (device, round) counts once."""
    assert outcome.model == plain.model, outcome.kills
    expected = {(device, round_no) for device in ("d0", "d1", "d2") for round_no in (1, 2)}
    assert {(device, round_no) for round_no, device in outcome.accepted} == expected, outcome.kills
    assert len(outcome.accepted) == len(expected), outcome.kills
    # Killed between storing a result and saying so, a device's count lacks one; more than one there never is.
    assert set(outcome.stored.values()) == {1}, outcome.kills
    lacking = sum(kill.point in {"device-state:renamed", "device-state:synced"} for kill in outcome.kills)
    assert len(expected) - lacking <= len(outcome.stored) <= len(expected), outcome.kills


def test_every_point_in_the_sources_is_passed(plain: Outcome) -> None:
    """A fault point (or a transaction) that the matrix does not know fails here."""
    passed = {name for points in plain.passed.values() for name in points}
    known = {name.rpartition(":")[0] for name in passed} | RARE | OPERATED
    for folder in ("coordinator", "edge_runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
                    continue
                value = call.args[0]
                if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                    continue
                if call.func.attr == "point":
                    assert value.value in passed, f"{path.name}:{call.lineno}: {value.value} is never passed"
                elif call.func.attr == "transaction":
                    assert value.value in known, f"{path.name}:{call.lineno}: transaction {value.value!r} is new here"


def coordinator_kills(plain: Outcome) -> list[Kill]:
    """Every passage of every point of the coordinator; of the messages a sample."""
    kills = []
    for point, times in sorted(plain.passed[COORDINATOR].items()):
        counts = range(1, times + 1)
        if point.startswith("message:"):
            counts = sorted(random.Random(point).sample(counts, MESSAGES))
        kills += [Kill(COORDINATOR, point, count) for count in counts]
    return kills


def test_a_chain_of_kills_through_a_whole_run(folder: Path, plain: Outcome) -> None:
    """Every point in the order in which a run first passes them (one of each kind in the short form), each in the next
    life of the same coordinator."""
    of: dict[str, list[str]] = {}
    for point in plain.passed[COORDINATOR]:
        if point != "blob:removed":
            of.setdefault(point.partition(":")[0], []).append(point)
    points = [name for kind in of.values() for name in (kind if FULL else random.Random(1).sample(kind, 1))]
    chain = [Kill(COORDINATOR, point, 1, life) for life, point in enumerate(points, 1)]
    outcome = Hub(folder / "chain", kills=chain).play(120)
    unharmed(outcome, plain)
    assert outcome.begun == outcome.stored, outcome.kills  # a coordinator's end never costs a device its work
    assert len(outcome.kills) >= len(points) * 2 // 3, outcome.kills


@pytest.mark.skipif(not FULL, reason="make test-kill")
@pytest.mark.timeout(3600)
def test_coordinator_is_killed_at_every_passage_of_every_point(folder: Path, plain: Outcome) -> None:
    kills = coordinator_kills(plain)
    second = [k.point for k in kills if not k.point.startswith(("new-run:", "message:"))]
    random.Random(2).shuffle(second)
    done: list[Kill] = []
    began = time.monotonic()
    for number, kill in enumerate(kills):
        again = Kill(COORDINATOR, second[number % len(second)], 1, 2)
        outcome = Hub(folder / str(number), kills=[kill, again]).play(60)
        unharmed(outcome, plain)
        assert outcome.begun == outcome.stored, outcome.kills
        done += outcome.kills
    missed = len(kills) - len({(k.point, k.count) for k in done if k.life == 1})
    report["coordinator"] = {
        "points": len({k.point for k in kills}), "passages": len(kills), "kills": len(done),
        "passages_not_reached": missed, "runs": len(kills), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    assert len(done) >= 200
    # Messages and births come in an order that differs from run to run, so their last passages may not come.
    assert missed <= len(kills) // 20


@pytest.mark.timeout(1800)
def test_operated_runs_are_killed_at_wishes_and_smaller_plans(folder: Path) -> None:
    plain = Operated(folder / "plain").play(60)
    unharmed(plain, plain)
    kills = [
        Kill(COORDINATOR, point, count)
        for point, times in sorted(plain.passed[COORDINATOR].items())
        if point.partition(":")[0] in OPERATED
        for count in range(1, times + 1)
    ]
    assert {kill.point.partition(":")[0] for kill in kills} == OPERATED
    second = [kill.point for kill in kills]
    done: list[Kill] = []
    for number, kill in enumerate(kills if FULL else random.Random(4).sample(kills, 3)):
        again = Kill(COORDINATOR, second[number % len(second)], 1, 2)
        outcome = Operated(folder / str(number), kills=[kill, again]).play(60)
        unharmed(outcome, plain)
        done += outcome.kills
    report["operated"] = {"points": len({k.point for k in kills}), "passages": len(kills), "kills": len(done)}
    assert len(done) >= (len(kills) if FULL else 3)  # every run had one, most two


@pytest.mark.timeout(1800)
def test_devices_are_killed_anywhere(folder: Path, plain: Outcome) -> None:
    draw = random.Random(3)
    done: list[Kill] = []
    kinds: set[str] = set()
    extra = 0
    number = 0
    while len(done) < DEVICE_KILLS:
        kills = []
        for device in ("d0", "d1", "d2"):
            points = sorted(plain.passed[device])
            rest = [p for p in points if p not in kinds] or points
            point = draw.choice(rest)
            kinds.add(point)
            count = draw.randint(1, plain.passed[device][point])
            kills.append(Kill(device, point, count))
            kills.append(Kill(device, draw.choice(points), 1, 2))
        outcome = Hub(folder / str(number), kills=kills).play(60)
        unharmed(outcome, plain)
        # A round begins again only where the kill came before its result was stored.
        again = outcome.begun.total() - outcome.stored.total()
        cut = ("training:begun", "training:step", "training:finished", "device-blob:", "device-state:")
        assert again <= sum(kill.point.startswith(cut) for kill in outcome.kills), outcome.kills
        extra += again
        done += outcome.kills
        number += 1
    report["devices"] = {
        "kills": len(done), "points": len({k.point for k in done}), "runs": number,
        "trainings_cut_and_begun_again": extra, "results_stored_twice": 0,
    }  # fmt: skip
