"""Deployable models of a really trained network: each form answers as the core does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fedmpq.coordinator.samples import ArraySamples
from fedmpq.data import load
from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.artifact import Artifact
from fedmpq.errors import DataError
from fedmpq.export import from_module
from fedmpq.export.build import build_artifact, initial_states, open_session, states_of, with_states
from fedmpq.export.inference import deploy, executorch, folded, onnx_qdq, pytorch
from fedmpq.models import zoo
from fedmpq.models.reference import ReferenceSession, activation
from tests.helpers import programs

#: Points of accuracy a form may differ from the core.
TOLERANCE = 0.2


def digits() -> ArraySamples:
    """All 1,797 of them: equality is judged, not generalisation."""
    data = load("digits")
    images = np.concatenate([data.train.images, data.test.images])
    return ArraySamples(images, np.concatenate([data.train.labels, data.test.labels]), 10)


def trained(bits: int, act_bits: int, epochs: int = 6) -> Artifact:
    """ResNet8 after some epochs on the digits."""
    data = load("digits")
    torch.manual_seed(1)
    compiled = from_module(zoo.resnet8(10, 1), (1, 8, 8), mean=data.mean)
    program = core.Program(compiled.program)
    layers = len(program.weight_layers)
    plan = core.Plan(bits=(bits,) * layers, batch=64, act_bits=act_bits, momentum=True, crop=False, flip=False)
    first = build_artifact(compiled, plan)
    session = open_session(program, plan, states_of(first))
    rng = np.random.default_rng(0)
    step = 0
    for epoch in range(epochs):
        hyper = core.Hyper(lr=core.fx(0.05 * (1 - epoch / epochs)), weight_decay=core.fx(5e-4), momentum_q15=29491)
        order = rng.permutation(len(data.train))
        for start in range(0, len(order) - 63, 64):
            chosen = data.train.take(order[start : start + 64])
            session.step(chosen.images.reshape(-1).data, chosen.labels.data, hyper, (1, 0, 0, step))
            step += 1
    states = [session.read(i) for i in range(layers)]
    return with_states(compiled.program, plan, states, first.manifest)


@pytest.fixture(scope="module", params=[(4, 4), (8, 8)], ids=["4-bit", "8-bit"])
def model(request: pytest.FixtureRequest) -> Artifact:
    return trained(*request.param)


def test_onnx_and_pytorch_are_as_accurate_as_the_core(model: Artifact, tmp_path: Path) -> None:
    test = digits()
    expected = deploy.core_correct(model, test)
    assert expected > 0.93 * test.count
    written = deploy.deploy(model, ["onnx", "pytorch"], tmp_path / "net", "net", test)
    for form in written:
        assert form.correct is not None
        assert abs(form.correct - expected) <= TOLERANCE / 100 * test.count, form.form
        assert all(file.stat().st_size for file in form.files)


def test_the_onnx_file_holds_integer_weights_and_standard_operators(model: Artifact) -> None:
    net = folded.fold(model.program, states_of(model), model.plan["act_bits"])
    graph = onnx.load_from_string(onnx_qdq.write(net, "net"))
    assert {opset.domain for opset in graph.opset_import} == {""}
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    weights = [x for x in graph.graph.initializer if ".weight_" in x.name]
    assert len(weights) == len(states_of(model))
    assert all(x.data_type in kinds for x in weights)
    kept = sum(int(np.prod(x.dims)) for x in weights)
    assert kept == sum(layer.theta for layer in core.Program(model.program).weight_layers)


def test_the_pytorch_module_needs_nothing_but_torch(model: Artifact, tmp_path: Path) -> None:
    deploy.deploy(model, ["pytorch"], tmp_path / "net", "net", None)
    script = (
        "import sys, torch; from net import Net\n"
        "net = Net(); net.load_state_dict(torch.load('net.pt', weights_only=True))\n"
        "print(tuple(net(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape))\n"
        "assert not any(name.split('.')[0] == 'fedmpq' for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(3, 10)", done.stderr


class Named(nn.Module):
    """Layers whose records Python cannot call by their names, or only one of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv = nn.ModuleDict({"1": nn.Conv2d(6, 6, 3, padding=1), "größe": nn.Conv2d(6, 6, 1)})
        self.add_module("lambda", nn.Conv2d(6, 6, 1))
        self.body = nn.ModuleDict({"conv": nn.Conv2d(6, 6, 1)})
        self.add_module("__hidden", nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = (self.conv_1, self.conv["1"], self.conv["größe"], getattr(self, "lambda"), self.body["conv"])
        for layer in layers:
            x = torch.relu(layer(x))
        scores: torch.Tensor = self._modules["__hidden"](x.mean((2, 3)))  # type: ignore[misc]
        return scores


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Named(), ["conv_1", "r1_conv_1", "conv_gr__e", "r3_lambda", "body_conv", "r6___hidden"]),
        (nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)), ["r0_0", "r1_3"]),
    ],
)
def test_every_name_becomes_an_attribute_of_its_own(net: nn.Module, names: list[str]) -> None:
    """What is shipped is valid Python, and each layer has its own weights."""
    compiled = from_module(net, (1, 8, 8))
    program = core.Program(compiled.program)
    plan = core.Plan(bits=(8,) * len(program.weight_layers), batch=16, act_bits=8)
    states = initial_states(compiled, plan)
    form = folded.fold(compiled.program, states, 8)
    state = pytorch.state_dict(form)
    assert list(dict.fromkeys(key.split(".")[0] for key in state)) == names
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        found = pytorch.load(pytorch.source(form, "net", "net"), state)(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    expected = np.array(open_session(program, plan, states).predict(images)) / 65536
    assert np.abs(found.numpy() - expected).max() < 0.1 * expected.std()


def random_net(act_bits: int = 4, *, flat: bool = False) -> tuple[folded.Folded, torch.Tensor, torch.Tensor]:
    """A program with every kind of record and random weights: its inference form, images, the reference's logits."""
    net = programs.variety(flat=flat)
    program = net.build()
    states = programs.states(net, 5, seed=3)
    session = ReferenceSession(program, core.Plan(bits=(5,) * len(states), act_bits=act_bits))
    for index, state in enumerate(states):
        session.load(index, state)
    images, labels = programs.images(net, 24, 0)
    x = activation.centre(torch.from_numpy(images), session.program.mean)
    done = session._forward(x, torch.from_numpy(labels.astype(np.int64)), training=False)
    return folded.fold(program, states, act_bits), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), done.features


