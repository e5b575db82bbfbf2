"""Values of a class outside torch as a file can have them, and back.

A file has plain values, dicts, lists, tuples and tensors.  What it has no notion of stands in it as a dict
with a key of ours.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optplug.alike import MISSING, is_the_same, parts_of
from optplug.buffers import is_dense, name_of
from optplug.holdings import has_graph, is_leaf, package_of, slots_of, wants_gradient
from optplug.spec import shown
from optplug.stored import DamagedError, Foreign, Stored
from optplug.unpickle import STORAGES, is_key

#: Not bytes: a class's load_state_dict may unpickle them, and so run what a forged file says.
PLAIN = (type(None), bool, int, float, str)
_KIND = "optplug kind"
_MAY_CHANGE = (dict, list, set, deque, np.ndarray, torch.Generator)
_DTYPES = {name_of(dtype): dtype for dtype in STORAGES}


class NoPlaceError(Exception):
    """A value that no file can give back: its place, and itself."""

    def __init__(self, place: str, value: object) -> None:
        super().__init__(place, value)
        self.place, self.value = place, value


# ---- from a file ----


class Known:
    """What is read of a file: tensors that share memory there share it again.

    Args:
        saved: all that the file has of an optimizer.
        objects: what stands for those of its class's package: see `objects_of`.
    """

    def __init__(self, *saved: Any, objects: dict[str, Any] | None = None) -> None:
        self.objects = objects or {}
        self._tensors: dict[tuple[Any, ...], Tensor] = {}
        self._memory: dict[int, Tensor] = {}
        self._made: dict[int, Any] = {}
        self._saved = saved  # whose containers keep their ids
        forms: dict[int, set[tuple[Any, ...]]] = {}
        found = list(saved)
        while found:
            value = found.pop()
            if isinstance(value, Stored):
                forms.setdefault(value.storage.start, set()).add(_form(value))
            elif type(value) in (list, tuple):
                found += value
            elif type(value) is dict:
                found += value.values()
        self._shared = {start for start, those in forms.items() if len(those) > 1}

    def once(self, saved: Any, make: Callable[[], Any]) -> Any:
        """Make what a container of the file is to be: one that stands in two places is one again."""
        if id(saved) not in self._made:
            self._made[id(saved)] = make()
        return self._made[id(saved)]

    def tensor(self, stored: Stored, place: str) -> Tensor:
        """Read one that is not read yet."""
        if stored.nbytes > stored.storage.size:
            raise ValueError(f"{called(place)} is {stored}, which is larger than its memory")
        start, key = stored.storage.start, (stored.storage.start, *_form(stored))
        if key not in self._tensors:
            is_part = start in self._shared and 0 not in stored.shape
            self._tensors[key] = self._part(stored) if is_part else stored.tensor()
        return self._tensors[key]

    def _part(self, stored: Stored) -> Tensor:
        storage, size = stored.storage, stored.dtype.itemsize
        if storage.start not in self._memory:
            self._memory[storage.start] = Stored(torch.uint8, (storage.size,), (1,), 0, storage).tensor()
        last = stored.offset + sum((n - 1) * s for n, s in zip(stored.shape, stored.strides, strict=True))
        if (last + 1) * size > storage.size:
            raise DamagedError("damaged: a tensor is larger than its memory")
        whole = self._memory[storage.start][: storage.size // size * size].view(stored.dtype)
        return whole.as_strided(stored.shape, stored.strides, stored.offset)


def _form(stored: Stored) -> tuple[Any, ...]:
    return stored.offset, stored.dtype, stored.shape, stored.strides


def read(saved: Any, there: Any, known: Known, place: str = "") -> Any:
    """Return what a file has of a state, its tensors read; what no file can have is taken from here.

    Args:
        saved: as the file has it.
        there: the same of an optimizer as it is built.
        known: what is read already.

    Raises:
        ValueError: there is something in it that is no value.
    """
    if isinstance(saved, Tensor):
        return saved
    if isinstance(saved, Stored):
        return known.tensor(saved, place)
    if type(saved) in (dict, list):
        return known.once(saved, lambda: _read_container(saved, there, known, place))
    if type(saved) is tuple:
        return tuple(_read_all(saved, there, known, place))
    if isinstance(saved, Foreign) or type(saved) not in PLAIN:
        raise ValueError(f"{called(place)} is {shown(saved)}")
    return saved


def _read_container(saved: Any, there: Any, known: Known, place: str) -> Any:
    if type(saved) is dict and saved.get(_KIND) == "object":
        return _object(saved.get("of"), saved.get("class"), known, place)
    if type(saved) is dict and _KIND in saved:
        return _made(saved, known, place)
    if type(saved) is dict:
        like = there if isinstance(there, dict) else {}
        those = {k: v for k, v in saved.items() if not (k in like and _stays(v, like[k]))}
        found = {k: read(v, like.get(k), known, f"{place}[{shown(k)}]") for k, v in those.items()}
        return {**{k: v for k, v in like.items() if k not in found and not _can_write(v)}, **found}
    return list(_read_all(saved, there, known, place))


def _read_all(saved: Any, there: Any, known: Known, place: str) -> Iterator[Any]:
    likes = there if isinstance(there, list | tuple) and len(there) == len(saved) else [None] * len(saved)
    for i, (value, like) in enumerate(zip(saved, likes, strict=True)):
        yield read(value, like, known, f"{place}[{i}]")


def _stays(saved: Any, here: Any) -> bool:
    """Tell whether what is here stands for what a file of PyTorch's has, which is not read."""
    return isinstance(saved, Foreign) or (type(saved) is bytes and saved == here)


