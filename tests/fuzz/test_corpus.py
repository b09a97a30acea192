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


@pytest.mark.parametrize("edited", ["src/a.c", "src/kernel.inc", "include/fmpq/fmpq.h", "port/board.h"])
def test_the_campaign_compiles_the_core_again_where_it_was_edited(
    edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, made = tmp_path / "core", []
    monkeypatch.setattr(campaign, "CORE", core)
    monkeypatch.setattr(campaign, "BUILD", tmp_path / "build")
    monkeypatch.setattr(campaign, "c_sources", lambda: [core / "src" / "a.c"])
    for name in ("src/a.c", "src/kernel.inc", "include/fmpq/fmpq.h", "port/board.h"):
        (core / name).parent.mkdir(parents=True, exist_ok=True)
        (core / name).touch()
        os.utime(core / name, (1, 1))

    def compiler(command: list[str], cwd: Path | None = None, **_: object) -> None:
        if "-c" in command:
            assert cwd is not None
            made.append(cwd / "a.o")
            made[-1].touch()

    monkeypatch.setattr(subprocess, "run", compiler)
    for _ in range(2):
        campaign.build("c-core", "cc")
    assert len(made) == 1
    later = made[0].stat().st_mtime + 10
    os.utime(core / edited, (later, later))
    campaign.build("c-core", "cc")
    assert len(made) == 2


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
