"""optplug: PyTorch's optimizers for programs that are not PyTorch programs.

The library itself is ``liboptplug``, with a C API; this package carries it and tells where it lies::

    import ctypes, optplug
    lib = ctypes.CDLL(optplug.library())

``python -m optplug --help`` does the same for build systems, and finds out what is wrong.
"""

# Nothing else is imported: until __main__ has seen to it, the current folder's modules come first.
import os
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120


def _version() -> str:
    try:
        with open(f"{_HERE}/include/optplug.h", encoding="utf-8") as header:  # noqa: PTH123
            return header.read().partition('define OPTPLUG_VERSION "')[2].partition('"')[0]
    except FileNotFoundError:
        return "unknown"  # the doctor is still to speak


__version__ = _version()


def library() -> str:
    """Return the path of the shared library, for ``ctypes.CDLL`` or a linker."""
    return f"{_HERE}/lib/liboptplug.{'dylib' if sys.platform == 'darwin' else 'so'}"


def libdir() -> str:
    """Return the folder that holds the shared library."""
    return f"{_HERE}/lib"


def includedir() -> str:
    """Return the folder that holds ``optplug.h``."""
    return f"{_HERE}/include"


def fortrandir() -> str:
    """Return the folder that holds the source of the Fortran module."""
    return f"{_HERE}/fortran"


def matlabdir() -> str:
    """Return the folder for MATLAB's or Octave's path."""
    return f"{_HERE}/matlab"
