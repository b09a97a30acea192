"""The fuzzers' corpus, and small changes of it, under every target: the short form of `make fuzz`."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from fuzz import campaign, targets

#: Changed copies of every input.
COPIES = 40
C_COPIES = 300


def changed(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few bytes replaced, cut out, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.random()
        if kind < 0.6:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind < 0.75:
            del out[at : at + rng.randint(1, 16)]
        elif kind < 0.9:
            out[at:at] = out[at : at + rng.randint(1, 16)]
        else:
            del out[at:]
    return bytes(out)


@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_python_parsers_take_the_corpus(target: str) -> None:
    rng = random.Random(target)
    inputs = sorted((campaign.CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        data = path.read_bytes()
        targets.run(target, data)
        for _ in range(COPIES):
            targets.run(target, changed(data, rng))


@pytest.mark.parametrize("target", ["messages", "bundles", "topic", "artifacts", "programs", "configuration", "models"])
def test_seeds_are_accepted(target: str) -> None:
    """A target that refuses its own seeds would test nothing."""
    for path in (campaign.CORPUS / target).glob("seed-*"):
        targets.TARGETS[target](path.read_bytes())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The C targets with a driver that needs no libFuzzer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "BUILD", tmp_path_factory.mktemp("fuzz"))
        driver = str(campaign.ROOT / "fuzz" / "c" / "replay.c")
        return {
            name: campaign.build(name, "gcc", "-O0", "-fsanitize=address,undefined", driver)
            for name in campaign.C_TARGETS
        }


@pytest.mark.parametrize("target", sorted(campaign.C_TARGETS))
def test_c_readers_take_the_corpus_under_sanitizers(target: str, built: dict[str, Path]) -> None:
    inputs = sorted(map(str, (campaign.CORPUS / target).iterdir()))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(built[target]), str(C_COPIES), *inputs]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert int(run.stdout) == len(inputs) * (C_COPIES + 1)
