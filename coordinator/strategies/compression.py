"""What a full-precision client does to its update before it sends it, by method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmpq.coordinator.strategies import fedavg, fedpaq, uveqfed
from fedmpq.errors import ConfigError

Vector: TypeAlias = NDArray[np.float32]
#: (update, generator) -> (what the server decodes, bytes sent). The generator is shared by client and server.
Compressor: TypeAlias = Callable[[Vector, np.random.Generator], tuple[Vector, int]]

COMPRESSORS: dict[str, Compressor] = {
    "fedavg": fedavg.send,
    "fedpaq": lambda update, rng: fedpaq.send(update, rng, bits=4),
    "fedpaq8": lambda update, rng: fedpaq.send(update, rng, bits=8),
    "uveqfed": lambda update, rng: uveqfed.send(update, rng, rate=2.0),
    "uveqfed4": lambda update, rng: uveqfed.send(update, rng, rate=4.0),
}


def by_name(name: str) -> Compressor:
    """The compressor of a full-precision strategy; ConfigError lists the names there are."""
    if name not in COMPRESSORS:
        raise ConfigError(f"unknown full-precision strategy {name!r}", f"one of {', '.join(COMPRESSORS)}")
    return COMPRESSORS[name]
