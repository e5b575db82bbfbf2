"""Clip gradients by their norm, also where PyTorch's own norm is off.

On the CPU PyTorch adds up the squares of float32 numbers in float32.  From some 1e7 values on that loses more
than it keeps: the norm of 2**28 ones is 11585 and not 16384 (torch 2.13).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from optplug.buffers import is_dense
from optplug.errors import NonFiniteError

_LONG = 10_000_000  # values from which on a gradient's norm is that of its pieces' norms
_PIECE = 1 << 16  # values in each: the norm of 2**28 ones is right to the last bit then


def clip_grad_norm_(
    parameters: list[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    """Do what ``torch.nn.utils.clip_grad_norm_`` does, with its bits where no gradient is long.

    Raises:
        NonFiniteError: the norm is not finite, and that is to be told.
        ValueError: max_norm is negative, or one of the numbers is none.
    """
    check(max_norm, norm_type)
    try:
        return _clip(parameters, max_norm, norm_type, error_if_nonfinite)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        raise non_finite(norm_type) from error


def non_finite(norm_type: float, of: str = "") -> NonFiniteError:
    """Return the error of a total norm that is inf or nan; ``of`` says of what besides the gradients."""
    return NonFiniteError(
        f"the gradients' total norm of order {norm_type:g}{of} is non-finite, so none was changed: set "
        "error_if_nonfinite to 0 to clip them all the same, or opt_init's error_if_nonfinite=True, "
        "with which opt_step names the parameter"
    )


def check(max_norm: float, norm_type: float) -> None:
    """Check what clipping is asked for."""
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be a number from 0, got {max_norm}")
    if norm_type != norm_type:
        raise ValueError(f"norm_type must be a number, got {norm_type}")


def clip_grad_value_(parameters: list[Tensor], clip_value: float) -> None:
    """Do what ``torch.nn.utils.clip_grad_value_`` does."""
    if not clip_value >= 0:
        raise ValueError(f"clip_value must be a number from 0, got {clip_value}")
    nn.utils.clip_grad_value_(parameters, clip_value)


def total_norm(parameters: list[Tensor], norm_type: float, error_if_nonfinite: bool = False) -> Tensor:
    """Return the norm of all gradients together."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if 0 < norm_type < math.inf and any(map(_is_long, grads)):
        grads = [piece for grad in grads for piece in _pieces(grad)]
    return nn.utils.get_total_norm(grads, norm_type, error_if_nonfinite)


def _clip(parameters: list[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    if not (0 < norm_type < math.inf and any(_is_long(p.grad) for p in parameters)):
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
    total = total_norm(parameters, norm_type, error_if_nonfinite)
    nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total


def _is_long(grad: Tensor | None) -> bool:
    return (
        grad is not None
        and grad.numel() > _LONG
        and grad.device.type == "cpu"
        and grad.dtype not in (torch.float64, torch.complex128)
    )


def _pieces(grad: Tensor) -> Iterator[Tensor]:
    """Cut a gradient, without a copy; one that is not long is its only piece."""
    if not _is_long(grad):
        yield grad
    elif is_dense(grad.shape, grad.stride()):
        yield from grad.as_strided((grad.numel(),), (1,)).split(_PIECE)
    else:
        longest = max(range(grad.dim()), key=grad.size)
        yield from grad.split(max(1, _PIECE * grad.size(longest) // grad.numel()), longest)
