"""The idx files of MNIST's kin and CIFAR's python files, made here in miniature."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from fedmpq.data import load
from fedmpq.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files(train: int = 12, test: int = 6, suffix: str = ".gz") -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    wrap = gzip.compress if suffix else bytes
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        files[f"{prefix}-images-idx3-ubyte{suffix}"] = wrap(idx(images))
        files[f"{prefix}-labels-idx1-ubyte{suffix}"] = wrap(idx(labels))
    return files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(write_folder, write_zip, suffix):
    files = idx_files(suffix=suffix)
    for path in (write_folder(files), write_zip(files)):
        dataset = load(path)
        assert dataset.shape == (5, 4, 1)
        assert dataset.classes == ("0", "1", "2")
        assert (len(dataset.train), len(dataset.test)) == (12, 6)
        expected = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
        assert np.array_equal(dataset.train.images[..., 0], expected)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("train-images-idx3-ubyte.gz", lambda data: data[:-9], "is damaged"),
        ("train-images-idx3-ubyte.gz", lambda data: b"plain", "is damaged"),
        ("t10k-images-idx3-ubyte.gz", lambda data: None, "lacks t10k-images-idx3-ubyte"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(idx(np.zeros(11, np.uint8))), "12 images, .* 11 la"),
        ("train-labels-idx1-ubyte.gz", lambda data: gzip.compress(idx(np.zeros((12, 1), np.uint8))), "not an idx file"),
        ("train-images-idx3-ubyte.gz", lambda data: gzip.compress(gzip.decompress(data)[:-1]), "has 255 bytes where"),
        ("train-images-idx3-ubyte.gz", lambda data: gzip.compress(gzip.decompress(data)[:9]), "not an idx file of 3"),
        ("train-images-idx3-ubyte.gz", lambda data: gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3)),
         "has 16 bytes where"),
    ],
)  # fmt: skip
def test_damaged_idx_files_are_named(write_folder, name, change, problem):
    files = idx_files()
    files[name] = change(files[name])
    folder = write_folder({each: content for each, content in files.items() if content is not None})
    with pytest.raises(DataError, match=problem):
        load(folder)


def test_an_idx_file_that_unpacks_to_too_much_is_refused(write_folder, monkeypatch):
    monkeypatch.setattr("fedmpq.data.idx.MAX_FILE_BYTES", 1 << 20)
    asked = []
    whole = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size=-1: (asked.append(size), whole(file, size))[1])
    files = idx_files() | {"t10k-images-idx3-ubyte.gz": gzip.compress(bytes(5 << 20))}
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz in .* unpacks to more than 1048576 bytes"):
        load(write_folder(files))
    assert 0 < sum(asked[-2:]) <= 2 << 20  # not all of it was unpacked to find that out
    assert min(asked) > 0


def batch(count: int, classes: int, seed: int, key: bytes = b"labels") -> bytes:
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [int(each) for each in generator.integers(0, classes, count)]
    return pickle.dumps({b"data": data, key: labels, b"batch_label": b"x"}, protocol=2)


def cifar10_files() -> dict[str, bytes]:
    files = {f"cifar-10-batches-py/data_batch_{i}": batch(4, 3, i) for i in range(1, 6)}
    files["cifar-10-batches-py/test_batch"] = batch(6, 3, 9)
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({b"label_names": [b"ant", b"bee", b"cow"]}, protocol=2)
    return files


def test_cifar10_files_in_a_folder_and_a_tar(write_folder, tmp_path):
    files = cifar10_files()
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for path in (write_folder(files), archive):
        dataset = load(path)
        assert dataset.classes == ("ant", "bee", "cow")
        assert (len(dataset.train), len(dataset.test), dataset.shape) == (20, 6, (32, 32, 3))
        planes = np.random.default_rng(1).integers(0, 256, (4, 3072), dtype=np.uint8).reshape(4, 3, 32, 32)
        assert np.array_equal(dataset.train.images[0][..., 1], planes[0, 1])
    assert dataset.name == "cifar-10-python"


def test_cifar100_files(write_folder):
    files = {"train": batch(30, 5, 0, b"fine_labels"), "test": batch(9, 5, 1, b"fine_labels")}
    files["meta"] = pickle.dumps({b"fine_label_names": [b"a", b"b", b"c", b"d", b"e"]}, protocol=2)
    dataset = load(write_folder(files))
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (30, 9, 5)


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("data_batch_2", pickle.dumps({b"data": Evil(), b"labels": []}), "asks for builtins.print"),
        ("data_batch_2", b"", "is not a CIFAR batch"),
        ("data_batch_2", batch(4, 3, 0)[:-20], "is not a CIFAR batch"),
        ("data_batch_2", pickle.dumps({b"data": np.zeros((4, 3072), np.uint8)}, protocol=2), "is not a CIFAR batch"),
        ("data_batch_2", pickle.dumps({b"data": np.zeros((4, 3071), np.uint8), b"labels": [0] * 4}), "with 4 labels"),
        (
            "data_batch_2",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, -1]}),
            "not small numbers",
        ),
        (
            "data_batch_2",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 3]}),
            "label 3 .* 3 classes",
        ),
        ("test_batch", None, "lacks test_batch"),
    ],
)
def test_damaged_or_hostile_cifar_files_are_refused(write_folder, capsys, file, content, problem):
    files = cifar10_files() | {f"cifar-10-batches-py/{file}": content}
    with pytest.raises(DataError, match=problem):
        load(write_folder({name: each for name, each in files.items() if each is not None}))
    assert capsys.readouterr().out == ""


def test_a_damaged_tar_is_refused(tmp_path):
    path = tmp_path / "data.tar.gz"
    path.write_bytes(gzip.compress(b"no tar at all"))
    with pytest.raises(DataError, match="not a readable tar archive"):
        load(path)
