"""Trials: optimizers of no importance, built and stepped to hear what PyTorch says.

What has gone well once is not tried again in a process.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from optplug import spec
from optplug.arguments import blame, check_kinds, is_count, said
from optplug.devices import CPU
from optplug.generators import random_numbers_kept
from optplug.kinds import Grad, SparseGrad, layout, some_gradient
from optplug.ranges import Range, Ranges, broken
from optplug.recipe import IMPLEMENTATIONS, Recipe, argument, fuses_rightly
from optplug.spec import SpecError, shown
from optplug.state import expected

_went_well: dict[tuple[object, ...], dict[str, Any]] = {}  # with the class's defaults
_MOST_KEPT = 1000

#: Returns one of each kind among parameters, and whether its gradient is sparse.
Kinds = Callable[[], Iterable[tuple[Tensor | None, bool]]]
IsScalar = Callable[[str, Any], bool]


def nothing_yet() -> list[tuple[str, nn.Parameter]]:
    """Return what a class is tried out on: of two dimensions, since Muon takes no others."""
    return [("", nn.Parameter(torch.empty(0, 0)))]


def put(group: dict[str, Any], options: dict[str, Any]) -> None:
    """Put options into a group; a number as a tensor where a class outside torch keeps one."""
    for name, value in options.items():
        known = group.get(name)
        if isinstance(known, Tensor) and isinstance(value, int | float):
            value = torch.full_like(known, value)
        group[name] = value


class Trials:
    """What can be tried of a recipe.

    Raises:
        ValueError: PyTorch refuses it as it is.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        #: Options that a class outside torch has in its groups, and no argument for.
        self.extras: set[str] = set()
        self._waits = False
        for name, inner in recipe.wrapped().items():
            try:
                Trials(inner)
            except ValueError as error:
                raise SpecError(f"{name}={shown(inner)}: {error}") from error
        try:
            #: The class's options, with the recipe's values.
            self.defaults = self._first(recipe)
        except Exception as error:
            raise SpecError(self._blame(error, recipe.arguments, self._step)) from error
        self._ranges = Ranges(lambda options: self._judge({}, options))

    def _first(self, recipe: Recipe) -> dict[str, Any]:
        """Try the recipe; of a class outside torch, with a closure as well, which it may want and not say so.

        Some of those take the names in their groups for options of theirs: they get none.
        """
        errors: list[Exception] = []
        for names_groups in (True, False)[: 1 if recipe.is_torchs else 2]:
            for needs_closure in (recipe.needs_closure, True)[: 1 if recipe.is_torchs else 2]:
                if not recipe.is_torchs:
                    self._recipe = dataclasses.replace(
                        recipe, names_groups=names_groups, needs_closure=needs_closure
                    )
                try:
                    return self._try(recipe.arguments)
                except Exception as error:
                    errors.append(error)
            if not any("param_names" in str(error) for error in errors):
                break
        self._recipe = recipe
        said_first = said(errors[0])  # which says more than the others
        if recipe.is_torchs or recipe.needs_closure or not self._may_lack_options(recipe, said_first):
            raise errors[0]
        self._waits = True
        return {}

    def _blame(
        self, error: Exception, options: dict[str, Any], attempt: Callable[[dict[str, Any]], object]
    ) -> str:
        """Return what an error says of options, and what PyTorch's constructor wants their numbers to be."""
        words = blame(error, self.class_, options, attempt)
        if not self._recipe.is_torchs:
            return words
        parameters = spec.signature_of(self.class_).parameters  # type: ignore[arg-type]
        defaults = {name: p.default for name, p in parameters.items() if p.default is not Parameter.empty}
        build = functools.partial(self._recipe.build, [{"params": nothing_yet()}])
        return "; ".join([words, *broken(build, options, defaults)])

    def _may_lack_options(self, recipe: Recipe, words: str) -> bool:
        """Tell whether a class outside torch fails for something else than its arguments.

        It may want options in its groups, or parameters of another shape: what is bound will show.
        """
        if any(re.search(rf"\b{name}\b", words) for name in recipe.arguments):
            return False
        parameters = spec.signature_of(recipe.class_).parameters  # type: ignore[arg-type]
        needed = {
            n: v
            for n, v in recipe.arguments.items()
            if n in parameters and parameters[n].default is Parameter.empty
        }
        if needed == recipe.arguments:
            return True
        try:
            self._try(needed)
        except Exception:
            return True
        return False

    @property
    def recipe(self) -> Recipe:
        """The recipe, with what trials have shown of the class."""
        return self._recipe

    @property
    def class_(self) -> type[torch.optim.Optimizer]:
        """The recipe's class."""
        return self._recipe.class_

    # ---- parameters ----

    def check_parameter(self, name: str, data: Tensor, grad: Grad, options: dict[str, Any]) -> None:
        """Let PyTorch judge a parameter in a group with these options.

        Raises:
            ValueError: it refuses that.
        """
        recipe = self._recipe
        try:
            try:
                defaults = self._try(recipe.arguments, data, isinstance(grad, SparseGrad), options)
                if self._waits:
                    self._end_waiting(defaults, options)
            except Exception:
                # On the parameter itself PyTorch may say more; where nothing is wrong that may take long.
                with random_numbers_kept():
                    recipe.build([{"params": [(name, nn.Parameter(data))], **options}])
                raise
        except Exception as error:
            empty = "" if data.numel() else ", which is empty"
            remedy = self._remedy(data, isinstance(grad, SparseGrad), options)
            raise ValueError(f"parameter {shown(name)}{empty}: {said(error)}{remedy}") from error

    def _remedy(self, data: Tensor, is_sparse: bool, options: dict[str, Any]) -> str:
        """Say which kind of parameter PyTorch accepts, where it is the kind that it rejects."""

        def accepts(dimensions: int, is_sparse: bool) -> bool:
            with contextlib.suppress(Exception):
                like = data.new_zeros([2, 2, *[1] * dimensions][:dimensions])
                self._try(self._recipe.arguments, like, is_sparse, options)
                return True
            return False

        if accepts(data.dim(), is_sparse):
            return ""
        if accepts(2, not is_sparse):
            return f": bind it with {'opt_bind' if is_sparse else 'opt_bind_sparse'}"
        return ": bind it as a matrix, with opt_bind_nd" if accepts(2, is_sparse) else ""

    def _end_waiting(self, defaults: dict[str, Any], options: dict[str, Any]) -> None:
        """Take over what a first parameter has shown of the class, and judge its group's options by it."""
        self.defaults = defaults
        self.__dict__.pop("accepted", None)
        try:
            self._judge(options, {name: value for name, value in options.items() if name in self.accepted})
        except Exception:
            self.defaults = {}
            self.__dict__.pop("accepted", None)
            raise
        self._waits = False
        self.extras -= self.accepted

    def check_flat(self, name: str, grad: Grad) -> None:
        """Check that a gradient can be put into a row as it lies, where the class is one that does so."""
        if not self._recipe.is_lbfgs or not isinstance(grad, Tensor):
            return
        try:
            (torch.view_as_real(grad) if grad.is_complex() else grad).view(-1)
        except RuntimeError as error:
            raise ValueError(
                f"parameter {shown(name)}: {self._recipe.name} takes gradients in C order without gaps, "
                f"got {layout(grad)}: bind it as one flat array "
                "(Fortran: flat=.true., MATLAB and Octave: Optimizer(spec, 'flat'))"
            ) from error

    # ---- options of groups ----

    def check_groups(self, text: str, groups: Iterable[dict[str, Any]]) -> None:
        """Check that the class takes more than one group, with these options; ``text`` is for errors."""
        try:
            with random_numbers_kept() if not self._recipe.is_torchs else contextlib.nullcontext():
                # torch's own judge options elsewhere; others may not do without.
                made = [{} if self._recipe.is_torchs else options for options in groups]
                self._recipe.build([{"params": nothing_yet(), **options} for options in made])
        except Exception as error:
            raise ValueError(f"options {shown(text)}: {said(error)}") from error

    def options(
        self,
        text: str,
        current: dict[str, Any],
        kinds: Kinds,
        is_scalar: IsScalar,
        is_new: bool = False,
    ) -> dict[str, Any]:
        """Parse options for parameters of these kinds, and let PyTorch judge them: see `judge`.

        A new group of a class outside torch may have any, which are judged with its parameters.
        """
        try:
            options = {
                name: argument(self.class_, name, value, self._recipe.third_party)
                for name, value in spec.arguments(text).items()
            }
            if is_new and not self._recipe.is_torchs:
                self._judge_new(options, current, kinds, is_scalar)
                return options
            for name in options:
                spec.check_name(name, self.accepted | self.extras, "option")
            self.judge(options, current, kinds, is_scalar)
        except Exception as error:
            raise ValueError(f"options {shown(text)}: {error}") from error
        return options

    def _judge_new(
        self, options: dict[str, Any], current: dict[str, Any], kinds: Kinds, is_scalar: IsScalar
    ) -> None:
        """Judge those options of a new group that the class has arguments for; it may know others."""
        others = {name: value for name, value in options.items() if name not in self.accepted}
        if others.keys() != options.keys():
            known = {name: value for name, value in options.items() if name in self.accepted}
            self.judge(known, {**current, **others}, kinds, is_scalar)
        self.extras |= others.keys()
        self._recipe.warn_of_unknown(others)

    def judge(
        self, options: dict[str, Any], current: dict[str, Any], kinds: Kinds, is_scalar: IsScalar
    ) -> None:
        """Let PyTorch judge options for parameters of these kinds, beside those in force.

        Nothing is built or stepped where its judgement is known: see `ranges`.

        Args:
            is_scalar: tells of an option and its value whether steps hand it to a kernel and make no other
                use of it, so that none need be tried.
        """
        check_kinds(self._recipe.class_, options)
        in_force = {n: value for n, value in current.items() if n in self.defaults or n in self.extras}
        is_safe = options.keys() == {"lr"} or all(is_scalar(name, value) for name, value in options.items())
        together = {name: v for name, v in {**in_force, **options}.items() if name in self.accepted}
        if self._recipe.is_torchs and is_safe and self._ranges.cover(together):
            return
        attempt = functools.partial(self._check_beside, in_force, kinds, is_safe)
        try:
            attempt(options)
        except Exception as error:
            raise SpecError(self._blame(error, options, attempt)) from error
        if self._recipe.is_torchs:
            self._ranges.watch(together)

    def find_range(self, options: dict[str, Any], name: str) -> Range | None:
        """Return where a number among a group's options may move, beside the others; None if unknown."""
        if is_count(self._recipe.class_, name):
            return None
        return self._ranges.find({n: v for n, v in options.items() if n in self.accepted}, name)

    def judge_all(self, options: dict[str, Any]) -> None:
        """Let PyTorch's constructor judge a group's options, all but the rate, which may be a schedule's."""
        self._judge(options, {})

    def _judge(self, in_force: dict[str, Any], options: dict[str, Any]) -> None:
        """Let PyTorch's constructor judge options, beside those in force."""
        others = {name: v for name, v in in_force.items() if name in self.accepted and name != "lr"}
        extra = self.extras - self.accepted
        judged = {name: value for name, value in options.items() if name not in extra}
        arguments = self._recipe.changed({**others, **judged})
        extras = {name: value for name, value in {**in_force, **options}.items() if name in extra}
        with random_numbers_kept() if not self._recipe.is_torchs else contextlib.nullcontext():
            self._recipe.build([{"params": nothing_yet(), **extras}], arguments)

    def _check_beside(
        self, in_force: dict[str, Any], kinds: Kinds, is_safe: bool, options: dict[str, Any]
    ) -> None:
        """Let PyTorch judge options beside those in force, by two steps that come to them in the second."""
        self._judge(in_force, options)
        if options.keys() == {"lr"}:
            float(options["lr"])
        if is_safe:
            return
        # Two steps show whether the state of the steps before goes with them.
        for like, sparse in kinds():
            attempt = functools.partial(self._try, self._recipe.arguments, like, sparse)
            try:
                attempt(options=in_force, change=options)
            except Exception:
                try:
                    attempt(options=in_force)
                except Exception:  # a schedule's, with which no step can be made at all
                    attempt(options={**in_force, **options})
                else:
                    raise

    @functools.cached_property
    def accepted(self) -> set[str]:
        """The options that a host may give to a group."""
        return (self.defaults.keys() & self._recipe.options()) - {*IMPLEMENTATIONS}

    # ---- states ----

    def states(  # of torch's own classes
        self, is_sparse: Callable[[Tensor], bool]
    ) -> Callable[[dict[str, Any], Tensor], dict[str, Any]]:
        """Return a function that returns the state of a parameter after a step with a group's options."""
        known: dict[tuple[Any, ...], dict[str, Any]] = {}

        def trial(options: dict[str, Any], p: Tensor) -> dict[str, Any]:
            sparse, shape = is_sparse(p), tuple(p.shape)
            key = (repr(options), p.dtype, p.device, sparse, shape)
            if key not in known:

                def on(shape: list[int]) -> dict[str, Any]:
                    optimizer = self._step(self._recipe.arguments, p, sparse, options, shape=shape)
                    return next(iter(optimizer.state.values()), {})

                known[key] = expected(on, shape)
            return known[key]

        return trial

    # ---- inside ----

    def _try(
        self,
        arguments: dict[str, Any],
        like: Tensor | None = None,
        sparse: bool = False,
        options: dict[str, Any] | None = None,
        change: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Build and step an optimizer, unless that is known to go well, and return its default options.

        Args:
            arguments: the constructor's.
            like: a parameter that it is to resemble in dtype and number of dimensions.
            sparse: whether its gradient is.
            options: those of its group.
            change: options to change after its first step, for a second one.
        """
        kind = None if like is None else (like.dtype, like.dim(), like.device.type, like.numel() == 0)
        recipe = self._recipe
        key = (
            *(recipe.class_, recipe.text_of(arguments), kind, sparse, recipe.needs_closure),
            *(recipe.names_groups, repr(options) if options else "", repr(change) if change else ""),
        )
        known = _went_well.get(key)
        if known is not None:
            return known
        optimizer = self._step(arguments, like, sparse, options, change)
        if len(_went_well) >= _MOST_KEPT:
            _went_well.clear()
        _went_well[key] = self._defaults_of(optimizer)
        return _went_well[key]

    def _defaults_of(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an optimizer's options; of one that wraps another, those of that as well."""
        if not self._recipe.wraps:
            return optimizer.defaults
        options = self._recipe.options()
        group = {name: value for name, value in optimizer.param_groups[0].items() if name in options}
        return {**group, **getattr(optimizer, "defaults", {})}

    def _step(
        self,
        arguments: dict[str, Any],
        like: Tensor | None = None,
        sparse: bool = False,
        options: dict[str, Any] | None = None,
        change: dict[str, Any] | None = None,
        shape: list[int] | None = None,
    ) -> torch.optim.Optimizer:
        """Build and step an optimizer: see `_try`; on a parameter of a shape, or else of a small one.

        An empty one is stepped after that: Adafactor divides by its size, LBFGS takes it beside others only.
        """
        if self._recipe.is_torchs:
            return self._step_once(arguments, like, sparse, options, change, shape)
        with random_numbers_kept():
            return self._step_once(arguments, like, sparse, copy.deepcopy(options), change, shape)

    def _step_once(
        self,
        arguments: dict[str, Any],
        like: Tensor | None,
        sparse: bool,
        options: dict[str, Any] | None,
        change: dict[str, Any] | None,
        shape: list[int] | None,
    ) -> torch.optim.Optimizer:
        recipe = self._recipe
        device = CPU if like is None else like.device
        if like is None and arguments.get("capturable") and torch.cuda.is_available():
            arguments = {**arguments, "capturable": False}  # on the CPU, where this trial is
        if recipe.may_fuse and not sparse and (like is None or like.is_floating_point()):
            fused = fuses_rightly(recipe.class_, torch.float32 if like is None else like.dtype, device.type)  # type: ignore[arg-type]
            arguments = {"fused": fused, **arguments}
        if shape is None:
            shape = [
                min(n, 2) if n > 0 and i < 2 else 1
                for i, n in enumerate((2, 2) if like is None else like.shape)
            ]
        dtype = None if like is None else like.dtype
        shapes = [shape, *([list(like.shape)] if like is not None and like.numel() == 0 else [])]
        parameters, gradients = [], []
        for i, each in enumerate(shapes):
            parameter = nn.Parameter(torch.zeros(each, dtype=dtype, device=device))
            gradient = torch.ones_like(parameter) if recipe.is_torchs else some_gradient(parameter.detach())
            gradients.append(gradient.to_sparse(1) if sparse else gradient)
            parameter.grad = gradients[-1]
            parameters.append((str(i), parameter))
        optimizer = recipe.build([{"params": parameters, **(options or {})}], arguments)

        def evaluate() -> float | Tensor:
            if recipe.is_torchs:
                return 0.0
            for (_, parameter), gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()  # which the class may take away, or free
            return torch.zeros((), requires_grad=True)

        closure: Any = [evaluate] * recipe.needs_closure
        evaluate()
        try:
            optimizer.step(*closure)
            put(optimizer.param_groups[0], change or {})
            # SGD keeps its first sparse gradient, and adds the second to it, which not all dtypes can.
            for _ in range(bool(change) + sparse):
                evaluate()
                optimizer.step(*closure)
        except RuntimeError as error:
            # SparseAdam's: before anything is bound nobody knows of what kind the gradients are.
            if like is not None or "dense gradients" not in str(error):
                raise
        return optimizer
