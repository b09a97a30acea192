"""UVeQFed (Shlezinger et al. 2020): updates by subtractive dithered hexagonal lattice quantisation, as bytes.

Pairs of entries are quantised to the hexagonal lattice with generator [2 1; 0 sqrt(3)], scaled so that the coded
indices take about `rate` bits an entry. The dither is uniform on the lattice's Voronoi cell and drawn from a seed that
client and server share: the server subtracts it, which makes the error independent of the update. On the wire: norm and
lattice scale (float32), then the two coordinate streams, entropy-coded by DEFLATE's Huffman coder.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import FormatError

ROOT3 = 3.0**0.5
_HEAD = struct.Struct("<ff")
#: Bytes before the streams.
HEAD_BYTES = _HEAD.size

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
    coding them apart costs little. Values of 255 and more follow their stream as 64-bit integers.
    """
    streams = []
    for column in (indices[:, 0] + (indices[:, 1] >> 1), indices[:, 1]):
        zigzag = (column << 1) ^ (column >> 63)
        low = np.minimum(zigzag, 255).astype(np.uint8)
        rest = zigzag[zigzag >= 255].astype("<i8")
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        streams.append(coder.compress(low.tobytes()) + coder.flush() + rest.tobytes())
    return b"".join(streams)


def uncoded(data: bytes, count: int) -> Indices:
    """The inverse of `coded` for `count` pairs; FormatError for anything it does not write."""
    columns = []
    for _ in range(2):
        coder = zlib.decompressobj(-15)
        try:
            low = np.frombuffer(coder.decompress(data, count + 1), np.uint8)
        except zlib.error as error:
            raise FormatError(f"a UVeQFed update is damaged: {error}") from None
        zigzag = low.astype(np.int64)
        large = np.flatnonzero(zigzag == 255)
        data = coder.unused_data
        if zigzag.size != count or not coder.eof or len(data) < 8 * large.size:
            raise FormatError(f"a UVeQFed update is damaged: a stream of {zigzag.size} indices instead of {count}")
        zigzag[large] = np.frombuffer(data, "<i8", large.size)
        data = data[8 * large.size :]
        columns.append((zigzag >> 1) ^ -(zigzag & 1))
    if data:
        raise FormatError(f"a UVeQFed update has {len(data)} bytes too many")
    sheared, row = columns
    return np.stack([sheared - (row >> 1), row], axis=1)


def encode(update: NDArray[np.float32], rng: np.random.Generator, *, rate: float) -> bytes:
    """A flat update as bytes.

    Args:
        update: the entries.
        rng: of the dither; the server draws from one in the same state.
        rate: bits an entry that the scale aims at.
    """
    norm = float(np.float32(np.linalg.norm(update)))
    if norm == 0:
        return _HEAD.pack(0.0, 0.0)
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
    scale = float(np.float32(high))
    return _HEAD.pack(norm, scale) + coded(nearest(pairs / scale + shift))


def decode(data: bytes, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The update of `size` entries; `rng` in the state the client's had.

    Raises:
        FormatError: bytes that `encode` does not write.
    """
    if len(data) < _HEAD.size:
        raise FormatError(f"a UVeQFed update of {len(data)} bytes ends inside its header")
    norm, scale = _HEAD.unpack_from(data)
    if norm == 0 and len(data) == _HEAD.size:
        return np.zeros(size, np.float32)
    if not (np.isfinite(norm) and np.isfinite(scale) and norm > 0 and scale > 0):
        raise FormatError("a UVeQFed update has a norm or scale out of range")
    pairs = -(-size // 2)
    points = points_of(uncoded(data[_HEAD.size :], pairs)) - dither(pairs, rng)
    decoded: NDArray[np.float32] = (points * (scale * norm)).reshape(-1)[:size].astype(np.float32)
    return decoded
