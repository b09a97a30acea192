"""A run as it goes, on standard error: a live table on a terminal, one line a round elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedmpq.cli._common import human_bytes, note

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedmpq.coordinator.run_state import RunState


@contextmanager
def watching(run: RunState) -> Iterator[Callable[[RunState], object]]:
    """Yields the function to call when something may have changed."""
    from fedmpq.coordinator import status

    told = {row["round"] for row in run.journal.rows("SELECT round FROM rounds WHERE phase='done'")}

    def tell(run: RunState) -> None:
        for row in run.journal.rows("SELECT * FROM rounds WHERE phase='done' ORDER BY round"):
            if row["round"] not in told:
                told.add(row["round"])
                note(_line(status.round_result(run.journal, row), run.config.rounds))

    if not sys.stderr.isatty():
        yield tell
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def draw(run: RunState) -> None:
            live.update(fleet_table(status.status(run.journal), status.devices(run.journal)), refresh=True)

        draw(run)
        yield draw


def _line(row: dict[str, Any], rounds: int) -> str:
    accuracy = "" if row["accuracy"] is None else f" accuracy {row['accuracy']:.2f} %,"
    return (
        f"round {row['round']} of {rounds}:{accuracy} {row['accepted']} of {row['selected']} updates, "
        f"{human_bytes(row['bytes_up'])} up, {human_bytes(row['bytes_down'])} down, {row['seconds']:.1f} s"
    )


def fleet_table(state: dict[str, Any], devices: list[dict[str, Any]]) -> RenderableType:
    """The run's last rounds above, its devices below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    title = f"{state['run']} ({state['strategy']}), round {state['round']} of {state['rounds_planned']}"
    rounds = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("round", "accuracy %", "updates", "up", "down", "seconds"):
        rounds.add_column(name, justify="right")
    for row in state["rounds"][-8:]:
        rounds.add_row(
            str(row["round"]),
            "–" if row["accuracy"] is None else f"{row['accuracy']:.2f}",
            f"{row['accepted']}/{row['selected']}",
            human_bytes(row["bytes_up"]),
            human_bytes(row["bytes_down"]),
            "–" if row["seconds"] is None else f"{row['seconds']:.1f}",
        )
    fleet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("device", "state", "bits", "avg", "planned", "measured", "limit", "last round"):
        fleet.add_column(name)
    for row in devices:
        fleet.add_row(
            row["device"],
            ("online" if row["online"] else "offline") if row["admission"] == "admitted" else row["admission"],
            "".join(map(str, row["bits"])) if row["bits"] else "–",
            "–" if row["average_bits"] is None else f"{row['average_bits']:.2f}",
            "–" if row["planned_bytes"] is None else f"{row['planned_bytes']:,}",
            "–" if row["measured_bytes"] is None else f"{row['measured_bytes']:,}",
            f"{row['limit_bytes']:,}",
            f"{row['last_round']} {row['last_state']}" if row["last_round"] else (row["detail"] or "–"),
        )
    waiting = f"waiting for {state['waiting_for']}" if state["waiting_for"] else "finished"
    return Group(rounds, fleet, waiting)
