"""One pass over memory for optimizers that have no fused kernel: their step, compiled by AOTInductor.

A kernel is the step of one parameter of any size, for one dtype and one set of hyperparameters but lr.  It
is made of torch's own function for that step, by another process, since torch's compiler imports much,
starts processes of its own and prints; then it is checked against torch, and kept as a file for later runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import optplug
from optplug import toolchain
from optplug.errors import CompileError
from optplug.lean import Calls, lean, step_and_record

OPTIMIZERS = ("ASGD", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")
#: How far a kernel's parameters and state may be from torch's after _STEPS steps, relative to 1 or more.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
_CHECKED, _STEPS = 1000, 12  # values
_PATIENCE = 600  # seconds


def kernel(name: str, options: dict[str, Any], dtype: torch.dtype, make: bool) -> pathlib.Path | None:
    """Return the file of a kernel, made and checked if it is not there; None if it is not to be made.

    Args:
        name: the optimizer's class.
        options: its hyperparameters; lr, which a kernel takes as an argument, is of no importance.
        make: whether to make it, in half a minute, if it is not there.

    Raises:
        CompileError: there is no C++ compiler, or the kernel's numbers are not torch's, or others can write
            to the folder or the file.
    """
    try:
        return _kernel(name, options, dtype, make)
    except OSError as error:
        raise CompileError(f"{error}: set XDG_CACHE_HOME to a folder of yours") from error
    except CompileError:
        raise
    except Exception as error:  # torch's, for one
        raise CompileError(f"{type(error).__name__}: {error}") from error


def _kernel(name: str, options: dict[str, Any], dtype: torch.dtype, make: bool) -> pathlib.Path | None:
    request = json.dumps([name, _constants(name, options), str(dtype).removeprefix("torch.")], sort_keys=True)
    made_by = f"{optplug.__version__} {torch.__version__} {_processor()}"
    stem = f"{name}-{hashlib.sha256(f'{made_by} {request}'.encode()).hexdigest()[:16]}"
    folder = toolchain.folder()
    if make:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    elif not folder.exists():
        return None
    toolchain.check_folder()
    found = _find(folder, stem)
    if found or not make:
        return found
    with (folder / "lock").open("w") as lock:
        with contextlib.suppress(OSError):  # without locks in the file system each makes its own
            fcntl.flock(lock, fcntl.LOCK_EX)  # the ranks of an MPI program come all at once
        found = _find(folder, stem)
        if not found:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = pathlib.Path(scratch) / "kernel.so"
                _make(request, made)
                _check(request, made)
                made.chmod(0o600)
                found = folder / f"{stem}-{_digest(made)}.so"
                made.replace(found)
    return found


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    """Return the file of a kernel if it is there, whole and the user's own; its name has its checksum."""
    for path in folder.glob(f"{stem}-*.so"):
        toolchain.check_owner(path)
        if path.name == f"{stem}-{_digest(path)}.so":
            return path
        path.unlink()  # a disk that was full or a machine that went down has cut it short
    return None


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def inputs(calls: Calls, group: int, index: int) -> list[Tensor]:
    """Return what a kernel steps, from a recorded step: all tensors of one parameter of one group."""
    _, args, kwargs = calls[group]
    lists = [a for a in (*args, *kwargs.values()) if isinstance(a, list) and a]
    return [a[index] for a in lists]


