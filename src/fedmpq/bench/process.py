"""The parent's end of a worker process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import IO, Any, Self

from fedmpq.bench.job import Job
from fedmpq.errors import FedmpqError

#: What PyTorch calls the instruction sets: variable -> value by our name.
_TORCH_ISA = {
    "scalar": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


class BenchError(FedmpqError):
    """An engine could not be set up or stopped working."""


class Worker:
    """A worker process with one engine. Use as a context manager: leaving it ends the process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fedmpq.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(job),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._log.close()

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Gives one command and waits for its answer.

        Raises:
            BenchError: the engine failed; the message carries its last words.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"its process ended with {self._child.wait()}{self._tail()}"}
        if "error" in answer:
            raise BenchError(f"{self.job.engine}: cannot {do}: {answer['error']}", "leave it out of --against")
        return dict(answer)

    def _tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def environment(job: Job) -> dict[str, str]:
    """The variables of a job's process: threads and instruction set are fixed before any library loads."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    if job.isa is not None and job.engine == "torch":
        variables |= _TORCH_ISA.get(job.isa, {})
    elif job.isa is not None:
        variables["FEDMPQ_ISA"] = job.isa
    return variables


def prepare(job: Job) -> None:
    """Compiles a job's model in a process of its own."""
    with Worker(job) as worker:
        worker.ask("prepare", job=job.json())
