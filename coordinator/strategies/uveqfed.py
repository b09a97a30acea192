"""UVeQFed (Shlezinger et al. 2020): float training; updates by subtractive dithered hexagonal lattice quantisation.

Pairs of entries are quantised to the hexagonal lattice with generator [2 1; 0 sqrt(3)], scaled so that the coded
indices take about `rate` bits an entry. The dither is uniform on the lattice's Voronoi cell and drawn from a seed that
client and server share: the server subtracts it, which makes the error independent of the update. The indices are
entropy-coded (DEFLATE's Huffman coder over their two coordinate streams); the coder's real output is what counts.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

ROOT3 = 3.0**0.5
_HEAD = 8  # norm and lattice scale, fp32 each

Pairs = NDArray[np.float64]
Indices = NDArray[np.int64]


def nearest(points: Pairs) -> Indices:
    """Indices (i, j) of the lattice points 2i + j, sqrt(3) j nearest to points [N, 2].

    The lattice is two interleaved rectangular grids of 2 by 2 sqrt(3); the nearer of their two candidates wins.
    """
    best: Indices | None = None
    distance = np.full(len(points), np.inf)
    for parity in (0, 1):
        row = np.rint((points[:, 1] / ROOT3 - parity) / 2) * 2 + parity
        column = np.rint((points[:, 0] - parity) / 2) * 2 + parity
        gap = (points[:, 0] - column) ** 2 + (points[:, 1] - ROOT3 * row) ** 2
        found = np.stack([(column - row) / 2, row], axis=1).astype(np.int64)
        best = found if best is None else np.where((gap < distance)[:, None], found, best)
        distance = np.minimum(distance, gap)
    assert best is not None
    return best


def points_of(indices: Indices) -> Pairs:
    """Lattice points of indices [N, 2]."""
    return np.stack([2.0 * indices[:, 0] + indices[:, 1], ROOT3 * indices[:, 1]], axis=1)


def dither(count: int, rng: np.random.Generator) -> Pairs:
    """Uniform points of the Voronoi cell around 0: a point of the unit parallelogram less its nearest lattice point."""
    u, v = rng.random(count), rng.random(count)
    points = np.stack([2 * u + v, ROOT3 * v], axis=1)
    return points - points_of(nearest(points))


def coded(indices: Indices) -> bytes:
    """Entropy-coded indices: two streams of zigzag bytes, Huffman-coded.

    The index along the slanted axis is sheared to a horizontal one first: the streams are then nearly independent, and
    coding them apart costs little.
    """
    streams = []
    for column in (indices[:, 0] + (indices[:, 1] >> 1), indices[:, 1]):
        zigzag = (column << 1) ^ (column >> 63)
        low = np.minimum(zigzag, 255).astype(np.uint8)
        rest = zigzag[zigzag >= 255].astype("<i8")
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        streams.append(coder.compress(low.tobytes()) + coder.flush() + rest.tobytes())
    return b"".join(streams)


def send(update: NDArray[np.float32], rng: np.random.Generator, *, rate: float) -> tuple[NDArray[np.float32], int]:
    """Quantises an update.

    Args:
        update: flat vector.
        rng: of the dither, the same at client and server.
        rate: bits an entry that the scale aims at.

    Returns:
        What the server decodes, and the bytes sent.
    """
    norm = float(np.linalg.norm(update))
    if norm == 0:
        return np.zeros_like(update), _HEAD
    pairs = np.zeros((-(-update.size // 2), 2))
    pairs.reshape(-1)[: update.size] = update / norm
    shift = dither(len(pairs), rng)
    budget = rate * update.size / 8
    spread = 1.0 / update.size**0.5
    low, high = spread / 64, spread * 64
    for _ in range(12):  # bisection of the lattice's scale in the logarithm
        middle = (low * high) ** 0.5
        if len(coded(nearest(pairs / middle + shift))) > budget:
            low = middle
        else:
            high = middle
    indices = nearest(pairs / high + shift)
    decoded = (points_of(indices) - shift) * (high * norm)
    return decoded.reshape(-1)[: update.size].astype(np.float32), len(coded(indices)) + _HEAD
