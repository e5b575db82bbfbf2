"""``optplug new``: a project of one program that builds and runs, to begin with."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import sys
from dataclasses import dataclass

import optplug

_TEMPLATES = pathlib.Path(__file__).parent / "projects"


@dataclass(frozen=True)
class _Language:
    main: str
    cmake: str = ""  # what CMake calls it; without it nothing is built
    target: str = ""


_LANGUAGES = {
    "c": _Language("main.c", "C", "optplug::optplug m"),
    "cpp": _Language("main.cpp", "CXX", "optplug::cxx"),
    "fortran": _Language("main.f90", "C Fortran", "optplug::fortran"),
    "octave": _Language("main.m"),
}
LANGUAGES = tuple(_LANGUAGES)


def make(language: str, folder: str) -> str:
    """Write the project into a new or empty folder, and return how to build and run it.

    Raises:
        ValueError: something is in the folder, or its name cannot be that of a program.
        OSError: it cannot be written; nothing is left behind.
    """
    path, chosen = pathlib.Path(folder), _LANGUAGES[language]
    name = path.absolute().name
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise ValueError(f"DIR {folder!r}: the program gets its name, so use letters, digits, _ and -")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"DIR {folder!r}: something is there already: name a new folder, or an empty one")
    existed = path.exists()
    values = {
        "NAME": name,
        "LANGUAGE": chosen.cmake,
        "MAIN": chosen.main,
        "TARGET": chosen.target,
        "PYTHON": sys.executable.replace("\\", "\\\\"),
        "FOLDER": optplug.matlabdir().replace("'", "''"),
    }
    path.mkdir(parents=True, exist_ok=True)
    written: list[pathlib.Path] = []
    try:
        for template in ["CMakeLists.txt"] * bool(chosen.cmake) + [chosen.main]:
            text = (_TEMPLATES / template).read_text(encoding="utf-8")
            for key, value in values.items():
                text = text.replace(f"@{key}@", value)
            written.append(path / template)
            written[-1].write_text(text, encoding="utf-8")
    except OSError:
        for file in written:
            file.unlink(missing_ok=True)
        if not existed:
            shutil.rmtree(path, ignore_errors=True)
        raise
    lines = [f"cd {shlex.quote(folder)}", f"octave {chosen.main}"]
    if chosen.cmake:
        lines[1:] = ["cmake -B build && cmake --build build", f"build/{name}"]
    return "\n".join(
        [f"{path / chosen.main} is yours to change.  To run it:", "", *(f"    {x}" for x in lines)]
    )
