"""A PyTorch module as a flat list of ATen operations, through torch.export."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export.graph_signature import InputKind

from fedmpq.errors import ModelError

#: Batch size of the example input: not 1, so that a batch dimension is never mistaken for a map of one pixel.
TRACE_BATCH = 2


@dataclass(frozen=True)
class Graph:
    """What torch.export found.

    Attributes:
        nodes: operations in order, the output node last.
        input: the node of the images.
        tensors: for each placeholder of a parameter, buffer or constant, its dotted name and its value.
        live: what the output depends on; an auxiliary head that nobody reads is no part of the function.
    """

    nodes: tuple[torch.fx.Node, ...]
    input: torch.fx.Node
    tensors: dict[str, tuple[str, torch.Tensor]]
    live: frozenset[torch.fx.Node]

    def readers(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """The live nodes that read `node`."""
        return [user for user in node.users if user in self.live]


def trace(module: nn.Module, input_shape: tuple[int, int, int], name: str) -> Graph:
    """Traces `module` in evaluation mode on images of shape (channels, height, width).

    Raises:
        ModelError: forward takes several inputs, fails on such an image, or its control flow depends on data.
    """
    check_signature(module, name)
    shape = "×".join(map(str, input_shape))
    images = torch.zeros(TRACE_BATCH, *input_shape)
    with _quiet(), _evaluating(module), torch.no_grad():
        try:
            module(images)
        except Exception as error:
            line = _first_line(error)
            raise ModelError(f"{name} does not run on an image of {shape}: {line}", "is --input right?") from error
        try:
            exported = torch.export.export(module, (images,))
        except Exception as error:
            raise ModelError(*_untraceable(name, error)) from error
    return _graph(exported, name)


def check_signature(module: nn.Module, name: str) -> None:
    """Refuses a module whose forward takes anything but one input (ModelError)."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in positional and p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 1 or keywords or not (needed or variadic or any(p.kind in positional for p in parameters)):
        inputs = ", ".join(needed + keywords) or "none"
        raise ModelError(
            f"forward of {name} takes the inputs {inputs}; a program has one input, the image",
            "wrap the model in a module with one input; never pass one tensor as two inputs",
        )


def check_scores(name: str, given: int, asked: int | None) -> None:
    """Refuses a module that scores fewer classes than its data has (ModelError)."""
    if asked is not None and given < asked:
        raise ModelError(f"{name} gives {given} scores, {asked} are asked for", "let the factory take num_classes")


def _graph(exported: torch.export.ExportedProgram, name: str) -> Graph:
    values: dict[str, torch.Tensor] = {**dict(exported.state_dict), **dict(exported.constants)}
    tensors: dict[str, tuple[str, torch.Tensor]] = {}
    images: list[str] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            images.append(spec.arg.name)
        elif spec.target is not None and isinstance(values.get(spec.target), torch.Tensor):
            tensors[spec.arg.name] = (spec.target, values[spec.target].detach())
    nodes = tuple(exported.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder" and node.name in images]
    if len(inputs) != 1:
        raise ModelError(f"{name} has {len(inputs)} inputs; a program has one, the image")
    return Graph(tuple(node for node in nodes if node.op != "placeholder"), inputs[0], tensors, _live(nodes))


def _live(nodes: Sequence[torch.fx.Node]) -> frozenset[torch.fx.Node]:
    found: set[torch.fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return frozenset(found)


def _untraceable(name: str, error: Exception) -> tuple[str, str]:
    """Message and hint for what torch.export could not follow."""
    text = str(error)
    place = ""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.strip().startswith('File "') and ", line " in line:
            file, _, rest = line.strip()[6:].partition('", line ')
            code = lines[index + 1].strip() if index + 1 < len(lines) else ""
            place = f" at {file}:{rest.partition(',')[0]} `{code}`"
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return (
            f"the control flow of {name} depends on the image{place}",
            "a program runs the same operations for every image: move the decision out of forward",
        )
    return f"torch.export cannot follow {name}{place}: {_first_line(error)}", "only tensor operations may be traced"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Puts every submodule in evaluation mode and restores each one's own mode."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's own warnings out of our output: our errors say what matters."""
    logger = logging.getLogger("torch")
    level = logger.level
    children = [logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.startswith("torch.")]
    disabled = [(child, child.disabled) for child in children]
    logger.setLevel(logging.CRITICAL)
    for child in children:
        child.disabled = True
    sink = io.StringIO()  # torch.export prints the graph so far when it gives up
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for child, was in disabled:
            child.disabled = was
