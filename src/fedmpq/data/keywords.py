"""Spoken keywords, synthetic: ten words by the voices of eSpeak NG, as spectrograms, for keyword spotting.

No recordings: every word is synthesised on this machine by `espeak-ng` (a Debian package) with many accents, voices,
pitches and speeds. The voices of the test set are heard nowhere in the training set. Another version of eSpeak NG gives
slightly other sounds, and so another data set of the same name.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fedmpq.data import cache, features
from fedmpq.data.dataset import Dataset, Split
from fedmpq.data.report import Reporter, silent
from fedmpq.errors import DataError

#: Ten of the words of the Speech Commands data set (Warden 2018).
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NAME = "keywords-synthetic"
TRAIN_SPEAKERS, TEST_SPEAKERS = 120, 30
#: Clips made of each spoken word, differing in place and noise.
TRAIN_TAKES, TEST_TAKES = 3, 2
_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
#: Voice variants: timbres of men and women, without the robots and whisperers.
_TIMBRES = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Alex", "Alicia", "Andrea",
    "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael",
    "Mike", "Nguyen", "adam", "anika", "antonio", "belinda", "benjamin", "boris", "caleb", "david", "ed",
    "edward", "gustave", "iven", "john", "linda", "max", "michel", "miguel", "norbert", "pablo", "paul",
    "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip


@dataclass(frozen=True)
class Speaker:
    """One way to speak: accent, timbre, pitch (0…99) and words a minute."""

    accent: str
    timbre: str
    pitch: int
    speed: int


def speakers(seed: int = 0) -> list[Speaker]:
    """Every accent with every timbre, in a random order; pitch and speed are drawn."""
    rng = np.random.default_rng(seed)
    pairs = [(accent, timbre) for timbre in _TIMBRES for accent in _ACCENTS]
    order = rng.permutation(len(pairs))
    pitches, speeds = rng.integers(30, 71, len(pairs)), rng.integers(130, 191, len(pairs))
    return [Speaker(pairs[i][0], pairs[i][1], int(pitches[i]), int(speeds[i])) for i in order]


def version() -> str:
    """What eSpeak NG says of itself.

    Raises:
        DataError: it is not installed.
    """
    try:
        done = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise DataError(
            "the words of the data set keywords are spoken by espeak-ng, which is not installed",
            "apt-get install espeak-ng",
        ) from None
    return done.stdout.partition("  Data")[0].strip()


def say(word: str, speaker: Speaker) -> features.Signal:
    """A word as a signal of `features.RATE` without the silence around it."""
    command = ["espeak-ng", "-v", f"{speaker.accent}+{speaker.timbre}", "-p", str(speaker.pitch)]
    done = subprocess.run([*command, "-s", str(speaker.speed), "--stdout", word], capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise DataError(f"espeak-ng cannot speak as {speaker.accent}+{speaker.timbre}: {done.stderr.decode()[:200]}")
    with wave.open(io.BytesIO(done.stdout)) as sound:
        if (sound.getframerate(), sound.getsampwidth(), sound.getnchannels()) != (features.RATE, 2, 1):
            raise DataError(f"espeak-ng speaks at {sound.getframerate()} Hz, not {features.RATE} Hz")
        data = sound.readframes(1 << 24)
    signal = np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 32768.0
    loud = np.flatnonzero(np.abs(signal) > 0.02 * np.abs(signal).max(initial=1e-9))
    if not loud.size:
        raise DataError(f"espeak-ng is silent as {speaker.accent}+{speaker.timbre}")
    return signal[loud[0] : loud[-1] + 1]


def read_keywords(
    train_speakers: int = TRAIN_SPEAKERS, test_speakers: int = TEST_SPEAKERS, report: Reporter = silent
) -> Dataset:
    """The data set: log-mel spectrograms (`features.log_mel`) of ten words.

    Args:
        train_speakers: voices of the training set; each says every word once, cut into `TRAIN_TAKES` clips.
        test_speakers: voices of the test set, which no training clip has.
        report: told about the synthesis, which takes about 20 seconds once.

    Raises:
        DataError: espeak-ng is not installed.
    """
    settings = (version(), train_speakers, test_speakers, TRAIN_TAKES, TEST_TAKES, WORDS, features.CLIP, 1)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
    cached = cache.get(key)
    if cached is not None:
        return cached
    chosen = speakers()
    groups = (
        (chosen[:train_speakers], TRAIN_TAKES, 0),
        (chosen[train_speakers : train_speakers + test_speakers], TEST_TAKES, 1),
    )
    with report(f"speaking {len(WORDS)} words", len(WORDS) * (train_speakers + test_speakers)) as advance:
        splits = [_split(voices, takes, part, advance) for voices, takes, part in groups]
    dataset = Dataset.build(NAME, WORDS, *splits)
    cache.put(key, dataset)
    return dataset


def _split(voices: list[Speaker], takes: int, part: int, advance: object) -> Split:
    images, labels = [], []
    for number, (label, signal) in enumerate(_spoken(voices, advance)):
        rng = np.random.default_rng((part, number))
        for _ in range(takes):
            images.append(features.log_mel(features.placed(signal, rng, float(rng.uniform(8, 25)))))
            labels.append(label)
    return Split(np.stack(images), np.array(labels, np.uint16))


def _spoken(voices: list[Speaker], advance: object) -> Iterator[tuple[int, features.Signal]]:
    """Label and signal of every word of every voice, spoken two at a time."""
    tasks = [(label, voice) for voice in voices for label in range(len(WORDS))]
    with ThreadPoolExecutor(2) as pool:
        for (label, _), signal in zip(tasks, pool.map(lambda t: say(WORDS[t[0]], t[1]), tasks), strict=True):
            if callable(advance):
                advance(1)
            yield label, signal
