"""The page as a browser shows it: after its scripts have run, with no error, and again after the run has moved on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from fedmpq.coordinator.web.server import WebServer
from tests.helpers.fleet import Fleet, config, limits

BROWSER = os.environ.get("FEDMPQ_BROWSER", "chromium")


def shown(url: str, *options: str, folder: Path) -> tuple[str, str]:
    """The document after `--virtual-time-budget` milliseconds, and what the browser logged."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={folder}", *options, "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    made = Fleet(tmp_path_factory.mktemp("web") / "run", config(rounds=3), limits(a=2, b=4, c=8), judge=True)
    made.announce()
    return made


def test_the_page_shows_the_run_and_keeps_up(fleet: Fleet, tmp_path: Path) -> None:
    web = WebServer(fleet.directory, "0")
    try:
        before, log = shown(web.url, "--virtual-time-budget=500", folder=tmp_path / "a")
        assert "CONSOLE" not in log  # no script error, nothing that the content policy refused
        assert "Accuracy in percent: nothing yet" in before
        fleet.play()
        after, log = shown(web.url, "--virtual-time-budget=8000", folder=tmp_path / "b")
        assert "CONSOLE" not in log
        assert "3 of 3" in after
        assert after.count("<circle") == 3
        assert len(re.findall(r'<rect class="bar', after)) == 6
        assert {f">{name}</td>" in after for name in "abc"} == {True}
        assert after.count("<svg") == 4
    finally:
        web.close()


def test_the_page_is_drawn(fleet: Fleet, tmp_path: Path) -> None:
    web = WebServer(fleet.directory, "0")
    picture = tmp_path / "page.png"
    try:
        shown(web.url, f"--screenshot={picture}", "--window-size=1200,900", folder=tmp_path / "c")
    finally:
        web.close()
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    colours = image.getcolors(1 << 24)
    assert image.size == (1200, 900)
    assert colours is not None
    assert len(colours) > 100
