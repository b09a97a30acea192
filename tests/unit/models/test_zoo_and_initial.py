"""Networks in float, and the integer states made of them: the same outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedmpq.errors import ModelError
from fedmpq.models import codec, initial, zoo
from fedmpq.models.reference import Plan, ReferenceSession
from fedmpq.models.reference.program import parse
from tests.helpers import programs


@pytest.mark.parametrize(
    ("name", "weights", "convolutions"),
    [("resnet8", 74_800, 7), ("resnet20", 268_336, 19), ("resnet44", 655_408, 43), ("ds-cnn", 21_248, 9)],
)
def test_sizes(name: str, weights: int, convolutions: int) -> None:
    module = zoo.MODELS[name]()
    assert sum(p.numel() for p in module.parameters() if p.dim() > 1) == weights
    assert sum(isinstance(part, nn.Conv2d) for part in module.modules()) == convolutions


@pytest.mark.parametrize(
    ("size", "channels", "classes"), [((32, 32), 3, 10), ((8, 8), 1, 10), ((64, 48), 3, 200), ((13, 7), 2, 5)]
)
def test_any_image_size(size: tuple[int, int], channels: int, classes: int) -> None:
    module = zoo.resnet8(classes, channels, width=8)
    assert module(torch.zeros(2, channels, *size)).shape == (2, classes)


def test_a_shortcut_keeps_every_second_position_between_zero_channels() -> None:
    block = zoo.Block(4, 8, 2)
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 4, 6, 6)
    out = block.eval()(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def _trained_like(module: nn.Module, seed: int = 0) -> None:
    """Statistics and affine parameters away from their defaults, running statistics that fit the data."""
    g = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data = torch.rand(part.num_features, generator=g) + 0.5
            part.bias.data = torch.randn(part.num_features, generator=g) * 0.2
            part.momentum = None  # averages over the calibration batches


def test_states_at_eight_bits_give_the_float_network() -> None:
    torch.manual_seed(3)
    module, net = zoo.resnet8(5, 3), programs.resnet(1, size=(16, 16, 3), classes=5, t_residual=2)
    _trained_like(module)
    pixels, labels = programs.images(net, 64)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - torch.tensor(net.mean)[None, :, None, None]) / 64
    module.train()
    for _ in range(2):
        module(x)
    module.eval()
    logits = module(x).detach()
    plan = Plan(bits=(8,) * len(net.layers), act_bits=8)
    session = ReferenceSession(net.build(), plan)
    states = initial.states(parse(net.build()), plan, initial.float_layers(module, 1 / 64))
    for i, state in enumerate(states):
        session.load(i, state)
    true = float(nn.functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)), reduction="sum"))
    stats = session.evaluate(pixels, labels)
    assert stats.loss_q16 / 65536 == pytest.approx(true, rel=0.02)
    agreement = (logits.argmax(1).numpy() == labels).sum()
    assert abs(stats.correct - int(agreement)) <= 3


def test_guard_planes_refine_the_stored_weight() -> None:
    module, net = zoo.resnet8(10, 3), programs.resnet(1)
    program, layers = parse(net.build()), initial.float_layers(module)
    for guard in (0, 4):
        plan = Plan(bits=(3,) * 8, guard=guard)
        for state, values in zip(initial.states(program, plan, layers), layers, strict=True):
            q = codec.unpack(state.planes, values.weight.size)
            error = np.abs(codec.dequantise(q, state.step, guard=guard) - values.weight.reshape(-1)).max()
            assert error <= codec.fx_to_float(state.step) / 2**guard * 0.51


def test_layers_without_a_record_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.PReLU())
    with pytest.raises(ModelError, match="PReLU"):
        initial.float_layers(module)
