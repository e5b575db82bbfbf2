"""Build the examples as a user does, run them, and draw what they have found.

python examples/pictures.py [--only NAME ...] [--folder docs/examples]

Needs optplug[plot], and for each example what its language needs: a C, C++ or Fortran compiler, Eigen,
Octave, MPI.  Prints what the examples print.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import heat_inverse_plot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optplug

HERE = pathlib.Path(__file__).resolve().parent
LIB = optplug.libdir()
LIBS = [f"-L{LIB}", "-loptplug", f"-Wl,-rpath,{LIB}", "-lm", "-lpthread"]
EIGEN = "/usr/include/eigen3"
Table = dict[str, list[float]]


def read(path: pathlib.Path) -> Table:
    """Read a CSV file by columns; an empty cell is nan."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]}


def build(*sources: str, over_mpi: bool = False) -> list[str]:
    """Compile an example into the current folder and return the command that runs it."""
    compilers = {
        ".c": [os.environ.get("CC", "cc"), "-std=c99"],
        ".cpp": [os.environ.get("CXX", "c++"), "-std=c++17", f"-I{EIGEN}"],
        ".f90": [os.environ.get("FC", "gfortran"), f"{optplug.fortrandir()}/optplug.f90"],
    }
    if over_mpi:
        compilers[".c"][0], compilers[".f90"][0] = "mpicc", "mpifort"
        compilers[".f90"].append(f"{optplug.includedir()}/optplug_mpi.f90")
    compiler = compilers[pathlib.Path(sources[-1]).suffix]
    program = str(pathlib.Path(sources[-1]).with_suffix("").resolve().name)
    files = [str(HERE / source) for source in sources]
    include = f"-I{optplug.includedir()}"
    subprocess.run([*compiler, "-O2", include, *files, "-o", program, *LIBS], check=True)
    return [f"./{program}"]


def octave(source: str) -> list[str]:
    """Build the MEX file and return the command that runs a script."""
    program = os.environ.get("OPTPLUG_TEST_OCTAVE", "octave-cli")
    command = [
        program,
        "--norc",
        "--no-gui",
        "--no-history",
        "--path",
        f"{optplug.matlabdir()}:{pathlib.Path.cwd()}",
    ]
    subprocess.run([*command, "--eval", f"optplug.build('{pathlib.Path.cwd()}')"], check=True)
    return [*command, str(HERE / source)]


def run(command: list[str], *arguments: str) -> None:
    """Run an example."""
    subprocess.run([*command, *arguments], check=True)


