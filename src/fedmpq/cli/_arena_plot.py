"""An arena over the ops of a step as a picture: time to the right, addresses upwards, a rectangle a buffer (SVG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 900, 460, 84, 46, 64, 12
_COLOURS = {
    "state": "#4e6e8e",
    "x-hat": "#5b9e6b",
    "y": "#d9a441",
    "residual": "#8c6bb1",
    "error": "#c8553d",
    "work": "#b8b8b8",
}


def draw(title: str, total: int, ops: int, buffers: Sequence[Mapping[str, Any]]) -> str:
    """The picture.

    Args:
        title: above it.
        total: bytes of the arena.
        ops: number of ops: forward ones first, then three a record backward.
        buffers: `name`, `kind`, `offset`, `size`, `first` and `last` of each (core.Buffer).
    """
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(op: float) -> float:
        return _LEFT + wide * op / ops

    def y(byte: float) -> float:
        return _TOP + high * (1 - byte / total)

    shapes = []
    for buffer in buffers:
        if not buffer["size"]:
            continue
        left, right = x(buffer["first"]), x(buffer["last"] + 1)
        top, bottom = y(buffer["offset"] + buffer["size"]), y(buffer["offset"])
        label = f"{buffer['name']}: {buffer['size']:,} bytes at {buffer['offset']:,}, ops {buffer['first']} to "
        shapes.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
            f'fill="{_COLOURS.get(buffer["kind"], "#999")}" stroke="#fff" stroke-width="0.4">'
            f"<title>{escape(label)}{buffer['last']}</title></rect>"
        )
    marks = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(total * k / 4):.1f}" y2="{y(total * k / 4):.1f}" '
        f'stroke="#ddd"/><text x="{_LEFT - 6}" y="{y(total * k / 4) + 4:.1f}" text-anchor="end">'
        f"{round(total * k / 4):,}</text>"
        for k in range(5)
    ]
    split = x(ops / 4)
    low = _HEIGHT - _BOTTOM + 16
    after = (split + _WIDTH - _RIGHT) / 2
    words = [
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
        f'<path d="M{split:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#333" stroke-dasharray="3 3"/>',
        f'<text x="{(_LEFT + split) / 2:.1f}" y="{low}" text-anchor="middle">forward</text>',
        f'<text x="{after:.1f}" y="{low}" text-anchor="middle">backward and update, last record first</text>',
    ]
    legend = []
    for i, (kind, colour) in enumerate(_COLOURS.items()):
        at = _LEFT + 120 * i
        legend.append(
            f'<rect x="{at}" y="{_HEIGHT - 28}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{at + 17}" y="{_HEIGHT - 18}">{kind}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        + "".join([*marks, *shapes, *words, *legend])
        + "</svg>\n"
    )
