"""From a name or a path to a `Dataset`: where to look, which layout it is, what to keep for the next time."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import fedmpq
from fedmpq.data import cache
from fedmpq.data.cifar import is_cifar, read_cifar
from fedmpq.data.dataset import Dataset
from fedmpq.data.digits import read_digits
from fedmpq.data.download import REMOTES, download
from fedmpq.data.idx import is_idx, read_idx
from fedmpq.data.keywords import read_keywords
from fedmpq.data.report import Reporter, silent
from fedmpq.data.tree import Tree, open_tree, printable
from fedmpq.errors import DataError

#: What a named data set may be called on disk, in the order of preference.
_FILES = {
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "fashion-mnist.zip"),
    "cifar10": ("cifar10.zip", "cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar100.zip", "cifar100", "cifar-100-python", "cifar-100-python.tar.gz"),
    "tiny-imagenet": ("tiny-imagenet-200", "tiny-imagenet", "tiny-imagenet-200.zip", "tiny-imagenet.zip"),
}
#: The known names, for help texts and messages.
NAMES = ("digits", "keywords", *_FILES)


def load(
    source: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    validation: float = 0,
    seed: int = 0,
    report: Reporter = silent,
) -> Dataset:
    """Load a data set.

    Args:
        source: a name from `NAMES`, or the path of a folder or archive: image files in ImageFolder or Tiny-ImageNet
            layout, CIFAR's python files, or MNIST's idx files.
        size: (height, width) to resize image files to.
        validation: number, or share below 1, of training images to hold out, every class alike.
        seed: fixes which images are held out.
        report: told about decoding and downloading.

    Raises:
        DataError: nothing found, or what is there cannot be used; the message names the file.
    """
    if os.fspath(source) == "digits":
        dataset = read_digits()
    elif os.fspath(source) == "keywords":
        dataset = read_keywords(report=report)
    else:
        path, name = locate(source, report)
        dataset = _load_tree(open_tree(path), name, size, report)
    if size is not None and dataset.shape[:2] != size:
        raise DataError(f"{dataset.name} is {dataset.shape[0]}x{dataset.shape[1]}", "only image files can be resized")
    return dataset.hold_out(validation, seed) if validation else dataset


def locate(source: str | os.PathLike[str], report: Reporter = silent) -> tuple[Path, str]:
    """The path of a data set and the name it goes by; downloads a named one that is nowhere on disk.

    Named sets are looked for in the folders of `FEDMPQ_DATA` (separated by colons), in `data` and `../shared/data`
    beside the working folder and beside the project, where the distribution's packages put them, and in the cache.
    """
    text = os.fspath(source)
    if text not in _FILES:
        path = Path(text).expanduser()
        if not path.exists():
            known = ", ".join(NAMES)
            raise DataError(f"no data set called {text} and no such path", f"known names: {known}")
        stem = re.sub(r"(\.tar)?\.(zip|tgz|gz|xz|bz2|tar)$", "", path.resolve().name)
        return path, printable(stem) or "data"
    found = find_named(text)
    if found is not None:
        return found, text
    target = cache.cache_folder() / "downloads" / text
    remotes = REMOTES[text]
    try:
        download(remotes, target, report)
    except DataError as error:
        looked = ", ".join(dict.fromkeys(str(folder) for folder in _search_folders()))
        raise DataError(
            f"{text} is not on this machine and cannot be fetched: {error.message}",
            f"put {_FILES[text][0]} into one of {looked}, or set FEDMPQ_DATA to its folder",
        ) from None
    return (target / remotes[0].file if len(remotes) == 1 else target), text


def find_named(name: str) -> Path | None:
    """Where on this machine the data set called `name` lies, or None; never downloads."""
    candidates = (folder / file for folder in _search_folders() for file in _FILES[name])
    return next((path for path in candidates if path.exists()), None)


def _search_folders() -> list[Path]:
    project = Path(fedmpq.__file__).resolve().parents[2]
    bases = [Path(), project] if (project / "pyproject.toml").exists() else [Path()]  # a checkout, not site-packages
    given = [Path(folder) for folder in os.environ.get("FEDMPQ_DATA", "").split(os.pathsep) if folder]
    beside = [base / folder for base in bases for folder in ("data", "../shared/data")]
    return [*given, *beside, Path("/usr/share/datasets"), cache.cache_folder() / "downloads"]


def _load_tree(tree: Tree, name: str, size: tuple[int, int] | None, report: Reporter) -> Dataset:
    """Read a tree by its layout; what takes long to decode comes from the cache the second time."""
    if is_idx(tree):
        return read_idx(tree, name)
    key = hashlib.sha256(f"{tree.fingerprint()} {name} {size} {cache.LOADER_VERSION}".encode()).hexdigest()[:32]
    cached = cache.get(key)
    if cached is not None:
        return cached
    if is_cifar(tree):
        dataset = read_cifar(tree, name)
    else:
        from fedmpq.data.folders import read_folders  # needs Pillow, which the other layouts do not

        dataset = read_folders(tree, name, size, report)
    cache.put(key, dataset)
    return dataset
