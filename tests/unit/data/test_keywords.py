"""Spectrograms of known sounds, and the synthetic keywords where espeak-ng is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmpq.data import features, keywords, load
from fedmpq.errors import DataError

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def tone(hz: float) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(features.CLIP) / features.RATE)


def test_a_tone_is_one_band_and_a_higher_one_a_higher_band() -> None:
    bands = [
        int(features.log_mel(tone(hz)).astype(int).sum(axis=0)[:, 0].argmax()) for hz in (150, 400, 1000, 3000, 6500)
    ]
    assert bands == sorted(bands)
    assert len(set(bands)) == 5
    image = features.log_mel(tone(1000))
    assert image.shape == (features.FRAMES, features.BANDS, 1)
    assert image.dtype == np.uint8
    assert image.max() == 255


def test_a_sound_is_where_it_was_put_whatever_its_size() -> None:
    word = tone(800)[: features.RATE // 4]
    for seed in range(3):
        clip = features.placed(word, np.random.default_rng(seed), 30.0)
        start = int(np.random.default_rng(seed).integers(features.CLIP - word.size + 1))
        loudest = int(features.log_mel(clip).astype(int).sum(axis=1)[:, 0].argmax())
        middle = loudest * features.HOP + features.WINDOW // 2
        assert start - features.HOP <= middle <= start + word.size + features.HOP
        assert np.array_equal(features.log_mel(clip), features.log_mel(clip * 0.01))
    with pytest.raises(ValueError, match="a clip has"):
        features.log_mel(word)


def test_noise_has_unit_power() -> None:
    assert np.mean(features.noise(4096, np.random.default_rng(0)) ** 2) == pytest.approx(1)


def test_no_voice_is_in_both_sets() -> None:
    chosen = keywords.speakers()
    assert len(chosen) >= keywords.TRAIN_SPEAKERS + keywords.TEST_SPEAKERS
    assert len(set(chosen)) == len(chosen)


@needs_espeak
def test_the_data_set_is_spoken_once_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPQ_CACHE", str(tmp_path))
    first = keywords.read_keywords(2, 1)
    monkeypatch.setattr(keywords, "say", None)
    again = keywords.read_keywords(2, 1)
    assert first.name == "keywords-synthetic"
    assert first.classes == keywords.WORDS
    assert first.train.images.shape == (60, features.FRAMES, features.BANDS, 1)
    assert len(first.test) == 20
    assert np.array_equal(first.train.images, again.train.images)
    assert len({image.tobytes() for image in first.train.images}) == 60


def test_without_the_synthesiser_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get install espeak-ng"):
        load("keywords")
