"""Draw a table of numbers, such as the loss of each epoch, into a PNG.  Needs the extra ``[plot]``."""

from __future__ import annotations

import csv
import pathlib
import sys


def main(table: str, picture: str | None = None) -> int:
    """Draw each column of a CSV file against its first, one panel below the other."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is missing: {sys.executable} -m pip install 'optplug[plot]'", file=sys.stderr)
        return 1
    source = pathlib.Path(table)
    try:
        with source.open(newline="") as file:
            header, *rows = csv.reader(file)
        x, *columns = zip(*(map(float, row) for row in rows), strict=True)
    except (OSError, ValueError) as error:
        print(f"{table} is no table of numbers below a header line: {error}", file=sys.stderr)
        return 1

    target = pathlib.Path(picture) if picture else source.with_suffix(".png")
    figure = Figure(figsize=(7, 2.6 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
    for panel, name, values in zip(panels, header[1:], columns, strict=True):
        panel.plot(x, values, marker="o", markersize=3)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(header[0])
    figure.savefig(target, dpi=150)
    print(target.resolve())
    return 0
