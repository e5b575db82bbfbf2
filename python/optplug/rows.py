"""Rows of numbers with the methods of torch's tensors that LBFGS calls, whose scalars are numpy's.

Torch takes a microsecond or more for each operation on a few values, or on one, of which a step of LBFGS has
hundreds.  Numpy's scalars round as torch's tensors of one value do beside Python's numbers, and what is done
to rows is done by C, where that has torch's very bits, which is tried out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug import elementwise, host
from optplug._optplug import ffi

_dot, _largest, _run = host.table.dot, host.table.largest, host.table.elementwise
_NULL = ffi.NULL
#: So many values and more torch for ARM multiplies otherwise, in float32.
_MANY = 4097
_LENGTHS = (*range(1, 70), 127, 1031, _MANY - 1), (_MANY, 4099, 10007)


class Kind:
    """What rows of one dtype and length have in common.

    The memory of rows that nobody has any more is that of the next ones.
    """

    def __init__(self, dtype: torch.dtype, n: int) -> None:
        self.dtype, self.n = dtype, n
        self.bytes, self.largest = dtype.itemsize, torch.finfo(dtype).max
        #: The type of a scalar.
        self.number: Any = np.float32 if dtype == torch.float32 else np.float64
        #: C's operations, where they have torch's bits.
        self.add, self.multiply, self.negate, self.copy = (
            elementwise.throughout(name, dtype) for name in ("add", "mul scalar", "negate", "copy")
        )
        #: Memory, with its address.
        self.free: list[tuple[Tensor, Any]] = []

    def can(self) -> bool:
        """Tell whether C has torch's bits."""
        return None not in (self.add, self.multiply, self.negate, self.copy) and _is_torchs(
            self.dtype, self.n >= _MANY
        )

    def row(self) -> Row:
        """Return a row whose values are yet to be written."""
        return Row(self, *self.memory())

    def memory(self) -> tuple[Tensor, Any]:
        """Return memory for a row, and its address."""
        if self.free:
            return self.free.pop()
        tensor = torch.empty(self.n, dtype=self.dtype)
        return tensor, ffi.cast("void *", tensor.data_ptr())

    def row_of(self, tensor: Tensor) -> Row:
        """Return a row that is a tensor of torch's state."""
        row = Row(self, tensor, ffi.cast("void *", tensor.data_ptr()))
        row.is_kept = True
        return row

    def scalar(self, value: Any) -> Any:
        """Return a number of torch's state as a step works with it; whatever is none as it is."""
        return self.number(value.item()) if isinstance(value, Tensor) and value.dim() == 0 else value

    def torchs(self, value: Any) -> Any:
        """Return what a step has worked with as torch's state has it."""
        if type(value) is self.number:
            return torch.scalar_tensor(value.item(), dtype=self.dtype)
        return value.kept() if type(value) is Row else value


class Row:
    """A row, in torch's memory.  Its methods are a tensor's, as far as LBFGS calls them."""

    __slots__ = ("_kind", "_product", "address", "is_kept", "tensor")

    def __init__(self, kind: Kind, tensor: Tensor, address: Any) -> None:
        self._kind = kind
        #: Its memory.
        self.tensor = tensor
        #: Where its values are.
        self.address = address
        #: Whether its memory is somebody's for good.
        self.is_kept = False
        self._product: tuple[Any, Row] | None = None

    def __del__(self) -> None:
        if not self.is_kept:
            self._kind.free.append((self.tensor, self.address))

    def kept(self) -> Tensor:
        """Return the tensor, to be kept."""
        self.is_kept = True
        return self.tensor

    def _done(self, operation: int | None, other: Any = _NULL, number: float = 0.0) -> Row:
        kind = self._kind
        result = kind.row()
        _run(operation, kind.bytes, kind.n, result.address, self.address, other, _NULL, number, 0.0)
        return result

    def neg(self) -> Row:
        return self._done(self._kind.negate)

    def sub(self, other: Row) -> Row:
        return self._done(self._kind.add, other.address, -1.0)

    def clone(self, memory_format: torch.memory_format) -> Row:  # noqa: ARG002 (a row has but one)
        return self._done(self._kind.copy)

    def mul(self, number: Any) -> Row:
        if self._product is None or self._product[0] is not number:  # a step asks for the same twice
            self._product = (number, self._done(self._kind.multiply, number=number))
        return self._product[1]

    def copy_(self, other: Row) -> None:
        """Take other values; in other memory, where the state has this."""
        kind = self._kind
        if self.is_kept:
            self.is_kept = False
            self.tensor, self.address = kind.memory()
        _run(kind.copy, kind.bytes, kind.n, self.address, other.address, _NULL, _NULL, 0.0, 0.0)

    def add_(self, other: Row, alpha: Any) -> None:
        kind = self._kind
        _run(kind.add, kind.bytes, kind.n, self.address, self.address, other.address, _NULL, alpha, 0.0)
        self._product = None

    def dot(self, other: Row) -> Any:
        kind = self._kind
        return kind.number(_dot(kind.bytes, kind.n, self.address, other.address))

    def abs(self) -> _Sizes:
        return _Sizes(self)

    def largest(self) -> Any:
        """Return the largest absolute value, or nan where one is."""
        kind = self._kind
        return kind.number(_largest(kind.bytes, kind.n, self.address))

    def sum_of_sizes(self) -> Any:
        """Return the sum of the absolute values, which only an optimizer's first step asks for: by torch."""
        return self._kind.number(self.tensor.abs().sum().item())


