"""Small networks of every kind the exporter takes, as a user would write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
    ]


def vgg() -> nn.Module:
    """VGG-like: stacks of 3×3, max pooling, dropout, two linear layers (the first flattens a 4×4 map)."""
    return nn.Sequential(
        *conv_bn(3, 8), *conv_bn(8, 8), nn.MaxPool2d(2), *conv_bn(8, 16), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10),
    )  # fmt: skip


class LeNet(nn.Module):
    """LeNet-5 with batch-norm; the pooling stands before the ReLU, the classifier reads a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16)
        self.fc1, self.bn3 = nn.Linear(16 * 5 * 5, 120), nn.BatchNorm1d(120)
        self.fc2, self.bn4 = nn.Linear(120, 84), nn.BatchNorm1d(84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))
        x = F.avg_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.bn3(self.fc1(x)))
        x = F.relu(self.bn4(self.fc2(x)))
        return self.fc3(x)


def mobilenet(width: float = 0.25, classes: int = 2) -> nn.Module:
    """MobileNetV1 (MLPerf Tiny visual wake words, width 0.25): depthwise and 1×1 convolutions with ReLU6."""
    plan = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
            *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1)]  # fmt: skip

    def at(channels: int) -> int:
        return int(channels * width)

    layers = [nn.Conv2d(3, at(32), 3, 2, 1, bias=False), nn.BatchNorm2d(at(32)), nn.ReLU6(inplace=True)]
    for cin, cout, stride in plan:
        layers += [
            nn.Conv2d(at(cin), at(cin), 3, stride, 1, groups=at(cin), bias=False), nn.BatchNorm2d(at(cin)), nn.ReLU6(),
            nn.Conv2d(at(cin), at(cout), 1, bias=False), nn.BatchNorm2d(at(cout)), nn.ReLU6(),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(at(1024), classes))


def ds_cnn(channels: int = 64, classes: int = 12) -> nn.Module:
    """DS-CNN (keyword spotting) on 49×10 spectrograms: an oblong kernel, then depthwise-separable blocks."""
    layers: list[nn.Module] = [nn.Conv2d(1, channels, (7, 4), 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(4):
        layers += [*conv_bn(channels, channels, groups=channels), *conv_bn(channels, channels, 1)]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.AvgPool2d((23, 5)), nn.Flatten(), nn.Linear(channels, classes))


def mlp() -> nn.Module:
    """Two hidden layers; the first reads the image."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 24), nn.BatchNorm1d(24), nn.Hardtanh(0, 6), nn.Linear(24, 10),
    )  # fmt: skip


def flat() -> nn.Module:
    """Bias before batch-norm, no affine batch-norm, zero padding, overlapping pools, a classifier that reads a map."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding="valid"), nn.BatchNorm2d(8, affine=False), nn.ReLU(),
        nn.ZeroPad2d(1), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
        nn.Linear(72, 6),
    )  # fmt: skip


class Residual(nn.Module):
    """Residual blocks: in-place sums, both orders of the sum, option A, a projection with a ReLU of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8))
        self.a = nn.Sequential(*conv_bn(8, 8), *conv_bn(8, 8, 1)[:2])
        self.b = nn.Sequential(*conv_bn(8, 12, stride=2), *conv_bn(12, 12)[:2])
        self.c = nn.Sequential(*conv_bn(12, 16, stride=2), *conv_bn(16, 16)[:2])
        self.project = nn.Sequential(*conv_bn(12, 16, 1, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x)
        y += x
        F.relu_(y)  # in place: y is the activation from here on
        x = y
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
        x = F.relu(short + self.b(x))
        x = F.relu(self.c(x) + self.project(x))
        return self.fc(x.mean([2, 3]))


#: Name, factory, input shape (channels first), classes.
NETS = [
    ("vgg", vgg, (3, 16, 16), 10),
    ("lenet", LeNet, (1, 28, 28), 10),
    ("mobilenet", mobilenet, (3, 64, 64), 2),
    ("ds_cnn", ds_cnn, (1, 49, 10), 12),
    ("mlp", mlp, (3, 8, 8), 10),
    ("flat", flat, (3, 11, 9), 6),
    ("residual", Residual, (3, 12, 12), 5),
]
