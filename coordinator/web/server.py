"""The read-only web server of a run: page, figures for monitoring, JSON.

Runs in threads of its own beside the coordinator and sees only the journal, opened read-only for each request, so
nothing that comes in over HTTP can change a run. Answers are kept for a second: many viewers cost as much as one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fedmpq
from fedmpq.coordinator import metrics, overview, status
from fedmpq.coordinator.blobs import BlobStore
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.layout import of_program
from fedmpq.coordinator.web import page
from fedmpq.errors import FedmpqError, NetworkError, UsageError

#: Seconds an answer is kept.
KEEP_S = 1.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HTML, _JSON, _TEXT = "text/html; charset=utf-8", "application/json", "text/plain; version=0.0.4; charset=utf-8"
Counters = Callable[[], Mapping[str, int]]


class WebServer:
    """Serves one data directory until closed.

    Args:
        directory: the coordinator's data directory.
        address: ``[host:]port``; the host is 127.0.0.1 unless named, port 0 picks a free one.
        counters: messages turned away so far (Server.counters); None where there is no coordinator.

    Raises:
        UsageError: the address is not one; NetworkError: it cannot be listened on.
    """

    def __init__(self, directory: Path, address: str, counters: Counters | None = None) -> None:
        host, port = _address(address)
        views = Views(directory, counters)
        handler = type("Handler", (_Handler,), {"views": views})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise NetworkError(
                f"cannot serve pages on {host}:{port}: {error.strerror}", "choose another --http"
            ) from None
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class Views:
    """What can be asked for, by path."""

    def __init__(self, directory: Path, counters: Counters | None = None) -> None:
        self._directory = directory
        self._counters = counters
        self._layers: tuple[str, ...] = ()
        self._kept: dict[str, tuple[float, tuple[str, bytes]]] = {}
        self._lock = threading.Lock()
        self._makers: dict[str, tuple[str, Callable[[Journal], str]]] = {
            "/": (_HTML, self._page),
            "/content": (_HTML, self._content),
            "/metrics": (_TEXT, lambda journal: metrics.text(journal, self._counters() if self._counters else None)),
            "/api/status": (_JSON, lambda journal: _json(asdict(overview.overview(journal)))),
            "/api/devices": (_JSON, lambda journal: _json({"devices": status.devices(journal)})),
            "/api/profiles": (_JSON, lambda journal: _json({"devices": status.profiles(journal)})),
            "/health": (_TEXT, lambda _: "ok\n"),
        }

    def get(self, path: str) -> tuple[str, bytes] | None:
        """Content type and body of a path; None if there is no such."""
        if path == "/page.js":
            return "text/javascript", resources.files("fedmpq.coordinator.web").joinpath("page.js").read_bytes()
        if path not in self._makers:
            return None
        with self._lock:
            at, answer = self._kept.get(path, (float("-inf"), ("", b"")))
            if time.monotonic() - at >= KEEP_S:
                kind, make = self._makers[path]
                journal = Journal(self._directory, read_only=True)
                try:
                    answer = kind, make(journal).encode()
                finally:
                    journal.close()
                self._kept[path] = time.monotonic(), answer
            return answer

    def _page(self, journal: Journal) -> str:
        run = json.loads(journal.meta("config") or "{}").get("run", "")
        return page.document(f"{run} – fedmpq", self._content(journal), live=True)

    def _content(self, journal: Journal) -> str:
        self._layers = self._layers or layer_names(self._directory, journal)
        return page.content(overview.overview(journal), status.devices(journal), self._layers, time.time())


def layer_names(directory: Path, journal: Journal) -> tuple[str, ...]:
    """Names of the weight layers of the run's program; empty before there is one."""
    program = journal.meta("program")
    if program is None:
        return ()
    try:
        return tuple(shape.name for shape in of_program(BlobStore(directory / "blobs").get(program)).layers)
    except FedmpqError:  # a run in full precision has no layers of bits
        return ()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD only."""

    views: Views
    server_version = f"fedmpq/{fedmpq.__version__}"
    sys_version = ""
    timeout = 20

    def do_GET(self) -> None:
        """Answers with a view."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answers with a view's headers."""
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged."""

    def _answer(self, *, body: bool) -> None:
        code, kind, data = self._found()
        self.send_response(code)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _found(self) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        try:
            path = urlsplit(self.path).path
        except ValueError:  # such as http://[
            return 400, _TEXT, b"this is no address\n"
        try:
            found = self.views.get(path)
        except FedmpqError as error:  # the journal is damaged, or not there
            return 503, _TEXT, f"{error}\n".encode()
        return (404, _TEXT, b"there is no such page\n") if found is None else (200, *found)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address to serve pages on", "PORT or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
