"""Operations on each value of an array that C can do with the very bits of torch, which is tried out.

Torch's compiler fuses some sums with products and not others, and its square root may be Intel's, which is
not always rounded correctly.  So C has several for each operation, and the one used is that whose every bit
is torch's on numbers of all kinds.  Without one, nothing is recorded that has this operation in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optplug import host
from optplug._optplug import ffi, lib

#: The dtypes that C knows.
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Operation:
    """One of torch's: how to call it with up to three arrays and two scalars, and what stands for it in C."""

    torchs: Callable[..., Tensor]
    names: Sequence[str]
    arrays: int = 1
    scalars: int = 0
    #: A first scalar with which torch has other bits at the end of an array than before it.
    never: float | None = None

    @property
    def in_c(self) -> list[int]:
        """Return C's numbers of what may stand for it."""
        return [getattr(lib, f"ELEMENTWISE_{name}") for name in self.names]


def _filled(a: Tensor, b: Tensor, v: float) -> Tensor:
    result = a.clone()
    result[b != 0] = v
    return result


OPERATIONS = {
    "copy": Operation(lambda a: a.clone(), ["COPY"]),
    "negate": Operation(lambda a: a.neg(), ["NEGATE"]),
    "abs": Operation(lambda a: a.abs(), ["ABS"]),
    "sign": Operation(lambda a: a.sign(), ["SIGN"]),
    "sgn": Operation(lambda a: a.sgn(), ["SIGN"]),
    "square": Operation(lambda a: a.square(), ["SQUARE"]),
    "root": Operation(lambda a: a.pow(0.5), ["SQRT", "SQRT_MKL"]),
    "sqrt": Operation(lambda a: a.sqrt(), ["SQRT", "SQRT_MKL"]),
    "reciprocal": Operation(lambda a: a.reciprocal(), ["RECIPROCAL"]),
    "add scalar": Operation(lambda a, v: a.add(v), ["ADD_SCALAR"], 1, 1),
    "mul scalar": Operation(lambda a, v: a.mul(v), ["MUL_SCALAR"], 1, 1),
    "div scalar": Operation(lambda a, v: a.div(v), ["DIV_SCALAR", "DIV_SCALAR_BY_MUL"], 1, 1),
    "add": Operation(lambda a, b, v: a.add(b, alpha=v), ["ADD_FMA", "ADD"], 2, 1),
    "mul": Operation(lambda a, b: a.mul(b), ["MUL"], 2),
    "div": Operation(lambda a, b: a.div(b), ["DIV"], 2),
    "addcmul": Operation(
        lambda a, b, c, v: a.addcmul(b, c, value=v),
        ["ADDCMUL_FMA", "ADDCMUL", "ADDCMUL_RIGHT_FMA", "ADDCMUL_RIGHT"],
        3,
        1,
    ),
    "addcdiv": Operation(
        lambda a, b, c, v: a.addcdiv(b, c, value=v),
        ["ADDCDIV", "ADDCDIV_RIGHT_FMA", "ADDCDIV_RIGHT"],
        3,
        1,
    ),
    "lerp": Operation(lambda a, b, v: a.lerp(b, v), ["LERP_FMA", "LERP"], 2, 1, never=1.0),
    "maximum": Operation(lambda a, b: a.maximum(b), ["MAXIMUM"], 2),
    "minimum": Operation(lambda a, b: a.minimum(b), ["MINIMUM"], 2),
    "clamp": Operation(lambda a, v, u: a.clamp(v, u), ["CLAMP"], 1, 2),
    "clamp min": Operation(lambda a, v: a.clamp(min=v), ["CLAMP_MIN"], 1, 1),
    "clamp max": Operation(lambda a, v: a.clamp(max=v), ["CLAMP_MAX"], 1, 1),
    "gt": Operation(lambda a, v: a.gt(v).to(a.dtype), ["GREATER"], 1, 1),
    "lt": Operation(lambda a, v: a.lt(v).to(a.dtype), ["LESS"], 1, 1),
    "eq": Operation(lambda a, v: a.eq(v).to(a.dtype), ["EQUAL"], 1, 1),
    "fill where": Operation(lambda a, b, v: _filled(a, b, v), ["FILL_WHERE"], 2, 1),
}

