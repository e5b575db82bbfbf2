"""The command line: ``python -m optplug config | doctor | plot``."""

from __future__ import annotations

import argparse
import shlex
import sys

import optplug
from optplug import doctor, plot


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m optplug",
        description="PyTorch's optimizers for programs that are not PyTorch programs.",
    )
    parser.add_argument("--version", action="version", version=f"optplug {optplug.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    config = commands.add_parser(
        "config",
        help="print paths and flags for a build",
        description="Print what a build needs, a line for each option given.  A one-line build of main.c: "
        "cc main.c $(python -m optplug config --cflags --libs)",
    )
    config.add_argument("--cflags", action="store_true", help="flags for the compiler")
    config.add_argument("--libs", action="store_true", help="flags for the linker, run path included")
    config.add_argument("--includedir", action="store_true", help="the folder of optplug.h")
    config.add_argument("--libdir", action="store_true", help="the folder of the shared library")
    config.add_argument("--library", action="store_true", help="the shared library itself")
    config.add_argument("--cmakedir", action="store_true", help="the folder of optplug-config.cmake")
    config.add_argument("--pkgconfigdir", action="store_true", help="the folder of optplug.pc")
    config.add_argument("--fortran", action="store_true", help="the folder of the Fortran module's source")
    config.add_argument("--matlab", action="store_true", help="the folder for MATLAB's path")
    config.add_argument("--octave", action="store_true", help="the folder for Octave's path, the same")
    config.set_defaults(run=_config, parser=config)

    check = commands.add_parser(
        "doctor",
        help="say what a host program would get, and mend what is wrong",
        description="Start optplug as a C program would, say which Python, libpython, torch, devices and "
        "library it gets, and for each thing that is wrong what to do.  Exit status 1 if anything is.",
    )
    check.set_defaults(run=lambda _: doctor.main())

    draw = commands.add_parser(
        "plot",
        help="draw a table of numbers, a loss curve for example",
        description="Draw the columns of a CSV file with a header line against its first, into a PNG.  "
        "Needs matplotlib, which the extra optplug[plot] brings.",
    )
    draw.add_argument("table", metavar="TABLE.csv")
    draw.add_argument("picture", metavar="PICTURE.png", nargs="?", help="default: beside the table")
    draw.set_defaults(run=lambda given: plot.main(given.table, given.picture))
    return parser


def _config(given: argparse.Namespace) -> int:
    flags = {
        "cflags": f"-I{shlex.quote(optplug.includedir())}",
        "libs": "-L{0} -loptplug -Wl,-rpath,{0}".format(shlex.quote(optplug.libdir())),
        "includedir": optplug.includedir(),
        "libdir": optplug.libdir(),
        "library": optplug.library(),
        "cmakedir": f"{optplug.libdir()}/cmake/optplug",
        "pkgconfigdir": f"{optplug.libdir()}/pkgconfig",
        "fortran": optplug.fortrandir(),
        "matlab": optplug.matlabdir(),
        "octave": optplug.matlabdir(),
    }
    wanted = [value for name, value in flags.items() if getattr(given, name)]
    if not wanted:
        given.parser.error(f"name what to print: {', '.join('--' + name for name in flags)}")
    print("\n".join(wanted))
    return 0


def main() -> int:
    """Run the command that the command line names, and return its exit status."""
    given = _parser().parse_args()
    return given.run(given)


if __name__ == "__main__":
    sys.exit(main())
