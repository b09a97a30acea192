"""The broker a coordinator runs for itself: Mosquitto as a child process, or amqtt where there is no Mosquitto.

With `tls` (what `fedmpq coordinator serve` gives it) Mosquitto takes only clients with a certificate of the fleet's
authority, under the name in it, and lets each see and write its own topics. Without, both brokers listen in plain text.
Mosquitto saves retained state and sessions once a minute: a killed one forgets what came since, and that is repeated.
Saving at every change (`autosave_on_changes`) writes everything anew each time: with 1,000 devices that takes a whole
core, and the fleet stands still. Correctness never rests on the broker; its persistence only saves devices a repeat.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedmpq.edge_runtime.mqtt import PACKET_OVERHEAD
from fedmpq.edge_runtime.protocol import MAX_MESSAGE
from fedmpq.errors import NetworkError, StateError

START_TIMEOUT_S = 10.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_CONFIG = """\
# Written by `fedmpq coordinator serve`; changes are overwritten.
listener {port} {host}
{access}persistence true
persistence_location {directory}/
autosave_on_changes false
autosave_interval 60
max_queued_messages 10000
max_inflight_messages 64
max_queued_bytes 67108864
max_packet_size {largest}
log_dest file {directory}/mosquitto.log
log_type error
log_type warning
log_type notice
user {user}
"""
#: What Mosquitto writes about clients that it turns away.
_REFUSALS = {
    b"certificate verify failed": "certificate",
    b"peer did not return a certificate": "certificate",
    b"not authorised": "login",
    b"SSL routines::wrong version number": "tls",
    b"SSL routines::unsupported protocol": "tls",
    b"SSL routines::no shared cipher": "tls",
    b"SSL routines::http request": "tls",
}
_OPEN = "allow_anonymous true\n"
_CLOSED = """\
allow_anonymous false
cafile {ca}
certfile {certificate}
keyfile {key}
crlfile {revoked}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
acl_file {acl}
"""
#: %u is the certificate's common name. A subscription beyond these is granted by Mosquitto but delivers nothing.
_ACL = """\
user {coordinator}
topic readwrite {prefix}#

pattern read {prefix}coord/state
pattern read {prefix}round
pattern write {prefix}d/%u/state
pattern write {prefix}d/%u/up/#
pattern read {prefix}d/%u/dn/#
"""


@dataclass(frozen=True)
class BrokerTls:
    """What a closed broker needs: PEM files, and whose topics it guards.

    Attributes:
        ca, certificate, key, revoked: files.
        coordinator: user name that may see and write everything of the fleet.
        prefix: of the fleet's topics.
    """

    ca: Path
    certificate: Path
    key: Path
    revoked: Path
    coordinator: str
    prefix: str


def find_mosquitto() -> str | None:
    """The Mosquitto program, also where only root's PATH would find it."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


