"""The one type for image data: uint8 images with labels, split into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.uint16]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: uint8 [N, H, W, C]; may be a read-only memory map.
        labels: uint16 [N].
    """

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[Any]) -> Split:
        """A copy of the images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.intp)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training.

    Attributes:
        name: short name, as it appears in results.
        classes: class names; a label is an index into it.
        train: the images clients may train on.
        test: the images only final figures come from.
        validation: images held out of the training set, for choosing settings; empty unless asked for.
        mean: mean of each channel over `train`, rounded to uint8.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    validation: Split
    mean: tuple[int, ...]

    @classmethod
    def build(
        cls, name: str, classes: Sequence[str], train: Split, test: Split, validation: Split | None = None
    ) -> Dataset:
        """Check the parts against each other and compute the channel mean.

        Raises:
            DataError: an empty split, differing shapes, labels out of range.
        """
        if validation is None:
            validation = train.take([])
        for part, split in (("training", train), ("test", test), ("validation", validation)):
            _check(name, part, split, train.images.shape[1:], len(classes))
        return cls(name, tuple(classes), train, test, validation, channel_mean(train.images))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def hold_out(self, count: float, seed: int = 0) -> Dataset:
        """Move `count` images (or that share, if below 1) of every class alike from train to validation.

        The channel mean stays that of the whole training set: it is a constant of the program.
        """
        if not 0 <= count < len(self.train):
            raise DataError(
                f"cannot hold {count} of {len(self.train)} training images of {self.name} out for validation"
            )
        chosen = stratified_choice(self.train.labels, round(count * len(self.train)) if count < 1 else int(count), seed)
        rest = np.setdiff1d(np.arange(len(self.train)), chosen)
        return replace(self, train=self.train.take(rest), validation=self.train.take(chosen))

    def limit(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """At most so many training and test images, every class in proportion."""
        return replace(self, train=self._at_most(self.train, train, seed), test=self._at_most(self.test, test, seed))

    def _at_most(self, split: Split, count: int | None, seed: int) -> Split:
        if count is None or count >= len(split):
            return split
        if count < 1:
            raise DataError(f"cannot take {count} images of {self.name}", "ask for at least one")
        return split.take(stratified_choice(split.labels, count, seed))

    def describe(self) -> dict[str, Any]:
        """The facts `fedmpq data info` prints."""
        height, width, channels = self.shape
        return {
            "name": self.name,
            "height": height,
            "width": width,
            "channels": channels,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "train_per_class": np.bincount(self.train.labels, minlength=len(self.classes)).tolist(),
            "test_per_class": np.bincount(self.test.labels, minlength=len(self.classes)).tolist(),
        }


def _check(name: str, part: str, split: Split, shape: tuple[int, ...], classes: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != np.uint8 or labels.dtype != np.uint16 or images.ndim != 4:
        raise DataError(f"{name}: the {part} split is {images.dtype} {images.shape}, not uint8 [N, H, W, C]")
    if len(images) != len(labels):
        raise DataError(f"{name}: the {part} split has {len(images)} images but {len(labels)} labels")
    if images.shape[1:] != shape:
        raise DataError(f"{name}: the {part} images are {images.shape[1:]}, the training images {shape}")
    if part != "validation" and len(images) == 0:
        raise DataError(f"{name}: the {part} split is empty")
    if len(labels) and int(labels.max()) >= classes:
        raise DataError(f"{name}: the {part} split has label {int(labels.max())} but there are {classes} classes")


def channel_mean(images: Images) -> tuple[int, ...]:
    """Mean of each channel over all images and pixels, rounded half up, as integers 0..255."""
    totals = images.reshape(-1, images.shape[-1]).sum(axis=0, dtype=np.uint64)
    pixels = images.size // images.shape[-1]
    return tuple((2 * int(total) + pixels) // (2 * pixels) for total in totals)


def apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.intp]:
    """Split `total` into integers proportional to `weights` by largest remainders; ties go to the lower index."""
    exact = weights / weights.sum() * total
    counts: Indices = np.floor(exact).astype(np.intp)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def stratified_choice(labels: Labels, count: int, seed: int) -> Indices:
    """Choose `count` indices at random, every class in proportion to its size.

    Returns:
        Sorted indices. The choice depends on `labels`, `count` and `seed` only.
    """
    generator = np.random.default_rng(seed)
    sizes = np.bincount(labels)
    counts = apportion(count, sizes.astype(np.float64))
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:wanted]
        for label, wanted in enumerate(counts)
        if sizes[label]
    ]
    return np.sort(np.concatenate(chosen))