def _made(saved: dict[str, Any], known: Known, place: str) -> Any:
    """Return what is written as a dict with a kind."""
    kind, content = saved[_KIND], saved.get("of")
    if kind == "dtype" and type(content) is str and content in _DTYPES:
        return _DTYPES[content]
    if kind == "set" and type(content) is list and all(map(is_key, content)):
        return set(content)
    longest = saved.get("maxlen")
    if kind == "deque" and type(content) is list and (longest is None or type(longest) is int):
        return deque(read(content, None, known, place), longest)
    if kind == "ordered" and type(content) is list and all(map(_is_pair, content)):
        return OrderedDict((k, read(v, None, known, f"{place}[{shown(k)}]")) for k, v in content)
    values = read(content, None, known, place) if isinstance(content, Stored | Tensor) else None
    if isinstance(values, Tensor):
        is_number = values.dtype.is_floating_point or values.is_complex()
        requires_grad = saved.get("requires_grad")
        if kind in _KINDS and type(requires_grad) is bool and (is_number or not requires_grad):
            return _KINDS[kind](values.detach(), requires_grad)
        if kind == "array" and values.dtype != torch.bfloat16:
            return values.numpy()
        if kind == "generator" and values.dtype == torch.uint8 and values.dim() == 1:
            try:
                generator = torch.Generator()
                generator.set_state(values)
            except RuntimeError as error:
                raise ValueError(f"{called(place)} is not a generator's state: {error}") from error
            return generator
    raise ValueError(f"{called(place)} is of no known kind: {shown(saved)}")


def _object(saved: Any, class_: Any, known: Known, place: str) -> Any:
    """Return an object as a step has made one in this place, with the attributes that a file has."""
    like = known.objects.get(place)
    if like is None or type(saved) is not dict:
        raise ValueError(f"{called(place)} is an object in the file, but not here")
    here = type(like).__qualname__
    if class_ != here:  # which a spec's options may choose
        raise ValueError(f"{called(place)} is of class {shown(class_)}, and here of {here}")
    for name in saved:
        check_attribute(called(place), name, like)
        if name.startswith("__") and name not in vars(like):  # which others than the class may go by
            raise ValueError(f"{called(place)} has an attribute {shown(name)} in the file, but not here")
    made = object.__new__(type(like))
    vars(made).update(_read_container(saved, vars(like), known, place))
    return made