class ManagedBroker:
    """A broker as a child process.

    A broker that survived a killed coordinator on the same directory is taken over with its sessions, or ended where it
    has other settings (another port, say).

    Args:
        directory: for its configuration, log and persistent state.
        host: interface to listen on.
        port: TCP port; 0 picks a free one.
        kind: "auto", "mosquitto" or "amqtt".
        tls: certificates and access; None for plain text, where anyone may say anything.
        warn: receives one line where the fallback is used or the interface is not loopback.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 1883,
        kind: str = "auto",
        tls: BrokerTls | None = None,
        warn: Callable[[str], object] = str,
    ) -> None:
        self.directory = directory
        self.host = host
        self.port = port or _free_port(host)
        self._warn = warn
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted = 0
        self._restarts = 0
        self._last_start = 0.0
        self._refused: dict[str, int] = {}
        self._log_read = 0
        program = find_mosquitto() if kind in {"auto", "mosquitto"} else None
        if kind == "mosquitto" and program is None:
            raise NetworkError("there is no mosquitto program on this machine", "apt-get install mosquitto")
        if tls is not None and program is None:
            raise NetworkError(
                "a closed broker needs mosquitto, which is not on this machine",
                "apt-get install mosquitto, or --insecure for an open one",
            )
        self._program = program
        self._tls = tls
        self.kind = "mosquitto" if program else "amqtt"
        if kind == "auto" and program is None:
            warn("no mosquitto found: using the built-in amqtt broker, for trying out only (apt-get install mosquitto)")
        if tls is None and host not in LOOPBACK:
            warn(f"the broker on {host}:{self.port} takes anyone, in plain text: use it on a trusted network only")

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        return f"{'mqtt' if self._tls is None else 'mqtts'}://{host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id, 0 if it is not running."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return self._adopted if self._adopted and _runs_with(self._adopted, self._config_path) else 0

    @property
    def _config_path(self) -> Path:
        return self.directory / f"{self.kind}.conf"

    def start(self) -> None:
        """Starts the broker and waits until it takes connections.

        Raises:
            NetworkError: the port is taken, an earlier broker does not end, or this one ends at once (its last line is
                quoted).
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            directory = self.directory.absolute()
            config = self._config(directory)
            pid_file = directory / "broker.pid"
            old = int(pid_file.read_text()) if pid_file.is_file() and pid_file.read_text().isdigit() else 0
            same = self._config_path.is_file() and self._config_path.read_text() == config
            if old and same and _runs_with(old, self._config_path):
                self._adopted = old
                self.reload()
                self._wait_until_open()
                return
            if old:
                self._end_other(old)
            _check_port(self.host, self.port)
            self._config_path.write_text(config)
            with (directory / "broker.out").open("wb") as out:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )
            pid_file.write_text(str(self._process.pid))
        except OSError as error:
            raise StateError(f"the broker's directory {self.directory} cannot be used: {error.strerror}") from None
        self._last_start = time.monotonic()
        self._wait_until_open()

    def ensure(self) -> bool:
        """Restarts a broker that has died; True if it did. At most one try a second."""
        if self.pid or time.monotonic() - self._last_start < 1.0:
            return False
        self._restarts += 1
        self._last_start = time.monotonic()
        self._warn(f"the broker has ended, starting it again ({self._restarts})")
        try:
            self.start()
        except NetworkError as error:
            self._warn(str(error))
        return True

    def stop(self) -> None:
        """Ends the broker and waits for it."""
        pid = self.pid
        if not pid:
            return
        os.kill(pid, signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        else:
            self._has_ended(pid)
            self._adopted = 0
        (self.directory / "broker.pid").unlink(missing_ok=True)

    def _end_other(self, pid: int) -> None:
        """Ends the broker that a killed coordinator left on this directory under other settings.

        Two on one directory would overwrite each other's sessions, and nobody would ever end the older one.
        """
        if not self._has_ended(pid, tries=1):
            self._warn(f"ending the broker of an earlier coordinator (process {pid}), which has other settings")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            if not self._has_ended(pid):
                raise NetworkError(f"the broker of an earlier coordinator does not end: process {pid}", "end it first")

    def _has_ended(self, pid: int, tries: int = 200) -> bool:
        """Whether no broker of this directory runs as `pid` any more; waits 50 ms between two tries."""
        configs = [self.directory / f"{kind}.conf" for kind in ("mosquitto", "amqtt")]
        for left in range(tries - 1, -1, -1):
            if not any(_runs_with(pid, config) for config in configs):
                return True
            if left:
                time.sleep(0.05)
        return False

    def refused(self) -> dict[str, int]:
        """Connections that the broker itself has turned away since this object was made, by reason, from its log.

        `certificate` (expired, taken back, of another authority, or absent), `tls` (not spoken, or too old), `login`.
        """
        try:
            with (self.directory / "mosquitto.log").open("rb") as log:
                log.seek(self._log_read if self._log_read <= os.fstat(log.fileno()).st_size else 0)
                lines = log.readlines()
                self._log_read = log.tell()
        except OSError:
            return dict(self._refused)
        for line in lines:
            for mark, reason in _REFUSALS.items():
                if mark in line:
                    self._refused[reason] = self._refused.get(reason, 0) + 1
                    break
        return dict(self._refused)

    def reload(self) -> None:
        """Has a closed broker read certificates, revocations and access rules again."""
        if self._tls is not None and self.pid:
            os.kill(self.pid, signal.SIGHUP)

    def _config(self, directory: Path) -> str:
        access = _OPEN
        if self._tls is not None:
            tls = self._tls
            acl = directory / "acl"
            acl.touch(0o600)
            acl.write_text(_ACL.format(coordinator=tls.coordinator, prefix=tls.prefix))
            access = _CLOSED.format(
                ca=tls.ca.absolute(), certificate=tls.certificate.absolute(), key=tls.key.absolute(),
                revoked=tls.revoked.absolute(), acl=acl,
            )  # fmt: skip
        return _CONFIG.format(
            port=self.port, host=self.host, directory=directory, user=getpass.getuser(), access=access,
            largest=MAX_MESSAGE + PACKET_OVERHEAD,
        )  # fmt: skip

    def _command(self) -> list[str]:
        path = str(self._config_path.absolute())
        if self._program is not None:
            return [self._program, "-c", path]
        module = "fedmpq.coordinator.builtin_broker"
        return [sys.executable, "-m", module, self.host, str(self.port), path]

    def _wait_until_open(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        host = self.url.partition("://")[2].rpartition(":")[0]
        while time.monotonic() < deadline:
            if not self.pid:
                raise NetworkError(
                    f"the broker ended at once: {self._last_words()}", f"see {self.directory}, or give --broker URL"
                )
            try:
                socket.create_connection((host, self.port), timeout=0.5).close()
            except OSError:
                time.sleep(0.05)
                continue
            return
        raise NetworkError(f"the broker does not listen on {self.host}:{self.port} after {START_TIMEOUT_S:g} s")

    def _last_words(self) -> str:
        for name in ("mosquitto.log", "broker.out"):
            path = self.directory / name
            lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
            spoken = [line.strip() for line in lines if line.strip()]
            if spoken:
                return spoken[-1][:200]
        return "it said nothing"


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NetworkError(
                f"port {port} on {host} cannot be used: {error.strerror}",
                "choose another with --port, or use the broker that is there with --broker URL",
            ) from None


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _runs_with(pid: int, config: Path) -> bool:
    """Whether process `pid` is alive and was started with this configuration file."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(config.absolute()).encode() in command
