"""Byte streams to a device: a serial port, a socket (an emulator's serial port), or the pipes of a command.

============================  ==========================================================================================
``/dev/ttyACM0?baud=921600``  a serial port, 8 bits, no parity, raw; 115200 baud without the query
``tcp://host:port``           a socket, for example QEMU's ``-serial tcp:127.0.0.1:5000,server``
``unix:PATH``                 the same over a socket in the file system
``exec:COMMAND ...``          standard input and output of a command, for example ``exec:ssh pi fedmpq-edge serve``
============================  ==========================================================================================

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import socket
import subprocess
import termios
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from fedmpq.errors import NetworkError, UsageError

#: Seconds to wait for a socket to accept.
_CONNECT_S: Final = 5.0
_EXAMPLES: Final = "for example /dev/ttyACM0?baud=115200, tcp://127.0.0.1:5000, unix:/tmp/board or exec:COMMAND"


class WireError(NetworkError):
    """The line to a device cannot be opened or was lost."""


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL. `kind` is tty, tcp, unix or exec; `place` a path, host or command line."""

    kind: str
    place: str
    number: int = 0

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address in a URL.

        Raises:
            UsageError: it is none of the four kinds, or the baud rate or port is not a number that can be meant.
        """
        if url.startswith("exec:"):
            try:
                words = shlex.split(url.removeprefix("exec:"))
            except ValueError as error:
                raise UsageError(f"--serial {url!r}: {error}") from None
            if words:
                return cls("exec", url.removeprefix("exec:"))
        elif url.startswith("unix:") and url != "unix:":
            return cls("unix", url.removeprefix("unix:").removeprefix("//"))
        elif url.startswith("tcp://"):
            parts = urlsplit(url)
            with contextlib.suppress(ValueError):
                if parts.hostname and parts.port and not (parts.path or parts.query):
                    return cls("tcp", parts.hostname, parts.port)
        elif url.startswith("/"):
            path, _, query = url.partition("?")
            options = parse_qs(query, keep_blank_values=True)
            baud = options.pop("baud", ["115200"])[-1]
            if not options and baud.isdigit() and f"B{baud}" in vars(termios):
                return cls("tty", path, int(baud))
            raise UsageError(f"--serial {url!r}: {query!r} is not a baud rate of this system", _EXAMPLES)
        raise UsageError(f"--serial {url!r} is not an address of a device", _EXAMPLES)

    def __str__(self) -> str:
        """The URL again."""
        shown = {"tty": f"{self.place}?baud={self.number}", "tcp": f"tcp://{self.place}:{self.number}"}
        return shown.get(self.kind, f"{self.kind}:{self.place}")


class Wire:
    """An open line. Bytes may be lost or altered on it; a line that is gone raises `WireError`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        try:
            self._in, self._out = self._open(address)
        except (OSError, termios.error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error.args[-1])
            self.close()
            raise WireError(f"{address} cannot be opened: {reason or error}") from None

    def _open(self, address: Address) -> tuple[int, int]:
        if address.kind == "tty":
            port = os.open(address.place, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._in = self._out = port
            _make_raw(port, address.number)
            return port, port
        if address.kind == "exec":
            command = shlex.split(address.place)
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            return self._process.stdout.fileno(), self._process.stdin.fileno()
        if address.kind == "unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(_CONNECT_S)
            self._socket.connect(address.place)
        else:
            self._socket = socket.create_connection((address.place, address.number), _CONNECT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        return self._socket.fileno(), self._socket.fileno()

    def read(self, timeout_s: float) -> bytes:
        """What has come, waiting up to `timeout_s` seconds for the first byte; empty if nothing did."""
        try:
            ready, _, _ = select.select([self._in], [], [], max(0.0, timeout_s))
            if not ready:
                return b""
            data = os.read(self._in, 65536)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise WireError(f"{self.address} is gone: {error.strerror}") from None
        if not data:
            raise WireError(f"{self.address} is gone: {self._end()}")
        return data

    def write(self, data: bytes, timeout_s: float = 30.0) -> None:
        """Send all of it, at the pace of the line."""
        end = time.monotonic() + timeout_s
        view = memoryview(data)
        while view:
            try:
                _, ready, _ = select.select([], [self._out], [], max(0.0, end - time.monotonic()))
                if not ready:
                    raise WireError(f"{self.address} takes no bytes any more")
                view = view[os.write(self._out, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WireError(f"{self.address} is gone: {error.strerror}") from None

    def close(self) -> None:
        """Let the line go; a command is ended."""
        if self._socket is not None:
            self._socket.close()
        elif self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif hasattr(self, "_in"):
            os.close(self._in)

    def _end(self) -> str:
        if self._process is None:
            return "the other end has closed it"
        try:
            return f"the command ended with exit code {self._process.wait(1.0)}"
        except subprocess.TimeoutExpired:
            return "the command has closed its output"


def _make_raw(port: int, baud: int) -> None:
    """8N1, no echo, no flow control, no translation."""
    speed = getattr(termios, f"B{baud}")
    attributes = termios.tcgetattr(port)
    control = attributes[6]
    control[termios.VMIN], control[termios.VTIME] = 0, 0
    flags = termios.CS8 | termios.CREAD | termios.CLOCAL
    termios.tcsetattr(port, termios.TCSANOW, [0, 0, flags, 0, speed, speed, control])
    termios.tcflush(port, termios.TCIOFLUSH)
