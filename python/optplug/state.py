"""The state of an optimizer as torch's ``state_dict`` gives it, checked before it goes into another one.

Where a file has a tensor, there is an `stored.Stored`: what does not fit is refused before it is read.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optplug.checks import check_count, check_like, check_tensor, is_number, kind_of, word
from optplug.devices import CPU
from optplug.errors import warn
from optplug.recipe import IMPLEMENTATIONS
from optplug.schedules import GROUP_KEYS
from optplug.spec import shown
from optplug.stored import Foreign, Stored

_SCALARS = (torch.float32, torch.float64)  # which torch takes for counts and rates by its default dtype
_WINDOW = 12  # dimensions of which a trial tells whether a state has them


def find(content: dict[str, Any]) -> dict[str, Any]:
    """Return the optimizer's state in what a file has.

    Raises:
        ValueError: there is none, or more than one and none of them is "optimizer".
    """
    if _is_state(content):
        return content
    found = {str(key): state for key, value in content.items() for state in _states_in(value)}
    if "optimizer" in found:
        return found["optimizer"]
    if len(found) == 1:
        return next(iter(found.values()))
    keys = ", ".join(map(shown, list(found or content)[:20])) or "(none)"
    if found:
        raise ValueError(
            f"it contains the states of several optimizers: {keys}; save only one, or one as 'optimizer'"
        )
    raise ValueError(f"not a checkpoint: it contains no optimizer state; its keys are {keys}")


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and {"state", "param_groups"} <= value.keys()


def _states_in(value: object) -> list[dict[str, Any]]:
    """Return a state, or one that is alone in a list, in a list."""
    values = value if isinstance(value, list) and len(value) == 1 else [value]
    return [v for v in values if isinstance(v, dict) and _is_state(v)]


def order(saved: dict[str, Any], groups: list[list[str]]) -> list[list[str]]:
    """Return the names of the parameters of each group in the order in which a saved state has them.

    The optimizer that is to go on must have them so, since LBFGS adds up over all of them.

    Args:
        saved: what ``state_dict`` returned once.
        groups: the names in each group here.  Where there are none in what is saved, this is the order.

    Raises:
        ValueError: it is no such state, or of other parameters.
    """
    theirs = saved["param_groups"]
    if type(theirs) is not list or not all(isinstance(group, dict) for group in theirs):
        raise ValueError("not a checkpoint: param_groups is not a list of groups")
    if len(theirs) != len(groups):
        raise ValueError(f"it has {len(theirs)} parameter groups, and this optimizer {len(groups)}")
    keys: set[int] = set()
    for i, group in enumerate(theirs):
        if type(group.get("params")) is not list or not all(type(key) is int for key in group["params"]):
            raise ValueError(f"group {i} has no list of parameters")
        if keys & set(group["params"]) or len(set(group["params"])) < len(group["params"]):
            raise ValueError(f"group {i} contains a parameter twice")
        keys |= set(group["params"])
    return [_names(i, group, here) for i, (group, here) in enumerate(zip(theirs, groups, strict=True))]


def _names(i: int, group: dict[str, Any], here: list[str]) -> list[str]:
    names, count = group.get("param_names"), len(group["params"])
    if names is None:
        if count != len(here):
            raise ValueError(f"group {i} has {count} parameters in the file, and {len(here)} here")
        return here
    if type(names) is not list or not all(type(name) is str for name in names):
        raise ValueError(f"group {i}: its param_names are not a list of names, got {shown(names)}")
    ours, theirs = set(here), set(names)
    for name in here:
        if name not in theirs:
            there = ", ".join(map(shown, names[:20]))
            raise ValueError(f"group {i} has no parameter {shown(name)}: there are {there}")
    for name in names:
        if name not in ours:
            raise ValueError(f"group {i} has a parameter {shown(name)}, which is not bound here")
    if not len(names) == count == len(here):
        raise ValueError(f"group {i} has {count} parameters in the file, and {len(here)} here")
    return list(names)


def put(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    try_out: Callable[[dict[str, Any], Tensor], dict[str, Any]],
    judge: Callable[[dict[str, Any]], None],
    is_ours: bool,
    stepped: bool,
    part: Callable[..., dict[str, Any]] | None = None,
    is_elsewhere: Callable[[Tensor], bool] = lambda _: False,
) -> None:
    """Put a saved state into an optimizer that has the parameters in the same `order`.

    Tensors of optplug's own files are taken as they are.  torch's ``load_state_dict`` would cast them to the
    parameter's dtype, and so the next steps' bits would be others.

    Args:
        saved: what ``state_dict`` returned once, for an optimizer of this class.
        try_out: returns the state that a parameter has after a step with the options of a group, each
            tensor as a `Form`, and raises what PyTorch says of options that are wrong.
        judge: raises what PyTorch's constructor says of options.
        is_ours: whether optplug has saved it; plain PyTorch's choice of an implementation, where it was a
            default, is not taken over, and its state is cast as PyTorch casts it.
        stepped: whether optplug has made steps with it.
        part: returns this rank's part of a state: see `wholes`.
        is_elsewhere: tells of a parameter whether another rank keeps its state.

    Raises:
        ValueError: it is no such state, or of parameters of other shapes.
    """
    states = saved["state"]
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise ValueError("not a checkpoint: its state is malformed")
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    groups, fitting, known = [], {}, set()
    for i, (group, theirs) in enumerate(zip(optimizer.param_groups, saved["param_groups"], strict=True)):
        options = _options(i, group, theirs, is_ours)
        try:
            judge(options)
        except Exception as error:
            raise ValueError(f"group {i}: {error}") from error
        groups.append({**group, **options})
        for name, p, key in zip(group["param_names"], group["params"], theirs["params"], strict=True):
            known.add(key)
            there = states.get(key, {})
            if not there and not stepped:
                continue
            try:
                like = try_out(options, p)
            except Exception as error:
                raise ValueError(f"group {i}: {error}") from error
            if there and is_ours and not stepped and p not in optimizer.state:
                raise ValueError(f"parameter {shown(name)} has a state before the first step")
            if there and part:
                there = part(p, name, there, like, group["param_names"])
            if there:
                fitting[p] = _fit(name, p, there, like, everything, options, is_ours)
            elif like.keys() - {"momentum_buffer"} and ("func_evals" not in like or p is everything[0]):
                raise ValueError(f"parameter {shown(name)} has no state, after steps")
        have = sum(bool(fitting.get(p)) for p in group["params"])
        if options.get("fused") and 0 < have < len(group["params"]) and "momentum_buffer" in like:
            groups[-1]["fused"] = None  # SGD's fused kernel takes momentum buffers of all or of none
    if states.keys() - known:
        raise ValueError("it has state for parameters that belong to none of its groups")
    # All that can be checked is: now read.
    state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
    for p, fits in fitting.items():
        if fits and not is_elsewhere(p):
            state[p] = {key: value() for key, value in fits.items()}
    optimizer.__setstate__({"state": state, "param_groups": groups})


def lie_as(value: Any, data: Tensor) -> Any:
    """Return a state tensor laid out as its parameter, which is what the fused kernels take it for."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return value
    if value.shape != data.shape or value.stride() == data.stride():
        return value
    return torch.empty_like(data, dtype=value.dtype).copy_(value)


