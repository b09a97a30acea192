"""Full-precision clients: bundle, engine against PyTorch, coding, and whole federated runs on a loopback broker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedmpq.coordinator import rounds
from fedmpq.coordinator.float_machine import judge
from fedmpq.edge_runtime import container, protocol, topics
from fedmpq.edge_runtime.ort import augment, bundle, coding, engine
from fedmpq.edge_runtime.ort.assignment import train
from fedmpq.errors import CoreError, FormatError, HashError, MissingExtraError, ModelError, VersionError
from fedmpq.export import ort_training
from fedmpq.models.reference import activation
from fedmpq.models.reference.rng import StepKey
from tests.helpers import float_fleet
from tests.helpers.float_fleet import CLASSES, SHAPE, FloatFleet, Net

RATES = engine.Sgd(0.1, 0.9, 5e-4)


@pytest.fixture(scope="module")
def parsed() -> bundle.Bundle:
    return bundle.parse(float_fleet.bundle())


def batch(seed: int, count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    found = float_fleet.samples(count, seed)
    images, labels = found.batch(range(count))
    x = augment.centred(images, bundle.parse(float_fleet.bundle()))
    return augment.network_input(x), np.frombuffer(labels, np.uint16).astype(np.int64)


def test_a_bundle_holds_the_modules_own_values(parsed: bundle.Bundle) -> None:
    torch.manual_seed(5)
    module = Net()
    assert np.array_equal(engine.Engine(parsed).state(), ort_training.flatten(module))
    assert [value.name for value in parsed.values] == [
        k for k, v in module.state_dict().items() if v.is_floating_point()
    ]
    assert {value.name for value in parsed.values if not value.trained} == {
        "bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"
    }  # fmt: skip


def test_steps_are_those_of_pytorch_with_batch_norm_momentum_and_decay(parsed: bundle.Bundle) -> None:
    torch.manual_seed(5)
    module = Net().train()
    first = ort_training.flatten(module)
    ort = engine.Engine(parsed)
    ort.load(first)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(6):
        x, y = batch(step)
        loss, _ = ort.step(x, y, RATES)
        expected = nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))
        sgd.zero_grad()
        expected.backward()
        sgd.step()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    after = ort_training.flatten(module)
    moved = np.linalg.norm(after - first)
    assert np.linalg.norm(ort.state() - after) < 1e-3 * moved
    module.eval()
    x, y = batch(77, 40)
    with torch.no_grad():
        logits = module(torch.from_numpy(x))
    loss, correct = ort.evaluate(x, y)
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, torch.from_numpy(y))), rel=1e-3)
    assert correct == int((logits.argmax(1).numpy() == y).sum())


def test_pictures_are_those_of_integer_training() -> None:
    x = np.random.default_rng(0).normal(size=(9, 12, 10, 3)).astype(np.float32)
    for step in range(5):
        key = (1, 2, 3, step)
        mine = augment.crop_and_flip(x, 2, key, crop=True, flip=True)
        other = activation.crop_and_flip(torch.from_numpy(x), 2, StepKey(*key), crop=True, flip=True)
        assert np.array_equal(mine, other.numpy())


def test_a_diverged_step_says_so(parsed: bundle.Bundle) -> None:
    ort = engine.Engine(parsed)
    x, y = batch(0)
    ort.load(np.full(parsed.size, np.nan, np.float32))
    with pytest.raises(CoreError, match="diverged"):
        ort.step(x, y, RATES)


@pytest.mark.parametrize("size", [1, 2, 511, 512, 1537])
@pytest.mark.parametrize("method", protocol.METHODS)
def test_coded_updates_come_back(method: str, size: int) -> None:
    update = np.random.default_rng(size).normal(0, 0.01, size).astype(np.float32)
    rngs = [coding.generator(1, 2, 3) for _ in range(2)]
    data = coding.encode(method, update, rngs[0])
    back = coding.decode(method, data, size, rngs[1])
    bound = {"fedavg": 0.0, "fedpaq8": 0.02, "uveqfed4": 0.2}.get(method, 0.7)
    if size > 2:
        assert np.linalg.norm(back - update) <= bound * np.linalg.norm(update)
    assert not coding.decode(method, coding.encode(method, np.zeros(size, np.float32), rngs[0]), size, rngs[1]).any()
    for bad in (data[:-1], data + b"\0", b""):
        with pytest.raises(FormatError):
            coding.decode(method, bad, size, coding.generator(1, 2, 3))


def test_damaged_coding_is_an_error_never_a_crash() -> None:
    update = np.random.default_rng(0).normal(0, 0.01, 300).astype(np.float32)
    rng = np.random.default_rng(1)
    for method in protocol.METHODS:
        data = coding.encode(method, update, coding.generator(1, 2, 3))
        for _ in range(60):
            damaged = bytearray(data)
            damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            try:
                coding.decode(method, bytes(damaged), 300, coding.generator(1, 2, 3))
            except FormatError:
                continue


def test_values_that_are_not_finite_are_refused() -> None:
    for bad in (np.inf, np.nan):
        data = np.array([0.0, bad], "<f4").tobytes()
        with pytest.raises(FormatError, match="not finite"):
            coding.decode("fedavg", data, 2, coding.generator(1, 2, 3))


def expected_state(fleet: FloatFleet) -> bytes:
    """The same run without a network."""
    ort = engine.Engine(bundle.parse(float_fleet.bundle()))
    state, config = ort.state(), fleet.config
    total = sum(shard.count for shard in fleet.shards.values())
    for number in range(1, config.rounds + 1):
        change = np.zeros(state.size)
        for name in sorted(fleet.shards):
            run = fleet.machine.run
            plan = protocol.decode("dn/plan", run.assignment(number, name)["plan"])  # type: ignore[index]
            assert isinstance(plan, protocol.FloatPlan)
            ort.load(state)
            for _ in train(ort, plan, fleet.shards[name]):
                pass
            draws = [coding.generator(config.seed, number, rounds.client_number(name)) for _ in range(2)]
            data = coding.encode(config.strategy, ort.state() - state, draws[0])
            decoded = coding.decode(config.strategy, data, state.size, draws[1])
            change += decoded.astype(np.float64) * (fleet.shards[name].count / total)
        state = (state + change).astype(np.float32)
    return state.tobytes()


@pytest.mark.parametrize(("strategy", "loss"), [("fedavg", 0.0), ("fedpaq", 0.1), ("uveqfed", 0.0)])
def test_a_federated_run_equals_the_same_run_without_a_network(tmp_path: Path, strategy: str, loss: float) -> None:
    fleet = FloatFleet(tmp_path, ["a", "b"], loss, strategy=strategy)
    fleet.play()
    assert fleet.state() == expected_state(fleet)
    row = fleet.machine.run.round_row()
    assert row is not None
    assert row["metrics"]["global"]["count"] == 40
    for assignment in fleet.machine.run.assignments(2):
        assert assignment["state"] == "accepted"
        assert assignment["measured_bytes"] > 0
        assert assignment["planned_bytes"] > 0


def until_planned(fleet: FloatFleet) -> str:
    """Steps until device a has its plan; returns the plan's identity."""
    for _ in range(20_000):
        fleet.step()
        assignment = fleet.machine.run.assignment(1, "a")
        if assignment is not None and assignment["state"] == "assigned":
            return str(assignment["plan_sha"])
    raise AssertionError("no plan")