_SCALARS = (-1e-3, 1.0, -1.0, 0.1, 0.5, 0.9, 0.999, 1 - 0.999, 1e-8, 3.3, 0.0, 1e-42, 1e30)
#: How arrays lie that an operation is tried on: without gaps, and in ways over which torch loops otherwise.
_Lay = Callable[[Sequence[Tensor]], list[Tensor]]
_COLUMNS = 13
_LAYOUTS: list[_Lay] = [
    list,
    lambda arrays: [scattered(t) for t in arrays],
    lambda arrays: [in_rows(t) for t in arrays],
    lambda arrays: [scattered(t) if i % 2 else t for i, t in enumerate(arrays)],
    lambda arrays: [t if i % 2 else scattered(t) for i, t in enumerate(arrays)],
]
_LENGTHS = (1, 2, 3, 5, 7, 13, 67, 1031)


@functools.cache
def choose(name: str, dtype: torch.dtype, has_gaps: bool = False) -> int | None:
    """Return C's number for an operation whose every bit is torch's; None if there is none.

    Args:
        has_gaps: whether arrays may have gaps, over which torch loops otherwise.
    """
    operation = OPERATIONS[name]
    for number in operation.in_c:
        if all(_is_torchs(operation, number, dtype, lay) for lay in (_LAYOUTS if has_gaps else _LAYOUTS[:1])):
            return number
    return None


def scattered(values: Tensor) -> Tensor:
    """Return a copy of a vector or matrix with gaps between its values."""
    return values.repeat_interleave(2, dim=-1)[..., ::2]


def in_rows(values: Tensor) -> Tensor:
    """Return a copy of a vector as a matrix with gaps between its rows; what fills no row is left out."""
    rows = values[: len(values) // _COLUMNS * _COLUMNS].view(-1, _COLUMNS)
    return torch.cat([rows, rows], dim=1)[:, :_COLUMNS]


def run(number: int, to: Tensor, a: Tensor, b: Tensor, c: Tensor, v: float, u: float) -> bool:
    """Let C do an operation on whole arrays of one length; False if this machine has none of that number."""
    pointers = [ffi.cast("void *", t.data_ptr()) for t in (to, a, b, c)]
    return bool(host.table.elementwise(number, to.itemsize, to.numel(), *pointers, v, u))


def _is_torchs(operation: Operation, number: int, dtype: torch.dtype, lay: _Lay = list) -> bool:
    scalars = [v for v in _SCALARS if v != operation.never] if operation.scalars else [0.0]
    for arrays in _numbers(dtype):
        laid = lay(arrays)
        a, b, c = (t.contiguous().flatten() for t in laid)
        for i, v in enumerate(scalars):
            u = _SCALARS[i - 1]
            arguments = (*laid[: operation.arrays], *(v, u)[: operation.scalars])
            expected, found = operation.torchs(*arguments).contiguous().flatten(), torch.empty_like(a)
            if not run(number, found, a, b, c, v, u) or not is_same(expected, found):
                return False
            found.copy_(a)  # in place
            if not run(number, found, found, b, c, v, u) or not is_same(expected, found):
                return False
    return True


def is_same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two arrays have the same bits, but for the bits of what is no number."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    different = a.view(bits) != b.view(bits)
    return not bool((different & ~(a.isnan() & b.isnan())).any())


@functools.cache
def _numbers(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return arrays of some lengths with numbers of all sizes, denormal ones, infinities, nans and zeros."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.finfo(dtype)
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), limits.max, -limits.max, limits.tiny]
    special += [limits.tiny / 8, -limits.tiny / 1024, limits.smallest_normal * 3, 1.0, -1.0, 0.5, limits.eps]

    def draw(n: int, spread: float) -> Tensor:
        sizes = torch.randn(n, generator=generator, dtype=torch.float64) * spread
        values = torch.randn(n, generator=generator, dtype=torch.float64) * 10**sizes
        picked = torch.randint(0, 4 * len(special), (n,), generator=generator)
        for i, value in enumerate(special):
            values[picked == i] = value
        return values.to(dtype)

    return [(draw(n, s), draw(n, s), draw(n, s)) for n in _LENGTHS for s in (0.3, 3.0)]
