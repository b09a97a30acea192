"""What `export` and `plan` share: options for a model, its images, its plan, and how they become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedmpq.cli._common import ByteSize, note
from fedmpq.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from fedmpq.edge_runtime import core
    from fedmpq.export.budget import Choice
    from fedmpq.export.model import CompiledModel

F = TypeVar("F", bound=Callable[..., Any])

#: Examples that help texts and tests share.
MODEL_HELP = "a built-in model (resnet8, resnet20, resnet44, ds-cnn), package.module:factory or file.py:factory"


class ImageShape(click.ParamType[tuple[int, int, int]]):
    """An option type for shapes such as 3x32x32 (channels x height x width, as PyTorch has it)."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        """Parse CxHxW."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) != 3 or not all(part.isdecimal() and 0 < int(part) < 65536 for part in parts):
            self.fail(f"{value!r} is no image shape; write 3x32x32", param, ctx)
        return int(parts[0]), int(parts[1]), int(parts[2])


class Numbers(click.ParamType[tuple[float, ...]]):
    """An option type for comma-separated numbers such as 125,123,114."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)):
            self.fail(f"{value!r} is no list of numbers; write 125,123,114", param, ctx)
        return numbers


@dataclass(frozen=True)
class ModelOptions:
    """Options that choose the program."""

    input: tuple[int, int, int] | None
    classes: int | None
    data: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_pad: int | None
    seed: int


@dataclass(frozen=True)
class PlanOptions:
    """Options that choose the plan; None where the artifact or the default decides."""

    bits: float | None
    memory: int | None
    profile: str | None
    batch: int | None
    micro_batch: int | None
    act_bits: int | None
    guard: int | None
    momentum: bool | None
    flip: bool | None
    crop: bool | None
    threads: int | None


def model_options(function: F) -> F:
    """Add the options of `ModelOptions`."""
    options = [
        click.option("--input", type=ImageShape(), help="Image shape, channels first.  [default: 3x32x32]"),
        click.option("--classes", type=click.IntRange(2, 1024), help="Number of classes.  [default: 10]"),
        click.option("--data", help="Take shape, classes and mean from this data set (a name, folder or archive)."),
        click.option("--mean", type=Numbers(), help="Channel mean in pixels, 0 to 255.  [default: 128]"),
        click.option("--std", type=Numbers(), help="Pixel deviation (0 to 1) a trained model divides its input by."),
        click.option("--crop-pad", type=click.IntRange(0, 16), help="Padding of the random crop.  [default: side/8]"),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Fixes the initial weights."),
    ]
    return _add(function, options)


def plan_options(function: F) -> F:
    """Add the options of `PlanOptions`."""
    options = [
        click.option("--bits", type=click.FloatRange(1, 8), help="Average bit-width (with --memory: at most).  "
                     "[default: 4]"),
        click.option("--memory", type=ByteSize(), help="Choose the plan for so many bytes of arena, e.g. 256KiB."),
        click.option("--profile", help="Choose the plan for a device class, e.g. stm32h743."),
        click.option("--batch", type=click.IntRange(1, 65535), help="Samples of a step.  [default: 64]"),
        click.option("--micro-batch", type=click.IntRange(1, 65535), help="Samples in memory at once.  "
                     "[default: the batch]"),
        click.option("--act-bits", type=click.Choice(["4", "8"]), help="Bits of an activation.  [default: 4]"),
        click.option("--guard", type=click.IntRange(0, 8), help="Guard planes: low bits that are only updated.  "
                     "[default: 0]"),
        click.option("--momentum/--no-momentum", default=None, help="Keep a momentum byte a weight.  [default: on]"),
        click.option("--flip/--no-flip", default=None, help="Mirror images at random.  [default: colour images only]"),
        click.option("--crop/--no-crop", default=None, help="Crop images at random.  [default: on]"),
        click.option("--threads", type=click.IntRange(1, 64), help="Threads of a step.  [default: 1]"),
    ]  # fmt: skip
    return _add(function, options)


def _add(function: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def take_model(arguments: dict[str, Any]) -> ModelOptions:
    """Moves the model options out of a command's keyword arguments."""
    return ModelOptions(**{key: arguments.pop(key) for key in ModelOptions.__dataclass_fields__})


def take_plan(arguments: dict[str, Any]) -> PlanOptions:
    """Moves the plan options out of a command's keyword arguments."""
    taken = {key: arguments.pop(key) for key in PlanOptions.__dataclass_fields__}
    return PlanOptions(**{**taken, "act_bits": int(taken["act_bits"]) if taken["act_bits"] else None})


def given_options(*kinds: type[ModelOptions | PlanOptions], also: Sequence[str] = ()) -> list[str]:
    """Those options of the running command that its command line or the environment gives, as they are written.

    Args:
        kinds: the groups of options that are asked about.
        also: further ones, by parameter name.
    """
    asked = {*also, *(name for kind in kinds for name in kind.__dataclass_fields__)}
    context = click.get_current_context()
    defaults = {click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP, None}
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in asked and context.get_parameter_source(parameter.name) not in defaults
    ]


def refuse(options: Sequence[str], reason: str) -> None:
    """UsageError if there are such options: what would change nothing is not taken in silence."""
    if options:
        hint = "leave it out" if len(options) == 1 else "leave them out"
        raise UsageError(f"{reason}: {', '.join(options)} cannot apply", hint)


