"""Print what a command has found: for people in a terminal, for scripts by tabs, or as JSON."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, object]
#: Takes what is being done, and how much of how much is done; 0 of 0 where that is unknown.
Told = Callable[[str, int, int], None]


def show(content: Mapping[str, Any], as_json: bool = False) -> None:
    """Print single values as ``name: value``, and lists of rows as tables below their names.

    In a terminal a table has aligned columns, drawn by rich where that is installed (the extra ``[cli]``);
    elsewhere it is a header and a line for each row, with tabs between.
    """
    if as_json:
        print(json.dumps(content, indent=2, default=_plain))
        return
    facts = {
        name: value for name, value in content.items() if value not in (None, "") and not _is_table(value)
    }
    width = max(map(len, facts), default=0) + 1
    for name, value in facts.items():
        print(f"{name + ':':{width}} {_cell(value)}")
    for name, rows in content.items():
        if not _is_table(rows) or not rows:
            continue
        if len(content) > 1:
            print(f"\n{name}")
        _table(rows)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Told]:
    """Show what is being done, for a block, on stderr if that is a terminal: a bar, by rich if it is there.

    It is drawn only when the block tells something, so it takes no time from what a command measures, and
    is gone after the block, however that ends.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield silent
    elif importlib.util.find_spec("rich"):
        with _bar(text) as told:
            yield _seldom(told)
    else:
        try:
            _line(text, 0, 0)
            yield _seldom(_line)
        finally:
            _line("", 0, 0)


def silent(text: str, done: int, total: int) -> None:
    """Show nothing."""


def _seldom(told: Told) -> Told:
    """Leave out what comes within a twentieth of a second: files are checked in thousands of pieces."""
    last = 0.0

    def some(text: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.05:
            last = now
            told(text, done, total)

    return some


def _line(text: str, done: int, total: int) -> None:
    part = f"{100 * done // total:3} % " if total else ""
    print(f"\r\N{ESC}[K{part}{text}", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(text: str) -> Iterator[Told]:
    from rich import console, markup, progress

    columns = "{task.description}", progress.BarColumn(), progress.TaskProgressColumn()
    output = console.Console(stderr=True)
    bar = progress.Progress(
        *columns,
        console=output,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(markup.escape(text), total=None)
        bar.refresh()

        def told(text: str, done: int, total: int) -> None:
            bar.update(task, description=markup.escape(text), completed=done, total=total or None)
            bar.refresh()

        yield told


def _is_table(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Row]) -> None:
    names, lines = list(rows[0]), [[_cell(value) for value in row.values()] for row in rows]
    are_numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in rows[0].values()]
    if not (sys.stdout and sys.stdout.isatty()):
        for line in (names, *lines):
            print("\t".join(line))
    elif importlib.util.find_spec("rich"):
        _draw(names, lines, are_numbers)
    else:
        _align(names, lines, are_numbers)


def _draw(names: list[str], lines: list[list[str]], are_numbers: list[bool]) -> None:
    from rich import box, console, markup, table

    drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_number in zip(names, are_numbers, strict=True):
        drawn.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for line in lines:
        drawn.add_row(*map(markup.escape, line))
    console.Console().print(drawn)


def _align(names: list[str], lines: list[list[str]], are_numbers: list[bool]) -> None:
    """Print columns below their names; what is too long for the terminal goes on below, in the last one."""
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    room = max(shutil.get_terminal_size().columns - before, 20)
    for *cells, last in (names, *lines):
        parts = textwrap.wrap(last, room) or [""]
        start = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(cells, widths, are_numbers, strict=False)
        ]
        if are_numbers[-1]:
            parts[0] = parts[0].rjust(widths[-1])
        print("  ".join([*start, parts[0]]).rstrip())
        for part in parts[1:]:
            print(" " * before + part)


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return printable(", ".join(f"{name}={item!r}" for name, item in value.items()))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else printable(" ".join(str(value).split()))


def printable(text: str) -> str:
    """Return text with what a terminal would obey, or a row of text could not hold, escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _plain(value: Any) -> object:
    """Return what JSON can hold of something that it cannot: numbers of a tensor, say."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
