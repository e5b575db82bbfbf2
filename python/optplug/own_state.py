"""The state of a class outside torch, saved and loaded by its own ``state_dict`` and ``load_state_dict``.

Nobody else knows what such a class must find again, so its own methods are the judge: what it saves is
loaded into another optimizer of the class, and must be there.  Attributes that it forgets are saved beside.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optplug import methods
from optplug.alike import (
    MISSING,
    Overlaps,
    difference,
    is_derived,
    is_equal,
    is_of_its_kind,
    memory_of,
    overlapping,
    parts_of,
)
from optplug.arguments import said
from optplug.checks import is_number
from optplug.errors import StateError
from optplug.generators import random_numbers_kept
from optplug.holdings import holdings, is_leaf
from optplug.kinds import some_gradient
from optplug.spec import shown
from optplug.watch import opaque
from optplug.written import (
    Known,
    NoPlaceError,
    Shared,
    called,
    check_attribute,
    has_objects,
    objects_of,
    read,
    write,
)

# Where the attributes of parameters stand among those of an optimizer: no name.
_OF_PARAMETERS = "of parameters"
_STEPS = 3  # that show whether a copy goes on alike


@functools.cache
def _torchs() -> set[str]:
    """Return the attributes that every optimizer of torch's has, and those that schedulers give it."""
    plain = torch.optim.Optimizer([nn.Parameter(torch.empty(0))], {})
    return vars(plain).keys() | {"_opt_called", "step"}


