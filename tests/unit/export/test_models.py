"""Known models end to end: exported, trained a few steps at mixed bits, core = reference bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpq.edge_runtime import core
from fedmpq.export import build, from_module, resolve
from fedmpq.export.program import Flag
from fedmpq.models.reference.session import ReferenceSession

HERE = "tests.unit.export.nets"

#: Name, image, classes, records, weights.
MODELS = [
    ("resnet8", (3, 32, 32), 10, 9, 74_800),
    ("resnet20", (3, 32, 32), 10, 21, 268_336),
    ("resnet44", (3, 16, 16), 10, 45, 655_408),
    (f"{HERE}:plain_vgg", (3, 16, 16), 10, 8, 12_760),
    (f"{HERE}:mobilenet", (3, 96, 96), 2, 29, 208_112),
    (f"{HERE}:ds_cnn", (1, 49, 10), 12, 11, 21_248),
    (f"{HERE}:plain_lenet", (1, 28, 28), 10, 7, 61_470),
    (f"{HERE}:plain_mlp", (3, 8, 8), 10, 4, 10_816),
    ("torchvision.models:resnet18", (3, 64, 64), 10, 23, 11_172_032),
    ("torchvision.models:mobilenet_v2", (3, 32, 32), 10, 53, 2_202_560),
]


@pytest.mark.parametrize(("name", "shape", "classes", "records", "weights"), MODELS, ids=[m[0] for m in MODELS])
def test_trains_to_the_bits_of_the_reference(
    name: str, shape: tuple[int, int, int], classes: int, records: int, weights: int
) -> None:
    torch.manual_seed(0)
    model = from_module(
        resolve(name, num_classes=classes, in_channels=shape[0]), shape, mean=(120,), crop_pad=2, name=name
    )
    program = core.Program(model.program)
    assert (len(program.records), sum(model.thetas), program.classes) == (records, weights, classes)
    large = weights > 1_000_000
    bits = tuple((4, 2, 8)[i % 3] for i in range(len(model.thetas)))
    plan = core.Plan(bits=bits, batch=1 if large else 3, momentum=not large)
    states = build.initial_states(model, plan, "max")
    session, reference = build.open_session(program, plan, states), ReferenceSession(model.program, plan)
    for index, state in enumerate(states):
        reference.load(index, state)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (plan.batch, *program.in_shape), dtype=np.uint8)
    labels = (np.arange(plan.batch) % classes).astype(np.uint16)
    hyper = core.Hyper(core.fx(0.05), core.fx(5e-4))
    before = reference.state_hash()
    for step in range(1 if large else 2):
        ours = session.step(images, labels, hyper, (7, 0, 0, step))
        theirs = reference.step(images, labels, hyper, (7, 0, 0, step))
        assert (ours.loss_q16, ours.correct, ours.count) == (theirs.loss_q16, theirs.correct, theirs.count)
    assert before != session.state_hash() == reference.state_hash()
    assert session.measured_bytes == session.planned_bytes


def test_a_model_without_batch_norm_learns() -> None:
    """LeNet-5 with biases only: its loss falls as far as that of one with batch-norm."""
    torch.manual_seed(0)
    model = from_module(resolve(f"{HERE}:plain_lenet"), (1, 28, 28), name="lenet")
    assert all(Flag.BIASED in record.flags for record in model.records if record.theta and record.out.c != 10)
    plan = core.Plan(bits=(4,) * 5, batch=32, momentum=True, crop=False, flip=False)
    session = build.open_session(core.Program(model.program), plan, build.initial_states(model, plan))
    rng = np.random.default_rng(1)
    patterns = rng.integers(40, 216, (10, 7, 7, 1)).repeat(4, 1).repeat(4, 2)
    hyper = core.Hyper(core.fx(0.02), core.fx(5e-4))
    losses = []
    for step in range(60):
        labels = rng.integers(0, 10, 32).astype(np.uint16)
        images = (patterns[labels] + rng.normal(0, 40, (32, 28, 28, 1))).clip(0, 255).astype(np.uint8)
        losses.append(session.step(images, labels, hyper, (3, 0, 0, step)).loss_q16 / 32 / 65536)
    assert np.mean(losses[:3]) > 2.2
    assert np.mean(losses[-10:]) < 0.2
