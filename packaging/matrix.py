"""Test optplug with each PyTorch and Python, and write docs/versions.md.

    python packaging/matrix.py [--torch 2.14.1] [--python 3.11] [--tests REGEX] [--folder DIR]

Each pair gets a workplace of its own below DIR, build/matrix if it is not given, with a PyTorch of up to
5 GB; the tests are those whose names match, all by default.  What cannot be had is skipped, and the page
says why.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs/versions.md"
#: PyTorch and Python: the oldest and the newest of both, each PyTorch once, and each Python's newest.
PAIRS = [
    ("2.11.0", "3.10"),
    ("2.12.1", "3.13"),
    ("2.13.0", "3.11"),
    ("2.14.1", "3.10"),
    ("2.14.1", "3.11"),
    ("2.14.1", "3.12"),
    ("2.14.1", "3.13"),
    ("2.14.1", "3.14"),
    ("2.15.0", "3.12"),
    ("2.15.0", "3.13"),
    ("2.15.0", "3.14"),
]
HEAD = "| PyTorch | Python | on | when | tests | result |\n|---|---|---|---|---|---|\n"


def python(version: str) -> str | None:
    """Return an interpreter of that version."""
    pyenv = sorted(pathlib.Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}"))
    return str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")


def run(torch: str, version: str, tests: str, folder: pathlib.Path) -> str:
    """Test one pair, and return its row."""
    interpreter = python(version)
    if not interpreter:
        return row(torch, version, tests, f"skipped: no Python {version} here")
    build, junit = folder / f"{torch}-{version}", folder / f"{torch}-{version}.xml"
    configure = ["cmake", "--preset", "default", "-B", build, f"-DOPTPLUG_TORCH={torch}"]
    print(f"PyTorch {torch}, Python {version}: making {build}, which takes some minutes", file=sys.stderr)
    for command in ([*configure, f"-DPython_EXECUTABLE={interpreter}"], ["cmake", "--build", build]):
        done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
        if done.returncode:
            return row(torch, version, tests, f"skipped: {reason(done.stdout + done.stderr)}")
    junit.unlink(missing_ok=True)
    subprocess.run(
        ["ctest", "--test-dir", build, "-R", tests, "-j4", "--output-junit", junit, "--output-on-failure"],  # noqa: S607
        check=False,
    )
    if not junit.exists():
        return row(torch, version, tests, "stopped before the end")
    suite = ElementTree.parse(junit).getroot()  # noqa: S314 - ctest's own
    failed = [case.get("name", "") for case in suite.iter("testcase") if case.find("failure") is not None]
    skipped = int(suite.get("skipped", "0")) + int(suite.get("disabled", "0"))
    passed = int(suite.get("tests", "0")) - len(failed) - skipped
    result = f"{passed} passed" + (f", {skipped} skipped" if skipped else "")
    return row(torch, version, tests, result + (f", failed: {', '.join(failed)}" if failed else ""))


def reason(said: str) -> str:
    """Return the line that tells why a workplace could not be made, first a cap in pip's own settings."""
    for sign in (r"The user requested \(constraint\).*", r".*[Ee]rror.*"):
        if found := re.findall(sign, said):
            return found[-1].strip()[:200].replace("|", "\\|")
    return "?"


def row(torch: str, version: str, tests: str, result: str) -> str:
    """Return a line of the table."""
    on = f"{platform.system()} {platform.machine()}"
    what = "all" if tests == "." else f"`{tests}`".replace("|", "\\|")
    return f"| {torch} | {version} | {on} | {datetime.date.today()} | {what} | {result} |"


def write(rows: list[str]) -> None:
    """Replace the rows of the same pairs in the page, and keep the others."""
    text = PAGE.read_text()
    before, _, rest = text.partition(HEAD)
    old = [line for line in rest.splitlines() if re.match(r"\| \d+\.\d+\.\d+ \|", line)]
    after = rest[rest.index("\n## ") :]
    kept = {tuple(line.split(" | ")[:2]): line for line in [*old, *rows]}
    order = [(f"| {torch}", version) for torch, version in PAIRS]
    lines = [kept[pair] for pair in order if pair in kept]
    PAGE.write_text(f"{before}{HEAD}" + "\n".join(lines) + f"\n{after}")


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--torch", help="this PyTorch")
    parser.add_argument("--python", help="this Python")
    parser.add_argument("--tests", default=".", help="which tests, as ctest -R has it")
    parser.add_argument("--folder", type=pathlib.Path, default=PROJECT / "build/matrix")
    given = parser.parse_args()
    re.compile(given.tests)
    for torch, version in PAIRS:
        if given.torch in (None, torch) and given.python in (None, version):
            line = run(torch, version, given.tests, given.folder)
            print(line, file=sys.stderr)
            write([line])
    return 0


if __name__ == "__main__":
    sys.exit(main())
