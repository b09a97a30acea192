"""The integer training step as an ONNX graph of standard operators: an executable specification.

Stock onnxruntime runs it to the same bits as the C core. All arithmetic is on integers (docs/arithmetic.md); matrix
products are MatMulInteger on u8 × u8 with zero points, which is exact on every processor (u8 × s8 saturates on some).
"""

OPSET = 18
IR_VERSION = 8
