"""docs/design.md shows the house as it is: each file with its job, above all that it uses."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

import hosts

DESIGN = (hosts.PROJECT / "docs/design.md").read_text()
#: The rows of its tables of files, from the ground up.
ROWS = re.findall(r"^\| `([\w./+-]+)` \|", DESIGN, re.M)
PACKAGE = "python/optplug/"
#: What people write, in any language that is compiled, run or generated from here.
SOURCES = (".c", ".h", ".hpp", ".cpp", ".py", ".pyi", ".f90", ".fypp", ".m", ".cmake", ".txt")
MOST_LINES = 490
#: One module, by its language's rules; what it is generated from; and the one header that MATLAB reads.
LONGER = {"include/optplug.h", "bindings/fortran/optplug.f90", "bindings/fortran/optplug.fypp"}


def c_units() -> set[str]:
    """Return the C files; a header that goes with one is part of it."""
    files = {str(path.relative_to(hosts.PROJECT)) for path in (hosts.PROJECT / "csrc").glob("*.[ch]")}
    return {f for f in files if f.endswith(".c") or f[:-1] + "c" not in files}


def python_files() -> set[str]:
    package = hosts.PROJECT / PACKAGE
    return {str(p.relative_to(hosts.PROJECT)) for p in package.rglob("*.py") if p.name != "__init__.py"}


def c_arrows() -> Iterator[tuple[str, str]]:
    units = c_units()
    for unit in units:
        for name in (unit, unit[:-1] + "h"):
            path = hosts.PROJECT / name
            text = path.read_text() if path.exists() else ""
            for header in re.findall(r'^#include "([\w.]+)"', text, re.M):
                used = next((u for u in units if u[:-1] == f"csrc/{header}"[:-1]), None)
                if used and used != unit:
                    yield unit, used


def python_arrows() -> Iterator[tuple[str, str]]:
    """Yield what imports what, imports within functions and for type checkers included."""
    files = python_files()

    def file_of(module: str) -> str | None:
        path = "python/" + module.replace(".", "/") + ".py"
        return path if path in files else None

    for file in files:
        for node in ast.walk(ast.parse((hosts.PROJECT / file).read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are written out, from the package's name"
                modules = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
            for used in {file_of(module) for module in modules} - {None, file}:
                yield file, used


def test_every_file_has_a_row_and_every_row_is_a_file():
    assert len(ROWS) == len(set(ROWS))
    missing = (c_units() | python_files()) - set(ROWS)
    assert not missing, f"docs/design.md gives no job to {sorted(missing)}"
    gone = [row for row in ROWS if not (hosts.PROJECT / row).exists()]
    assert not gone, f"docs/design.md names what is not there: {gone}"


def test_every_arrow_runs_up_the_page():
    """No two files use each other, not even by way of others."""
    place = {row: i for i, row in enumerate(ROWS)}
    arrows = {*c_arrows(), *python_arrows()}
    assert len(arrows) > 150
    wrong = sorted(f"{user} uses {used}" for user, used in arrows if place[used] > place[user])
    assert not wrong, "docs/design.md lists what is used first: " + "; ".join(wrong)


def test_every_arrow_that_the_picture_draws_is_there():
    names = {row.rpartition("/")[2].rpartition(".")[0] or row: row for row in ROWS}
    arrows = {*c_arrows(), *python_arrows()}
    drawn = []
    for line in DESIGN.splitlines():
        if " → " not in line:
            continue
        groups = [re.findall(r"`([\w.]+)`", part) for part in line.split(" → ")]
        for users, useds in itertools.pairwise(groups):
            drawn += [(names[user], names[used]) for user in users for used in useds]
    assert len(drawn) > 20
    wrong = [f"{user} → {used}" for user, used in drawn if (user, used) not in arrows]
    assert not wrong, f"docs/design.md draws what no file includes or imports: {wrong}"


def test_no_file_is_too_long_to_be_read_at_once():
    folders = ("csrc", "include", "python", "bindings", "tests", "benchmarks", "examples", "docs", "cmake")
    lengths = {}
    for folder in folders:
        for path in (hosts.PROJECT / folder).rglob("*"):
            if path.suffix in SOURCES and "__pycache__" not in path.parts:
                lengths[str(path.relative_to(hosts.PROJECT))] = len(path.read_text().splitlines())
    assert len(lengths) > 200
    long = {name: n for name, n in lengths.items() if n > MOST_LINES and name not in LONGER}
    assert not long, f"split by job what has more than {MOST_LINES} lines: {long}"
