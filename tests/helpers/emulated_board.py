"""A bare-metal board in QEMU with the gateway firmware, its serial line on a socket."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from fedmpq.edge_runtime.serial.wire import Address
from fedmpq.firmware_profiles import load
from fedmpq.toolchain import gateway, tools
from tests.helpers import edge


class EmulatedBoard:
    """One board.

    Args:
        profile: its name.
        firmware: an ELF file; by default the gateway firmware, built for it.
    """

    def __init__(self, profile: str, firmware: Path | None = None) -> None:
        self.profile = load(profile)
        self._elf = firmware or gateway.build(self.profile, edge.BUILD.parent / "gateway" / profile)
        self._folder = TemporaryDirectory(prefix="fedmpq-")  # a socket's path must be short
        self._serial, self._control = Path(self._folder.name) / "serial", Path(self._folder.name) / "control"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `fedmpq device gateway --serial`."""
        return f"unix:{self._serial}"

    @property
    def address(self) -> Address:
        return Address.parse(self.url)

    def start(self) -> None:
        """Power on."""
        command = [*tools.emulator(self.profile), *gateway.line(f"unix:{self._serial}"), str(self._elf)]
        command += ["-qmp", f"unix:{self._control},server=on,wait=off"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        end = monotonic() + 60
        while not self._answers():
            assert monotonic() < end, "the emulator did not start"
            assert self._process.poll() is None, "the emulator ended"
            sleep(0.05)

    def _answers(self) -> bool:
        """Whether its sockets listen: the control socket is the last one it makes."""
        try:
            self._ask("query-status")
        except OSError:
            return False
        return True

    def reset(self) -> None:
        """Press the reset button."""
        self._ask("system_reset")

    def stop(self) -> None:
        """Power off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._folder.cleanup()

    def _ask(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(self._control))
            stream = link.makefile("rw")
            for request in ("qmp_capabilities", command):
                stream.write(json.dumps({"execute": request}) + "\n")
                stream.flush()
                while "return" not in json.loads(stream.readline()):
                    pass  # its greeting, events


@contextmanager
def emulated(profile: str, firmware: Path | None = None) -> Iterator[EmulatedBoard]:
    """A board that is on."""
    board = EmulatedBoard(profile, firmware)
    board.start()
    try:
        yield board
    finally:
        board.stop()
