"""Benchmarks: the same training step in several engines side by side, memory, kernels (`fedmpq bench`).

Every engine runs in a process of its own (`worker`), the parent (`compare`) gives them turns one after the other and
takes medians. Only the engines' own modules import torch, ONNX Runtime or ExecuTorch.
"""
