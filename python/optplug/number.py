"""Numbers that remember how they were computed, and which comparisons the computation went by."""

from __future__ import annotations

import contextlib
import math
import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from optplug._optplug import lib

#: Of integers up to here, and no more, doubles have all: 2**53 may be a larger one that is rounded.
_LARGEST = 2**53 - 1


@dataclass(frozen=True)
class Scalar:
    """How a scalar is computed: see ``optplug_scalar`` in ``csrc/bridge.h``."""

    kind: int
    a: int = -1
    b: int = -1
    elementwise: int = -1
    operands: tuple[int, int, int, int, int] = (-1, -1, -1, -1, -1)
    constant: float = 0.0


class Number:
    """A number that is computed with as a float or int, and remembers how it came about.

    Whoever asks whether it is a float or an int hears what the number that it stands for is.
    """

    __slots__ = ("_recording", "_value", "index")

    def __init__(self, recording: Computation, value: float, index: int) -> None:
        self._recording, self._value, self.index = recording, value, index

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._value)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch take it where it takes a number; the recording's mode sees it first."""
        return function(*plain(args), **plain(kwargs or {}))

    def __float__(self) -> float:
        self._recording.refuse("a function outside torch takes a number")
        return float(self._value)

    __int__ = __index__ = __round__ = __trunc__ = lambda self, *_: int(float(self))

    def __hash__(self) -> int:
        return hash(float(self))

    def __bool__(self) -> bool:
        return not self._recording.compared(lib.SCALAR_EQUAL, self, 0)

    def __repr__(self) -> str:
        self._recording.refuse("a text has a number in it")
        return repr(self._value)

    def __neg__(self) -> Number:
        return self._recording.computed(lib.SCALAR_NEGATE, -self._value, self)

    def __floor__(self) -> Number:
        return self._recording.computed(lib.SCALAR_FLOOR, math.floor(self._value), self)

    def __pos__(self) -> Number:
        return self

    def __abs__(self) -> float:
        return abs(float(self))

    def __lt__(self, other: Any) -> bool:
        return self._recording.compared(lib.SCALAR_LESS, self, other)

    def __gt__(self, other: Any) -> bool:
        return self._recording.compared(lib.SCALAR_LESS, other, self)

    def __le__(self, other: Any) -> bool:
        return self._recording.compared(lib.SCALAR_LESS_OR_EQUAL, self, other)

    def __ge__(self, other: Any) -> bool:
        return self._recording.compared(lib.SCALAR_LESS_OR_EQUAL, other, self)

    def __eq__(self, other: object) -> bool:
        return self._recording.compared(lib.SCALAR_EQUAL, self, other)

    def __ne__(self, other: object) -> bool:
        return not self._recording.compared(lib.SCALAR_EQUAL, self, other)


def _arithmetic(name: str, kind: int) -> None:
    """Give numbers an operator of Python's, from both sides."""
    compute: Callable[[Any, Any], Any] = getattr(operator, name)

    def forward(self: Number, other: Any) -> Any:
        if not is_number(other):
            return NotImplemented
        return self._recording.computed(kind, compute(plain(self), plain(other)), self, other)

    def backward(self: Number, other: Any) -> Any:
        if not is_number(other):
            return NotImplemented
        return self._recording.computed(kind, compute(plain(other), plain(self)), other, self)

    setattr(Number, f"__{name}__", forward)
    setattr(Number, f"__r{name}__", backward)


_arithmetic("add", lib.SCALAR_ADD)
_arithmetic("sub", lib.SCALAR_SUBTRACT)
_arithmetic("mul", lib.SCALAR_MULTIPLY)
_arithmetic("truediv", lib.SCALAR_DIVIDE)
_arithmetic("pow", lib.SCALAR_POWER)
_arithmetic("mod", lib.SCALAR_MODULO)


def is_double(value: object) -> bool:
    """Tell whether a value is a float, or an integer that a double has."""
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST + 1)


def is_number(value: object) -> bool:
    """Tell whether a value is a number of Python's, or one that remembers."""
    return type(value) in (Number, float, int, bool)


def plain(value: Any) -> Any:
    """Return a value with plain numbers in it."""
    if type(value) is Number:
        return value._value
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    if type(value) is dict:
        return {key: plain(v) for key, v in value.items()}
    return value


