"""The page of a run, as HTML text: what it is at, accuracy, bytes, bits by layer, the fleet, what failed.

Everything that came from outside (device names, details of failures) is escaped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import fedmpq
from fedmpq.coordinator import status
from fedmpq.coordinator.overview import Overview
from fedmpq.coordinator.web import charts

#: Devices and rounds that the page lists; charts and counts cover all of them.
LISTED = 200


def document(title: str, body: str, *, live: bool) -> str:
    """A whole page around `body`.

    Args:
        title: of the window.
        body: from `content`.
        live: whether the page fetches itself anew every few seconds.
    """
    script = '<script src="page.js" defer></script>' if live else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style()}</style>{script}</head>\n<body>{body}</body></html>\n"
    )


def style() -> str:
    """The style sheet."""
    return resources.files(__package__).joinpath("style.css").read_text()


def content(state: Overview, devices: Sequence[Mapping[str, Any]], layers: Sequence[str], now: float) -> str:
    """The visible part of the page.

    Args:
        state: of the run.
        devices: of `status.devices`.
        layers: names of the weight layers.
        now: Unix seconds.
    """
    return _header(state, now) + "<main>" + "".join(
        (
            _tiles(state),
            '<div class="pair">',
            _section("Accuracy of the global model", accuracy_chart(state)),
            _section("Bytes of each round", bytes_chart(state)),
            "</div>",
            '<div class="pair">',
            _section("Mean bits of each layer, by round", mean_bits_chart(state, layers)),
            _section("Bits of each layer, by device", device_bits_chart(devices, layers)),
            "</div>",
            _section(f"Fleet{_shown(len(devices))}", _fleet(devices[:LISTED])),
            _section(f"Rounds{_shown(len(state.rounds))}", _rounds(state)),
            _section("Failures, latest first", _failures(state)),
        )
    ) + "</main>"  # fmt: skip


# --- charts -----------------------------------------------------------------------------------------------------------


def accuracy_chart(state: Overview) -> str:
    """Accuracy by round."""
    points = [(float(row.round), row.accuracy) for row in state.rounds if row.accuracy is not None]
    series = {"accuracy": points} if points else {}
    return charts.lines(series, label="Accuracy in percent", unit=" %", show=lambda v: f"{v:.4g}")


def loss_chart(state: Overview) -> str:
    """Loss by round."""
    points = [(float(row.round), row.loss) for row in state.rounds if row.loss is not None]
    return charts.lines({"loss": points} if points else {}, label="Loss", show=lambda v: f"{v:.3g}")


def bytes_chart(state: Overview) -> str:
    """Bytes up and down by round."""
    groups = [(float(row.round), (row.bytes_up, row.bytes_down)) for row in state.rounds]
    return charts.bars(groups, ("up (updates)", "down (planes)"), label="Bytes by round", show=human)


def mean_bits_chart(state: Overview, layers: Sequence[str]) -> str:
    """The fleet's mean bit-width of every layer after each round; at most sixty rounds, the last among them."""
    rounds = [row for row in state.rounds if row.mean_bits]
    every = -(-len(rounds) // 60) or 1
    rounds = rounds[::-1][::every][::-1]
    rows = [(name, [row.mean_bits[i] for row in rounds]) for i, name in enumerate(layers)] if rounds else []
    return charts.grid(rows, [str(row.round) for row in rounds], label="Mean bits by layer", x_label="round")


def device_bits_chart(devices: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> str:
    """What every device is given now; the first sixty."""
    given = [row for row in devices if row["bits"] and len(row["bits"]) == len(layers)][:60]
    rows = [(str(row["device"])[:28], list(row["bits"])) for row in given]
    return charts.grid(rows, [str(i) for i in range(len(layers))], label="Bits by device", x_label="layer")


# --- parts ------------------------------------------------------------------------------------------------------------


def _header(state: Overview, now: float) -> str:
    current = state.current
    at = f"round {current.round} of {state.config.get('rounds')}, {current.phase}" if current else "no round yet"
    waiting = f"waiting for {state.waiting_for}" if state.waiting_for else "finished"
    if len(waiting) > 160:
        waiting = waiting[:160] + " …"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    return (
        f"<header><h1>{escape(str(state.config.get('run')))}</h1>"
        f"<p>{escape(str(state.config.get('strategy')))} · {escape(at)} · {escape(waiting)}</p>"
        f'<p class="small">{stamp} UTC · fedmpq {escape(fedmpq.__version__)} · program {escape(state.program[:12])}</p>'
        "</header>"
    )


def _tiles(state: Overview) -> str:
    judged, counts = state.judged, state.devices
    up, down = (sum(getattr(row, f"bytes_{way}") for row in state.rounds) for way in ("up", "down"))
    seconds = [row.seconds for row in state.rounds if row.seconds is not None]
    tiles = [
        (f"{judged.accuracy:.2f} %" if judged and judged.accuracy is not None else "–",
         f"accuracy after round {judged.round}" if judged else "accuracy"),
        (f"{sum(row.phase == 'done' for row in state.rounds)} of {state.config.get('rounds', 0)}", "rounds committed"),
        (f"{counts['online']} of {counts['known']}", "devices online"),
        (f"{counts['admitted']}", f"admitted, {counts['refused']} refused"),
        (human(up), "received in updates"),
        (human(down), "sent"),
        (f"{seconds[-1]:.1f} s" if seconds else "–", "last round took"),
    ]  # fmt: skip
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    ) + "</div>"  # fmt: skip


def _fleet(devices: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in devices:
        good = row["online"] and row["admission"] == "admitted"
        standing = ("online" if row["online"] else "offline") + f", {row['admission']}"
        planned, limit = row["planned_bytes"], row["limit_bytes"]
        share = f"{min(100.0, 100 * planned / limit):.0f}" if planned and limit else "0"
        last = f"{row['last_round']} {row['last_state']}" if row["last_round"] else "–"
        why = status.why(row)
        rows.append(
            (
                escape(row["device"]),
                f'<span class="{"" if good else "off"}">{escape(standing)}</span>',
                _number(row["samples"]),
                "–" if row["average_bits"] is None else f"{row['average_bits']:.2f}",
                _bits(row["running_bits"]),
                _bits(row["bits"]),
                f'<span class="meter"><i style="width:{share}%"></i></span>{_number(planned)}',
                _number(row["measured_bytes"]),
                _number(row["headroom_bytes"]),
                _number(limit),
                escape(last),
                f'<span class="bad">{escape(str(why)[:200])}</span>' if why else "",
            )
        )
    names = ("device", "state", "images", "bits", "running", "target", "planned bytes", "measured", "left", "limit",
             "last round", "why")  # fmt: skip
    return table(names, rows, numbers={2, 3, 6, 7, 8, 9}, bits={4, 5}) if rows else '<p class="none">nobody yet</p>'


def _rounds(state: Overview) -> str:
    rows = [
        (
            str(row.round),
            escape(row.phase),
            "–" if row.accuracy is None else f"{row.accuracy:.2f}",
            "–" if row.loss is None else f"{row.loss:.4f}",
            f"{row.accepted} of {row.selected}",
            _number(row.refused + row.rejected + row.missed),
            _number(row.bytes_up),
            _number(row.bytes_down),
            "–" if row.seconds is None else f"{row.seconds:.1f}",
            "".join(map(str, row.mean_bits)) or "–",
        )
        for row in reversed(state.rounds[-LISTED:])
    ]
    names = ("round", "phase", "accuracy %", "loss", "updates", "not counted", "bytes up", "bytes down", "seconds",
             "mean bits")  # fmt: skip
    return table(names, rows, numbers={0, 2, 3, 4, 5, 6, 7, 8}, bits={9}) if rows else '<p class="none">none yet</p>'


def _failures(state: Overview) -> str:
    rows = [
        (
            time.strftime("%m-%d %H:%M:%S", time.gmtime(float(row["at"]))),
            str(row["round"] or "–"),
            escape(row["device"] or "–"),
            f'<span class="bad">{escape(row["what"])}</span>',
            escape(row["detail"]),
        )
        for row in state.failures
    ]
    return table(("time", "round", "device", "what", "detail"), rows) if rows else '<p class="none">none</p>'


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _shown(count: int) -> str:
    return f" ({LISTED} of {count:,})" if count > LISTED else ""


def table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: frozenset[int] | set[int] = frozenset(),
    bits: frozenset[int] | set[int] = frozenset(),
) -> str:
    """A table of cells that are HTML already."""

    def kind(i: int) -> str:
        if i in numbers:
            return ' class="n"'
        return ' class="bits"' if i in bits else ' class="wide"' if names[i] in {"why", "detail", "value"} else ""

    head = "".join(f"<th{kind(i)}>{escape(name)}</th>" for i, name in enumerate(names))
    body = "".join("<tr>" + "".join(f"<td{kind(i)}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _bits(bits: Sequence[int] | None) -> str:
    return "".join(map(str, bits)) if bits else "–"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def human(count: float) -> str:
    """Bytes for people, in powers of 1000 so that a chart's round numbers stay round."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
