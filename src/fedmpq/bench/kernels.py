"""Time of each layer shape: a small program with the layer less the same program without it."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedmpq.bench import machine
from fedmpq.bench.engines.peak import PeakEngine
from fedmpq.bench.job import Job
from fedmpq.edge_runtime import core
from fedmpq.export import from_module, resolve
from fedmpq.export.program import ProgramBuilder
from fedmpq.models import initial
from fedmpq.models.reference.program import parse

_CLASSES = 10


class Small:
    """A session of: 1×1 stem from one channel to cin, the layer or nothing, global pool, classifier."""

    def __init__(self, record: core.Record, bits: int, batch: int, *, with_layer: bool) -> None:
        builder = ProgramBuilder((record.h_in, record.w_in, 1))
        builder.conv("stem", record.cin, 1)
        if with_layer:
            builder.conv(
                "layer", record.cout, (record.kh, record.kw), stride=record.stride, pad=record.pad, groups=record.groups
            )
        builder.global_pool()
        builder.classifier("classifier", _CLASSES)
        data = builder.build()
        program = core.Program(data)
        plan = core.Plan((bits,) * len(program.weight_layers), batch, crop=False, flip=False)
        self.session = core.Session(program, plan)
        generator = np.random.default_rng(0)
        parsed = parse(data)
        for index, layer in enumerate(parsed.weight_layers):
            shape = (layer.cout, layer.kh, layer.kw, layer.cin // layer.groups)
            weights = generator.normal(0, layer.fan_in**-0.5, shape)
            ones = np.ones(layer.cout)
            values = initial.FloatLayer(weights, ones, 0 * ones, 0 * ones, ones, 0 * ones)
            state = initial.layer_state(layer, values, bits, program=parsed, plan=plan)
            self.session.load(index, core.LayerState(state.bits, state.guard, state.step, state.planes, state.params))
        self.images = generator.integers(0, 256, batch * record.h_in * record.w_in, np.uint8).tobytes()
        self.labels = array("H", (i % _CLASSES for i in range(batch)))
        self.hyper = core.Hyper(core.fx(0.001))

    def step(self) -> None:
        """One training step."""
        self.session.step(self.images, self.labels, self.hyper, (0, 0, 0, 0))

    def forward(self) -> None:
        """One forward pass."""
        self.session.evaluate(self.images, self.labels)


def seconds(call: Callable[[], object], least: float = 0.02) -> float:
    """Processor seconds of a call, the median over as many as fit `least` seconds."""
    times: list[float] = []
    while not times or sum(times) < least:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def shapes(program: core.Program) -> list[tuple[core.Record, int]]:
    """Distinct convolutions that read an activation, with how often each occurs."""
    found: dict[tuple[int, ...], tuple[core.Record, int]] = {}
    for record in program.records:
        if record.kind != core.CONV or record.input == 0 or record.h_in * record.w_in == 1:
            continue
        window = (record.kh, record.kw, record.stride, record.pad, record.groups)
        key = (*window, record.cin, record.cout, record.h_in, record.w_in)
        first, count = found.get(key, (record, 0))
        found[key] = (first, count + 1)
    return list(found.values())


def run(
    model: str,
    shape: tuple[int, int, int],
    bits: int,
    batch: int,
    repetitions: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of `fedmpq bench kernels`."""
    torch.manual_seed(0)
    module = resolve(model, num_classes=_CLASSES, in_channels=shape[0])
    chosen = shapes(core.Program(from_module(module, shape, mean=[128], name=model).program))
    pairs = [tuple(Small(record, bits, batch, with_layer=held) for held in (True, False)) for record, _ in chosen]
    peak = PeakEngine(Job("peak", model))
    steps: list[list[float]] = [[] for _ in chosen]
    forwards: list[list[float]] = [[] for _ in chosen]
    peaks: list[float] = []
    before = machine.load()
    for _ in range(repetitions):
        for i, (full, bare) in enumerate(pairs):
            steps[i].append(seconds(full.step) - seconds(bare.step))
            forwards[i].append(seconds(full.forward) - seconds(bare.forward))
        if peak.macs:
            peaks.append(seconds(peak.step))
        advance(1)
    rate = peak.macs / statistics.median(peaks) if peaks else 0.0
    return {
        "model": model,
        "input": list(shape),
        "bits": bits,
        "batch": batch,
        "isa": core.isa(),
        "layers": [
            _entry(record, count, batch, statistics.median(f), statistics.median(s), rate)
            for (record, count), f, s in zip(chosen, forwards, steps, strict=True)
        ],
        "peak_macs_per_s": round(rate),
        "machine": machine.describe(),
        "load_before": before,
        "load_after": machine.load(),
    }


def _entry(record: core.Record, count: int, batch: int, forward: float, step: float, rate: float) -> dict[str, Any]:
    weights = record.kh * record.kw * (record.cin // record.groups) * record.cout
    macs = 3 * weights * record.h_out * record.w_out
    return {
        "name": record.name,
        "input": f"{record.h_in}×{record.w_in}×{record.cin}",
        "output": f"{record.h_out}×{record.w_out}×{record.cout}",
        "kernel": f"{record.kh}×{record.kw}" + (f", {record.groups} groups" if record.groups > 1 else ""),
        "stride": record.stride,
        "count": count,
        "forward_ms": round(forward * 1e3, 4),
        "step_ms": round(step * 1e3, 4),
        "macs_per_sample": macs,
        "peak_fraction": round(macs * batch / (step * rate), 4) if rate and step > 0 else None,
    }
