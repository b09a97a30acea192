"""Sums handed out to workers: whatever the number of workers and the cut, the bytes are those of one process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from fedmpq.coordinator import partial
from fedmpq.coordinator.aggregate import PartialSum
from fedmpq.coordinator.partial import RoundInput, UpdateInput
from tests.helpers.fleet import LAYOUT, PROGRAM, Fleet, config, first_model, limits


def played(directory: Path, sums: partial.Summer | None) -> bytes:
    made = Fleet(directory, config(rounds=2, min_devices=5), limits(a=2, b=3, c=4, d=6, e=8))
    made.run.sums = sums
    made.announce()
    made.play()
    model = made.model()
    made.run.close()
    return model


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return played(tmp_path_factory.mktemp("one"), None)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, expected: bytes, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        assert played(tmp_path, partial.in_processes(pool, workers)) == expected


def test_processes_that_share_nothing(tmp_path: Path, expected: bytes) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert played(tmp_path, partial.in_processes(pool, 2)) == expected


def test_shares_are_small_and_few_are_under_way() -> None:
    shares: list[int] = []
    waiting = 0

    class Later:
        def result(self) -> bytes:
            nonlocal waiting
            waiting -= 1
            return empty

    empty = PartialSum.zero(LAYOUT, "changes").to_bytes()
    given = RoundInput(PROGRAM, first_model().to_bytes(), config(), 1)

    def submit(share: list[UpdateInput]) -> Future[bytes]:
        nonlocal waiting
        waiting += 1
        assert waiting <= 4
        shares.append(len(share))
        return Later()  # type: ignore[return-value]

    updates: Iterable[UpdateInput] = (UpdateInput(b"", b"", 1, ()) for _ in range(1000))
    partial.gather(given, updates, 1000, 2, submit)
    assert sum(shares) == 1000
    assert max(shares) == partial.SHARE
    assert waiting == 0
    shares.clear()
    partial.gather(given, iter([UpdateInput(b"", b"", 1, ())] * 3), 3, 2, submit)
    assert shares == [2, 1]
