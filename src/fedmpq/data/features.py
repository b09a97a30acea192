"""Sound as images: log-mel spectrograms in u8, time down and frequency across, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Samples a second; what speech synthesisers give.
RATE = 22_050
#: Samples of a window and between windows: 46 ms and 20 ms.
WINDOW, HOP = 1024, 441
FRAMES, BANDS = 49, 10
#: Samples of a clip: one second and what the last window needs.
CLIP = (FRAMES - 1) * HOP + WINDOW
#: The loudest point of a clip is 255, what lies this many dB below it 0.
RANGE_DB = 60.0
_LOW_HZ, _HIGH_HZ = 80.0, 7600.0

Signal = NDArray[np.float64]


def mel_bands() -> NDArray[np.float64]:
    """Triangular filters [BANDS, WINDOW / 2 + 1], evenly spaced in mel (O'Shaughnessy 1987)."""

    def mel(hz: float) -> float:
        return 2595 * float(np.log10(1 + hz / 700))

    edges = 700 * (10 ** (np.linspace(mel(_LOW_HZ), mel(_HIGH_HZ), BANDS + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (hz[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz[None, :]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(clip: Signal) -> NDArray[np.uint8]:
    """The spectrogram [FRAMES, BANDS, 1] of a clip of `CLIP` samples: u8 from RANGE_DB below its maximum up to it."""
    if clip.shape != (CLIP,):
        raise ValueError(f"a clip has {CLIP} samples, not {clip.shape}")
    starts = np.arange(FRAMES)[:, None] * HOP + np.arange(WINDOW)[None, :]
    spectrum = np.abs(np.fft.rfft(clip[starts] * np.hanning(WINDOW), axis=1)) ** 2
    level = 10 * np.log10(spectrum @ mel_bands().T + 1e-12)
    scaled = 255 * (1 + (level - level.max()) / RANGE_DB)
    image: NDArray[np.uint8] = np.rint(scaled).clip(0, 255).astype(np.uint8)[..., np.newaxis]
    return image


def noise(count: int, rng: np.random.Generator) -> Signal:
    """Noise of unit power, falling by 3 dB an octave on average: as rooms and streets have it."""
    spectrum = np.fft.rfft(rng.normal(size=count))
    spectrum /= np.sqrt(np.arange(1, spectrum.size + 1))
    signal = np.fft.irfft(spectrum, count)
    result: Signal = signal / np.sqrt(np.mean(signal**2))
    return result


def placed(word: Signal, rng: np.random.Generator, snr_db: float) -> Signal:
    """A clip with the word somewhere in it, in noise that is `snr_db` weaker than the word."""
    word = word[:CLIP]
    start = int(rng.integers(CLIP - word.size + 1))
    power = float(np.mean(word**2)) or 1e-12
    clip = noise(CLIP, rng) * np.sqrt(power / 10 ** (snr_db / 10))
    clip[start : start + word.size] += word
    return np.asarray(clip, np.float64)
