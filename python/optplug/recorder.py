"""What a step of an optimizer comes down to: seen by running it once, with numbers that remember.

A function mode of PyTorch's sees every operation on tensors, and `Number` how each scalar was computed, from
hyperparameters and from tensors of one value, and which branches were taken.  What is not understood has no
record: see `Recording.reason`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from optplug import elementwise
from optplug._optplug import lib
from optplug.buffers import real
from optplug.lean import bare_step
from optplug.merging import Instruction, merged, packed
from optplug.number import Computation, Number, Scalar, is_number, plain, understood
from optplug.readings import CONVERSIONS, FILLED, HARMLESS, READ
from optplug.torch_private import grad_mode

#: What torch does to complex numbers as to their real and imaginary parts.
_ALIKE_ON_PARTS = ("copy", "negate")


@dataclass(frozen=True)
class Record:
    """A step for one parameter: see ``optplug_record``."""

    scalars: tuple[Scalar, ...]
    guards: tuple[tuple[int, bool], ...]
    stores: tuple[tuple[int, int], ...]
    instructions: tuple[Instruction, ...]
    temporaries: int
    lanes: int = 0


def is_same_step(record: Record, other: Record) -> bool:
    """Tell whether two records do the same, in whatever order their scalars are computed."""
    known: dict[tuple[Any, ...], int] = {}  # the number of each expression
    return _meaning(record, known) == _meaning(other, known)


def _meaning(record: Record, known: dict[tuple[Any, ...], int]) -> tuple[Any, ...]:
    numbers = {-1: -1}
    for i, s in enumerate(record.scalars):
        if s.kind in (lib.SCALAR_CONSTANT, lib.SCALAR_OPTION, lib.SCALAR_ITEM):
            key: tuple[Any, ...] = (s.kind, s.a, repr(s.constant))
        elif s.kind == lib.SCALAR_ELEMENTWISE:
            key = (s.kind, s.b, s.elementwise, *(numbers[o] for o in s.operands))
        else:
            key = (s.kind, numbers[s.a], s.b if s.kind == lib.SCALAR_ROUND else numbers[s.b])
        numbers[i] = known.setdefault(key, len(known))
    return (
        {(numbers[i], expected) for i, expected in record.guards},
        [(i, numbers[s]) for i, s in record.stores],
        [replace(one, v=numbers[one.v], u=numbers[one.u]) for one in record.instructions],
        record.temporaries,
        record.lanes,
    )


@dataclass(eq=False)
class Recording(TorchFunctionMode, Computation):
    """One run of a step, for one parameter.

    Args:
        lists: its tensors, list by list: the parameter, its gradient, its state.
        gradient: which of them is a gradient, of which a step is to change a copy only; -1 if none is.
        others: tensors of parameters that are stepped beside it, of which nothing is noted.
    """

    lists: list[Tensor]
    gradient: int = -1
    others: list[Tensor] = field(default_factory=list)
    #: Hyperparameters that the step has changed.
    moved: list[str] = field(default_factory=list)
    _instructions: list[Instruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        TorchFunctionMode.__init__(self)
        Computation.__init__(self)
        self._alive: list[Any] = [*self.lists, *self.others]  # or a tensor's id would come again
        self._others = set(map(id, self.others))  # and of what was computed from them
        first = real(self.lists[0])
        self._shape = first.shape
        arrays = {i: t for i, t in enumerate(self.lists) if real(t).shape == self._shape}
        # What stands for a tensor: of an array its number, of one value the scalar that it has now.
        self._arrays = {id(t): i for i, t in arrays.items()}
        self._has_gaps = not all(t.is_contiguous() for t in arrays.values())
        self._items: dict[int, int] = {}
        self._filled: dict[int, Any] = {}  # arrays of one value that nothing has been done to yet
        self._first: dict[int, int] = {}
        for i, t in enumerate(self.lists):
            if t.dim() == 0:
                self._items[id(t)] = self._first[i] = self.add(Scalar(lib.SCALAR_ITEM, i))
        self._temporaries = self._lanes = 0
        if any(real(t).dtype != first.dtype for t in arrays.values()):
            self.refuse("a state of another dtype")
        if any(real(t).dtype not in (*elementwise.RECORDED, torch.int64) for t in self.lists):
            self.refuse("a state of another dtype")
        if any(t.dim() and i not in arrays for i, t in enumerate(self.lists)):
            self.refuse("a state of another shape")

    # ---- what torch tells ----

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        whole = result = function(*plain(args), **plain(kwargs))
        self._alive.append((args, kwargs, result))
        name = getattr(function, "__name__", "")
        if self._others and (those := self._others.intersection(map(id, _tensors_in((args, kwargs))))):
            found = [t for t in _tensors_in((args, kwargs)) if id(t) not in those]
            if name.startswith("_foreach_") and any(id(t) in self._arrays for t in found):
                alone = [i for i, t in enumerate(args[0]) if id(t) not in self._others]
                args = tuple([a[i] for i in alone] if isinstance(a, list | tuple) else a for a in args)
                self._others |= {id(t) for i, t in enumerate(result or ()) if i not in alone}
                result = [result[i] for i in alone] if result else result
            else:
                is_changed = name.endswith("_") and args and id(args[0]) in self._items
                if is_changed or any(id(t) in self._arrays for t in found):
                    self.refuse(f"torch.{name} brings parameters together")
                self._others |= set(map(id, _tensors_in(result)))
                return result
        is_itself = bool(args) and _is_itself(result, args[0])
        if name in HARMLESS or (name in CONVERSIONS and is_itself):
            if is_itself and result is not args[0]:
                self._alias(result, args[0])  # p.data
            return result
        if name == "item" and id(args[0]) in self._items:
            return Number(self, result, self._items[id(args[0])])
        if not self.reason:
            try:
                self._note(name, result, *args, **kwargs)
            except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
                self.refuse(f"torch.{name} is not understood ({error})")
        return whole

    def _note(self, name: str, result: Any, *args: Any, **kwargs: Any) -> None:
        if name.startswith("_foreach_"):  # of one parameter
            if real(self.lists[0]).dtype in elementwise.HALVES:
                raise ValueError("lists in half precision are rounded otherwise")
            name = name.removeprefix("_foreach_")
            args, kwargs = _alone(args), {key: _alone(value) for key, value in kwargs.items()}
            if name.strip("_") in ("addcdiv", "addcmul") and len(args) == 4:
                args, kwargs = args[:3], {"value": args[-1]}
            result = args[0] if name.endswith("_") else _alone((result,))[0]
        if name in FILLED:
            if "out" in kwargs:
                raise TypeError("into an array that was there before")
            value = FILLED[name]
            if value is None:
                value = kwargs["fill_value"] if "fill_value" in kwargs else args[1]
            if result.dim() == 0:
                self._items[id(result)] = self._rounded(self.index(value), result.dtype)
            elif self.others and real(result).shape != self._shape:
                self._others.add(id(result))
            else:
                self._filled[id(result)] = value
            return
        if name in ("as_tensor", "tensor", "scalar_tensor"):
            (number,) = args
            if not is_number(number) or result.dtype not in elementwise.RECORDED:
                raise TypeError(result.dtype)
            self._items[id(result)] = self._rounded(self.index(number), result.dtype)
            return
        if name in ("view_as_real", "view_as_complex"):
            self._arrays[id(result)] = self._arrays[id(args[0])]
            return
        if name == "__setitem__":
            target, mask, value = args
            self._apply("fill where", target, [target, mask], [value])
            return
        if name in ("__rdiv__", "__rtruediv__"):  # as torch has it: a product
            array, number = args
            if array.dtype == torch.int64:  # which torch divides in the dtype of the result
                index, array = self._items[id(array)], torch.empty_like(result)
                self._items[id(array)] = self._rounded(index, result.dtype)
            inverse = torch.empty_like(result)
            self._alive += [array, inverse]
            self._apply("reciprocal", inverse, [array], [])
            self._apply("mul scalar", result, [inverse], [number])
            return
        if name in ("add", "__add__") and args[0].dtype == torch.int64:
            self._items[id(result)] = self.add(
                Scalar(lib.SCALAR_ADD, self._items[id(args[0])], self.index(args[1]))
            )
            return
        kwargs.pop("out", None)  # it is the result
        in_place = name.endswith("_") and not name.endswith("__")
        kind, arrays, numbers = READ[name.strip("_") if not name.startswith("__") else name](*args, **kwargs)
        self._apply(kind, args[0] if in_place else result, arrays, numbers)
        if in_place and result is not args[0]:
            self._alias(result, args[0])

    def _alias(self, result: Tensor, original: Tensor) -> None:
        for known in (self._arrays, self._items):
            if id(original) in known:
                known[id(result)] = known[id(original)]

    def _rounded(self, index: int, dtype: torch.dtype) -> int:
        return self.add(Scalar(lib.SCALAR_ROUND, index, elementwise.format_of(dtype)))

    def _as_scalar(self, item: Tensor, dtype: torch.dtype) -> int:
        index = self._items[id(item)]
        return index if item.dtype in elementwise.RECORDED else self._rounded(index, dtype)

    def _as_half(self, index: int, number: Any, dtype: torch.dtype) -> int:
        """Round a scalar to half precision, which torch does where it is in its range."""
        if not elementwise.in_range(float(plain(number)), dtype):
            raise ValueError(f"a scalar is {plain(number)}")
        largest = torch.finfo(dtype).max
        self.expect(lib.SCALAR_LESS_OR_EQUAL, index, self.index(largest), True)
        self.expect(lib.SCALAR_LESS_OR_EQUAL, self.index(-largest), index, True)
        return self._rounded(index, dtype)

    def _apply(self, kind: str, to: Tensor, arrays: list[Tensor], numbers: list[Any]) -> None:
        """Note an operation of C's."""
        for t in arrays:
            if id(t) in self._filled and id(t) not in self._arrays:
                self._fill(t, self._filled[id(t)])
        if kind in ("mul", "div") and id(arrays[0]) in self._items and id(arrays[1]) in self._arrays:
            if kind == "div":
                filled = torch.empty_like(to)
                self._alive.append(filled)
                self._fill(filled, arrays[0])
                arrays = [filled, arrays[1]]
            else:
                arrays = arrays[::-1]
        dtype = arrays[0].dtype
        if kind in ("mul", "div") and id(arrays[0]) in self._arrays and id(arrays[1]) in self._items:
            kind, arrays, numbers = f"{kind} scalar", arrays[:1], [arrays[1]]
        if any(t.dtype not in (dtype, torch.bool) for t in [to, *arrays]):
            raise TypeError("dtypes differ")
        if dtype.is_complex:
            if kind not in _ALIKE_ON_PARTS:
                raise TypeError("of complex numbers")
            dtype = dtype.to_real()
        chosen = elementwise.choose(kind, dtype, self._has_gaps)
        if chosen is None:
            raise TypeError("no operation here has torch's bits")
        end = elementwise.at_end(kind, dtype, self._has_gaps)
        assert end is not None
        operation, computed = elementwise.OPERATIONS[kind], elementwise.computed_in(dtype)
        scalars = [self._as_scalar(n, computed) if isinstance(n, Tensor) else self.index(n) for n in numbers]
        if operation.never is not None and end == chosen:
            if elementwise.rounded(float(plain(numbers[0])), computed) == operation.never:
                raise ValueError(f"with {operation.never:g} the sign of a zero depends on its place")
            never = self.index(operation.never)
            self.expect(lib.SCALAR_EQUAL, self._rounded(scalars[0], computed), never, False)
        if operation.rounds and dtype in elementwise.HALVES:
            scalars = [self._as_half(i, n, dtype) for i, n in zip(scalars, numbers, strict=True)]
        v, u = (*scalars, -1, -1)[:2]
        if id(arrays[0]) in self._items:
            a, b, c = (*(self._items[id(t)] for t in arrays), -1, -1)[:3]
            how = Scalar(
                lib.SCALAR_ELEMENTWISE,
                b=elementwise.format_of(dtype),
                elementwise=end,
                operands=(a, b, c, v, u),
            )
            self._items[id(to)] = self.add(how)
            return
        a, b, c = (*(self._arrays[id(t)] for t in arrays), -1, -1)[:3]
        if self._arrays.get(id(to)) == self.gradient:
            here = len(self.lists) + self._temporaries
            self._temporaries += 1
            self._arrays = {k: here if i == self.gradient else i for k, i in self._arrays.items()}
        if id(to) not in self._arrays:
            if real(to).shape != self._shape:
                raise TypeError(f"shape {tuple(to.shape)}")
            self._arrays[id(to)] = len(self.lists) + self._temporaries
            self._temporaries += 1
        if end != chosen:
            lanes = elementwise.lanes(kind, dtype)
            if self._lanes not in (0, lanes):
                raise ValueError("torch's vectors are of different lengths")
            self._lanes = lanes
        self._instructions.append(Instruction(chosen, end, self._arrays[id(to)], a, b, c, v, u))

    def _fill(self, to: Tensor, value: Any) -> None:
        if not self._has_gaps and not to.is_contiguous():
            raise TypeError("arrays are laid out differently")  # over which torch loops otherwise
        self._apply("fill", to, [self.lists[0]], [value])

    def item(self, index: int, value: float) -> Number:
        """Return the number that stands for the value of a list."""
        return Number(self, value, self._first[index])

    def keep(self, index: int, value: Any) -> None:
        """Note that the value of a list becomes another one."""
        self._items[id(self.lists[index])] = self.index(value)

    def count(self, index: int) -> None:
        """Note that the value of a list, a count of what was done before, is positive and rises by one."""
        item = self._items[id(self.lists[index])]
        self.expect(lib.SCALAR_LESS, self.index(0), item, True)
        self._items[id(self.lists[index])] = self.add(Scalar(lib.SCALAR_ADD, item, self.index(1)))

    # ---- the result ----

    def record(self) -> Record | None:
        """Return what was seen; None if it was not understood."""
        if self.reason:
            return None
        stores = [
            (i, now) for i, first in self._first.items() if (now := self._items[id(self.lists[i])]) != first
        ]
        is_half = real(self.lists[0]).dtype in elementwise.HALVES  # which is rounded in between
        instructions = self._instructions if is_half else merged(self._instructions, len(self.lists))
        instructions, temporaries = packed(instructions, len(self.lists))
        return Record(
            tuple(self.scalars),
            tuple(self.guards.items()),
            tuple(stores),
            tuple(instructions),
            temporaries,
            self._lanes,
        )


