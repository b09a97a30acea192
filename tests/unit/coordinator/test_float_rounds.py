"""Full-precision runs: they learn, they resume, their averaging is weighted by samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedmpq.coordinator import float_rounds, kinds
from fedmpq.coordinator.float_rounds import FloatRun, flatten
from fedmpq.coordinator.service import make_config
from fedmpq.errors import ConfigError, StateError
from fedmpq.models import zoo
from tests.helpers.fleet import NET, PROGRAM, samples

CLIENTS = {"a": samples(64, 0), "b": samples(32, 1)}
VALUES = {"rounds": 4, "batch": 16, "lr": 0.05, "crop": False, "flip": False, "epochs": 2}


def run(path: Path, name: str = "fedavg", **values: object) -> FloatRun:
    torch.manual_seed(1)
    module = zoo.resnet8(NET.classes, 1, width=4)
    return FloatRun(make_config(name, {**VALUES, **values}), module, PROGRAM, CLIENTS, samples(80, 9), path)


@pytest.mark.parametrize("name", ["fedavg", "fedpaq", "uveqfed"])
def test_full_precision_systems_learn(name: str, tmp_path: Path) -> None:
    made = run(tmp_path, name)
    rounds = made.play()
    assert rounds[-1]["accuracy"] > 60
    entries = flatten(made.module).size
    bits = 8 * rounds[-1]["bytes_up"] / len(CLIENTS) / entries
    assert bits == pytest.approx({"fedavg": 32, "fedpaq": 4.1, "uveqfed": 2}[name], rel=0.1)


def test_an_interrupted_run_goes_on_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    whole.play()
    first = run(tmp_path / "parts")
    kept = []

    def stop(count: int) -> None:
        kept.append(count)
        if len(kept) == 5:
            raise KeyboardInterrupt

    first.progress = stop
    with pytest.raises(KeyboardInterrupt):
        first.play()
    second = run(tmp_path / "parts")
    second.play()
    assert np.array_equal(flatten(second.module), flatten(whole.module))
    with pytest.raises(ConfigError, match=r"lr = 0\.05, not 0\.1"):
        run(tmp_path / "parts", lr=0.1).play()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    run(tmp_path, rounds=1).play()
    path = tmp_path / "state.npz"
    whole = path.read_bytes()
    for data in (b"", b"nothing of the kind", whole[: len(whole) // 2], whole[:200] + b"x" + whole[201:]):
        path.write_bytes(data)
        with pytest.raises(StateError, match=r"state\.npz is damaged .*remove it"):
            run(tmp_path, rounds=1).play()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("per_round", 1),
        ("over_selection", 50),
        ("robust", "median"),
        ("late_rounds", 2),
        ("server_momentum_q15", 16384),
    ],
)
def test_keys_that_would_be_ignored_are_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{key} = {value!r} is for integer runs"):
        run(tmp_path, **{key: value})
    config = make_config("fedavg", {key: value})
    if key in {"per_round", "over_selection"}:  # a fleet in full precision is drawn from as any other
        kinds.of(config).plan_bytes(b"", config)
    else:
        with pytest.raises(ConfigError, match=f"{key} = "):
            kinds.of(config).plan_bytes(b"", config)


def test_the_mean_is_weighted_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path, rounds=1)
    before = flatten(made.module)

    def move(self: FloatRun, number: int, client: int, samples: object) -> float:
        amount = 3.0 if samples is CLIENTS["a"] else 0.0
        float_rounds.load(self.module, flatten(self.module) + np.float32(amount))
        return 0.0

    monkeypatch.setattr(FloatRun, "_train", move)
    made.play()
    assert np.allclose(flatten(made.module) - before, 2.0, atol=1e-5)


def test_training_memory_counts_weights_thrice_and_what_the_backward_pass_keeps() -> None:
    made = run(Path("unused"))
    parameters = sum(p.numel() for p in made.module.parameters())
    small, large = made.training_bytes(), run(Path("unused"), batch=32).training_bytes()
    # 7 convolutions at two tensors, a pool and a classifier; 8x8 maps of 4, 4x4 of 8, 2x2 of 16 channels.
    kept = 2 * (3 * 256 + 2 * 128 + 2 * 64) + 16 + NET.classes + 64
    assert small == 4 * (3 * parameters + 16 * kept)
    assert large - small == 4 * 16 * kept
