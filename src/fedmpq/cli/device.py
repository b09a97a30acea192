"""`fedmpq device`: what this device can train, and the agent that makes it a member of a fleet.

Runs without torch, NumPy or any other package than the base ones; rich is imported for tables only.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmpq.cli._common import ByteSize, F, emit, example, human_bytes, json_option, note, print_table
from fedmpq.errors import UsageError

if TYPE_CHECKING:
    from fedmpq.edge_runtime.agent import Agent, Options
    from fedmpq.edge_runtime.artifact import Artifact
    from fedmpq.edge_runtime.mqtt import Broker
    from fedmpq.edge_runtime.protocol import PlanSize, Settings
    from fedmpq.edge_runtime.seal import Seal

#: Where `--insecure` looks for a broker by default.
OPEN_BROKER = "mqtt://127.0.0.1:1883"

_limit_option = click.option(
    "--memory-limit",
    type=ByteSize(),
    help="Bytes a training arena may take, for example 512KiB. Otherwise measured: cgroup limit, free memory.",
)
_threads_option = click.option("--threads", type=click.IntRange(1, 64), default=1, help="Threads of local training.")


def _serial_option(*, required: bool) -> Callable[[F], F]:
    """`--serial URL`."""
    help_ = "Where a device behind a gateway is: /dev/tty…[?baud=N], tcp://HOST:PORT, unix:PATH or exec:COMMAND."

    def add(function: F) -> F:
        return click.option("--serial", required=required, metavar="URL", help=help_)(function)

    return add


def _host_name() -> str:
    """This machine's name as a device name."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in socket.gethostname().lower())
    return name.strip("-_.")[:63] or "device"


@click.group(
    epilog=example(
        "fedmpq device profile model.fmpq --memory-limit 512KiB",
        "fedmpq device run --credentials pi-1.credentials --data client-0.shard",
    )
)
def command() -> None:
    """Profile this device or run it as a member of a fleet."""


@command.command(
    "profile",
    epilog=example(
        "fedmpq device profile",
        "fedmpq device profile model.fmpq --batch 16",
        "fedmpq device profile model.fmpq --batch 1 --serial /dev/ttyACM0",
    ),
)
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(1, 4096), help="Batch size; by default the artifact's.")
@_limit_option
@_threads_option
@_serial_option(required=False)
@json_option
def profile(
    artifact: Path | None,
    batch: int | None,
    memory_limit: int | None,
    threads: int,
    serial: str | None,
    as_json: bool,
) -> None:
    """Measure memory and, for an ARTIFACT, the exact bytes of training it at 1 to 8 bits.

    Each width that fits is measured by a trial step in a child process, or on the device at --serial.
    """
    import platform

    if serial is not None:
        emit(_board_profile(serial, artifact, batch, memory_limit), as_json, _print_profile)
        return

    from fedmpq.edge_runtime import core, memory

    found = memory.measure(memory_limit)
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "isa": core.isa(),
        "isas": core.isas(),
        "cpus": len(os.sched_getaffinity(0)),
        "ram_bytes": found.ram,
        "available_bytes": found.available,
        "cgroup_bytes": found.cgroup,
        "budget_bytes": found.budget,
        "limit_source": found.source,
    }
    if artifact is not None:
        facts.update(_sizes(artifact, batch, found.budget, threads))
    emit(facts, as_json, _print_profile)


def _sizes(path: Path, batch: int | None, budget: int, threads: int) -> dict[str, Any]:
    """The size table of an artifact's program and the largest uniform width that fits."""
    from fedmpq.edge_runtime import core
    from fedmpq.edge_runtime import profile as profiles

    model, settings = _read(path, batch)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        program.write_bytes(model.program)
        sizes, peak = profiles.trials_in_child(core, program, settings, budget, threads)
    return {**_table(model, settings, sizes), "peak_bytes": peak}


