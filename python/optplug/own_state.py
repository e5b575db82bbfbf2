"""The state of a class outside torch, saved and loaded by its own ``state_dict`` and ``load_state_dict``.

Nobody else knows what such a class must find again, so its own methods are the judge: what it saves is
loaded into another optimizer of the class, and must be there.  Attributes that it forgets are saved beside.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optplug import methods
from optplug.arguments import said
from optplug.buffers import is_dense, name_of
from optplug.checks import is_number
from optplug.errors import StateError
from optplug.randomness import random_numbers_kept
from optplug.snapshot import HOOKS, is_its_own, package_of
from optplug.spec import shown
from optplug.stored import Foreign, Stored
from optplug.unpickle import STORAGES, is_key

# Not bytes: a class's load_state_dict may unpickle them, and so run what a forged file says.
_PLAIN = (type(None), bool, int, float, str)
# What files have no notion of stands in them as a dict with this key.
_KIND = "optplug kind"
_DTYPES = {name_of(dtype): dtype for dtype in STORAGES}
_ROWS = (list, tuple, deque)
_MISSING = object()


@functools.cache
def _torchs() -> set[str]:
    """Return the attributes that every optimizer of torch's has, and those that schedulers give it."""
    plain = torch.optim.Optimizer([nn.Parameter(torch.empty(0))], {})
    return vars(plain).keys() | {"_opt_called", "step"}


class _NoPlaceError(Exception):
    """A value that no file can give back: its place, and itself."""

    def __init__(self, place: str, value: object) -> None:
        super().__init__(place, value)
        self.place, self.value = place, value


