"""`fedmpq coordinator`: serve a fleet, and look into a run from its data directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmpq.cli._common import emit, example, json_option, note
from fedmpq.cli._deploy import deploy, inference_option, print_forms
from fedmpq.cli._run_tables import print_devices, print_profiles, print_status, print_verified
from fedmpq.errors import UsageError

if TYPE_CHECKING:
    from fedmpq.coordinator.config import RunConfig
    from fedmpq.coordinator.journal import Journal
    from fedmpq.coordinator.service import Service
    from fedmpq.coordinator.source import Source
    from fedmpq.edge_runtime.shard import Shard

_dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fedmpq-run"),
    help="The coordinator's data directory: journal, models, updates.",
)


_security_option = click.option(
    "--security",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the fleet's authority and enrolments; share it between runs.  [default: DIR/security]",
)


@click.group(
    epilog=example(
        "fedmpq coordinator serve resnet8 --test shards/test.shard --rounds 10 --devices 4",
        "fedmpq coordinator status --dir fedmpq-run",
    )
)
def command() -> None:
    """Serve a fleet and look into it."""


@command.command(
    "serve",
    epilog=example(
        "fedmpq coordinator serve resnet20 --test shards/test.shard --rounds 50 --devices 10",
        "fedmpq coordinator serve digits.fmpq --listen 0.0.0.0 --set lr=0.05",
    ),
)
@click.argument("model", required=False)
@_dir_option
@click.option("--test", type=click.Path(path_type=Path), help="Shard of images that every global model is judged on.")
@click.option("--referee", type=click.Path(path_type=Path), help="Shard that --set robust=referee judges updates on.")
@click.option(
    "--strategy",
    help="fedmpq (default), aqfl, fpq8, an ablation-… setting; for devices with --engine ort-training: fedavg, fedpaq, "
    "fedpaq8, uveqfed, uveqfed4.",
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of the run (10).")
@click.option("--devices", type=click.IntRange(1), help="Admitted devices that must be there to start a round (1).")
@click.option("--epochs", type=click.IntRange(1, 1000), help="Local epochs of a round (1).")
@click.option("--batch", type=click.IntRange(1, 4096), help="Batch size of local training (64).")
@click.option("--lr", type=click.FloatRange(0), help="Learning rate of the first round (0.1).")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), help="Seconds a round may take (300).")
@click.option(
    "--quorum", type=click.IntRange(1, 100), help="Percent of updates a deadline needs to close a round (60)."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Fixes every random choice (1).")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with any keys of a run.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of a run's configuration.")
@click.option("--fleet", default="fleet", help="Name of the fleet, part of every topic.")
@click.option("--broker", help="URL of a broker that runs already: mqtt[s]://[user@]host[:port].")
@click.option("--ca", type=click.Path(path_type=Path), help="CA certificate of a TLS broker.")
@click.option("--cert", type=click.Path(path_type=Path), help="Client certificate for a TLS broker.")
@click.option("--key", type=click.Path(path_type=Path), help="Key of the client certificate.")
@click.option("--listen", default="127.0.0.1", help="Interface of the managed broker; 0.0.0.0 for all.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of the managed broker, 0 for any.  [default: 8883, with --insecure 1883]",
)
@_security_option
@click.option("--advertise", default="", help="URL of the broker that devices are told at enrolment.")
@click.option("--insecure", is_flag=True, help="Plain text and no enrolment: anyone who reaches the broker takes part.")
@click.option(
    "--broker-kind",
    type=click.Choice(["auto", "mosquitto", "amqtt"]),
    default="auto",
    help="Which broker to manage; auto prefers Mosquitto.",
)
@click.option("--workers", type=click.IntRange(0, 64), default=0, help="Processes that sum updates, for large fleets.")
@click.option(
    "--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]", help="Sum updates on a Ray cluster instead."
)
@click.option("--http", metavar="[HOST:]PORT", help="Serve a read-only page, /metrics for Prometheus and JSON there.")
@json_option
def serve(
    model: str | None,
    directory: Path,
    test: Path | None,
    referee: Path | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    fleet: str,
    broker: str | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    listen: str,
    port: int | None,
    security: Path | None,
    advertise: str,
    insecure: bool,
    broker_kind: str,
    workers: int,
    ray: str | None,
    http: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Run the rounds of a federated training; go on where a stopped coordinator left off.

    MODEL is an artifact file, a built-in model or package.module:factory; it can be left out when the data directory
    holds a run already. The command ends when the last round is committed. Devices need credentials from `fedmpq
    coordinator enroll`, which can be made before or while this command runs.
    """
    from fedmpq.cli._fleet_view import watching
    from fedmpq.coordinator import status as facts
    from fedmpq.coordinator.service import Service, Where
    from fedmpq.edge_runtime.shard import Shard

    shard = Shard(test) if test is not None else None
    config, origin = _run_of(model, directory, shard, config_file, settings, asked)
    if port is None:
        port = 1883 if insecure else 8883
    where = Where(
        fleet, broker, listen, port, broker_kind, (ca, cert, key), insecure, security, advertise, workers, ray or ""
    )
    judge = Shard(referee) if referee is not None else None
    with _stoppable() as stopped:
        service = Service(directory, config, origin, shard, where, referee=judge, say=note)
        try:
            note(f"run {config.run!r} ({config.strategy}, {origin.name}), fleet {fleet!r} on {service.url}")
            with watching(service.run) as changed, _web(directory, http, service):
                service.serve(stop=lambda: bool(stopped), changed=changed)
            result = facts.status(service.run.journal)
        finally:
            service.close()
    emit(result, as_json, print_status)


