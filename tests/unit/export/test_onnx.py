"""The ONNX training step: standard integer operators only, and the same bits as the core.

Ten steps against the core, the reference and the ExecuTorch delegate at once: test_executorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmpq.edge_runtime import core
from fedmpq.errors import FormatError, ModelError, UsageError
from fedmpq.export import build, from_module, resolve
from fedmpq.export.model import CompiledModel
from fedmpq.export.onnx_step import OPSET, numbers
from fedmpq.export.onnx_step.graph import INT64, Graph, Value
from fedmpq.export.onnx_step.session import OnnxSession, _runtime, models
from fedmpq.models.reference import fx as exact
from tests.unit.export.nets import NETS, conv_bn, ds_cnn

#: Nets whose records are not all in another one, or whose graphs take long to prepare.
LEFT_OUT = {"mobilenet", "mobilenet_v2", "plain_lenet", "plain_vgg", "pre_activation", "projected", "squeezenet"}
SMALL = [pytest.param(factory, shape, id=name) for name, factory, shape, _ in NETS if name not in LEFT_OUT]


def resnet8() -> nn.Module:
    return resolve("resnet8", num_classes=10, in_channels=3, width=8)


def compiled(factory: Callable[[], nn.Module], shape: tuple[int, int, int]) -> CompiledModel:
    torch.manual_seed(2)
    return from_module(factory(), shape, mean=(120, 110, 100)[: shape[0]], crop_pad=1)


def batch(program: core.Program, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = (np.arange(count) % program.classes).astype(np.uint16)
    return rng.integers(0, 256, (count, *program.in_shape), dtype=np.uint8), labels


def loaded(model: CompiledModel, plan: core.Plan, *, lasso: bool = False) -> tuple[core.Session, OnnxSession]:
    program, states = core.Program(model.program), build.initial_states(model, plan)
    ours, theirs = build.open_session(program, plan, states), OnnxSession(model.program, plan, lasso=lasso)
    for index, state in enumerate(states):
        theirs.load(index, state)
    return ours, theirs


@pytest.mark.parametrize(("factory", "shape"), SMALL)
def test_every_net_trains_to_the_same_bits(factory: Callable[[], nn.Module], shape: tuple[int, int, int]) -> None:
    model = compiled(factory, shape)
    bits = tuple((2, 4, 8)[i % 3] for i in range(len(model.thetas)))
    plan = core.Plan(bits=bits, batch=5, momentum=True, guard=1)
    ours, theirs = loaded(model, plan, lasso=True)
    images, labels = batch(ours.program, 5)
    hyper = core.Hyper(core.fx(0.05), core.fx(5e-4), 29491, (core.fx(0.01),) * len(bits))
    for step in range(3):
        assert ours.step(images, labels, hyper, (7, 1, 2, step)) == theirs.step(images, labels, hyper, (7, 1, 2, step))
    assert [ours.read(i) for i in range(len(bits))] == [theirs.read(i) for i in range(len(bits))]
    assert ours.evaluate(images, labels) == theirs.evaluate(images, labels)
    assert ours.predict(images) == theirs.predict(images)


def test_only_standard_integer_operators() -> None:
    model = compiled(resnet8, (3, 8, 8))
    plan = core.Plan(bits=(4,) * len(model.thetas), batch=4, momentum=True)
    made = models(model.program, plan, build.initial_states(model, plan), lasso=True)
    assert list(made) == ["init", "train", "eval"]
    for graph in made.values():
        onnx.checker.check_model(graph, full_check=True)
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", OPSET)]
        assert {node.domain for node in graph.graph.node} == {""}
        inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
        assert not [v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type in floats]
        assert not [t.name for t in graph.graph.initializer if t.data_type in floats]
    properties = {entry.key: entry.value for entry in made["train"].metadata_props}
    assert properties["program"] == model.sha256
    again = models(model.program, plan, build.initial_states(model, plan), lasso=True)
    assert made["train"].SerializeToString() == again["train"].SerializeToString()


def test_the_initial_model_gives_the_steps_inputs() -> None:
    """`init` needs no input; what it gives, the step takes, and gives back as new.*."""
    model = compiled(lambda: ds_cnn(4), (1, 49, 10))
    plan = core.Plan(bits=(3,) * len(model.thetas), batch=2, momentum=True)
    made = models(model.program, plan, build.initial_states(model, plan))
    start, step = _runtime(made["init"], 1), _runtime(made["train"], 1)
    state = dict(zip([o.name for o in start.get_outputs()], start.run(None, {}), strict=True))
    inputs = {i.name for i in step.get_inputs()}
    assert inputs - set(state) == {"images", "labels", "key", "lr", "decay", "momentum"}
    returned = {o.name.removeprefix("new.") for o in step.get_outputs()} - {"loss_q16", "correct"}
    assert returned == {name for name in state if not name.endswith(".step")}
    images, labels = batch(core.Program(model.program), 2)
    hyper = core.Hyper(core.fx(0.1), core.fx(5e-4))
    feeds = {"images": images, "labels": labels, "key": np.array([1, 0, 0, 0]), "lr": np.array(hyper.lr),
             "decay": np.array(hyper.weight_decay), "momentum": np.array(29491)}  # fmt: skip
    loss = step.run(["loss_q16"], feeds | state)[0]
    ours, _ = loaded(model, plan)
    assert int(loss) == ours.step(images, labels, hyper, (1, 0, 0, 0)).loss_q16


def test_what_has_no_onnx_form_says_so() -> None:
    model = compiled(lambda: nn.Sequential(*conv_bn(3, 4), nn.Flatten(), nn.Linear(256, 4)), (3, 8, 8))
    plan = core.Plan(bits=(4, 4), batch=4, momentum=False)
    with pytest.raises(ModelError, match="takes the batch as a whole"):
        OnnxSession(model.program, replace(plan, micro_batch=2))
    session = OnnxSession(model.program, plan)
    with pytest.raises(FormatError, match=r"2\+0 bits, planned are 4"):
        session.load(0, build.initial_states(model, replace(plan, bits=(2, 4)))[0])
    with pytest.raises(UsageError, match="has not been loaded"):
        session.read(0)
    images, labels = batch(core.Program(model.program), 4)
    with pytest.raises(UsageError, match="without the Lasso"):
        session.step(images, labels, core.Hyper(core.fx(0.1), lasso=(core.fx(0.1),) * 2), (0, 0, 0, 0))


def evaluated(make: Callable[[Value, Value], list[Value]], a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """The values of a graph over two int64 vectors."""
    graph = Graph()
    left, right = graph.input("a", INT64, ["N"]), graph.input("b", INT64, ["N"])
    outputs = make(left, right)
    for index, value in enumerate(outputs):
        graph.output(f"o{index}", value, INT64, ["N"])
    found: list[np.ndarray] = _runtime(graph.model("test", {}), 1).run(None, {"a": a, "b": b})
    return found


WIDE = st.integers(-(2**61), 2**61)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WIDE, st.integers(0, 62)), min_size=1, max_size=20))
def test_shifts_are_exact(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    made = evaluated(
        lambda x, s: [
            x.sar(s), x >> 13, numbers.bitlen(x.abs()), numbers.rshift(x, 5), x.floordiv(7),
            numbers.reven(x, 9), numbers.reven_by(x.clamp(-(2**50), 2**50), s - 8),
        ],
        a, b,
    )  # fmt: skip
    for i, (x, s) in enumerate(pairs):
        small = torch.tensor(max(-(2**50), min(2**50, x)))
        even = [int(exact.rshift_even(torch.tensor(x), 9)), int(exact.rshift_even(small, s - 8))]
        expected = [x >> s, x >> 13, abs(x).bit_length(), (x + 16) >> 5, x // 7, *even]
        assert [int(column[i]) for column in made] == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**62), st.integers(1, 2**62), st.integers(-60, 60), st.integers(-(2**31), 2**31))
def test_small_floats_are_those_of_the_reference(a: int, b: int, e: int, x: int) -> None:
    left, right = exact.norm(a, e), exact.norm(b)

    def make(va: Value, vb: Value) -> list[Value]:
        fa, fb = numbers.norm(va, e), numbers.norm(vb)
        product, quotient = numbers.mul(fa, fb), numbers.div(fa, fb)
        number = va.graph.constant(x)
        return [
            product.m, product.e, quotient.m, quotient.e,
            numbers.apply(number, fa.shifted(-40)), numbers.apply64(number * 2**20, fa.shifted(-50)),
        ]  # fmt: skip

    made = [int(v[0]) for v in evaluated(make, np.array([a], np.int64), np.array([b], np.int64))]
    expected = [*exact.mul(left, right), *exact.div(left, right)]
    if a:
        assert made[:4] == expected
    else:
        assert (made[0], made[2]) == (0, 0)
    value = torch.tensor(x)
    assert made[4] == int(exact.apply(value, left.shifted(-40)))
    assert made[5] == int(exact.apply64(value * 2**20, left.shifted(-50)))
