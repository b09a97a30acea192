"""Shards: one device's labelled images in a file that is memory-mapped and never loaded whole (docs/data.md).

Only the standard library is used here: a device reads its data without NumPy. Images are uint8, row-major
[N, H, W, C]; labels are little-endian uint16 [N]. The file, all numbers little-endian:

    offset  size  field
         0     8  magic "FMPQSHRD"
         8     2  version (1)
        10     2  flags (0)
        12     4  N, number of images (1 or more)
        16     2  H, height in pixels
        18     2  W, width in pixels
        20     2  C, channels (1..16)
        22     2  classes (2..1024); every label is below it
        24    16  mean of each channel over the training set, rounded to uint8; unused bytes 0
        40     8  length of the whole file
        48    16  zeros
        64    32  SHA-256 of the whole file with these 32 bytes taken as zeros
        96    32  name of the data set, UTF-8, padded with zeros
       128    2N  labels, then zeros up to a multiple of 64
         …  NHWC  images
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, TypeAlias

from fedmpq.errors import DataError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"FMPQSHRD"
VERSION = 1
HEADER = struct.Struct("<8sHHIHHHH16sQ16s32s32s")
MAX_CHANNELS = 16
MAX_CLASSES = 1024
_HASH_AT = 64
_CHUNK = 1 << 18


class Images(Protocol):
    """Labelled images: a `Shard`, for example."""

    count: int
    shape: tuple[int, int, int]
    classes: int

    def images(self, start: int, stop: int) -> memoryview:
        """Images start..stop-1 as bytes, NHWC."""

    def labels(self, start: int, stop: int) -> memoryview:
        """Labels start..stop-1 as uint16."""


class ShardError(DataError):
    """A file that is not a shard this build can use; the message names the file and what is wrong with it."""


class Shard:
    """A shard opened for reading.

    Args:
        path: the file.
        verify: compare the SHA-256 of the whole file before anything is used. Costs one sequential read.

    Attributes:
        count: number of images, N.
        shape: (H, W, C) of every image.
        classes: number of classes; labels lie in 0..classes-1.
        mean: uint8 mean of each channel, C bytes.
        name: name of the data set it was cut from.
        sha256: the file's hash as hexadecimal digits, its identity in logs.

    Raises:
        ShardError: the file is absent, truncated, damaged, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool = True) -> None:
        self.path = Path(path)
        if sys.byteorder != "little":
            raise ShardError("shards are read on little-endian machines only")
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < HEADER.size:
                    raise self._bad(f"is {size} bytes long, shorter than the {HEADER.size}-byte header of a shard")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                try:
                    self._parse(size)
                    if verify and _digest(file) != self.sha256:
                        raise self._bad("is damaged: its SHA-256 is not the one in its header")
                    self._check_labels()
                except ShardError:
                    self.close()
                    raise
        except FileNotFoundError:
            raise self._bad("does not exist", "make shards with `fedmpq data partition`") from None
        except OSError as error:
            raise self._bad(f"cannot be read: {error.strerror}") from None

    def _parse(self, size: int) -> None:
        """Check every header field against its range and the file's size."""
        fields = HEADER.unpack_from(self._map)
        magic, version, flags, count, height, width, channels, classes, mean, total, zeros, digest, name = fields
        if magic != MAGIC:
            raise self._bad("is not a shard", "make shards with `fedmpq data partition`")
        if version != VERSION:
            raise self._bad(f"has shard version {version}, this build reads {VERSION}", "write the shard again")
        if flags or any(zeros) or any(mean[channels:]):
            raise self._bad("sets reserved header bytes")
        if not (count and height and width and 1 <= channels <= MAX_CHANNELS and 2 <= classes <= MAX_CLASSES):
            raise self._bad(f"claims {count} images of {height}x{width}x{channels} in {classes} classes, out of range")
        if total != size:
            kind = "truncated" if size < total else "too long"
            raise self._bad(f"is {kind}: {size} bytes instead of {total}")
        self.count: int = count
        self.shape: tuple[int, int, int] = (height, width, channels)
        self.classes: int = classes
        self.mean: bytes = mean[:channels]
        self.sha256: str = digest.hex()
        start = _images_at(count)
        self.image_bytes = height * width * channels
        if total != start + count * self.image_bytes:
            raise self._bad(
                f"has {total} bytes where {count} images of {height}x{width}x{channels} need another length"
            )
        try:
            self.name: str = name.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise self._bad("has a name that is not UTF-8") from None
        view = memoryview(self._map)
        self._labels = view[HEADER.size : HEADER.size + 2 * count].cast("H")
        self._images = view[start:]
        view.release()

    def _check_labels(self) -> None:
        highest = max(self._labels)
        if highest >= self.classes:
            at = next(i for i, label in enumerate(self._labels) if label >= self.classes)
            raise self._bad(f"labels image {at} with {self._labels[at]} but has {self.classes} classes")

    def _bad(self, problem: str, hint: str = "copy or write it again") -> ShardError:
        return ShardError(f"shard {self.path} {problem}", hint)

    def __len__(self) -> int:
        return self.count

    def images(self, start: int, stop: int) -> memoryview:
        """Images start..stop-1 as (stop - start)·H·W·C bytes of the mapped file, without a copy."""
        self._check_range(start, stop)
        return self._images[start * self.image_bytes : stop * self.image_bytes]

    def labels(self, start: int, stop: int) -> memoryview:
        """Labels start..stop-1 as uint16 (format "H") of the mapped file, without a copy."""
        self._check_range(start, stop)
        return self._labels[start:stop]

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"images {start}..{stop} of a shard of {self.count}")

    def gather(self, indices: Sequence[int], images: bytearray | memoryview, labels: memoryview) -> None:
        """Copy the images and labels at `indices`, in that order, to the front of two buffers the caller owns.

        Args:
            indices: image numbers, each in 0..count-1; repeats are allowed.
            images: writable bytes, at least len(indices)·H·W·C of them.
            labels: writable uint16 (format "H"), at least len(indices) of them.

        Raises:
            IndexError: an index out of range.
            ValueError: a buffer too small.
        """
        size = self.image_bytes
        if len(images) < len(indices) * size or len(labels) < len(indices):
            raise ValueError(f"{len(indices)} images need {len(indices) * size} bytes and {len(indices)} labels")
        for slot, index in enumerate(indices):
            if not 0 <= index < self.count:
                raise IndexError(f"image {index} of a shard of {self.count}")
            images[slot * size : (slot + 1) * size] = self._images[index * size : (index + 1) * size]
            labels[slot] = self._labels[index]

    def batch(self, indices: Sequence[int]) -> tuple[memoryview, memoryview]:
        """The images and labels at `indices` in fresh buffers: (bytes of [B, H, W, C], uint16 [B])."""
        images = memoryview(bytearray(len(indices) * self.image_bytes))
        labels = memoryview(bytearray(2 * len(indices))).cast("H")
        self.gather(indices, images, labels)
        return images, labels

    def close(self) -> None:
        """Unmap the file. Views that are still held keep the mapping alive until they go."""
        for view in (getattr(self, "_labels", None), getattr(self, "_images", None)):
            if view is not None:
                view.release()
        with contextlib.suppress(BufferError):  # a caller holds a slice: the mapping goes with it
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_shard(
    path: str | os.PathLike[str],
    images: Buffer,
    labels: Buffer,
    *,
    shape: tuple[int, int, int],
    classes: int,
    mean: bytes,
    name: str = "",
) -> str:
    """Write a shard so that a crash at any moment leaves either the old file or the whole new one.

    Args:
        path: the file to write.
        images: N·H·W·C bytes, row-major [N, H, W, C].
        labels: 2·N bytes, little-endian uint16.
        shape: (H, W, C).
        classes: number of classes of the whole data set, 2..1024.
        mean: uint8 mean of each channel, C bytes.
        name: name of the data set; cut to 32 bytes of UTF-8.

    Returns:
        The SHA-256 of the file's content as defined by the format, in hexadecimal digits.

    Raises:
        ShardError: sizes that do not fit together, or labels out of range.
    """
    path = Path(path)
    height, width, channels = shape
    image_bytes, label_bytes = memoryview(images).cast("B"), memoryview(labels).cast("B")
    count = len(label_bytes) // 2
    sizes_fit = len(label_bytes) == 2 * count and len(image_bytes) == count * height * width * channels
    if not (sizes_fit and 0 < count < 2**32 and 0 < height < 2**16 and 0 < width < 2**16):
        raise ShardError(f"cannot write shard {path}: {count} labels for {len(image_bytes)} bytes of {shape} images")
    if not (1 <= channels <= MAX_CHANNELS and len(mean) == channels and 2 <= classes <= MAX_CLASSES):
        raise ShardError(
            f"cannot write shard {path}: {channels} channels, {len(mean)} means, {classes} classes",
            f"a shard holds up to {MAX_CHANNELS} channels and 2 to {MAX_CLASSES} classes",
        )
    if max(label_bytes.cast("H")) >= classes:
        raise ShardError(f"cannot write shard {path}: a label is {max(label_bytes.cast('H'))} of {classes} classes")

    start = _images_at(count)
    total = start + len(image_bytes)
    text = name.encode()[:32].decode(errors="ignore").encode()
    fields = (MAGIC, VERSION, 0, count, height, width, channels, classes, mean, total, b"")
    padding = bytes(start - HEADER.size - len(label_bytes))
    digest = hashlib.sha256(HEADER.pack(*fields, b"", text))
    for part in (label_bytes, padding, image_bytes):
        digest.update(part)

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for part in (HEADER.pack(*fields, digest.digest(), text), label_bytes, padding, image_bytes):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ShardError(f"cannot write shard {path}: {error.strerror}") from None
    return digest.hexdigest()


def _images_at(count: int) -> int:
    """Offset of the first image: after the labels, at a multiple of 64."""
    return (HEADER.size + 2 * count + 63) // 64 * 64


def _digest(file: BinaryIO) -> str:
    """SHA-256 of a shard by reading, so that its pages are not counted as this process's memory."""
    file.seek(0)
    header = bytearray(file.read(HEADER.size))
    header[_HASH_AT : _HASH_AT + 32] = bytes(32)
    digest = hashlib.sha256(header)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