# Those of `math` that are understood: they take floats, and no other numbers.
_MATH: dict[str, tuple[Callable[..., float], int]] = {
    "sqrt": (math.sqrt, lib.SCALAR_SQRT),
    "cos": (math.cos, lib.SCALAR_COS),
    "pow": (math.pow, lib.SCALAR_POWER),
}
_lock = threading.Lock()
_understanding = 0  # how many want them to be understood now


def _understood(compute: Callable[..., float], kind: int) -> Callable[..., Any]:
    def call(*numbers: Any) -> Any:
        recording = next((n._recording for n in numbers if type(n) is Number), None)
        if recording is None or not all(map(is_number, numbers)):
            return compute(*numbers)
        return recording.computed(kind, compute(*map(plain, numbers)), *numbers)

    return call


_THAT_UNDERSTAND = {name: _understood(*each) for name, each in _MATH.items()}


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Let functions of Python's `math` take numbers that remember; to all others they are what they were."""
    global _understanding
    with _lock:
        _understanding += 1
        for name, (compute, _) in _MATH.items():
            if getattr(math, name) is compute:
                setattr(math, name, _THAT_UNDERSTAND[name])
    try:
        yield
    finally:
        with _lock:
            _understanding -= 1
            for name, (compute, _) in _MATH.items() if not _understanding else ():
                if getattr(math, name) is _THAT_UNDERSTAND[name]:  # and none of the host's own
                    setattr(math, name, compute)


class Computation:
    """What numbers take part in: scalars, each computed from those before, and how comparisons came out."""

    def __init__(self) -> None:
        #: Why it cannot be repeated; "" if it can.
        self.reason = ""
        self.scalars: list[Scalar] = []
        self.guards: dict[int, bool] = {}

    def option(self, index: int, value: float) -> Number:
        """Return the number that stands for a hyperparameter."""
        return Number(self, value, self.add(Scalar(lib.SCALAR_OPTION, index)))

    def computed(self, kind: int, value: Any, a: Any, b: Any = None) -> Any:
        """Note an operation on numbers, and return its result."""
        if not is_double(value):
            self.refuse(f"a number becomes {value!r}")
            return value
        index = self.add(Scalar(kind, self.index(a), -1 if b is None else self.index(b)))
        if type(value) is int and kind not in (lib.SCALAR_ADD, lib.SCALAR_SUBTRACT):
            index = self.add(Scalar(lib.SCALAR_ADD, index, self.index(0)))  # which has no -0, as floats have
        if type(value) is int:  # exact in Python, however large
            self.expect(lib.SCALAR_LESS, index, self.index(_LARGEST), True)
            self.expect(lib.SCALAR_LESS, self.index(-_LARGEST), index, True)
        return Number(self, value, index)

    def compared(self, kind: int, a: Any, b: Any) -> bool:
        """Note a comparison, which a branch may depend on, and return its result."""
        if not (is_number(a) and is_number(b)):
            self.refuse(f"a number is compared with {plain(b)!r}")
            return bool(plain(a) == plain(b))
        compare = {
            lib.SCALAR_LESS: operator.lt,
            lib.SCALAR_LESS_OR_EQUAL: operator.le,
            lib.SCALAR_EQUAL: operator.eq,
        }[kind]
        result = bool(compare(plain(a), plain(b)))
        self.expect(kind, self.index(a), self.index(b), result)
        return result

    def expect(self, kind: int, a: int, b: int, result: bool) -> None:
        """Note that a comparison of two scalars must come out so."""
        self.guards[self.add(Scalar(kind, a, b))] = result

    def refuse(self, reason: str) -> None:
        """Note something that no record has."""
        self.reason = self.reason or reason

    def index(self, number: Any) -> int:
        """Return which scalar a number is."""
        if type(number) is Number:
            return number.index
        if type(number) is not bool and not is_double(number):
            raise TypeError(f"a scalar is {number!r}")
        return self.add(Scalar(lib.SCALAR_CONSTANT, constant=float(number)))

    def add(self, scalar: Scalar) -> int:
        """Return which scalar this is, a new one if there is none like it."""
        # 0.0 and -0.0 are the same number, and not the same constant.
        for i, known in enumerate(self.scalars):
            if known == scalar and str(known.constant) == str(scalar.constant):
                return i
        self.scalars.append(scalar)
        return len(self.scalars) - 1
