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


def plain_lenet() -> nn.Module:
    """LeNet-5 without batch-norm; the first activation stands behind the pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU6(), nn.Linear(84, 10),
    )  # fmt: skip


def plain_vgg() -> nn.Module:
    """VGG without batch-norm."""
    layers: list[nn.Module] = []
    for cin, cout, pool in ((3, 8, False), (8, 8, True), (8, 16, False), (16, 16, True)):
        layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(inplace=True), *([nn.MaxPool2d(2)] if pool else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))


def plain_mlp() -> nn.Module:
    """Linear layers with biases and nothing else; two follow one another without an activation."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 48), nn.ReLU(), nn.Linear(48, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)
    )


class Projected(nn.Module):
    """A basic block as torchvision has it: the shortcut's batch-norm is added before the ReLU."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Sequential(*conv_bn(cin, cout, 3, stride), *conv_bn(cout, cout)[:2])
        self.short = nn.Sequential(*conv_bn(cin, cout, 1, stride)[:2]) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.short(x))


def projected() -> nn.Module:
    """A stem with max pooling and blocks with projection shortcuts."""
    return nn.Sequential(
        *conv_bn(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), Projected(8, 8, 1), Projected(8, 12, 2), Projected(12, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7),
    )  # fmt: skip


class Inverted(nn.Module):
    """A block of MobileNetV2: expansion, depthwise, and a linear bottleneck that is added without a ReLU."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        wide = 3 * cin
        self.body = nn.Sequential(
            nn.Conv2d(cin, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, cout, 1, bias=False), nn.BatchNorm2d(cout),
        )  # fmt: skip
        self.same = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenet_v2() -> nn.Module:
    """Linear bottlenecks; the first block ends without a ReLU, the last convolution reads a signed tensor."""
    return nn.Sequential(
        *conv_bn(3, 8, 3, 2), Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1), *conv_bn(12, 24, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


class Fire(nn.Module):
    """A module of SqueezeNet: one ReLU behind the concatenation of two convolutions without batch-norm."""

    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.one(x), self.three(x)], 1))


def squeezenet() -> nn.Module:
    """Concatenations."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), Fire(8, 4, 6), Fire(12, 6, 8), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip


class Dense(nn.Module):
    """DenseNet: batch-norms that stand alone, each layer reads all before it; transition by average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.down, self.last = nn.Conv2d(20, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.relu(self.last(F.avg_pool2d(self.down(torch.cat(features, 1)), 2)))
        return self.fc(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Pre-activation residual blocks: sums without ReLU, batch-norms that stand alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.fc(F.relu(self.norms[4](x)).mean((2, 3)))


class Sums(nn.Module):
    """Sums without a convolution of their own: two activations, a convolution and its input; a ReLU behind a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8))
        self.a, self.b = nn.Sequential(*conv_bn(8, 8)), nn.Sequential(*conv_bn(8, 8, 1))
        self.c, self.d = nn.Sequential(*conv_bn(8, 8)[:2]), nn.Conv2d(8, 8, 1)
        self.fc = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.a(x) + self.b(x)
        x = F.relu(x + self.c(x))
        x = F.relu(F.avg_pool2d(self.d(x), 2))
        return self.fc(x.mean((2, 3)))


class Joined(nn.Module):
    """ReLUs behind concatenations of maps that are signed already; a head that is computed and not returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(*conv_bn(3, 8)[:2]), nn.Sequential(*conv_bn(3, 4, 1)[:2])
        self.c, self.d = nn.Sequential(*conv_bn(12, 6)[:2]), nn.Sequential(*conv_bn(12, 6, 1)[:2])
        self.head = nn.Sequential(nn.Conv2d(12, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([F.avg_pool2d(self.a(x), 2), F.avg_pool2d(self.b(x), 2)], 1))
        self.head(x)
        x = torch.cat([F.avg_pool2d(self.c(x), 2), F.avg_pool2d(self.d(x), 2)], 1)
        return self.fc(F.relu(F.max_pool2d(x, 3, 1, 1)).mean((2, 3)))


class Clipped(nn.Module):
    """ReLU6 without batch-norm, with or without a sum; its weights are large, so that it clips."""

    def __init__(self, *, skip: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.skip = nn.Linear(8, 5), skip
        with torch.no_grad():
            for conv in (self.a, self.b):
                conv.weight *= 8

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.a(x))
        x = F.relu6(self.b(x) + x if self.skip else self.b(x))
        return self.fc(x.mean((2, 3)))


def unskipped() -> nn.Module:
    """`Clipped` without its sum."""
    return Clipped(skip=False)


class ClippedLate(nn.Module):
    """A ReLU6 on what is unsigned already."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        with torch.no_grad():
            self.a.weight *= 32

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu6(F.avg_pool2d(F.relu(self.a(x)), 2)).mean((2, 3)))


#: Name, factory, input shape (channels first), classes.
NETS = [
    ("plain_lenet", plain_lenet, (1, 28, 28), 10),
    ("plain_vgg", plain_vgg, (3, 16, 16), 10),
    ("plain_mlp", plain_mlp, (3, 8, 8), 10),
    ("projected", projected, (3, 20, 20), 7),
    ("mobilenet_v2", mobilenet_v2, (3, 16, 16), 5),
    ("squeezenet", squeezenet, (3, 17, 17), 6),
    ("dense", Dense, (3, 12, 12), 4),
    ("pre_activation", PreActivation, (3, 12, 12), 4),
    ("sums", Sums, (3, 10, 10), 4),
    ("joined", Joined, (3, 12, 12), 5),
    ("clipped", Clipped, (3, 12, 12), 5),
    ("unskipped", unskipped, (3, 12, 12), 5),
    ("clipped_late", ClippedLate, (3, 12, 12), 5),
    ("vgg", vgg, (3, 16, 16), 10),
    ("lenet", LeNet, (1, 28, 28), 10),
    ("mobilenet", mobilenet, (3, 64, 64), 2),
    ("ds_cnn", ds_cnn, (1, 49, 10), 12),
    ("mlp", mlp, (3, 8, 8), 10),
    ("flat", flat, (3, 11, 9), 6),
    ("residual", Residual, (3, 12, 12), 5),
]
