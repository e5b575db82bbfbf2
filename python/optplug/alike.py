"""Whether what an optimizer of a class outside torch holds is what another one holds."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Set
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optplug.holdings import HOOKS, Slots, has_graph, is_leaf, is_thing, slots_of, wants_gradient
from optplug.spec import shown
from optplug.unpickle import is_key
from optplug.watch import is_its_own

#: What is not there.
MISSING = object()
_ROWS = (list, tuple, deque)
#: Of places of tensors: see `overlapping`.
Overlaps = dict[str, tuple[str, int]]


def difference(there: Any, state: Any, place: str, packages: Set[str] = frozenset()) -> str | None:
    """Return the place of what is another one than it was, or None if all is the same.

    Args:
        packages: those whose objects are looked into.
    """
    if isinstance(there, dict) and isinstance(state, dict):
        if place and isinstance(state, OrderedDict) and list(there) != list(state):
            return place
        for key in {**there, **state}:  # whose order is the same in each run
            where = f"{place}[{shown(key)}]"
            if key not in there or key not in state:
                return where
            found = difference(there[key], state[key], where, packages)
            if found is not None:
                return found
        return None
    if isinstance(there, deque) and isinstance(state, deque) and there.maxlen != state.maxlen:
        return place
    if isinstance(there, _ROWS) and isinstance(state, _ROWS) and len(there) == len(state):
        found_ = (
            difference(a, b, f"{place}[{i}]", packages)
            for i, (a, b) in enumerate(zip(there, state, strict=True))
        )
        return next((f for f in found_ if f is not None), None)
    return None if is_equal(there, state, set(packages), set()) else place


def is_the_same(value: Any, other: Any) -> bool:
    """Tell whether two values are equal, of the same type."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return _are_equal(value, other)
    if isinstance(value, nn.Module) and isinstance(other, nn.Module):  # which has more than a function has
        is_alike = type(value) is type(other)
        return is_alike and difference(dict(value.state_dict()), dict(other.state_dict()), "") is None
    if value is other:
        return True
    if _is_made_of_parts(value):
        return type(value) is type(other) and is_equal(value, other, set(), set())
    if is_thing(value) and type(value) is type(other):
        return _are_same_things(value, other)
    try:
        return type(value) is type(other) and bool(value == other or (value != value and other != other))
    except (RuntimeError, TypeError, ValueError):
        return False


def _are_same_things(value: Any, other: Any) -> bool:
    """Tell whether arrays have the same content, and generators the same state."""
    if isinstance(value, np.ndarray):
        return value.dtype == other.dtype and np.array_equal(value, other, equal_nan=value.dtype.kind in "fc")
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state) == repr(other.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate() == other.getstate()
    if isinstance(value, torch.Generator):
        return torch.equal(value.get_state(), other.get_state())
    return repr(list(value.get_state())) == repr(list(other.get_state()))


def _are_equal(a: Tensor, b: Tensor) -> bool:
    if _form(a) != _form(b) or not is_equal(vars(a), vars(b), set(), set()):
        return False
    if is_leaf(a) and not (a.grad is b.grad is None or is_the_same(a.grad, b.grad)):
        return False
    a, b = a.detach(), b.detach()
    try:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    except RuntimeError:  # of a layout, or a subclass, that cannot be compared
        return False


def _form(t: Tensor) -> tuple[Any, ...]:
    return isinstance(t, nn.Parameter), wants_gradient(t), has_graph(t), t.dtype, t.shape, t.layout, t.device


def is_of_its_kind(value: Tensor, other: Tensor) -> bool:
    """Tell whether tensors have the same dtype, and are both parameters, or have gradients, if one does."""
    return _form(value)[:4] == _form(other)[:4]


def is_equal(value: Any, other: Any, packages: set[str], seen: set[int]) -> bool:
    """Tell whether an attribute is as that of another optimizer, objects by what they have in them.

    Args:
        packages: those whose objects are looked into.
        seen: the ids of what has been looked at, and of the optimizer.
    """
    if id(value) in seen:
        return True
    if isinstance(value, FunctionType | MethodType | partial) and type(value) is type(other):
        seen.add(id(value))
        mine, theirs = _made_of(value), _made_of(other)
        return mine[0] is theirs[0] and is_equal(mine[1:], theirs[1:], packages, seen)
    if isinstance(value, dict) and isinstance(other, dict):
        seen.add(id(value))
        if len(value) != len(other):
            return False
        if value.keys() == other.keys():  # in whatever order: torch's load_state_dict puts params last
            in_order = list(value) == list(other) or not isinstance(value, OrderedDict)
            return in_order and all(is_equal(v, other[k], packages, seen) for k, v in value.items())
        pairs = zip(value.items(), other.items(), strict=True)
        return all(_are_keys(k, o) and is_equal(v, w, packages, seen) for (k, v), (o, w) in pairs)
    if isinstance(value, _ROWS) and isinstance(other, _ROWS):
        seen.add(id(value))
        return len(value) == len(other) and all(
            is_equal(v, o, packages, seen) for v, o in zip(value, other, strict=True)
        )
    is_own = any(is_its_own(value, package) for package in packages) and _has_inside(value)
    if type(value) is type(other) and (is_own or _is_made_of_parts(value)):
        seen.add(id(value))
        return is_equal(_attributes_of(value), _attributes_of(other), packages, seen)
    return is_the_same(value, other)


def _has_inside(value: Any) -> bool:
    return hasattr(value, "__dict__") or bool(slots_of(type(value)))  # type: ignore[arg-type]


def _is_made_of_parts(value: Any) -> bool:
    """Tell whether something that can be called is known by what is in it."""
    return callable(value) and not isinstance(value, type | nn.Module) and _has_inside(value)


def _made_of(value: Any) -> list[Any]:
    """Return what a function is, and what it goes by."""
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [None, value.func, value.args, value.keywords]
    cells = [list(Slots(cell, ("cell_contents",))) for cell in value.__closure__ or ()]
    return [value.__code__, cells, value.__defaults__, value.__kwdefaults__, vars(value)]


def _attributes_of(value: Any) -> dict[str, Any]:
    found = {n: getattr(value, n) for n in slots_of(type(value)) if hasattr(value, n)}  # type: ignore[arg-type]
    kept = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith(HOOKS)}
    found |= {k: v for k, v in kept.items() if k not in ("_opt_called", "step")}
    if isinstance(value, torch.optim.Optimizer) and "defaults" in found:  # torch sets one at loads
        found["defaults"] = {"differentiable": False, **value.defaults}
    return found


