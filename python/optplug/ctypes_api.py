"""The C API for Python, through ctypes: to test a host's code, or for a host written in Python.

`Optimizer` takes numpy arrays and raises `Error`::

    w, dw = np.zeros(3), np.empty(3)
    with Optimizer("Adam(lr=0.1)") as opt:
        opt.bind("w", w, dw)
        for _ in range(100):
            dw[:] = gradient(w)
            opt.step()

GPU arrays work too, if they have ``__cuda_array_interface__`` as those of CuPy, Numba and torch do.

`load` returns the bare functions, with the types that ``optplug.h`` declares: strings are bytes, a failure is
a negative status.  The header's comments are the manual for both.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optplug.ctypes_library import (
    CALLBACK,
    LOG_FUNCTION,
    NO_COLLECTIVE,
    Error,
    collective_over,
    encoded,
    load,
    memory_of,
    statuses,
)

__all__ = ["CALLBACK", "LOG_FUNCTION", "Error", "Optimizer", "load", "statuses"]

_library = functools.cache(load)


def _check(result: int) -> int:
    if result < 0:
        raise Error(result, _library().optplug_error().decode(), _library().optplug_traceback().decode())
    return result


def _check_text(text: bytes | None) -> str:
    if text is None:
        _check(_library().optplug_error_status())
    return (text or b"").decode()


def init(options: str = "") -> None:
    """Start Python and PyTorch unless they run, and set options: ``"num_threads=1"``."""
    _check(_library().optplug_init(encoded("options", options)))


def log(function: Callable[[int, str], None] | None) -> None:
    """Set a function that receives the library's log, a level and a line, as ``opt_log`` does; None for none.

    For ``logging``: ``log(lambda level, line: logger.log(logging.INFO, line))``.
    """

    def tell(_: Any, level: int, line: bytes) -> None:
        if function:
            function(level, line.decode())

    callback = LOG_FUNCTION(tell) if function else LOG_FUNCTION()
    _check(_library().optplug_log(callback, None))
    _told[:] = [callback]  # keep it for as long as the library uses it


#: The function that `log` has set.
_told: list[Any] = []


def listing(kind: str) -> list[str]:
    """List "optimizers", "schedulers", "dtypes", "devices", or the arguments of a class."""
    return _check_text(_library().optplug_list(encoded("kind", kind))).splitlines()


def describe() -> str:
    """Describe the library: which Python, libpython, torch and devices it uses."""
    return _check_text(_library().optplug_describe(0))


def warning() -> str:
    """Return PyTorch's warnings from this thread's calls since the last `warning`, one per line."""
    return _library().optplug_warning().decode()


class Optimizer:
    """One optimizer; it keeps references to the numpy or GPU arrays bound to it.

    Raises:
        Error: a call failed, and changed nothing.  An exception in your closure or schedule function is
            raised again by the call that ran it.
    """

    def __init__(self, spec: str) -> None:
        self._handle = 0
        self._arrays: dict[str, tuple[Any, ...]] = {}
        self._collectives: list[Any] = []
        self._forms: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}  # of averages
        self._scale: tuple[Any, Any] = (None, None)
        self._functions: list[Any] = []
        self._thrown: BaseException | None = None
        self._handle = _check(_library().optplug_create(encoded("spec", spec)))

    def __enter__(self) -> Optimizer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.free()

    def __del__(self) -> None:
        if self._handle and _library:  # which may be None while Python exits
            _library().optplug_free(self._handle)

    def free(self) -> None:
        """Free the optimizer and its state; the arrays are left unchanged."""
        self._call("optplug_free")
        self._handle = 0
        self._arrays.clear()
        self._forms.clear()
        self._scale = (None, None)

    def bind(
        self, name: str, data: Any, grad: Any, dtype: str | None = None, device: str | None = None
    ) -> None:
        """Lend a parameter: an array of any shape and layout, and one like it for its gradient.

        Args:
            name: binding a name again moves the parameter and keeps its state.
            data: a numpy array, or one with ``__cuda_array_interface__``; updated in place.
            grad: an array of the same shape and dtype.
            dtype: PyTorch's name, for a dtype that numpy lacks: "bfloat16", in arrays of ``uint16``.
            device: the GPU of the arrays, "cuda:1"; None means this thread's current one.  See `stream`.
        """
        memories = []
        for what, array in (("data", data), ("grad", grad)):
            memory = memory_of(array)
            if memory is None or not memory.is_writable:
                shown = type(array).__name__ if memory is None else "a read-only array"
                raise TypeError(
                    f"parameter {name!r}: {what} must be a writable numpy or GPU array, got {shown}"
                )
            if any(stride % memory.dtype.itemsize for stride in memory.strides or ()):
                raise ValueError(
                    f"parameter {name!r}: {what} has strides of {memory.strides} bytes, which "
                    f"are not multiples of its {memory.dtype.itemsize}-byte values"
                )
            if not memory.dtype.isnative:  # its name does not tell the byte order
                raise ValueError(f"parameter {name!r}: {what} is {memory.dtype}, not in native byte order")
            memories.append(memory)
        a, b = memories
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"parameter {name!r}: data is {a.dtype} of shape {a.shape}, grad {b.dtype} of shape "
                f"{b.shape}: they must match"
            )
        strides = [m.strides and tuple(s // m.dtype.itemsize for s in m.strides) for m in memories]
        self.bind_device(
            name,
            dtype or a.dtype.name,
            device or ("cuda" if a.is_on_gpu or b.is_on_gpu else "cpu"),
            a.shape,
            a.address,
            b.address,
            *strides,
        )
        self._arrays[name] = (data, grad)
        self._forms[name] = (a.shape, a.dtype)

    def bind_device(
        self,
        name: str,
        dtype: str,
        device: str,
        shape: Sequence[int],
        data: int,
        grad: int,
        strides: Sequence[int] | None = None,
        grad_strides: Sequence[int] | None = None,
    ) -> None:
        """Lend a parameter by the addresses of its memory, which you must keep alive.

        Args:
            name: as for `bind`.
            dtype: PyTorch's name, "float32" or "bfloat16" for example.
            device: "cpu" or "cuda:0".
            shape: the shape of both arrays.
            data: the address of the first value.
            grad: the address of the first value of the gradient.
            strides: in elements; None means C order.
            grad_strides: those of the gradient.
        """
        for given in (strides, grad_strides):
            if given is not None and len(given) != len(shape):
                raise ValueError(f"parameter {name!r}: {len(given)} strides for {len(shape)} dimensions")
        self._call(
            "optplug_bind_nd",
            encoded("name", name),
            encoded("dtype", dtype),
            encoded("device", device),
            len(shape),
            shape,
            data,
            strides,
            grad,
            grad_strides,
        )
        self._arrays[name] = ()
        self._forms[name] = (tuple(shape), np.dtype("uint16" if dtype == "bfloat16" else dtype))

    def bind_sparse(
        self,
        name: str,
        data: NDArray[Any],
        count: NDArray[np.int64],
        indices: NDArray[np.int64],
        grad_rows: NDArray[Any],
    ) -> None:
        """Lend a table whose gradient is zero except in a few rows; all arrays must be in C order.

        Args:
            name: as for `bind`.
            data: shape (rows, columns).
            count: shape (1,): how many rows have a gradient in the next step.
            indices: shape (capacity,): the rows that have one.
            grad_rows: shape (capacity, columns): their gradients.
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
            "optplug_bind_sparse",
            encoded("name", name),
            data.dtype.name.encode(),
            *data.shape,
            data,
            indices.size,
            count,
            indices,
            grad_rows,
        )
        self._arrays[name] = (data, count, indices, grad_rows)
        self._forms[name] = (data.shape, data.dtype)

    def group(self, options: str) -> None:
        """Start a parameter group: parameters bound from now on use these options."""
        self._call("optplug_group", encoded("options", options))

    def distribute(self, placement: str, comm: Any = None) -> None:
        """Let ranks step this optimizer together.

        Args:
            placement: how parameters bound from now on are spread over the ranks: "Replicate()",
                "Replicate(), Partial('sum')", "Replicate(), Replicate()" or "Shard(0)".
            comm: a communicator of mpi4py; None means the ranks of torch.distributed.
        """
        if comm is None:
            self._call("optplug_distribute", encoded("placement", placement), NO_COLLECTIVE, None, 0, 0)
            return

        def failed(error: BaseException) -> None:
            self._thrown = error

        collective = collective_over(comm, failed)
        rank, size = comm.Get_rank(), comm.Get_size()
        self._call("optplug_distribute", encoded("placement", placement), collective, None, rank, size)
        self._collectives.append(collective)

    def bind_block(
        self,
        name: str,
        global_shape: Sequence[int],
        offset: Sequence[int],
        shape: Sequence[int] | None = None,
    ) -> None:
        """Say which block of a grid this rank's part is; None means the shape that was bound."""
        ndim = len(global_shape)
        if len(offset) != ndim or (shape is not None and len(shape) != ndim):
            raise ValueError(f"offset and shape must have {ndim} values each, got {offset} and {shape}")
        self._call("optplug_bind_block", encoded("name", name), ndim, global_shape, offset, shape)

    def step(self) -> None:
        """Make one step: update every bound array from its gradient."""
        self._call("optplug_step")

    def step_closure(self, closure: Callable[[], float]) -> float:
        """Make one step with a function that sets gradients and returns the loss; return the first loss."""
        return self._call_with("optplug_step_closure", closure)

    def check_gradient(self, closure: Callable[[], float]) -> float:
        """Check such a function's gradients against differences of its losses; return the relative error.

        Raises:
            Error: a gradient is wrong; the message says where.
        """
        return self._call_with("optplug_check_gradient", closure)

    def _call_with(self, name: str, closure: Callable[[], float]) -> float:
        def evaluate(_: Any, value: Any) -> int:
            return self._guard(value, closure)

        result = ctypes.c_double()
        self._call(name, CALLBACK(evaluate), None, ctypes.byref(result))
        return result.value

    def iterate(self, loss: float) -> bool:
        """Make the same step by reverse communication: ``while opt.iterate(loss): loss = compute()``."""
        return self._call("optplug_iterate", loss) == statuses()["OPT_EVALUATE"]

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self._call("optplug_zero_grad")

    def clip_grad_norm(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> float:
        """Scale all gradients together so that their norm is at most ``max_norm``; return the norm before."""
        norm = ctypes.c_double()
        self._call("optplug_clip_grad_norm", max_norm, norm_type, error_if_nonfinite, ctypes.byref(norm))
        return norm.value

    def clip_grad_value(self, clip_value: float) -> None:
        """Clamp each value of each gradient."""
        self._call("optplug_clip_grad_value", clip_value)

    def get(self, group: int, name: str) -> float:
        """Return a hyperparameter of a group, or of all (-1), as a number: "lr", "betas[0]"."""
        value = ctypes.c_double()
        self._call("optplug_get", group, encoded("name", name), ctypes.byref(value))
        return value.value

    def set(self, group: int, options: str) -> None:
        """Set hyperparameters of a group, or of all (-1): "lr=1e-4, betas=(0.9, 0.99)"."""
        self._call("optplug_set", group, encoded("options", options))

    def set_value(self, group: int, name: str, value: float) -> None:
        """Set one hyperparameter of a group, or of all (-1), named as in `get`."""
        self._call("optplug_set_value", group, encoded("name", name), value)

    def schedule(self, spec: str | None, function: Callable[[float, int], float] | None = None) -> None:
        """Attach a scheduler; ``function`` returns the factor for an epoch and a group, for "LambdaLR()".

        None removes all schedulers; learning rates keep their current values.
        """
        if spec is None:
            self._call("optplug_schedule", None)
            self._functions.clear()
            return
        if function is None:
            self._call("optplug_schedule", encoded("spec", spec))
            return

        def evaluate(_: Any, value: Any) -> int:
            return self._guard(value, lambda: function(value[0], int(value[1])))

        callback = CALLBACK(evaluate)
        self._call("optplug_schedule_callback", encoded("spec", spec), callback, None)
        self._functions.append(callback)

    def schedule_step(self, metric: float | None = None) -> None:
        """Step all schedulers except ReduceLROnPlateau; with a metric, only that one.

        If it is not attached, the metric is the epoch of CosineAnnealingWarmRestarts.
        """
        self._call("optplug_schedule_step") if metric is None else self._call(
            "optplug_schedule_step_metric", metric
        )

    def stream(self, address: int | None) -> None:
        """Run GPU work on your stream, a ``cudaStream_t``; None returns to torch's current one.

        The address is ``stream.ptr`` in CuPy, ``stream.cuda_stream`` in torch.  The stream must outlive the
        optimizer.
        """
        self._call("optplug_stream", address)

    def grad_scale(self, scale: Any, found_inf: Any = None) -> None:
        """From now on, divide gradients in each step by ``scale``; skip steps where ``found_inf`` is 1.

        Args:
            scale: an array of one float32 on the parameters' device, or its address; None for none.
            found_inf: the same.
        """
        for what, number in (("scale", scale), ("found_inf", found_inf)):
            memory = memory_of(number)
            if memory is None and not isinstance(number, int | None):
                raise TypeError(f"{what} must be an array or an address, got {type(number).__name__}")
            if memory and (memory.dtype, math.prod(memory.shape)) != (np.dtype(np.float32), 1):
                raise ValueError(f"{what} must be one float32, got {memory.dtype} of shape {memory.shape}")
        self._call("optplug_grad_scale", scale, found_inf)
        self._scale = (scale, found_inf)

    def average(self, spec: str) -> None:
        """From now on, average the parameters after each step: "AveragedModel()"."""
        self._call("optplug_average", encoded("spec", spec))

    def average_get(self, name: str) -> NDArray[Any]:
        """Return the average of one parameter."""
        average = np.empty(*self._forms[name])
        self._call("optplug_average_get", encoded("name", name), average)
        return average

    def average_swap(self) -> None:
        """Swap the values of all parameters with their averages; the next call swaps them back."""
        self._call("optplug_average_swap")

    def call(self, method: str) -> None:
        """Call a method of a class outside torch.optim: "train" or "eval" of a schedule-free one."""
        self._call("optplug_call", encoded("method", method))

    def checkpoint(self, options: str) -> None:
        """Choose what `save` writes and `load` restores: "parameters=True"."""
        self._call("optplug_checkpoint", encoded("options", options))

    def attribute(self, name: str, text: str | None) -> None:
        """Attach a text of yours to checkpoints; None removes it."""
        self._call(
            "optplug_attribute", encoded("name", name), None if text is None else encoded("text", text)
        )

    def attribute_get(self, name: str) -> str:
        """Return such a text."""
        return _check_text(_library().optplug_attribute_get(self._handle, encoded("name", name)))

    def save(self, path: str | bytes | os.PathLike[Any]) -> None:
        """Save everything the optimizer needs to resume to a file."""
        self._call("optplug_save", os.fsencode(path))

    def load(self, path: str | bytes | os.PathLike[Any]) -> None:
        """Resume from a file."""
        self._call("optplug_load", os.fsencode(path))

    def save_memory(self) -> bytes:
        """Return what `save` would write."""
        buffer = np.empty(self._call("optplug_save_memory", None, 0), np.uint8)
        return buffer[: self._call("optplug_save_memory", buffer, buffer.size)].tobytes()

    def load_memory(self, content: bytes) -> None:
        """Resume from what `save_memory` returned."""
        self._call("optplug_load_memory", content, len(content))

    def describe(self) -> str:
        """Describe the optimizer in a few lines of "name: value"."""
        return _check_text(_library().optplug_describe(self._handle or -1))

    def _call(self, name: str, *arguments: Any) -> int:
        result = getattr(_library(), name)(self._handle, *arguments)
        thrown, self._thrown = self._thrown, None
        if thrown is not None:
            raise thrown
        return _check(result)

    def _guard(self, value: Any, function: Callable[[], float]) -> int:
        """Call the user's function, and keep its exception: none may pass through C."""
        try:
            result = function()
            if result is None:
                raise TypeError("the function returned None: it must return a number")
            value[0] = result
        except BaseException as error:
            self._thrown = error
            return -1
        return 0