# ---- hyperparameters ----


def _options(i: int, ours: dict[str, Any], theirs: dict[str, Any], is_ours: bool) -> dict[str, Any]:
    """Return the hyperparameters that a group has in a file, those alone that there are here."""
    for key, value in theirs.items():
        if isinstance(value, Foreign):
            raise ValueError(f"not a checkpoint: group {i} has {shown(key)} of {shown(value.name)}")
    known = ours.keys() - {"params", "param_names"}
    missing = known - theirs.keys() - {*GROUP_KEYS, *IMPLEMENTATIONS}
    if missing and is_ours:
        raise ValueError(f"group {i} has no {', '.join(sorted(missing))}")
    options = {key: theirs[key] for key in ours if key in known and key in theirs}
    if "initial_lr" in theirs:  # for a schedule that is attached later
        options["initial_lr"] = theirs["initial_lr"]
    for key, value in options.items():
        if key in IMPLEMENTATIONS:
            if not isinstance(value, bool | None):
                raise ValueError(f"group {i}: {key} is {shown(value)}, and must be True, False or None")
        elif key in ("lr", "initial_lr"):
            options[key] = _rate(f"group {i}: {key}", value)
        else:
            options[key] = _option(f"group {i}: {key}", value, ours[key])
    on_cpu = all(p.device.type == "cpu" for p in ours["params"])
    for key in IMPLEMENTATIONS:
        if key in ours and not (is_ours or options.get(key)):
            options[key] = ours[key]
    if options.get("fused") and not ours.get("fused"):  # the arrays that are bound now do not allow it
        options["fused"] = ours.get("fused")
    if options.get("capturable") and on_cpu:  # from a run on a GPU, where alone that is possible
        options["capturable"] = ours["capturable"]
    return options