def _are_keys(key: Any, other: Any) -> bool:
    """Tell whether two keys mean the same: also a parameter, or its id, in each of two optimizers."""
    if isinstance(key, Tensor):
        return isinstance(other, Tensor) and key.shape == other.shape
    return type(key) is type(other) and (key == other or (type(key) is int and not is_key(key)))


def memory_of(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return where an optimizer's parameters are."""
    return {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}


def is_derived(value: Any, other: Any, memories: set[int]) -> bool:
    """Tell whether an attribute has but parameters in it, or views of them, where another optimizer's has."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        are_there = all(t.untyped_storage().data_ptr() in memories for t in (value, other))
        return are_there and value.shape == other.shape
    if isinstance(value, dict) and isinstance(other, dict):  # by addresses, perhaps
        value, other = list(value.values()), list(other.values())
    if isinstance(value, _ROWS) and isinstance(other, _ROWS):
        return len(value) == len(other) and all(
            is_derived(v, o, memories) for v, o in zip(value, other, strict=True)
        )
    return is_the_same(value, other)


# ---- what shares memory ----


def parts_of(value: Any, place: str, packages: set[str], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and arrays in a value, and all else in it that may change, each with its place."""
    if isinstance(value, Tensor):
        if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.numel():
            yield place, value
        return
    if isinstance(value, np.ndarray | torch.Generator):
        if isinstance(value, torch.Generator) or value.size:
            yield place, value
        return
    is_own = any(is_its_own(value, package) for package in packages)
    if is_own or isinstance(value, dict | list | set | deque):
        yield place, value
    if id(value) in seen:
        return
    if isinstance(value, dict):
        items: Iterable[tuple[str, Any]] = [  # whose keys may be tensors, or go by addresses
            (f"{place}[{shown(k) if type(k) is str else i}]", v) for i, (k, v) in enumerate(value.items())
        ]
    elif isinstance(value, _ROWS):
        items = [(f"{place}[{i}]", v) for i, v in enumerate(value)]
    elif is_own:
        items = [(f"{place}.{k}", v) for k, v in _attributes_of(value).items()]
    else:
        return
    seen.add(id(value))
    for where, item in items:
        yield from parts_of(item, where, packages, seen)


def overlapping(parts: Iterable[tuple[str, Any]]) -> tuple[Overlaps, set[int]]:
    """Return of each place of a tensor or array that has some memory of another one, which the first is.

    The same of all else that stands in several places.

    Returns:
        The first one's place with how many bytes after it this one begins; the addresses of the storages.
    """
    spans: list[tuple[int, int, int, str]] = []
    places: dict[int, list[str]] = {}
    storages: dict[str, int] = {}
    parts = list(parts)  # whose ids are theirs as long as they are there
    for i, (place, part) in enumerate(parts):
        if not isinstance(part, Tensor | np.ndarray):
            places.setdefault(id(part), []).append(place)
            continue
        if isinstance(part, Tensor):
            storages[place] = part.untyped_storage().data_ptr()
        spans.append((*_span(part), i, place))
    found: Overlaps = {place: (those[0], 0) for those in places.values() for place in those if len(those) > 1}
    clusters: list[list[tuple[int, int, int, str]]] = []
    last = -1
    for span in sorted(spans):
        if span[0] >= last:
            clusters.append([])
        clusters[-1].append(span)
        last = max(last, span[1])
    shared = [cluster for cluster in clusters if len(cluster) > 1]
    for cluster in shared:
        first = min(cluster, key=lambda span: span[2])
        found |= {place: (first[3], begin - first[0]) for begin, _, _, place in cluster}
    return found, {storages[span[3]] for cluster in shared for span in cluster if span[3] in storages}


def _span(part: Any) -> tuple[int, int]:
    """Return where the memory of a tensor or an array begins and ends."""
    if isinstance(part, Tensor):
        last = sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True))
        return part.data_ptr(), part.data_ptr() + part.itemsize * (1 + last)
    reach = [(n - 1) * s for n, s in zip(part.shape, part.strides, strict=True)]
    begin = part.ctypes.data + sum(min(r, 0) for r in reach)
    return begin, part.ctypes.data + sum(max(r, 0) for r in reach) + part.itemsize
