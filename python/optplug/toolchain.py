"""Where compiled kernels are kept, and what makes them.  Knows no torch, so that it can be asked without."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat

from optplug.errors import CompileError


def folder() -> pathlib.Path:
    """Return where kernels are kept: ``optplug`` in the user's folder for caches.

    Raises:
        CompileError: there is none.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else _home() / ".cache") / "optplug"


def _home() -> pathlib.Path:
    try:
        home = pathlib.Path.home() if os.environ.get("HOME") != "" else pathlib.Path()
    except RuntimeError:  # nobody knows it
        home = pathlib.Path()
    if not (home.is_absolute() and home.is_dir()):
        raise CompileError("there is no home folder: set XDG_CACHE_HOME to a folder of yours")
    return home


def check_folder() -> None:
    """Raise CompileError if others can put files there, or none of its files can run: a kernel is code."""
    path = folder().resolve()
    check_owner(path)
    for parent in path.parents:
        if parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise CompileError(f"{parent} can be written to by others: set XDG_CACHE_HOME to another folder")
    check_runs(path)


def check_owner(path: pathlib.Path) -> None:
    """Raise CompileError if a file or folder is another user's, or others can write to it."""
    found = path.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CompileError(f"{path} can be written to by others: chown it, and chmod go-w")


def check_runs(path: pathlib.Path) -> None:
    """Raise CompileError if no code runs from a folder."""
    if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise CompileError(f"{path} is mounted noexec: set XDG_CACHE_HOME to another folder")


def check_compiler() -> None:
    """Raise CompileError if there is no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise CompileError(f"no C++ compiler {compiler!r} found: set CXX (Debian: apt-get install g++)")
