"""A trained artifact to models that ship: quantised ONNX and ExecuTorch programs, plain PyTorch."""

from __future__ import annotations
