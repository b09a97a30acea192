"""Who belongs to a fleet: credentials given to devices, and taken back.

The directory holds the authority (`authority`), one secret of the fleet, one small file for each device, and the
certificates of the broker and of the coordinator. All of it is readable by its owner only. A device's message key is
derived from the fleet's secret, its name and the number of its enrolment, so nothing secret is kept for each device,
and enrolling a device again makes its old key worthless.

`fedmpq coordinator enroll` works on the files beside a running coordinator, which looks at them when they change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmpq.coordinator.authority import SERVER_DAYS, Authority, Issued, write_private
from fedmpq.edge_runtime.credentials import Credentials
from fedmpq.edge_runtime.mqtt import Broker
from fedmpq.edge_runtime.seal import KEY_SIZE, Seal
from fedmpq.edge_runtime.topics import checked_name
from fedmpq.errors import StateError, UsageError

DEVICE_DAYS = 365
#: What the broker's certificate always names; devices check this instead of an address that may change.
SERVER_NAME = "fedmpq-broker"
#: User name of the coordinator at its own broker. No device can have it: names start with a letter or digit.
COORDINATOR = "_coordinator"
_VERSION = 1


@dataclass(frozen=True)
class Files:
    """Paths of a PEM chain of trust: authority, certificate, key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Member:
    """One enrolment: `number` counts the device's enrolments, times are Unix seconds."""

    device: str
    number: int
    serials: tuple[int, ...]
    enrolled_at: float
    not_after: int
    revoked: bool