@pytest.mark.parametrize("flat", [False, True])
def test_every_record_is_where_the_reference_has_it(flat: bool) -> None:
    net, images, features = random_net(flat=flat)
    module = pytorch.load(pytorch.source(net, "net", "net"), pytorch.state_dict(net))
    seen: list[torch.Tensor] = []
    classifier = next(part for part in module.modules() if isinstance(part, nn.Linear))
    classifier.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        logits = module(images)
    last = net.steps[-1].reads
    assert last is not None
    error = (seen[0] / last.step - features).abs()
    assert float(error.mean()) < 4  # of 255 steps: the core's own roundings, through all layers
    engine = pytest.importorskip("onnxruntime")
    session = engine.InferenceSession(onnx_qdq.write(net, "net"))
    found = session.run(None, {"images": images.numpy()})[0]
    assert np.abs(found - logits.numpy()).mean() < 0.1 * np.abs(logits.numpy()).mean()


def test_the_executorch_program_computes_what_the_module_does() -> None:
    net = programs.resnet(1, size=(8, 8, 1), width=4, classes=4, crop_pad=0, mean=(120,))
    form = folded.fold(net.build(), programs.states(net, 4, seed=0), 4)
    images = torch.from_numpy(programs.images(net, 12, 0)[0].transpose(0, 3, 1, 2).copy())
    run = executorch.runner(executorch.write(form))
    with torch.no_grad():
        expected = executorch.QuantisedNet(form)(images)
        plain = pytorch.load(pytorch.source(form, "net", "net"), pytorch.state_dict(form))(images)
    found = torch.cat([run(image[None].float()).clone() for image in images])
    assert float((found - expected).abs().max()) < 1e-3
    assert float((found - plain).abs().mean()) < 0.05 * float(plain.abs().max())


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    net = programs.resnet(1, size=(8, 8, 1), width=4, classes=4, crop_pad=0, mean=(120,))
    program = net.build()
    plan = core.Plan(bits=(4,) * len(core.Program(program).weight_layers))
    states = [core.LayerState(s.bits, s.guard, s.step, s.planes, s.params) for s in programs.states(net, 4)]
    with pytest.raises(DataError, match="8×8×1 of 10 classes, the model takes 8×8×1 and 4"):
        deploy.deploy(with_states(program, plan, states, {}), ["onnx"], tmp_path / "x", "x", digits())
