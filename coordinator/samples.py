"""Labelled images in memory, with the methods of an `edge_runtime.shard.Shard`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import DataError


class ArraySamples:
    """Images u8 [N, H, W, C] and labels u16 [N] as local training and evaluation read them.

    Args:
        images: the pixels; made contiguous.
        labels: below `classes`.
        classes: of the data set.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.integer], classes: int) -> None:
        if images.ndim != 4 or len(images) != len(labels):
            raise DataError(f"{images.shape} images do not go with {len(labels)} labels")
        self._images = np.ascontiguousarray(images, np.uint8)
        self._labels = np.ascontiguousarray(labels, np.uint16)
        self.count = len(images)
        height, width, channels = (int(n) for n in images.shape[1:])
        self.shape: tuple[int, int, int] = (height, width, channels)
        self.classes = classes

    def images(self, start: int, stop: int) -> memoryview:
        """Images start..stop-1 as bytes."""
        return self._images[start:stop].reshape(-1).data

    def labels(self, start: int, stop: int) -> memoryview:
        """Labels start..stop-1 as uint16."""
        return self._labels[start:stop].data

    def batch(self, indices: Sequence[int]) -> tuple[memoryview, memoryview]:
        """Images (bytes) and labels (uint16) at the indices, in their order."""
        index = np.asarray(indices, np.intp)
        return self._images[index].reshape(-1).data, self._labels[index].data

    def flipped(self) -> ArraySamples:
        """The same images with class c called classes - 1 - c."""
        found = ArraySamples(self._images, self._labels, self.classes)
        found._labels = (self.classes - 1 - self._labels).astype(np.uint16)
        return found
