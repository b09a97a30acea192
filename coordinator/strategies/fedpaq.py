"""FedPAQ (Reisizadeh et al. 2020): float training, updates quantised by QSGD (Alistarh et al. 2017).

Buckets of 512 entries share one fp32 scale, their largest magnitude; an entry is a sign and one of s + 1 levels,
rounded stochastically, so that the expectation is the update itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BUCKET = 512


def send(update: NDArray[np.float32], rng: np.random.Generator, *, bits: int) -> tuple[NDArray[np.float32], int]:
    """Quantises an update.

    Args:
        update: flat vector.
        rng: of the stochastic rounding.
        bits: of an entry, the sign included; s = 2**(bits - 1) - 1 levels (7 at 4 bits, 127 at 8).

    Returns:
        What the server decodes, and the bytes sent: packed entries and one fp32 a bucket.
    """
    levels = (1 << (bits - 1)) - 1
    buckets = -(-update.size // BUCKET)
    padded = np.zeros(buckets * BUCKET, np.float32)
    padded[: update.size] = update
    table = padded.reshape(buckets, BUCKET)
    scale = np.abs(table).max(axis=1, keepdims=True)
    ratio = np.divide(np.abs(table), scale, out=np.zeros_like(table), where=scale > 0) * levels
    level = np.floor(ratio + rng.random(table.shape, np.float32))
    decoded = np.sign(table) * np.minimum(level, levels) * (scale / levels)
    size = (update.size * bits + 7) // 8 + 4 * buckets
    return decoded.reshape(-1)[: update.size].astype(np.float32), size
