"""What the full-precision systems send: sizes, unbiasedness, lattice geometry."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpq.coordinator.strategies import compression, fedpaq, uveqfed
from fedmpq.errors import ConfigError


def update(size: int = 5001, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, size).astype(np.float32)


def test_fedavg_sends_floats() -> None:
    sent = update()
    decoded, size = compression.by_name("fedavg")(sent, np.random.default_rng(0))
    assert np.array_equal(decoded, sent)
    assert size == 4 * sent.size


@pytest.mark.parametrize(("bits", "levels"), [(4, 7), (8, 127)])
def test_fedpaq_is_unbiased_on_its_levels(bits: int, levels: int) -> None:
    sent = update(1000)
    rng = np.random.default_rng(1)
    total = np.zeros(sent.size)
    for _ in range(400):
        decoded, size = fedpaq.send(sent, rng, bits=bits)
        total += decoded
        scale = np.abs(sent[:512]).max()
        steps = np.abs(decoded[:512]) / scale * levels
        assert np.abs(steps - np.rint(steps)).max() < 1e-3
        assert steps.max() <= levels + 1e-3
    assert size == 1000 * bits // 8 + 2 * 4
    spread = np.abs(sent).max() / levels / 2 / 400**0.5
    assert np.abs(total / 400 - sent).max() < 5 * spread


def test_fedpaq_of_nothing_is_nothing() -> None:
    decoded, _ = fedpaq.send(np.zeros(600, np.float32), np.random.default_rng(0), bits=4)
    assert not decoded.any()


def test_nearest_finds_the_nearest_lattice_point() -> None:
    points = np.random.default_rng(2).uniform(-5, 5, (500, 2))
    grid = np.array([(i, j) for i in range(-9, 10) for j in range(-9, 10)])
    every = uveqfed.points_of(grid)
    distance = ((points[:, None] - every) ** 2).sum(-1)
    ours = ((points - uveqfed.points_of(uveqfed.nearest(points))) ** 2).sum(-1)
    assert np.allclose(ours, distance.min(axis=1))


def test_dither_is_uniform_on_the_voronoi_cell() -> None:
    """Its second moment is that of a hexagon: 5/(18*sqrt(3)) of the cell's area, in each of two dimensions halved."""
    points = uveqfed.dither(200_000, np.random.default_rng(3))
    assert not uveqfed.nearest(points).any()
    area = 2 * uveqfed.ROOT3
    assert (points**2).sum(axis=1).mean() == pytest.approx(area * 5 / (18 * uveqfed.ROOT3) * 1.0, rel=0.01)
    assert np.abs(points.mean(axis=0)).max() < 0.01


@pytest.mark.parametrize("rate", [2.0, 4.0])
def test_uveqfed_keeps_its_rate_and_its_error_is_the_lattices(rate: float) -> None:
    sent = update(40_000)
    decoded, size = uveqfed.send(sent, np.random.default_rng(4), rate=rate)
    assert 0.93 * rate <= 8 * size / sent.size <= 1.001 * rate + 0.01
    error = decoded - sent
    snr = 10 * np.log10((sent**2).sum() / (error**2).sum())
    # Below the rate-distortion bound of a Gaussian by the lattice (1.4 dB), the dither and the Huffman code.
    assert snr > 6.02 * rate - 3.5
    assert abs(np.corrcoef(error, sent)[0, 1]) < 0.02
    again, _ = uveqfed.send(sent, np.random.default_rng(4), rate=rate)
    assert np.array_equal(decoded, again)


def test_uveqfed_of_nothing_and_of_odd_length() -> None:
    decoded, size = uveqfed.send(np.zeros(7, np.float32), np.random.default_rng(0), rate=2.0)
    assert not decoded.any()
    assert size == 8
    assert uveqfed.send(update(7), np.random.default_rng(0), rate=4.0)[0].shape == (7,)


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ConfigError, match="unknown full-precision strategy"):
        compression.by_name("fedmax")
