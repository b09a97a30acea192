"""`--target ort-training`: the full-precision model as ONNX Runtime training files."""

from __future__ import annotations

from fedmpq.export.ort_training.artifacts import build, flatten

__all__ = ["build", "flatten"]
