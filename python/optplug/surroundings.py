"""The import of torch, and what it takes for granted: without that it would print, or end the process."""

from __future__ import annotations

import gc
import importlib.util
import mmap
import os
import pathlib
import re
import sys

#: The newest torch that optplug's tests have run with: see docs/versions.md.
NEWEST = "2.15"
_START, _EACH_THREAD = 192 << 20, 48 << 20  # bytes beside torch's libraries; seen: 152 and 40 MiB


def check(threads: int, wanted: int) -> None:
    """Raise an ImportError where torch's import would not return.

    Args:
        threads: how many the process can make.
        wanted: how many numpy's BLAS will make.
    """
    if "torch" in sys.modules:
        return
    try:
        pathlib.Path.cwd()
    except FileNotFoundError as error:
        raise ImportError(
            "the working directory has been deleted, and PyTorch's MKL would end the process: change to "
            "another one"
        ) from error
    if sys.platform == "linux" and not os.access("/proc/cpuinfo", os.R_OK):
        raise ImportError("/proc/cpuinfo cannot be read, and PyTorch would complain on stderr: mount /proc")
    if threads < wanted and "numpy" not in sys.modules and importlib.util.find_spec("numpy"):
        raise ImportError(
            f"this process can create only {threads} more threads, and numpy's BLAS needs {wanted}: "
            "raise the limit (ulimit -u, ulimit -v, or the container's), or set OMP_NUM_THREADS=1"
        )
    for size, access in zip(memory(wanted), (0, mmap.PROT_READ | mmap.PROT_WRITE), strict=True):
        _check_memory(size, access)


def load_torch(alone: bool = False, libtorch: str = "") -> None:
    """Import torch, with one thread if ``alone``, or raise an ImportError that says what to do.

    Args:
        alone: whether there is room for one thread only.
        libtorch: the file of the LibTorch that the host is linked to, which torch shares.
    """
    collects = gc.isenabled()
    gc.disable()  # or it looks again and again at all that is imported: a fifth of the time, for no garbage
    try:
        import torch
    except ImportError as error:
        if libtorch and error.name != "torch":  # which is there, but does not fit
            raise ImportError(
                f"{error}: the program is linked to another PyTorch, {libtorch}: link it to the one of "
                f"{_python()}, or name that one's environment in OPTPLUG_PYTHON"
            ) from error
        raise ImportError(
            f"{error}: PyTorch is missing or broken in that environment; run "
            f"{_python()} -m pip install 'torch>=2.11'"
        ) from error
    finally:
        if collects:
            gc.enable()
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11):
        raise ImportError(
            f"torch {torch.__version__} is too old, optplug needs 2.11: "
            f"run {_python()} -m pip install --upgrade torch"
        )
    if alone:
        torch.set_num_threads(1)


def misfit(error: BaseException) -> BaseException:
    """Return what to say where optplug's own import fails, as with a torch that lacks what it had."""
    import torch

    cause = error
    while cause.__cause__:
        cause = cause.__cause__
    if isinstance(error, OSError | MemoryError | KeyboardInterrupt | SystemExit) or (
        isinstance(error, ImportError) and not (error.name or "").startswith("torch")
    ):
        return error
    return ImportError(
        f"{type(cause).__name__}: {cause}: torch {torch.__version__} is unknown to optplug, which knows "
        f"torch up to {NEWEST}: install a newer optplug, or run {_python()} -m pip install "
        f"'torch=={NEWEST}.*'"
    )


def _python() -> str:
    import shlex  # in a failure alone: a start imports no more than torch does

    return shlex.quote(sys.executable or "python3")


def memory(threads: int) -> tuple[int, int]:
    """Return how many bytes of address space, and of data, the import of torch takes with so many threads."""
    spec = importlib.util.find_spec("torch")
    places = [pathlib.Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    files = [file for place in places for file in place.glob("lib/*.so*")]
    # Those of a torch for CUDA, but for what is loaded when it is used.
    files += [
        file
        for place in places
        for file in place.parent.glob("nvidia/*/lib/*.so*")
        if not re.search(r"cudnn|cusolverMg|nvperf|\.alt\.", file.name)
    ]
    data = _START + threads * _EACH_THREAD
    return sum(file.stat().st_size for file in files) + data, data


def _check_memory(size: int, access: int) -> None:
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=access).close()
    except OSError as error:
        raise ImportError(
            f"PyTorch needs {size >> 20} MiB of memory to start, and this process cannot get them: raise the "
            f"limit (ulimit -v, ulimit -d), or set OMP_NUM_THREADS=1, which needs less"
        ) from error
