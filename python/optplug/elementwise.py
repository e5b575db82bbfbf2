"""Operations on each value of an array that C can do with the very bits of torch, which is tried out.

Torch's compiler fuses some sums with products and not others, and its square root may be Intel's, which is
not always rounded correctly.  So C has several for each operation, and the one used is that whose every bit
is torch's on numbers of all kinds.  Without one, nothing is recorded that has this operation in it.

Torch's loops take whole vectors and then, at the end of each thread's share of an array, the values that are
left, which may be rounded otherwise: for some operations C has another one there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from optplug import host
from optplug._optplug import ffi, lib

#: The dtypes that C computes in, those that it rounds each result to, and all that records are made of.
DTYPES = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
RECORDED = (*HALVES, *DTYPES)


@dataclass(frozen=True)
class Operation:
    """One of torch's: how to call it with up to three arrays and two scalars, and what stands for it in C."""

    torchs: Callable[..., Tensor]
    names: Sequence[str]
    arrays: int = 1
    scalars: int = 0
    #: What else may stand for it, at the end of an array or before that.
    ends: Sequence[str] = ()
    #: A first scalar with which torch has other bits there than before it.
    never: float | None = None
    #: Whether scalars are rounded to half precision first, or are float32 there.
    rounds: bool = False
    #: Whether it returns one of two zeros of different signs: over gaps by its place, which is not looked at.
    takes_either_zero: bool = False

    @property
    def in_c(self) -> list[int]:
        """Return C's numbers of what may stand for it."""
        return [getattr(lib, f"ELEMENTWISE_{name}") for name in (*self.names, *self.ends)]


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
    "add scalar": Operation(lambda a, v: a.add(v), ["ADD_SCALAR"], 1, 1, rounds=True),
    "mul scalar": Operation(lambda a, v: a.mul(v), ["MUL_SCALAR"], 1, 1),
    "div scalar": Operation(lambda a, v: a.div(v), ["DIV_SCALAR", "DIV_SCALAR_BY_MUL"], 1, 1),
    "add": Operation(
        lambda a, b, v: a.add(b, alpha=v),
        ["ADD_FMA", "ADD"],
        2,
        1,
        ends=["ADD_FLOAT16", "ADD_BFLOAT16"],
        rounds=True,
    ),
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
    "lerp": Operation(
        lambda a, b, v: a.lerp(b, v),
        ["LERP_FMA", "LERP"],
        2,
        1,
        ends=["LERP_BACK_FMA", "LERP_BACK"],
        never=1.0,
    ),
    "maximum": Operation(
        lambda a, b: a.maximum(b), ["MAXIMUM"], 2, ends=["MAXIMUM_FIRST"], takes_either_zero=True
    ),
    "minimum": Operation(
        lambda a, b: a.minimum(b), ["MINIMUM"], 2, ends=["MINIMUM_FIRST"], takes_either_zero=True
    ),
    "clamp": Operation(lambda a, v, u: a.clamp(v, u), ["CLAMP"], 1, 2, ends=["CLAMP_ZEROS"], rounds=True),
    "clamp min": Operation(
        lambda a, v: a.clamp(min=v), ["CLAMP_MIN"], 1, 1, ends=["CLAMP_MIN_ZEROS"], rounds=True
    ),
    "clamp max": Operation(
        lambda a, v: a.clamp(max=v), ["CLAMP_MAX"], 1, 1, ends=["CLAMP_MAX_ZEROS"], rounds=True
    ),
    "gt": Operation(lambda a, v: a.gt(v).to(a.dtype), ["GREATER"], 1, 1, rounds=True),
    "lt": Operation(lambda a, v: a.lt(v).to(a.dtype), ["LESS"], 1, 1, rounds=True),
    "eq": Operation(lambda a, v: a.eq(v).to(a.dtype), ["EQUAL"], 1, 1, rounds=True),
    "fill": Operation(lambda a, v: torch.full_like(a, v), ["FILL"], 1, 1, rounds=True),
    "fill where": Operation(lambda a, b, v: _filled(a, b, v), ["FILL_WHERE"], 2, 1),
}

