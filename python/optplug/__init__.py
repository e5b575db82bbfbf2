"""optplug: PyTorch's optimizers for programs that are not PyTorch programs.

The library itself is ``liboptplug``, with a C API; this package carries it and tells where it lies::

    import ctypes, optplug
    lib = ctypes.CDLL(optplug.library())

``python -m optplug --help`` does the same for build systems, and finds out what is wrong.
"""

from __future__ import annotations

import pathlib
import re
import sys

_HERE = pathlib.Path(__file__).resolve().parent

_header = _HERE / "include" / "optplug.h"
# Without it the doctor is still to speak.
_text = _header.read_text(encoding="utf-8") if _header.exists() else 'define OPTPLUG_VERSION "unknown"'
__version__ = re.search(r'define OPTPLUG_VERSION "(.*)"', _text)[1]


def library() -> str:
    """Return the path of the shared library, for ``ctypes.CDLL`` or a linker."""
    return str(_HERE / "lib" / f"liboptplug.{'dylib' if sys.platform == 'darwin' else 'so'}")


def libdir() -> str:
    """Return the folder that holds the shared library."""
    return str(_HERE / "lib")


def includedir() -> str:
    """Return the folder that holds ``optplug.h``."""
    return str(_HERE / "include")


def fortrandir() -> str:
    """Return the folder that holds the source of the Fortran module."""
    return str(_HERE / "fortran")


def matlabdir() -> str:
    """Return the folder for MATLAB's or Octave's path."""
    return str(_HERE / "matlab")
