"""A trial step of a bundle in a process of its own: how far it grows, so that a kernel that kills kills the trial only.

Run as ``python -m fedmpq.edge_runtime.ort.trial`` with one JSON object in argv; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.edge_runtime import memory
from fedmpq.edge_runtime.ort import bundle as bundles
from fedmpq.edge_runtime.ort import engine as engines
from fedmpq.errors import FedmpqError

#: Steps of a trial: the second one has momentum, and the runtime's arena has settled.
_STEPS = 3


def measure(path: Path, batch: int, threads: int) -> dict[str, Any]:
    """Trains a few steps on grey images.

    Returns:
        `step_bytes` (growth over the process with its libraries loaded), `peak_bytes` (VmHWM) and `engine`.
    """
    name = engines.version()
    idle = memory.status("VmRSS")
    bundle = bundles.parse(path.read_bytes(), str(path))
    engine = engines.Engine(bundle, threads)
    height, width, channels = bundle.in_shape
    images = np.zeros((batch, channels, height, width), np.float32)
    labels = np.arange(batch, dtype=np.int64) % bundle.classes
    for _ in range(_STEPS):
        engine.step(images, labels, engines.Sgd(1e-6, 0.9, 5e-4))
    peak = memory.status("VmHWM")
    return {"step_bytes": max(0, peak - idle), "peak_bytes": peak, "engine": name}


def main() -> None:
    """The child process."""
    given = json.loads(sys.argv[1])
    try:
        print(json.dumps(measure(Path(given["bundle"]), given["batch"], given["threads"])), flush=True)
    except FedmpqError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
