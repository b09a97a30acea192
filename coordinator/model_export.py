"""Writing a global model of a run as an artifact file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmpq import __version__
from fedmpq.coordinator import layout, planes, strategies
from fedmpq.coordinator.blobs import BlobStore
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.journal import Journal
from fedmpq.edge_runtime import artifact
from fedmpq.edge_runtime.weights import LayerBlobs
from fedmpq.errors import StateError


def export(journal: Journal, directory: Path, bits: int, round_no: int | None, out: Path) -> dict[str, Any]:
    """Quantises a global model and writes it.

    Args:
        journal: of the run.
        directory: its data directory.
        bits: magnitude planes of every layer.
        round_no: the round whose result is meant, 0 for the first model, None for the latest committed.
        out: the file.

    Raises:
        StateError: the run has no such round yet.
    """
    program_id = journal.meta("program")
    if program_id is None:
        raise StateError(f"{directory} holds no run yet")
    blobs = BlobStore(directory / "blobs")
    program = blobs.get(program_id)
    config = RunConfig.from_dict(json.loads(journal.meta("config") or "{}"))
    model_id = _model_of(journal, round_no)
    if config.strategy in strategies.FLOAT_STRATEGIES:
        return _export_state(program, blobs.get(model_id), out) | {"global_model": model_id}
    shapes = layout.of_program(program)
    model = GlobalModel.from_bytes(blobs.get(model_id), shapes)
    layers = []
    for index, shape in enumerate(shapes.layers):
        scale = "mse" if config.scale == "mse" else "max"
        packed = planes.pack(model.layer_state(index, bits, config.act_bits, scale=scale))  # type: ignore[arg-type]
        layers.append(LayerBlobs(bits, 0, packed.step, shape.theta, packed.planes, packed.params))
    plan = {
        "bits": [bits] * len(layers),
        "batch": config.batch,
        "micro_batch": config.micro_batch or config.batch,
        "act_bits": config.act_bits,
        "guard": 0,
        "momentum": config.momentum,
        "threads": 1,
        "crop": config.crop,
        "flip": config.flip,
        "decay_bn": config.decay_bn,
        "recompute": config.recompute,
    }
    manifest = {"model": config.run, "run": config.run, "global_model": model_id, "fedmpq": __version__}
    size = artifact.write(out, artifact.Artifact(program, tuple(layers), plan, manifest))
    return {"file": out, "bytes": size, "bits": bits, "global_model": model_id, "program": program_id}


def _export_state(bundle: bytes, state: bytes, out: Path) -> dict[str, Any]:
    """A full-precision model as a PyTorch state dict, under the names of the module it was made of."""
    import io

    import numpy as np
    import torch

    from fedmpq.edge_runtime import container
    from fedmpq.edge_runtime.ort import bundle as bundles

    parsed, values, at = bundles.parse(bundle), np.frombuffer(state, "<f4"), 0
    tensors = {}
    for value in parsed.values:
        part = values[at : at + value.size].reshape(value.shape).copy()
        tensors[value.name] = torch.from_numpy(part)
        at += value.size
    written = io.BytesIO()
    torch.save(tensors, written)
    container.write_atomic(out, written.getvalue())
    return {"file": out, "bytes": len(written.getvalue()), "model": parsed.model, "values": parsed.size}


def _model_of(journal: Journal, round_no: int | None) -> str:
    latest = journal.meta("model")
    row = None if round_no is None else journal.row("SELECT * FROM rounds WHERE round=?", max(1, round_no))
    if latest is not None and (round_no is None or (round_no == 0 and row is None)):
        return latest
    name = None if row is None else row["base_model" if round_no == 0 else "next_model"]
    if name is None:
        raise StateError(f"the run has no result of round {round_no} yet")
    return str(name)