def _option(what: str, value: Any, like: Any) -> Any:
    """Check a hyperparameter's kind, which may be None where there is a number or a word here, or not."""
    if isinstance(like, tuple | list) and isinstance(value, tuple | list) and len(like) == len(value):
        return type(like)(_option(what, v, e) for v, e in zip(value, like, strict=True))
    if value != value:
        raise ValueError(f"{what} is {shown(value)}, and must be a number")
    if (value is None and not isinstance(like, bool)) or (
        like is None and (is_number(value) or type(value) is str)
    ):
        like = value
    return check_like(what, value, like)


def _rate(what: str, value: Any) -> float:
    if isinstance(value, Stored) and math.prod(value.shape) == 1:
        value = value.tensor().item()
        if what.endswith(": lr"):  # and initial_lr with it
            warn(
                f"{what} is a tensor in the file, and the number {value!r} here: steps of some classes then "
                "differ in their last bits from those of PyTorch, which keeps the tensor"
            )
    if not is_number(value):
        raise ValueError(f"{what} is {shown(value)}, and must be a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must not be negative, inf or nan, got {shown(value)}")
    return check_like(what, value, 0.0)


# ---- a parameter's state ----


@dataclass(frozen=True)
class Form:
    """What a tensor of a state must be; a shape of None is any."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    device: torch.device = CPU


def expected(trial: Callable[[list[int]], dict[str, Any]], shape: Iterable[int]) -> dict[str, Any]:
    """Return what a step of an optimizer of torch's leaves as the state of a parameter of some shape.

    A state has all sizes of the parameter, or 1 in the place of some, or is one number: steps on small
    stand-ins show which.

    Args:
        trial: makes a step on a parameter of a shape, and returns its state.
        shape: what may be too large to be tried.
    """
    shape = list(shape)
    result: dict[str, Any] = {}
    for start in range(0, max(len(shape), 1), _WINDOW):
        window = [2 if start <= i < start + _WINDOW else 1 for i in range(len(shape))]
        for key, value in exactly(trial(window)).items():
            if isinstance(value, Form) and len(value.shape) == len(shape) > 0:
                sizes = list(result[key].shape) if key in result else [1] * len(shape)
                for i, (found, tried) in enumerate(zip(value.shape, window, strict=True)):
                    if found == tried == 2:
                        sizes[i] = shape[i]
                value = Form(value.dtype, tuple(sizes), value.device)
            result[key] = value
    return result


def exactly(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with a `Form` for each tensor."""
    return {
        key: Form(v.dtype, tuple(v.shape), v.device) if isinstance(v, Tensor) else v
        for key, v in state.items()
    }


_Read = Callable[[], Any]


def _fit(
    name: str,
    p: Tensor,
    state: dict[str, Any],
    like: dict[str, Any],
    everything: list[Tensor],
    options: dict[str, Any],
    is_ours: bool,
) -> dict[str, _Read]:
    """Check a parameter's state against what it must be, and return functions that read it."""
    what = f"parameter {shown(name)}"
    if "func_evals" in like:  # and no directions, where the trial's gradients are within the tolerance
        if p is not everything[0]:
            raise ValueError(f"{what} has a state, but the first parameter holds LBFGS's state for all")
        return _fit_lbfgs(what, state, everything, options)
    if not like.keys() and all(value is None for value in state.values()):
        return {}  # as SGD's momentum_buffer was without a momentum, until torch 2.3
    if state.keys() - like.keys() == {"momentum_buffer"} and options.get("momentum") == 0:
        # A schedule has taken the momentum to 0, for now: its memory waits.
        like = {**like, "momentum_buffer": Form(p.dtype, tuple(p.shape), p.device)}
    if state.keys() != like.keys():
        raise ValueError(
            f"{what} has the state {', '.join(sorted(map(word, state))[:20])}, "
            f"where this optimizer has {', '.join(sorted(like)) or '(none)'}"
        )
    return {key: _fit_one(f"{what}: {key}", key, p, state[key], like[key], is_ours) for key in like}


