"""Runs in a child process whose core is built with AddressSanitizer and UBSan: mutated programs and a few real steps.

Usage: FEDMPQ_CORE=<library> python -m tests.helpers.sanitized SEED COUNT
"""

from __future__ import annotations

import random
import sys

import numpy as np

from fedmpq.edge_runtime import core
from fedmpq.errors import FedmpqError
from tests.helpers import programs


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A program with a few bytes changed, cut or appended."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(8, len(out))
        choice = rng.random()
        if choice < 0.85:
            out[where] = rng.choice((0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 64, 127, 128, 255, rng.randrange(256)))
        elif choice < 0.95:
            del out[where:]
            break
        else:
            out += bytes(rng.randrange(1, 70))
    return bytes(out)


def train(program: core.Program, bits: tuple[int, ...], batch: int) -> None:
    """Two steps and an evaluation on random pixels."""
    plan = core.Plan(bits=bits, batch=batch, momentum=True)
    if core.plan_memory(program, plan).total > 1 << 24:
        return
    session = core.Session(program, plan)
    for index, layer in enumerate(program.weight_layers):
        planes = [bytes(layer.theta // 8 + (layer.theta % 8 > 0))] * (1 + bits[index])
        session.load(index, core.LayerState(bits[index], 0, core.fx(0.01), tuple(planes), bytes(layer.params_bytes)))
    h, w, c = program.in_shape
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (batch, h, w, c), dtype=np.uint8)
    labels = rng.integers(0, program.classes, batch).astype(np.uint16)
    for step in range(2):
        session.step(images, labels, core.Hyper(lr=core.fx(0.1)), (1, 1, 1, step))
    session.evaluate(images, labels)
    session.prune(6000)
    assert session.measured_bytes == session.planned_bytes


def main(seed: int, count: int) -> int:
    """Parses `count` mutated programs; what is accepted is also planned and trained. Returns how many were accepted."""
    rng = random.Random(seed)
    nets = [
        programs.resnet(1, size=(8, 8, 3), width=8),
        programs.variety(),
        programs.variety(flat=True),
        programs.branches(),
        programs.shared(),
    ]
    for net in nets:
        program = core.Program(net.build())
        train(program, tuple(1 + i % 8 for i in range(len(program.weight_layers))), 3)
    accepted = 0
    for _ in range(count):
        try:
            program = core.Program(mutated(rng.choice(nets).build(), rng))
            bits = tuple(rng.randint(1, 8) for _ in program.weight_layers)
            macs = sum(r.h_out * r.w_out * r.cout * r.cin * r.kh * r.kw for r in program.records if r.kind == core.CONV)
            if macs < 5_000_000:
                train(program, bits, rng.randint(1, 3))
            accepted += 1
        except FedmpqError:
            continue
    return accepted


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2])))
