"""Random small programs: odd channel counts, kernels, strides, groups, pools, skips; core and reference agree.

Shapes are drawn from a seed, so that a failure is one number; hypothesis draws the seeds.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmpq.edge_runtime import core
from fedmpq.models.reference import ReferenceSession
from tests.helpers import programs


def _network(rng: np.random.Generator) -> programs.Builder:
    size = (int(rng.integers(3, 14)), int(rng.integers(3, 14)), int(rng.choice([1, 2, 3, 5])))
    mean = tuple(int(v) for v in rng.integers(0, 256, size[2]))
    net = programs.Builder(*size, int(rng.integers(2, 20)), int(rng.integers(0, 4)), mean)
    x = _conv(net, rng, "conv0", 0)
    for i in range(1, int(rng.integers(2, 7))):
        kinds = ["conv", "residual", "projection", "concat", "option_a", "shared", "max", "avg"]
        kind = rng.choice(kinds, p=[0.2, 0.175, 0.15, 0.125, 0.1, 0.1, 0.075, 0.075])
        height, width, channels = net.shapes[x]
        if kind == "residual":
            inner = _conv(net, rng, f"inner{i}", x, stride=1, same=True)
            x = _conv(net, rng, f"conv{i}", inner, skip=x, cout=channels, stride=1, same=True)
        elif kind == "projection":
            kernel = int(rng.choice([k for k in (1, 2, 3) if k <= min(height, width)]))
            window = {"kernel": kernel, "stride": int(rng.integers(1, 3)), "pad": int(rng.integers(0, kernel))}
            cout = int(rng.integers(1, 36))
            side = net.conv(
                f"side{i}", x, cout, linear=bool(rng.random() < 0.8), t_out=int(rng.integers(0, 4)), **window
            )
            inner = net.conv(f"inner{i}", x, int(rng.integers(1, 36)), t_out=int(rng.integers(0, 4)), **window)
            x = _conv(net, rng, f"conv{i}", inner, skip=side, cout=cout, stride=1, same=True)
        elif kind == "concat":
            other = _conv(net, rng, f"other{i}", x, stride=1, same=True, linear=net.linear[x])
            t_out = min(6, max(net.exponents[x], net.exponents[other]) + int(rng.integers(0, 3)))
            x = net.concat(f"concat{i}", *((x, other) if rng.random() < 0.5 else (other, x)), t_out)
        elif kind == "option_a" and min(height, width) > 2:
            inner = net.conv(f"inner{i}", x, int(rng.integers(1, 12)), stride=2)
            cout = channels + int(rng.integers(0, 9))
            x = net.conv(f"conv{i}", inner, cout, skip=x, option_a=True, t_out=int(rng.integers(0, 4)))
        elif kind == "shared" and min(height, width) > 2:  # a convolution, an identity skip, an option-A shortcut of x
            inner = _conv(net, rng, f"inner{i}", x, stride=1, same=True)
            added = _conv(net, rng, f"added{i}", inner, skip=x, cout=channels, stride=1, same=True)
            half = net.conv(f"half{i}", added, int(rng.integers(1, 12)), stride=2)
            cout = channels + int(rng.integers(0, 9))
            x = net.conv(f"conv{i}", half, cout, skip=x, option_a=True, t_out=int(rng.integers(0, 4)))
        elif kind in {"max", "avg"} and min(height, width) >= 3:
            kernel, stride = int(rng.integers(2, 4)), int(rng.integers(1, 4))
            x = (net.max_pool if kind == "max" else net.avg_pool)(f"{kind}{i}", x, kernel, stride)
        else:
            x = _conv(net, rng, f"conv{i}", x)
    tail = rng.choice(["pool", "flat", "hidden"])
    if tail == "pool":
        x = net.global_pool("pool", x)
    elif tail == "hidden":
        x = net.conv("hidden", x, int(rng.integers(1, 40)), kernel=1, flatten=True)
    net.classifier("fc", x)
    return net


def _conv(
    net: programs.Builder,
    rng: np.random.Generator,
    name: str,
    x: int,
    *,
    cout: int | None = None,
    stride: int | None = None,
    skip: int | None = None,
    same: bool = False,
    linear: bool | None = None,
) -> int:
    height, width, cin = net.shapes[x]
    kernels = [k for k in (1, 2, 3, 5) if k <= min(height, width) and (k % 2 or not same)]
    kernel = int(rng.choice(kernels))
    pad = kernel // 2 if same else int(rng.integers(0, kernel))
    cout = int(rng.integers(1, 36)) if cout is None else cout
    divisors = [g for g in range(1, cin + 1) if cin % g == 0 and cout % g == 0]
    groups = int(rng.choice(divisors)) if rng.random() < 0.4 else 1
    stride = int(rng.integers(1, 4)) if stride is None else stride
    return net.conv(
        name, x, cout, kernel=kernel, stride=stride, pad=pad, groups=groups, skip=skip, t_out=int(rng.integers(0, 4)),
        linear=bool(rng.random() < 0.15) if linear is None else linear, biased=bool(rng.random() < 0.2),
    )  # fmt: skip


def _run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = _network(rng)
    bits = tuple(int(n) for n in rng.integers(1, 9, len(net.layers)))
    batch = int(rng.integers(1, 10))
    plan = core.Plan(
        bits=bits,
        batch=batch,
        micro_batch=int(rng.integers(1, batch + 1)) if rng.random() < 0.3 else None,
        act_bits=int(rng.choice([4, 8])),
        guard=int(rng.integers(0, 7)) if rng.random() < 0.3 else 0,
        momentum=bool(rng.random() < 0.5),
        threads=int(rng.integers(1, 3)),
        crop=bool(rng.random() < 0.7),
        flip=bool(rng.random() < 0.7),
        decay_bn=bool(rng.random() < 0.7),
        recompute=bool(rng.random() < 0.5),
    )
    data = net.build()
    integer, reference = core.Session(core.Program(data), plan), ReferenceSession(data, plan)
    for i, state in enumerate(programs.states(net, bits, plan.guard, seed)):
        integer.load(i, core.LayerState(*state))
        reference.load(i, state)
    lasso = tuple(core.fx(0.01) for _ in net.layers) if rng.random() < 0.3 else ()
    hyper = core.Hyper(lr=core.fx(float(rng.choice([0.01, 0.1, 1.0]))), weight_decay=core.fx(1e-3), lasso=lasso)
    for step in range(3):
        images, labels = programs.images(net, batch, seed=seed + step)
        mine = integer.step(images, labels, hyper, (seed, 0, 1, 100 * step))
        theirs = reference.step(images, labels, hyper, (seed, 0, 1, 100 * step))
        assert (mine.loss_q16, mine.correct) == (theirs.loss_q16, theirs.correct), f"seed {seed}, step {step}"
        assert integer.state_hash() == reference.state_hash(), f"seed {seed}, step {step}"
    mine, theirs = integer.evaluate(images, labels), reference.evaluate(images, labels)
    assert (mine.loss_q16, mine.correct) == (theirs.loss_q16, theirs.correct), f"seed {seed}"
    assert tuple(integer.prune(30000)) == reference.prune(30000), f"seed {seed}"
    assert integer.state_hash() == reference.state_hash(), f"seed {seed}, pruned"
    assert integer.measured_bytes == integer.planned_bytes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1))
@pytest.mark.parametrize("isa", core.isas())
def test_random_programs_agree(isa: str, seed: int) -> None:
    chosen = core.isa()
    core.set_isa(isa)
    try:
        _run(seed)
    finally:
        core.set_isa(chosen)
