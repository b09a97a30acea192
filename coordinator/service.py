"""A coordinator put together: data directory, broker, machine and server, started and stopped in the right order."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmpq.coordinator import enrolment, kinds, partial, strategies
from fedmpq.coordinator.blobs import BlobStore
from fedmpq.coordinator.broker import LOOPBACK, BrokerTls, ManagedBroker
from fedmpq.coordinator.clock import SteadyClock
from fedmpq.coordinator.config import RunConfig, read_toml
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.coordinator.gate import Gate
from fedmpq.coordinator.journal import FILE, Journal
from fedmpq.coordinator.referee import Referee
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.server import Server
from fedmpq.coordinator.source import Source
from fedmpq.edge_runtime.mqtt import Broker, MqttTransport
from fedmpq.edge_runtime.shard import Shard
from fedmpq.edge_runtime.topics import Topics
from fedmpq.errors import ConfigError, RoundError, StateError, UsageError


@dataclass(frozen=True)
class Where:
    """How a coordinator reaches its fleet.

    Attributes:
        fleet: name of the fleet, part of every topic.
        broker: URL of a broker; None starts a managed one.
        host, port, kind: of the managed broker.
        tls: CA, certificate and key files for `broker`.
        insecure: lets anyone take part who reaches the broker: a managed broker in plain text, no enrolment.
        security: directory of the fleet's authority and enrolments; None for `security` in the data directory.
        workers: processes that sum a round's updates; 0 for this one.
        ray: address of a Ray cluster that does so instead; empty for none.
        advertise: URL that devices are told at enrolment, where it is not the broker's own.
    """

    fleet: str = "fleet"
    broker: str | None = None
    host: str = "127.0.0.1"
    port: int = 1883
    kind: str = "auto"
    tls: tuple[Path | None, Path | None, Path | None] = (None, None, None)
    insecure: bool = False
    security: Path | None = None
    advertise: str = ""
    workers: int = 0
    ray: str = ""


#: What the model of a run is called whose journal does not say.
_UNNAMED = "journal"


def stored_run(directory: Path) -> tuple[RunConfig, Source] | None:
    """Configuration and program of the run in a data directory; None if there is none yet."""
    if not (directory / FILE).is_file():
        return None
    journal = Journal(directory, read_only=True)
    try:
        program_id, config = journal.meta("program"), journal.meta("config")
        name = journal.meta("model_name") or _UNNAMED
    finally:
        journal.close()
    if program_id is None or config is None:
        return None
    program = BlobStore(directory / "blobs").get(program_id)

    def unused() -> Any:
        raise AssertionError("a run that exists keeps its first model")

    known = RunConfig.from_dict(json.loads(config))
    return known, Source(program, kinds.of(known).layout_of(program), unused, name)


def check_same_model(directory: Path, config: RunConfig, stored: Source, model: str) -> None:
    """Refuses to go on with another model than the run's (StateError, both named).

    A file is compared by its program, a model by name by the name of the run's start, where the journal has it.
    """
    if is_file(model):
        asked, known = kinds.of(config).of_file(Path(model)).layout.program, stored.layout.program
        other = "" if asked == known else f"program {known[:12]}, not {asked[:12]} of {model}"
    else:
        other = "" if stored.name in {model, _UNNAMED} else f"model {stored.name}, not {model}"
    if other:
        raise StateError(f"{directory} holds a run of {other}", "leave MODEL out to go on, or choose another --dir")


def is_file(model: str) -> bool:
    """Whether MODEL of the command line is a file with a program, rather than the name of a model."""
    return Path(model).is_file() and not model.endswith(".py")


def make_config(strategy: str, values: Mapping[str, Any], *, paper_literal: bool = False) -> RunConfig:
    """A run's configuration: the defaults, then what the strategy sets, then what the user asked for."""
    if not isinstance(strategy, str):  # of a file or of --set, where it can be any value
        raise ConfigError(f"strategy = {strategy!r} in the run's configuration is of the wrong type", "one name")
    return RunConfig.from_dict({**strategies.choices(strategy, paper_literal=paper_literal), **values})


