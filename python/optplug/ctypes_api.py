"""The C API for Python, through ctypes: to test a host's code, or to be a host.

`Optimizer` takes numpy arrays and raises `Error`::

    w, dw = np.zeros(3), np.empty(3)
    with Optimizer("Adam(lr=0.1)") as opt:
        opt.bind("w", w, dw)
        for _ in range(100):
            dw[:] = gradient(w)
            opt.step()

`load` gives the bare functions, with the types that ``optplug.h`` declares: strings are bytes, a failure is a
negative status.  The header's comments are the manual of both.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import optplug

#: A function of the host's: ``int (void *user, double *value)``.
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_double))


class _Array:
    """``void *`` as the type of an argument: a numpy array, or whatever ctypes takes."""

    @staticmethod
    def from_param(value: Any) -> Any:
        address = value.ctypes.data if isinstance(value, np.ndarray) else value
        return ctypes.c_void_p.from_param(address)


class _Values:
    """A pointer to values of a type: a list, a numpy array, or whatever ctypes takes."""

    def __init__(self, type_: Any) -> None:
        self._type, self._pointer = type_, ctypes.POINTER(type_)

    def from_param(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype == self._type and value.flags.c_contiguous:
            value = value.ctypes.data_as(self._pointer)
        elif isinstance(value, list):
            value = (self._type * len(value))(*value)
        return self._pointer.from_param(value)


_TYPES = {
    "int": ctypes.c_int,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "const char *": ctypes.c_char_p,
    "void *": _Array,
    "const void *": _Array,
    "double *": _Values(ctypes.c_double),
    "const double *": _Values(ctypes.c_double),
    "float *": _Values(ctypes.c_float),
    "const float *": _Values(ctypes.c_float),
    "const int64_t *": _Values(ctypes.c_int64),
    "opt_callback": CALLBACK,
}


@functools.cache
def _header() -> tuple[dict[str, tuple[Any, list[Any]]], dict[str, int]]:
    """Read the functions, with the types of results and arguments, and the statuses out of the header."""
    text = (pathlib.Path(optplug.includedir()) / "optplug.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    functions = {}
    for result, name, arguments in re.findall(
        r"^(int|int64_t|const char \*) ?(opt_\w+)\((.*?)\);", text, re.M | re.S
    ):
        types = re.findall(r"((?:const )?\w+ \*|\w+ )\w+(?:,|$)", " ".join(arguments.split()))
        functions[name] = (_TYPES[result], [_TYPES[type_.strip()] for type_ in types])
    return functions, {name: int(value) for name, value in re.findall(r"(OPT_\w+) = (-?\d+)", text)}


def load(path: str | None = None, loader: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with the types of all its functions declared.

    Args:
        path: of liboptplug; that of this package if None.
        loader: ``ctypes.PyDLL`` to keep the GIL in calls.
    """
    library = loader(path or optplug.library())
    for name, (result, arguments) in _header()[0].items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def statuses() -> dict[str, int]:
    """Return what the functions return, by the header's names: ``{"OPT_OK": 0, ...}``."""
    return dict(_header()[1])


