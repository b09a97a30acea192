"""The bundle a full-precision run trains: ONNX Runtime training files and what is needed to feed them, in one file.

A container (docs/artifact.md) with the sections `manifest` (canonical JSON), `training`, `eval` and `optim` (ONNX) and
`state` (an ONNX Runtime checkpoint). Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from fedmpq.edge_runtime import container
from fedmpq.errors import FormatError, VersionError

FORMAT: Final = 1
SECTIONS: Final = ("manifest", "training", "eval", "optim", "state")
#: What each section is called as a file, as ONNX Runtime's own tools name them.
FILES: Final = {
    "manifest": "manifest.json",
    "training": "training_model.onnx",
    "eval": "eval_model.onnx",
    "optim": "optimizer_model.onnx",
    "state": "checkpoint",
}
#: Pixels less the channel mean are divided by this: about one standard deviation of natural images.
PIXEL_UNIT: Final = 64.0


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the state: its name in the model and the graphs, its shape, whether training changes it by SGD."""

    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def size(self) -> int:
        """Number of floats."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A parsed bundle.

    Attributes:
        sha256: of the file.
        model: name of the model, for people.
        engine: the onnxruntime version that made the graphs.
        in_shape: height, width, channels of an image.
        classes: outputs.
        mean: subtracted from each channel's pixels.
        crop_pad: padding of the random crop.
        values: tensors of the state in the order in which they travel, as float32, little-endian.
        statistics: (output of the training graph, value it replaces, positions of an image): running statistics of
            batch-norm. Where positions are not 0 the value is a variance, which PyTorch keeps unbiased.
        parts: the graphs and the checkpoint by section.
    """

    sha256: str
    model: str
    engine: str
    in_shape: tuple[int, int, int]
    classes: int
    mean: tuple[int, ...]
    crop_pad: int
    values: tuple[Value, ...]
    statistics: tuple[tuple[str, str, int], ...]
    parts: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Floats of the state."""
        return sum(value.size for value in self.values)

    def write_files(self, folder: Path) -> list[Path]:
        """The bundle as single files, which ONNX Runtime's own interfaces read."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for section, name in FILES.items():
            paths.append(folder / name)
            container.write_atomic(folder / name, self.parts[section])
        return paths


def pack(manifest: dict[str, Any], graphs: Mapping[str, bytes]) -> bytes:
    """A bundle's bytes; `graphs` has the sections but `manifest`."""
    text = json.dumps({"format": FORMAT, **manifest}, sort_keys=True, separators=(",", ":")).encode()
    return container.pack({"manifest": text, **{name: graphs[name] for name in SECTIONS[1:]}})


def parse(data: bytes, source: str = "bundle") -> Bundle:
    """Reads a bundle and checks every field of its manifest.

    Raises:
        FormatError: not a bundle, or a manifest that contradicts itself; VersionError, TruncatedError, HashError.
    """
    sections = {name: bytes(view) for name, view in container.unpack(data, source).items()}
    if tuple(sections) != SECTIONS:
        raise FormatError(
            f"{source} is not a bundle for full-precision training: it has the sections {', '.join(sections)}",
            "fedmpq export MODEL --target ort-training makes one",
        )
    try:
        manifest = json.loads(sections["manifest"])
        if manifest.get("format") != FORMAT:
            raise VersionError(f"{source} has bundle format {manifest.get('format')}, this build reads {FORMAT}")
        height, width, channels = (_count(n) for n in manifest["image"])
        values = tuple(
            Value(str(name), tuple(_count(n) for n in shape), bool(trained))
            for name, shape, trained in manifest["values"]
        )
        bundle = Bundle(
            hashlib.sha256(data).hexdigest(),
            str(manifest["model"]),
            str(manifest["engine"]),
            (height, width, channels),
            _count(manifest["classes"]),
            tuple(_pixel(n) for n in manifest["mean"]),
            _pixel(manifest["crop_pad"]),
            values,
            tuple((str(output), str(name), int(count)) for output, name, count in manifest["statistics"]),
            sections,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{source} has a damaged manifest: {type(error).__name__}: {error}") from None
    names = {value.name for value in values}
    if len(names) != len(values) or not values or len(bundle.mean) != channels:
        raise FormatError(f"{source} has a damaged manifest: equal names or a wrong number of means")
    if not {name for _, name, _ in bundle.statistics} <= {value.name for value in values if not value.trained}:
        raise FormatError(f"{source} has a damaged manifest: statistics of tensors it does not have")
    return bundle


def _count(value: object) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"{value!r} is no size")
    return value


def _pixel(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise ValueError(f"{value!r} is no pixel")
    return value