def save(
    optimizer: torch.optim.Optimizer, build: Callable[[], torch.optim.Optimizer], needs_closure: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an optimizer's state and the attributes that are not in it, as a file can have them.

    Args:
        optimizer: whose they are.
        build: returns one like it as it was built, on parameters of the same values.
        needs_closure: whether it steps with a closure only.

    Raises:
        StateError: something would not come back.
    """
    other, packages = build(), _packages(optimizer)
    try:
        state = optimizer.state_dict()
        there = other.state_dict()
        overlaps, memory = overlapping(_parts_of(optimizer))
        objects = _objects(build, needs_closure) if any(_objects_in(optimizer)) else {}
        shared = Shared(memory, objects=objects, parameters=memory_of(optimizer))
        content = write("", state, there, shared)
        known = Known(content, objects=objects)
        load(other, read(content, there, known), {})
        place = difference(other.state_dict(), state, "", packages)
        if place is not None:
            raise StateError(f"{called(place)} differs after its own load_state_dict")
        extra = _attributes(optimizer, other, shared, needs_closure)
        if extra:
            load(other, read(content, there, known), _check_attributes(other, extra, known))
        there_now, places = overlapping(_parts_of(other))[0], dict(_parts_of(other)).keys()
        reason = _apart(overlaps, there_now, places)
        of_parameters = _apart(_of_parameters(overlaps), _of_parameters(there_now), places)
        if of_parameters or (reason and not _goes_on_alike(optimizer, other, needs_closure)):
            reason = of_parameters or reason
            load(other, read(content, there, known), _check_attributes(other, extra, known))
            _try(other, needs_closure)  # after which they may share it again
            if _apart(overlaps, overlapping(_parts_of(other))[0], overlaps.keys()):
                raise StateError(reason)
        return content, extra
    except NoPlaceError as error:
        kind = type(error.value).__name__
        article = "an" if kind[0] in "AEIOU" else "a"
        reason = f"{called(error.place)} is {article} {kind}, which no file can restore"
        if isinstance(error.value, bytes):
            reason = f"{called(error.place)} is bytes, which a class may unpickle, and a load runs no code"
    except RecursionError:
        reason = "an object in it refers back to itself, which no file can restore"
    except Exception as error:
        reason = str(error) or type(error).__name__
    raise StateError(
        f"opt_save cannot save {type(optimizer).__name__}: {reason}; to be able to resume, choose other "
        "options or another class"
    )


def _packages(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the packages of an optimizer's class and its bases."""
    return {base.__module__.partition(".")[0] for base in type(optimizer).__mro__} - {"torch", "builtins"}


def _attributes_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an optimizer that are not torch's, and its defaults."""
    for name, value in vars(optimizer).items():
        if name == "defaults":  # in which torch sets one at loads
            yield name, {"differentiable": False, **value}
        elif name not in _torchs():
            yield name, value


def _objects_in(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield the objects that an optimizer has in its state and its attributes, each with its place."""
    packages = _packages(optimizer)
    yield from objects_of(optimizer.state_dict(), "", packages)
    for name, value in _attributes_of(optimizer):
        yield from objects_of(value, f".{name}", packages)


def _objects(build: Callable[[], torch.optim.Optimizer], needs_closure: bool) -> dict[str, Any]:
    """Return the objects that an optimizer makes by itself, in its first step at the latest."""
    with random_numbers_kept():
        made = build()
        _try(made, needs_closure)
    return dict(_objects_in(made))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _parts_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield the parameters, and all else that an optimizer has and that may change, each with its place."""
    packages, seen = _packages(optimizer), {id(optimizer)}
    for i, p in enumerate(_parameters(optimizer)):
        yield from parts_of(p, f"parameter {i}", packages, seen)
        for name, value in vars(p).items():
            yield from parts_of(value, f"parameter {i}.{name}", packages, seen)
    yield from parts_of(optimizer.state, "state", packages, seen)
    yield from parts_of(optimizer.param_groups, "param_groups", packages, seen)
    for name, value in _attributes_of(optimizer):
        if name != "defaults":  # which each group has at first, and no longer after torch's load_state_dict
            yield from parts_of(value, f".{name}", packages, seen)


def _apart(before: Overlaps, after: Overlaps, places: Set[str]) -> str:
    """Say what shares memory and would no longer do so after a load, or the reverse; "" if nothing."""
    for place in sorted(before.keys() | after.keys()):
        first = (before.get(place) or after[place])[0]
        if place != first and before.get(place) != after.get(place) and {place, first} <= places:
            when = "would no longer do so after a load" if place in before else "would do so after a load"
            return f"{called(place)} shares memory with {called(first)}, and {when}"
    return ""


def _of_parameters(overlaps: Overlaps) -> Overlaps:
    """Return what shares memory with parameters, which a step may go by that is not among the next few."""
    return {place: where for place, where in overlaps.items() if where[0].startswith("parameter ")}


def _goes_on_alike(
    optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer, needs_closure: bool
) -> bool:
    """Tell whether a copy of an optimizer goes on as one that has loaded its state, in a few steps."""
    if opaque(optimizer, but_methods=True):  # what a copy would share
        return False
    try:
        twin = _twin(optimizer)
        pair = _parameters(twin), _parameters(other)
        for ours, theirs in zip(*pair, strict=True):
            theirs.data.copy_(ours)
        for i in range(_STEPS):
            for one, parameters in zip((twin, other), pair, strict=True):
                for p in parameters:
                    p.grad = some_gradient(p.detach()) / (1 + i)
                torch.manual_seed(i), random.seed(i), np.random.seed(i)
                _step(one, needs_closure)
            if difference([p.data for p in pair[0]], [p.data for p in pair[1]], "") is not None:
                return False
    except Exception:  # of a class that cannot be copied so
        return False
    return True


def _twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a copy of an optimizer, in which tensors share memory as in it."""
    twin = object.__new__(type(optimizer))
    held = {k: v for k, v in vars(optimizer).items() if k != "step"}
    copied: dict[int, Any] = {id(optimizer): twin}
    for t in holdings(optimizer).tensors:
        if not is_leaf(t):  # which torch would not copy
            copied[id(t)] = copy.deepcopy(t.detach(), copied)
    vars(twin).update(copy.deepcopy(held, copied))
    return twin


def _attributes(
    optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer, shared: Shared, needs_closure: bool
) -> dict[str, Any]:
    """Return what an optimizer has beside what another one has that has its state."""
    packages, own = _packages(optimizer), {id(optimizer), *map(id, _parameters(optimizer))}
    attributes, refused, here = {}, [], dict(_attributes_of(other))
    for name, value in _attributes_of(optimizer):
        if not is_equal(value, here.get(name, MISSING), packages, {*own}):
            try:
                like = here[name] if name == "defaults" else None
                attributes[name] = write(f".{name}", value, like, shared)
            except NoPlaceError as reason:
                refused.append((name, value, reason))
    if refused:  # which may be lists of parameters that a step makes anew
        _try(other, needs_closure)
        memories = memory_of(optimizer) | memory_of(other)
        for name, value, error in refused:
            if not is_derived(value, vars(other).get(name, MISSING), memories):
                raise error
    mine, theirs = ([vars(p) for p in _parameters(o)] for o in (optimizer, other))
    if not is_equal(mine, theirs, packages, {id(optimizer)}):
        attributes[_OF_PARAMETERS] = [
            {name: write(f"parameter {i}.{name}", v, None, shared) for name, v in those.items()}
            for i, those in enumerate(mine)
        ]
    return attributes


def load(optimizer: torch.optim.Optimizer, state: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Put a state, as `read` returns it, into an optimizer by its own method.

    Tensors keep their dtype, and deques their length.  torch's ``load_state_dict`` would cast the ones to
    the parameter's and forget the others, and so the next steps' bits would be others.
    """
    copied: dict[int, Any] = {}  # what stands in two places is copied once
    groups, with_its = optimizer.param_groups, []
    for part in dict(_parts_of(optimizer)).values():
        theirs = vars(part).get("param_groups") if isinstance(part, torch.optim.Optimizer) else None
        if theirs and all(map(operator.is_, theirs, groups)):
            with_its.append((part, theirs is groups))
    optimizer.load_state_dict(copy.deepcopy(state, copied))
    groups = optimizer.param_groups
    for part, is_same in with_its:  # torch's load_state_dict makes them anew for each
        part.param_groups = groups if is_same else list(groups)
    _keep(optimizer.state_dict(), state)
    for p, those in zip(_parameters(optimizer), attributes.get(_OF_PARAMETERS, []), strict=False):
        vars(p).update(copy.deepcopy(those, copied))
    shared = overlapping(parts_of([state, attributes], "", set(), set()))[1]
    for name, value in attributes.items():
        known = getattr(optimizer, name, None)
        if name == _OF_PARAMETERS:
            continue
        if (
            (type(known) is type(value) is Tensor or type(known) is type(value) is nn.Parameter)
            and known.shape == value.shape
            and value.untyped_storage().data_ptr() not in shared
        ):
            known.data.copy_(value)  # it may be other tensors' memory, too
        else:
            setattr(optimizer, name, copy.deepcopy(value, copied))


def resume(
    optimizer: torch.optim.Optimizer,
    build: Callable[[], torch.optim.Optimizer],
    saved: Any,
    attributes: Any,
    needs_closure: bool,
) -> None:
    """Let an optimizer go on from what a file has, once another one on copies has loaded it and stepped.

    Args:
        optimizer: is to go on.
        build: returns another one.
        saved, attributes: what the file has.
        needs_closure: whether it steps with a closure only.

    Raises:
        ValueError: the class does not take it.
    """
    if not isinstance(saved, dict):
        raise ValueError("not a checkpoint: the state of its optimizer is malformed")
    _check_rates(saved.get("param_groups"))
    with random_numbers_kept():
        other = build()
    try:
        objects = _objects(build, needs_closure) if has_objects(saved, attributes) else {}
    except Exception as error:
        raise ValueError(f"{type(optimizer).__name__} cannot step here: {said(error)}") from error
    known = Known(saved, attributes, objects=objects)
    extra = _check_attributes(other, attributes, known)
    try:
        with random_numbers_kept():
            state = read(saved, other.state_dict(), known)
            load(other, state, extra)
            _try(other, needs_closure)
            load(optimizer, state, extra)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{type(optimizer).__name__} rejects it: {said(error)}") from error


def _try(optimizer: torch.optim.Optimizer, needs_closure: bool) -> None:
    """Step an optimizer on copies, with gradients that no class need fail at, as zeros are."""
    for p in _parameters(optimizer):
        if p.grad is not None and p.grad.layout == torch.strided:
            p.grad = some_gradient(p.detach())
    _step(optimizer, needs_closure)


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


def _check_attributes(optimizer: torch.optim.Optimizer, attributes: Any, known: Known) -> dict[str, Any]:
    """Return the attributes in a file, or raise ValueError where they would replace something else."""
    if type(attributes) is not dict:
        raise ValueError("not a checkpoint: the attributes of its optimizer are malformed")
    for name in attributes.keys() - {_OF_PARAMETERS, "defaults"}:
        if name in _torchs():
            raise ValueError(f"its optimizer has an attribute {shown(name)}, which is a name of torch's")
        check_attribute("its optimizer", name, optimizer)
    here = {"defaults": getattr(optimizer, "defaults", None)}
    found = {name: read(value, here.get(name), known, f".{name}") for name, value in attributes.items()}
    if type(found.get("defaults", {})) is not dict:
        raise ValueError("not a checkpoint: the defaults of its optimizer are malformed")
    of_parameters = found.get(_OF_PARAMETERS, [])
    if type(of_parameters) is not list or not all(type(those) is dict for those in of_parameters):
        raise ValueError("not a checkpoint: the attributes of its parameters are malformed")
    for name in (name for those in of_parameters for name in those):
        if type(name) is not str or not name.isidentifier() or hasattr(nn.Parameter, name):
            raise ValueError(f"not a checkpoint: a parameter has an attribute {shown(name)}")
    return found


def _keep(there: Any, state: Any) -> None:
    """Let tensors have the dtype, and deques the length, that they have in the same place of a state."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(there, dict) and isinstance(state, dict):
        pairs = [(key, there[key], state[key]) for key in there.keys() & state.keys()]
    elif isinstance(there, list | deque) and isinstance(state, list | deque) and len(there) == len(state):
        pairs = [(i, *pair) for i, pair in enumerate(zip(there, state, strict=True))]
    for key, now, then in pairs:
        if isinstance(now, Tensor) and isinstance(then, Tensor):
            if now.shape == then.shape and not is_of_its_kind(now, then):
                there[key] = _again(then, now.device)
            continue
        if isinstance(now, dict) and type(then) is OrderedDict and now.keys() == then.keys():
            there[key] = now = OrderedDict((k, now[k]) for k in then)
        if isinstance(now, deque) and isinstance(then, deque) and now.maxlen != then.maxlen:
            there[key] = now = deque(now, then.maxlen)
        _keep(now, then)


def _again(then: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a tensor, of the same kind."""
    values = then.detach().clone().to(device)
    if type(then) is nn.Parameter:
        return nn.Parameter(values, then.requires_grad)
    return values.requires_grad_(then.requires_grad)
