"""Whole networks through the exporter: what they predict, and that the core trains them to the reference's bits."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from fedmpq.edge_runtime import artifact, core
from fedmpq.export import build, from_module, resolve
from fedmpq.export.model import CompiledModel
from fedmpq.models.reference.program import parse
from fedmpq.models.reference.session import ReferenceSession
from tests.unit.export.nets import NETS, conv_bn, mlp

MEAN = (120, 110, 100)
STD = (0.25, 0.2, 0.3)
NETS_BY_NAME = {
    **{name: (factory, shape, classes) for name, factory, shape, classes in NETS},
    "resnet8": (lambda: resolve("resnet8", num_classes=10, in_channels=3), (3, 16, 16), 10),
}


def images(shape: tuple[int, int, int], count: int) -> torch.Tensor:
    """Smooth random images, pixels 0…255, [N, C, H, W]."""
    channels, height, width = shape
    rough = torch.randn(count, channels, max(2, height // 4), max(2, width // 4))
    mean = torch.tensor(MEAN[:channels])[None, :, None, None]
    smooth = nn.functional.interpolate(rough, size=(height, width), mode="bilinear")
    return (smooth * 50 + mean).round().clamp(0, 255)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    channels = pixels.shape[1]
    mean, std = torch.tensor(MEAN[:channels]), torch.tensor(STD[:channels])
    return (pixels - mean[None, :, None, None]) / 255 / std[None, :, None, None]


def nhwc(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


@functools.cache
def compiled(name: str) -> tuple[CompiledModel, torch.Tensor, torch.Tensor]:
    """The net of a name with statistics of its own images, compiled; images and the module's scores for them."""
    factory, shape, _ = NETS_BY_NAME[name]
    torch.manual_seed(0)
    net = factory()
    pixels = images(shape, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = None  # one pass gives the plain average
    with torch.no_grad():
        net.train()(normalised(pixels))
        expected = net.eval()(normalised(pixels))
    model = from_module(net, shape, mean=MEAN[: shape[0]], std=STD[: shape[0]], crop_pad=1, t_out=1, name=name)
    return model, pixels, expected


@pytest.mark.parametrize("name", NETS_BY_NAME)
def test_program_predicts_what_the_module_predicts(name: str) -> None:
    """Every layout (weights, flattening, statistics, std) is right: 8 bits are close to float; a wrong one is not."""
    model, pixels, expected = compiled(name)
    program = core.Program(model.program)
    plan = core.Plan(bits=(8,) * len(program.weight_layers), batch=32, act_bits=8)
    session = build.open_session(program, plan, build.initial_states(model, plan, "max"))
    logits = torch.tensor(session.predict(nhwc(pixels))) / 65536
    assert logits.shape == (32, NETS_BY_NAME[name][2])
    error, size = (logits - expected).square().mean().sqrt(), expected.square().mean().sqrt()
    # many layers of an untrained net wash the signal out while each adds its rounding noise; a wrong layout gives 1.4
    assert error < {"mobilenet": 0.8, "ds_cnn": 0.2, "sums": 0.2}.get(name, 0.1) * size, (
        f"{name}: error {error:.4f} of {size:.4f}"
    )


def test_the_epsilon_of_a_trained_batch_norm_counts() -> None:
    """Beside a small variance it is most of the divisor. An untrained module's initial values are what they were."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    net[0].weight.data *= 0.05
    net[1].running_var.copy_(torch.logspace(-5, -2, 8))
    pixels = images((3, 12, 12), 16)
    with torch.no_grad():
        expected = net(normalised(pixels))
    model = from_module(net, (3, 12, 12), mean=MEAN, std=STD)
    plan = core.Plan(bits=(8, 8), batch=16, act_bits=8)
    session = build.open_session(core.Program(model.program), plan, build.initial_states(model, plan, "max"))
    logits = torch.tensor(session.predict(nhwc(pixels))) / 65536
    assert (logits - expected).abs().max() < 0.1 * expected.std()
    untrained = from_module(net, (3, 12, 12)).state["0"].var
    assert np.array_equal(untrained, net[1].running_var.numpy())


@pytest.mark.parametrize("name", NETS_BY_NAME)
def test_core_trains_to_the_bits_of_the_reference(name: str) -> None:
    model, pixels, _ = compiled(name)
    program = core.Program(model.program)
    bits = tuple((2, 4, 8)[i % 3] for i in range(len(program.weight_layers)))
    plan = core.Plan(bits=bits, batch=4, momentum=True)
    states = build.initial_states(model, plan)
    session = build.open_session(program, plan, states)
    reference = ReferenceSession(model.program, plan)
    for index, state in enumerate(states):
        reference.load(index, state)
    batch = nhwc(pixels[:4])
    labels = (np.arange(4) % program.classes).astype(np.uint16)
    hyper = core.Hyper(core.fx(0.05), core.fx(5e-4))
    for step in range(3):
        ours = session.step(batch, labels, hyper, (7, 0, 0, step))
        theirs = reference.step(batch, labels, hyper, (7, 0, 0, step))
        assert (ours.loss_q16, ours.correct, ours.count) == (theirs.loss_q16, theirs.correct, theirs.count)
    assert session.state_hash() == reference.state_hash()
    assert session.measured_bytes == session.planned_bytes


@pytest.mark.parametrize("name", NETS_BY_NAME)
def test_both_parsers_read_every_program(name: str) -> None:
    model, _, _ = compiled(name)
    ours, theirs = core.Program(model.program), parse(model.program)
    assert [r.name for r in ours.records] == [r.name for r in theirs.records] == [r.name for r in model.records]
    assert tuple(layer.theta for layer in ours.weight_layers) == model.thetas
    assert ours.sha256 == theirs.sha256 == model.sha256
    shapes = artifact.weight_shapes(model.program)
    assert [(s.record, s.theta, s.params_bytes) for s in shapes] == [
        (layer.record, layer.theta, layer.params_bytes) for layer in ours.weight_layers
    ]
    assert list(model.state) == [layer.name for layer in ours.weight_layers]


def test_layers_are_named_by_their_modules() -> None:
    model = from_module(resolve("resnet20", num_classes=10, in_channels=3), (3, 32, 32))
    names = [record.name for record in model.records]
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert names[-2:] == ["pool", "fc"]


def test_equal_modules_give_equal_bytes() -> None:
    """A program depends on shapes only, whatever the weights."""
    first, second = (from_module(mlp(), (3, 8, 8)) for _ in range(2))
    assert first.program == second.program
    assert not np.array_equal(first.state["1"].weight, second.state["1"].weight)


def test_the_module_keeps_its_mode() -> None:
    net = mlp().train()
    net[5].eval()
    from_module(net, (3, 8, 8))
    assert net.training
    assert not net[5].training


def test_what_only_matters_in_training_is_left_out() -> None:
    """Dropout, identities and a final softmax leave no record."""
    plain = nn.Sequential(*conv_bn(3, 8), nn.Flatten(), nn.Linear(512, 4))
    dressed = nn.Sequential(
        nn.Identity(), *conv_bn(3, 8), nn.Dropout2d(0.1), nn.Identity(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(512, 4), nn.LogSoftmax(1),
    )  # fmt: skip
    first, second = from_module(plain, (3, 8, 8)), from_module(dressed, (3, 8, 8))
    assert [(r.kind, r.out) for r in first.records] == [(r.kind, r.out) for r in second.records]


@pytest.mark.parametrize(
    ("activation", "t"),
    [(nn.ReLU(), 0), (nn.ReLU6(), 1), (nn.Hardtanh(0, 1), 0), (nn.Hardtanh(0, 12.5), 2), (nn.Hardtanh(0, 1e9), 6)],
)
def test_clipping_activations_choose_the_exponent(activation: nn.Module, t: int) -> None:
    net = nn.Sequential(*conv_bn(3, 4)[:2], activation, nn.Flatten(), nn.Linear(256, 4))
    assert from_module(net, (3, 8, 8)).records[0].t_out == t
