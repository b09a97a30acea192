"""Partitions: every image once, reproducible, skewed as asked, empty clients named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpq.data import dirichlet, iid, stratified_choice
from fedmpq.data.dataset import apportion
from fedmpq.errors import DataError


def labels_of(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count, dtype=np.uint16)


@settings(deadline=None)
@given(
    count=st.integers(0, 400),
    classes=st.integers(1, 12),
    clients=st.integers(1, 20),
    alpha=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_image_goes_to_exactly_one_client(count, classes, clients, alpha, seed):
    labels = labels_of(count, classes, seed)
    try:
        parts = dirichlet(labels, clients, alpha, seed, on_empty="drop")
    except DataError:
        assert count == 0
        return
    dealt = np.concatenate([part.indices for part in parts])
    assert np.array_equal(np.sort(dealt), np.arange(count))
    assert all(len(part) for part in parts)
    assert [part.client for part in parts] == sorted({part.client for part in parts})


@given(count=st.integers(1, 300), clients=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_iid_parts_are_even(count, clients, seed):
    parts = iid(labels_of(count, 10), clients, seed, on_empty="drop")
    sizes = [len(part) for part in parts]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_fixes_the_partition():
    labels = labels_of(500, 10)
    first, again, other = (dirichlet(labels, 5, 0.5, seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.indices, b.indices) for a, b in zip(first, other, strict=True))


def test_small_alpha_means_few_classes_a_client():
    labels = labels_of(10_000, 10)

    def classes_of_the_typical_client(alpha: float) -> float:
        parts = dirichlet(labels, 10, alpha, seed=1, on_empty="drop")
        shares = [np.bincount(labels[part.indices], minlength=10) / len(part) for part in parts]
        return float(np.mean([1 / (share**2).sum() for share in shares]))  # effective number of classes

    severe, mild, even = (classes_of_the_typical_client(alpha) for alpha in (0.1, 1.0, 1000.0))
    assert severe < 4 < mild < 8 < 9.5 < even


def test_an_empty_client_is_named_and_can_be_dropped():
    labels = np.zeros(3, dtype=np.uint16)
    with pytest.raises(DataError, match=r"leaves clients? .*with no images") as caught:
        dirichlet(labels, 8, 0.01, seed=0)
    named = {int(word) for word in caught.value.message.replace(",", " ").split() if word.isdecimal()}
    kept = {part.client for part in dirichlet(labels, 8, 0.01, seed=0, on_empty="drop")}
    assert kept
    assert named == set(range(8)) - kept


def test_a_client_below_the_minimum_counts_as_empty():
    labels = labels_of(100, 5)
    with pytest.raises(DataError, match="fewer than 60 images"):
        dirichlet(labels, 4, 1.0, seed=0, min_images=60)


@pytest.mark.parametrize(("clients", "alpha"), [(0, 0.5), (3, 0.0), (3, -1.0), (3, float("nan")), (3, float("inf"))])
def test_senseless_parameters_are_refused(clients, alpha):
    with pytest.raises(DataError, match="cannot partition"):
        dirichlet(labels_of(10, 2), clients, alpha, seed=0)


def test_the_tiniest_alpha_still_gives_whole_shares():
    parts = dirichlet(labels_of(1000, 50), 30, 1e-3, seed=3, on_empty="drop")
    assert sum(len(part) for part in parts) == 1000


@given(total=st.integers(0, 10_000), weights=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30))
def test_apportioned_counts_add_up_and_are_within_one(total, weights):
    shares = np.array(weights)
    counts = apportion(total, shares)
    assert counts.sum() == total
    assert (np.abs(counts - shares / shares.sum() * total) < 1 + 1e-6).all()


@given(count=st.integers(0, 200), seed=st.integers(0, 2**32 - 1))
def test_a_stratified_choice_keeps_proportions(count, seed):
    labels = np.repeat(np.arange(4, dtype=np.uint16), (20, 40, 60, 80))
    chosen = stratified_choice(labels, count, seed)
    assert len(set(chosen.tolist())) == count
    picked = np.bincount(labels[chosen], minlength=4)
    assert (np.abs(picked - np.array([0.1, 0.2, 0.3, 0.4]) * count) < 1).all()
