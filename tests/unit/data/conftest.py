"""Small data sets on disk, made by the tests themselves, and a cache that no test shares with the user."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDMPQ_CACHE", str(folder))
    monkeypatch.delenv("FEDMPQ_DATA", raising=False)
    return folder


def _encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Make an image file's content of uint8 [H, W] or [H, W, 3] pixels."""
    return _encode


@pytest.fixture
def image_files() -> Callable[..., dict[str, bytes]]:
    """Make `{name: content}` for splits of `per_class` random images of two classes."""

    def make(
        splits: tuple[str, ...] = ("train", "test"),
        per_class: int = 4,
        shape: tuple[int, ...] = (6, 5, 3),
        seed: int = 0,
    ) -> dict[str, bytes]:
        generator = np.random.default_rng(seed)
        files = {}
        for split in splits:
            for name in ("cat", "dog"):
                for i in range(per_class):
                    prefix = f"{split}/" if split else ""
                    files[f"{prefix}{name}/{i:03}.png"] = _encode(generator.integers(0, 256, shape, dtype=np.uint8))
        return files

    return make


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Write files under a folder and return it."""

    def write(files: dict[str, bytes], root: Path = tmp_path / "pictures") -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root

    return write


@pytest.fixture
def write_zip(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Write files into a zip archive and return its path."""

    def write(files: dict[str, bytes], path: Path = tmp_path / "pictures.zip") -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    return write
