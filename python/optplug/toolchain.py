"""Where compiled kernels are kept, and what makes them.  Knows no torch, so that it can be asked without."""

from __future__ import annotations

import os
import pathlib
import shutil

from optplug.errors import CompileError


def folder() -> pathlib.Path:
    """Return where kernels are kept: ``optplug`` in the user's folder for caches."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "optplug"


def check_folder() -> None:
    """Raise CompileError if others can put files into that folder: a kernel is code."""
    path = folder()
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise CompileError(f"{path} can be written to by others: chown it, and chmod go-w")


def check_compiler() -> None:
    """Raise CompileError if there is no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise CompileError(
            f"there is no C++ compiler {compiler!r}: name one in CXX (Debian: apt-get install g++)"
        )