class Enrolment:
    """The security directory of one fleet; made if absent.

    Args:
        directory: where it lies.
        fleet: its name; empty takes the one the directory was made for.

    Raises:
        StateError: the directory belongs to another fleet, is damaged or cannot be written.
    """

    def __init__(self, directory: Path, fleet: str = "") -> None:
        self.directory = directory
        self._members = directory / "devices"
        self._cache: dict[str, tuple[int, Member, Seal]] = {}
        self._next_look, self._seen = 0.0, 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                known = self._facts()
                if fleet and known and known["fleet"] != fleet:
                    raise StateError(
                        f"{directory} belongs to fleet {known['fleet']!r}, not {fleet!r}", "choose another --security"
                    )
                self.fleet = checked_name(known.get("fleet") or fleet or "fleet", "fleet")
                self.authority = Authority(directory, self.fleet)
                self._members.mkdir(exist_ok=True, mode=0o700)
                self._secret = self._fleet_secret()
                self._seen = self._members.stat().st_mtime_ns
                if not known:
                    self._write_facts({"version": _VERSION, "fleet": self.fleet, "broker": ""})
        except OSError as error:
            raise StateError(f"security directory {directory} cannot be used: {error.strerror}") from None

    # --- devices --------------------------------------------------------------------------------------------------

    def enroll(self, device: str, broker: str = "", *, days: float = DEVICE_DAYS, ca: str | None = None) -> Credentials:
        """New credentials for a device; those it had before end.

        Args:
            device: its name.
            broker: URL to put into the credentials; empty for the coordinator's own broker as served last.
            days: of validity.
            ca: PEM of the authority that signed a foreign broker's certificate; None for our own broker.

        Raises:
            UsageError: the name is not usable, the broker is no address for TLS, or none is known yet.
        """
        checked_name(device, "device")
        address = broker or self._facts().get("broker", "")
        if not address:
            raise UsageError("no broker is known yet", "name it: --broker mqtts://HOST:8883")
        checked_broker(address)
        with self._locked():
            before = self._read(device)
            issued = self.authority.issue(device, days=days)
            serials = (*(before.serials if before else ()), issued.serial)
            number = before.number + 1 if before else 1
            member = Member(device, number, serials, time.time(), issued.not_after, revoked=False)
            self._write(member)
        return Credentials(
            fleet=self.fleet,
            device=device,
            broker=address,
            server_name=SERVER_NAME if ca is None else "",
            not_after=issued.not_after,
            message_key=self._key(member),
            certificate=issued.certificate,
            key=issued.key,
            ca=self.authority.pem if ca is None else ca,
        )

    def revoke(self, device: str) -> None:
        """Ends a device's credentials; StateError if it has none."""
        with self._locked():
            member = self._read(device)
            if member is None:
                raise StateError(f"device {device!r} is not enrolled in fleet {self.fleet!r}")
            self._write(Member(**{**member.__dict__, "revoked": True}))

    def member(self, device: str) -> Member | None:
        """A device's enrolment; None for a stranger."""
        found = self._look_up(device)
        return None if found is None else found[0]

    def seal(self, device: str) -> Seal | None:
        """The key shared with a device; None for a stranger or a device whose credentials were taken back."""
        found = self._look_up(device)
        return None if found is None or found[0].revoked else found[1]

    def members(self) -> list[Member]:
        """Every device that was ever enrolled, by name."""
        found = (self._read(path.stem) for path in sorted(self._members.glob("*.json")))
        return [member for member in found if member is not None]

    def changed(self) -> bool:
        """Whether someone was enrolled or taken out since this was asked last; looks at most once a second."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + 1.0
        before, self._seen = self._seen, self._members.stat().st_mtime_ns
        return before != self._seen

    def revoked_serials(self) -> list[int]:
        """Certificates that must not be taken any more: of revoked devices, and older ones of the others."""
        return [
            serial
            for member in self.members()
            for serial in (member.serials if member.revoked else member.serials[:-1])
        ]

    # --- the broker and its first client ----------------------------------------------------------------------------

    def server_files(self, hosts: Sequence[str]) -> Files:
        """Certificate of the managed broker for these host names, made or renewed if need be."""
        return self._files("server", SERVER_NAME, tuple(dict.fromkeys((SERVER_NAME, *hosts))))

    def coordinator_files(self) -> Files:
        """The coordinator's own client certificate."""
        return self._files("coordinator", COORDINATOR, ())

    def revocation_file(self) -> Path:
        """The list of revoked certificates, written anew."""
        path = self.directory / "revoked.pem"
        write_private(path, self.authority.revocation_list(self.revoked_serials()))
        return path

    def remember_broker(self, url: str) -> None:
        """Notes the address that devices enrolled from now on are given."""
        facts = self._facts()
        if facts.get("broker") != url:
            self._write_facts({**facts, "broker": url})

    # --- inside ---------------------------------------------------------------------------------------------------

    def _files(self, stem: str, name: str, hosts: tuple[str, ...]) -> Files:
        certificate, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        if not key.is_file() or not self.authority.still_good(certificate, hosts):
            made: Issued = self.authority.issue(name, days=SERVER_DAYS, serve_as=hosts)
            write_private(key, made.key)
            write_private(certificate, made.certificate)
        return Files(self.authority.certificate_path, certificate, key)

    def _look_up(self, device: str) -> tuple[Member, Seal] | None:
        """From the cache as long as the device's file is the same."""
        try:
            changed = (self._members / f"{device}.json").stat().st_mtime_ns
        except OSError:
            return None
        known = self._cache.get(device)
        if known is None or known[0] != changed:
            member = self._read(device)
            if member is None:
                return None
            known = self._cache[device] = (changed, member, Seal(self._key(member)))
        return known[1:]

    def _key(self, member: Member) -> bytes:
        name = f"fedmpq message key 1/{self.fleet}/{member.device}/{member.number}"
        return hmac.new(self._secret, name.encode(), hashlib.sha256).digest()

    def _read(self, device: str) -> Member | None:
        path = self._members / f"{device}.json"
        try:
            facts = json.loads(path.read_text())
            return Member(**{**facts, "serials": tuple(facts["serials"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise StateError(f"{path} is damaged", f"enroll {device} again after removing it") from None

    def _write(self, member: Member) -> None:
        text = json.dumps({**member.__dict__, "serials": list(member.serials)}, indent=1) + "\n"
        write_private(self._members / f"{member.device}.json", text)

    def _facts(self) -> dict[str, Any]:
        path = self.directory / "fleet.json"
        if not path.is_file():
            return {}
        try:
            facts = json.loads(path.read_text())
            version = facts["version"]
        except (OSError, ValueError, TypeError, KeyError):
            raise StateError(f"{path} is damaged", "restore it from a backup") from None
        if version != _VERSION:
            raise StateError(f"{path} has version {version}, this build reads {_VERSION}")
        return dict(facts)

    def _write_facts(self, facts: dict[str, Any]) -> None:
        write_private(self.directory / "fleet.json", json.dumps(facts, indent=1) + "\n")

    def _fleet_secret(self) -> bytes:
        path = self.directory / "fleet.key"
        if not path.is_file():
            write_private(path, secrets.token_hex(KEY_SIZE) + "\n")
        try:
            secret = bytes.fromhex(path.read_text().strip())
        except ValueError:
            secret = b""
        if len(secret) != KEY_SIZE:
            raise StateError(f"{path} is damaged", "restore it from a backup")
        return secret

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time writes here."""
        handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def checked_broker(url: str) -> Broker:
    """A broker that devices can be told; UsageError, without the password, for what they could not use."""
    try:
        broker = Broker.from_url(url)
    except (UsageError, ValueError):  # ValueError: such as mqtts://[
        raise UsageError(f"broker {url.rpartition('@')[2]!r} is not understood", "mqtts://HOST:8883") from None
    if any(c.isspace() for c in broker.host):
        raise UsageError(f"broker {broker.host!r} is no host", "mqtts://HOST:8883")
    if not broker.tls:
        raise UsageError(f"broker {broker} is in plain text, credentials are for TLS", "mqtts://HOST:8883")
    return broker


def host_names(listen: str) -> tuple[str, ...]:
    """Names and addresses under which a broker listening on an interface of this machine is reached."""
    names = ["localhost", "127.0.0.1", "::1"]
    own = socket.gethostname()
    if own and own.isascii() and "_" not in own:
        names.append(own)
    if listen not in {"0.0.0.0", "::", *names}:  # noqa: S104
        names.append(listen)
    return tuple(names)


def public_url(listen: str, port: int) -> str:
    """The URL to tell devices: this machine's name where the broker listens on every interface."""
    host = socket.gethostname() if listen in {"0.0.0.0", "::"} else listen  # noqa: S104
    return f"mqtts://{f'[{host}]' if ':' in host else host}:{port}"