def test_a_device_that_has_run_out_of_memory_is_left_out_of_the_round(tmp_path: Path) -> None:
    fleet = FloatFleet(tmp_path, ["a", "b"])
    refusal = protocol.Refusal("floats", 1, until_planned(fleet), "memory", 10**7, 10**6, "")
    (answer,) = fleet.machine.handle(topics.UPDATE, "a", protocol.encode(refusal))
    told = protocol.decode(topics.ACK, answer.payload)
    assert isinstance(told, protocol.Ack)
    assert told.accepted
    assignment = fleet.machine.run.assignment(1, "a")
    assert assignment is not None
    assert (assignment["state"], assignment["reason"]) == ("refused", "memory")
    fleet.play()


def test_a_blob_larger_than_an_update_can_be_is_refused_before_it_comes(tmp_path: Path) -> None:
    fleet = FloatFleet(tmp_path, ["a", "b"], strategy="fedpaq")
    plan = until_planned(fleet)
    values = sum(fleet.machine.run.layout.thetas)
    update = protocol.FloatUpdate(
        run="floats", round=1, plan=plan, samples=24, steps=3, count=24, correct=0, loss_q16=0, measured_bytes=0,
        train_ms=0, blob="0" * 64, blob_size=coding.most_bytes("fedpaq", values) + 1,
    )  # fmt: skip
    fleet.machine.handle(topics.UPDATE, "a", protocol.encode(update))
    fleet.machine.settle()
    assignment = fleet.machine.run.assignment(1, "a")
    assert assignment is not None
    assert (assignment["state"], assignment["reason"]) == ("rejected", "shape")
    assert not fleet.machine._inbox.uploads


