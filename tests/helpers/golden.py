"""The golden runs of `edge_runtime/core/port/golden.c` in Python: over the core and over the PyTorch reference.

Each case's weights, images and labels come from the counter hash of docs/arithmetic.md, so the C side needs no file.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmpq.edge_runtime import core, sampling
from fedmpq.models.reference import fx
from tests.helpers import programs

SEED, ROUND, CLIENT = 20260101, 3, 0xFFFFFFF0
_LABEL, _PATTERN, _NOISE, _WEIGHT, _PARAM = range(0xFFFE0001, 0xFFFE0006)
_LR, _DECAY, _LASSO = fx.norm(1, -4), fx.norm(1, -11), fx.norm(1, -9)


@dataclass(frozen=True)
class Case:
    name: str
    blocks: int
    steps: int
    batch: int
    micro_batch: int
    bits: tuple[int, ...]
    act_bits: int = 4
    guard: int = 0
    momentum: bool = False
    lasso: bool = False

    @property
    def net(self) -> programs.Builder:
        return programs.resnet(self.blocks) if self.blocks else _branches()

    @property
    def plan(self) -> core.Plan:
        layers = len(self.net.layers)
        return core.Plan(
            bits=tuple(self.bits[i % len(self.bits)] for i in range(layers)),
            batch=self.batch,
            micro_batch=self.micro_batch,
            act_bits=self.act_bits,
            guard=self.guard,
            momentum=self.momentum,
        )


def _branches() -> programs.Builder:
    """Biases, records without ReLU, groups, pools, concatenations of both kinds of tensors; no residual net."""
    net = programs.Builder(32, 32, 3, 10, crop_pad=4, mean=(125, 123, 114))
    stem = net.conv("stem", 0, 8, biased=True)
    side = net.conv("side", stem, 12, kernel=1, stride=2, linear=True, t_out=1)
    inner = net.conv("inner", stem, 12, stride=2, biased=True)
    signed = net.conv("signed", inner, 12, skip=side, linear=True, biased=True, t_out=2)
    deep = net.conv("deep", signed, 12, groups=12, linear=True)
    joined = net.concat("joined", signed, net.max_pool("max", deep, 3, 1, 1), t_out=3)
    read = net.conv("read", joined, 20, stride=2)
    shrunk = net.conv("shrunk", read, 28, skip=joined, option_a=True)
    net.classifier("fc", net.global_pool("pool", net.concat("both", read, shrunk, t_out=1)))
    return net


_MIXED = (4, 8, 2, 1, 6)


def _cases() -> list[Case]:
    found = []
    for blocks, steps, name in ((1, 20, "resnet8"), (3, 3, "resnet20")):
        found += [
            Case(f"{name}-n1", blocks, steps, 2, 2, (1,), guard=2),
            Case(f"{name}-n2", blocks, steps, 2, 2, (2,), momentum=True),
            Case(f"{name}-n4", blocks, steps, 2, 2, (4,), momentum=True),
            Case(f"{name}-n8", blocks, steps, 2, 2, (8,), act_bits=8, momentum=True),
            Case(f"{name}-mixed", blocks, steps, 2, 1, _MIXED, guard=1, momentum=True, lasso=True),
        ]
        if blocks == 1:
            found += [Case(f"{name}-n{n}-b1", blocks, steps, 1, 1, (n,)) for n in (1, 2, 4, 8)]
            found.append(Case(f"{name}-mixed-b1", blocks, steps, 1, 1, _MIXED, lasso=True))
    found.append(Case("branches-n4-b1", 0, 10, 1, 1, (4,)))
    found.append(Case("branches-mixed", 0, 10, 4, 2, _MIXED, act_bits=8, guard=1, momentum=True, lasso=True))
    return found


CASES = {case.name: case for case in _cases()}


def _rand(stream: int, index: np.ndarray, *words: int) -> np.ndarray:
    """rand(key(SEED, *words, stream), index) as int64."""
    a, b, c = (*words, 0, 0, 0)[:3]
    k0, k1 = sampling.derive(SEED, a, b, c, stream)
    x = (index.astype(np.uint64) + k0).astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= np.uint32(k1)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x.astype(np.int64)


def layer_state(case: Case, number: int, record: int, layer: tuple[str, int, int, int, int]) -> core.LayerState:
    """The start of weight layer `number`, the program's record `record`."""
    kind, rows, kh, kw, cin = layer
    n, guard, fan_in = case.plan.bits[number], case.guard, kh * kw * cin
    boost = {1: 4, 2: 2}.get(n, 1)
    r = _rand(_WEIGHT, np.arange(rows * fan_in), 0, 0, record)
    total = sum((r >> shift) & 255 for shift in (0, 8, 16, 24)) - 510
    top = (2**n - 1) << guard
    q = np.clip((total * top * boost + 255) // 510, -top, top)
    planes = [q < 0, *((np.abs(q) >> i & 1).astype(bool) for i in range(n + guard))]
    spread = fx.mul(fx.norm(math.isqrt((2 << 40) // fan_in), -20), fx.norm(345))
    step = fx.div(spread, fx.norm(100 * boost * (2**n - 1)))
    a, b = (_rand(_PARAM, np.arange(rows) + first, 0, 0, record) for first in (0, rows))
    if kind == "classifier":
        params = ((a >> 13) - 2**18).astype("<i4").tobytes()
    else:
        gamma, beta = 10923 * 65536 - 2**27 + (a >> 4), (b >> 6) - 2**25
        params = gamma.astype("<i4").tobytes() + beta.astype("<i4").tobytes() + bytes(4 * rows)
        params += np.full(rows, 256 * 65536, "<i8").tobytes()
    packed = tuple(np.packbits(plane, bitorder="little").tobytes() for plane in planes)
    return core.LayerState(n, guard, tuple(step), packed, params)


def batch(case: Case, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images u8 [B, 32, 32, 3] and labels u16 [B] of a step."""
    labels = (_rand(_LABEL, np.arange(case.batch), step) * 10 >> 32).astype(np.uint16)
    pixels = np.arange(32 * 32 * 3)
    rows = [
        (_rand(_PATTERN, pixels, int(label)) >> 25) + (_rand(_NOISE, pixels, step, b) >> 25)
        for b, label in enumerate(labels)
    ]
    return np.stack(rows).astype(np.uint8).reshape(-1, 32, 32, 3), labels


def run(case: Case, kind: type[Any], **changes: Any) -> dict[str, Any]:
    """Runs a case on a session class (`core.Session` with a parsed program, or `ReferenceSession` with its bytes)."""
    net = case.net
    data = net.build()
    plan = case.plan if not changes else core.Plan(**{**case.plan.__dict__, **changes})
    session = kind(core.Program(data) if kind is core.Session else data, plan)
    records = [layer.record for layer in core.Program(data).weight_layers]
    for i, layer in enumerate(net.layers):
        session.load(i, layer_state(case, i, records[i], layer))
    start = session.state_hash()
    lasso = (tuple(_LASSO),) * len(net.layers) if case.lasso else ()
    hyper = core.Hyper(lr=tuple(_LR), weight_decay=tuple(_DECAY), momentum_q15=29491, lasso=lasso)
    loss = correct = 0
    for step in range(case.steps):
        images, labels = batch(case, step)
        key = (SEED, ROUND, CLIENT, step * (case.batch // case.micro_batch))
        stats = session.step(images, labels, hyper, key)
        loss, correct = loss + stats.loss_q16, correct + stats.correct
    evaluated = session.evaluate(images, labels)
    return {
        "program": hashlib.sha256(data).hexdigest(),
        "start": start,
        "state": session.state_hash(),
        "loss_q16": loss,
        "correct": correct,
        "eval_loss_q16": evaluated.loss_q16,
    }
