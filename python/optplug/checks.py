"""Whether what a checkpoint has is of the kind that it must be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from optplug.buffers import name_of
from optplug.spec import shown
from optplug.stored import Foreign, Stored

_MOST = 1 << 53  # what a float64 counts to


@contextlib.contextmanager
def of_checkpoint() -> Iterator[None]:
    """Let what a file lacks, or has of another kind where nobody looks, be a ValueError that says so."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"not a checkpoint: it has no {shown(*error.args)}") from error
    except (AttributeError, IndexError, OverflowError, TypeError) as error:
        raise ValueError("not a checkpoint: an entry has the wrong type") from error


def check_like(what: str, value: Any, like: Any) -> Any:
    """Return a plain value of a file's as it is to be, or raise ValueError if it is not of another's kind.

    Numbers stand for numbers, words for words, and containers for those of as many items; bools for bools
    alone.  Tensors are read.
    """
    if isinstance(like, Tensor) and isinstance(value, Stored):
        return check_tensor(what, value, like.dtype, like.shape).tensor()
    if isinstance(like, tuple | list) and isinstance(value, tuple | list) and len(like) == len(value):
        return type(like)(check_like(what, v, e) for v, e in zip(value, like, strict=True))
    if isinstance(like, dict) and isinstance(value, dict) and like.keys() == value.keys():
        return type(like)(
            {key: check_like(f"{what}[{shown(key)}]", v, like[key]) for key, v in value.items()}
        )
    is_alike = type(value) is type(like) or (is_number(value) and is_number(like))
    if not is_alike or isinstance(value, Stored | Foreign | dict | list | tuple):
        raise ValueError(f"{what} is {shown(value)}, and must be like {shown(like)}")
    if isinstance(value, int) and abs(value) > _MOST:
        raise ValueError(f"{what} is {shown(value)}, which is too large")
    return value


def check_count(what: str, value: Any) -> int:
    """Return a number of steps, or raise ValueError if it is none."""
    if not is_number(value):
        raise ValueError(f"{what} is {shown(value)}, and must be a number")
    if not 0 <= value <= _MOST or value != int(value):
        raise ValueError(f"{what} must be a whole number from 0 to 2**53, got {shown(value)}")
    return int(value)


def check_tensor(what: str, value: Any, dtype: torch.dtype, shape: Iterable[int]) -> Stored:
    """Return a tensor that is to be read, or raise ValueError if it is another than it must be."""
    if not isinstance(value, Stored):
        raise ValueError(f"{what} is {kind_of(value)}, and must be a tensor")
    if (value.dtype, value.shape) != (dtype, tuple(shape)):
        raise ValueError(
            f"{what} has another shape or dtype: it is {kind_of(value)} of shape {value.shape}, "
            f"and must be {name_of(dtype)} of shape {tuple(shape)}"
        )
    return value


def is_number(value: object) -> bool:
    """Tell whether a value is a number, which True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def word(value: object) -> str:
    """Return a name as it is, and what is none as an error message shows it."""
    return value if type(value) is str and value.isidentifier() else shown(value)


def kind_of(value: object) -> str:
    """Return the dtype of a tensor or of what stands for one, or the type of something else."""
    if isinstance(value, Foreign):
        return shown(value)
    dtype = getattr(value, "dtype", None)
    return name_of(dtype) if dtype else type(value).__name__
