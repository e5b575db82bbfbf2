"""Binding: a host's arrays become an optimizer's parameters, in its groups, or take others' place."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from optplug.claims import Claims
from optplug.errors import StateError
from optplug.kinds import HALF, Grad, Mastered, Parameter, SparseGrad, layout
from optplug.loans import follow
from optplug.parameters import Group, Parameters, again, make
from optplug.recipe import Recipe
from optplug.run import Run
from optplug.sliced import Sliced
from optplug.spec import shown
from optplug.state import lie_as
from optplug.trials import Trials


class Binder:
    """What binds one optimizer's parameters.

    Args:
        master_weights: whether parameters in half precision get copies in float32.
        forget: is called before anything of a parameter that steps is changed.
    """

    def __init__(
        self,
        recipe: Recipe,
        trials: Trials,
        parameters: Parameters,
        master_weights: bool,
        forget: Callable[[], None],
    ) -> None:
        self._recipe, self._trials, self._parameters = recipe, trials, parameters
        self._master_weights, self._forget = master_weights, forget
        self._claims = Claims()
        self._first_group_is_given = False
        #: Makes a parameter of arrays: another function where they lie on ranks.
        self.make = make

    def bind(self, name: str, data: Tensor, grad: Grad, is_staged: bool, run: Run) -> None:
        """Take arrays as a parameter's: see `HostedOptimizer.bind`."""
        if not name:
            raise ValueError("name must not be empty: checkpoints and messages name parameters by it")
        has_master = self._master_weights and data.dtype in HALF
        if has_master and isinstance(grad, SparseGrad):
            raise ValueError(f"parameter {shown(name)}: master_weights does not support sparse gradients")
        if self._recipe.must_fuse and not has_master and not self._recipe.can_fuse(data, grad):
            raise ValueError(
                f"parameter {shown(name)}: with fused=True, data and grad must be real, without gaps, in the "
                f"same layout, and of a dtype that PyTorch's fused {self._recipe.name} steps correctly, got "
                f"{layout(data)} and {layout(grad)}: leave fused out"
            )
        known = self._parameters.get(name)
        memory = grad.values if isinstance(grad, SparseGrad) else grad
        if known is not None and not run.stepped and _would_lose(known, data, is_staged):
            raise ValueError(
                f"name {shown(name)} is already bound, and its array would never be stepped: give each array "
                "its own name; if one moved before the first step, create the optimizer again"
            )
        if known is None and run.built is not None:
            raise StateError(
                f"name {shown(name)} is new after the first step or schedule: bind all parameters earlier"
            )
        claims = self._claims.check(name, data, memory)
        if known is not None:
            self._move(known, data, grad, run)
        else:
            self._add(name, data, grad, has_master)
        self._claims.put(name, claims)
        self._parameters[name].is_staged = is_staged

    def group(self, text: str, run: Run) -> None:
        """Begin a group: see `HostedOptimizer.group`."""
        if run.built is not None:
            raise StateError(f"options {shown(text)}: the first step or schedule has fixed the groups")
        groups = self._parameters.groups
        first = groups[0]
        options = self._trials.options(
            text,
            first.options if not first.names else {},
            lambda: self._parameters.kinds_of([]),
            lambda *_: False,
            is_new=True,
        )
        if not first.names and len(groups) == 1 and not self._first_group_is_given:
            first.options.update(options)
            self._first_group_is_given = True
            return
        if not groups[-1].names:
            raise StateError(f"options {shown(text)}: nothing is bound to the group before this one")
        self._trials.check_groups(text, [*(group.options for group in groups), options])
        groups.append(Group(options))

    def check_moved(self) -> None:
        """Check, before a step, arrays that were bound again: see `claims.Claims.check_moved`."""
        self._claims.check_moved()

    def _add(self, name: str, data: Tensor, grad: Grad, has_master: bool) -> None:
        parameter = self.make(name, data, grad, has_master)
        self._trials.check_flat(name, grad if isinstance(grad, SparseGrad) else parameter.stepped_memory())
        options = self._parameters.groups[-1].options
        self._trials.check_parameter(name, parameter.tensor.detach(), grad, options)
        self._parameters.add(parameter)

    def _move(self, known: Parameter, data: Tensor, grad: Grad, run: Run) -> None:
        name, before, built = known.name, known.data, run.built
        for what, old, new in (
            ("shape", tuple(before.shape), tuple(data.shape)),
            ("dtype", before.dtype, data.dtype),
            ("device", before.device, data.device),
        ):
            if old != new:
                raise ValueError(f"name {shown(name)} is bound with {what} {old}, got {new}")
        if isinstance(grad, SparseGrad) != isinstance(known.grad, SparseGrad):
            if built:
                kinds = ("dense", "sparse") if isinstance(grad, SparseGrad) else ("sparse", "dense")
                raise ValueError(
                    f"name {shown(name)} is bound with a {kinds[0]} gradient, got a {kinds[1]} one"
                )
            self._trials.check_parameter(name, data, grad, self._parameters.options_of(name))
        if isinstance(known, Mastered | Sliced):
            known.move(data, grad)
            self._forget()
            return
        self._trials.check_flat(name, grad)
        if built and self._parameters.loans:
            follow(built, known.tensor, before, data)
        # The fused kernels take the state to lie as the parameter does.
        state = built.state.get(known.tensor, {}) if built else {}
        moved = {key: lie_as(value, data) for key, value in state.items()}
        self._forget()
        self._parameters.replace(again(known, data, grad))
        state.update(moved)
        if built and self._recipe.may_fuse and not self._recipe.can_fuse(data, grad):
            for group in built.param_groups:
                group["fused"] = None


def _would_lose(known: Parameter, data: Tensor, is_staged: bool) -> bool:
    """Tell whether a name that is bound again before the first step is a slip: two arrays have it."""
    if known.is_staged:
        return is_staged
    return known.data.data_ptr() != data.data_ptr()