def _constants(name: str, options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(getattr(torch.optim, name)).parameters.keys()
    chosen = ("lr", "foreach", "capturable", "differentiable", "params")
    return {
        key: float(value) if type(value) is int else value
        for key, value in options.items()
        if key in known and key not in chosen
    }


def _processor() -> str:
    """Return what kernels are compiled for: lesser machines, which may share the folder, cannot run them."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return f"{os.uname().machine} {torch.backends.cpu.get_cpu_capability()} {features}"


def _python() -> str:
    """Return this environment's interpreter: in a host that embeds Python sys.executable may be the host."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [sys.executable or "", *(f"{sys.prefix}/bin/{name}" for name in (version, "python3"))]
    for path in candidates:
        if pathlib.Path(path).name.startswith("python") and os.access(path, os.X_OK):
            return path
    raise CompileError(f"no interpreter is found in {sys.prefix}/bin")


def _make(request: str, output: pathlib.Path) -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; from optplug import compiled; compiled.main()"
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("TORCH")}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(output.parent / "cache")
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    environment["TMPDIR"] = str(output.parent)  # in the common one others can foresee torch's names
    done = subprocess.run(
        [_python(), "-I", "-c", code, request, str(output)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    if not output.exists():
        toolchain.check_compiler()
        raise CompileError(f"torch could not compile it: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def main() -> None:
    """Compile a kernel: what the other process does.  The arguments are the request and the file to make."""
    request, output = sys.argv[1:]
    values, lr, step = _example(request)
    size = torch.export.Dim("n", min=2)
    shapes = [{0: size} if value.dim() else {} for value in values]
    exported = torch.export.export(step, (values, lr), dynamic_shapes=(shapes, None))
    from torch import _inductor

    options = {
        "aot_inductor.output_path": output,
        "aot_inductor.package": False,
        "aot_inductor.precompile_headers": False,  # kept in a folder that others can make first
        "cpp.dynamic_threads": True,  # as many as the host has when it steps
        "cpp_cache_precompile_headers": False,  # worth it for many kernels only
        "realize_opcount_threshold": 0,  # computes counts and rates once, rather than for each value
    }
    _inductor.aot_compile(exported.module(), (values, lr), options=options)


class _RatesStayTensors(TorchFunctionMode):
    """Compute as torch's loop does, which has counts and rates as Python's floats.

    A rate stays a tensor where torch would read it out: its compiler takes what is read out as float32.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        rates = [value for value in (kwargs or {}).values() if isinstance(value, Tensor)]
        name = getattr(func, "__name__", "")
        if rates and name == "addcdiv_":
            return args[0].add_(args[1] / args[2] * rates[0])
        if rates and name == "addcmul_":
            return args[0].add_(args[1] * args[2] * rates[0])
        if rates and name == "add_":
            return args[0].add_(args[1] * rates[0])
        if name in ("mul_", "__imul__") and args[0].dim() == 0:  # NAdam's product, a float32 for the loop too
            return args[0].copy_(args[0].float() * args[1].float())
        return func(*args, **(kwargs or {}))


class _Step(torch.nn.Module):
    """A recorded call of torch's, with other tensors in the place of its own."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._function = inspect.unwrap(function)
        self._lengths = [len(a) for a in args]
        self._lists = {name: len(value) for name, value in kwargs.items() if isinstance(value, list)}
        self._options = {name: value for name, value in kwargs.items() if name not in self._lists}

    def plain(self, values: list[Tensor], lr: float | Tensor, **more: bool) -> None:
        """Make the step as torch's loop does."""
        left = iter(values)
        args = [[next(left) for _ in range(n)] for n in self._lengths]
        lists = {name: [next(left) for _ in range(n)] for name, n in self._lists.items()}
        rate = {"lr": lr} if "lr" in self._options else {}
        with torch.no_grad():
            self._function(*args, **lists, **{**self._options, **rate, "foreach": False, **more})

    def forward(self, values: list[Tensor], lr: Tensor) -> tuple[Any, ...]:
        """Make it so that it can be exported: with counts and rates as tensors ("capturable").

        They are the 0-dimensional ones, and in float64, as the loop has them as Python's floats.
        """
        work = [value if value.dim() else value.double() for value in values]
        with _RatesStayTensors():
            self.plain(work, lr, capturable=True)
        with torch.no_grad():
            for value, new in zip(values, work, strict=True):
                if not value.dim():
                    value.copy_(new)
        return ()


def _example(request: str) -> tuple[list[Tensor], Tensor, _Step]:
    """Return a request's kernel as a module, with tensors to call it with."""
    name, options, dtype = json.loads(request)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    generator = torch.Generator().manual_seed(0)
    data, grad = (torch.randn(_CHECKED, generator=generator, dtype=getattr(torch, dtype)) for _ in range(2))
    parameter = torch.nn.Parameter(data)
    parameter.grad = grad
    optimizer = lean(getattr(torch.optim, name))([parameter], **options)
    optimizer.step()
    calls = step_and_record(optimizer)
    values = [value.detach().clone() for value in inputs(calls, 0, 0)]
    return values, torch.tensor(0.01, dtype=torch.float64), _Step(*calls[0])


def _check(request: str, made: pathlib.Path) -> None:
    """Raise CompileError if a kernel's steps are not torch's."""
    ours, lr, step = _example(request)
    theirs = [value.clone() for value in ours]
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(made), 1)
    for _ in range(_STEPS):
        runner.run([*ours, lr])
        step.plain(theirs, float(lr))
    for mine, value in zip(ours, theirs, strict=True):
        worst = float(((mine - value).abs() / value.abs().clamp(min=1)).max())
        if not worst <= TOLERANCE[ours[0].dtype]:
            raise CompileError(f"after {_STEPS} steps it was {worst:.1e} from torch")
