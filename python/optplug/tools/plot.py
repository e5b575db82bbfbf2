"""Draw numbers, such as the loss of each epoch, into a PNG.  Needs the extra ``[plot]``."""

from __future__ import annotations

import csv
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

Numbers = Sequence[float]


def draw_table(table: str, picture: str | None = None) -> pathlib.Path:
    """Draw each column of a CSV file against its first, one panel below the other; return the picture.

    Raises:
        ImportError: there is no matplotlib.
        ValueError: it is no such file, or the picture cannot be written.
    """
    source = pathlib.Path(table)
    try:
        with source.open(newline="") as file:
            header, *rows = csv.reader(file)
        x, first, *others = zip(*(map(float, row) for row in rows), strict=True)
        columns = dict(zip(header[1:], (first, *others), strict=True))
    except OSError as error:
        raise ValueError(f"{table}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{table} is not a table of numbers below a header line: {error}") from error
    target = picture or source.with_suffix(".png")
    return draw(target, header[0], {name: {name: (x, values)} for name, values in columns.items()})


def draw(
    picture: str | pathlib.Path,
    x_label: str,
    panels: Mapping[str, Mapping[str, tuple[Numbers, Numbers]]],
    logarithmic: bool = False,
) -> pathlib.Path:
    """Draw panels, one below the other; return the picture.

    Args:
        picture: the file to write.
        x_label: what is below the last panel.
        panels: by the label beside them, their curves by name: x and y.
        logarithmic: both axes.

    Raises:
        ImportError: there is no matplotlib.
        ValueError: the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            f"matplotlib is missing: {shlex.quote(sys.executable)} -m pip install matplotlib"
        ) from None
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, (label, curves) in zip(axes, panels.items(), strict=True):
        for name, (x, y) in curves.items():
            panel.plot(x, y, marker="o", markersize=3, label=name)
        if len(curves) > 1:
            panel.legend()
        if logarithmic:
            panel.loglog()
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    axes[-1].set_xlabel(x_label)
    target = pathlib.Path(picture)
    try:
        figure.savefig(target, dpi=150)
    except (OSError, ValueError) as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    return target.resolve()