def _board_profile(serial: str, path: Path | None, batch: int | None, granted: int | None) -> dict[str, Any]:
    """The same of a device behind a serial line."""
    from fedmpq.edge_runtime.serial.board import RemoteCore
    from fedmpq.edge_runtime.serial.gateway import trial_sizes

    core = RemoteCore.connect(serial)
    try:
        info, found = core.link.info, core.facts()
        facts: dict[str, Any] = {
            "machine": info.board, "isa": info.isa, "isas": [info.isa], "cpus": 1,
            "ram_bytes": found.limit + found.data + found.bss + found.stack_kept, "available_bytes": found.limit,
            "cgroup_bytes": None, "budget_bytes": min(found.limit, granted or found.limit),
            "limit_source": "option" if granted and granted < found.limit else "board",
        }  # fmt: skip
        if path is not None:
            model, settings = _read(path, batch)
            program = core.Program(model.program)
            facts["budget_bytes"] = min(core.budget(program, settings.batch), granted or found.limit)
            facts.update(_table(model, settings, trial_sizes(core, program, settings, facts["budget_bytes"])))
        facts |= {name: value for name, value in core.facts()._asdict().items() if name.startswith("stack") and value}
    finally:
        core.link.close()
    return facts


def _read(path: Path, batch: int | None) -> tuple[Artifact, Settings]:
    """An artifact and the settings of its default plan, with another batch if one is given."""
    from fedmpq.edge_runtime import artifact
    from fedmpq.edge_runtime.protocol import Settings

    model = artifact.read(path)
    settings = Settings(**{name: model.plan[name] for name in Settings.__dataclass_fields__})
    return model, settings if batch is None else replace(settings, batch=batch, micro_batch=None)


def _table(model: Artifact, settings: Settings, sizes: Sequence[PlanSize]) -> dict[str, Any]:
    fitting = [size.bits for size in sizes if size.measured_bytes is not None]
    return {
        "program": model.program_id,
        "batch": settings.batch,
        "plans": [asdict(size) for size in sizes],
        "largest_bits": max(fitting, default=0),
    }


def _print_profile(facts: dict[str, Any]) -> None:
    click.echo(f"{facts['machine']} ({facts['isa']}), {facts['cpus']} processors")
    click.echo(f"memory {human_bytes(facts['ram_bytes'])}, available {human_bytes(facts['available_bytes'])}")
    click.echo(f"a training arena may take {facts['budget_bytes']:,} bytes ({facts['limit_source']})")
    if "plans" in facts:
        rows = [
            [row["bits"], row["planned_bytes"], row["measured_bytes"], "yes" if row["measured_bytes"] else "no"]
            for row in facts["plans"]
        ]
        print_table(["bits", "planned bytes", "measured bytes", "fits"], rows, f"batch {facts['batch']}")
        click.echo(f"largest width in every layer: {facts['largest_bits'] or 'none'}")


#: Options of `run` that `gateway` has not or otherwise: the device behind it has one thread and one engine.
_LOCAL = {"threads", "engine", "pte", "data"}