def _fit_one(what: str, key: str, p: Tensor, value: Any, like: Any, is_ours: bool) -> _Read:
    if key == "step":
        return _fit_step(what, value, like)
    if not isinstance(like, Form):
        checked = check_like(what, value, like)
        return lambda: checked
    if is_number(value) and like.shape == ():
        return lambda: torch.tensor(value, dtype=like.dtype, device=like.device)  # as torch did before 1.12
    if not isinstance(value, Stored):
        raise ValueError(f"{what} is {kind_of(value)}, and {kind_of(like)} here")
    if value.shape != like.shape:
        raise ValueError(f"{what} has shape {value.shape}, and must have {like.shape}")
    dtype = like.dtype
    if value.dtype != dtype:
        if like.shape == () and p.shape != () and {dtype, value.dtype} <= {*_SCALARS}:
            dtype = value.dtype  # of another default dtype: kept, since a rate's digits count
        elif is_ours or not (dtype.is_floating_point and value.dtype.is_floating_point):
            raise ValueError(f"{what} is {kind_of(value)}, and {kind_of(like)} here")
    return lambda: lie_as(value.tensor().to(like.device, dtype), p.detach())


def _fit_step(what: str, value: Any, like: Any) -> _Read:
    """Check a count of steps, which torch has had as int, float, and tensors of several dtypes."""
    if isinstance(value, Stored) and value.shape == () and not value.dtype.is_complex:
        value = value.tensor().item()
    count = check_count(what, value)
    if isinstance(like, Form):
        return lambda: torch.tensor(float(count), dtype=like.dtype, device=like.device)
    return lambda: count


def _fit_lbfgs(
    what: str, state: dict[str, Any], everything: list[Tensor], options: dict[str, Any]
) -> dict[str, _Read]:
    """Check LBFGS's state, which comes bit by bit, and is for all parameters together."""
    counts = ["func_evals", "n_iter"]
    vectors, scalars, lists = (
        ["d", "prev_flat_grad"],
        ["t", "H_diag", "prev_loss"],
        ["old_dirs", "old_stps", "ro"],
    )
    there = {*counts, *vectors, *scalars, *lists}
    if state.keys() not in ({*counts}, there, there | {"al"}):
        raise ValueError(
            f"{what} has the state {', '.join(sorted(map(word, state))[:20])}, which is not LBFGS's"
        )
    dtype = everything[0].dtype
    for p in everything[1:]:
        dtype = torch.promote_types(dtype, p.dtype)
    real, device = torch.empty(0, dtype=dtype).real.dtype, everything[0].device
    total = sum(p.numel() * (1 + p.is_complex()) for p in everything)
    result: dict[str, _Read] = {}

    def number(where: str, value: Any) -> _Read:
        if isinstance(value, Stored) and value.shape == () and value.dtype == real:
            return lambda: value.tensor().to(device)
        if not is_number(value):
            raise ValueError(f"{where} is {kind_of(value)}, and must be a number")
        checked = check_like(where, value, 0.0)
        return lambda: checked

    def vector(where: str, value: Any) -> _Read:
        stored = check_tensor(where, value, real, (total,))
        return lambda: stored.tensor().to(device)

    def several(where: str, values: Any, one: Callable[[str, Any], _Read], most: int) -> _Read:
        if type(values) is not list or len(values) > most:
            raise ValueError(f"{where} is {kind_of(values)}, and must be a list of up to {most}")
        reads = [one(f"{where}[{i}]", v) for i, v in enumerate(values)]
        return lambda: [read() for read in reads]

    for key in state.keys() & {*counts}:
        count = check_count(f"{what}: {key}", state[key])
        result[key] = functools.partial(int, count)
    if state.keys() == {*counts}:
        if state["n_iter"]:
            raise ValueError(f"{what} has no direction after {shown(state['n_iter'])} iterations")
        return result
    history = max(options["history_size"], len(state["al"]) if type(state.get("al")) is list else 0)
    for key in vectors:
        result[key] = vector(f"{what}: {key}", state[key])
    for key in scalars:
        result[key] = number(f"{what}: {key}", state[key])
    for key in lists:
        result[key] = several(f"{what}: {key}", state[key], number if key == "ro" else vector, history)
    if len({len(state[key]) for key in lists}) > 1:
        raise ValueError(f"{what}: {', '.join(lists)} are of different lengths")
    if "al" in state:

        def entry(where: str, value: Any) -> _Read:
            return (lambda: None) if value is None else number(where, value)

        result["al"] = several(f"{what}: al", state["al"], entry, history)
        least = len(state["old_dirs"])  # fewer than the history, where that was set longer in between
        if len(state["al"]) < least:
            raise ValueError(f"{what}: al must have {least} entries or more, got {len(state['al'])}")
    return {key: result[key] for key in state}
