"""What cannot be exported is reported all at once: operation, source line, what to use instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmpq.cli import _models
from fedmpq.edge_runtime.ort import bundle
from fedmpq.errors import ModelError, UnsupportedOpError
from fedmpq.export import from_module, ort_training
from fedmpq.export.coverage import coverage
from fedmpq.export.problems import UnsupportedOperations
from tests.unit.export.nets import conv_bn

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A stem, a body given as a function, and a classifier."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], features: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8))
        self.body = body
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.gelu, self.norm = nn.GELU(), nn.GroupNorm(2, 8)
        self.fc = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self, self.stem(x))
        return self.fc(x.mean((2, 3)) if x.dim() == 4 else x)


class Wrong(Net):
    """Wrong in four ways."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.bn(self.conv(self.stem(x))))
        y = torch.sigmoid(self.conv2(x))
        x = torch.cat([x, y], 1)[:, :8]
        x = self.norm(x)
        return self.fc(x.mean((2, 3)))


def problems(net: nn.Module, shape: tuple[int, int, int] = SHAPE) -> list[str]:
    with pytest.raises(UnsupportedOpError) as caught:
        from_module(net, shape)
    assert isinstance(caught.value, UnsupportedOperations)
    assert len(caught.value.message.splitlines()) == 1 + len(caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_all_problems_come_at_once_with_line_and_advice() -> None:
    found = problems(Wrong(lambda _, x: x))
    first = inspect.getsourcelines(Wrong.forward)[1]
    expected = [
        ("aten.gelu in gelu", 1, "use ReLU"),
        ("aten.sigmoid", 2, "use ReLU"),
        ("aten.slice", 3, "x[:, :, ::2, ::2]"),
        ("aten.group_norm in norm", 4, "use BatchNorm2d"),
    ]
    assert len(found) == len(expected)
    for line, (op, offset, advice) in zip(found, expected, strict=True):
        assert line.startswith(op), line
        assert f"test_unsupported.py:{first + offset} `" in line, line
        assert advice in line


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda n, x: (x + x).relu(), "it adds a tensor to itself"),
        (lambda n, x: torch.cat([x, x], 1)[:, :8], "a tensor is concatenated with itself"),
        (lambda n, x: torch.cat([x, n.bn(n.conv(x))], 1)[:, :8], "one tensor is behind a ReLU, the other is not"),
        (lambda n, x: torch.cat([n.conv(x), n.conv2(x)], 2), "it joins along dimension 2"),
        (
            lambda n, x: torch.cat([x[:, :, ::2, ::2], n.conv(x)[:, :, ::2, ::2]], 1)[:, :8],
            "a subsampled or padded map",
        ),
        (lambda n, x: (n.bn2(n.conv2(n.bn(n.conv(x)).relu())) + x) * 2, "aten.mul"),
        (lambda n, x: torch.add(n.bn(n.conv(x)), x, alpha=2).relu(), "alpha = 2"),
        (lambda n, x: (n.bn(n.conv(x)) + 1).relu(), "it adds a constant"),
        (lambda n, x: F.hardtanh(n.bn(n.conv(x))), "clips to -1.0…1.0"),
        (lambda n, x: F.max_pool2d(x, 3, 2, dilation=2), "dilation"),
        (lambda n, x: F.avg_pool2d(x, 3, 1), "overlap"),
        (lambda n, x: F.avg_pool2d(x, 2, padding=1), "padding or another divisor"),
        (lambda n, x: F.max_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode"),
        (lambda n, x: F.adaptive_avg_pool2d(x, 3), "does not divide"),
        (lambda n, x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1), "mean over dimensions"),
        (lambda n, x: F.pad(x, (1, 0, 1, 0)), "pad all four sides alike"),
        (lambda n, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad with zeros"),
        (lambda n, x: x[:, :, 1:], "this slice has no record"),
        (lambda n, x: x.softmax(1), "softmax inside"),
        (lambda n, x: x.permute(0, 1, 3, 2), "keep the order"),
        (lambda n, x: F.conv2d(x, n.conv.weight * 2), "its weights are computed"),
        (lambda n, x: F.relu(n.bn(F.conv2d(x, n.conv.weight, stride=(1, 2)))), "strides [1, 2] differ"),
        (lambda n, x: F.relu(n.bn(F.conv2d(x, n.conv.weight, dilation=2))), "dilation"),
        (lambda n, x: F.relu(n.bn(F.conv2d(x, n.conv.weight, padding=(1, 0)))), "differs by side"),
        (lambda n, x: F.relu(n.bn(n.conv(F.relu(n.bn(n.conv(x)))))), "conv.weight is used a second time"),
        (lambda n, x: F.relu(n.bn2(n.conv2(F.relu(n.bn2(n.conv(x)))))), "bn2.weight already belongs to conv"),
        (lambda n, x: x.abs(), "aten.abs"),
        (lambda n, x: torch.stack([x, x], 1).flatten(1, 2)[:, :8], "torch.cat([a, b], 1)"),
    ],
)
def test_each_mistake_is_named(body: Callable[[Net, Tensor], Tensor], message: str) -> None:
    found = problems(Net(body))
    assert any(message in line for line in found), found