@command.command(
    "gateway",
    epilog=example(
        "fedmpq device gateway --serial /dev/ttyACM0?baud=921600 --credentials board-1.credentials --data 0.shard",
        "fedmpq device gateway --serial tcp://127.0.0.1:5000 --insecure --name m7 --data client-0.shard",
        "fedmpq device gateway --serial 'exec:ssh pi fedmpq-edge serve' --insecure --name pi --data client-0.shard",
    ),
)
@_serial_option(required=True)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Its shard of labelled images.  [default: the one it holds]"
)
def gateway(serial: str, **options: Any) -> None:
    """Join a microcontroller to a fleet: it trains, this process speaks for it.

    The device runs the firmware of `fedmpq build --what gateway`, or `fedmpq-edge serve`. Weights and images go to
    it over its serial line; a reset or a lost line costs at most one round's training so far.
    """
    from fedmpq.edge_runtime.serial.board import RemoteCore
    from fedmpq.edge_runtime.serial.gateway import GatewayAgent
    from fedmpq.edge_runtime.shard import Shard

    tls = options.pop("ca"), options.pop("cert"), options.pop("key")
    identity = _identity(
        options.pop("credentials"), options.pop("broker"), options.pop("fleet"), options.pop("name"), tls,
        insecure=options.pop("insecure"),
    )  # fmt: skip
    data: Path | None = options.pop("data")
    core = RemoteCore.connect(serial)
    info = core.link.info
    note(f"{info.board} on {core.link.address}: {info.isa} kernels, {info.limit} bytes for training")
    try:
        own = core.resident()
        if data is None and own is None:
            raise UsageError(
                f"{info.board} holds no images of its own",
                "give --data SHARD, or build its firmware with fedmpq build --what gateway --shard SHARD",
            )
        join(
            identity,
            nullcontext(own) if data is None else Shard(data),
            threads=1,
            make=lambda how, transport, store, shard, seal: GatewayAgent(how, transport, store, shard, core, seal=seal),
            **options,
        )
    finally:
        core.link.close()


