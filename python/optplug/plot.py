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
        print(f"matplotlib is missing: {sys.executable} -m pip install matplotlib", file=sys.stderr)
        return 1
    source = pathlib.Path(table)
    try:
        with source.open(newline="") as file:
            header, *rows = csv.reader(file)
        x, first, *others = zip(*(map(float, row) for row in rows), strict=True)
        columns = dict(zip(header[1:], (first, *others), strict=True))
    except (OSError, ValueError) as error:
        print(f"{table} is no table of numbers below a header line: {error}", file=sys.stderr)
        return 1

    target = pathlib.Path(picture) if picture else source.with_suffix(".png")
    figure = Figure(figsize=(7, 2.6 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
    for panel, (name, values) in zip(panels, columns.items(), strict=True):
        panel.plot(x, values, marker="o", markersize=3)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(header[0])
    try:
        figure.savefig(target, dpi=150)
    except (OSError, ValueError) as error:
        print(f"{target} cannot be written: {error}", file=sys.stderr)
        return 1
    print(target.resolve())
    return 0
