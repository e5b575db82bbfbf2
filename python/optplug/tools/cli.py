"""The command line, ``optplug`` or ``python -m optplug``.  A command imports what it needs when it runs."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import optplug
from optplug.tools import new, report

_FLAGS = "python -m optplug config --cflags --libs"
_EVAL = f"eval cc main.c $({_FLAGS})"
_IMPORTING = "importing PyTorch"
_EPILOG = "Exit status: 0 if all went well, 1 if not, 2 for a command line that cannot be understood."


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
        f"cc main.c $({_FLAGS}).  Where optplug's path has blanks: {_EVAL}",
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

    maker = _command(
        commands,
        "new",
        _new,
        help="write a project that builds and runs, to begin with",
        description="Write a program that fits a curve to points, and what builds it, into a new folder, and "
        "say how to run it.  The program gets the folder's name.",
        example="new fortran heat",
    )
    maker.add_argument("language", choices=new.LANGUAGES, help="what it is written in")
    maker.add_argument("folder", metavar="DIR", help="a new folder, or an empty one")

    check = _command(
        commands,
        "doctor",
        _doctor,
        help="say what a host program would get, and mend what is wrong",
        description="Start optplug as a C program would, say which Python, libpython, torch, devices and "
        "library it gets, and for each thing that is wrong, or may become so, what to do.",
        example="doctor --json",
    )
    _add_json(check)

    lister = _command(
        commands,
        "list",
        _list,
        help="list optimizers, schedulers, dtypes or devices",
        description="List what PyTorch has here: for optimizers and schedulers by which functions a program "
        "steps them, and how the optimizers' steps run; or the optimizers of a package, which is imported.",
        example="list pytorch_optimizer",
    )
    kinds = "optimizers, schedulers, dtypes, devices, or a package; default: the first two"
    lister.add_argument("kind", nargs="?", help=kinds)
    _add_json(lister)

    describer = _command(
        commands,
        "describe",
        _describe,
        help="say which arguments an optimizer or a scheduler takes",
        description="Show the arguments of an optimizer or a scheduler with their defaults, in PyTorch's "
        "words, a spec as an example, and the address of PyTorch's page on it; of a class outside PyTorch, "
        "pytorch_optimizer:Lion, also what it needs.",
        example="describe Adam",
    )
    describer.add_argument("name", metavar="NAME")
    _add_json(describer)

    inspector = _command(
        commands,
        "inspect",
        _inspect,
        help="say what is in a checkpoint",
        description="Show what is in a file of opt_save's or of PyTorch's: optimizer, groups, parameters, "
        "state, schedulers, averages.  No code is run, whatever is in the file.",
        example="inspect run.pt",
    )
    inspector.add_argument("file", metavar="FILE")
    _add_json(inspector)

    timer = _command(
        commands,
        "bench",
        _bench,
        help="measure steps on this machine",
        description="Measure opt_step from a C program beside PyTorch's step, its default and fused=True, on "
        "one array of float32: the median of several rounds, in turn.  As it is, that takes less than a "
        "minute.",
        example='bench "Adam(amsgrad=True)" --sizes 1000,1e6 --threads 1',
    )
    timer.add_argument("spec", metavar="SPEC", nargs="*", help="default: two of PyTorch's")
    timer.add_argument("--sizes", type=_sizes, metavar="N,N", help="how many values (default: 10 to 1e6)")
    timer.add_argument("--threads", type=int, metavar="N", help="num_threads (default: what a program gets)")
    timer.add_argument("--options", default="", metavar="TEXT", help="for opt_init: \"sqrt='processor'\"")
    timer.add_argument("--plot", metavar="PICTURE.png", help="draw it too (needs optplug[plot])")
    _add_json(timer)

    draw = _command(
        commands,
        "plot",
        _plot,
        help="draw a table of numbers, a loss curve for example",
        description="Draw the columns of a CSV file with a header line against its first, into a PNG.  "
        "Needs matplotlib, which the extra optplug[plot] brings.",
        example="plot losses.csv",
    )
    draw.add_argument("table", metavar="TABLE.csv")
    draw.add_argument("picture", metavar="PICTURE.png", nargs="?", help="default: beside the table")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], example: str, **words: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, epilog=f"Example: python -m optplug {example}.  {_EPILOG}", **words)
    parser.set_defaults(run=run)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts")


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(float(word)) for word in text.split(",")]
    except (OverflowError, ValueError):
        sizes = [0]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1, such as 10,1e6")
    return sizes


def _config(given: argparse.Namespace) -> int:
    include, lib = _escaped(optplug.includedir()), _escaped(optplug.libdir())
    flags = {
        "cflags": f"-I{include}",
        "libs": f"-L{lib} -loptplug -Wl,-rpath,{lib}",
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
    if (given.cflags or given.libs) and "\\" in include + lib:
        print(f"the path has blanks or the like: in a shell, write {_EVAL}", file=sys.stderr)
    return 0


def _escaped(path: str) -> str:
    """Return a path as the shell reads it in a command: after eval, or in a Makefile's rule."""
    return re.sub(r"([^\w%+,./:=@^-])", r"\\\1", path)


def _new(given: argparse.Namespace) -> int:
    print(new.make(given.language, given.folder))
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from optplug.tools import doctor

    return doctor.main(given.json)


def _list(given: argparse.Namespace) -> int:
    with report.progress(_IMPORTING) as told:
        from optplug.tools import catalog

        found = catalog.lists(given.kind, told)
    report.show(found, given.json)
    return 0


def _describe(given: argparse.Namespace) -> int:
    with report.progress(_IMPORTING):
        from optplug.tools import catalog

        found = catalog.describe(given.name)
    report.show(found, given.json)
    return 0


def _inspect(given: argparse.Namespace) -> int:
    with report.progress(_IMPORTING) as told:
        from optplug.tools import inspection

        found = inspection.read(given.file, told)
    report.show(found, given.json)
    return 0


def _bench(given: argparse.Namespace) -> int:
    with report.progress(_IMPORTING) as told:
        from optplug.tools import bench, plot

        specs, sizes = given.spec or list(bench.SPECS), given.sizes or list(bench.SIZES)
        threads = "" if given.threads is None else f", num_threads={given.threads}"
        found = bench.run(specs, sizes, given.options + threads, told)
        if given.plot:
            told("drawing", 0, 0)
            found["picture"] = plot.draw(given.plot, "values", bench.curves(found), logarithmic=True)
    report.show(found, given.json)
    return 0


def _plot(given: argparse.Namespace) -> int:
    from optplug.tools import plot

    print(plot.draw_table(given.table, given.picture))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the command line, or a list like it, names; return its exit status."""
    try:
        try:
            given = _parser().parse_args(arguments)
            return given.run(given)
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        _forget_stdout()
    except (ImportError, OSError) as error:
        if isinstance(error, ImportError) or error.errno is None:  # what dlopen says has none
            print(f"{error}: `{sys.executable} -m optplug doctor` says what to do", file=sys.stderr)
        else:
            print(error, file=sys.stderr)
            _forget_stdout()
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 1


def _forget_stdout() -> None:
    """Let Python's end find a stdout that takes what is left in it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