_SCALARS = (-1e-3, 0.1, 0.9, 0.999, 3.3, 1.0, -1.0, 0.5, 1 - 0.999, 1e-8, 0.0, -0.0, 1e-42, 1e30)
#: How arrays lie that an operation is tried on: without gaps, and in ways over which torch loops otherwise.
_Lay = Callable[[Sequence[Tensor]], list[Tensor]]
_COLUMNS = 13
_LAYOUTS: list[_Lay] = [
    list,
    lambda arrays: [scattered(t) for t in arrays],
    lambda arrays: [scattered(t) if i % 2 else t for i, t in enumerate(arrays)],
    lambda arrays: [t if i % 2 else scattered(t) for i, t in enumerate(arrays)],
]
_LENGTHS = (1, 2, 3, 5, 7, 13, 67, 1031)
_MANY = (32_000,) * 2


class _Split(NamedTuple):
    """C's numbers for an operation's vectors and for what fills none, and how many values a vector has."""

    number: int
    end: int
    lanes: int


@functools.cache
def choose(name: str, dtype: torch.dtype, has_gaps: bool = False) -> int | None:
    """Return C's number for an operation whose every bit is torch's; None if there is none.

    Args:
        has_gaps: whether arrays may have gaps, over which torch loops otherwise.
    """
    operation = OPERATIONS[name]
    if not has_gaps and (split := _split(name, dtype)):
        return split.number
    for number in operation.in_c:
        if all(_is_torchs(operation, number, dtype, lay) for lay in _layouts(has_gaps)):
            return number
    return None


def at_end(name: str, dtype: torch.dtype, has_gaps: bool = False) -> int | None:
    """Return the same for the values that fill no vector."""
    split = None if has_gaps else _split(name, dtype)
    return split.end if split else choose(name, dtype, has_gaps)


def throughout(name: str, dtype: torch.dtype) -> int | None:
    """Return the same for arrays without gaps, their ends included; None if those have other bits."""
    return None if lanes(name, dtype) else choose(name, dtype)


@functools.cache
def quickest_root() -> int:
    """Return C's number for a root of float32 with the bits of Intel's, without its call if there is one."""
    one = torch.ones(1)
    is_there = run(lib.ELEMENTWISE_SQRT_NEWTON, one, one, one, one, 0.0, 0.0)
    return lib.ELEMENTWISE_SQRT_NEWTON if is_there else lib.ELEMENTWISE_SQRT_MKL


def lanes(name: str, dtype: torch.dtype) -> int:
    """Return how many values torch takes at once, where it has other bits after those; else 0."""
    split = _split(name, dtype)
    return split.lanes if split else 0


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return a number as a dtype has it."""
    return torch.scalar_tensor(value, dtype=torch.float64).to(dtype).item()


def in_range(value: float, dtype: torch.dtype) -> bool:
    """Tell whether torch takes a number for a dtype."""
    return abs(value) <= torch.finfo(dtype).max


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which C computes."""
    return torch.float32 if dtype in HALVES else dtype


def _layouts(has_gaps: bool) -> list[_Lay]:
    return [*_LAYOUTS, in_all_rows] if has_gaps else [list, in_all_rows]


def scattered(values: Tensor) -> Tensor:
    """Return a copy of a vector or matrix with gaps between its values."""
    return values.repeat_interleave(2, dim=-1)[..., ::2]


