"""How calls of torch's functions are read: as which `elementwise` operation, on what, with what numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from optplug.number import Number

#: Functions of torch's that read no value and change none.
HARMLESS = frozenset(
    {
        "__get__",
        "detach",
        "__len__",
        "_set_grad_enabled",
        "dim",
        "element_size",
        "empty_like",
        "is_complex",
        "is_contiguous",
        "is_floating_point",
        "is_same_size",
        "numel",
        "size",
        "stride",
    }
)

#: Functions of torch's that return a tensor itself, or its memory in its shape, where nothing is to be done.
CONVERSIONS = frozenset(
    {
        "bfloat16",
        "contiguous",
        "double",
        "expand",
        "expand_as",
        "flatten",
        "float",
        "half",
        "reshape",
        "to",
        "type",
        "type_as",
        "view",
        "view_as",
    }
)

#: Functions of torch's that make a tensor of one value: which, None if they are told.
FILLED = {"full": None, "full_like": None, "ones": 1.0, "ones_like": 1.0, "zeros": 0.0, "zeros_like": 0.0}

_Read = Callable[..., tuple[str, list[Tensor], list[Any]]]


def _unary(kind: str) -> _Read:
    return lambda a: (kind, [a], [])


def _binary(kind: str) -> _Read:
    """Return how a function of two arrays is read, or of an array and a number."""

    def read(a: Any, b: Any) -> tuple[str, list[Tensor], list[Any]]:
        return (kind, [a, b], []) if isinstance(b, Tensor) else (f"{kind} scalar", [a], [b])

    return read


def _commuting(kind: str) -> _Read:
    read = _binary(kind)
    return lambda a, b, **kwargs: read(a, b, **kwargs) if isinstance(a, Tensor) else read(b, a, **kwargs)


def _add(a: Any, b: Any, c: Any = None, *, alpha: Any = 1) -> tuple[str, list[Tensor], list[Any]]:
    if c is not None:  # the factor stands before what it is of, as torch once had it
        b, alpha = c, b
    if not isinstance(a, Tensor):
        a, b = b, a
    if isinstance(b, Tensor):
        return "add", [a, b], [alpha]
    if type(alpha) is Number or alpha != 1:
        raise TypeError("alpha")
    return "add scalar", [a], [b]


def _sub(a: Any, b: Any, *, alpha: Any = 1) -> tuple[str, list[Tensor], list[Any]]:
    return _add(a, b if isinstance(b, Tensor) else -b, alpha=-alpha if isinstance(b, Tensor) else alpha)


def _three(kind: str) -> _Read:
    def read(a: Any, b: Any, c: Any, d: Any = None, *, value: Any = 1) -> tuple[str, list[Tensor], list[Any]]:
        return (kind, [a, b, c], [value]) if d is None else (kind, [a, c, d], [b])

    return read


def _clamp(a: Tensor, min: Any = None, max: Any = None) -> tuple[str, list[Tensor], list[Any]]:  # noqa: A002
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise TypeError("a bound is a tensor")  # of two zeros, torch returns the other one then
    if max is None:
        return "clamp min", [a], [min]
    return ("clamp max", [a], [max]) if min is None else ("clamp", [a], [min, max])


def _pow(a: Tensor, exponent: Any) -> tuple[str, list[Tensor], list[Any]]:
    if type(exponent) is Number or exponent not in (0.5, 2):
        raise TypeError("exponent")
    return "square" if exponent == 2 else "root", [a], []


#: How calls of torch's functions are read: as which operation, on which arrays, with which numbers.
READ: dict[str, _Read] = {
    "abs": _unary("abs"),
    "absolute": _unary("abs"),
    "add": _add,
    "__add__": _add,
    "__radd__": _add,
    "addcdiv": _three("addcdiv"),
    "addcmul": _three("addcmul"),
    "clamp": _clamp,
    "clamp_max": lambda a, max: _clamp(a, max=max),  # noqa: A006
    "clamp_min": lambda a, min: _clamp(a, min),  # noqa: A006
    "clip": _clamp,
    "clone": lambda a, **_: ("copy", [a], []),
    "copy": lambda _to, a: ("copy", [a], []),
    "div": _binary("div"),
    "true_divide": _binary("div"),
    "__truediv__": _binary("div"),
    "eq": lambda a, v: ("eq", [a], [v]),
    "fill": lambda a, v: ("fill", [a], [v]),
    "gt": lambda a, v: ("gt", [a], [v]),
    "lerp": lambda a, end, weight: ("lerp", [a, end], [weight]),
    "lt": lambda a, v: ("lt", [a], [v]),
    "max": lambda a, b: ("maximum", [a, b], []),
    "maximum": lambda a, b: ("maximum", [a, b], []),
    "min": lambda a, b: ("minimum", [a, b], []),
    "minimum": lambda a, b: ("minimum", [a, b], []),
    "mul": _commuting("mul"),
    "__mul__": _commuting("mul"),
    "__rmul__": _commuting("mul"),
    "neg": _unary("negate"),
    "__neg__": _unary("negate"),
    "pow": _pow,
    "__pow__": _pow,
    "reciprocal": _unary("reciprocal"),
    "sgn": _unary("sgn"),
    "sign": _unary("sign"),
    "sqrt": _unary("sqrt"),
    "square": _unary("square"),
    "sub": _sub,
    "__sub__": _sub,
    "zero": lambda a: ("fill", [a], [0.0]),
}
