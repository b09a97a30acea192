"""What a full-precision client does to its change before it sends it, by method, and the server's inverse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpq.edge_runtime.ort import fedpaq, uveqfed
from fedmpq.errors import FormatError

_FEDPAQ_BITS = {"fedpaq": 4, "fedpaq8": 8}
_UVEQFED_RATES = {"uveqfed": 2.0, "uveqfed4": 4.0}


def generator(seed: int, round_no: int, client: int) -> np.random.Generator:
    """The generator that a client and the server share for one update."""
    return np.random.default_rng((seed, round_no, client))


def encode(method: str, update: NDArray[np.float32], rng: np.random.Generator) -> bytes:
    """A flat update as it travels. `method`: of `protocol.METHODS`."""
    if method in _FEDPAQ_BITS:
        return fedpaq.encode(update, rng, bits=_FEDPAQ_BITS[method])
    if method in _UVEQFED_RATES:
        return uveqfed.encode(update, rng, rate=_UVEQFED_RATES[method])
    return update.astype("<f4").tobytes()


def most_bytes(method: str, size: int) -> int:
    """Bytes at most of a coded update of `size` entries: no coding makes more of it than float32 does, head aside."""
    if method in _FEDPAQ_BITS:
        return fedpaq.coded_bytes(size, _FEDPAQ_BITS[method])
    return 4 * size + (uveqfed.HEAD_BYTES if method in _UVEQFED_RATES else 0)


def decode(method: str, data: bytes, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The update of `size` entries that the server counts.

    Raises:
        FormatError: bytes that `encode` does not write for this method, or values that are not finite.
    """
    if method in _FEDPAQ_BITS:
        update = fedpaq.decode(data, size, bits=_FEDPAQ_BITS[method])
    elif method in _UVEQFED_RATES:
        update = uveqfed.decode(data, size, rng)
    else:
        if len(data) != 4 * size:
            raise FormatError(f"an update of {len(data)} bytes, {size} values take {4 * size}")
        update = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(update).all():
        raise FormatError("an update holds a value that is not finite")
    return update
