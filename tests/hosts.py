"""What the Python tests share: the programs that ctest built, and the library as ctypes has it."""

from __future__ import annotations

import ctypes
import os
import pathlib
import subprocess

import optplug

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ["OPTPLUG_TEST_PROGRAMS"])
CC = os.environ["OPTPLUG_TEST_CC"]

INT64S = ctypes.POINTER(ctypes.c_int64)
DOUBLES = ctypes.POINTER(ctypes.c_double)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, DOUBLES)


def load(loader: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with the types of its functions declared."""
    library = loader(optplug.library())
    pointer, text, integer, int64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64
    for name, arguments in {
        "opt_create": [text],
        "opt_bind": [integer, text, text, int64, pointer, pointer],
        "opt_bind_nd": [integer, text, text, text, integer, INT64S, pointer, INT64S, pointer, INT64S],
        "opt_bind_sparse": [integer, text, text, int64, int64, pointer, int64, INT64S, INT64S, pointer],
        "opt_group": [integer, text],
        "opt_get": [integer, integer, text, DOUBLES],
        "opt_clip_grad_norm": [integer, *[ctypes.c_double] * 2, integer, DOUBLES],
        "opt_clip_grad_value": [integer, ctypes.c_double],
        "opt_average": [integer, text],
        "opt_average_get": [integer, text, pointer],
        "opt_average_swap": [integer],
        "opt_schedule_callback": [integer, text, CALLBACK, pointer],
        "opt_schedule_step": [integer],
        "opt_schedule_step_metric": [integer, ctypes.c_double],
        "opt_step": [integer],
        "opt_schedule": [integer, text],
        "opt_iterate": [integer, ctypes.c_double],
        "opt_step_closure": [integer, CALLBACK, pointer, DOUBLES],
        "opt_save": [integer, text],
        "opt_load": [integer, text],
        "opt_save_memory": [integer, pointer, int64],
        "opt_load_memory": [integer, pointer, int64],
        "opt_free": [integer],
        "opt_init": [text],
    }.items():
        getattr(library, name).argtypes = arguments
    for name in ("opt_error", "opt_traceback", "opt_warning", "opt_version", "opt_describe"):
        getattr(library, name).restype = text
    library.opt_describe.argtypes = [integer]
    library.opt_save_memory.restype = int64
    return library


def run(
    program: str | pathlib.Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, its environment changed so, and check that it lived and kept stderr quiet."""
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, "OPTPLUG_TEST_LIBRARY": optplug.library(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == ""
    return done
