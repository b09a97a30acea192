"""Finding a model by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from fedmpq.errors import ModelError
from fedmpq.export import resolve, zoo_names

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(4, num_classes)

def build(num_classes, in_channels):
    net = Net(num_classes)
    net.channels = in_channels
    return net

ready = Net(3)
number = 5

def broken():
    raise RuntimeError("no weights here")

def other():
    return "text"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "usernet_for_tests.py").write_text(SOURCE)
    (tmp_path / "bad_for_tests.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_built_in_models_come_by_name() -> None:
    assert zoo_names() == ["ds-cnn", "resnet20", "resnet44", "resnet8"]
    net = resolve("resnet8", num_classes=7, in_channels=1, unknown=3)
    assert net.fc.out_features == 7


@pytest.mark.parametrize("place", ["usernet_for_tests", "usernet_for_tests.py"])
@pytest.mark.usefixtures("here")
def test_factories_classes_and_instances_come_from_modules_and_files(place: str) -> None:
    built = resolve(f"{place}:build", num_classes=6, in_channels=2)
    assert (built.fc.out_features, built.channels) == (6, 2)
    assert resolve(f"{place}:Net", num_classes=6, in_channels=2).fc.out_features == 6
    assert resolve(f"{place}:ready", num_classes=6).fc.out_features == 3
    assert isinstance(resolve("torch.nn:Identity"), nn.Identity)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet9", "did you mean resnet8"),
        ("model.pt", "is a pickle"),
        ("nothing_here:Net", "cannot import nothing_here"),
        ("nothing.py:Net", "there is no file nothing.py"),
        ("bad_for_tests.py:Net", "ZeroDivisionError"),
        ("usernet_for_tests:Nett", "did you mean Net"),
        ("usernet_for_tests:number", "neither a module nor callable"),
        ("usernet_for_tests:broken", "cannot be built: RuntimeError: no weights here"),
        ("usernet_for_tests:other", "returned a str"),
    ],
)
def test_what_is_not_a_model_says_why(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(name)
