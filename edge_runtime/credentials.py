"""A device's credentials: one file from `fedmpq coordinator enroll`, readable by its owner only.

The file has lines of ``name: value`` and then PEM blocks: the device's certificate, its private key, and the
certificates to trust. OpenSSL and other MQTT clients can read the blocks where they stand. Standard library only.
"""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedmpq.edge_runtime.seal import KEY_SIZE, Seal
from fedmpq.edge_runtime.topics import checked_name
from fedmpq.errors import ConfigError, FedmpqError

VERSION: Final = 1
#: Bytes a credentials file may have; a real one has about 1,600.
MAX_SIZE: Final = 64 * 1024
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n?")


@dataclass(frozen=True)
class Credentials:
    """What a device shows its broker and shares with its coordinator.

    Attributes:
        fleet, device: names.
        broker: URL of the broker.
        server_name: name that the broker's certificate must carry; empty for the URL's host.
        not_after: Unix seconds at which the certificate ends.
        message_key: the key of the seals.
        certificate, key, ca: PEM texts; ca empty trusts the system's authorities.
    """

    fleet: str
    device: str
    broker: str
    server_name: str
    not_after: int
    message_key: bytes = field(repr=False)
    certificate: str = field(repr=False)
    key: str = field(repr=False)
    ca: str = field(repr=False)

    @property
    def seal(self) -> Seal:
        """The device's side of the seals."""
        return Seal(self.message_key)

    def check_date(self, now: float | None = None) -> None:
        """Refuse credentials that have ended, before the broker does so without a word."""
        if (time.time() if now is None else now) >= self.not_after:
            day = time.strftime("%Y-%m-%d", time.gmtime(self.not_after))
            raise ConfigError(
                f"the certificate of device {self.device} ended on {day}", "run `fedmpq coordinator enroll` again"
            )

    def to_text(self) -> str:
        """The file's text."""
        head = {
            "fedmpq-credentials": VERSION,
            "fleet": self.fleet,
            "device": self.device,
            "broker": self.broker,
            "server-name": self.server_name,
            "not-after": self.not_after,
            "message-key": self.message_key.hex(),
        }
        lines = "".join(f"{name}: {value}\n" for name, value in head.items())
        return f"{lines}{self.certificate}{self.key}{self.ca}"

    def write(self, path: Path) -> None:
        """Writes the file with mode 0600; ConfigError if that is not possible or it is there already."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(
                f"{path} is there already", "credentials are never overwritten: remove it first"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        with os.fdopen(handle, "w") as out:
            out.write(self.to_text())

    @classmethod
    def read(cls, path: Path) -> Credentials:
        """Reads a file.

        Raises:
            ConfigError: absent, readable by others, or not credentials; names the file and the line's name, and never
                shows a value.
        """
        try:
            mode = path.stat().st_mode
            text = path.read_bytes()[: MAX_SIZE + 1].decode("ascii")
        except OSError as error:
            raise ConfigError(f"credentials {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not a credentials file") from None
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"credentials {path} can be read by other users", f"chmod 600 {path}")
        try:
            return cls._parse(text)
        except (KeyError, ValueError, FedmpqError) as error:
            what = f"line {error}" if isinstance(error, KeyError) else _without_values(error)
            raise ConfigError(
                f"credentials {path}: {what} is missing or wrong", "made by `fedmpq coordinator enroll`"
            ) from None

    @classmethod
    def _parse(cls, text: str) -> Credentials:
        start = text.find("-----BEGIN")
        if start < 0 or len(text) > MAX_SIZE or not text.startswith("fedmpq-credentials: "):
            raise ValueError("the header")
        head = {name: value.strip() for name, _, value in (line.partition(":") for line in text[:start].split("\n"))}
        if head["fedmpq-credentials"] != str(VERSION):
            raise ValueError("the version")
        blocks = [(found[1], found[0]) for found in _BLOCK.finditer(text, start)]
        certificates = [block for kind, block in blocks if kind == "CERTIFICATE"]
        keys = [block for kind, block in blocks if kind.endswith("PRIVATE KEY")]
        if not certificates or len(keys) != 1:
            raise ValueError("the certificate or its key")
        message_key = bytes.fromhex(head["message-key"])
        if len(message_key) != KEY_SIZE:
            raise ValueError("message-key")
        return cls(
            fleet=checked_name(head["fleet"], "fleet"),
            device=checked_name(head["device"], "device"),
            broker=head["broker"],
            server_name=head["server-name"],
            not_after=int(head["not-after"]),
            message_key=message_key,
            certificate=certificates[0],
            key=keys[0],
            ca="".join(certificates[1:]),
        )


def _without_values(error: Exception) -> str:
    """Which part is wrong; messages of int() and fromhex() would quote a secret."""
    text = str(error)
    return text if text in {"the header", "the version", "the certificate or its key", "message-key"} else "a value"