def in_rows(values: Tensor) -> Tensor:
    """Return a copy of a vector as a matrix with gaps between its rows; what fills no row is left out."""
    rows = values[: len(values) // _COLUMNS * _COLUMNS].view(-1, _COLUMNS)
    return torch.cat([rows, rows], dim=1)[:, :_COLUMNS]


def in_all_rows(arrays: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of vectors as matrices, each of whose rows is the end of torch's loop."""
    return [in_rows(t) for t in arrays]


def run(number: int, to: Tensor, a: Tensor, b: Tensor, c: Tensor, v: float, u: float) -> bool:
    """Let C do an operation on whole arrays of one length; False if this machine has none of that number."""
    pointers = [ffi.cast("void *", t.data_ptr()) for t in (to, a, b, c)]
    return bool(host.table.elementwise(number, format_of(to.dtype), to.numel(), *pointers, v, u))


def format_of(dtype: torch.dtype) -> int:
    """Return C's number for a dtype: see `optplug_format`."""
    return -dtype.itemsize if dtype in (torch.bfloat16, torch.int64) else dtype.itemsize


def _is_torchs(operation: Operation, number: int | _Split, dtype: torch.dtype, lay: _Lay = list) -> bool:
    is_split = isinstance(number, _Split)
    scalars = _scalars(operation, dtype, None if is_split else operation.never)
    # Of two that are rounded to half precision only one value in 100 000 tells which it is.
    many = _many(dtype) if len(operation.in_c) > 1 else []
    for arrays in [*_numbers(dtype), *many]:
        if lay is in_all_rows and len(arrays[0]) < _COLUMNS:
            continue
        laid = lay([t + 0.0 for t in arrays] if operation.takes_either_zero and not is_split else arrays)
        a, b, c = (t.contiguous().flatten() for t in laid)
        for v, u in scalars[:5] if len(arrays[0]) == _MANY[0] else scalars:
            arguments = (*laid[: operation.arrays], *(v, u)[: operation.scalars])
            expected, found = operation.torchs(*arguments).contiguous().flatten(), torch.empty_like(a)
            if not _run(operation, number, found, a, b, c, v, u) or not is_same(expected, found):
                return False
            if lay is in_all_rows or len(arrays[0]) == _MANY[0]:
                continue
            found.copy_(a)  # in place
            if not _run(operation, number, found, found, b, c, v, u) or not is_same(expected, found):
                return False
    return True


def _scalars(
    operation: Operation, dtype: torch.dtype, never: float | None = None
) -> list[tuple[float, float]]:
    if not operation.scalars:
        return [(0.0, 0.0)]
    # Only clamps are asked about -0, which they may order; under valgrind FMA gives zeros another sign.
    asked = [v for v in _SCALARS if operation.names[0].startswith("CLAMP") or str(v) != "-0.0"]
    first = [v for v in asked if v != never and in_range(v, dtype)]
    return list(zip(first, [first[-1], *first], strict=False))


def _run(
    operation: Operation,
    number: int | _Split,
    to: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    v: float,
    u: float,
) -> bool:
    if operation.rounds and to.dtype in HALVES:
        v, u = rounded(v, to.dtype), rounded(u, to.dtype)
    if not isinstance(number, _Split):
        return run(number, to, a, b, c, v, u)
    rest = len(to) // number.lanes * number.lanes if number.lanes else len(to)
    return run(number.number, to[:rest], a[:rest], b[:rest], c[:rest], v, u) and run(
        number.end, to[rest:], a[rest:], b[rest:], c[rest:], v, u
    )


# ---- where arrays end ----


@functools.cache
def _split(name: str, dtype: torch.dtype) -> _Split | None:
    """Return what stands for an operation that arrays' ends may have another of; None if that is unknown."""
    operation = OPERATIONS[name]
    if not operation.ends:
        return None
    number = _find(operation, dtype, lambda t: t[: len(t) // _WHOLE * _WHOLE])
    end = _find(operation, dtype, _in_short_rows)
    if number is None or end is None:
        return None
    split = _Split(number, end, _lanes(operation, number, end, dtype) if number != end else 0)
    is_known = (split.lanes or number == end) and _is_torchs(operation, split, dtype)
    return split if is_known else None


#: So many values are whole vectors on all processors, and so few are none.
_WHOLE, _SHORT = 512, 3


def _in_short_rows(values: Tensor) -> Tensor:
    return torch.cat([values[: len(values) // _SHORT * _SHORT].view(-1, _SHORT)] * 2, dim=1)[:, :_SHORT]


def _find(operation: Operation, dtype: torch.dtype, lay: Callable[[Tensor], Tensor]) -> int | None:
    """Return which of C's operations has torch's bits on arrays that are laid so."""
    tries = [
        (operation, pair, laid, operation.torchs(*laid[: operation.arrays], *pair[: operation.scalars]))
        for arrays in (*_numbers(dtype)[:1], *_numbers(dtype)[-2:], *_many(dtype))
        for laid in [list(map(lay, arrays))]
        for pair in _scalars(operation, dtype)[: 5 if len(arrays[0]) == _MANY[0] else None]
    ]
    return next((n for n in operation.in_c if all(_has_bits(n, *one) for one in tries)), None)


def _has_bits(
    number: int, operation: Operation, pair: tuple[float, float], laid: Sequence[Tensor], expected: Tensor
) -> bool:
    a, b, c = (t.contiguous().flatten() for t in laid)
    found = torch.empty_like(a)
    return _run(operation, number, found, a, b, c, *pair) and is_same(expected.contiguous().flatten(), found)


def _lanes(operation: Operation, number: int, end: int, dtype: torch.dtype) -> int:
    """Return how many values torch takes at once, seen by one on which the two differ; 0 if it is not so."""
    for pair in _scalars(operation, dtype):
        for a, b, c in _numbers(dtype):
            first, second = torch.empty_like(a), torch.empty_like(a)
            _run(operation, number, first, a, b, c, *pair)
            _run(operation, end, second, a, b, c, *pair)
            other = (_bits(first) != _bits(second)) & ~first.isnan()
            if bool(other.any()):
                i = int(other.nonzero()[0])
                return _lanes_by(operation, pair, [a[i], b[i]][: operation.arrays], second[i])
    return 0


def _lanes_by(
    operation: Operation, pair: tuple[float, float], values: Sequence[Tensor], at_end: Tensor
) -> int:
    def is_end(n: int) -> Tensor:
        found = operation.torchs(*(t.repeat(n) for t in values), *pair[: operation.scalars])
        return _bits(found) == _bits(at_end.repeat(n))

    lanes = 2 * _WHOLE - int((~is_end(2 * _WHOLE - 1)).sum())
    if lanes <= 0:
        return 0
    place = torch.arange(_WHOLE)
    lengths = {*range(1, 2 * lanes), *(n for k in range(0, _WHOLE, lanes) for n in (k - 1, k, k + 1))}
    is_so = all(torch.equal(is_end(n), place[:n] >= n // lanes * lanes) for n in lengths if 0 < n < _WHOLE)
    return lanes if is_so and _is_shared(is_end, lanes) else 0


def _is_shared(is_end: Callable[[int], Tensor], lanes: int) -> bool:
    """Tell whether threads share long arrays as C does: see `run_share` in record.c."""
    n = 3 * lib.WORTH_THREADS + 4 * _WHOLE - 1
    expected = torch.zeros(n, dtype=torch.bool)
    for begin, stop in shares(n):
        expected[begin + (stop - begin) // lanes * lanes : stop] = True
    return torch.equal(is_end(n), expected)


def shares(n: int) -> list[tuple[int, int]]:
    """Return where each thread's share of an array begins and ends."""
    threads = 1 if n < lib.WORTH_THREADS else min(torch.get_num_threads(), -(-n // lib.WORTH_THREADS))
    size = -(-n // threads) if n else 1
    return [(begin, min(begin + size, n)) for begin in range(0, n, size)]


def is_same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two arrays have the same bits, but for the bits of what is no number."""
    left, right = _bits(a), _bits(b)
    return torch.equal(left, right) or not bool(((left != right) & ~(a.isnan() & b.isnan())).any())


def _bits(values: Tensor) -> Tensor:
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])


def _numbers(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return arrays of some lengths with numbers of all sizes, denormal ones, infinities, nans and zeros."""
    return _drawn(dtype, _LENGTHS)


def _many(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return long arrays of them where only few values tell one operation from another."""
    return _drawn(dtype, _MANY) if dtype in HALVES else []


@functools.cache
def _drawn(dtype: torch.dtype, lengths: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    limits = torch.finfo(dtype)
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), limits.max, -limits.max, limits.tiny]
    special += [limits.tiny / 8, -limits.tiny / 1024, limits.smallest_normal * 3, 1.0, -1.0, 0.5, limits.eps]

    def draw(n: int, spread: float) -> Tensor:
        sizes = torch.randn(n, generator=generator, dtype=torch.float64) * spread
        values = torch.randn(n, generator=generator, dtype=torch.float64) * 10**sizes
        picked = torch.randint(0, 4 * n_special, (n,), generator=generator)
        return torch.where(picked < n_special, exact[picked % n_special], values).to(dtype)

    exact, n_special = torch.tensor(special, dtype=torch.float64), len(special)
    those = exact.to(dtype)
    n = len(those)
    pairs = those.repeat_interleave(n), those.repeat(n), those.roll(1).repeat(n)
    return [pairs, *((draw(n, s), draw(n, s), draw(n, s)) for n in lengths for s in (0.3, 3.0))]
