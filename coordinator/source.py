"""What a run trains: an artifact file, or a model by name compiled for the data at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedmpq.coordinator import initial, layout
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.layout import Layout
from fedmpq.edge_runtime import artifact
from fedmpq.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from fedmpq.export.state import LayerInit
    from fedmpq.models.reference.program import Program, Record


class DataShape(Protocol):
    """What a model must fit: of a shard or a data set."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""

    @property
    def classes(self) -> int:
        """Number of classes."""


@dataclass(frozen=True)
class Source:
    """A program and its first weights.

    Attributes:
        program: the program's bytes.
        layout: its weight layers.
        initial: makes the first global model.
        name: for people.
    """

    program: bytes
    layout: Layout
    initial: Callable[[], GlobalModel]
    name: str


def module_of(name: str, data: DataShape, seed: int) -> nn.Module:
    """A model by name for images of this shape, with PyTorch's own initial weights for `seed`."""
    import torch

    from fedmpq.export import model as export

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return export.resolve(name, num_classes=data.classes, in_channels=data.shape[2])


def of_artifact(path: Path) -> Source:
    """The program and weights of an artifact file; FormatError if it is none."""
    found = artifact.read(path)
    shapes = layout.of_program(found.program)
    return Source(found.program, shapes, lambda: initial.of_artifact(shapes, found), path.name)


def of_model(name: str, data: DataShape, mean: bytes, *, crop_pad: int, seed: int) -> Source:
    """A model by name, compiled for images of this shape, with PyTorch's own initial weights for `seed`.

    Raises:
        ModelError, UnsupportedOpError: as `export.model` says.
    """
    from fedmpq.export import model as export
    from fedmpq.models.reference.program import parse

    height, width, channels = data.shape
    module = module_of(name, data, seed)
    compiled = export.from_module(module, (channels, height, width), mean=tuple(mean), crop_pad=crop_pad, name=name)
    program = parse(compiled.program)
    shapes = layout.of_program(compiled.program)
    floats = [_constants(record, compiled.state[record.name], program) for record in program.weight_layers]
    return Source(compiled.program, shapes, lambda: initial.of_floats(shapes, floats), name)


def _constants(record: Record, values: LayerInit, program: Program) -> LayerInit:
    """The values in global units, which leave out the input's exponent: it is the same on all devices.

    Running statistics of batch-norms are forgotten within a few steps; the constants of biased records stay.
    """
    if not record.biased or values.mean is None or values.var is None:
        return values
    factor = 2.0 ** program.exponents[record.input]
    return replace(values, mean=values.mean / factor, var=values.var / factor**2)


def check_fit(program: bytes, data: DataShape, what: str) -> None:
    """Refuses data of another image shape or with more classes than the program has; DataError says both."""
    height, width, channels, classes = (int.from_bytes(program[at : at + 2], "little") for at in (16, 18, 20, 22))
    if (height, width, channels) != tuple(data.shape) or data.classes > classes:
        have = "×".join(map(str, data.shape))
        raise DataError(
            f"{what} holds {have} images of {data.classes} classes, "
            f"the program takes {height}×{width}×{channels} and {classes} classes"
        )
