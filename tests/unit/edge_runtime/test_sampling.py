"""The order of samples is fixed by the keys, covers each epoch once, and its constants are those of the arithmetic."""

from __future__ import annotations

import pytest

from fedmpq.edge_runtime import sampling


def test_each_epoch_is_a_permutation_cut_into_full_batches() -> None:
    chosen = list(sampling.batches(23, 5, 3, seed=1, round_=2, client=3))
    assert [len(b) for b in chosen] == [5] * 12
    for epoch in range(3):
        flat = [i for b in chosen[4 * epoch : 4 * epoch + 4] for i in b]
        assert len(set(flat)) == 20
        assert set(flat) <= set(range(23))
    assert chosen[0].tolist() != chosen[4].tolist()


def test_a_small_shard_is_one_short_batch() -> None:
    assert [sorted(b) for b in sampling.batches(3, 64, 2, 0, 1, 0)] == [[0, 1, 2]] * 2
    assert sampling.steps_per_epoch(3, 64) == 1
    assert sampling.steps_per_epoch(130, 64) == 2


@pytest.mark.parametrize("change", [{"seed": 9}, {"round_": 9}, {"client": 9}])
def test_every_key_matters(change: dict[str, int]) -> None:
    base = {"seed": 1, "round_": 1, "client": 1}
    first = next(sampling.batches(100, 50, 1, **base))
    assert first == next(sampling.batches(100, 50, 1, **base))
    assert first != next(sampling.batches(100, 50, 1, **{**base, **change}))


def test_golden_order() -> None:
    """Fixed by docs/protocol.md: a change here would change every trained model."""
    key = sampling.derive(1, 2, 3, 4, sampling.STREAM)
    assert sampling.permutation(8, key).tolist() == GOLDEN


def test_the_permutation_is_close_to_uniform() -> None:
    first = [sampling.permutation(10, sampling.derive(s, 0, 0, 0, sampling.STREAM))[0] for s in range(5000)]
    counts = [first.count(v) for v in range(10)]
    assert all(400 < c < 600 for c in counts), counts


GOLDEN = [1, 2, 5, 7, 3, 0, 6, 4]