@command.command(
    "enroll",
    epilog=example(
        "fedmpq coordinator enroll pi-1 --out pi-1.credentials --broker mqtts://192.168.1.5:8883",
        "fedmpq coordinator enroll pi-1 --revoke",
    ),
)
@click.argument("device")
@_dir_option
@_security_option
@click.option("--fleet", default="", help="Name of the fleet.  [default: as the directory has it, else fleet]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write, for this device only.")
@click.option("--broker", default="", help="URL to give the device.  [default: of the coordinator as served last]")
@click.option("--ca", type=click.Path(path_type=Path), help="Authority of a broker that is not the coordinator's own.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True, max=3650), default=365, help="Days of validity.")
@click.option("--revoke", is_flag=True, help="Take the device's credentials back instead.")
@json_option
def enroll(
    device: str,
    directory: Path,
    security: Path | None,
    fleet: str,
    out: Path | None,
    broker: str,
    ca: Path | None,
    days: float,
    revoke: bool,
    as_json: bool,
) -> None:
    """Give a device its credentials, or take them back.

    Writes one file with the device's certificate, its key and the broker's address; bring it to the device by a way
    that others cannot read, and start `fedmpq device run --credentials FILE`. Enrolling again ends what it had before.
    """
    import time

    from fedmpq.coordinator.enrolment import Enrolment, checked_broker

    if revoke == (out is not None):
        raise UsageError("name a file to write with --out, or give --revoke")
    # Whatever can be wrong is found before the device's present credentials end.
    if broker:
        checked_broker(broker)
    authority = None if ca is None else _pem(ca)
    if out is not None and out.exists():
        raise UsageError(f"{out} is there already", "credentials are never overwritten: remove it first")
    if out is not None and not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise UsageError(f"--out {out}: {out.parent} is no folder that can be written")
    enrolment = Enrolment(security or directory / "security", fleet)
    if out is None:
        enrolment.revoke(device)
        emit({"fleet": enrolment.fleet, "device": device, "revoked": True}, as_json)
        return
    credentials = enrolment.enroll(device, broker, days=days, ca=authority)
    credentials.write(out)
    result = {
        "fleet": credentials.fleet,
        "device": device,
        "broker": str(checked_broker(credentials.broker)),  # without the password that it may hold
        "not_after": credentials.not_after,
        "file": out,
    }
    ends = time.strftime("%Y-%m-%d", time.gmtime(credentials.not_after))
    emit(result, as_json, lambda r: click.echo(f"{out}: {device} of fleet {r['fleet']} at {r['broker']}, until {ends}"))


def _pem(path: Path) -> str:
    """The text of --ca; UsageError if it is no certificate in PEM, as a device will need it."""
    import ssl

    try:
        text = path.read_text("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        hint = "openssl x509 -inform der -in FILE -out FILE.pem makes one of a DER file"
        raise UsageError(f"--ca {path} is no certificate in PEM", hint) from None
    except OSError as error:
        raise UsageError(f"--ca {path} cannot be read: {error.strerror}") from None
    return text


def _run_of(
    model: str | None,
    directory: Path,
    shard: Shard | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    asked: dict[str, Any],
) -> tuple[RunConfig, Source]:
    """Configuration and program: of the run in the directory, or new ones."""
    from fedmpq.coordinator import kinds, service
    from fedmpq.coordinator.config import RunConfig

    names = {"devices": "min_devices", "deadline": "deadline_s", "quorum": "quorum_percent"}
    values = {} if config_file is None else service.read_config(config_file)
    values |= {names.get(name, name): value for name, value in asked.items() if value is not None}
    values |= dict(service.parse_setting(text) for text in settings)
    strategy = values.pop("strategy", None)
    stored = service.stored_run(directory)
    if stored is not None:
        config, origin = stored
        if model is not None:
            service.check_same_model(directory, config, origin, model)
        if strategy is not None:
            values = {**service.make_config(strategy, values).to_dict(), **values}
        return RunConfig.from_dict({**config.to_dict(), **values}), origin
    if model is None:
        raise UsageError(f"{directory} holds no run yet", "name the MODEL to train: an artifact file or resnet8")
    config = service.make_config(strategy or "fedmpq", values)
    origins = kinds.of(config)
    if service.is_file(model):
        return config, origins.of_file(Path(model))
    if shard is None:
        raise UsageError(
            f"model {model!r} is built for the images at hand", "give --test SHARD, or an artifact file as MODEL"
        )
    pad = shard.shape[0] // 8 if config.crop else 0
    return config, origins.of_model(model, shard, shard.mean, crop_pad=min(pad, 16), seed=config.seed)


@contextmanager
def _web(directory: Path, address: str | None, service: Service) -> Iterator[None]:
    """The run's page, if it was asked for."""
    if address is None:
        yield
        return
    from fedmpq.coordinator.web.server import WebServer

    web = WebServer(directory, address, lambda: service.counters)
    note(f"page on {web.url}, figures for Prometheus on {web.url}metrics")
    try:
        yield
    finally:
        web.close()


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """A list that fills when the process is asked to end, so that it ends between two transitions."""
    received: list[int] = []

    def note_signal(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, note_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _journal(directory: Path) -> Iterator[Journal]:
    from fedmpq.coordinator.journal import Journal

    journal = Journal(directory, read_only=True)
    try:
        yield journal
    finally:
        journal.close()


_watch_option = click.option("--watch", is_flag=True, help="Show it anew every two seconds until Ctrl-C.")


@command.command("status", epilog=example("fedmpq coordinator status", "fedmpq coordinator status --dir runs/a --json"))
@_dir_option
@_watch_option
@json_option
def status(directory: Path, watch: bool, as_json: bool) -> None:
    """Show where a run stands, what it waits for, and who was refused and why."""
    from fedmpq.coordinator import status as facts

    _show(directory, facts.status, print_status, watch=watch, as_json=as_json)


@command.command("devices", epilog=example("fedmpq coordinator devices", "fedmpq coordinator devices --watch"))
@_dir_option
@_watch_option
@json_option
def devices(directory: Path, watch: bool, as_json: bool) -> None:
    """List the fleet: bits, memory planned, measured and left, last round, failures with their reasons."""
    from fedmpq.coordinator import status as facts

    _show(directory, lambda j: {"devices": facts.devices(j)}, print_devices, watch=watch, as_json=as_json)


@command.command("profile", epilog=example("fedmpq coordinator profile", "fedmpq coordinator profile --json"))
@_dir_option
@_watch_option
@json_option
def profile(directory: Path, watch: bool, as_json: bool) -> None:
    """Show what each device measured: RAM, limit, planned and measured bytes by bit-width, the budget that follows."""
    from fedmpq.coordinator import status as facts

    _show(directory, lambda j: {"devices": facts.profiles(j)}, print_profiles, watch=watch, as_json=as_json)


def _show(
    directory: Path,
    read: Callable[[Journal], dict[str, Any]],
    human: Callable[[dict[str, Any]], None],
    *,
    watch: bool,
    as_json: bool,
) -> None:
    """Prints what the journal says, once or again and again (with --json then one document a line)."""
    import json
    import time

    with _journal(directory) as journal:
        while True:
            found = read(journal)
            if not watch:
                emit(found, as_json, human)
                return
            if as_json:
                click.echo(json.dumps(found, ensure_ascii=False))
            else:
                click.clear()
                human(found)
            time.sleep(2.0)


@command.command(
    "report", epilog=example("fedmpq coordinator report --out report.html", "fedmpq coordinator report --csv tables")
)
@_dir_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="HTML file to write; needs no other file.")
@click.option("--csv", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder for tables as CSV.")
@json_option
def report(directory: Path, out: Path | None, folder: Path | None, as_json: bool) -> None:
    """Write a run's report as HTML with plots, or its tables as CSV; also beside a running coordinator."""
    from fedmpq.coordinator.web import report as reports

    if out is None and folder is None:
        raise UsageError("nothing to write", "--out FILE.html, --csv FOLDER, or both")
    written: list[Path] = []
    with _journal(directory) as journal:
        if out is not None:
            reports.write_html(directory, journal, out)
            written.append(out)
        if folder is not None:
            written += reports.write_csv(journal, folder)
    emit({"written": written}, as_json, lambda result: click.echo("\n".join(map(str, result["written"]))))


@command.command(
    "web",
    epilog=example("fedmpq coordinator web --http 8080", "fedmpq coordinator web --http 0.0.0.0:8080 --dir runs/a"),
)
@_dir_option
@click.option("--http", metavar="[HOST:]PORT", default="8080", help="Where to serve it.")
@json_option
def web(directory: Path, http: str, as_json: bool) -> None:
    """Serve the read-only page of a run, finished or going on, without being its coordinator."""
    import time

    from fedmpq.coordinator.web.server import WebServer

    with _journal(directory), _stoppable() as stopped:
        server = WebServer(directory, http)
        note(f"page on {server.url}")
        try:
            while not stopped:
                time.sleep(0.2)
        finally:
            server.close()
    emit({"url": server.url}, as_json)


@command.command("backup", epilog=example("fedmpq coordinator backup backups/monday --dir fedmpq-run"))
@click.argument("out", type=click.Path(path_type=Path))
@_dir_option
@json_option
def backup(out: Path, directory: Path, as_json: bool) -> None:
    """Copy a run to the new directory OUT, while its coordinator goes on.

    The copy holds journal, models, updates of the open round, keys and enrolments. `fedmpq coordinator serve --dir OUT`
    goes on from it; devices that are further than the copy follow it back.
    """
    from fedmpq.coordinator.backup import backup as copy

    emit(copy(directory, out), as_json)


@command.command(
    "verify", epilog=example("fedmpq coordinator verify", "fedmpq coordinator verify --dir backups/monday")
)
@_dir_option
@json_option
def verify(directory: Path, as_json: bool) -> None:
    """Check that a data directory holds what its journal says; exit code 10 if not."""
    from fedmpq.coordinator.verify import verify as check
    from fedmpq.errors import StateError

    result = check(directory)
    emit(result, as_json, print_verified)
    if not result["good"]:
        raise StateError(
            f"{directory} is damaged: {len(result['problems'])} problems", "go on from a backup, see docs/durability.md"
        )


def _control(verb: str, text: str) -> None:
    """Adds one of the commands that tell a run what to do."""

    @_dir_option
    @json_option
    def run(directory: Path, as_json: bool) -> None:
        from fedmpq.coordinator import control
        from fedmpq.coordinator.clock import SteadyClock

        emit({"directory": str(directory), "state": control.ask(directory, verb, SteadyClock()())}, as_json)

    run.__doc__ = text
    command.command(verb, epilog=example(f"fedmpq coordinator {verb} --dir fedmpq-run"))(run)


_control("pause", "Open no further round; the present one goes on to its end.")
_control("resume", "Go on after pause or cancel; start `serve` again if it has ended.")
_control("cancel", "End the run now: devices drop the round, the coordinator stops, nothing is lost.")


@command.command(
    "export-model",
    epilog=example(
        "fedmpq coordinator export-model --bits 4 --out model.fmpq --dir fedmpq-run",
        "fedmpq coordinator export-model --out model.fmpq --inference all --test shards/test.shard",
    ),
)
@_dir_option
@click.option("--bits", type=click.IntRange(1, 8), default=8, help="Bits of every layer.")
@click.option(
    "--round", "round_no", type=click.IntRange(0), help="Which round's result, 0 for the first model; else the latest."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Artifact file to write.")
@inference_option
@click.option("--test", type=click.Path(path_type=Path), help="Shard to judge the forms of --inference on.")
@json_option
def export_model(
    directory: Path,
    bits: int,
    round_no: int | None,
    out: Path,
    inference: tuple[str, ...],
    test: Path | None,
    as_json: bool,
) -> None:
    """Write a global model as an artifact, and for inference.

    A full-precision run's model is written as a PyTorch state dict.
    """
    from fedmpq.coordinator.model_export import export

    with _journal(directory) as journal:
        result = export(journal, directory, bits, round_no, out)
    if not inference:
        emit(result, as_json)
        return
    if "program" not in result:
        raise UsageError("a full-precision model has no integer weights to export", "leave --inference out")
    from fedmpq.edge_runtime import artifact
    from fedmpq.edge_runtime.shard import Shard

    shard = Shard(test) if test is not None else None
    result |= deploy(artifact.read(out), inference, out.with_suffix(""), out.stem, shard)
    emit(result, as_json, print_forms)
