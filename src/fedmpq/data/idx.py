"""The idx files of MNIST and its kin (Fashion-MNIST, KMNIST, EMNIST), gzipped or not."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
from numpy.typing import NDArray

from fedmpq.data.dataset import Dataset, Split
from fedmpq.data.tree import MAX_FILE_BYTES, Tree
from fedmpq.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def is_idx(tree: Tree) -> bool:
    """Whether a tree holds idx files."""
    return any(name.removesuffix(".gz") == FILES["train"][0] for name in tree.names)


def read_idx(tree: Tree, name: str) -> Dataset:
    """Read the four idx files.

    Raises:
        DataError: a file is absent, truncated or not what its header claims.
    """
    splits = {}
    for part, (images_name, labels_name) in FILES.items():
        images = _array(tree, images_name, dimensions=3)
        labels = _array(tree, labels_name, dimensions=1)
        if len(images) != len(labels):
            raise DataError(f"{tree.path}: {images_name} has {len(images)} images, {labels_name} {len(labels)} labels")
        splits[part] = Split(images[..., np.newaxis], labels.astype(np.uint16))
    count = int(max(split.labels.max(initial=0) for split in splits.values())) + 1
    fashion = name == "fashion-mnist" and count == len(FASHION_CLASSES)
    classes = FASHION_CLASSES if fashion else tuple(str(i) for i in range(count))
    return Dataset.build(name, classes, splits["train"], splits["test"])


def _array(tree: Tree, name: str, dimensions: int) -> NDArray[np.uint8]:
    """One idx file: two zero bytes, type 8 (uint8), the number of dimensions, each as big-endian uint32, the data."""
    file = next((each for each in tree.names if each.removesuffix(".gz") == name), None)
    if file is None:
        raise DataError(f"{tree.path} lacks {name}")
    content = tree.read(file)
    if file.endswith(".gz"):
        try:
            content = _unpack(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} in {tree.path} is damaged: {error}") from None
        if len(content) > MAX_FILE_BYTES:
            raise DataError(f"{file} in {tree.path} unpacks to more than {MAX_FILE_BYTES} bytes")
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{file} in {tree.path} is not an idx file of {dimensions} dimensions of bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))
    need = header + int(np.prod(shape, dtype=object))
    if len(content) != need:
        raise DataError(f"{file} in {tree.path} has {len(content)} bytes where {shape} needs {need}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _unpack(content: bytes) -> bytes:
    """The content of a gzip file, but little more than `MAX_FILE_BYTES`: a small file can unpack to any size."""
    pieces, size = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while size <= MAX_FILE_BYTES and (piece := file.read(1 << 20)):
            pieces.append(piece)
            size += len(piece)
    return b"".join(pieces)
