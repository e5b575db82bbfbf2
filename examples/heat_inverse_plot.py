"""Draw the field that heat_inverse has written: the truth, what was recovered, and how they differ.

python heat_inverse_plot.py heat_inverse.csv [heat_inverse.png]
"""

from __future__ import annotations

import csv
import pathlib
import sys

from matplotlib.figure import Figure


def draw(table: pathlib.Path) -> Figure:
    """Return the picture of a table."""
    with table.open(newline="") as file:
        rows = [[float(row[key]) for key in ("truth", "recovered")] for row in csv.DictReader(file)]
    n = round(len(rows) ** 0.5)
    truth, recovered = ([[row[k] for row in rows[j * n : (j + 1) * n]] for j in range(n)] for k in (0, 1))
    error = [[b - a for a, b in zip(*lines, strict=True)] for lines in zip(truth, recovered, strict=True)]

    figure = Figure(figsize=(9, 3.1), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, name, field in zip(
        panels, ("truth", "recovered", "recovered - truth"), (truth, recovered, error), strict=True
    ):
        image = panel.imshow(field, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r", vmin=-1.4, vmax=1.4)
        panel.set_title(name)
        panel.set_xlabel("x")
    panels[0].set_ylabel("y")
    figure.colorbar(image, ax=panels, label="logarithm of the conductivity")
    return figure


if __name__ == "__main__":
    table = pathlib.Path(sys.argv[1])
    picture = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else table.with_suffix(".png")
    draw(table).savefig(picture, dpi=150)
    print(picture.resolve())
