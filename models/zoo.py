"""CIFAR-style residual networks in plain PyTorch: the full-precision baselines and the source of the programs.

He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2: a 3×3 stem, three stages of blocks with
16, 32 and 64 channels, shortcuts without parameters (option A), global average pooling and one linear layer. Images of
any size, channels and classes work; maps halve at the second and third stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3×3 convolutions and an option-A shortcut: every second position, new channels zero on both sides."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride = stride
        self.extra = cout - cin

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, cin, H, W] to [B, cout, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.extra != 0:
            front = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.extra - front))
        return F.relu(out + x)


class ResNet(nn.Module):
    """A ResNet of depth 6 · blocks + 2.

    Args:
        blocks: residual blocks a stage.
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the first stage.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(cin: int, cout: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(cin, cout, stride)
        return nn.Sequential(first, *(Block(cout, cout, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast("Tensor", self.fc(self.pool(x).flatten(1)))


def resnet8(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet8: one block a stage, 75 thousand weights at width 16."""
    return ResNet(1, num_classes, in_channels, width)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet20: three blocks a stage, 270 thousand weights at width 16."""
    return ResNet(3, num_classes, in_channels, width)


def resnet44(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet44: seven blocks a stage, 658 thousand weights at width 16."""
    return ResNet(7, num_classes, in_channels, width)


def ds_cnn(num_classes: int = 12, in_channels: int = 1, width: int = 64) -> nn.Sequential:
    """DS-CNN for keyword spotting on spectrograms of 49 by 10 (Zhang et al., "Hello Edge", 2017), 21 thousand weights.

    An oblong kernel, then four depthwise-separable blocks. The kernel is 7 by 4, where the paper has 10 by 4.
    """

    def block(cin: int, cout: int, kernel: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(cin, cout, kernel, 1, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(cout), nn.ReLU()]

    first = nn.Conv2d(in_channels, width, (7, 4), 2, 1, bias=False)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(4):
        layers += [*block(width, width, 3, width), *block(width, width, 1, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


#: The built-in models by name.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet44": resnet44,
    "ds-cnn": ds_cnn,
}
