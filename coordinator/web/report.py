"""The report of a run: one HTML file that needs nothing else, and tables as CSV."""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedmpq.coordinator import overview, status
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.web import page
from fedmpq.coordinator.web.server import layer_names
from fedmpq.errors import StateError


def html(directory: Path, journal: Journal) -> str:
    """The report as one page: everything the live page shows, the loss, memory by device, and the configuration."""
    state, devices = overview.overview(journal), status.devices(journal)
    body = page.content(state, devices, layer_names(directory, journal), time.time())
    extra = "".join(
        (
            '<main><div class="pair">',
            f"<section><h2>Loss</h2>{page.loss_chart(state)}</section>",
            f"<section><h2>Memory of each device at 1 to 8 bits</h2>{_memory(status.profiles(journal))}</section>",
            "</div>",
            f"<section><h2>Configuration</h2>{_configuration(state.config)}</section></main>",
        )
    )
    return page.document(f"{state.config.get('run')}: report", body + extra, live=False)


def write_html(directory: Path, journal: Journal, out: Path) -> None:
    """Writes the report; StateError if it cannot be written."""
    try:
        out.write_text(html(directory, journal))
    except OSError as error:
        raise StateError(f"cannot write {out}: {error.strerror}") from None


def write_csv(journal: Journal, folder: Path) -> list[Path]:
    """Writes rounds.csv, devices.csv and updates.csv into a folder (made if absent) and returns their paths."""
    state = status.status(journal)
    rounds = [
        {key: value for key, value in row.items() if key not in {"devices", "by_budget"}} for row in state["rounds"]
    ]
    updates = [{"round": row["round"], **device} for row in state["rounds"] for device in row["devices"]]
    found = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("rounds", rounds), ("devices", status.devices(journal)), ("updates", updates)):
            path = folder / f"{name}.csv"
            with path.open("w", newline="") as out:
                if rows:
                    writer = csv.DictWriter(out, list(rows[0]))
                    writer.writeheader()
                    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
            found.append(path)
    except OSError as error:
        raise StateError(f"cannot write into {folder}: {error.strerror}") from None
    return found


def _cell(value: object) -> object:
    """Lists of bits as text; text that a spreadsheet would take as a formula is quoted."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@"}:
        return "'" + value
    return value


def _memory(profiles: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for device in profiles[: page.LISTED]:
        for plan in device["plans"]:
            planned, measured = plan["planned_bytes"], plan["measured_bytes"]
            rows.append(
                (
                    escape(device["device"]),
                    str(plan["bits"]),
                    f"{planned:,}",
                    "–" if measured is None else f"{measured:,}",
                    "yes" if plan["fits"] else "no",
                )
            )
    if not rows:
        return '<p class="none">no device has measured itself yet</p>'
    return page.table(("device", "bits", "planned bytes", "measured bytes", "fits"), rows, numbers={1, 2, 3})


def _configuration(config: Mapping[str, Any]) -> str:
    rows = [(escape(key), escape(str(value))) for key, value in config.items()]
    rows.append(("reported on", escape(f"{platform.machine()}, Python {platform.python_version()}")))
    return page.table(("key", "value"), rows)