def panels(columns: int, width: float = 9, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def control() -> Figure:
    """Draw the pendulum's way up, and the loss over Adam's and LBFGS's evaluations."""
    run(build("control.cpp"), "torque.csv", "losses.csv")
    way, losses = read(pathlib.Path("torque.csv")), read(pathlib.Path("losses.csv"))
    figure, (left, right) = panels(2)
    left.plot(way["time"], way["angle"], label="angle (radians)")
    left.plot(way["time"], way["torque"], label="torque (m g l)")
    left.axhline(math.pi, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="time (square root of l / g)", title="a pendulum swings up")
    left.legend()
    for name in ("Adam", "LBFGS"):
        right.semilogy(losses["evaluation"], losses[name], label=name)
    right.set(xlabel="evaluations of the loss", title="loss")
    right.legend()
    return figure


def map_of_places() -> Figure:
    """Draw the true map and the one from distances, turned onto it."""
    run(build("map.c"), "map.csv")
    table = read(pathlib.Path("map.csv"))
    truth = [complex(*p) for p in zip(table["true x"], table["true y"], strict=True)]
    found = [complex(*p) for p in zip(table["x"], table["y"], strict=True)]
    middle, centre = sum(truth) / len(truth), sum(found) / len(found)
    turns = []
    for mirror in (lambda z: z, lambda z: z.conjugate()):
        overlap = sum(
            (t - middle) * mirror(z - centre).conjugate() for t, z in zip(truth, found, strict=True)
        )
        turns.append((abs(overlap), [middle + overlap / abs(overlap) * mirror(z - centre) for z in found]))
    turned = max(turns, key=lambda pair: pair[0])[1]
    figure, places = panels(2, 7.5, 3.8)
    colours = [t.real + 0.3 * t.imag for t in truth]
    for panel, title, points in zip(places, ("truth", "from distances"), (truth, turned), strict=True):
        panel.scatter([z.real for z in points], [z.imag for z in points], c=colours, s=12)
        panel.set(xlabel="x", title=title, aspect="equal")
    places[0].set_ylabel("y")
    return figure


def recurrent() -> Figure:
    """Draw the loss with float32 copies of the weights and without."""
    run(build("recurrent.c"), "losses.csv")
    table = read(pathlib.Path("losses.csv"))
    figure, (panel,) = panels(1, 6)
    for name in ("without", "with float32 copies"):
        panel.semilogy(table["step"], table[name], label=name)
    panel.set(xlabel="step", title="loss for a letter, weights in bfloat16")
    panel.legend()
    return figure


def ensemble() -> Figure:
    """Draw the mean of the members, and where they disagree."""
    run(build("ensemble.c"), "bands.csv")
    table = read(pathlib.Path("bands.csv"))
    curve = [i for i, deviation in enumerate(table["deviation"]) if deviation == deviation]
    x, mean, deviation, truth = ([table[k][i] for i in curve] for k in ("x", "mean", "deviation", "truth"))
    figure, (panel,) = panels(1, 7)
    low, high = ([m + sign * 2 * d for m, d in zip(mean, deviation, strict=True)] for sign in (-1, 1))
    panel.fill_between(x, low, high, alpha=0.25, label="two deviations of the ensemble")
    panel.plot(x, mean, label="its mean")
    panel.plot(x, truth, color="grey", linestyle=":", label="truth")
    panel.plot(table["x"][len(curve) :], table["mean"][len(curve) :], "k.", label="measured")
    panel.set(xlabel="x", ylabel="y", ylim=(-3, 3), title="40 networks, each with its own optimizer")
    panel.legend(fontsize="small")
    return figure


def spectrum() -> Figure:
    """Draw the measured spectrum, the start and the fit."""
    run(octave("spectrum.m"), "spectrum.csv")
    table = read(pathlib.Path("spectrum.csv"))
    figure, (panel,) = panels(1, 7)
    panel.plot(table["x"], table["measured"], ".", markersize=3, color="grey", label="measured")
    panel.plot(table["x"], table["start"], linestyle="--", label="start")
    panel.plot(table["x"], table["fit"], label="fit")
    panel.set(xlabel="position", ylabel="intensity", title="three peaks on a slope")
    panel.legend()
    return figure


def digits() -> Figure:
    """Draw the loss and the accuracy of the network that reads digits."""
    run(build("digits.c"), "AdamW(lr=2e-3)", str(HERE / "data/digits.csv"), "losses.csv")
    table = read(pathlib.Path("losses.csv"))
    figure, (left, right) = panels(2)
    left.semilogy(table["epoch"], table["training loss"])
    left.set(xlabel="epoch", title="training loss")
    right.plot(table["epoch"], table["test accuracy in %"])
    right.set(xlabel="epoch", title="test images that are read right, in %")
    return figure


def digits_ranks(most: int = 4) -> Figure:
    """Draw the same loss on one rank and more, and how far apart rounding errors bring them."""
    command = build("digits_ranks.c", over_mpi=True)
    figure, (left, right) = panels(2)
    first: list[float] = []
    for ranks, style in enumerate(("-", "--", "-.", ":")[:most], 1):
        run(
            ["mpiexec", "-n", str(ranks), *command],
            "AdamW(lr=2e-3)",
            str(HERE / "data/digits.csv"),
            "losses.csv",
        )
        table = read(pathlib.Path("losses.csv"))
        losses = table["training loss"]
        left.semilogy(table["epoch"], losses, style, label="1 rank" if ranks == 1 else f"{ranks} ranks")
        if ranks > 1:
            apart = [abs(a / b - 1) for a, b in zip(losses, first, strict=True)]
            right.semilogy(table["epoch"], apart, style, color=f"C{ranks - 1}")
        first = first or losses
    left.set(xlabel="epoch", title="training loss")
    left.legend()
    right.set(xlabel="epoch", title="relative difference to 1 rank")
    return figure


def heat_inverse() -> Figure:
    """Draw the conductivity, true and recovered, and their difference."""
    run(build("heat.f90", "heat_misfit.f90", "heat_inverse.f90"), str(HERE / "heat_inverse.nml"))
    return heat_inverse_plot.draw(pathlib.Path("heat_inverse.csv"))


def heat_inverse_ranks(ranks: int = 4, steps: tuple[str, ...] = ()) -> Figure:
    """Draw the conductivity, true and as ranks have recovered it, and the loss."""
    command = build("heat.f90", "heat_misfit.f90", "heat_ranks.f90", "heat_inverse_ranks.f90", over_mpi=True)
    run(["mpiexec", "-n", str(ranks), *command], "field.csv", "losses.csv", "", *steps)
    table, losses = read(pathlib.Path("field.csv")), read(pathlib.Path("losses.csv"))
    n = round(len(table["x"]) ** 0.5)
    figure, (left, middle, right) = panels(3, 10.5)
    for panel, name in ((left, "truth"), (middle, "recovered")):
        rows = [table[name][j * n : (j + 1) * n] for j in range(n)]
        image = panel.imshow(rows, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r", vmin=-1.4, vmax=1.4)
        panel.set(xlabel="x", title=name)
    whose = table["rank"][::n]
    for j in range(1, n):
        if whose[j] != whose[j - 1]:
            middle.axhline(j / n, color="black", linewidth=0.8, linestyle=":")
    left.set_ylabel("y")
    middle.set_title(f"recovered, a strip on each of {ranks} ranks")
    figure.colorbar(image, ax=middle, label="logarithm of the conductivity")
    for name in ("Adam", "LBFGS"):
        right.plot(losses["evaluation"], losses[name], label=name)
    right.set(xlabel="evaluations of the loss", title="loss", ylim=(1, 3))
    right.legend()
    return figure


def neural_fortran() -> Figure:
    """Draw the losses of a network of neural-fortran's by three optimizers, and the curve it learns."""
    program = build("nf.f90", "torch_optimizers.f90", "neural_fortran.f90")
    figure, (left, right) = panels(2)
    for spec in ("SGD(lr=3, momentum=0.9)", "Adam(lr=0.01)", "RAdam(lr=0.03)"):
        run(program, spec, "losses.csv", "curve.csv")
        losses, curve = read(pathlib.Path("losses.csv")), read(pathlib.Path("curve.csv"))
        left.semilogy(losses["epoch"], losses["loss"], label=spec)
        right.plot(curve["x"], curve["found"])
    right.plot(curve["x"], curve["y"], "k:", label="to be learnt")
    left.set(xlabel="epoch", title="loss")
    left.legend(fontsize="small")
    right.set(xlabel="x", ylabel="y", title="the curve")
    right.legend()
    return figure


EXAMPLES: dict[str, Callable[[], Figure]] = {
    "digits": digits,
    "digits_ranks": digits_ranks,
    "heat_inverse": heat_inverse,
    "heat_inverse_ranks": heat_inverse_ranks,
    "control": control,
    "map": map_of_places,
    "recurrent": recurrent,
    "spectrum": spectrum,
    "ensemble": ensemble,
    "neural_fortran": neural_fortran,
}


def main() -> None:
    """Draw the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=sorted(EXAMPLES),
        default=list(EXAMPLES),
        help="some of them (default: all)",
    )
    parser.add_argument("--folder", type=pathlib.Path, default=HERE.parent / "docs" / "examples")
    given = parser.parse_args()
    folder = given.folder.resolve()
    for name in given.only:
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            figure = EXAMPLES[name]()
            os.chdir(HERE)
        figure.savefig(folder / f"{name}.png", dpi=120)
        print(folder / f"{name}.png", flush=True)


if __name__ == "__main__":
    sys.exit(main())