def check_attribute(what: str, name: Any, like: Any) -> None:
    """Raise ValueError where an attribute in a file would hide something of a class's but a value."""
    if type(name) is not str or not name.isidentifier():
        raise ValueError(f"{what} has an attribute {shown(name)}, which is not a valid name")
    there = getattr(type(like), name, None)
    # A class may have a value that its steps replace in the object.
    is_value = not callable(there) and not hasattr(there, "__get__") and not name.startswith("__")
    if name not in vars(like) and there is not None and not is_value:
        raise ValueError(f"{what} has an attribute {shown(name)}, which {type(like).__name__} defines itself")


def has_objects(*saved: Any) -> bool:
    """Tell whether a file has objects of a class's package in what is saved."""
    found, seen = list(saved), set[int]()
    while found:
        value = found.pop()
        if type(value) in (list, tuple, dict) and id(value) not in seen:
            seen.add(id(value))
            if type(value) is dict and value.get(_KIND) == "object":
                return True
            found += value.values() if type(value) is dict else value
    return False


def _is_pair(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) == 2 and is_key(value[0])


_KINDS: dict[object, Callable[[Tensor, bool], Tensor]] = {
    "parameter": nn.Parameter,
    "tensor": Tensor.requires_grad_,
}


def _is_plain(class_: Any) -> bool:
    """Tell whether a class's objects are made of attributes in a dict alone, and copied so."""
    is_made_so = bool(class_.__dictoffset__) and class_.__new__ is object.__new__ and not slots_of(class_)
    its_own = ("__setstate__", "__deepcopy__", "__del__", "__getattr__")
    changed = ("__getstate__", "__reduce__", "__reduce_ex__", "__getattribute__")  # Python 3.10 has no first
    is_copied_so = all(getattr(class_, n, None) is getattr(object, n, None) for n in changed)
    return is_made_so and is_copied_so and not any(hasattr(class_, n) for n in its_own)


