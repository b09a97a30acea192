"""A fleet of processes that can be killed at any fault point: the parent is the broker, every participant a fork.

`Hub.play` runs a federation to its end; a `Kill` ends one participant with SIGKILL at the n-th passage of a named
point, and the participant is started again on the directory it left. Nothing runs on the way out of a killed process:
no rollback, no `finally`, no flush.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar

from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.machine import Machine
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.server import Server
from fedmpq.edge_runtime import core, faults, topics
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.profile import Limits, trials_in_process
from fedmpq.edge_runtime.protocol import CoordState, FloatProfile, Job, Profile, RoundState, decode, encode
from fedmpq.edge_runtime.store import Store
from fedmpq.edge_runtime.topics import matches
from fedmpq.edge_runtime.transport import Connected, Event, Incoming, Traffic, Will
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, samples

COORDINATOR = "coordinator"
#: Device clocks run so much faster than the wall's, so that a lost message is repeated after a tenth of a second.
HASTE = 20


@dataclass(frozen=True)
class Kill:
    """Ends `who` at the `count`-th passage of `point` in its life number `life` (from 1)."""

    who: str
    point: str
    count: int = 1
    life: int = 1


class PipeTransport:
    """A participant's link to the hub; see `transport.Transport`."""

    def __init__(self, pipe: Connection) -> None:
        self.traffic = Traffic()
        self._pipe = pipe
        self._events: queue.Queue[Event] = queue.Queue()

    def connect(self, subscriptions: Iterable[str], will: Will | None = None, timeout_s: float = 10.0) -> None:
        self._pipe.send(("connect", tuple(subscriptions), will))
        threading.Thread(target=self._read, daemon=True).start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        self._pipe.send(("publish", topic, payload, retain))
        return True

    def poll(self, timeout_s: float) -> Event | None:
        try:
            return self._events.get(timeout=timeout_s / HASTE) if timeout_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def backlog(self) -> int:
        return 0

    def close(self, *, graceful: bool = True) -> None:
        self._pipe.send(("close", graceful))

    def _read(self) -> None:
        while True:
            try:
                self._events.put(self._pipe.recv())
            except EOFError:
                return


@dataclass
class Participant:
    """One forked process as the parent sees it."""

    name: str
    pid: int
    pipe: Connection
    patterns: tuple[str, ...] = ()
    will: Will | None = None


@dataclass
class Outcome:
    """What a run left.

    Attributes:
        model: SHA-256 of the finished global model.
        kills: points at which a participant was killed.
        begun, stored: how often each (device, round) began training, and stored a result.
        accepted: (round, device) of every accepted update, with repeats.
        passed: how often the coordinator's and the devices' lives passed each point.
    """

    model: str | None
    kills: list[Kill]
    begun: Counter[tuple[str, int]]
    stored: Counter[tuple[str, int]]
    accepted: list[tuple[int, str]]
    passed: dict[str, Counter[str]] = field(default_factory=dict)