class _Sizes:
    """The absolute values of a row."""

    __slots__ = ("_row", "max")

    def __init__(self, row: Row) -> None:
        self._row, self.max = row, row.largest

    def sum(self) -> Any:
        return self._row.sum_of_sizes()


@functools.cache
def _is_torchs(dtype: torch.dtype, are_many: bool) -> bool:
    """Tell whether C's scalar products have the bits of torch's, in rows of many values or of few."""
    generator = torch.Generator().manual_seed(0)
    for n in _LENGTHS[are_many]:
        kind = Kind(dtype, n)
        a, b = (torch.randn(n, generator=generator, dtype=dtype) for _ in "ab")
        left, right = kind.row_of(a), kind.row_of(b)
        if left.dot(right) != a.dot(b).item() or left.largest() != a.abs().max().item():
            return False
    return True


class Parts:
    """Arrays without gaps whose values are a row, one after the other."""

    def __init__(self, kind: Kind, arrays: Sequence[Tensor]) -> None:
        self._kind, self._arrays = kind, arrays
        self._addresses = ffi.new("void *[]", [ffi.cast("void *", a.data_ptr()) for a in arrays])
        self._lengths = ffi.new("int64_t[]", [a.numel() for a in arrays])
        fields = (kind.bytes, len(arrays), self._addresses, self._lengths)
        self._parts = ffi.new("optplug_parts *", fields)

    def take(self, row: Row) -> Row:
        """Copy them to a row, and return it."""
        host.table.take(self._parts, row.address)
        return row

    def put(self, row: Row) -> None:
        """Copy a row to them."""
        host.table.put(self._parts, row.address)

    def move(self, row: Row, factor: float) -> None:
        """Add a multiple of a row to them; a factor that is no number of their dtype is torch's error."""
        if self._kind.largest < abs(factor) < math.inf:
            raise RuntimeError("value cannot be converted to type float without overflow")
        host.table.move(self._parts, self._kind.add, row.address, factor)


class History:
    """A list of rows or scalars, the oldest of which goes: torch's list, and beside it one that C reads."""

    def __init__(self, of: str, items: list[Any]) -> None:
        self._of = of
        #: What is in it: tensors, and scalars of a row's kind that are none yet.
        self.items = items
        #: Whether that is not what was `settled`, ...
        self.is_changed = False
        self._new = 0  # ... and how many are new in it
        self._begin()

    def _begin(self) -> None:
        """Begin in new memory."""
        self._size, self._end = 2 * len(self.items) + 32, len(self.items)
        self._whole = ffi.new(f"{self._of}[]", self._size)
        self._whole[0 : self._end] = [self._value(item) for item in self.items]
        #: Where C finds it.
        self.memory = self._whole + 0

    def _value(self, item: Any) -> Any:
        return item.item() if self._of == "double" else ffi.cast("void *", item.data_ptr())

    def __len__(self) -> int:
        return len(self.items)

    def append(self, item: Any) -> None:
        """Add a row, which it keeps, or a scalar."""
        if self._end == self._size:
            self._begin()
        if type(item) is Row:
            self._whole[self._end] = item.address
            self.items.append(item.kept())
        else:
            self._whole[self._end] = item
            self.items.append(item)
        self._end += 1
        self._new += 1
        self.is_changed = True

    def settled(self, kind: Kind) -> list[Any]:
        """Return torch's list."""
        first = max(0, len(self.items) - self._new)
        self.items[first:] = [kind.torchs(item) for item in self.items[first:]]
        self.is_changed, self._new = False, 0
        return list(self.items)

    def pop(self, index: int) -> None:
        """Take the oldest away."""
        if index != 0:
            raise NotImplementedError
        self.is_changed = True
        del self.items[0]
        self.memory += 1
