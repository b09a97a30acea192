"""Full-precision training on a device with ONNX Runtime training: bundles, local training, coded updates.

Needs NumPy and onnxruntime-training (`pip install 'fedmpq[ort-training]'`); nothing else of `edge_runtime` imports it.
"""
