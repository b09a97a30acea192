"""FedPAQ (Reisizadeh et al. 2020): updates quantised by QSGD (Alistarh et al. 2017), as bytes.

Buckets of 512 entries share one fp32 scale, their largest magnitude; an entry is a sign and one of s + 1 levels,
rounded stochastically, so that the expectation is the update itself. On the wire: the scales (float32, little-endian),
then the entries as level + s in `bits` bits each, two to a byte at 4 bits, the first in the low half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import FormatError

BUCKET = 512


def levels_of(bits: int) -> int:
    """Levels above zero, s, of an entry of `bits` bits, sign included: 7 at 4 bits, 127 at 8."""
    return (1 << (bits - 1)) - 1


def encode(update: NDArray[np.float32], rng: np.random.Generator, *, bits: int) -> bytes:
    """A flat update as bytes; `rng` rounds and need not be shared. `bits`: 4 or 8."""
    levels = levels_of(bits)
    buckets = -(-update.size // BUCKET)
    padded = np.zeros(buckets * BUCKET, np.float32)
    padded[: update.size] = update
    table = padded.reshape(buckets, BUCKET)
    scale = np.abs(table).max(axis=1, keepdims=True)
    ratio = np.divide(np.abs(table), scale, out=np.zeros_like(table), where=scale > 0) * levels
    level = np.minimum(np.floor(ratio + rng.random(table.shape, np.float32)), levels)
    entries = (np.sign(table) * level).astype(np.int16).reshape(-1)[: update.size] + levels
    codes = entries.astype(np.uint8)
    if bits == 4:
        codes = np.append(codes, np.zeros(codes.size % 2, np.uint8))
        codes = codes[0::2] | codes[1::2] << 4
    data: bytes = scale.astype("<f4").tobytes() + codes.tobytes()
    return data


def coded_bytes(size: int, bits: int) -> int:
    """Bytes of a coded update of `size` entries: the scales of its buckets and its entries."""
    return 4 * -(-size // BUCKET) + (size * bits + 7) // 8


def decode(data: bytes, size: int, *, bits: int) -> NDArray[np.float32]:
    """The update of `size` entries.

    Raises:
        FormatError: another length, an entry or scale that `encode` does not write.
    """
    levels, buckets = levels_of(bits), -(-size // BUCKET)
    if len(data) != coded_bytes(size, bits):
        raise FormatError(f"a FedPAQ update of {len(data)} bytes, {size} entries take {coded_bytes(size, bits)}")
    scale = np.frombuffer(data, "<f4", buckets).astype(np.float32)
    codes = np.frombuffer(data, np.uint8, offset=4 * buckets)
    if bits == 4:
        if size % 2 and codes[-1] >> 4:
            raise FormatError("a FedPAQ update has bits after its last entry")
        codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)[:size]
    if not np.isfinite(scale).all() or bool((scale < 0).any()) or (codes.size and int(codes.max()) > 2 * levels):
        raise FormatError("a FedPAQ update has a scale or an entry out of range")
    entries = np.zeros(buckets * BUCKET, np.float32)
    entries[:size] = codes.astype(np.float32) - levels
    table = entries.reshape(buckets, BUCKET) * (scale[:, None] / levels)
    return table.reshape(-1)[:size].astype(np.float32)
