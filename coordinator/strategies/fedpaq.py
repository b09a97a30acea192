"""FedPAQ (Reisizadeh et al. 2020): float training, updates quantised by QSGD (`edge_runtime.ort.fedpaq`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpq.edge_runtime.ort import fedpaq
from fedmpq.edge_runtime.ort.fedpaq import BUCKET

__all__ = ["BUCKET", "send"]


def send(update: NDArray[np.float32], rng: np.random.Generator, *, bits: int) -> tuple[NDArray[np.float32], int]:
    """Quantises an update.

    Args:
        update: flat vector.
        rng: of the stochastic rounding.
        bits: of an entry, the sign included; s = 2**(bits - 1) - 1 levels (7 at 4 bits, 127 at 8).

    Returns:
        What the server decodes, and the bytes sent: packed entries and one fp32 a bucket.
    """
    data = fedpaq.encode(update, rng, bits=bits)
    return fedpaq.decode(data, update.size, bits=bits), len(data)