def test_a_mistake_does_not_make_its_readers_look_wrong() -> None:
    """One unsupported activation between good layers is one problem."""
    found = problems(Net(lambda n, x: n.bn2(n.conv2(n.gelu(n.bn(n.conv(x))))).relu()))
    assert len(found) == 1
    found = problems(Net(lambda n, x: F.relu(n.bn(F.conv2d(x, n.conv.weight, padding=2, dilation=2))) + 0 * x))
    assert [line.split()[0] for line in found] == ["aten.conv2d", "aten.mul"]


def test_two_readers_of_one_mistake_report_it_once() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        y = net.gelu(x)
        return F.relu(net.bn2(net.conv2(y))) + F.relu(net.bn3(net.conv3(y)))

    found = problems(Net(body))
    assert [line.split()[0] for line in found] == ["aten.gelu"]


def test_a_layer_becomes_one_record_however_often_it_is_read() -> None:
    def shared(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.conv(x))
        inner = F.relu(net.bn3(net.conv3(F.relu(y))))
        return F.relu(net.bn2(net.conv2(inner)) + F.relu(y))

    model = from_module(Net(shared), SHAPE)
    assert [record.name for record in model.records][1:4] == ["conv", "conv3", "conv2"]

    def twice(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.conv(x))
        return F.relu(net.bn2(net.conv2(F.relu6(y))) + F.relu(y))

    assert "used in two ways" in problems(Net(twice))[0]


def test_the_image_itself_can_only_be_convolved() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.max_pool2d(F.relu(x), 2).mean((2, 3)))

    found = problems(Pooled())
    assert any("a ReLU on the image itself" in line for line in found)
    normed = nn.Sequential(*conv_bn(3, 8), nn.Flatten(), nn.BatchNorm1d(512), nn.Linear(512, 10))
    assert "batch-norm of a flattened map" in problems(normed)[0]
    assert "the classifier reads the image itself" in problems(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))[0]


def test_models_without_a_classifier_say_so() -> None:
    assert "does not end in a linear layer" in problems(nn.Sequential(*conv_bn(3, 8)))[0]
    net = Net(lambda n, x: x)
    net.forward = lambda x: (net.stem(x), net.stem(x))  # type: ignore[method-assign, return-value, assignment]
    assert any("returns 2 tensors" in line for line in problems(net))


@pytest.mark.parametrize(
    ("last", "size"),
    [
        (nn.Conv2d(8, 10, 3, padding=1), 3),
        (nn.Conv2d(8, 10, 1), 2),
        (nn.Conv2d(8, 10, 1, groups=2), 1),
        (nn.Conv2d(8, 10, 3, padding=1), 1),
    ],
)
def test_a_convolution_over_a_map_is_no_classifier(last: nn.Module, size: int) -> None:
    found = problems(nn.Sequential(*conv_bn(3, 8), nn.AdaptiveAvgPool2d(size), last), (3, 6, 6))
    assert len(found) == 1
    assert found[0].startswith("aten.conv2d in 4")
    assert "does not score one pixel" in found[0]
    assert "AdaptiveAvgPool2d(1)" in found[0]