class Error(RuntimeError):
    """A call that failed: its message, ``status``, and Python's ``traceback`` inside of it, if any."""

    def __init__(self, status: int, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.traceback = traceback


_library = functools.cache(load)


def _check(result: int) -> int:
    if result < 0:
        raise Error(result, _library().opt_error().decode(), _library().opt_traceback().decode())
    return result


def _check_text(text: bytes | None, status: str) -> str:
    if text is None:
        _check(statuses()[status])
    return (text or b"").decode()


def init(options: str = "") -> None:
    """Set options of the library, ``"num_threads=1"``."""
    _check(_library().opt_init(options.encode()))


def listing(kind: str) -> list[str]:
    """List what PyTorch has here: "optimizers", "schedulers", "dtypes", "devices", or a class's arguments."""
    return _check_text(_library().opt_list(kind.encode()), "OPT_EINVAL").splitlines()


def describe() -> str:
    """Describe the library: which Python, libpython, torch and devices are used."""
    return _check_text(_library().opt_describe(0), "OPT_ERUNTIME")


def warning() -> str:
    """Return what PyTorch has warned of in this thread's calls since this was last asked."""
    return _library().opt_warning().decode()


class Optimizer:
    """One optimizer, on numpy arrays, which it keeps alive for as long as it has them.

    Raises:
        Error: a call failed, and changed nothing.  An exception out of a function of yours that a step
            calls comes out of the step as it is.
    """

    def __init__(self, spec: str) -> None:
        self._handle = 0
        self._arrays: dict[str, tuple[Any, ...]] = {}
        self._functions: list[Any] = []
        self._thrown: BaseException | None = None
        self._handle = _check(_library().opt_create(spec.encode()))

    def __enter__(self) -> Optimizer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.free()

    def __del__(self) -> None:
        if self._handle:
            _library().opt_free(self._handle)

    def free(self) -> None:
        """End the optimizer; the arrays are left as they are."""
        self._call("opt_free")
        self._handle = 0
        self._arrays.clear()

    def bind(self, name: str, data: NDArray[Any], grad: NDArray[Any], dtype: str | None = None) -> None:
        """Lend a parameter: an array of any shape and layout, and one like it for its gradient.

        Args:
            name: binding a name again moves the parameter and keeps its state.
            data: written in place.
            grad: of the same shape and dtype.
            dtype: torch's word for it, if numpy has none: "bfloat16", in arrays of ``uint16``.
        """
        for what, array in (("data", data), ("grad", grad)):
            if not isinstance(array, np.ndarray) or not array.flags.writeable:
                shown = type(array).__name__ if not isinstance(array, np.ndarray) else "one that is read-only"
                raise TypeError(f"parameter {name!r}: {what} must be a numpy array to write to, got {shown}")
            if any(stride % array.itemsize for stride in array.strides):
                raise ValueError(
                    f"parameter {name!r}: {what} has strides of {array.strides} bytes, which "
                    f"values of {array.itemsize} bytes do not divide"
                )
        if (data.shape, data.dtype) != (grad.shape, grad.dtype):
            raise ValueError(
                f"parameter {name!r}: data is {data.dtype} of shape {data.shape} and grad {grad.dtype} "
                f"of {grad.shape}: they must be alike"
            )
        strides = [[s // a.itemsize for s in a.strides] for a in (data, grad)]
        self._call(
            "opt_bind_nd",
            name.encode(),
            (dtype or data.dtype.name).encode(),
            b"cpu",
            data.ndim,
            list(data.shape),
            data,
            strides[0],
            grad,
            strides[1],
        )
        self._arrays[name] = (data, grad)

    def bind_sparse(
        self,
        name: str,
        data: NDArray[Any],
        count: NDArray[np.int64],
        indices: NDArray[np.int64],
        grad_rows: NDArray[Any],
    ) -> None:
        """Lend a table whose gradient is zero but for rows: ``grad_rows[i]`` is that of row ``indices[i]``.

        Args:
            name: as for `bind`.
            data: of shape (rows, columns), in C order as all of them are.
            count: of shape (1,): how many rows have a gradient now.
            indices: of shape (capacity,).
            grad_rows: of shape (capacity, columns).
        """
        for what, array, type_ in (
            ("data", data, data.dtype),
            ("count", count, np.int64),
            ("indices", indices, np.int64),
            ("grad_rows", grad_rows, data.dtype),
        ):
            if array.dtype != type_ or not array.flags.c_contiguous:
                raise ValueError(
                    f"parameter {name!r}: {what} must be {np.dtype(type_)} in C order, "
                    f"got {array.dtype} with strides of {array.strides} bytes"
                )
        if data.ndim != 2 or count.shape != (1,) or grad_rows.shape != (indices.size, data.shape[1]):
            raise ValueError(
                f"parameter {name!r}: shapes {data.shape}, {count.shape}, {indices.shape} and "
                f"{grad_rows.shape} are not (rows, columns), (1,), (capacity,) and (capacity, columns)"
            )
        self._call(
            "opt_bind_sparse",
            name.encode(),
            data.dtype.name.encode(),
            *data.shape,
            data,
            indices.size,
            count,
            indices,
            grad_rows,
        )
        self._arrays[name] = (data, count, indices, grad_rows)

    def group(self, options: str) -> None:
        """Let the parameters bound from now on be a group with options of its own."""
        self._call("opt_group", options.encode())

    def step(self) -> None:
        """Make one step: update every bound array from its gradient."""
        self._call("opt_step")

    def step_closure(self, closure: Callable[[], float]) -> float:
        """Make one step with a function that computes the gradients and returns the loss; return it."""

        def evaluate(_: Any, value: Any) -> int:
            return self._guard(value, closure)

        loss = ctypes.c_double()
        self._call("opt_step_closure", CALLBACK(evaluate), None, ctypes.byref(loss))
        return loss.value

    def iterate(self, loss: float) -> bool:
        """Make that step by reverse communication: as long as it is true, compute loss and gradients anew."""
        return self._call("opt_iterate", loss) == statuses()["OPT_EVALUATE"]

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self._call("opt_zero_grad")

    def clip_grad_norm(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> float:
        """Scale all gradients so that their norm is ``max_norm`` at the most; return what it was."""
        norm = ctypes.c_double()
        self._call("opt_clip_grad_norm", max_norm, norm_type, error_if_nonfinite, ctypes.byref(norm))
        return norm.value

    def clip_grad_value(self, clip_value: float) -> None:
        """Clamp each value of each gradient."""
        self._call("opt_clip_grad_value", clip_value)

    def get(self, group: int, name: str) -> float:
        """Return a hyperparameter of a group, or with -1 of all, as a number: "lr", "betas[0]"."""
        value = ctypes.c_double()
        self._call("opt_get", group, name.encode(), ctypes.byref(value))
        return value.value

    def set(self, group: int, options: str) -> None:
        """Set hyperparameters of a group, or with -1 of all."""
        self._call("opt_set", group, options.encode())

    def schedule(self, spec: str, function: Callable[[float, int], float] | None = None) -> None:
        """Attach a scheduler; if it takes a function of yours, one from an epoch and a group to a factor."""
        if function is None:
            self._call("opt_schedule", spec.encode())
            return

        def evaluate(_: Any, value: Any) -> int:
            return self._guard(value, lambda: function(value[0], int(value[1])))

        callback = CALLBACK(evaluate)
        self._call("opt_schedule_callback", spec.encode(), callback, None)
        self._functions.append(callback)

    def schedule_step(self, metric: float | None = None) -> None:
        """Step the schedulers; with a metric, those alone that take one."""
        self._call("opt_schedule_step") if metric is None else self._call("opt_schedule_step_metric", metric)

    def average(self, spec: str) -> None:
        """Average the parameters after each step from now on."""
        self._call("opt_average", spec.encode())

    def average_get(self, name: str) -> NDArray[Any]:
        """Return the average of one parameter."""
        if name not in self._arrays:
            raise KeyError(name)
        average = np.empty(self._arrays[name][0].shape, self._arrays[name][0].dtype)
        self._call("opt_average_get", name.encode(), average)
        return average

    def average_swap(self) -> None:
        """Exchange the values of all parameters with their averages; the next call takes them back."""
        self._call("opt_average_swap")

    def save(self, path: str | pathlib.Path) -> None:
        """Write all that the optimizer needs to go on into a file."""
        self._call("opt_save", str(path).encode())

    def load(self, path: str | pathlib.Path) -> None:
        """Go on from a file."""
        self._call("opt_load", str(path).encode())

    def save_memory(self) -> bytes:
        """Return what `save` writes."""
        buffer = np.empty(self._call("opt_save_memory", None, 0), np.uint8)
        return buffer[: self._call("opt_save_memory", buffer, buffer.size)].tobytes()

    def load_memory(self, content: bytes) -> None:
        """Go on from what `save_memory` has returned."""
        self._call("opt_load_memory", content, len(content))

    def describe(self) -> str:
        """Describe the optimizer in a few lines of "name: value"."""
        return _check_text(_library().opt_describe(self._handle or -1), "OPT_EHANDLE")

    def _call(self, name: str, *arguments: Any) -> int:
        result = getattr(_library(), name)(self._handle, *arguments)
        thrown, self._thrown = self._thrown, None
        if thrown is not None:
            raise thrown
        return _check(result)

    def _guard(self, value: Any, function: Callable[[], float]) -> int:
        """Call a function of the user's: no exception may pass through C."""
        try:
            value[0] = function()
        except BaseException as error:
            self._thrown = error
            return -1
        return 0
