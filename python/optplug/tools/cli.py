"""The command line, ``optplug`` or ``python -m optplug``.  A command imports what it needs when it runs."""

import argparse
import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import optplug
from optplug import surroundings
from optplug.tools import new, report

_FLAGS = "python -m optplug config --cflags --libs"
_EVAL = f"eval cc main.c $({_FLAGS})"
_EPILOG = "Exit status: 0 for success, 1 for failure, 2 for a wrong command line."


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
        f"cc main.c $({_FLAGS}).  If optplug's path contains spaces: {_EVAL}",
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
        help="write a starter project that builds and runs",
        description="Write a program that fits a curve to points, and its build file, into a new folder, and "
        "print how to run it.  The program gets the folder's name.",
        example="new fortran heat",
    )
    maker.add_argument("language", choices=new.LANGUAGES, help="the program's language")
    maker.add_argument("folder", metavar="DIR", help="a new folder, or an empty one")

    check = _command(
        commands,
        "doctor",
        _doctor,
        help="check what a C program would get, and say what to do if something is wrong",
        description="Start optplug as a C program would, and report which Python, libpython, torch, devices "
        "and library it gets, and what to do about anything that is wrong or may go wrong.",
        example="doctor --json",
    )
    _add_json(check)

    lister = _command(
        commands,
        "list",
        _list,
        help="list optimizers, schedulers, dtypes or devices",
        description="List what the installed PyTorch has: optimizers and schedulers with the functions that "
        "step them, and how the optimizers' steps run; or the optimizers of a package, which is imported.",
        example="list pytorch_optimizer",
    )
    kinds = "optimizers, schedulers, dtypes, devices, or a package; default: the first two"
    lister.add_argument("kind", nargs="?", help=kinds)
    _add_json(lister)

    describer = _command(
        commands,
        "describe",
        _describe,
        help="show the arguments of an optimizer or a scheduler",
        description="Show the arguments of an optimizer or a scheduler with their defaults, in PyTorch's "
        "words, an example spec, and the address of PyTorch's page on it; for a class outside PyTorch, such "
        "as pytorch_optimizer:Lion, also what it needs.",
        example="describe Adam",
    )
    describer.add_argument("name", metavar="NAME")
    _add_json(describer)

    inspector = _command(
        commands,
        "inspect",
        _inspect,
        help="show what a checkpoint contains",
        description="Show what a file written by opt_save or by PyTorch contains: optimizer, groups, "
        "parameters, state, schedulers, averages.  Runs no code, whatever the file contains.",
        example="inspect run.pt",
    )
    inspector.add_argument("file", metavar="FILE")
    _add_json(inspector)

    timer = _command(
        commands,
        "bench",
        _bench,
        help="time steps on this machine",
        description="Time opt_step from a C program against PyTorch's step, default and fused=True, on one "
        "float32 array: the median of several alternating rounds.  Takes less than a minute by default.",
        example='bench "Adam(amsgrad=True)" --sizes 1000,1e6 --threads 1',
    )
    timer.add_argument("spec", metavar="SPEC", nargs="*", help="default: two of PyTorch's")
    timer.add_argument("--sizes", type=_sizes, metavar="N,N", help="how many values (default: 10 to 1e6)")
    timer.add_argument("--threads", type=int, metavar="N", help="num_threads (default: what a program gets)")
    timer.add_argument("--options", default="", metavar="TEXT", help="for opt_init: \"sqrt='processor'\"")
    timer.add_argument("--plot", metavar="PICTURE.png", help="plot the times too (needs optplug[plot])")
    _add_json(timer)

    draw = _command(
        commands,
        "plot",
        _plot,
        help="plot a table of numbers, such as a loss curve",
        description="Plot the columns of a CSV file, which has a header line, against its first, as a PNG.  "
        "Needs matplotlib: install optplug[plot].",
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes of at least 1, such as 10,1e6")
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
        print(f"the path contains spaces or the like: in a shell, write {_EVAL}", file=sys.stderr)
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


@contextlib.contextmanager
def _torch() -> Iterator[report.Told]:
    """Import torch, and show the progress of a block that needs it."""
    with report.progress("importing PyTorch") as told:
        surroundings.load_torch()
        gc.freeze()  # an import makes no garbage, so the process's end need not look for any
        yield told


def _list(given: argparse.Namespace) -> int:
    with _torch() as told:
        from optplug.tools import catalog

        found = catalog.lists(given.kind, told)
    report.show(found, given.json)
    return 0


def _describe(given: argparse.Namespace) -> int:
    with _torch():
        from optplug.tools import catalog

        found = catalog.describe(given.name)
    report.show(found, given.json)
    return 0


def _inspect(given: argparse.Namespace) -> int:
    with _torch() as told:
        from optplug.tools import inspection

        found = inspection.read(given.file, told)
    report.show(found, given.json)
    return 0


def _bench(given: argparse.Namespace) -> int:
    with _torch() as told:
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