def objects_of(value: Any, place: str, packages: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield objects of these packages in a value that are no more than their attributes, with their places.

    A file has no class's name in it: what it says of an object is for one that a step makes in that place.
    """
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from objects_of(item, f"{place}[{shown(key)}]", packages)
    elif (
        package_of(value) in packages
        and not isinstance(value, type | Tensor | nn.Module | torch.optim.Optimizer)
        and _is_plain(type(value))
    ):
        yield place, value
        yield from objects_of(vars(value), place, packages)


# ---- into a file ----


def _can_write(value: Any) -> bool:
    try:
        write("", value, None, Shared(set()))
    except NoPlaceError:
        return False
    return True


@dataclass
class Shared:
    """What stands in several places, and is to be one again."""

    #: The addresses of memory that several tensors have.
    memory: set[int]
    #: What may change, by its id, as it was written.
    written: dict[int, Any] = field(default_factory=dict)
    #: What stands for objects of the class's package: see `objects_of`.
    objects: dict[str, Any] = field(default_factory=dict)
    #: The addresses of parameters, of which no object that is read of a file would have a view.
    parameters: set[int] = field(default_factory=set)


def write(place: str, value: Any, there: Any, shared: Shared) -> Any:
    """Return a value as a file can have it, without what no file can have but what is here, too.

    Raises:
        NoPlaceError: something is no such value.
    """
    if type(value) in PLAIN:
        return value
    if not isinstance(value, _MAY_CHANGE) and place not in shared.objects:
        return _write(place, value, there, shared)
    if id(value) not in shared.written:
        shared.written[id(value)] = _write(place, value, there, shared)
    return shared.written[id(value)]


def _write(place: str, value: Any, there: Any, shared: Shared) -> Any:
    kind = type(value)
    if kind is np.float64:
        return float(value)
    if kind in (Tensor, nn.Parameter) and value.layout == torch.strided and value.dtype in STORAGES:
        return _write_tensor(place, value, shared)
    if kind.__name__ == "OrderedDict" and place:
        items = list(value.items())
        bad = next((k for k, _ in items if not is_key(k)), None)
        if bad is not None:
            raise NoPlaceError(f"a key of {called(place)}", bad)
        return {
            _KIND: "ordered",
            "of": [[k, write(f"{place}[{shown(k)}]", v, None, shared)] for k, v in items],
        }
    if isinstance(value, dict) and kind.__name__ in ("dict", "OrderedDict"):
        like = there if isinstance(there, dict) else {}
        result = {}
        for key, item in value.items():
            if not is_key(key):
                raise NoPlaceError(f"a key of {called(place)}", key)
            try:
                result[key] = write(f"{place}[{shown(key)}]", item, like.get(key), shared)
            except NoPlaceError:
                if not is_the_same(item, like.get(key, MISSING)):
                    raise
        return result
    if kind in (list, tuple, torch.Size):
        likes = there if kind is list and isinstance(there, list) and len(there) == len(value) else None
        pairs = enumerate(zip(value, likes or [None] * len(value), strict=True))
        items = [write(f"{place}[{i}]", v, e, shared) for i, (v, e) in pairs]
        return items if kind is list else tuple(items)
    if kind is torch.dtype and value in STORAGES:
        return {_KIND: "dtype", "of": name_of(value)}
    if kind is set and all(map(is_key, value)):
        return {_KIND: "set", "of": list(value)}
    if kind is deque:
        return {_KIND: "deque", "of": _write(place, list(value), None, shared), "maxlen": value.maxlen}
    if kind is np.ndarray and value.dtype.name in _DTYPES and value.dtype.isnative:
        return {_KIND: "array", "of": torch.from_numpy(np.ascontiguousarray(value).copy())}
    if kind is torch.Generator and value.device.type == "cpu":
        return {_KIND: "generator", "of": value.get_state()}
    stands_for = shared.objects.get(place)
    if type(stands_for) is kind:
        for where, t in parts_of(vars(value), place, set(), set()):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() in shared.parameters:
                raise NoPlaceError(where, t)
        attributes = _write(place, vars(value), vars(stands_for), shared)
        return {_KIND: "object", "class": kind.__qualname__, "of": attributes}
    raise NoPlaceError(place, value)


def _write_tensor(place: str, value: Tensor, shared: Shared) -> Any:
    for name, attribute in vars(value).items():
        raise NoPlaceError(f"{place}.{name}", attribute)
    if has_graph(value):
        raise NoPlaceError(f"{place}.grad_fn", value.grad_fn)
    if is_leaf(value) and value.grad is not None:
        raise NoPlaceError(f"{place}.grad", value.grad)
    content = value.detach()
    if content.untyped_storage().data_ptr() not in shared.memory:
        content = _compact(content)
    if type(value) is nn.Parameter or wants_gradient(value):
        kind = "parameter" if type(value) is nn.Parameter else "tensor"
        return {_KIND: kind, "of": content, "requires_grad": wants_gradient(value)}
    return content


def _compact(tensor: Tensor) -> Tensor:
    """Return a tensor that takes no more memory in a file than it has values."""
    tensor = tensor.resolve_conj().resolve_neg()
    if not is_dense(tensor.shape, tensor.stride()):
        return tensor.contiguous()
    size = tensor.numel() * tensor.itemsize
    return tensor if tensor.untyped_storage().nbytes() == size else tensor.clone()


def called(place: str) -> str:
    """Return a place in a state as people read it: "state[0]['exp_avg']"."""
    return place.replace("['", "", 1).replace("']", "", 1) if place.startswith("['") else place.lstrip(".")
