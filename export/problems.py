"""What stands in the way of exporting a model: collected over the whole graph, reported at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpq.errors import UnsupportedOpError

if TYPE_CHECKING:
    from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]*)')


@dataclass(frozen=True)
class Problem:
    """One operation that cannot be exported."""

    op: str  #: its name, for example aten.gelu
    module: str  #: path of the module it stands in
    where: str  #: file:line, "" if unknown
    code: str  #: the source line
    reason: str
    instead: str
    node: str = ""  #: its name in the traced graph

    def __str__(self) -> str:
        place = " ".join(part for part in (self.where, f"`{self.code}`" if self.code else "") if part)
        module = f" in {self.module}" if self.module else ""
        return f"{self.op}{module}{f' at {place}' if place else ''}: {self.reason}; {self.instead}"


class UnsupportedOperations(UnsupportedOpError):  # noqa: N818
    """All that stands in the way of one model; `problems` has one entry for each operation."""

    def __init__(self, head: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n  - ".join([head, *map(str, problems)]))
        self.problems = tuple(problems)


@dataclass
class Problems:
    """Collects problems in graph order; one for each graph node at most."""

    items: list[Problem] = field(default_factory=list)
    _nodes: set[str] = field(default_factory=set)

    def add(self, node: Node, reason: str, instead: str) -> None:
        """Notes that `node` cannot be exported for `reason`, and what to use instead."""
        if node.name in self._nodes:
            return
        self._nodes.add(node.name)
        where, code = source_line(node)
        self.items.append(Problem(op_name(node), module_path(node), where, code, reason, instead, node.name))

    def reported(self, node: Node) -> bool:
        """Whether something is wrong with `node` already."""
        return node.name in self._nodes

    def silence(self, node: Node) -> None:
        """Treats `node` as reported without a line of its own: what it reads was reported."""
        self._nodes.add(node.name)

    def raise_if_any(self, model: str) -> None:
        """Raises one UnsupportedOpError that lists all problems."""
        if not self.items:
            return
        count = len(self.items)
        head = f"{model} has {count} unsupported operation{'s' if count > 1 else ''}:"
        raise UnsupportedOperations(head, self.items)


def op_name(node: Node) -> str:
    """The operation without its overload, for example aten.conv2d."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet or node.target if node.op != "output" else "output")


def module_path(node: Node) -> str:
    """The innermost module a node stands in, for example layer1.0.conv1; "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""


def source_line(node: Node) -> tuple[str, str]:
    """File:line and text of the user's code that made this node: the last frame outside of torch itself."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0].replace("\\", "/")]
    if not own:
        return "", ""
    file, line, code = own[-1]
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}", code.strip()
