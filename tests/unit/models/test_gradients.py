"""The integer backward pass computes the gradient: direction and size against float autograd on equal values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmpq.models.reference import Hyper, Plan, ReferenceSession, activation, loss
from fedmpq.models.reference.program import Kind
from fedmpq.models.reference.rng import StepKey
from tests.helpers import float_twin, programs


def _compare(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Correlation, and the factor by which a exceeds b."""
    a, b = a.double().flatten(), b.detach().flatten()
    return float(a @ b / (a.norm() * b.norm())), float(a @ b / (b @ b))


def _session(
    net: programs.Builder, bits: int, act_bits: int, batch: int, trained: int
) -> tuple[ReferenceSession, Tensor, Tensor]:
    plan = Plan(bits=(bits,) * len(net.layers), act_bits=act_bits, crop=False, flip=False)
    session = ReferenceSession(net.build(), plan)
    for i, state in enumerate(programs.states(net, bits)):
        session.load(i, state)
    pixels, labels = programs.images(net, batch)
    images, targets = torch.from_numpy(pixels), torch.from_numpy(labels.astype("int64"))
    for step in range(trained):
        session.step(images, targets, Hyper(programs.fx(0.05)), (1, 2, 3, step))
    return session, images, targets


@pytest.mark.parametrize(
    ("net", "bits", "act_bits", "trained", "least"),
    [
        pytest.param(programs.resnet(1), 8, 8, 0, 0.99, id="resnet8-n8a8"),
        pytest.param(programs.resnet(1), 4, 4, 3, 0.99, id="resnet8-n4a4"),
        pytest.param(programs.resnet(1), 2, 4, 3, 0.99, id="resnet8-n2a4"),
        pytest.param(programs.resnet(1), 1, 4, 0, 0.99, id="resnet8-n1a4"),
        pytest.param(programs.resnet(1, t_residual=0), 4, 4, 0, 0.99, id="resnet8-t0"),
        pytest.param(programs.resnet(1, t_residual=3), 4, 8, 0, 0.99, id="resnet8-t3"),
        pytest.param(programs.resnet(3, size=(16, 16, 3)), 4, 4, 2, 0.98, id="resnet20-n4a4"),
        # Few positions a channel: the noise of 8-bit errors averages over less.
        pytest.param(programs.variety(), 8, 8, 0, 0.95, id="variety"),
        pytest.param(programs.variety(flat=True), 8, 8, 0, 0.95, id="flat"),
        pytest.param(programs.variety(linear=True), 8, 8, 0, 0.95, id="linear"),
    ],
)
def test_gradients_match_autograd(net: programs.Builder, bits: int, act_bits: int, trained: int, least: float) -> None:
    session, images, labels = _session(net, bits, act_bits, 32, trained)
    twin = float_twin.run(session, activation.centre(images, session.program.mean), labels)
    stats, gradients = session.gradients(images, labels, StepKey(1, 2, 3, 999))
    assert stats.loss_q16 / 65536 == pytest.approx(float(twin.loss.detach()), rel=1e-3)
    twin.loss.backward()
    for i, record in enumerate(session.program.weight_layers):
        gradient = gradients[i]
        if record.kind is Kind.CLASSIFIER:
            scale = float(loss.logit_scale(session.layer(i).step, session.program.exponents[record.input])) / 2**15
        else:
            scale = 2.0**gradient.exponent
        correlation, factor = _compare(gradient.weights * scale, twin.q[i].grad)
        assert correlation > least, record.name
        assert factor == pytest.approx(1, abs=0.05 if least > 0.95 else 0.12), record.name
        for name, sums in gradient.params.items():
            unit = 2.0**-35 if name == "bias" else 2.0 ** (gradient.error_exponent - 12)
            expected = twin.params[i][name].grad
            # Sums over a channel nearly cancel (the next batch-norm removes a mean), so part of these is noise.
            error = (sums * unit - expected).norm() / expected.norm()
            assert float(error) < (0.4 if least == 0.99 else 0.75), (record.name, name)


def test_sums_of_errors_carry_no_bias() -> None:
    """Rounding ties up would add a constant of the size of its scatter to the β gradients of the first layers."""
    session, images, labels = _session(programs.resnet(3), 4, 4, 8, 1)
    twin = float_twin.run(session, activation.centre(images, session.program.mean), labels)
    twin.loss.backward()
    draws = [session.gradients(images, labels, StepKey(1, 2, 3, step))[1] for step in range(3)]
    for i, record in enumerate(session.program.weight_layers[:7]):
        true = twin.params[i]["beta"].grad
        mean = sum(g[i].params["beta"] * 2.0 ** (g[i].error_exponent - 12) for g in draws) / len(draws)
        assert abs(float((mean - true).mean())) < 0.1 * float(true.std()), record.name


def test_error_rounding_is_unbiased() -> None:
    """The mean over many random streams approaches the autograd gradient far closer than one stream does."""
    net = programs.resnet(1, size=(8, 8, 3))
    session, images, labels = _session(net, 4, 4, 8, 0)
    twin = float_twin.run(session, activation.centre(images, session.program.mean), labels)
    twin.loss.backward()
    single, total = [], torch.zeros_like(twin.q[0])
    for step in range(64):
        gradient = session.gradients(images, labels, StepKey(1, 2, 3, step))[1][0]
        value = gradient.weights * 2.0**gradient.exponent
        single.append(float((value - twin.q[0].grad).norm()))
        total += value / 64
    assert float((total - twin.q[0].grad).norm()) < 0.25 * sum(single) / len(single)