class Hub:
    """Broker and supervisor of one run.

    Args:
        folder: everything lies here.
        bits: average bits whose plan each device's memory holds.
        kills: what to kill when.
        values: of the run's configuration.
    """

    def __init__(
        self, folder: Path, bits: Sequence[int] = (2, 4, 8), kills: Iterable[Kill] = (), **values: Any
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.config = config(**{"min_devices": len(bits), "rounds": 2, "batch": 32, "deadline_s": 600.0, **values})
        self.limits = {f"d{i}": plan_limit(self.config, n) for i, n in enumerate(bits)}
        self.kills = {(kill.who, kill.life): kill for kill in kills}
        self.lives: Counter[str] = Counter()
        self.done: list[Kill] = []
        self.running: dict[str, Participant] = {}
        self.retained: dict[str, bytes] = {}
        #: The last messages, for `_stuck`.
        self.traffic: deque[str] = deque(maxlen=200)

    def play(self, seconds: float = 40.0) -> Outcome:
        """Runs to the end; AssertionError if it does not come."""
        end = time.monotonic() + seconds
        for name in (COORDINATOR, *self.limits):
            self.start(name)
        try:
            while COORDINATOR in self.running:
                assert time.monotonic() < end, self._stuck()
                self.turn()
        finally:
            for participant in self.running.values():
                os.kill(participant.pid, signal.SIGKILL)
                os.waitpid(participant.pid, 0)
                participant.pipe.close()
        return self.outcome()

    def _stuck(self) -> str:
        """What is known of a run that does not end, with where each of its processes stands."""
        for participant in self.running.values():
            os.kill(participant.pid, signal.SIGUSR1)
        time.sleep(1)
        stacks = {path.name: path.read_text()[:2000] for path in self.folder.glob("stack-*") if path.stat().st_size}
        journal = Journal(self.folder / "run", read_only=True)
        answers = [
            list(row.values()) for row in journal.rows("SELECT round, device, state, reason, bits FROM assignments")
        ]
        events = [list(row.values()) for row in journal.rows("SELECT * FROM events ORDER BY rowid DESC LIMIT 30")]
        journal.close()
        told = self.retained.get(topics.Topics("fleet").round)
        errors = {path.name: path.read_text()[-400:] for path in self.folder.glob("error-*")}
        return (
            f"stuck after {self.done}; lives {dict(self.lives)}, running {sorted(self.running)}, "
            f"round {decode(topics.ROUND, told) if told else None}, {errors}\n"
            f"answers {answers}\nevents, last first {events}\n"
            + "\n".join(self.traffic)
            + "\n"
            + "\n".join(f"--- {name}\n{stack}" for name, stack in sorted(stacks.items()))
        )

    def start(self, name: str) -> None:
        self.lives[name] += 1
        life = self.lives[name]
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                for other in self.running.values():
                    other.pipe.close()
                ours.close()
                faulthandler.register(signal.SIGUSR1, (self.folder / f"stack-{name}-{life}").open("w"))
                self._live(name, life, PipeTransport(theirs))
                status = 0
            except BaseException:
                import traceback

                (self.folder / f"error-{name}-{life}").write_text(traceback.format_exc())
                raise
            finally:
                os._exit(status)
        theirs.close()
        self.running[name] = Participant(name, pid, ours)

    def turn(self) -> None:
        """Serves whoever has something to say."""
        for ready in wait([p.pipe for p in self.running.values()], 0.2):
            participant = next((p for p in self.running.values() if p.pipe is ready), None)
            if participant is None:
                continue
            try:
                message = participant.pipe.recv()
            except (EOFError, OSError):
                self._ended(participant, graceful=False)
                continue
            if message[0] == "connect":
                participant.patterns, participant.will = message[1], message[2]
                self._deliver(participant, Connected())
                for topic, payload in list(self.retained.items()):
                    if any(matches(pattern, topic) for pattern in participant.patterns):
                        self._deliver(participant, Incoming(topic, payload, retained=True))
            elif message[0] == "publish":
                self.route(*message[1:])
            else:
                participant.will = None

    def route(self, topic: str, payload: bytes, retain: bool) -> None:
        self.traffic.append(f"{time.monotonic():.3f} {topic} {len(payload)} {payload[:120]!r}")
        if retain:
            self.retained[topic] = payload
        for participant in list(self.running.values()):
            if any(matches(pattern, topic) for pattern in participant.patterns):
                self._deliver(participant, Incoming(topic, payload))

    def _deliver(self, participant: Participant, event: Event) -> None:
        with contextlib.suppress(OSError):  # it has ended: its messages are read first, then its end is noticed
            participant.pipe.send(event)

    def _ended(self, participant: Participant, *, graceful: bool) -> None:
        name = participant.name
        participant.pipe.close()
        del self.running[name]
        _, status = os.waitpid(participant.pid, 0)
        if not os.WIFSIGNALED(status):
            trouble = self.folder / f"error-{name}-{self.lives[name]}"
            assert os.WEXITSTATUS(status) == 0, trouble.read_text() if trouble.is_file() else f"{name}: {status}"
            self.left(name)
            return
        kill = self.kills.get((name, self.lives[name]))
        assert kill is not None, f"{name} was killed by somebody else"
        self.done.append(kill)
        if participant.will is not None:
            self.route(participant.will.topic, participant.will.payload, retain=True)
        self.start(name)

    def left(self, name: str) -> None:
        """A participant has ended by itself."""

    # --- in the forked processes ----------------------------------------------------------------------------------

    def _live(self, name: str, life: int, transport: PipeTransport) -> None:
        passed: Counter[str] = Counter()
        kill = self.kills.get((name, life))
        note: Callable[[str], None] = lambda point: None  # noqa: E731

        def hook(point: str) -> None:
            passed[point] += 1
            note(point)
            if kill is not None and kill.point == point and passed[point] == kill.count:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

        faults.hook = hook
        if name == COORDINATOR:
            self._coordinate(transport)
        else:
            agent = self._agent(name, transport)

            def note(point: str) -> None:
                if point in {"training:begun", "training:stored"} and agent.assignment is not None:
                    line = f"{point} {agent.assignment.plan.round}\n"
                    log = os.open(self.folder / f"trained-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                    os.write(log, line.encode())
                    os.close(log)

            agent.run()
        (self.folder / f"passed-{name}-{life}.json").write_text(json.dumps(passed))

    def _coordinate(self, transport: PipeTransport) -> None:
        run = RunState.open(self.folder / "run", self.config, LAYOUT, PROGRAM, first_model, plan_bytes_of(self.config),
                            time.time)  # fmt: skip
        server = Server(Machine(run), transport, "fleet")
        server.connect()
        while not server.machine.finished:
            server.step()
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            server.step()
        run.close()

    agent_type: type[Agent] = Agent

    def _agent(self, name: str, transport: PipeTransport) -> Agent:
        return self.agent_type(
            Options("fleet", name, Limits(self.limits[name]), until_finished=True, will_delay_s=0),
            transport,
            Store(self.folder / f"device-{name}", name),
            samples(64, int(name[1:])),
            core,
            clock=lambda: time.monotonic() * HASTE,
            trials=trials_in_process,
        )

    # --- afterwards -------------------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        journal = Journal(self.folder / "run", read_only=True)
        rows = journal.rows("SELECT round, device FROM verdicts WHERE of='update' AND verdict='accepted'")
        model = journal.meta("model")
        journal.close()
        begun: Counter[tuple[str, int]] = Counter()
        stored: Counter[tuple[str, int]] = Counter()
        for name in self.limits:
            log = self.folder / f"trained-{name}"
            for line in log.read_text().splitlines() if log.is_file() else ():
                point, round_no = line.split()
                (begun if point == "training:begun" else stored)[name, int(round_no)] += 1
        passed: dict[str, Counter[str]] = {}
        for path in self.folder.glob("passed-*.json"):
            passed.setdefault(path.name.split("-")[1], Counter()).update(json.loads(path.read_text()))
        accepted = [(row["round"], row["device"]) for row in rows]
        return Outcome(model, self.done, begun, stored, accepted, passed)


class Changing(Agent):
    """A device whose memory changes: d1's has shrunk when its plan comes, d2's after its first round.

    What d1 profiles is more than it has, so it refuses its first plan of every round; d2 tells its new budget between
    rounds.
    """

    SHRUNK: ClassVar[dict[str, int]] = {"d1": 3, "d2": 2}

    def _make_profile(self, coord: CoordState) -> Profile | FloatProfile:
        profile = super()._make_profile(coord)
        if self.options.device == "d1":
            self.options = replace(self.options, limits=Limits(self._shrunk(coord)))
        return profile

    def _look_at_memory(self) -> None:
        profile = None if self._profile is None else decode(topics.PROFILE, self._profile)
        if self.options.device != "d2" or not isinstance(profile, Profile) or self._store.record.update is None:
            return
        assert self._coord is not None
        small = self._shrunk(self._coord)
        if profile.budget_bytes != small:
            self._profile = encode(replace(profile, budget_bytes=small))
            self._profile_settled = False
            self._timer["profile"].reset()

    def _shrunk(self, coord: CoordState) -> int:
        assert isinstance(coord.job, Job)
        return plan_limit(config(batch=coord.job.settings.batch), self.SHRUNK[self.options.device])


class Operated(Hub):
    """A run that is paused after its first round, cancelled in its second and resumed both times, on changing devices.

    The parent is the operator. Each wish waits for what it depends on to be journalled, so every run of the scenario
    has the same result.
    """

    agent_type = Changing
    #: The operator's wishes, each with the phase and round in which it is made.
    WISHES = (("pause", "collect", 1), ("resume", "waiting", 1), ("cancel", "collect", 2), ("resume", "cancelled", 2))
    _wishes = 0

    def turn(self) -> None:
        super().turn()
        request = self.folder / "run" / "request"
        told = self.retained.get(topics.Topics("fleet").round)
        if self._wishes == len(self.WISHES) or told is None or request.exists():
            return
        verb, phase, number = self.WISHES[self._wishes]
        state = decode(topics.ROUND, told)
        assert isinstance(state, RoundState)
        if (state.phase, state.round) != (phase, number) or (phase == "waiting" and not self._told_budget()):
            return
        temporary = request.with_name(".request")
        temporary.write_text(verb)
        temporary.replace(request)
        self._wishes += 1

    def left(self, name: str) -> None:
        """Devices end with a cancelled run; a supervisor starts them again."""
        if name != COORDINATOR and COORDINATOR in self.running:
            self.start(name)

    def _told_budget(self) -> bool:
        """Whether the coordinator has journalled the budget that d2 has from the second round on."""
        journal = Journal(self.folder / "run", read_only=True)
        row = journal.row("SELECT limit_bytes FROM devices WHERE device='d2'")
        journal.close()
        return row is not None and row["limit_bytes"] == plan_limit(self.config, Changing.SHRUNK["d2"])


def memory_folder() -> str | None:
    """A file system in memory where there is one: a kill keeps what a process wrote, synced or not."""
    memory = Path("/dev/shm")
    return str(memory) if os.access(memory, os.W_OK) else None


def plan_limit(made: RunConfig, bits: int) -> int:
    """Arena bytes of a uniform plan."""
    return plan_bytes_of(made)((bits,) * len(LAYOUT.layers))


def plan_bytes_of(made: RunConfig) -> Callable[[tuple[int, ...]], int]:
    from fedmpq.coordinator.admission import planner_of

    return planner_of(PROGRAM, made.settings)


__all__ = ["COORDINATOR", "Hub", "Kill", "Operated", "Outcome"]
