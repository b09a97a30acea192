"""Device processes: started with the same command a user would type, watched, and ended."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedmpq.errors import RoundError

if TYPE_CHECKING:
    from fedmpq.coordinator.enrolment import Enrolment


@dataclass(frozen=True)
class Member:
    """A device of the demo: its name, its shard and the bytes its training arena may take."""

    name: str
    shard: Path
    memory_limit: int


class DeviceProcess:
    """`fedmpq device run` as a child process.

    Args:
        member: which device.
        broker: URL.
        fleet: name of the fleet.
        folder: for its state and its log.
        enrolment: gives it credentials; None joins an open broker.
    """

    def __init__(
        self, member: Member, broker: str, fleet: str, folder: Path, enrolment: Enrolment | None = None
    ) -> None:
        self.member = member
        self.log = folder / f"{member.name}.log"
        if enrolment is None:
            identity = ["--insecure", "--broker", broker, "--fleet", fleet, "--name", member.name]
        else:
            file = folder / f"{member.name}.credentials"
            enrolment.enroll(member.name, broker).write(file)
            identity = ["--credentials", str(file)]
        self._command = [
            sys.executable, "-m", "fedmpq", "device", "run", *identity,
            "--data", str(member.shard), "--state", str(folder / member.name),
            "--memory-limit", str(member.memory_limit), "--until-finished",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again); its log goes on."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """Process id of the device as it runs now."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise `RoundError` with its last words if it has ended with an error."""
        code = None if self._process is None else self._process.poll()
        if code:
            raise RoundError(f"device {self.member.name} ended with exit code {code}: {self.last_line()}")

    def last_line(self) -> str:
        """The last line of its log."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1].removeprefix("fedmpq: error: ") if lines else "no output"

    def stop(self, patience_s: float = 10.0) -> None:
        """Wait for it to end by itself, then ask, then insist."""
        process = self._process
        if process is None:
            return
        for ask in (None, process.terminate, process.kill):
            if ask is not None:
                ask()
            try:
                process.wait(patience_s)
                break
            except subprocess.TimeoutExpired:
                continue


class Fleet:
    """The device processes of one run; a context manager that leaves none behind."""

    def __init__(
        self, members: list[Member], broker: str, fleet: str, folder: Path, enrolment: Enrolment | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.devices = [DeviceProcess(member, broker, fleet, folder, enrolment) for member in members]

    def __enter__(self) -> Self:
        for device in self.devices:
            device.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        patience = 10.0 if kind is None else 0.0
        for device in self.devices:
            device.stop(patience)

    def check(self) -> bool:
        """For `Service.serve(stop=...)`: never stops, but raises when a device has failed."""
        for device in self.devices:
            device.check()
        return False
