"""UVeQFed (Shlezinger et al. 2020): float training, dithered lattice quantisation (`edge_runtime.ort.uveqfed`).

The entropy coder's real output is what counts as sent.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from fedmpq.edge_runtime.ort import uveqfed
from fedmpq.edge_runtime.ort.uveqfed import ROOT3, coded, dither, nearest, points_of

__all__ = ["ROOT3", "coded", "dither", "nearest", "points_of", "send"]


def send(update: NDArray[np.float32], rng: np.random.Generator, *, rate: float) -> tuple[NDArray[np.float32], int]:
    """Quantises an update.

    Args:
        update: flat vector.
        rng: of the dither, the same at client and server.
        rate: bits an entry that the scale aims at.

    Returns:
        What the server decodes, and the bytes sent.
    """
    shared = copy.deepcopy(rng)
    data = uveqfed.encode(update, rng, rate=rate)
    return uveqfed.decode(data, update.size, shared), len(data)