class Service:
    """A running coordinator.

    Args:
        directory: data directory.
        config: of the run.
        origin: program and first model.
        test: shard that global models are judged on; None for no evaluation.
        where: how it reaches its fleet.
        referee: shard that the rule "referee" judges updates on.
        say: receives lines for the operator.
        clock: Unix seconds; by default a clock that does not jump.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        origin: Source,
        test: Shard | None,
        where: Where,
        *,
        referee: Shard | None = None,
        say: Callable[[str], object] = str,
        clock: Callable[[], float] | None = None,
    ) -> None:
        kind = kinds.of(config)
        if test is not None:
            kind.check_fit(origin.program, test, f"the test shard {test.path}")
        # All that can be wrong with the configuration comes before the run is journalled, for good.
        plan_bytes = kind.plan_bytes(origin.program, config)
        judge = _referee(config, origin, referee) if config.robust == "referee" else None
        self._say = say
        self.run = RunState.open(
            directory,
            config,
            origin.layout,
            origin.program,
            origin.initial,
            plan_bytes,
            clock or SteadyClock(),
        )
        self.broker: ManagedBroker | None = None
        self._workers: Callable[[], object] | None = None
        try:
            self._keep_name(origin)
            self._workers = _hand_out_sums(self.run, where)
            self.machine = kind.machine(self.run, test)
            self.run.referee = judge
            self.enrolment: Enrolment | None = None
            if not where.insecure:
                self.enrolment = Enrolment(where.security or directory / "security", where.fleet)
            address = self._own_broker(directory, where) if where.broker is None else self._given_broker(where)
            transport = MqttTransport(address, f"fmpq-{where.fleet}-coordinator")
            gate = Gate(Topics(where.fleet), self.enrolment)
            self.server = Server(self.machine, transport, where.fleet, say, gate)
            self.server.connect()
        except BaseException:
            self.close(linger_s=0.0)
            raise

    def _keep_name(self, origin: Source) -> None:
        """Journals what the model was called at the start, for `serve MODEL` on the same directory later."""
        journal = self.run.journal
        if origin.name != _UNNAMED and journal.meta("model_name") is None:
            with journal.transaction("new-run"):
                journal.set_meta("model_name", origin.name)

    def _own_broker(self, directory: Path, where: Where) -> Broker:
        """Starts the managed broker; returns how the coordinator reaches it."""
        tls = files = None
        if self.enrolment is not None:
            server = self.enrolment.server_files(enrolment.host_names(where.host))
            files = self.enrolment.coordinator_files()
            tls = BrokerTls(
                server.ca,
                server.certificate,
                server.key,
                self.enrolment.revocation_file(),
                enrolment.COORDINATOR,
                Topics(where.fleet).prefix,
            )
        managed = ManagedBroker(
            directory / "broker", host=where.host, port=where.port, kind=where.kind, tls=tls, warn=self._say
        )
        self.broker = managed
        managed.start()
        self.url = managed.url
        if self.enrolment is None or files is None:
            return Broker.from_url(self.url)
        self.enrolment.remember_broker(where.advertise or enrolment.public_url(where.host, managed.port))
        address = Broker.from_url(self.url, ca=files.ca, certificate=files.certificate, key=files.key)
        return replace(address, server_name=enrolment.SERVER_NAME)

    def _given_broker(self, where: Where) -> Broker:
        """A broker that runs already; UsageError if it is in plain text and that was not asked for."""
        assert where.broker is not None
        ca, certificate, key = where.tls
        address = Broker.from_url(where.broker, ca=ca, certificate=certificate, key=key)
        self.url = str(address)  # without the password that `broker` may hold
        if self.enrolment is not None:
            if not address.tls:
                raise UsageError(
                    f"broker {address} is in plain text", "use mqtts://, or add --insecure to do so anyway"
                )
            self.enrolment.remember_broker(where.advertise or str(address))
        elif not address.tls and address.host not in LOOPBACK:
            self._say(f"broker {address} is in plain text and open: use it on a trusted network only")
        return address

    @property
    def counters(self) -> dict[str, int]:
        """What the broker, the gate and the machine have turned away since the start, by reason."""
        return {**self.server.counters, **(self.broker.refused() if self.broker is not None else {})}

    def _look_after_broker(self) -> None:
        """Restarts a managed broker that has died, and tells it about devices that were taken out."""
        if self.broker is None:
            return
        self.broker.ensure()
        if self.enrolment is not None and self.enrolment.changed():
            self.enrolment.revocation_file()
            self.broker.reload()

    def serve(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        changed: Callable[[RunState], object] | None = None,
        linger_s: float = 2.0,
    ) -> None:
        """Serves until the run is finished (plus `linger_s` for the devices to hear it) or `stop` says so.

        Args:
            stop: asked after every step.
            changed: called after every step that may have moved something, at most a few times a second.
            linger_s: seconds to go on after the last round.

        Raises:
            RoundError: the run cannot go on; NetworkError: the broker is lost for good.
        """
        last_look = 0.0
        end: float | None = None
        while not stop():
            self._look_after_broker()
            try:
                self.server.step()
            except RoundError as error:
                with self.run.journal.transaction("failed") as journal:
                    journal.event(self.run.clock(), "failed", 0, detail=error.message)
                raise
            now = time.monotonic()
            if changed is not None and now - last_look >= 0.25:
                last_look = now
                changed(self.run)
            if self.machine.finished or self.machine.cancelled:
                end = now + linger_s if end is None else end
                if now >= end:
                    break
        if changed is not None:
            changed(self.run)

    def close(self, linger_s: float = 0.2) -> None:
        """Says goodbye, then stops the broker if it is ours, then gives up the directory."""
        if hasattr(self, "server"):
            self.server.close()
            time.sleep(linger_s)
        if self.broker is not None:
            self.broker.stop()
        if self._workers is not None:
            self._workers()
        self.run.close()


def _referee(config: RunConfig, origin: Source, shard: Shard | None) -> Referee:
    """Judges updates on a shard; ConfigError without one."""
    if shard is None:
        raise ConfigError('robust = "referee" needs images to judge with', "--referee SHARD, not the test shard")
    return Referee(Engine("core", origin.program), config, shard)


def _hand_out_sums(run: RunState, where: Where) -> Callable[[], object] | None:
    """Has updates summed by other processes or machines; returns what ends them, None if there are none."""
    if where.ray:
        from fedmpq.coordinator.ray_engine import RayEngine

        cluster = RayEngine(where.ray, where.workers)
        run.sums = cluster.sum
        return cluster.close
    if where.workers:
        pool = ProcessPoolExecutor(where.workers, multiprocessing.get_context("spawn"))
        run.sums = partial.in_processes(pool, where.workers)
        return pool.shutdown
    return None


def parse_setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE of the command line, the value read as JSON where it is, else as a string."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UsageError(f"{text!r} is not KEY=VALUE")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value.strip()


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file in TOML; ConfigError names file and line, or the key."""
    values = read_toml(path)
    try:
        RunConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"configuration {path}: {error.message}", error.hint) from None
    return values
