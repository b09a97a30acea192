"""The two entry points: find a model by name, and compile a module into a program with its initial values."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import Node

from fedmpq.errors import ModelError
from fedmpq.export.calibrate import sizes
from fedmpq.export.lower import Options, lower
from fedmpq.export.program import ProgramBuilder, Record, program_id
from fedmpq.export.state import LayerInit
from fedmpq.export.trace import check_scores, trace
from fedmpq.export.units import biased, initial_values
from fedmpq.models.torchvision_ops import declare_missing


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model.

    Attributes:
        name: what errors and the manifest call it.
        program: the program's bytes.
        records: the same as objects.
        state: initial float values by record name, one entry for each weight layer.
    """

    name: str
    program: bytes
    records: tuple[Record, ...]
    state: dict[str, LayerInit]

    @property
    def sha256(self) -> str:
        """The program's id."""
        return program_id(self.program)

    @property
    def thetas(self) -> tuple[int, ...]:
        """Weights by weight layer."""
        return tuple(record.theta for record in self.records if record.theta)


def from_module(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    mean: Sequence[int] = (128,),
    std: Sequence[float] | None = None,
    crop_pad: int = 0,
    t_out: int = 0,
    t_residual: int = 1,
    classes: int | None = None,
    name: str = "",
) -> CompiledModel:
    """Compiles a PyTorch classifier into a program.

    Args:
        module: any module of one image input built of supported operations.
        input_shape: (channels, height, width), as PyTorch has it.
        mean: channel mean in pixels (0…255) that the program subtracts.
        std: pixel standard deviation by channel (in 0…1) the module was trained with; None for an untrained module.
        crop_pad: padding of the random crop on the device, in pixels.
        t_out: activation exponent of plain ReLU outputs (0 covers 0…3σ).
        t_residual: activation exponent of residual sums.
        classes: how many the module has to tell apart at least; None if that is its own matter.
        name: how errors call it; its class name by default.

    Raises:
        ModelError: it cannot be traced: several inputs, data-dependent control flow, wrong input shape, fewer
            scores than classes.
        UnsupportedOpError: operations without a record, all listed with source line and advice.
    """
    title = name or type(module).__name__
    channels, height, width = input_shape
    builder = ProgramBuilder((height, width, channels), mean, crop_pad)
    if std is not None:
        std = tuple(std) * (channels if len(std) == 1 else 1)
        if len(std) != channels or any(not value > 0 for value in std):
            raise ModelError(f"std {std} must hold one positive value for each of {channels} channels")
    graph = trace(module, input_shape, title)
    closed = lower(graph, builder, Options(t_out, t_residual), title)
    check_scores(title, builder.records[-1].out.c, classes)
    measured: dict[Node, float] = {}
    if biased(closed):
        wanted = {item.measured for item in biased(closed)}
        measured = sizes(graph, input_shape, wanted, trained=std is not None)
    state = initial_values(builder.records, closed, measured, std)
    return CompiledModel(title, builder.build(), tuple(builder.records), state)


def zoo_names() -> list[str]:
    """Names of the built-in models."""
    from fedmpq.models import zoo

    return sorted(zoo.MODELS)


def resolve(name: str, **parameters: Any) -> nn.Module:
    """The module that `name` stands for.

    Args:
        name: a built-in model ("resnet20"), "package.module:factory" or "path/to/file.py:factory". A factory is a
            callable that returns a module, a module class, or a module.
        parameters: passed to the factory as far as its signature has them, for example num_classes and in_channels.

    Raises:
        ModelError: nothing of that name, or what it names is not a module.
    """
    if ":" not in name:
        return _built_in(name, parameters)
    place, _, attribute = name.rpartition(":")
    with _import_from_here():
        found = _module_of(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [n for n in dir(found) if not n.startswith("_")], 1)
            raise ModelError(f"{place} has no {attribute!r}", f"did you mean {near[0]}?" if near else "")
        found = getattr(found, part)
    return _instance(name, found, parameters)


def _built_in(name: str, parameters: dict[str, Any]) -> nn.Module:
    from fedmpq.models import zoo

    if name in zoo.MODELS:
        return _instance(name, zoo.MODELS[name], parameters)
    if name.endswith((".pt", ".pth", ".pkl")):
        raise ModelError(
            f"{name} is a pickle and not read: it could run anything", "give package.module:factory or file.py:factory"
        )
    near = difflib.get_close_matches(name, zoo.MODELS, 1)
    raise ModelError(
        f"there is no model {name!r}",
        (f"did you mean {near[0]}? " if near else "")
        + f"built in: {', '.join(zoo_names())}; your own: package.module:factory or file.py:factory",
    )


def _module_of(place: str) -> Any:
    try:
        return _import(place)
    except ModelError as error:
        # torchvision's wheels do not import beside a CPU build of torch until their operators are declared
        if "torchvision::" not in error.message or not declare_missing():
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return _import(place)


def _import(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        if not path.is_file():
            raise ModelError(f"there is no file {place}")
        spec = importlib.util.spec_from_file_location(f"_fedmpq_user_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ModelError:
        raise
    except ModuleNotFoundError as error:
        raise ModelError(f"cannot import {place}: {error}", "is it installed, or in the current folder?") from error
    except Exception as error:
        raise ModelError(f"cannot import {place}: {type(error).__name__}: {error}") from error
    else:
        return module


def _instance(name: str, found: Any, parameters: dict[str, Any]) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"{name} is neither a module nor callable")
    factory: Callable[..., Any] = found
    try:
        known = inspect.signature(factory).parameters
        accepted = {key: value for key, value in parameters.items() if key in known}
        module = _with_classes(factory, accepted, parameters) or factory(**accepted)
    except Exception as error:
        raise ModelError(f"{name} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _with_classes(factory: Callable[..., Any], accepted: dict[str, Any], parameters: dict[str, Any]) -> Any:
    """What a factory that passes on any keyword (torchvision's) makes of num_classes; None if it has no use for it."""
    known = inspect.signature(factory).parameters
    forwards = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if not forwards or "num_classes" in accepted or "num_classes" not in parameters:
        return None
    try:
        return factory(**accepted, num_classes=parameters["num_classes"])
    except TypeError:
        return None


@contextmanager
def _import_from_here() -> Iterator[None]:
    """Lets "package.module" name a module of the current folder, which a console script does not see."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
