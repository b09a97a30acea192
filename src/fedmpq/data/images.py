"""Decoding image files into one uint8 array."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fedmpq.data.dataset import Images, Split
from fedmpq.data.tree import Tree
from fedmpq.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"}


@dataclass(frozen=True)
class Entry:
    """One image file and its label."""

    name: str
    label: int


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return name.lower().endswith(EXTENSIONS)


def decode(
    tree: Tree, entries: Sequence[Entry], size: tuple[int, int] | None, advance: Callable[[int], None]
) -> tuple[Split, bool]:
    """Decode image files, all of one size.

    Args:
        tree: where the files lie.
        entries: what to decode, in the order wanted.
        size: (height, width) to resize to; None keeps the size, which must then be the same for all.
        advance: called with the number of images done since the last call.

    Returns:
        The images as [N, H, W, 3], and whether any of them is in colour; if not, the three channels are equal.

    Raises:
        DataError: a file that is no image, of another size than the first, or of more than 8 bits a channel.
    """
    images: Images | None = None
    colour = False
    for i, entry in enumerate(entries):
        pixels, coloured = _pixels(tree, entry.name, size)
        colour |= coloured
        if images is None:
            images = _allocate(len(entries), pixels.shape[:2], tree)
        if pixels.shape != images.shape[1:]:
            raise DataError(
                f"{entry.name} in {tree.path} is {_by(pixels)} but {entries[0].name} is {_by(images[0])}",
                "make the sizes equal, or ask for one size, for example --size 32x32",
            )
        images[i] = pixels
        if i % 256 == 255:
            advance(256)
    advance(len(entries) % 256)
    if images is None:
        raise DataError(f"{tree.path} holds no images")
    return Split(images, np.array([entry.label for entry in entries], dtype=np.uint16)), colour


def _pixels(tree: Tree, name: str, size: tuple[int, int] | None) -> tuple[Images, bool]:
    """One image as uint8 [H, W, 3], and whether it is in colour."""
    content = tree.read(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            if mode not in _GREY_MODES and mode not in _COLOUR_MODES:
                raise DataError(f"{name} in {tree.path} has pixels of kind {mode}", "convert it to 8 bits a channel")
            rgb = image.convert("RGB")
            if size is not None and rgb.size != (size[1], size[0]):
                rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(rgb), mode not in _GREY_MODES
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise DataError(f"{name} in {tree.path} is not a readable image: {reason}", "remove or replace it") from None


def _allocate(count: int, size: tuple[int, ...], tree: Tree) -> Images:
    try:
        return np.empty((count, *size, 3), dtype=np.uint8)
    except MemoryError:
        need = count * size[0] * size[1] * 3
        raise DataError(
            f"{count} images of {size[0]}x{size[1]} in {tree.path} take {need} bytes", "use --size"
        ) from None


def _by(image: Images) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