def save(
    optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer, needs_closure: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an optimizer's state and the attributes that are not in it, as a file can have them.

    Args:
        optimizer: whose they are.
        other: one like it as it was built, on parameters of the same values; it is loaded and stepped.
        needs_closure: whether it steps with a closure only.

    Raises:
        StateError: something would not come back.
    """
    try:
        state = optimizer.state_dict()
        there = other.state_dict()
        content = _written("", state, there)
        load(other, read(content, there, {}), {})
        place = _difference(other.state_dict(), state, "")
        if place is not None:
            raise StateError(f"{_called(place)} is another one after its load_state_dict")
        return content, _attributes(optimizer, other, needs_closure)
    except _NoPlaceError as error:
        reason = f"{_called(error.place)} is a {type(error.value).__name__}, which no file can give back"
    except Exception as error:
        reason = str(error) or type(error).__name__
    raise StateError(
        f"opt_save cannot save {type(optimizer).__name__}: {reason}; to go on later, choose other options or "
        "another class"
    )


def _attributes(
    optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer, needs_closure: bool
) -> dict[str, Any]:
    """Return what an optimizer has beside what another one has that has its state."""
    package = package_of(optimizer)
    attributes, refused = {}, []
    for name, value in vars(optimizer).items():
        if name not in _torchs() and not _is_equal(value, vars(other).get(name, _MISSING), package, set()):
            try:
                attributes[name] = _written(f".{name}", value, None)
            except _NoPlaceError as reason:
                refused.append((name, value, reason))
    if refused:  # which may be lists of parameters that a step makes anew
        _step(other, needs_closure)
        memories = _memory(optimizer) | _memory(other)
        for name, value, error in refused:
            if not _is_derived(value, vars(other).get(name, _MISSING), memories):
                raise error
    return attributes


_Known = dict[tuple[Any, ...], Tensor]


def read(saved: Any, there: Any, known: _Known, place: str = "") -> Any:
    """Return what a file has of a state, its tensors read; what no file can have is taken from here.

    Args:
        saved: as the file has it.
        there: the same of an optimizer as it is built.
        known: the tensors that are read already: one that stands in two places is one again.

    Raises:
        ValueError: there is something in it that is no value.
    """
    if isinstance(saved, Tensor):
        return saved
    if isinstance(saved, Stored):
        if saved.nbytes > saved.storage.size:
            raise ValueError(f"{_called(place)} is {saved}, which is larger than its memory")
        key = (saved.storage.start, saved.offset, saved.dtype, saved.shape, saved.strides)
        if key not in known:
            known[key] = saved.tensor()
        return known[key]
    if type(saved) is dict and _KIND in saved:
        return _made(saved, known, place)
    if type(saved) is dict:
        like = there if isinstance(there, dict) else {}
        those = {k: v for k, v in saved.items() if not (k in like and _stays(v, like[k]))}
        found = {k: read(v, like.get(k), known, f"{place}[{shown(k)}]") for k, v in those.items()}
        return {**{k: v for k, v in like.items() if k not in found and not _can_write(v)}, **found}
    if type(saved) in (list, tuple):
        likes = there if isinstance(there, list | tuple) and len(there) == len(saved) else [None] * len(saved)
        items = enumerate(zip(saved, likes, strict=True))
        return type(saved)(read(v, like, known, f"{place}[{i}]") for i, (v, like) in items)
    if isinstance(saved, Foreign) or type(saved) not in _PLAIN:
        raise ValueError(f"{_called(place)} is {shown(saved)}")
    return saved


def _stays(saved: Any, here: Any) -> bool:
    """Tell whether what is here stands for what a file of PyTorch's has, which is not read."""
    return isinstance(saved, Foreign) or (type(saved) is bytes and saved == here)


def _made(saved: dict[str, Any], known: _Known, place: str) -> Any:
    """Return what is written as a dict with a kind."""
    kind, content = saved[_KIND], saved.get("of")
    if kind == "dtype" and type(content) is str and content in _DTYPES:
        return _DTYPES[content]
    if kind == "set" and type(content) is list and all(map(is_key, content)):
        return set(content)
    longest = saved.get("maxlen")
    if kind == "deque" and type(content) is list and (longest is None or type(longest) is int):
        return deque(read(content, None, known, place), longest)
    raise ValueError(f"{_called(place)} is of no known kind: {shown(saved)}")


def load(optimizer: torch.optim.Optimizer, state: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Put a state, as `read` returns it, into an optimizer by its own method.

    Tensors keep their dtype, and deques their length.  torch's ``load_state_dict`` would cast the ones to
    the parameter's and forget the others, and so the next steps' bits would be others.
    """
    copied: dict[int, Any] = {}  # what stands in two places is copied once
    optimizer.load_state_dict(copy.deepcopy(state, copied))
    _keep(optimizer.state_dict(), state)
    for name, value in attributes.items():
        known = getattr(optimizer, name, None)
        if isinstance(known, Tensor) and isinstance(value, Tensor) and known.shape == value.shape:
            known.data.copy_(value)  # it may be other tensors' memory, too
        else:
            setattr(optimizer, name, copy.deepcopy(value, copied))


def resume(
    optimizer: torch.optim.Optimizer,
    other: torch.optim.Optimizer,
    saved: Any,
    attributes: Any,
    needs_closure: bool,
) -> None:
    """Let an optimizer go on from what a file has, once another one on copies has loaded it and stepped.

    Raises:
        ValueError: the class does not take it.
    """
    if not isinstance(saved, dict):
        raise ValueError("not a checkpoint: the state of its optimizer is malformed")
    _check_rates(saved.get("param_groups"))
    known: _Known = {}
    extra = _check_attributes(other, attributes, known)
    try:
        with random_numbers_kept():
            state = read(saved, other.state_dict(), known)
            load(other, state, extra)
            _step(other, needs_closure)
            load(optimizer, state, extra)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{type(optimizer).__name__} rejects it: {said(error)}") from error


def _step(optimizer: torch.optim.Optimizer, needs_closure: bool) -> None:
    grads = [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

    def evaluate() -> Tensor:
        for p, grad in grads:
            p.grad = grad.clone()
        return torch.zeros((), requires_grad=True)

    methods.begin(optimizer)  # it may have been saved in another mode
    optimizer.step(*[evaluate] * needs_closure)  # type: ignore[arg-type]


def _check_rates(groups: Any) -> None:
    """Raise ValueError where a group's learning rate in a file is none."""
    for i, group in enumerate(groups if isinstance(groups, list) else ()):
        rate: Any = group.get("lr") if isinstance(group, dict) else None
        if is_number(rate) and not 0 <= rate < math.inf:
            raise ValueError(f"group {i}: lr must not be negative, inf or nan, got {shown(rate)}")


def _check_attributes(optimizer: torch.optim.Optimizer, attributes: Any, known: _Known) -> dict[str, Any]:
    """Return the attributes in a file, or raise ValueError where they would replace something else."""
    if type(attributes) is not dict:
        raise ValueError("not a checkpoint: the attributes of its optimizer are malformed")
    for name in attributes:
        is_name = type(name) is str and name.isidentifier() and not name.startswith("__")
        # A class may have a plain value that its steps replace in the object.
        if not is_name or name in _torchs() or type(getattr(type(optimizer), name, None)) not in _PLAIN:
            raise ValueError(f"not a checkpoint: its optimizer has an attribute {shown(name)}")
    return {name: read(value, None, known, f".{name}") for name, value in attributes.items()}


# ---- what a file can have ----


def _can_write(value: Any) -> bool:
    try:
        _written("", value, None)
    except _NoPlaceError:
        return False
    return True


def _written(place: str, value: Any, there: Any) -> Any:
    """Return a value as a file can have it, without what no file can have but what is here, too."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is np.float64:
        return float(value)
    if kind in (Tensor, nn.Parameter) and value.layout == torch.strided and value.dtype in STORAGES:
        return _compact(value.detach())
    if isinstance(value, dict) and kind.__name__ in ("dict", "OrderedDict"):
        like = there if isinstance(there, dict) else {}
        result = {}
        for key, item in value.items():
            if not is_key(key):
                raise _NoPlaceError(f"{place}[{shown(key)}]", key)
            try:
                result[key] = _written(f"{place}[{shown(key)}]", item, like.get(key))
            except _NoPlaceError:
                if not _is_the_same(item, like.get(key, _MISSING)):
                    raise
        return result
    if kind in (list, tuple, torch.Size):
        items = [_written(f"{place}[{i}]", item, None) for i, item in enumerate(value)]
        if kind is list and isinstance(there, list) and len(there) == len(value):
            items = [
                _written(f"{place}[{i}]", v, e) for i, (v, e) in enumerate(zip(value, there, strict=True))
            ]
        return items if kind is list else tuple(items)
    if kind is torch.dtype and value in STORAGES:
        return {_KIND: "dtype", "of": name_of(value)}
    if kind is set and all(map(is_key, value)):
        return {_KIND: "set", "of": list(value)}
    if kind is deque:
        return {_KIND: "deque", "of": _written(place, list(value), None), "maxlen": value.maxlen}
    raise _NoPlaceError(place, value)


def _compact(tensor: Tensor) -> Tensor:
    """Return a tensor that takes no more memory in a file than it has values."""
    tensor = tensor.resolve_conj().resolve_neg()
    if not is_dense(tensor.shape, tensor.stride()):
        return tensor.contiguous()
    size = tensor.numel() * tensor.itemsize
    return tensor if tensor.untyped_storage().nbytes() == size else tensor.clone()


def _keep(there: Any, state: Any) -> None:
    """Let tensors have the dtype, and deques the length, that they have in the same place of a state."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(there, dict) and isinstance(state, dict):
        pairs = [(key, there[key], state[key]) for key in there.keys() & state.keys()]
    elif isinstance(there, list | deque) and isinstance(state, list | deque) and len(there) == len(state):
        pairs = [(i, *pair) for i, pair in enumerate(zip(there, state, strict=True))]
    for key, now, then in pairs:
        if isinstance(now, Tensor) and isinstance(then, Tensor):
            if now.shape == then.shape and now.dtype != then.dtype:
                there[key] = then.clone().to(now.device)
            continue
        if isinstance(now, deque) and isinstance(then, deque) and now.maxlen != then.maxlen:
            there[key] = now = deque(now, then.maxlen)
        _keep(now, then)


# ---- whether it is there again ----


def _difference(there: Any, state: Any, place: str) -> str | None:
    """Return the place of what is another one than it was, or None if all is the same."""
    if isinstance(there, dict) and isinstance(state, dict):
        for key in there.keys() | state.keys():
            where = f"{place}[{shown(key)}]"
            if key not in there or key not in state:
                return where
            found = _difference(there[key], state[key], where)
            if found is not None:
                return found
        return None
    if isinstance(there, deque) and isinstance(state, deque) and there.maxlen != state.maxlen:
        return place
    if isinstance(there, _ROWS) and isinstance(state, _ROWS) and len(there) == len(state):
        found_ = (
            _difference(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(there, state, strict=True))
        )
        return next((f for f in found_ if f is not None), None)
    return None if _is_the_same(there, state) else place


def _is_the_same(value: Any, other: Any) -> bool:
    """Tell whether two values are equal, of the same type."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return _are_equal(value, other)
    if isinstance(value, nn.Module) and isinstance(other, nn.Module):  # which has more than a function has
        is_alike = type(value) is type(other)
        return is_alike and _difference(dict(value.state_dict()), dict(other.state_dict()), "") is None
    if value is other or (callable(value) and type(value) is type(other)):
        return True
    try:
        return type(value) is type(other) and bool(value == other or (value != value and other != other))
    except (RuntimeError, TypeError, ValueError):
        return False


def _are_equal(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape, a.layout, a.device) != (b.dtype, b.shape, b.layout, b.device):
        return False
    try:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    except RuntimeError:  # of a layout, or a subclass, that cannot be compared
        return False


def _is_equal(value: Any, other: Any, package: str, seen: set[int]) -> bool:
    """Tell whether an attribute is as that of another optimizer, objects by what they have in them."""
    if id(value) in seen:
        return True
    if isinstance(value, dict) and isinstance(other, dict):
        seen.add(id(value))
        if len(value) != len(other):
            return False
        if value.keys() == other.keys():  # in whatever order: torch's load_state_dict puts params last
            return all(_is_equal(v, other[k], package, seen) for k, v in value.items())
        pairs = zip(value.items(), other.items(), strict=True)
        return all(_are_keys(k, o) and _is_equal(v, w, package, seen) for (k, v), (o, w) in pairs)
    if isinstance(value, _ROWS) and isinstance(other, _ROWS):
        seen.add(id(value))
        return len(value) == len(other) and all(
            _is_equal(v, o, package, seen) for v, o in zip(value, other, strict=True)
        )
    if type(value) is type(other) and hasattr(value, "__dict__") and is_its_own(value, package):
        seen.add(id(value))
        return _is_equal(_compared(value), _compared(other), package, seen)
    return _is_the_same(value, other)


def _compared(value: Any) -> dict[str, Any]:
    """Return what an object has that a later run goes by."""
    found = {
        k: v for k, v in vars(value).items() if not k.startswith(HOOKS) and k not in ("_opt_called", "step")
    }
    if (
        isinstance(value, torch.optim.Optimizer) and "defaults" in found
    ):  # where torch puts that when it loads
        found["defaults"] = {"differentiable": False, **value.defaults}
    return found


def _are_keys(key: Any, other: Any) -> bool:
    """Tell whether two keys mean the same: also a parameter, or its id, in each of two optimizers."""
    if isinstance(key, Tensor):
        return isinstance(other, Tensor) and key.shape == other.shape
    return type(key) is type(other) and (key == other or (type(key) is int and not is_key(key)))


def _memory(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return where an optimizer's parameters are."""
    return {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}


def _is_derived(value: Any, other: Any, memories: set[int]) -> bool:
    """Tell whether an attribute has but parameters in it, or views of them, where another optimizer's has."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        are_there = all(t.untyped_storage().data_ptr() in memories for t in (value, other))
        return are_there and value.shape == other.shape
    if isinstance(value, dict) and isinstance(other, dict):  # by addresses, perhaps
        value, other = list(value.values()), list(other.values())
    if isinstance(value, _ROWS) and isinstance(other, _ROWS):
        return len(value) == len(other) and all(
            _is_derived(v, o, memories) for v, o in zip(value, other, strict=True)
        )
    return _is_the_same(value, other)


def _called(place: str) -> str:
    """Return a place in a state as people read it: "state[0]['exp_avg']"."""
    return place.replace("['", "", 1).replace("']", "", 1) if place.startswith("['") else place.lstrip(".")
