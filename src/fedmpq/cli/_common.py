"""What every command uses: the --json option, the one printer of results, tables, progress and help examples.

A command is written as:

    @click.command("info", epilog=example("fedmpq data info digits"))
    @click.argument("source")
    @json_option
    def command(source: str, as_json: bool) -> None:
        '''One line that ends up in the list of commands.'''
        with progress("reading", total=n) as advance:
            ...advance(1)
        emit({"images": n}, as_json, lambda result: print_table(["images"], [[result["images"]]]))

Nothing here is imported before it is needed: rich loads only when a table or a bar is drawn.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

#: Units that `--memory` style options accept, in bytes.
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1024, "m": 10**6, "mb": 10**6, "mib": 1024**2,
          "g": 10**9, "gb": 10**9, "gib": 1024**3}  # fmt: skip


def json_option(function: F) -> F:
    """Add `--json`, passed to the command as `as_json`."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        envvar="FEDMPQ_JSON",
        help="Print one JSON document on standard output and nothing else there.",
    )(function)


def json_wanted(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, for the case that it fails before its command has run."""
    switch = os.environ.get("FEDMPQ_JSON", "").lower()
    return "--json" in arguments or switch in {"1", "true", "yes", "on", "t", "y"}


def example(*lines: str) -> str:
    r"""An epilog with one example a line, kept from re-wrapping by click's \b mark."""
    return "\b\n" + ("Example:" if len(lines) == 1 else "Examples:") + "".join(f"\n  {line}" for line in lines)


def emit(result: Mapping[str, Any], as_json: bool, human: Callable[[Any], None] | None = None) -> None:
    """Print a command's result.

    Args:
        result: the document; values that JSON lacks (paths, bytes, tuples, NumPy scalars) are converted.
        as_json: print the document as JSON.
        human: prints `result` for people; without it the document's top-level values are listed one a line.
    """
    if as_json:
        click.echo(json.dumps(result, indent=2, default=_jsonable, ensure_ascii=False))
    elif human is not None:
        human(result)
    else:
        width = max((len(str(key)) for key in result), default=0)
        for key, value in result.items():
            click.echo(f"{key!s:<{width}}  {value}")


def _jsonable(value: Any) -> Any:
    """Convert what `json` does not know: paths, bytes, NumPy scalars and arrays, sets."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a JSON result")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on standard output; columns whose every cell is a number are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[i], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_cell(value) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a pipe has no width: do not fold a log's columns
    console.print(table)


def _cell(value: object) -> str:
    """A table cell: thousands separated, floats with two decimals, None as a dash, no markup."""
    from rich.markup import escape

    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return escape(str(value))


def note(message: str) -> None:
    """Print one line of commentary on standard error."""
    click.echo(message, err=True)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error and yield the function that advances it by n.

    On a terminal it is a bar; elsewhere a line now and then, so that logs stay short. Nothing is shown for work that
    ends within half a second.

    Args:
        description: what is being done, in lower case.
        total: number of steps, or None where it is not known.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda n: bar.advance(task, n)
        return

    started = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            note(f"{description}: {done}" + (f" of {total}" if total is not None else ""))

    yield advance
    if last != started:
        note(f"{description}: done in {time.monotonic() - started:.0f} s")


def human_bytes(count: int) -> str:
    """Bytes for people: 1,234 B, 12.1 KiB, 3.40 MiB. Use exact numbers in JSON."""
    if count < 10_000:
        return f"{count:,} B"
    if count < 10 * 1024**2:
        return f"{count / 1024:,.1f} KiB"
    return f"{count / 1024**2:,.2f} MiB"


class ByteSize(click.ParamType[int]):
    """An option type for sizes such as 65536, 64KiB or 1.5MB; the value is a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size; fails with the units it knows."""
        if isinstance(value, int):
            return value
        text = str(value).strip().lower().replace("_", "")
        digits = text.rstrip("kmgib ")
        unit = text[len(digits) :].strip()
        try:
            size = float(digits) * _UNITS[unit]
        except (ValueError, KeyError):
            self.fail(f"{value!r} is no size; write 65536, 64KiB or 1.5MB", param, ctx)
        if size < 0 or size != size or size > 2**63:
            self.fail(f"{value!r} is out of range", param, ctx)
        return int(size)
