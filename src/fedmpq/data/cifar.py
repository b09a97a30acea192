"""The "python version" files of CIFAR-10 and CIFAR-100, as their authors and torchvision distribute them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from fedmpq.data.dataset import Dataset, Split
from fedmpq.data.tree import Tree
from fedmpq.errors import DataError

_PIXELS = 32 * 32 * 3


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, bytes and NumPy arrays, and refuses every other class: pickles can run code."""

    _ALLOWED = frozenset(
        [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
        + [(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class("numpy._core.multiarray" if name == "_reconstruct" else module, name)


def is_cifar(tree: Tree) -> bool:
    """Whether a tree holds CIFAR's python files."""
    return "data_batch_1" in tree.names or {"train", "test", "meta"} <= set(tree.names)


def read_cifar(tree: Tree, name: str) -> Dataset:
    """Read CIFAR-10 (five batches and a test batch) or CIFAR-100 (train, test; fine labels).

    Raises:
        DataError: a file is absent, is not a plain pickle of arrays, or has the wrong shape.
    """
    if "data_batch_1" in tree.names:
        batches = [file for file in tree.names if file.startswith("data_batch_")]
        train, test, labels, meta, names = batches, ["test_batch"], b"labels", "batches.meta", b"label_names"
    else:
        train, test, labels, meta, names = ["train"], ["test"], b"fine_labels", "meta", b"fine_label_names"
    classes = tuple(text.decode() for text in _unpickle(tree, meta, names, list))
    return Dataset.build(name, classes, _split(tree, train, labels), _split(tree, test, labels))


def _split(tree: Tree, files: list[str], labels_key: bytes) -> Split:
    images, labels = [], []
    for file in files:
        pixels = _unpickle(tree, file, b"data", np.ndarray)
        numbers = _unpickle(tree, file, labels_key, list)
        if pixels.dtype != np.uint8 or pixels.shape != (len(numbers), _PIXELS):
            raise DataError(f"{file} in {tree.path} is {pixels.dtype} {pixels.shape} with {len(numbers)} labels")
        # Stored as planes [N, C, H, W]; ours are pixels [N, H, W, C].
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        try:
            labels.append(np.array(numbers, dtype=np.uint16))
        except (OverflowError, TypeError, ValueError):
            raise DataError(f"{file} in {tree.path} has labels that are not small numbers") from None
    return Split(np.concatenate(images), np.concatenate(labels))


def _unpickle(tree: Tree, file: str, key: bytes, kind: type) -> Any:
    if file not in tree.names:
        raise DataError(f"{tree.path} lacks {file}")
    try:
        content = _ArrayUnpickler(io.BytesIO(tree.read(file)), encoding="bytes").load()
        value = content[key]
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 -- a damaged pickle can raise anything
        raise DataError(f"{file} in {tree.path} is not a CIFAR batch: {error}") from None
    if not isinstance(value, kind):
        raise DataError(f"{file} in {tree.path} has {type(value).__name__} as {key.decode()}")
    return value