def test_a_convolution_as_large_as_its_map_is_a_classifier() -> None:
    model = from_module(nn.Sequential(*conv_bn(3, 8), nn.AdaptiveAvgPool2d(3), nn.Conv2d(8, 10, 3)), (3, 6, 6))
    assert model.records[-1].cin == 72


def test_a_linear_layer_over_too_many_features_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 148 * 148, 2), nn.ReLU(), nn.Linear(2, 10))
    assert "1: 65712 features, at most 65535 work" in problems(net, (3, 148, 148))[0]


def test_a_result_in_place_is_read_by_its_own_name() -> None:
    def through_a_view(net: Net, x: Tensor) -> Tensor:
        x = net.bn(net.conv(x))
        y = x.flatten(1)
        F.relu(x, inplace=True)
        return y

    found = problems(Net(through_a_view, 512))
    assert [line.split()[0] for line in found] == ["aten.relu_"]
    assert "its result is read through another view; use the returned tensor" in found[0]

    def through_the_result(net: Net, x: Tensor) -> Tensor:
        x = net.bn(net.conv(x))
        F.relu(x, inplace=True)
        return x.flatten(1)

    assert len(from_module(Net(through_the_result, 512), SHAPE).records) == 3


def test_what_nobody_reads_has_no_record() -> None:
    """Neither an auxiliary head nor the mistakes in it; and it keeps no sum and no ReLU from its layer."""

    def with_head(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.conv(x))
        F.gelu(net.bn2(net.conv2(y)))
        return F.relu(net.bn3(net.conv3(F.relu(y))) + x)

    model = from_module(Net(with_head), SHAPE)
    assert [record.name for record in model.records][1:3] == ["conv", "conv3"]
    counted = coverage(Net(with_head), SHAPE)
    assert not counted.missing
    assert counted.operations["aten.conv2d"] == 3


def test_fewer_scores_than_classes_are_refused() -> None:
    net = nn.Sequential(*conv_bn(3, 8), nn.Flatten(), nn.Linear(512, 7))
    assert from_module(net, SHAPE, classes=5).records[-1].out.c == 7
    with pytest.raises(ModelError, match=r"small gives 7 scores, 10 are asked for") as caught:
        from_module(net, SHAPE, classes=10, name="small")
    assert caught.value.hint == "let the factory take num_classes"
    with pytest.raises(ModelError, match=r"mobilenet gives 2 scores, 10 are asked for"):
        _models.compile_model(
            "tests.unit.export.nets:mobilenet", _models.ModelOptions((3, 32, 32), 10, None, None, None, None, 0)
        )


def test_full_precision_files_say_how_many_scores_there_are() -> None:
    pytest.importorskip("onnxruntime.training")
    net = nn.Sequential(*conv_bn(3, 8), nn.Flatten(), nn.Linear(512, 7))
    assert bundle.parse(ort_training.build(net, (8, 8, 3), 5)).classes == 7
    with pytest.raises(ModelError, match="gives 7 scores, 10 are asked for"):
        ort_training.build(net, (8, 8, 3), 10)


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return self.fc(x.flatten(1))


def test_dynamic_control_flow_names_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"depends on the image at .*test_unsupported\.py:\d+ `if x\.sum\(\) > 0:`"):
        from_module(Dynamic(), SHAPE)
    assert capfd.readouterr() == ("", "")


class Two(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return x * mask


@pytest.mark.parametrize("net", [Two(), Keyword()])
def test_several_inputs_are_refused(net: nn.Module) -> None:
    with pytest.raises(ModelError, match="takes the inputs x, mask"):
        from_module(net, SHAPE)


def test_a_wrong_input_shape_is_the_users_to_fix() -> None:
    with pytest.raises(ModelError, match=r"does not run on an image of 1×8×8.*--input"):
        from_module(Net(lambda n, x: x), (1, 8, 8))


def test_python_that_leaves_torch_cannot_be_traced() -> None:
    class Escapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.from_numpy(x.flatten(1).numpy()))

    with pytest.raises(ModelError, match="cannot follow Escapes"):
        from_module(Escapes(), SHAPE)