def test_a_coordinator_that_starts_again_goes_on(tmp_path: Path) -> None:
    fleet = FloatFleet(tmp_path, ["a", "b"])
    for _ in range(20_000):
        fleet.step()
        row = fleet.machine.run.round_row()
        if row is not None and row["round"] == 2:
            break
    fleet.server.transport.close()
    fleet.machine.run.close()
    fleet.machine, fleet.server = fleet.serve()
    fleet.play()
    assert fleet.state() == expected_state(fleet)


def profile(**values: object) -> protocol.FloatProfile:
    fields = {
        "device": "a", "run": "floats", "bundle": "0" * 64, "samples": 5, "budget_bytes": 1000,
        "limit_source": "option", "ram_bytes": 1, "available_bytes": 1, "cgroup_bytes": None, "step_bytes": 900,
        "peak_bytes": 1, "machine": "m", "engine": "e", "cpus": 1, "threads": 1, "version": "0",
    }  # fmt: skip
    return protocol.FloatProfile(**{**fields, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "reason", "detail"),
    [
        ({}, "", ""),
        ({"bundle": "1" * 64}, "program", "111111111111"),
        ({"samples": 0}, "samples", "no samples"),
        ({"step_bytes": None}, "budget", "killed"),
        ({"step_bytes": 1001}, "budget", "1001 bytes, the device allows 1000"),
    ],
)
def test_admission(values: dict[str, object], reason: str, detail: str) -> None:
    found = judge(profile(**values), "0" * 64)
    assert found[0] == reason
    assert detail in found[1]


def test_float_messages_are_of_version_2_and_the_others_stay_as_they_were() -> None:
    data = protocol.encode(profile())
    assert data.startswith(b"{") and b'"v":2' in data
    assert protocol.decode("up/profile", data) == profile()
    with pytest.raises(protocol.ProtocolError, match="version 1"):
        protocol.decode("up/profile", data.replace(b'"v":2', b'"v":1'))
    job = protocol.FloatJob("0" * 64, 5, 5, 8)
    assert b'"v":2' in protocol.encode(protocol.CoordState("r", True, 1, job))
    assert b'"v":1' in protocol.encode(protocol.CoordState("r", True, 1, None))


def test_bundles_of_another_format_or_damaged_are_named(parsed: bundle.Bundle) -> None:
    data = float_fleet.bundle()
    with pytest.raises(HashError):
        bundle.parse(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(FormatError, match="not a bundle"):
        bundle.parse(container.pack({"program": b"x"}))
    graphs = {name: parsed.parts[name] for name in bundle.SECTIONS[1:]}
    with pytest.raises(VersionError, match="bundle format 2"):
        bundle.parse(bundle.pack({"format": 2}, graphs))
    with pytest.raises(FormatError, match="damaged manifest"):
        bundle.parse(bundle.pack({"image": [8, 8]}, graphs))
    manifest = {
        "model": "net", "engine": "9.9", "image": [8, 8, 1], "classes": 4, "mean": [0], "crop_pad": 0,
        "values": [["w", [1], True]], "statistics": [],
    }  # fmt: skip
    with pytest.raises(FormatError, match=r"made with onnxruntime 9\.9"):
        engine.Engine(bundle.parse(bundle.pack(manifest, {**graphs, "training": b"junk"})))


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Untranslatable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(torch.special.bessel_j0(x).flatten(1))
        return found


@pytest.mark.parametrize(
    ("module", "message"),
    [(TwoInputs(), "takes the inputs x, y"), (Unused(), r"extra\.\w+ is not in"), (Untranslatable(), "opset 15")],
)
def test_modules_that_cannot_be_exported_are_named(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ort_training.build(module, SHAPE, CLASSES)


def test_a_missing_runtime_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="ort-training"):
        engine.runtime()
