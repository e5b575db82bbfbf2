"""Print what a command has found: for people in a terminal, for scripts by tabs, or as JSON."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, object]


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


def progress(text: str) -> None:
    """Say on stderr, if that is a terminal, what is being done; "" takes it away."""
    if sys.stderr and sys.stderr.isatty():
        print(f"\r\N{ESC}[K{text}", end="", file=sys.stderr, flush=True)


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