def _is_itself(result: Any, tensor: Any) -> bool:
    """Tell whether a function has returned the tensor, or another one of its memory, shape and dtype."""
    return (
        isinstance(result, Tensor)
        and isinstance(tensor, Tensor)
        and result.dtype == tensor.dtype
        and result.is_set_to(tensor)
    )


def _alone(arguments: Any) -> Any:
    """Return arguments with what is alone in a list in the list's place."""
    if type(arguments) is not tuple:
        return _alone((arguments,))[0]
    if any(type(a) in (list, tuple) and len(a) != 1 for a in arguments):
        raise ValueError("only lists of one tensor are understood")
    return tuple(a[0] if type(a) in (list, tuple) else a for a in arguments)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a function of torch's takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def plain_step(optimizer: torch.optim.Optimizer) -> None:
    """Make a step as the class has it, without what is known to be around it."""
    bare_step(type(optimizer))(optimizer)


def run(
    optimizer: torch.optim.Optimizer,
    lists: list[Tensor],
    names: list[str],
    numbers: Sequence[tuple[dict[str, Any], str]] = (),
    others: Sequence[Tensor] = (),
) -> Recording:
    """Step an optimizer of one parameter once, and return what was seen.

    Args:
        optimizer: a throw-away one, whose hyperparameters are plain numbers again afterwards.
        lists: its parameter, its gradient, and the tensors of its state.
        names: its hyperparameters that are numbers; "betas[0]" of a tuple.
        numbers: those of Python's that steps change: the dictionary that has one, and the key.  Of each there
            is a list, after the others.
        others: tensors of further parameters in its group: see `Recording`.
    """
    values = [container[key] for container, key in numbers]
    recording = Recording([*lists, *map(memory_of, values)], 1, list(others))
    (group,) = optimizer.param_groups
    before = dict(group)
    for i, (container, key) in enumerate(numbers):
        container[key] = recording.item(len(lists) + i, values[i])
    for key, value in before.items():
        if key in names:
            group[key] = recording.option(names.index(key), value)
        elif type(value) is tuple:
            group[key] = tuple(
                recording.option(names.index(f"{key}[{i}]"), v) if f"{key}[{i}]" in names else v
                for i, v in enumerate(value)
            )
    given = dict(group)
    state = _tensors_of(optimizer, lists[0])
    try:
        with grad_mode(False), understood(), recording:
            plain_step(optimizer)
    except Exception as error:
        recording.refuse(f"{type(error).__name__}: {error}")
    for i, (container, key) in enumerate(numbers):
        value = container[key]
        if type(plain(value)) is not type(values[i]):
            recording.refuse(f"a step makes {key} another kind of number")
        else:
            recording.keep(len(lists) + i, value)
        container[key] = values[i]
        if container is group:
            given[key] = values[i]
    recording.moved = [key for key in given if key in group and group[key] is not given[key]]
    if group.keys() != given.keys() or recording.moved:
        recording.refuse("a step changes a hyperparameter")
    if state != _tensors_of(optimizer, lists[0]):
        recording.refuse("a step makes its state anew")
    group.clear()
    group.update(before)
    return recording


def memory_of(number: float) -> Tensor:
    """Return memory that holds a number of Python's."""
    return torch.tensor(number, dtype=torch.int64 if type(number) is int else torch.float64)


def _tensors_of(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, int]:
    return {key: id(value) for key, value in optimizer.state[p].items() if isinstance(value, Tensor)}
