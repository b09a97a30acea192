"""The referee: margins by hand, blind to rare classes, and what leaving out does to a round."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.coordinator import metrics, overview, planes, referee, robust, rounds
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.referee import ONE, Referee, margin, outliers
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.edge_runtime.shard import Shard, write_shard
from fedmpq.edge_runtime.trainer import Layer
from fedmpq.errors import ConfigError
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, samples

NAT = 1 << 16
#: Loss of a model that knows its three classes: 1 nat for the right label, 4 for the others; 10 images of each class.
KNOWS = [[10 * NAT * (1 if label == own else 4) for label in range(3)] for own in range(3)]
MIXED = [row[1:] + row[:1] for row in KNOWS]  # every class under the label of the next


def test_margins_by_hand() -> None:
    # Less row and column means the right labels have +2 and the others -1; the columns' sizes are sqrt(6).
    assert margin(KNOWS, [10] * 3) == pytest.approx(3 / 6**0.5 * ONE, abs=2)
    assert margin(MIXED, [10] * 3) == pytest.approx(-3 / 6**0.5 * ONE, abs=2)
    assert margin([[0, 0], [0, 0]], [1, 1]) == 0
    assert margin([[10 * NAT * value // 10 for value in row] for row in KNOWS], [10] * 3) == margin(KNOWS, [10] * 3)


@given(st.lists(st.integers(0, 20 * NAT), min_size=6, max_size=6))
def test_what_a_client_has_few_of_does_not_matter(shifts: list[int]) -> None:
    """A label that is dear to all classes alike, or a class whose every label is dear, changes no margin."""
    biased = [[KNOWS[c][k] + 10 * (shifts[c] + shifts[3 + k]) for k in range(3)] for c in range(3)]
    assert abs(margin(biased, [10] * 3) - margin(KNOWS, [10] * 3)) <= 1


def test_who_lies_apart_is_left_out_and_at_least_half_stay() -> None:
    percent = ONE // 100
    assert outliers([3 * percent, 2 * percent, 4 * percent, -10 * percent, 3 * percent]) == [3]
    assert outliers([3 * percent, 2 * percent, 4 * percent, -2 * percent, 3 * percent]) == []
    assert outliers([3 * percent, 2 * percent, 4 * percent, -2 * percent, 3 * percent], before=[3]) == [3]
    assert outliers([3 * percent, 2 * percent, 4 * percent, 1 * percent, 3 * percent], before=[3]) == []
    assert outliers([-50 * percent, 0, 0]) == []  # three cannot be told apart
    for bad in range(1, 5):
        assert len(outliers([-ONE] * bad + [0] * 5)) == bad
    assert outliers([-ONE] * 5 + [0] * 5) == []


class Stub:
    """Gives margins out in the order of the devices' names, one list a round."""

    def __init__(self, *of_rounds: list[int]) -> None:
        self.left = [list(margins) for margins in of_rounds]

    def margin(self, layers: Iterable[Any], round_no: int) -> int:
        assert len(list(layers)) == len(LAYOUT.layers)
        return self.left[round_no - 1].pop(0)


def play(folder: Path, stub: Any, count: int) -> Simulation:
    fleet = {f"d{i}": samples(32, i) for i in range(5)}
    made = config(min_devices=5, rounds=count, robust="referee")
    run = Simulation(folder, made, Source(PROGRAM, LAYOUT, first_model, "tiny"), fleet, None)
    run.run.referee = stub
    run.play()
    return run


def test_left_out_updates_are_not_in_the_model_and_stay_out_until_they_are_near(tmp_path: Path) -> None:
    near, far = -ONE // 25, -ONE // 5  # 0.04: within the room of 0.06, outside the half of it
    run = play(tmp_path, Stub([0, 0, far, 0, near], [0, 0, near, 0, near], [0] * 5, [0, 0, near, 0, 0]), 4)
    out = run.run.journal.rows("SELECT round, device, detail FROM events WHERE kind='left-out' ORDER BY id")
    assert [(row["round"], row["device"]) for row in out] == [(1, "d2"), (2, "d2")]
    assert out[0]["detail"] == "margin -0.200, the median 0.000"
    assert metrics.values(run.run.journal)['fedmpq_left_out_total{device="d2"}'] == 2
    assert [row["what"] for row in overview.overview(run.run.journal).failures] == ["left-out"] * 2
    run.close()


def test_the_model_is_that_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[int] = []

    def counted(rule: str, percent: int, mode: str, base: Any, contributions: list[robust.Contribution]) -> Any:
        merged.append(len(contributions))
        return kept(rule, percent, mode, base, contributions)

    kept = robust.merge
    monkeypatch.setattr(rounds.robust, "merge", counted)
    run = play(tmp_path, Stub([0, -ONE, 0, 0, 0]), 1)
    assert merged == [4]
    assert [row["device"] for row in run.run.journal.rows("SELECT device FROM events WHERE kind='left-out'")] == ["d1"]
    run.close()


def test_the_core_judges(tmp_path: Path) -> None:
    """The same margins from the engine's losses, whichever batches they are computed in; classes take turns."""
    fleet = {f"d{i}": samples(32, i) for i in range(5)}
    run = Simulation(tmp_path, config(min_devices=5, rounds=1), Source(PROGRAM, LAYOUT, first_model, "t"), fleet, None)
    run.play()
    (row,) = run.run.journal.rows("SELECT * FROM rounds")
    engine, images = Engine("core", PROGRAM), samples(48, 77)
    # An update is stored until its round is committed; the model that came of it is left.
    model = run.run.model(row["next_model"])
    packed = [planes.pack(model.layer_state(i, 8, 4, scale="max")) for i in range(len(LAYOUT.layers))]
    layers = [Layer(layer.bits, layer.step, layer.planes, layer.params) for layer in packed]
    found = {Referee(engine, config(batch=batch), images).margin(layers, 1) for batch in (4, 8, 64)}
    path = tmp_path / "referee.shard"
    write_shard(path, bytes(images.images(0, 48)), bytes(images.labels(0, 48)), shape=(8, 8, 1), classes=4, mean=b"x")
    with Shard(path) as shard:
        found.add(Referee(engine, config(), shard).margin(layers, 1))
    assert len(found) == 1
    run.close()


def test_a_referee_needs_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("core", PROGRAM)
    with pytest.raises(ConfigError, match="at least two"):
        Referee(engine, config(), samples(1, 1))
    monkeypatch.setattr(referee, "CLASSES", 2)
    judge = Referee(engine, config(), samples(48, 77))
    turns = [judge._labels(number) for number in range(1, 5)]
    assert all(len(set(labels)) == 2 for labels in turns)
    assert {label for labels in turns for label in labels} == {0, 1, 2, 3}
