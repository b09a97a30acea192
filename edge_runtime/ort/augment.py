"""Images as a full-precision client feeds them: centred, cropped and mirrored by the counter hash, NCHW float32.

The same draws as in integer training (docs/arithmetic.md, sections 2 and 5), so that both see the same pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpq.edge_runtime import sampling
from fedmpq.edge_runtime.ort.bundle import PIXEL_UNIT, Bundle

#: Stream of the crop and flip draws (docs/arithmetic.md, section 2).
STREAM = 0xFFFF0000

Floats = NDArray[np.float32]


def centred(images: memoryview | bytes, bundle: Bundle) -> Floats:
    """Pixels minus channel mean, NHWC."""
    pixels = np.frombuffer(images, np.uint8).reshape(-1, *bundle.in_shape)
    return pixels.astype(np.float32) - np.array(bundle.mean, np.float32)


def network_input(x: Floats) -> Floats:
    """Centred pixels as the network takes them: in units of `PIXEL_UNIT`, channels first."""
    return np.ascontiguousarray((x / np.float32(PIXEL_UNIT)).transpose(0, 3, 1, 2))


def crop_and_flip(x: Floats, pad: int, key: tuple[int, int, int, int], *, crop: bool, flip: bool) -> Floats:
    """Shifts each centred image by -pad..pad in y and x and mirrors it, as its random word says; outside is 0.

    Args:
        x: [B, H, W, C].
        pad: largest shift.
        key: seed, round, client, step.
        crop: whether to shift.
        flip: whether to mirror.
    """
    batch, height, width, _ = x.shape
    stream = sampling.derive(*key, STREAM)
    r = np.array([sampling.rand(stream, i) for i in range(batch)], np.int64)
    span = 2 * pad + 1
    none = np.zeros_like(r)
    dy = ((r & 0xFFFF) * span >> 16) - pad if crop else none
    dx = ((r >> 16 & 0x7FFF) * span >> 15) - pad if crop else none
    mirrored = (r >> 31 != 0) & flip
    ys = np.arange(height) + dy[:, None]
    xs = np.broadcast_to(np.arange(width), (batch, width))
    xs = np.where(mirrored[:, None], width - 1 - xs, xs) + dx[:, None]
    inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None, :]
    sample = np.arange(batch)[:, None, None]
    taken = x[sample, ys.clip(0, height - 1)[:, :, None], xs.clip(0, width - 1)[:, None, :]]
    return np.asarray(taken * inside[..., None], np.float32)