@command.command(
    "run",
    epilog=example(
        "fedmpq device run --credentials pi-1.credentials --data client-0.shard",
        "fedmpq device run --insecure --name pi-1 --data client-0.shard --memory-limit 512KiB --until-finished",
    ),
)
@click.option(
    "--credentials", type=click.Path(path_type=Path), help="File from `fedmpq coordinator enroll`: names, broker, keys."
)
@click.option("--broker", help="mqtt[s]://[user[:password]@]host[:port], where it is not the one in the credentials.")
@click.option("--insecure", is_flag=True, help="Without credentials, in plain text: whoever is on the network may lie.")
@click.option("--fleet", help="Name of the fleet, part of every topic.  [default: of the credentials, else fleet]")
@click.option("--name", help="Name of this device, unique in its fleet.  [default: of the credentials, else host name]")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="This device's shard of labelled images.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Folder that survives restarts.  [default: ~/.local/state]"
)
@_limit_option
@_threads_option
@click.option(
    "--engine",
    type=click.Choice(["native", "executorch", "onnx", "ort-training"]),
    default="native",
    help="native: integers in the C core; executorch, onnx: the same bits by a .pte's delegate or in onnxruntime; "
    "ort-training: full precision, for fedavg, fedpaq and uveqfed runs.",
)
@click.option(
    "--pte", type=click.Path(path_type=Path), help="Program for --engine executorch.  [default: made on first use]"
)
@click.option("--until-finished", is_flag=True, help="End when the coordinator's run is over.")
@click.option("--ca", type=click.Path(path_type=Path), help="CA certificate of a TLS broker.")
@click.option("--cert", type=click.Path(path_type=Path), help="Client certificate for a TLS broker.")
@click.option("--key", type=click.Path(path_type=Path), help="Key of the client certificate.")
@json_option
def run(
    credentials: Path | None,
    broker: str | None,
    insecure: bool,
    fleet: str | None,
    name: str | None,
    data: Path,
    state: Path | None,
    memory_limit: int | None,
    threads: int,
    engine: str,
    pte: Path | None,
    until_finished: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Join a fleet: profile, fetch, train and upload whenever the coordinator asks.

    Stops at SIGTERM or Ctrl-C. Its state survives being killed at any moment.
    """
    identity = _identity(credentials, broker, fleet, name, (ca, cert, key), insecure=insecure)
    if pte is not None and engine != "executorch":
        raise UsageError("--pte is for --engine executorch")
    from fedmpq.edge_runtime.shard import Shard

    join(identity, Shard(data), state, memory_limit, threads, until_finished, partial(_agent, engine, pte), as_json)


def join(
    identity: tuple[str, str, Broker, Seal | None],
    data: AbstractContextManager[Any],
    state: Path | None,
    memory_limit: int | None,
    threads: int,
    until_finished: bool,
    make: Callable[..., Agent],
    as_json: bool,
) -> None:
    """Run the agent that `make` gives (of options, transport, store, shard, seal) until a signal or the run ends it.

    `identity` is what `_identity` returns, `data` opens the samples; the rest are options of the command.
    """
    from fedmpq.edge_runtime.agent import Options
    from fedmpq.edge_runtime.mqtt import MqttTransport
    from fedmpq.edge_runtime.profile import Limits
    from fedmpq.edge_runtime.store import Store

    fleet, name, address, seal = identity
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with data as shard, Store(state or _state_folder(fleet, name), name) as store:
        transport = MqttTransport(address, f"fmpq-{fleet}-{name}")
        options = Options(fleet, name, Limits(memory_limit, threads), until_finished)
        agent = make(options, transport, store, shard, seal)
        note(f"device {name}: {shard.count} images, broker {address}")
        agent.run(stop.is_set)
        traffic = transport.traffic
    result = {
        "device": name,
        "finished": agent.finished,
        "rounds_trained": agent.rounds_trained,
        "bytes_up": traffic.sent_bytes,
        "bytes_down": traffic.received_bytes,
    }
    emit(result, as_json)


def _agent(
    engine: str, pte: Path | None, options: Options, transport: Any, store: Any, shard: Any, seal: Seal | None
) -> Agent:
    """The agent of an engine; only the native one does without NumPy and a runtime of the export extra."""
    from fedmpq.edge_runtime import core
    from fedmpq.edge_runtime.agent import Agent
    from fedmpq.edge_runtime.profile import trials_in_process

    if engine == "native":
        return Agent(options, transport, store, shard, core, seal=seal)
    if engine == "executorch":
        from fedmpq.export.executorch.engine import ExecutorchCore

        return Agent(options, transport, store, shard, ExecutorchCore(pte), trials=trials_in_process, seal=seal)
    if engine == "onnx":
        from fedmpq.export.onnx_step.engine import OnnxCore

        graph = OnnxCore()
        return Agent(options, transport, store, shard, graph, trials=graph.trials, seal=seal)
    from fedmpq.edge_runtime.ort.agent import FloatAgent

    return FloatAgent(options, transport, store, shard, seal=seal)


def _identity(
    file: Path | None,
    broker: str | None,
    fleet: str | None,
    name: str | None,
    tls: tuple[Path | None, Path | None, Path | None],
    *,
    insecure: bool,
) -> tuple[str, str, Broker, Seal | None]:
    """Fleet, device name, broker and message key: from the credentials or, only if asked for, without any.

    Raises:
        UsageError: neither credentials nor --insecure, or options that contradict the credentials.
    """
    from fedmpq.edge_runtime.credentials import Credentials
    from fedmpq.edge_runtime.mqtt import Broker
    from fedmpq.edge_runtime.topics import checked_name

    if file is None:
        if not insecure:
            raise UsageError(
                "a device needs credentials",
                "`fedmpq coordinator enroll NAME --out FILE` makes them for --credentials FILE; "
                "--insecure joins an open broker without any",
            )
        fleet, name = checked_name(fleet or "fleet", "fleet"), checked_name(name or _host_name(), "device")
        ca, certificate, key = tls
        return fleet, name, Broker.from_url(broker or OPEN_BROKER, ca=ca, certificate=certificate, key=key), None
    if insecure:
        raise UsageError("--credentials and --insecure exclude each other")
    found = Credentials.read(file)
    for option, asked, given in (("--fleet", fleet, found.fleet), ("--name", name, found.device)):
        if asked is not None and asked != given:
            raise UsageError(f"{option} {asked} is not what the credentials say: {given}", f"leave {option} out")
    found.check_date()
    return found.fleet, found.device, Broker.from_credentials(found, broker or ""), found.seal


def _state_folder(fleet: str, name: str) -> Path:
    """Where a device's state lives by default (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "fedmpq" / fleet / name


gateway.params += [option for option in run.params if option.name not in _LOCAL]
