"""The state of an optimizer as torch's ``state_dict`` gives it, checked before it goes into another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optplug.schedules import GROUP_KEYS
from optplug.spec import shown

#: Which of torch's implementations makes the step: no hyperparameters, but in the groups beside them.
IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")


def order(saved: Any, groups: list[list[str]]) -> list[list[str]]:
    """Return the names of the parameters of each group in the order in which a saved state has them.

    The optimizer that is to go on must have them so, since LBFGS adds up over all of them.

    Args:
        saved: what ``state_dict`` returned once.
        groups: the names in each group here.  Where there are none in what is saved, this is the order.

    Raises:
        ValueError: it is no such state, or of other parameters.
    """
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError("it has no state of an optimizer in it")
    theirs = saved["param_groups"]
    if len(theirs) != len(groups):
        raise ValueError(f"it has {len(theirs)} parameter groups, and this optimizer {len(groups)}")
    return [_names(i, group, here) for i, (group, here) in enumerate(zip(theirs, groups, strict=True))]


def _names(i: int, group: dict[str, Any], here: list[str]) -> list[str]:
    names, count = group.get("param_names"), len(group["params"])
    if names is None:
        if count != len(here):
            raise ValueError(f"group {i} has {count} parameters in it, and {len(here)} here")
        return here
    for name in here:
        if name not in names:
            there = ", ".join(map(shown, names[:20]))
            raise ValueError(f"group {i} has no parameter {shown(name)} in it: there are {there}")
    for name in names:
        if name not in here:
            raise ValueError(f"group {i} has a parameter {shown(name)} in it, to which nothing is bound here")
    if not len(names) == count == len(here):
        raise ValueError(f"group {i} has {count} parameters in it, and {len(here)} here")
    return list(names)


def put(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    try_out: Callable[[dict[str, Any], Tensor], dict[str, Any]],
    is_ours: bool,
) -> None:
    """Put a saved state into an optimizer that has the parameters in the same `order`.

    Tensors are taken as they are.  torch's ``load_state_dict`` would cast them to the parameter's dtype,
    and so the next steps' bits would be others.

    Args:
        saved: what ``state_dict`` returned once, for an optimizer of this class.
        try_out: returns the state that a parameter has after a step with the options of a group, and
            raises what PyTorch says of options that are wrong.
        is_ours: whether optplug has saved it; plain PyTorch's choice of an implementation, where it was a
            default, is not taken over.

    Raises:
        ValueError: it is no such state, or of parameters of other shapes.
    """
    total = sum(p.numel() * (1 + p.is_complex()) for group in optimizer.param_groups for p in group["params"])
    states = saved["state"]
    groups, state, known = [], defaultdict(dict), set()
    for i, (group, theirs) in enumerate(zip(optimizer.param_groups, saved["param_groups"], strict=True)):
        options = _options(i, group, theirs, is_ours)
        groups.append({**group, **options})
        for name, p, key in zip(group["param_names"], group["params"], theirs["params"], strict=True):
            known.add(key)
            if key in states:
                try:
                    expected = try_out(options, p)
                except Exception as error:
                    raise ValueError(f"group {i}: {error}") from error
                state[p] = _check(name, p, states[key], expected, total)
    if states.keys() - known:
        raise ValueError("it has state of parameters that are in none of its groups")
    optimizer.__setstate__({"state": state, "param_groups": groups})


def lie_as(value: Any, data: Tensor) -> Any:
    """Return a state tensor laid out as its parameter, which is what the fused kernels take it for."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return value
    if value.shape != data.shape or value.stride() == data.stride():
        return value
    return torch.empty_like(data, dtype=value.dtype).copy_(value)


def _options(i: int, ours: dict[str, Any], theirs: dict[str, Any], is_ours: bool) -> dict[str, Any]:
    options = {key: value for key, value in theirs.items() if key not in ("params", "param_names")}
    missing = ours.keys() - {"params", "param_names"} - options.keys()
    if missing - {*GROUP_KEYS, *IMPLEMENTATIONS} and is_ours:
        raise ValueError(f"group {i} has no {', '.join(sorted(missing))}")
    for key in IMPLEMENTATIONS:
        if key in ours and not (is_ours or options.get(key)):
            options[key] = ours[key]
    if options.get("fused") and not ours.get("fused"):  # the arrays that are bound now do not allow it
        options["fused"] = ours.get("fused")
    return options


def _check(
    name: str, p: Tensor, state: dict[str, Any], expected: dict[str, Any], total: int
) -> dict[str, Any]:
    """Check the state of a parameter against that of one that is like it, and return it as it is to be."""
    grows = "old_dirs" in expected  # LBFGS's, whose state comes bit by bit, and for all parameters together
    if state.keys() != expected.keys() and not (grows and state.keys() <= expected.keys() | {"al"}):
        raise ValueError(
            f"parameter {shown(name)} has the state {', '.join(sorted(map(str, state)))}, "
            f"where this optimizer has {', '.join(sorted(expected))}"
        )
    for key, value in state.items():
        like = expected.get(key, [])
        if isinstance(value, list) and isinstance(like, list):
            for v in value:
                if isinstance(v, Tensor) and v.shape not in ((), (total,)):
                    raise ValueError(f"parameter {shown(name)}: {key} has other shapes")
            continue
        if isinstance(value, Tensor) != isinstance(like, Tensor) and not grows:
            raise ValueError(f"parameter {shown(name)}: {key} is {_kind(value)}, and {_kind(like)} here")
        if not isinstance(value, Tensor):
            if not isinstance(value, bool | int | float | None):
                raise ValueError(f"parameter {shown(name)}: {key} is {_kind(value)}")
            continue
        if isinstance(like, Tensor) and value.dtype != like.dtype:
            raise ValueError(f"parameter {shown(name)}: {key} is {_kind(value)}, and {_kind(like)} here")
        shape, like_shape = tuple(value.shape), tuple(like.shape) if isinstance(like, Tensor) else ()
        fits = shape == tuple(p.shape) or (
            len(shape) == len(like_shape) and _reduces(shape, like_shape, tuple(p.shape))
        )
        if not fits and not (grows and shape in ((), (total,))):
            raise ValueError(
                f"parameter {shown(name)}: {key} has shape {shape}, and the parameter {tuple(p.shape)}"
            )
    return {key: _place(lie_as(value, p.detach()), expected.get(key), p) for key, value in state.items()}


def _place(value: Any, like: Any, p: Tensor) -> Any:
    """Return a state, or a list of them, on the device where an example's is, or else the parameter's."""
    if isinstance(value, list):
        return [_place(v, None, p) for v in value]
    if not isinstance(value, Tensor):
        return value
    return value.to(like.device if isinstance(like, Tensor) else p.device)


def _reduces(shape: tuple[int, ...], like: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Tell whether a shape is the parameter's, but for ones where the example's has them."""
    if len(shape) != len(full):
        return shape == ()
    return all(s == n or (s == 1 and e == 1) for s, e, n in zip(shape, like, full, strict=True))


def _kind(value: object) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
