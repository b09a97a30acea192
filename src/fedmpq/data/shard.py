"""Writing splits and partitions as shards, the files devices map (format: `fedmpq.edge_runtime.shard`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.data.dataset import Dataset, Split
from fedmpq.data.partition import Part
from fedmpq.edge_runtime.shard import write_shard
from fedmpq.errors import DataError


def write_split(path: str | os.PathLike[str], dataset: Dataset, split: Split) -> str:
    """Write one split of `dataset` as a shard and return its SHA-256.

    Raises:
        ShardError: no images, more than 16 channels or 1024 classes, or a file that cannot be written.
    """
    return write_shard(
        path,
        np.ascontiguousarray(split.images).reshape(-1).data,
        np.ascontiguousarray(split.labels, dtype="<u2").view(np.uint8).data,
        shape=dataset.shape,
        classes=len(dataset.classes),
        mean=bytes(dataset.mean),
        name=dataset.name,
    )


def write_partition(
    folder: str | os.PathLike[str], dataset: Dataset, parts: Sequence[Part] | None = None
) -> list[dict[str, Any]]:
    """Write `client-<number>.shard` for every part, and `test.shard` and, if there is one, `validation.shard`.

    Without parts the training images go undivided into `train.shard`.

    Returns:
        One record a file: file, client (None for the other files), images, per_class, sha256, bytes.

    Raises:
        DataError: the folder cannot be made or a shard cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}") from None
    records = []
    for file, client, split in _splits(dataset, parts):
        path = folder / file
        digest = write_split(path, dataset, split)
        per_class = np.bincount(split.labels, minlength=len(dataset.classes)).tolist()
        records.append(
            {"file": str(path), "client": client, "images": len(split), "per_class": per_class, "sha256": digest,
             "bytes": path.stat().st_size}
        )  # fmt: skip
    return records


def _splits(dataset: Dataset, parts: Sequence[Part] | None) -> Iterator[tuple[str, int | None, Split]]:
    """Every file of a partition, one at a time: a client's images are copied only while they are written."""
    if parts is None:
        yield "train.shard", None, dataset.train
    for part in parts or ():
        yield f"client-{part.client}.shard", part.client, dataset.train.take(part.indices)
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        if len(split):
            yield f"{name}.shard", None, split
