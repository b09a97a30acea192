"""Seals on control messages: HMAC-SHA256 with a key that only one device and its coordinator hold.

A sealed message is the message, a line feed, ``mac1:`` and 64 hex digits. The code covers the topic as well, so that a
message cannot be moved to another device, another kind or the other direction. Chunks carry no seal of their own: the
SHA-256 of every blob stands in a message that does.

Why symmetric: a plan is for one device only, so one shared key proves as much as a signature would, needs nothing but
the standard library, and works in both directions at the cost of one hash. See docs/security.md.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from fedmpq.edge_runtime.chunks import is_chunk
from fedmpq.errors import ProtocolError

KEY_SIZE: Final = 32
_MARK: Final = b"\nmac1:"
#: Bytes that a seal adds to a message.
SEAL_SIZE: Final = len(_MARK) + 64
_CONTEXT: Final = b"fedmpq sealed message 1\0"


class SealError(ProtocolError):
    """A message without a seal, or with one that its sender's key does not make."""


class Seal:
    """One device's key, on either side.

    Args:
        key: 32 secret bytes.
    """

    __slots__ = ("_state",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError(f"a message key has {KEY_SIZE} bytes, not {len(key)}")
        self._state = hmac.new(key, _CONTEXT, hashlib.sha256)

    def __repr__(self) -> str:
        """Never shows the key."""
        return "Seal(…)"

    def close(self, topic: str, body: bytes) -> bytes:
        """The message as it travels on `topic`; a chunk stays as it is."""
        return body if is_chunk(body) else body + _MARK + self._code(topic, body)

    def open(self, topic: str, data: bytes) -> bytes:
        """The message without its seal; a chunk as it is.

        Raises:
            SealError: there is no seal or it is not right for this topic and these bytes.
        """
        if is_chunk(data):
            return data
        body, mark, code = data[:-SEAL_SIZE], data[-SEAL_SIZE:-64], data[-64:]
        if mark != _MARK or len(data) < SEAL_SIZE:
            raise SealError("the message carries no seal")
        if not hmac.compare_digest(code, self._code(topic, body)):
            raise SealError("the message's seal is wrong")
        return body

    def _code(self, topic: str, body: bytes) -> bytes:
        state = self._state.copy()
        name = topic.encode()
        state.update(len(name).to_bytes(4, "big") + name)
        state.update(body)
        return state.hexdigest().encode()


def bare(data: bytes) -> bytes:
    """A message without its seal, whoever made it; for peers that hold no keys."""
    return data[:-SEAL_SIZE] if data[-SEAL_SIZE:-64] == _MARK else data
