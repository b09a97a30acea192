"""What to use instead of an operation that has no record: one line for each, a general one for the rest."""

from __future__ import annotations

GENERAL = "build the model of Conv2d, BatchNorm2d, ReLU, sums, pooling and a final Linear"

_RELU = "use ReLU, ReLU6 or Hardtanh(0, a)"
_NORMALISE = "leave factors and offsets to a batch-norm, and the normalisation of images to --mean and --std"
_ATTENTION = "attention has no integer record: use a convolutional model"
_RECURRENT = "recurrent layers have no integer record: use convolutions over time"

ADVICE: dict[str, str] = {
    **dict.fromkeys(
        ["gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "selu", "celu", "mish", "softplus",
         "leaky_relu", "prelu", "rrelu", "logsigmoid", "softsign", "glu", "threshold"], _RELU,
    ),
    **dict.fromkeys(["layer_norm", "group_norm", "instance_norm", "native_layer_norm", "rms_norm"], "use BatchNorm2d"),
    **dict.fromkeys(["sub", "rsub", "div", "div_", "mul"], _NORMALISE),
    **dict.fromkeys(["scaled_dot_product_attention", "bmm", "matmul", "einsum", "baddbmm"], _ATTENTION),
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], _RECURRENT),
    **dict.fromkeys(["conv1d"], "use Conv2d with a kernel of height 1 on images of height 1"),
    **dict.fromkeys(["conv3d"], "use Conv2d"),
    **dict.fromkeys(
        ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "upsample_nearest2d", "upsample_bilinear2d",
         "pixel_shuffle"], "a classifier only shrinks its maps: leave out upsampling",
    ),
    **dict.fromkeys(["stack"], "join branches with a sum, or their channels with torch.cat([a, b], 1)"),
    **dict.fromkeys(["chunk", "split", "split_with_sizes", "unbind", "select", "index"],
                    "keep tensors whole; use groups= in Conv2d to treat channels apart"),
    **dict.fromkeys(["permute", "transpose", "t", "channel_shuffle"], "keep the order batch, channels, height, width"),
    **dict.fromkeys(["max", "amax", "adaptive_max_pool2d", "max_pool2d_with_indices"], "use MaxPool2d"),
    **dict.fromkeys(["embedding", "embedding_bag"], "the input has to be an image of pixels"),
}  # fmt: skip


def advice(operation: str) -> str:
    """What to use instead of `operation` (for example "aten.gelu")."""
    name = operation.removeprefix("aten.")
    return ADVICE.get(name) or ADVICE.get(name.rstrip("_")) or GENERAL
