"""Every private name of PyTorch's that optplug uses, once: where it was seen, and what stands in without it.

Seen in torch 2.11 to 2.15.  A name that is gone is an AttributeError at the import of this file, which is to
say of optplug, and so an error of the first call rather than a wrong number in a later one; where there is
a public way that is slower, that is taken instead.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, _compile, nn
from torch.optim import optimizer as _optimizer
from torch.utils import _python_dispatch

from optplug._optplug import ffi

# ---- functions on lists of tensors, which torch's own optimizers are made of ----

foreach_copy_ = torch._foreach_copy_
foreach_zero_ = torch._foreach_zero_
foreach_add_ = torch._foreach_add_

# ---- LBFGS's row of gradients, and functions that its step finds by name ----

flatten_dense_tensors = torch._C._nn.flatten_dense_tensors
unflatten_dense_tensors = torch._C._nn.unflatten_dense_tensors
LINE_SEARCH, INTERPOLATION = "_strong_wolfe", "_cubic_interpolate"


# ---- modes ----


class grad_mode:  # noqa: N801 (a context, as torch.set_grad_enabled is)
    """``torch.set_grad_enabled``, at a third of the time: a context in which autograd records, or not."""

    __slots__ = ("_before", "_mode")

    def __init__(self, mode: bool) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(self._mode)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self._before)


count_function_modes = torch._C._len_torch_function_stack
pop_function_mode = torch._C._pop_torch_function_stack
push_function_mode = torch._C._push_on_torch_function_stack
count_dispatch_modes = torch._C._len_torch_dispatch_stack
pop_dispatch_mode = _python_dispatch._pop_mode
push_dispatch_mode = _python_dispatch._push_mode

# ---- optimizers ----

#: What torch puts around steps, and around other methods, for profilers and torch.compile.
profile_hook_step = _optimizer.Optimizer.profile_hook_step
use_grad_for_differentiable = _optimizer._use_grad_for_differentiable
disable_dynamo = _compile._disable_dynamo


def has_hooks(instance: torch.optim.Optimizer) -> bool:
    """Tell whether somebody, as a Python host may, wants to be called at the optimizer's steps."""
    return bool(
        _optimizer._global_optimizer_pre_hooks
        or _optimizer._global_optimizer_post_hooks
        or getattr(instance, "_optimizer_step_pre_hooks", None)  # which a class that is none of torch's lacks
        or getattr(instance, "_optimizer_step_post_hooks", None)
    )


def note_step(instance: torch.optim.Optimizer) -> None:
    """Let a scheduler that is attached from now on believe that a step was made, or it warns of one."""
    instance._opt_called = True  # type: ignore[attr-defined]


def is_wrapped_by_scheduler(step: Any) -> bool:
    """Tell whether a scheduler has put its own function around an optimizer's step."""
    return hasattr(step, "_wrapped_by_lr_sched")


#: Where schedulers that are made of others keep them, as an attribute and in their state_dict.
NESTED = "_schedulers"

# ---- modules ----


def module_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> nn.Module:
    """Return a module with these parameters, whatever their names: `register_parameter` takes no dots."""
    module = nn.Module()
    module._parameters.update(parameters)
    return module


# ---- generators ----


def cell_of(generator: torch.Generator) -> Any:
    """Return where a generator of Python's has the address of C++'s, as a pointer: after Python's header."""
    return ffi.cast("void **", id(generator) + object.__basicsize__)


def default_cell() -> Any:
    """Return the same of the one that all draw from; OSError or AttributeError where nobody can say."""
    import ctypes  # which few need

    library = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    function = library._ZN2at6detail22getDefaultCPUGeneratorEv
    function.restype = ctypes.c_void_p
    return ffi.cast("void **", function())


def words_of(generator: torch.Generator) -> int:
    """Return where C++ has the 624 numbers of a Mersenne twister; 0 if that is not to be seen.

    A state of torch's, as bytes, has 24 before these, and each in 8.  The process reads its own memory as a
    file: so what is not there to be read is an error, and no end.
    """
    words = generator.get_state()[24 : 24 + 624 * 8].view(torch.int64).numpy().astype("uint32").tobytes()
    address = int(ffi.cast("intptr_t", cell_of(generator)[0]))
    try:
        with pathlib.Path("/proc/self/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            place = memory.read(len(words) + 512).find(words)
    except (OSError, ValueError, OverflowError):
        return 0
    return address + place if place >= 0 else 0


# ---- tensors and operators ----


def nnz(tensor: Tensor) -> int:
    """Return how many rows a sparse tensor has, without a check that they come once."""
    return tensor._nnz()


#: DLPack's functions of torch's, which C calls; None where it has none.
exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
#: Tells how many owners a tensor has, besides those in Python; None before torch 2.12 or so.
use_count: Callable[[Tensor], int] | None = getattr(Tensor, "_use_count", None)


def storage_of(tensor: Tensor) -> tuple[Any, int]:
    """Return a tensor's memory, and its address for `owners`."""
    storage = tensor.untyped_storage()
    return storage, storage._cdata


#: Tells how many tensors, and objects of Python's, have a memory.
owners = torch._C._storage_Use_Count


def is_shared(tensor: Tensor) -> bool:
    """Tell whether another tensor has the same memory."""
    storage = tensor.untyped_storage()  # which counts itself
    return torch._C._storage_Use_Count(storage._cdata) > 2


def schema_arguments(operator: str, overload: str = "default") -> Sequence[Any]:
    """Return what an operator of torch's takes; AttributeError where torch has none of that name."""
    return getattr(getattr(torch.ops.aten, operator), overload)._schema.arguments
