"""Judging a device's update: what it claims, which blobs are missing, and whether its contents may count.

Pure functions: the state of the round goes in, a verdict comes out. A refused update raises `RejectionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedmpq.coordinator import planes
from fedmpq.coordinator.global_model import DeviceLayer, GlobalLayer, read_layer, read_params
from fedmpq.coordinator.layout import Layout
from fedmpq.edge_runtime.protocol import LayerBlobs, Update
from fedmpq.errors import FedmpqError, FormatError


class RejectionError(FedmpqError):
    """An update that does not count; `reason` is the code that goes back to the device and into the journal."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"rejected:{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_manifest(layout: Layout, sent: Sequence[LayerBlobs], epochs: int, plan_sha: str, update: Update) -> None:
    """Compares an update's claims with the plan it should have followed.

    Args:
        layout: of the program.
        sent: the plan's layers.
        epochs: the plan's.
        plan_sha: the plan's identity.
        update: what came.

    Raises:
        RejectionError: stale-round (trained under another plan), shape or range.
    """
    if update.plan != plan_sha:
        raise RejectionError(
            "stale-round", f"trained under plan {update.plan[:12]}, the round's plan is {plan_sha[:12]}"
        )
    if len(update.layers) != len(layout.layers):
        raise RejectionError("shape", f"{len(update.layers)} layers, the program has {len(layout.layers)}")
    for shape, given, asked in zip(layout.layers, update.layers, sent, strict=True):
        if given.bits > asked.bits:
            raise RejectionError("range", f"layer {shape.name} has {given.bits} bits, {asked.bits} were assigned")
        if given.step != asked.step:
            raise RejectionError("range", f"layer {shape.name} changed its step")
    most = epochs * update.samples
    if update.count > most or update.correct > update.count:
        raise RejectionError("range", f"{update.correct} of {update.count} correct, at most {most} samples in the plan")


def blob_sizes(layout: Layout, layers: Sequence[LayerBlobs]) -> dict[str, int]:
    """Size of every blob an update names, as the program has it.

    Raises:
        RejectionError: one hash is named for two sizes.
    """
    sizes: dict[str, int] = {}
    for shape, layer in zip(layout.layers, layers, strict=True):
        named = [(sha256, shape.plane_bytes) for sha256 in layer.planes] + [(layer.params, shape.params_bytes)]
        for sha256, size in named:
            if sizes.setdefault(sha256, size) != size:
                raise RejectionError("shape", f"blob {sha256[:12]} is named for {sizes[sha256]} and for {size} bytes")
    return sizes


def check_contents(layout: Layout, layers: Sequence[LayerBlobs], blob: Callable[[str], bytes]) -> None:
    """Judges a complete update without unpacking it; RejectionError as `read_contents`."""
    for shape, layer in zip(layout.layers, layers, strict=True):
        try:
            planes.check(shape, layer.bits, [blob(sha) for sha in layer.planes])
        except FormatError as error:
            raise RejectionError("shape", error.message) from None
        try:
            read_params(shape, blob(layer.params))
        except FormatError as error:
            raise RejectionError("range", error.message) from None


def read_contents(layout: Layout, layers: Sequence[LayerBlobs], blob: Callable[[str], bytes]) -> list[DeviceLayer]:
    """The integers of a complete update.

    Raises:
        RejectionError: a plane or parameter blob of the wrong length or with values that cannot be ("shape"), or a
            parameter outside its range ("range").
    """
    found = []
    for shape, layer in zip(layout.layers, layers, strict=True):
        try:
            found.append(
                planes.unpack(shape, layer.bits, layer.step, [blob(sha) for sha in layer.planes], blob(layer.params))
            )
        except FormatError as error:
            raise RejectionError("shape", error.message) from None
        try:
            read_params(shape, found[-1].params)
        except FormatError as error:
            raise RejectionError("range", error.message) from None
    return found


def to_global(layout: Layout, layers: Sequence[DeviceLayer], act_bits: int) -> list[GlobalLayer]:
    """An accepted update in the global model's units."""
    return [read_layer(shape, layer, act_bits) for shape, layer in zip(layout.layers, layers, strict=True)]


def pack_file(layers: Sequence[LayerBlobs], blobs: Mapping[str, bytes]) -> bytes:
    """One update as one blob: every layer's planes and parameters in order."""
    return b"".join(blobs[sha256] for layer in layers for sha256 in layer.blobs)


def unpack_file(layout: Layout, layers: Sequence[LayerBlobs], data: bytes) -> dict[str, bytes]:
    """The blobs of `pack_file`, by hash; FormatError if the length is another."""
    blobs, at = {}, 0
    for shape, layer in zip(layout.layers, layers, strict=True):
        for sha256 in layer.planes:
            blobs[sha256] = data[at : at + shape.plane_bytes]
            at += shape.plane_bytes
        blobs[layer.params] = data[at : at + shape.params_bytes]
        at += shape.params_bytes
    if at != len(data):
        raise FormatError(f"stored update has {len(data)} bytes instead of {at}")
    return blobs


def layer_of_file(layout: Layout, layers: Sequence[LayerBlobs], data: bytes, index: int) -> DeviceLayer:
    """One layer of `pack_file`; the file was checked when it was stored."""
    at = 0
    for shape, layer in zip(layout.layers[:index], layers, strict=False):
        at += len(layer.planes) * shape.plane_bytes + shape.params_bytes
    shape, layer = layout.layers[index], layers[index]
    end = at + len(layer.planes) * shape.plane_bytes
    packed = [data[start : start + shape.plane_bytes] for start in range(at, end, shape.plane_bytes)]
    return planes.unpack(shape, layer.bits, layer.step, packed, data[end : end + shape.params_bytes])
