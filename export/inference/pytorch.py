"""Plain PyTorch: a state dict, and the source of a module that loads it and needs nothing but torch."""

from __future__ import annotations

import io
import keyword
import re
from typing import Any

import torch
from torch import nn

from fedmpq.export.inference.folded import NORMAL_STEP, Folded, Grid, Kind, Skip, Step

_HEAD = '''"""{title}: inference in plain PyTorch, written by `fedmpq export`.

    net = Net()
    net.load_state_dict(torch.load("{file}.pt", weights_only=True))
    logits = net(images)  # images: uint8 [N, {channels}, {height}, {width}], pixels 0 to 255

Weights are those of the trained integers; `grid` rounds activations where the integer model does.
"""

import torch
import torch.nn.functional as F
from torch import nn


def grid(x, step, zero=0, top=255, low=0):
    """x rounded to (u - zero) * step for u = low..top."""
    return (torch.clamp(torch.floor(x / step + 0.5) + zero, low, top) - zero) * step


class Conv(nn.Module):
    """A convolution with batch-norm's statistics folded, its normalised output rounded, then gamma and beta."""

    def __init__(self, cin, cout, kernel, stride, padding, groups):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(cout, cin // groups, *kernel))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.gamma = nn.Parameter(torch.ones(cout, 1, 1))
        self.beta = nn.Parameter(torch.zeros(cout, 1, 1))
        self.options = (stride, padding, 1, groups)

    def forward(self, x):
        x = F.conv2d(x, self.weight, self.bias, *self.options)
        return self.gamma * grid(x, {normal}, 0, 127, -127) + self.beta


class Net(nn.Module):
    def __init__(self):
        super().__init__()
'''


def state_dict(net: Folded) -> dict[str, torch.Tensor]:
    """Parameters by name: weights as numbers (integer times scale), channels first."""
    found: dict[str, torch.Tensor] = {}
    for step, name in zip(net.steps, attributes(net), strict=True):
        weights = step.weights
        if weights is None:
            continue
        real = torch.from_numpy(weights.real).float()
        classifier = step.record.kind is Kind.CLASSIFIER
        found[f"{name}.weight"] = real.flatten(1) if classifier else real.permute(0, 3, 1, 2).contiguous()
        found[f"{name}.bias"] = torch.from_numpy(weights.bias).float()
        if not classifier:
            found[f"{name}.gamma"] = torch.from_numpy(weights.gamma).float()[:, None, None]
            found[f"{name}.beta"] = torch.from_numpy(weights.beta).float()[:, None, None]
    return found


def saved(net: Folded) -> bytes:
    """The state dict as `torch.save` writes it."""
    out = io.BytesIO()
    torch.save(state_dict(net), out)
    return out.getvalue()


def source(net: Folded, title: str, file: str) -> str:
    """The module's source. `file`: name of the state dict's file without its suffix."""
    height, width, channels = net.program.in_shape
    text = _HEAD
    for key, value in {
        "title": title, "file": file, "channels": channels, "height": height, "width": width, "normal": NORMAL_STEP
    }.items():  # fmt: skip
        text = text.replace("{" + key + "}", str(value))
    mean = ", ".join(str(value) for value in net.program.mean)
    lines = [*(f"        {line}" for line in _members(net)), ""]
    lines += ["    def forward(self, images):"]
    lines += [f"        x0 = images.float() - torch.tensor([{mean}], dtype=torch.float32)[:, None, None]"]
    named = zip(net.steps, attributes(net), strict=True)
    lines += [f"        {line}" for step, name in named for line in _lines(net, step, name)]
    return text + "\n".join([*lines, f"        return x{len(net.steps)}", ""])


def load(code: str, state: dict[str, torch.Tensor]) -> nn.Module:
    """The module of a source with its state, as a user would have it."""
    namespace: dict[str, Any] = {"__name__": "deployed"}
    exec(compile(code, "deployed.py", "exec"), namespace)  # noqa: S102 - our own source, to judge what is shipped
    module: nn.Module = namespace["Net"]()
    module.load_state_dict(state)
    return module.eval()


def attributes(net: Folded) -> list[str]:
    """The records' names as attributes of a module: as they are where Python allows, else with their number in front.

    Dots and signs become underscores, which can make two names one; names that `nn.Module` has itself stay its own.
    """
    own, found = nn.Module(), list[str]()
    for step in net.steps:
        name = re.sub(r"\W", "_", step.record.name, flags=re.ASCII)
        taken = keyword.iskeyword(name) or name.startswith("__") or hasattr(own, name)
        while taken or not name.isidentifier() or name in found:
            name, taken = f"r{step.record.index}_{name}", False
        found.append(name)
    return found


def _members(net: Folded) -> list[str]:
    lines = []
    for step, name in zip(net.steps, attributes(net), strict=True):
        r = step.record
        if r.kind is Kind.CLASSIFIER:
            lines.append(f"self.{name} = nn.Linear({r.cin}, {r.cout})")
        elif r.kind is Kind.CONV:
            shape = f"{r.cin}, {r.cout}, ({r.kh}, {r.kw}), {r.stride}, {r.pad}, {r.groups}"
            lines.append(f"self.{name} = Conv({shape})")
    return lines


def _lines(net: Folded, step: Step, name: str) -> list[str]:
    """The statements of one record, whose module has that name."""
    r, out = step.record, f"x{step.record.index + 1}"
    source = f"x{r.input}"
    if r.kind is Kind.CLASSIFIER:
        return [f"{out} = self.{name}({source}.permute(0, 2, 3, 1).flatten(1))"]
    if r.kind is Kind.MAX_POOL:
        return [f"{out} = F.max_pool2d({source}, ({r.kh}, {r.kw}), {r.stride}, {r.pad})"]
    if r.kind is Kind.CONCAT:
        value = f"torch.cat([{source}, x{r.skip}], 1)"
    elif r.kind is Kind.CONV:
        value = f"self.{name}({_read(net, step)})"
        if r.skip_kind is Skip.IDENTITY:
            value += f" + x{r.skip}"
        elif r.skip_kind is Skip.OPTION_A:
            behind = r.cout - r.skip_pad_c - net.shape(r.skip)[2]
            value += f" + F.pad(x{r.skip}[:, :, ::2, ::2], (0, 0, 0, 0, {r.skip_pad_c}, {behind}))"
    else:
        value = f"F.avg_pool2d({source}, ({r.kh}, {r.kw}), {r.stride}, {r.pad})"
    return [f"{out} = {_grid(value, step.grid)}"]


def _read(net: Folded, step: Step) -> str:
    r, value = step.record, f"x{step.record.input}"
    if step.reads is not None and net.act_bits < 8:
        value = _grid(f"{value} + {net.grid(r.input).step / 4!r}", step.reads)
    if step.flattens:
        value = f"({value}).permute(0, 2, 3, 1).flatten(1)[:, :, None, None]"
    return value


def _grid(value: str, grid: Grid) -> str:
    rest = f", {grid.zero}, {grid.top}" if grid.top != 255 else (f", {grid.zero}" if grid.zero else "")
    return f"grid({value}, {grid.step!r}{rest})"
