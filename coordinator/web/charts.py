"""Charts as SVG text: lines, stacked bars and a grid of colours. Colours come from the page's style sheet.

Every mark carries a `<title>`, which browsers show as a tooltip and screen readers read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    x_label: str = "round",
    unit: str = "",
    show: Callable[[float], str] = lambda value: f"{value:g}",
) -> str:
    """A chart of one or a few lines.

    Args:
        series: points by name; drawn in the page's colours 1, 2, 3 ...
        label: what the chart shows, for screen readers.
        x_label: under the axis.
        unit: after the values in tooltips.
        show: how a value of the y axis is written.
    """
    points = [point for values in series.values() for point in values]
    if not points:
        return _empty(label)
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    at_x = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    at_y = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_grid(ticks, at_y, show), _x_axis(_whole(x_low, x_high), at_x, x_label)]
    for number, (name, values) in enumerate(series.items(), 1):
        path = " ".join(f"{'M' if i == 0 else 'L'}{at_x(x):.1f} {at_y(y):.1f}" for i, (x, y) in enumerate(values))
        parts.append(f'<path class="line c{number}" d="{path}"/>')
        radius = 3.5 if len(values) <= 60 else 2
        parts += [
            f'<circle class="dot c{number}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="{radius}">'
            f"<title>{escape(name)}: {show(y)}{escape(unit)}, {escape(x_label)} {x:g}</title></circle>"
            for x, y in values
        ]
    return _legend(list(series)) + _svg(WIDTH, HEIGHT, label, parts)


def bars(
    groups: Sequence[tuple[float, Sequence[float]]],
    names: Sequence[str],
    *,
    label: str,
    x_label: str = "round",
    show: Callable[[float], str] = lambda value: f"{value:g}",
) -> str:
    """Stacked bars, one a group.

    Args:
        groups: x and the values stacked there, from the bottom.
        names: of the values.
        label: as for `lines`, like the rest.
        x_label: under the axis.
        show: how a value is written.
    """
    if not groups:
        return _empty(label)
    ticks = _ticks(0.0, max(sum(values) for _, values in groups) or 1.0)
    at_y = _scale(0.0, ticks[-1], HEIGHT - BOTTOM, TOP)
    x_low, x_high = groups[0][0], groups[-1][0]
    pitch = (WIDTH - LEFT - RIGHT) / max(1.0, x_high - x_low + 1)
    at_x = _scale(x_low - 0.5, x_high + 0.5, LEFT, WIDTH - RIGHT)
    wide = min(28.0, max(1.0, pitch * 0.72))
    parts = [_grid(ticks, at_y, show), _x_axis(_whole(x_low, x_high), at_x, x_label)]
    for x, values in groups:
        base = 0.0
        for number, (name, value) in enumerate(zip(names, values, strict=True), 1):
            top, bottom = at_y(base + value), at_y(base)
            parts.append(
                f'<rect class="bar c{number}" x="{at_x(x) - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" '
                f'height="{max(0.0, bottom - top):.1f}"><title>{escape(name)}: {show(value)}, '
                f"{escape(x_label)} {x:g}</title></rect>"
            )
            base += value
    return _legend(names) + _svg(WIDTH, HEIGHT, label, parts)


def grid(rows: Sequence[tuple[str, Sequence[int]]], columns: Sequence[str], *, label: str, x_label: str) -> str:
    """A grid of small numbers 0 to 8 (bit-widths), darker for more.

    Args:
        rows: name and values of each row.
        columns: name of each column; every so many are written out.
        label: what the chart shows, for screen readers.
        x_label: under the columns.
    """
    if not rows or not columns:
        return _empty(label)
    left = 12 + round(6.6 * max(len(name) for name, _ in rows))
    wide = max(9.0, min(30.0, (WIDTH - left - RIGHT) / len(columns)))
    high = 18 if len(rows) <= 40 else 10
    width, height = left + wide * len(columns) + RIGHT, high * len(rows) + 40
    parts = []
    for line, (name, values) in enumerate(rows):
        y = 4 + high * line
        if high > 10 or line % 5 == 0:
            parts.append(
                f'<text class="tick" x="{left - 6}" y="{y + high - 5}" text-anchor="end">{escape(name)}</text>'
            )
        for column, value in enumerate(values):
            x = left + wide * column
            parts.append(
                f'<rect class="b{value}" x="{x:.1f}" y="{y}" width="{wide - 1:.1f}" height="{high - 1}">'
                f"<title>{escape(name)}, {escape(x_label)} {escape(columns[column])}: {value} bits</title></rect>"
            )
            if wide >= 12 and high > 10:
                parts.append(
                    f'<text class="cell b{value}" x="{x + wide / 2 - 0.5:.1f}" y="{y + high - 5}" '
                    f'text-anchor="middle">{value}</text>'
                )
    every = max(1, ceil(34 / wide))
    bottom = 4 + high * len(rows)
    parts += [
        f'<text class="tick" x="{left + wide * (i + 0.5):.1f}" y="{bottom + 14}" text-anchor="middle">'
        f"{escape(name)}</text>"
        for i, name in enumerate(columns)
        if i % every == 0
    ]
    middle = left + wide * len(columns) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{bottom + 29}" text-anchor="middle">{escape(x_label)}</text>')
    return _svg(width, height, label, parts)


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _empty(label: str) -> str:
    return f'<p class="none">{escape(label)}: nothing yet</p>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    marks = "".join(f'<span><i class="c{n}"></i>{escape(name)}</span>' for n, name in enumerate(names, 1))
    return f'<p class="legend">{marks}</p>'


def _grid(ticks: Sequence[float], at_y: Callable[[float], float], show: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{at_y(y) + 4:.1f}" text-anchor="end">{escape(show(y))}</text>'
        for y in ticks
    )


def _x_axis(ticks: Sequence[float], at_x: Callable[[float], float], name: str) -> str:
    marks = "".join(
        f'<text class="tick" x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
        for x in ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{marks}<text class="tick" x="{middle:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(name)}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Linear; a range of nothing lies in the middle."""
    if high == low:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) * (end - start) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that enclose a range."""
    if high == low:
        low, high = low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    rough = (high - low) / 5
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _whole(low: float, high: float) -> list[float]:
    """At most ten whole numbers from low to high."""
    step = max(1, ceil((high - low) / 9))
    return [float(x) for x in range(int(low), int(high) + 1, step)]
