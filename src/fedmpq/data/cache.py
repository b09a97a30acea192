"""Decoded data sets kept as NumPy files in the user's cache folder, to be memory-mapped the next time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from fedmpq.data.dataset import Dataset, Split

_PARTS = ("train", "test", "validation")
#: Part of every key: raise it when a loader's result changes.
LOADER_VERSION = 1


def cache_folder() -> Path:
    """`FEDMPQ_CACHE` if it is set, else the user's cache folder for fedmpq."""
    if chosen := os.environ.get("FEDMPQ_CACHE"):
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("fedmpq")


def get(key: str) -> Dataset | None:
    """The cached data set under `key`, memory-mapped, or None if it is absent or unreadable."""
    folder = cache_folder() / "datasets" / key
    try:
        meta = json.loads((folder / "meta.json").read_text())
        train, test, validation = (
            Split(
                np.load(folder / f"{part}-images.npy", mmap_mode="r", allow_pickle=False),
                np.load(folder / f"{part}-labels.npy", allow_pickle=False),
            )
            for part in _PARTS
        )
        mean = tuple(int(value) for value in meta["mean"])
        return Dataset(meta["name"], tuple(meta["classes"]), train, test, validation, mean)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def put(key: str, dataset: Dataset) -> bool:
    """Store a data set; False if the folder cannot be written, which is no reason to stop.

    The files appear under their key all at once, so a reader never sees half of them.
    """
    parent = cache_folder() / "datasets"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    except OSError:
        return False
    try:
        for part in _PARTS:
            split: Split = getattr(dataset, part)
            np.save(temporary / f"{part}-images.npy", np.ascontiguousarray(split.images))
            np.save(temporary / f"{part}-labels.npy", split.labels)
        meta = {"name": dataset.name, "classes": dataset.classes, "mean": dataset.mean}
        (temporary / "meta.json").write_text(json.dumps(meta))
        final = parent / key
        if final.exists():  # unreadable, or another process was faster: ours is as good
            shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    return True
