"""Folder layouts of image files: ImageFolder with or without splits, and Tiny-ImageNet's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmpq.data.dataset import Dataset, Split, stratified_choice
from fedmpq.data.images import Entry, decode, is_image
from fedmpq.data.report import Reporter
from fedmpq.data.tree import Tree, printable
from fedmpq.errors import DataError

_TINY_ANNOTATIONS = "val/val_annotations.txt"
#: Share of images that become the test set where a folder has no split of its own.
TEST_SHARE = 0.2


@dataclass(frozen=True)
class _Layout:
    """Which files belong to which split, before any is decoded."""

    classes: tuple[str, ...]
    train: list[Entry]
    test: list[Entry]
    validation: list[Entry]


def read_folders(tree: Tree, name: str, size: tuple[int, int] | None, report: Reporter) -> Dataset:
    """Read a tree of image files.

    Layouts: `train/<class>/…` with `test/<class>/…` or `val/<class>/…` (with both, `val` becomes the validation
    split); `<class>/…` alone, of which every fifth image of each class is drawn for the test set; Tiny-ImageNet's
    `train/<wnid>/images/…` with `val/images/…` and `val/val_annotations.txt`.

    Raises:
        DataError: no layout recognised, no images, one class only, unknown classes in a split, or an image that
            cannot be decoded.
    """
    names = set(tree.names)
    if _TINY_ANNOTATIONS in names:
        layout = _tiny_imagenet(tree)
    elif any(each.startswith("train/") for each in names):
        layout = _split_folders(tree)
    else:
        layout = _flat_folders(tree)
    total = len(layout.train) + len(layout.test) + len(layout.validation)
    with report(f"decoding {name}", total) as advance:
        (train, colour), (test, test_colour) = (
            decode(tree, part, size, advance) for part in (layout.train, layout.test)
        )
        held, held_colour = (
            decode(tree, layout.validation, size, advance) if layout.validation else (train.take([]), False)
        )
    if not (colour or test_colour or held_colour):
        train, test, held = (Split(part.images[..., :1].copy(), part.labels) for part in (train, test, held))
    return Dataset.build(name, [printable(each) for each in layout.classes], train, test, held)


def _entries(tree: Tree, prefix: str) -> dict[str, list[str]]:
    """Image files under `prefix` by the folder below it, which is the class."""
    found: dict[str, list[str]] = {}
    for name in tree.names:
        rest = name[len(prefix) :]
        if name.startswith(prefix) and "/" in rest and is_image(name):
            found.setdefault(rest.partition("/")[0], []).append(name)
    return found


def _classes(tree: Tree, names: Sequence[str]) -> tuple[str, ...]:
    if len(names) < 2:
        found = f"only the class {names[0]}" if names else "no images in class folders"
        raise DataError(
            f"{tree.path} has {found}", "expected train/<class>/<image> and test/<class>/<image>, or <class>/<image>"
        )
    return tuple(sorted(names))


def _label(tree: Tree, classes: tuple[str, ...], found: dict[str, list[str]]) -> list[Entry]:
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise DataError(f"{tree.path}: {found[unknown[0]][0]} is of class {unknown[0]}, which has no training images")
    return [Entry(file, index[name]) for name in sorted(found) for file in found[name]]


def _split_folders(tree: Tree) -> _Layout:
    train = _entries(tree, "train/")
    classes = _classes(tree, list(train))
    test = _entries(tree, "test/")
    validation: dict[str, list[str]] = {}
    for folder in ("val/", "valid/", "validation/"):
        validation = validation or _entries(tree, folder)
    if not test:
        test, validation = validation, {}
    if not test:
        raise DataError(f"{tree.path} has train/ but no images in test/<class>/ or val/<class>/")
    return _Layout(classes, *(_label(tree, classes, part) for part in (train, test, validation)))


def _flat_folders(tree: Tree) -> _Layout:
    found = _entries(tree, "")
    classes = _classes(tree, list(found))
    entries = _label(tree, classes, found)
    labels = np.array([entry.label for entry in entries], dtype=np.uint16)
    chosen = set(stratified_choice(labels, round(TEST_SHARE * len(entries)), seed=0).tolist())
    train = [entry for i, entry in enumerate(entries) if i not in chosen]
    return _Layout(classes, train, [entries[i] for i in sorted(chosen)], [])


def _tiny_imagenet(tree: Tree) -> _Layout:
    train = _entries(tree, "train/")
    classes = _classes(tree, list(train))
    present = set(tree.names)
    validation: dict[str, list[str]] = {}
    for number, line in enumerate(tree.read(_TINY_ANNOTATIONS).decode(errors="replace").splitlines(), start=1):
        fields = line.split("\t")
        file = f"val/images/{fields[0]}"
        if len(fields) < 2 or file not in present:
            raise DataError(f"{_TINY_ANNOTATIONS} line {number} in {tree.path} names no image: {line[:80]!r}")
        validation.setdefault(fields[1], []).append(file)
    # The public test images carry no labels, so the validation images are what everyone tests on.
    return _Layout(classes, _label(tree, classes, train), _label(tree, classes, validation), [])
