"""Devices that do not train: they answer every plan with an update recorded beforehand. For measuring the coordinator.

A recorded update is valid in every check: the plan's own planes with some weights moved by one step, packed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmpq.coordinator import planes, source
from fedmpq.coordinator.global_model import DeviceLayer, GlobalModel
from fedmpq.coordinator.layout import Layout, of_program
from fedmpq.coordinator.planes import PackedLayer
from fedmpq.coordinator.source import Source
from fedmpq.edge_runtime import chunks, protocol


@dataclass(frozen=True)
class Images:
    """Shape of the data, without data."""

    shape: tuple[int, int, int] = (32, 32, 3)
    classes: int = 10


def resnet20(seed: int = 1) -> Source:
    """The model of the measurements: ResNet20 for 32x32x3 images of 10 classes."""
    return source.of_model("resnet20", Images(), bytes([125, 123, 114]), crop_pad=4, seed=seed)


def save(origin: Source, folder: Path) -> None:
    """Program and first model as files, so that a child process needs no PyTorch."""
    (folder / "program").write_bytes(origin.program)
    (folder / "model").write_bytes(origin.initial().to_bytes())


def load(folder: Path) -> Source:
    """What `save` wrote."""
    program = (folder / "program").read_bytes()
    shapes = of_program(program)
    return Source(program, shapes, lambda: GlobalModel.from_bytes((folder / "model").read_bytes(), shapes), "resnet20")


def profile_of(device: str, run: str, origin: Source, sizes: list[int], bits: int) -> bytes:
    """The profile of a device whose memory holds `bits` planes in every layer."""
    plans = tuple(protocol.PlanSize(n + 1, size, size if n < bits else None) for n, size in enumerate(sizes))
    return protocol.encode(
        protocol.Profile(
            device=device, run=run, program=origin.layout.program, samples=500, budget_bytes=sizes[bits - 1],
            limit_source="option", ram_bytes=1 << 29, available_bytes=1 << 28, cgroup_bytes=None, peak_bytes=0,
            plans=plans, machine="recorded", isa="recorded", cpus=1, threads=1, version="recorded",
        )
    )  # fmt: skip


def moved(layer: DeviceLayer, rng: np.random.Generator) -> PackedLayer:
    """A layer after some training: a quarter of its weights moved by one step."""
    limit = (1 << layer.bits) - 1
    step = rng.integers(-1, 2, layer.q.size, np.int16) * (rng.random(layer.q.size) < 0.25)
    q = np.clip(layer.q + step, -limit, limit).astype(np.int16)
    return planes.pack(DeviceLayer(layer.bits, layer.step, q, layer.params))


class Recorder:
    """Makes updates for a plan; the same plan and number always give the same update.

    Args:
        layout: of the program.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._made: dict[tuple[str, ...], tuple[tuple[protocol.LayerBlobs, ...], dict[str, bytes]]] = {}

    def layers(
        self, plan: protocol.PlanMessage, start: dict[str, bytes], number: int
    ) -> tuple[tuple[protocol.LayerBlobs, ...], dict[str, bytes]]:
        """Layers of update `number` of this plan, and its blobs by hash. `start`: the plan's blobs."""
        key = (*(layer.planes[0] for layer in plan.layers), str(plan.round), str(number), str(plan.bits))
        if key not in self._made:
            rng = np.random.default_rng(number)
            packed = []
            for shape, layer in zip(self.layout.layers, plan.layers, strict=True):
                blobs = [start[sha256] for sha256 in layer.planes]
                device = planes.unpack(shape, layer.bits, layer.step, blobs, start[layer.params])
                packed.append(moved(device, rng))
            blobs_by_hash: dict[str, bytes] = {}
            for done in packed:
                blobs_by_hash.update(zip(done.blobs.blobs, (*done.planes, done.params), strict=True))
            self._made[key] = tuple(done.blobs for done in packed), blobs_by_hash
        return self._made[key]

    def forget(self) -> None:
        """Drops what was made for earlier rounds."""
        self._made.clear()


def update_of(plan: protocol.PlanMessage, layers: tuple[protocol.LayerBlobs, ...]) -> bytes:
    """The update message."""
    return protocol.encode(
        protocol.Update(
            run=plan.run, round=plan.round, plan=plan.identity, samples=500, steps=8, count=500, correct=100,
            loss_q16=1 << 20, planned_bytes=plan.planned_bytes, measured_bytes=plan.planned_bytes, train_ms=1000,
            layers=layers,
        )
    )  # fmt: skip


def upload(need: protocol.Need, blobs: dict[str, bytes]) -> list[bytes]:
    """The messages that answer a need."""
    pieces = [
        piece
        for want in need.wants
        for piece in chunks.encode_chunks(
            want.sha256, blobs[want.sha256], chunks.indices_of(want.bitmap, chunks.chunk_count(len(blobs[want.sha256])))
        )
    ]
    return list(chunks.bundles(pieces))
