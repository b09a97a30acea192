"""The read-only server, Prometheus' format, the report and the tables, without a browser."""

from __future__ import annotations

import csv
import json
import re
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmpq.cli.coordinator import command
from fedmpq.coordinator import metrics, overview, status
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.web import charts, page
from fedmpq.coordinator.web.server import WebServer
from fedmpq.errors import NetworkError, UsageError
from tests.helpers.fleet import LAYOUT, Fleet, config, limits, plan_bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    too_small = plan_bytes((1,) * len(LAYOUT.layers)) - 5
    made = Fleet(
        tmp_path_factory.mktemp("web") / "run",
        config(rounds=2),
        {**limits(a=2, b=4, c=8), "tiny": too_small},
        judge=True,
    )
    made.announce()
    made.play()
    made.machine.note_refused("b", "signature", "<script>alert(1)</script>")
    made.run.close()
    return made.directory


@pytest.fixture
def web(run: Path) -> Iterator[WebServer]:
    server = WebServer(run, "0", lambda: {"rate": 3})
    yield server
    server.close()


def get(web: WebServer, path: str) -> tuple[str, str]:
    with urllib.request.urlopen(web.url + path) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


class Balanced(HTMLParser):
    """Fails on a tag that closes nothing or is never closed."""

    VOID = ("meta", "br", "rect", "line", "circle", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_has_everything_and_runs_nothing_foreign(web: WebServer) -> None:
    kind, text = get(web, "")
    assert kind.startswith("text/html")
    Balanced(text)
    for words in (
        "round 2 of 2",
        "finished",
        "watch" if False else "tiny",
        "the smallest plan takes",
        "layer1.0.conv1",
    ):
        assert words in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert re.findall(r"<script[^>]*>", text) == ['<script src="page.js" defer>']
    with urllib.request.urlopen(web.url) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_prometheus_reads_it(web: WebServer, run: Path) -> None:
    kind, text = get(web, "metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    sample = re.compile(r'^[a-z_]+(\{([a-z_]+="[^"\n]*",?)+\})? -?[0-9.e+]+$')
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for line in text.splitlines():
        if not line.startswith("#"):
            assert sample.match(line), line
            assert line.split("{")[0].split()[0] in names
    assert 'fedmpq_refused_total{reason="rate"} 3' in text
    assert 'fedmpq_updates_total{verdict="accepted"} 6' in text
    assert set(names) <= set(metrics.HELP)


def test_json_and_pages_that_are_not_there(web: WebServer, run: Path) -> None:
    state = json.loads(get(web, "api/status")[1])
    assert [row["accepted"] for row in state["rounds"]] == [3, 3]
    assert len(json.loads(get(web, "api/devices")[1])["devices"]) == 4
    assert len(json.loads(get(web, "api/profiles")[1])["devices"]) == 4
    assert get(web, "health")[1] == "ok\n"
    for path in ("nothing", "../journal.sqlite", "page.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(web, path)
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(urllib.request.Request(web.url, b"x", method="POST"))


def test_what_cannot_be_answered_is_one_line(web: WebServer, tmp_path: Path) -> None:
    host, port = web.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        link.sendall(b"GET http://[ HTTP/1.0\r\n\r\n")
        assert link.recv(100).startswith(b"HTTP/1.0 400 ")
    made = Fleet(tmp_path, config(), limits(a=2))
    made.run.close()
    database = sqlite3.connect(tmp_path / "journal.sqlite")
    database.execute("ALTER TABLE meta RENAME TO lost")
    database.close()
    server = WebServer(tmp_path, "0")
    try:
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(server, "api/status")
        assert "cannot be read" in caught.value.read().decode()
    finally:
        server.close()


def test_addresses(run: Path, web: WebServer) -> None:
    with pytest.raises(NetworkError, match="cannot serve pages"):
        WebServer(run, web.url.removeprefix("http://").rstrip("/"))
    for text in ("", "x", "host:", "1:99999"):
        with pytest.raises(UsageError, match="no address"):
            WebServer(run, text)


def test_the_overview_counts_as_status_does(run: Path) -> None:
    journal = Journal(run, read_only=True)
    short, full = overview.overview(journal), status.status(journal)
    journal.close()
    for left, right in zip(short.rounds, full["rounds"], strict=True):
        for key in ("round", "phase", "accuracy", "loss", "accepted", "selected", "bytes_up", "bytes_down", "seconds"):
            assert getattr(left, key) == right[key], key
    assert short.devices == full["devices"]
    assert short.failures[0]["detail"].startswith(("signature", "the smallest"))


def test_report_and_tables(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = CliRunner().invoke(
        command, ["report", "--dir", str(run), "--out", str(out), "--csv", str(tmp_path / "t"), "--json"]
    )
    assert done.exit_code == 0, done.output
    text = out.read_text()
    Balanced(text)
    assert "<script" not in text
    assert "Configuration" in text
    assert "deadline_s" in text
    rows = list(csv.DictReader((tmp_path / "t" / "rounds.csv").open()))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert len(list(csv.DictReader((tmp_path / "t" / "updates.csv").open()))) == 6
    assert len(json.loads(done.stdout)["written"]) == 4


@pytest.mark.parametrize(
    "points", [[], [(1.0, 5.0)], [(1.0, 5.0), (2.0, 5.0)], [(float(i), i % 7) for i in range(300)]]
)
def test_charts_of_any_length(points: list[tuple[float, float]]) -> None:
    series = {"a": points} if points else {}
    for text in (
        charts.lines(series, label="x"),
        charts.bars([(x, (y, 1.0)) for x, y in points], ("up", "down"), label="x"),
        charts.grid([("row", [int(y) for _, y in points])], [str(x) for x, _ in points], label="x", x_label="r"),
    ):
        Balanced(text)
        assert "nan" not in text
    assert page.human(999) == "999 B"
    assert page.human(1_500_000) == "1.5 MB"