@dataclass(frozen=True)
class LoadedModel:
    """A module that is about to be compiled, with what its options say about its images.

    Attributes:
        name: as given.
        module: of that name, with initial weights.
        shape: channels, height, width.
        classes: outputs.
        mean: of the channels, in whole pixels.
        options: as given.
    """

    name: str
    module: nn.Module
    shape: tuple[int, int, int]
    classes: int
    mean: list[int]
    options: ModelOptions

    @property
    def crop_pad(self) -> int:
        """Padding of the random crop."""
        pad = self.options.crop_pad
        return min(16, min(self.shape[1:]) // 8) if pad is None else pad

    def compile(self) -> CompiledModel:
        """The compiled model (ModelError, see `fedmpq.export.from_module`)."""
        from fedmpq.export import from_module

        return from_module(
            self.module,
            self.shape,
            mean=self.mean,
            std=self.options.std,
            crop_pad=self.crop_pad,
            classes=self.classes if self.options.classes or self.options.data else None,
            name=self.name,
        )


def compile_model(name: str, options: ModelOptions) -> CompiledModel:
    """The compiled model of a name and its options.

    Raises:
        UsageError: --data contradicts --input or --classes.
        ModelError: see `fedmpq.export.from_module`.
    """
    return load_model(name, options).compile()


def load_model(name: str, options: ModelOptions) -> LoadedModel:
    """The module of a name, and the images that its options describe; see `compile_model`."""
    import torch

    from fedmpq.export import resolve

    shape, classes, mean = options.input, options.classes, options.mean
    if mean is not None and max(mean) <= 1 and any(0 < value < 1 for value in mean):
        given = ",".join(f"{value:g}" for value in mean)
        pixels = ",".join(str(round(255 * value)) for value in mean)
        raise UsageError(f"--mean {given} is in shares of 1 but is taken in pixels of 0…255", f"write --mean {pixels}")
    if options.data is not None:
        from fedmpq.cli._common import progress
        from fedmpq.data import load

        data = load(options.data, report=progress)
        height, width, channels = data.shape
        if shape not in {None, (channels, height, width)}:
            raise UsageError(f"--input {_x(shape)} contradicts --data {options.data}: {channels}x{height}x{width}")
        if classes is not None and classes < len(data.classes):
            raise UsageError(f"--classes {classes} are fewer than the {len(data.classes)} of --data {options.data}")
        shape = (channels, height, width)
        classes = classes or len(data.classes)
        mean = mean or tuple(map(float, data.mean))
    shape = shape or (3, 32, 32)
    torch.manual_seed(options.seed)
    module = resolve(name, num_classes=classes or 10, in_channels=shape[0])
    return LoadedModel(name, module, shape, classes or 10, [round(value) for value in mean or (128,)], options)


def choose_plan(program: core.Program, options: PlanOptions, base: core.Plan | None = None) -> Choice:
    """The plan that the options ask for.

    Args:
        program: the program.
        options: --bits alone fixes the bits; --memory or --profile finds the most that fit, --bits then is the cap.
        base: where options that were not given come from (an artifact's plan).
    """
    from dataclasses import replace

    from fedmpq.edge_runtime import core
    from fedmpq.export import budget

    thetas = [layer.theta for layer in program.weight_layers]
    ready = base is not None
    plan = base or core.Plan(bits=(), momentum=True, flip=program.in_shape[2] >= 3)
    given = {key: getattr(options, key) for key in ("act_bits", "guard", "momentum", "flip", "crop", "threads")}
    plan = replace(plan, **{key: value for key, value in given.items() if value is not None})
    if options.batch is not None:
        plan = replace(plan, batch=options.batch, micro_batch=None)
    if options.micro_batch is not None:
        if options.micro_batch > plan.batch:
            raise UsageError(f"--micro-batch {options.micro_batch} exceeds the batch of {plan.batch}")
        plan = replace(plan, micro_batch=options.micro_batch)
    limit, micro = options.memory, options.micro_batch
    if options.profile is not None:
        if limit is not None:
            raise UsageError("--memory and --profile both give a limit", "leave one of them out")
        from fedmpq.firmware_profiles import profiles

        limit = profiles.load(options.profile).training
    if limit is not None:
        return budget.fit_memory(
            program, plan, limit, cap=options.bits or 8,
            fixed_batch=options.batch is not None, fixed_micro_batch=micro is not None,
        )  # fmt: skip
    if options.bits is not None or not ready:
        plan = replace(plan, bits=budget.bits_for(options.bits or 4, thetas))
    return budget.Choice(plan, core.plan_memory(program, plan), budget.average_bits(plan.bits, thetas))


def is_artifact(name: str) -> bool:
    """Whether a MODEL argument means an artifact file rather than a model."""
    from pathlib import Path

    path = Path(name)
    if name.endswith(".fmpq"):
        return True
    return ":" not in name and path.is_file() and path.open("rb").read(8) == b"FMPQART1"


def notice_unfit(choice: Choice, batch: int) -> None:
    """Tell people when a memory limit changed the batch."""
    if choice.plan.batch != batch:
        note(f"the batch shrank from {batch} to {choice.plan.batch} to fit: use a smaller learning rate, too")


def _x(shape: tuple[int, int, int] | None) -> str:
    return "x".join(map(str, shape or ()))
