"""One torch.optim optimizer over the parameters of a dummy module.  Plain torch: knows no C."""

from __future__ import annotations

import cmath
import contextlib
import copy
import functools
import importlib
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from optplug import attributes, compiled, devices, masters, norms, schedules, spec, values
from optplug import plans as planning
from optplug.arguments import blame, check_kinds, said
from optplug.averages import Average
from optplug.buffers import is_dense, name_of, same_order
from optplug.checks import check_count, check_tensor, of_checkpoint, word
from optplug.claims import Claims
from optplug.errors import CompileError, NonFiniteError, StateError, warn
from optplug.iterate import Iteration
from optplug.lean import Calls, Gradients, has_hooks, lean, step_again, step_and_record
from optplug.masters import Masters
from optplug.options import CheckpointOptions
from optplug.spec import Call, SpecError, shown
from optplug.state import IMPLEMENTATIONS, exactly, expected, find, lie_as, order, put

# Where torch's foreach implementation gives the very bits of its loop over parameters, which is its default
# on the CPU, in float32 and float64; and for how many parameters, of how many values, it is faster.
_FOREACH_IS_EQUAL = {
    lean(getattr(torch.optim, name))
    for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "RMSprop", "Rprop", "SGD")
}
_FORMAT = 1  # of checkpoints
_WORTH_FOREACH, _MOST_FOR_FOREACH = 8, 10_000
# The trials that have gone well, and the class's defaults: see Optimizer._try.
_went_well: dict[tuple[type, str], dict[str, Any]] = {}
_MOST_KEPT = 1000


def _nothing_yet() -> list[tuple[str, nn.Parameter]]:
    """Return what a class is tried out on: of two dimensions, since Muon takes no others."""
    return [("", nn.Parameter(torch.empty(0, 0)))]


@dataclass
class SparseGrad:
    """A gradient that is zero but for some rows: ``values[i]`` belongs to row ``indices[i]``.

    The first ``count`` of them are there; rows that come twice are added up, as torch's ``coalesce`` does.
    """

    count: Tensor
    indices: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        self._count = self.count.numpy()
        self._unsigned = self.indices.numpy().view("uint64")  # where a negative index is a huge one
        self._tensor: Tensor | None = None

    def _checked_count(self, name: str, limit: int) -> int:
        count, capacity = int(self._count), len(self._unsigned)
        if not 0 <= count <= capacity:
            raise ValueError(f"count of parameter {shown(name)} must be 0 to {capacity}, got {count}")
        if count and self._unsigned[:count].max() >= limit:
            indices = self.indices[:count]
            wrong = int(indices.min()) if indices.min() < 0 else int(indices.max())
            raise ValueError(f"indices of parameter {shown(name)} must be 0 to {limit - 1}, got {wrong}")
        return count

    def rows(self, name: str, limit: int) -> Tensor:
        """Return the values that are there now, their indices checked: ``name`` is for errors."""
        return self.values[: self._checked_count(name, limit)]

    def tensor(self, name: str, shape: torch.Size) -> Tensor:
        """Return the gradient as torch has it: the same tensor as before, while its rows are as many."""
        count = self._checked_count(name, shape[0])
        if self._tensor is None or self._tensor._nnz() != count:
            indices, values = self.indices[:count].unsqueeze(0), self.values[:count]
            self._tensor = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
        return self._tensor


@dataclass
class _Group:
    """A parameter group that is not built yet: its options, and its parameters' names."""

    options: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


class Optimizer:
    """A ``torch.optim`` optimizer that is lent its parameters one by one.

    Args:
        text: the spec, ``"Adam(lr=1e-3)"``: see `optplug.spec`.
        third_party: whether the spec may name a class outside ``torch.optim``, with its module.
        error_if_nonfinite: whether a step is refused where a gradient has an inf or a nan in it.
        plans: whether to state steps as plans, which then run elsewhere instead of ``step``; or how they do.
        may_compile: whether plans may have kernels in them that torch compiles: see `compiled`.
        master_weights: whether parameters in half precision are stepped in float32: see `masters`.

    Raises:
        ValueError: the spec cannot be read, names no optimizer, or PyTorch refuses a hyperparameter.
    """

    def __init__(
        self,
        text: str,
        third_party: bool = False,
        error_if_nonfinite: bool = False,
        plans: bool | str = False,
        may_compile: bool = False,
        master_weights: bool = False,
    ) -> None:
        #: The dummy module.  It numbers its parameters, so that their names can be any strings.
        self.module = nn.ParameterList()
        #: The same parameters by the names that the host gave them.
        self.parameters: dict[str, nn.Parameter] = {}
        #: The optimizer proper, built when all its parameters are there.
        self.torch: torch.optim.Optimizer | None = None
        #: The next step without Python, where it can be made so.
        self.plan: planning.Plan | None = None
        #: Whether a gradient with an inf or a nan in it is an error.
        self.error_if_nonfinite = error_if_nonfinite
        #: Whether to make plans, or how they are to run.
        self.plans = plans
        #: Where work on GPUs goes.
        self.streams = devices.Streams()
        #: What is in checkpoints, and comes out of them.
        self.checkpoint = CheckpointOptions()
        #: The host's own words, which are in checkpoints as well.
        self.attributes = attributes.Attributes()
        #: How many steps were made, those before a load included.  Who runs a plan adds its steps.
        self.steps = 0
        self._scale: tuple[Tensor | None, Tensor | None] = (None, None)  # see grad_scale
        self._master_weights, self._masters = master_weights, Masters()
        self._may_compile = bool(plans) and may_compile
        self._has_compiled = False
        self._is_checked = False  # whether the state is known to fit
        self._fixed: list[dict[str, Any]] = []  # hyperparameters at the last recorded step
        self._calls: Calls = []  # what the last step came down to, if the next one is to be like it
        self._groups = [_Group()]
        self._first_is_given = False
        self._sparse: dict[str, SparseGrad] = {}
        self._lent: set[str] = set()  # parameters whose values come with each step
        self._expected: dict[str, int] = {}  # checksums of the values that the next step should find
        self._claims = Claims()
        self._copied: list[Tensor] = []  # what a step may change half way, and
        self._copies: list[Tensor] = []  # what it is put back from
        self._stepped = False
        self._schedulers: list[schedules.LRScheduler] = []
        self._schedules: list[tuple[str, schedules.Function | None]] = []  # what they are made of
        self._average: Average | None = None
        self._iteration: Iteration | None = None
        try:
            self._class, arguments = _read(text, third_party)
            check_kinds(self._class, arguments)
            self._arguments = copy.deepcopy(arguments)
            closure = spec.signature_of(self._class.step).parameters.get("closure")
            self._needs_closure = closure is not None and closure.default is closure.empty
            is_foreign = self._class not in classes().values()
            self._may_stop_half_way = is_foreign or issubclass(self._class, torch.optim.LBFGS)
            self._must_fuse = bool(self._arguments.get("fused"))
            self._may_fuse = "fused" in spec.signature_of(self._class).parameters and not any(
                name in self._arguments for name in IMPLEMENTATIONS
            )
            try:
                self._defaults = self._try(self._arguments)
            except Exception as error:
                attempt = functools.partial(self._trial, like=None, sparse=False, options=None)
                raise SpecError(blame(error, self._class, arguments, attempt)) from error
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {error}") from error

    # ---- parameters and their groups ----

    def bind(self, name: str, data: Tensor, grad: Tensor | SparseGrad, is_lent: bool = False) -> None:
        """Take ``data`` and ``grad`` as those of the parameter ``name``; move it if it is known.

        Between steps there is nothing in them to go by if ``is_lent``.

        Raises:
            ValueError: another shape or dtype than before, or a layout that the spec's ``fused=True``
                cannot step, or a parameter that PyTorch's optimizer refuses; a second array for a name
                before the first step; memory that is another parameter's.
            StateError: a new name once the optimizer is built.
        """
        self._check_idle("opt_bind")
        has_master = self._master_weights and data.dtype in masters.DTYPES
        if has_master and isinstance(grad, SparseGrad):
            raise ValueError(f"parameter {shown(name)}: there is no master copy where gradients are sparse")
        if self._must_fuse and not has_master and not self._can_fuse(data, grad):
            raise ValueError(
                f"parameter {shown(name)}: with fused=True data and grad must be real, without gaps, of one "
                f"layout, and of a dtype that PyTorch's fused {self._class.__name__} steps rightly, got "
                f"{_layout(data)} and {_layout(grad)}: leave fused out"
            )
        known = self.parameters.get(name)
        memory = grad.values if isinstance(grad, SparseGrad) else grad
        if known is not None and not self._stepped and self._would_lose(name, data, is_lent):
            raise ValueError(
                f"name {shown(name)} is bound already, and its array would never be stepped: give each array "
                "a name of its own; where one has moved before the first step, create the optimizer anew"
            )
        if known is None and self.torch is not None:
            raise StateError(
                f"name {shown(name)} is new after the first step or schedule: bind all parameters before"
            )
        self._claims.check(name, data, memory)
        if known is not None:
            self._move(name, known, data, grad)
        else:
            self._add(name, data, grad, has_master)
        self._claims.put(name, data, memory)
        if data.is_cuda:
            self.streams.use_gpu()
        if isinstance(grad, SparseGrad):
            self._sparse[name] = grad
        else:
            self._sparse.pop(name, None)
        (self._lent.add if is_lent else self._lent.discard)(name)

    def group(self, text: str) -> None:
        """Let the parameters that are bound from now on be a group with these options of its own.

        Raises:
            ValueError: no such option, or PyTorch refuses its value, or has no groups for this class.
            StateError: the optimizer is built, or nothing is bound to the group before this one.
        """
        if self.torch is not None:
            raise StateError(f"options {shown(text)}: the first step or schedule has fixed the groups")
        first = self._groups[0]
        group = _Group(self._check_options(text, first.options if not first.names else {}, []))
        if not first.names and len(self._groups) == 1 and not self._first_is_given:
            first.options.update(group.options)
            self._first_is_given = True
            return
        if not self._groups[-1].names:
            raise StateError(f"options {shown(text)}: nothing is bound to the group before this one")
        try:
            self._class([{"params": _nothing_yet()}, {"params": _nothing_yet()}], **self._arguments)
        except Exception as error:
            raise ValueError(f"options {shown(text)}: {said(error)}") from error
        self._groups.append(group)

    # ---- hyperparameters ----

    def get(self, group: int, name: str) -> float:
        """Return a hyperparameter of a group, or of all groups (-1) where they agree.

        ``name`` is "lr", or "betas[0]" for one of a tuple; True is 1.  "step" is the number of steps.
        """
        key, bracket, index = name.partition("[")
        groups = _select((self.torch or self._build()).param_groups, group)
        if name == "step":
            return float(self.steps)
        spec.choose(key, groups[0].keys() - {"params", "param_names"} | {"step"}, "hyperparameter")
        value = groups[0][key]
        if any(g[key] != value for g in groups[1:]):
            raise ValueError(f"group -1: {key!r} differs between the {len(groups)} groups: ask for one")
        if isinstance(value, tuple | list):
            position = re.fullmatch(r"(\d+)\]", index)
            if not position or int(position[1]) >= len(value):
                raise ValueError(f"name {shown(name)} must be '{key}[0]' to '{key}[{len(value) - 1}]'")
            value = value[int(position[1])]
        elif bracket:
            raise ValueError(f"name {shown(name)} is no tuple: write {key!r}")
        if not isinstance(value, bool | int | float | Tensor):
            raise ValueError(f"name {shown(name)} is {value!r}, which is no number")
        return float(value)

    def set(self, group: int, text: str) -> None:
        """Set hyperparameters of a group, or of all groups (-1): ``"lr=1e-4, betas=(0.9, 0.99)"``.

        Raises:
            ValueError: no such group or option, or PyTorch refuses the value.
        """
        self._check_idle("opt_set")
        in_force = self.torch.param_groups if self.torch else [g.options for g in self._groups]
        chosen = _select(list(zip(in_force, self._groups, strict=True)), group)
        for options, checked in [(o, self._check_options(text, o, g.names)) for o, g in chosen]:
            options.update(checked)
        self._refresh()

    # ---- steps ----

    def step(self) -> None:
        """Make one step.

        Raises:
            StateError: nothing is bound, or the class wants a closure.
            NonFiniteError: a gradient is not finite, and the host has asked to be told.
        """
        self._check_idle("opt_step")
        if self._needs_closure:
            raise StateError(
                f"{self._class.__name__} evaluates the loss several times a step: "
                "call opt_step_closure or opt_iterate"
            )
        self._compare_values()
        self._masters.read_values(not self._stepped)
        if self._stepped:
            self._check_gradients()
            if self._is_wanted(self.torch):
                self._step_on()
        else:
            with self._ready("opt_step") as optimizer:
                self._check_gradients()
                self._check_state(optimizer)
                if self._is_wanted(optimizer):
                    with self._undone_on_error(optimizer, closure=False):
                        optimizer.step()
        self._masters.give_values()
        self._update_average()
        self.steps += 1
        if self._stepped and self.plans and self.plan is None and self._average is None:
            self.plan = planning.make(self.torch, self._masters, self._scale, self.error_if_nonfinite)
            if self.plan:
                self._calls = []  # the state may lie elsewhere now

    def _step_on(self) -> None:
        """Make a step that is not the first."""
        self._check_state(self.torch)
        if self._calls and not has_hooks(self.torch):
            calls, self._calls = self._calls, []  # torch may leave a list of them changed if it fails
            step_again(calls)
            self._calls = calls
        elif self._sparse:  # their gradients are new tensors each time
            self.torch.step()
        else:
            self._calls = step_and_record(self.torch)
            self._compile()

    def step_closure(self, closure: Callable[[], float]) -> float:
        """Make one step with a function that computes loss and gradients, and return its first loss.

        An error of the closure ends the step, and leaves parameters and state as they were.

        Raises:
            StateError: the host's gradients are scaled, which is for it to undo here.
        """
        self._check_unscaled("opt_step_closure")
        if self._stepped:
            self._check_idle("opt_step_closure")
            self._compare_values()
            return self._step_closure(self.torch, closure)
        with self._ready("opt_step_closure") as optimizer:
            self._compare_values()
            return self._step_closure(optimizer, closure)

    def iterate(self, loss: float, prepare: Callable[[], None]) -> bool:
        """Make one step by reverse communication, in a thread that calls ``prepare`` first.

        Returns:
            True if it wants to be called again with the loss, and with gradients, at the parameters as
            they are now; False if the step is made.
        """
        if self._iteration is None:
            self._check_unscaled("opt_iterate")
            with self._ready("opt_iterate") as optimizer:
                self._compare_values()
                self._iteration = Iteration(lambda f: self._step_closure(optimizer, f), prepare)
                self._forget()  # until the step is made, opt_step is an error
        wanted = False
        try:
            wanted = self._iteration.resume(loss)
        finally:
            if not wanted:
                self._iteration = None
        return wanted

    def close(self) -> None:
        """End a step that iterate has left in the middle."""
        if self._iteration:
            self._iteration.abandon()
            self._iteration = None

    # ---- gradients ----

    def zero_grad(self) -> None:
        """Set every gradient to zero, in place."""
        grads = list(self._gradients())
        if grads:
            torch._foreach_zero_(grads)

    def clip_grad_norm(self, max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
        """Scale all gradients so that their norm is ``max_norm`` at the most, and return what it was.

        ``torch.nn.utils.clip_grad_norm_``, with its arguments; of long gradients the norm is `norms`' own.
        """
        if not max_norm >= 0:
            raise ValueError(f"max_norm must not be negative, got {max_norm}")
        if norm_type != norm_type:
            raise ValueError(f"norm_type must be a number, got {norm_type}")
        try:
            return norms.clip_grad_norm_(self._clippable(), max_norm, norm_type, error_if_nonfinite)
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            raise NonFiniteError(str(error)) from error

    def clip_grad_value(self, clip_value: float) -> None:
        """Clamp every gradient to ``-clip_value`` to ``clip_value``: ``torch.nn.utils.clip_grad_value_``."""
        if not clip_value >= 0:
            raise ValueError(f"clip_value must not be negative, got {clip_value}")
        for name, p in self.parameters.items():
            if p.is_complex():
                raise ValueError(f"parameter {shown(name)}: clamp is not supported for complex types")
        nn.utils.clip_grad_value_(self._clippable(), clip_value)

    def grad_scale(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Let steps from now on divide gradients by ``scale``, and be left out where ``found_inf`` is 1.

        Both are read when a step runs: ``torch.amp.GradScaler`` does the same.
        """
        self._check_idle("opt_grad_scale")
        self._scale = scale, found_inf
        if self.torch:
            self.torch.grad_scale = self.torch.found_inf = None
        self._forget()

    # ---- GPUs ----

    def stream(self, address: int) -> None:
        """Let work on the GPU of a stream go there: see `devices.Streams.take`."""
        self._check_idle("opt_stream")
        gpus = self.gpus()
        if address and not gpus:
            raise StateError(f"stream {address:#x}: no parameter is on a GPU, bind one before")
        states = self.torch.state.values() if self.torch else ()
        memory = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        operations = self.plan.operations if self.plan else ()
        memory += [t for operation in operations for t in chain(*operation.lists)]
        memory += self._masters.memory() + (self._average.memory() if self._average else [])
        self.streams.take(address, gpus, memory)

    def gpus(self) -> set[int]:
        """Return those on which parameters are."""
        return {p.device.index for p in self.module if p.is_cuda}

    def device(self, what: str) -> torch.device:
        """Return where the parameters are, or some of them."""
        self._check_bound(what)
        return next((p.device for p in self.module if p.is_cuda), devices.CPU)

    # ---- schedules ----

    def schedule(self, text: str, function: schedules.Function | None = None) -> None:
        """Attach a scheduler, after those that are there: see `schedules.attach`."""
        with self._ready("opt_schedule") as optimizer:
            self._schedulers.append(schedules.attach(optimizer, text, function))
            self._schedules.append((text, function))
            self._forget()  # the scheduler wants to see one step of the optimizer itself

    def unschedule(self) -> None:
        """Take all schedulers off: see `schedules.detach`."""
        self._check_idle("opt_schedule")
        if self.torch:
            schedules.detach(self.torch)
        self._schedulers, self._schedules = [], []
        self._forget()

    def schedule_step(self, value: float | None = None) -> None:
        """Step the schedulers: see `schedules.step`."""
        with self._ready("opt_schedule_step") as optimizer:
            schedules.step(optimizer, self._schedulers, value)
        self._refresh()

    # ---- averages ----

    def average(self, text: str) -> None:
        """Average the parameters after each step from now on; a new average replaces the old one."""
        with self._ready("opt_average"):
            self._average = Average(text, self.module)
            self._forget()  # a step is more than the optimizer's from now on

    def read_average(self, name: str) -> Tensor:
        """Return the average of one parameter."""
        spec.choose(name, self.parameters, "parameter")
        return self._averaged().read(list(self.parameters).index(name)).to(self._arrays(name)[0].dtype)

    def swap_average(self) -> None:
        """Exchange all parameters with their averages, in place; again: back."""
        self._check_idle("opt_average_swap")
        self._averaged().swap(self.module)
        self._masters.give_values()

    def _averaged(self) -> Average:
        if self._average is None:
            raise StateError("there is no average: call opt_average first")
        return self._average

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later process needs to go on: plain values, containers and tensors.

        ``"optimizer"`` is what torch's ``state_dict`` says.  The tensors are the optimizer's own, or copies
        on the CPU.  `checkpoint` says what more is in it.
        """
        self._check_bound("opt_save")
        self._check_has_values("opt_save")
        self._masters.read_values(not self._stepped)
        content: dict[str, Any] = {
            "optimizer": (self.torch or self._build()).state_dict(),
            "schedulers": [
                {"spec": text, "state": scheduler.state_dict()}
                for (text, _), scheduler in zip(self._schedules, self._schedulers, strict=True)
            ],
            "average": self._average.state_dict(self.parameters) if self._average else None,
            "optplug": {
                "format": _FORMAT,
                "torch": str(torch.__version__),
                "class": self._class.__name__,
                "stepped": self._stepped,
                "parameters": {name: _form(self._arrays(name)[0]) for name in self.parameters},
                "steps": self.steps,
                "checksums": {name: values.checksum(data) for name, data in self._known_values().items()},
            },
        }
        content["attributes"] = self.attributes.state_dict()
        copies = self._masters.state_dict()
        if copies:
            content["masters"] = copies
        if self.checkpoint.parameters:
            content["parameters"] = {name: self._arrays(name)[0].detach().clone() for name in self.parameters}
        return devices.to_cpu(content) if self.gpus() else content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, here or elsewhere, or from plain PyTorch's state.

        Schedulers and an average are made anew, from the specs in it.  Those that have been attached here
        must be the same; a function of the host's is called for its first factor.  `checkpoint` may say
        otherwise.

        Raises:
            ValueError: it is of another class, of other parameters, or has something wrong in it.
        """
        self._check_bound("opt_load")
        self._check_has_values("opt_load")
        with of_checkpoint():
            about = content.get("optplug")
            if about is not None:
                self._check_about(about)
            self._take_over(content, about)

    def _check_about(self, about: dict[str, Any]) -> None:
        if type(about["format"]) is not int or about["format"] != _FORMAT:
            raise ValueError(
                f"it is of format {shown(about['format'])}, and this optplug reads format {_FORMAT}"
            )
        if about["class"] != self._class.__name__:
            raise ValueError(f"it is of {word(about['class'])}, and this optimizer is {self._class.__name__}")
        if type(about["stepped"]) is not bool:
            raise ValueError(f"it is no checkpoint: stepped is {shown(about['stepped'])}")
        for name in self.parameters:
            theirs, ours = about["parameters"].get(name), _form(self._arrays(name)[0])
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"parameter {shown(name)} is {word(theirs['dtype'])} of shape "
                    f"{shown(tuple(theirs['shape']))} in it, and {ours['dtype']} of shape "
                    f"{tuple(ours['shape'])} here"
                )

    def _take_over(self, content: dict[str, Any], about: dict[str, Any] | None) -> None:
        saved, average = find(content), self._average
        names = order(saved, [group.names for group in self._groups])
        groups = [_Group(g.options, n) for g, n in zip(self._groups, names, strict=True)]
        optimizer = self._build(groups)
        before = [dict(group) for group in (self.torch or optimizer).param_groups]
        made_of = self._schedules
        states = [s.state_dict() for s in self._schedulers]
        if about is not None and type(content["schedulers"]) is not list:
            raise ValueError("it is no checkpoint: its schedulers are none")
        theirs = [s["state"] for s in content["schedulers"]] if about is not None else []
        if about is not None and self.checkpoint.schedules:
            states = theirs
            made_of = self._schedules_like([s["spec"] for s in content["schedulers"]])
        schedulers = [schedules.attach(optimizer, text, function) for text, function in made_of]
        for (text, _), scheduler, state in zip(made_of, schedulers, states, strict=True):
            schedules.restore(scheduler, f"its state of the scheduler {shown(text)}", state)
        is_ours = about is not None
        copies = self._masters.read(content.get("masters", {})) if is_ours else {}
        put(saved, optimizer, self._trier(), self._judge_all, is_ours, is_ours and about["stepped"])
        if not self.checkpoint.schedules:
            schedules.keep(optimizer, before, [*states, *theirs])
        if about is not None:
            average = self._average_like(content["average"])
        taken = self._values_in(content) if self.checkpoint.parameters else {}
        expected = values.read(about.get("checksums", {})) if about is not None and not taken else {}
        stepped = about["stepped"] if about is not None else bool(optimizer.state)
        steps = _steps(about, optimizer)
        texts = attributes.read(content.get("attributes", {})) if about is not None else None
        if stepped:
            optimizer._opt_called = True  # or a scheduler that is new here would warn of a step before it
        # Nothing fails from here on.
        with Gradients(False):
            for name, value in taken.items():
                self._arrays(name)[0].copy_(value)
        if about is not None:
            self._masters.load_state_dict(copies)
        self.torch, self._groups, self._average = optimizer, groups, average
        self._schedulers, self._schedules = schedulers, made_of
        self._stepped, self._expected, self.steps = stepped, expected, steps
        if texts is not None:
            self.attributes.load_state_dict(texts)
        self._forget()

    def _known_values(self) -> dict[str, Tensor]:
        """Return the host's arrays that a step goes on from: with masters, or lent for it, they are not."""
        names = (name for name in self.parameters if not (name in self._lent or self._masters.get(name)))
        return {name: self.parameters[name] for name in names}

    def _compare_values(self) -> None:
        """Warn before the first step after a load of arrays that do not have the values they had.

        No sooner: a host may read its own before or after the checkpoint.
        """
        if self._expected:
            expected, self._expected = self._expected, {}
            values.compare(expected, self._known_values())

    def _schedules_like(self, texts: list[str]) -> list[tuple[str, schedules.Function | None]]:
        """Return what the schedulers are made of, as they are attached here or else as they were there."""
        here = [text for text, _ in self._schedules]
        if not all(type(text) is str for text in texts):
            raise ValueError(f"it is no checkpoint: the spec of a scheduler in it is {shown(texts)}")
        if here and here != texts:
            raise ValueError(
                f"it has the schedulers {', '.join(map(shown, texts)) or '(none)'}, "
                f"and here are {', '.join(map(shown, here))}: "
                'attach those in the file or none, or keep yours by opt_checkpoint(opt, "schedules=False")'
            )
        return self._schedules or [(text, None) for text in texts]

    def _average_like(self, state: dict[str, Any] | None) -> Average | None:
        here = self._average.text if self._average else None
        there = None if state is None else state["spec"]
        if there is not None and type(there) is not str:
            raise ValueError(f"it is no checkpoint: the spec of the average in it is {shown(there)}")
        if here is not None and here != there:
            raise ValueError(f"it has the average {there and shown(there)}, and here is {shown(here)}")
        if state is None:
            return None
        average = Average(there, self.module)
        average.load_state_dict(self.parameters, state)
        return average

    def _values_in(self, content: dict[str, Any]) -> dict[str, Tensor]:
        saved = content.get("parameters")
        if saved is None:
            raise ValueError(
                'it has no parameters in it: call opt_checkpoint(opt, "parameters=True") before opt_save, or '
                '"parameters=False" before opt_load and restore your arrays yourself'
            )
        found = {}
        for name in self.parameters:
            what, array = f"the value of parameter {shown(name)}", self._arrays(name)[0]
            found[name] = check_tensor(what, saved[name], array.dtype, array.shape)
        return {name: value.tensor() for name, value in found.items()}

    def _judge_all(self, options: dict[str, Any]) -> None:
        """Let PyTorch's constructor judge all options of a group."""
        self._judge(options, {})

    def _trier(self) -> Callable[[dict[str, Any], Tensor], dict[str, Any]]:
        """Return a function that returns the state of a parameter after a step with a group's options."""
        names, known = {p: name for name, p in self.parameters.items()}, {}
        of_torch = self._class in classes().values()

        def trial(options: dict[str, Any], p: Tensor) -> dict[str, Any]:
            sparse, shape = names[p] in self._sparse, tuple(p.shape)
            key = (repr(options), p.dtype, p.device, sparse, shape)
            if key not in known:

                def on(shape: list[int]) -> dict[str, Any]:
                    optimizer = self._trial(self._arguments, p, sparse, options, shape=shape)
                    return next(iter(optimizer.state.values()), {})

                # Other classes may go by a parameter's size.
                known[key] = expected(on, shape) if of_torch else exactly(on(list(shape)))
            return known[key]

        return trial

    # ---- what it is ----

    def describe(self) -> str:
        """Return what the optimizer is and what it works on, a ``name: value`` a line."""
        optimizer = self.torch or self._build()
        lines = [f"optimizer: {self._class.__name__}", f"step: {self._path(optimizer)}"]
        for i, group in enumerate(optimizer.param_groups):
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            lines.append(f"group {i}: {', '.join(f'{k}={v!r}' for k, v in options.items())}")
            for name in self._groups[i].names:
                data, grad = self._arrays(name)
                master = ", stepped in float32" if self._masters.get(name) else ""
                lines.append(
                    f"parameter {name!r}: group {i}, {data.device}, {_layout(data)}, "
                    f"gradient {_layout(grad)}{master}"
                )
        lines += self.streams.describe()
        lines += [f"{kind}: {text}" for kind, text in self.attached()]
        lines += [f"steps: {self.steps}", f"checkpoint: {self.checkpoint}", *self.attributes.describe()]
        return "".join(line + "\n" for line in lines)

    def attached(self) -> list[tuple[str, str]]:
        """Return "scheduler" or "average" and the spec, on one line, for each that steps along."""
        texts = [("scheduler", text) for text, _ in self._schedules]
        if self._average:
            texts.append(("average", self._average.text))
        return [(kind, " ".join(text.split())) for kind, text in texts]

    def way(self) -> str:
        """Say how steps are made now, and why by Python where kernels could be called without it."""
        if not self.torch:
            return "nothing yet"
        path = self._path(self.torch)
        if self.plan or not any(group.get("fused") for group in self.torch.param_groups):
            return path
        reasons = {
            "plans=False": not self.plans,
            "averages follow each step": self._average is not None,
            "hooks of PyTorch's watch them": has_hooks(self.torch),
        }
        return ", ".join([f"{path}, by Python", *(f"since {why}" for why, holds in reasons.items() if holds)])

    def _path(self, optimizer: torch.optim.Optimizer) -> str:
        name = self._class.__name__
        if self.plan:
            return f"{', '.join(self.plan.names())} without Python"
        if any(group.get("fused") for group in optimizer.param_groups):
            return f"torch.optim.{name} with fused kernels"
        chosen = [f"{k}={self._arguments[k]}" for k in IMPLEMENTATIONS if k in self._arguments]
        if chosen:
            return f"torch.optim.{name}, not fused, since the spec says {', '.join(chosen)}"
        if not self._may_fuse:
            return f"torch.optim.{name}, which has no fused kernels"
        unfit = [n for n, p in self.parameters.items() if not self._can_fuse(p, self._sparse.get(n, p.grad))]
        reason = f"parameter {unfit[0]!r} is" if unfit else "a parameter was"
        wanted = "real, dense, laid out as its gradient and of a dtype that it steps rightly"
        return f"torch.optim.{name}, not fused, since {reason} not {wanted}"

    # ---- inside ----

    @contextlib.contextmanager
    def _ready(self, what: str) -> Iterator[torch.optim.Optimizer]:
        """Give the optimizer proper to a block; build it first, for good only if the block succeeds."""
        self._check_bound(what)
        optimizer = self.torch or self._build()
        yield optimizer
        self.torch = optimizer

    def _compile(self) -> None:
        """Make a plan of kernels for the step that has been recorded, where that is wanted and possible."""
        if not self._may_compile or self._average is not None or self._is_scaled():
            return
        # A schedule may move what a kernel has fixed, such as betas: wait until it has let that alone.
        fixed = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self.torch.param_groups]
        settled, self._fixed = not self._schedulers or fixed == self._fixed, fixed
        if not settled:
            return
        may_make, self._has_compiled = not self._has_compiled, True
        try:
            self.plan = planning.make_compiled(self.torch, self._calls, may_make, self._masters)
        except (CompileError, KeyboardInterrupt) as error:  # the step is made all the same
            self._step_uncompiled(str(error) or "interrupted")

    def _step_uncompiled(self, reason: str) -> None:
        self._may_compile = False
        with contextlib.suppress(UserWarning):  # where warnings are errors
            warn(f"compile=True: {reason}: {self._class.__name__} steps without")

    def refuse_plan(self) -> None:
        """Step without plans from now on, since C cannot take the one there is."""
        kernels = [o.operator for o in self.plan.operations if o.is_kernel]
        self.plan, self.plans = None, False
        if kernels:
            self._step_uncompiled(f"{kernels[0]} cannot be loaded")

    def _forget(self) -> None:
        """Let the next step look at everything anew."""
        self.plan, self._calls, self._is_checked = None, [], False

    def _check_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the state, before a step, where it may be another than the last step's."""
        if not self._is_checked:
            planning.check_state(optimizer)
            self._is_checked = True

    def _refresh(self) -> None:
        """Let the next step look at the hyperparameters anew."""
        self._calls = []
        if self.plan and not self.plan.refresh():
            self.plan = None

    def _check_idle(self, what: str) -> None:
        if self._iteration:
            raise StateError(f"{what} in the middle of a step: call opt_iterate until it returns OPT_DONE")
        if self._average and self._average.swapped and what != "opt_average_swap":
            raise StateError(f"{what} while the averages are swapped in: call opt_average_swap again before")

    def _check_unscaled(self, what: str) -> None:
        if self._is_scaled():
            raise StateError(f"{what} after opt_grad_scale: call that with NULL, and scale in the closure")

    def _check_bound(self, what: str) -> None:
        self._check_idle(what)
        if not self.parameters:
            raise StateError(f"nothing is bound: call opt_bind before {what}")
        if not self._groups[-1].names:
            raise StateError(f"nothing is bound to the last group: call opt_bind before {what}")

    def _check_has_values(self, what: str) -> None:
        if self.checkpoint.parameters and self._lent:
            name = next(name for name in self.parameters if name in self._lent)
            raise StateError(
                f"parameter {shown(name)} has arrays only in a step, and none for {what}: "
                'call opt_checkpoint(opt, "parameters=False"), and keep its values yourself'
            )

    def _build(self, groups: list[_Group] | None = None) -> torch.optim.Optimizer:
        """Build the optimizer on the parameters that are there, or on a stand-in for them."""
        made = [
            {"params": [(name, self.parameters[name]) for name in g.names] or _nothing_yet(), **g.options}
            for g in groups or self._groups
        ]
        return self._class(made, **self._arguments, **self._implementation())

    def _arrays(self, name: str) -> tuple[Tensor, Tensor | SparseGrad]:
        """Return the host's arrays of a parameter."""
        master, p = self._masters.get(name), self.parameters[name]
        return (master.data, master.grad) if master else (p, self._sparse.get(name, p.grad))

    def _is_scaled(self) -> bool:
        return any(number is not None for number in self._scale)

    def _is_wanted(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take account of the host's scale before a step; False if the step is to be left out.

        Fused kernels do both by themselves, without a look at the numbers here; but SGD's would go on from a
        momentum buffer that the step which makes it has left out, so that such a step is not made.
        """
        if not self._is_scaled():
            return True
        scale, found_inf = self._scale
        is_fused = all(group.get("fused") for group in optimizer.param_groups)
        is_known = is_fused and bool(self._calls)
        if found_inf is not None and not is_known and found_inf.item():
            return False
        optimizer.grad_scale, optimizer.found_inf = self._scale if is_fused else (None, None)
        if scale is not None and not is_fused:
            with Gradients(False):
                for name, p in self.parameters.items():
                    sparse = self._sparse.get(name)
                    grad = sparse.rows(name, len(p)) if sparse else p.grad
                    grad.div_(scale.to(grad.device))
        return True

    def _can_fuse(self, data: Tensor, grad: Tensor | SparseGrad) -> bool:
        """Tell whether the fused kernels step these arrays rightly.

        They run over both as if flat: where the layouts differ or have gaps, those for the CPU give wrong
        numbers and write outside of the array (torch 2.13), without an error.
        """
        return (
            isinstance(grad, Tensor)
            and data.is_floating_point()
            and is_dense(data.shape, data.stride())
            and same_order(data.shape, data.stride(), grad.stride())
            and _fuses_rightly(self._class, data.dtype, data.device.type)
        )

    def _implementation(self) -> dict[str, bool]:
        """Choose among torch's implementations, where the spec does not, by what has been measured."""
        if self._may_fuse and all(
            self._can_fuse(p, self._sparse.get(name, p.grad)) for name, p in self.parameters.items()
        ):
            return {"fused": True}
        if self._class not in _FOREACH_IS_EQUAL or any(n in self._arguments for n in IMPLEMENTATIONS):
            return {}
        if self.gpus():  # where foreach is torch's own default
            return {}
        if self._may_compile and self._class.__name__ in compiled.OPTIMIZERS:
            return {}
        count, size = len(self.parameters), sum(p.numel() for p in self.module)
        small = count >= _WORTH_FOREACH and size <= count * _MOST_FOR_FOREACH
        equal = all(p.dtype in (torch.float32, torch.float64) for p in self.module) and not self._sparse
        return {"foreach": True} if small and equal else {}

    def _try(
        self,
        arguments: dict[str, Any],
        like: Tensor | None = None,
        sparse: bool = False,
        options: dict[str, Any] | None = None,
        change: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Build and step an optimizer on a parameter of no importance, to hear what PyTorch says.

        What has gone well once is not tried again.

        Args:
            like: a parameter that it is to resemble in dtype and number of dimensions.
            sparse: whether its gradient is.
            options: those of its group.
            change: options to change after its first step, for a second one.

        Returns:
            The class's default options.
        """
        kind = None if like is None else (like.dtype, like.dim(), like.device.type)
        what = (arguments, kind, sparse, options, change)
        key = (self._class, repr(what))
        known = _went_well.get(key)
        if known is not None:
            return known
        optimizer = self._trial(arguments, like, sparse, options, change)
        if len(_went_well) >= _MOST_KEPT:
            _went_well.clear()
        _went_well[key] = optimizer.defaults
        return optimizer.defaults

    def _trial(
        self,
        arguments: dict[str, Any],
        like: Tensor | None,
        sparse: bool,
        options: dict[str, Any] | None,
        change: dict[str, Any] | None = None,
        shape: list[int] | None = None,
    ) -> torch.optim.Optimizer:
        """Build and step an optimizer: see `_try`; on a parameter of a shape, or else of a small one."""
        device = devices.CPU if like is None else like.device
        if like is None and arguments.get("capturable") and torch.cuda.is_available():
            arguments = {**arguments, "capturable": False}  # on the CPU, where this trial is
        if self._may_fuse and not sparse and (like is None or like.is_floating_point()):
            fused = device == devices.CPU or _fuses_rightly(self._class, like.dtype, device.type)
            arguments = {"fused": fused, **arguments}
        if shape is None:
            shape = [
                min(n, 2) if n > 0 and i < 2 else 1
                for i, n in enumerate((2, 2) if like is None else like.shape)
            ]
        dtype = None if like is None else like.dtype
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        parameter.grad = torch.ones_like(parameter)
        if sparse:
            parameter.grad = parameter.grad.to_sparse(1)
        optimizer = self._class([{"params": [("", parameter)], **(options or {})}], **arguments)
        try:
            self._try_step(optimizer)
            optimizer.param_groups[0].update(change or {})
            # SGD keeps its first sparse gradient, and adds the second to it, which not all dtypes can.
            for _ in range(bool(change) + sparse):
                self._try_step(optimizer)
        except RuntimeError as error:
            # SparseAdam's: before anything is bound nobody knows of what kind the gradients are.
            if like is not None or "dense gradients" not in str(error):
                raise
        return optimizer

    def _try_step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step(*[lambda: 0.0] * self._needs_closure)

    def _add(self, name: str, data: Tensor, grad: Tensor | SparseGrad, has_master: bool) -> None:
        parameter = masters.parameter(data) if has_master else nn.Parameter(data)
        self._check_flat(name, parameter.grad if has_master else grad)
        self._try_parameter(name, parameter.detach(), grad, self._groups[-1].options)
        if has_master:
            self._masters.put(name, parameter, data, grad)
        elif isinstance(grad, Tensor):
            parameter.grad = grad
        self.parameters[name] = parameter
        self.module.append(parameter)
        self._groups[-1].names.append(name)

    def _try_parameter(
        self, name: str, data: Tensor, grad: Tensor | SparseGrad, options: dict[str, Any]
    ) -> None:
        try:
            try:
                self._try(self._arguments, data, isinstance(grad, SparseGrad), options)
            except Exception:
                # On the parameter itself PyTorch may say more; where nothing is wrong that may take long.
                self._class([{"params": [(name, nn.Parameter(data))], **options}], **self._arguments)
                raise
        except Exception as error:
            raise ValueError(f"parameter {shown(name)}: {said(error)}") from error

    def _check_flat(self, name: str, grad: Tensor | SparseGrad) -> None:
        """Check that a gradient can be put into a row as it lies, where the class is one that does so."""
        if not issubclass(self._class, torch.optim.LBFGS) or not isinstance(grad, Tensor):
            return
        try:
            (torch.view_as_real(grad) if grad.is_complex() else grad).view(-1)
        except RuntimeError as error:
            raise ValueError(
                f"parameter {shown(name)}: {self._class.__name__} takes gradients in C order without gaps, "
                f"got {_layout(grad)}: bind it as one flat array "
                "(Fortran: flat=.true., MATLAB and Octave: Optimizer(spec, 'flat'))"
            ) from error

    def _would_lose(self, name: str, data: Tensor, is_lent: bool) -> bool:
        """Tell whether a name that is bound again before the first step is a slip: two arrays have it."""
        if name in self._lent:
            return is_lent
        return self._arrays(name)[0].data_ptr() != data.data_ptr()

    def _move(self, name: str, parameter: nn.Parameter, data: Tensor, grad: Tensor | SparseGrad) -> None:
        master = self._masters.get(name)
        before = master.data if master else parameter
        for what, old, new in (
            ("shape", tuple(before.shape), tuple(data.shape)),
            ("dtype", before.dtype, data.dtype),
            ("device", before.device, data.device),
        ):
            if old != new:
                raise ValueError(f"name {shown(name)} is bound with {what} {old}, got {new}")
        if isinstance(grad, SparseGrad) != (name in self._sparse):
            if self.torch:
                kinds = ("sparse", "dense") if name in self._sparse else ("dense", "sparse")
                raise ValueError(
                    f"name {shown(name)} is bound with a {kinds[0]} gradient, got a {kinds[1]} one"
                )
            options = next(group.options for group in self._groups if name in group.names)
            self._try_parameter(name, data, grad, options)
        if master:
            self._masters.move(name, data, grad)
            self._forget()
            return
        self._check_flat(name, grad)
        # The fused kernels take the state to lie as the parameter does.
        state = self.torch.state.get(parameter, {}) if self.torch else {}
        moved = {key: lie_as(value, data) for key, value in state.items()}
        self._forget()
        # The Parameter object stays: it is what the optimizer knows its state by.
        parameter.data = data
        parameter.grad = grad if isinstance(grad, Tensor) else None
        state.update(moved)
        if self.torch and self._may_fuse and not self._can_fuse(data, grad):
            for group in self.torch.param_groups:
                group["fused"] = None

    def _check_options(self, text: str, current: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """Parse options for parameters of these names, and let PyTorch judge them beside those in force."""
        try:
            options = spec.arguments(text)
            for name in options:
                spec.choose(name, self._accepted(), "option")
            check_kinds(self._class, options)
            in_force = {name: value for name, value in current.items() if name in self._defaults}
            attempt = functools.partial(self._check_beside, in_force, names)
            try:
                attempt(options)
            except Exception as error:
                raise SpecError(blame(error, self._class, options, attempt)) from error
        except Exception as error:
            raise ValueError(f"options {shown(text)}: {error}") from error
        return options

    def _check_beside(self, in_force: dict[str, Any], names: list[str], options: dict[str, Any]) -> None:
        """Let PyTorch judge options beside those in force, by two steps that come to them in the second."""
        self._judge(in_force, options)
        if options.keys() == {"lr"}:
            float(options["lr"])
            return
        # Two steps show whether the state of the steps before goes with them.
        for like, sparse in self._kinds(names):
            self._try(self._arguments, like, sparse, options=in_force, change=options)

    def _kinds(self, names: list[str]) -> list[tuple[Tensor | None, bool]]:
        """Return one of each kind among parameters, and whether its gradient is sparse."""
        bound = [(self.parameters[name], name in self._sparse) for name in names]
        kinds = {(p.dtype, p.dim(), p.device, sparse): (p, sparse) for p, sparse in bound}
        return list(kinds.values()) or [(None, False)]

    def _accepted(self) -> set[str]:
        """Return the options that a host may give to a group."""
        parameters = spec.signature_of(self._class).parameters
        return (self._defaults.keys() & parameters.keys()) - {*IMPLEMENTATIONS}

    def _judge(self, in_force: dict[str, Any], options: dict[str, Any]) -> None:
        """Let PyTorch's constructor judge options, beside those in force, whose rate may be a schedule's."""
        others = {name: value for name, value in in_force.items() if name in self._accepted() - {"lr"}}
        self._class(_nothing_yet(), **{**self._arguments, **others, **options})

    def _step_closure(self, optimizer: torch.optim.Optimizer, closure: Callable[[], float]) -> float:
        def evaluate() -> float:
            self._masters.give_values()
            loss = closure()
            self._check_gradients()
            return loss

        self._check_state(optimizer)
        self._masters.read_values(not self._stepped)
        with self._undone_on_error(optimizer, closure=True):
            loss = optimizer.step(evaluate)
        self._masters.give_values()
        self._update_average()
        self.steps += 1
        return float(loss)

    @contextlib.contextmanager
    def _undone_on_error(self, optimizer: torch.optim.Optimizer, closure: bool) -> Iterator[None]:
        """Put parameters and state back as they were if a step fails.

        A closure may fail after LBFGS, or a class that is not torch's, has changed something.  A first
        step may run out of memory in the making of its state, when groups before are stepped already.
        What no copy is made of, torch checks before it changes anything.
        """
        first = not self._stepped
        may_have_moved = self._may_stop_half_way if closure else False
        may_have_moved |= first and len(self._groups) > 1
        parameters = list(self.parameters.values())
        values, state = self._copy(optimizer) if may_have_moved else ([], {})
        lent = self._masters.values()[0] if closure else []  # which a closure finds stepped
        lent_values = [data.clone() for data in lent]
        try:
            yield
            self._stepped = True
        except BaseException:
            with torch.no_grad():
                for p, value in zip(parameters, values, strict=False):
                    p.copy_(value)
                for data, value in zip(lent, lent_values, strict=True):
                    data.copy_(value)
            if may_have_moved or first:
                optimizer.state.clear()
                optimizer.state.update(self._build().state if first else state)
                self._copied = []  # the copies are the optimizer's now
            raise

    def _copy(self, optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], dict[Tensor, dict[str, Any]]]:
        """Return copies of what a step may change in place: of the parameters, and with them the state."""
        state = {
            p: {key: value[:] if type(value) is list else value for key, value in s.items()}
            for p, s in optimizer.state.items()
        }
        if issubclass(self._class, torch.optim.LBFGS):  # it makes its other tensors anew
            changing = [(s, "prev_flat_grad") for s in state.values() if "prev_flat_grad" in s]
        else:
            changing = [(s, k) for s in state.values() for k, v in s.items() if isinstance(v, Tensor)]
        tensors = [*self.parameters.values(), *(s[key] for s, key in changing)]
        with Gradients(False):
            # Into the memory of the copies before: to have it from the system anew takes longer than to copy.
            if len(tensors) == len(self._copied) and all(map(operator.is_, tensors, self._copied)):
                torch._foreach_copy_(self._copies, tensors)
            else:
                self._copies, self._copied = [t.clone() for t in tensors], tensors
        count = len(self.parameters)
        for (s, key), copy_ in zip(changing, self._copies[count:], strict=True):
            s[key] = copy_
        return self._copies[:count], state

    def _update_average(self) -> None:
        if self._average:
            self._average.update(self.module)

    def _gradients(self) -> Iterator[Tensor]:
        """Yield the memory of each gradient; of a sparse one, the rows that are there."""
        for name, p in self.parameters.items():
            grad = self._arrays(name)[1]
            yield grad.rows(name, len(p)) if isinstance(grad, SparseGrad) else grad

    def _clippable(self) -> list[Tensor]:
        """Return the parameters, with stand-ins where the host's gradient is another than theirs."""
        result: list[Tensor] = []
        for name, grad in zip(self.parameters, list(self._gradients()), strict=True):
            if name not in self._sparse and not self._masters.get(name):
                result.append(self.parameters[name])
            elif len(grad) or name not in self._sparse:  # of no rows there is no norm
                stand_in = torch.empty_like(grad)
                stand_in.grad = grad
                result.append(stand_in)
        return result

    def _check_gradients(self) -> None:
        self._claims.check_moved()
        for name, sparse in self._sparse.items():
            parameter = self.parameters[name]
            parameter.grad = sparse.tensor(name, parameter.shape)
        if self.error_if_nonfinite:
            for name, grad in zip(self.parameters, self._gradients(), strict=True):
                if not _is_finite(grad):
                    raise NonFiniteError(f"the gradient of parameter {shown(name)} has an inf or a nan in it")
        self._masters.take_gradients()


def _is_finite(tensor: Tensor) -> bool:
    # An inf or a nan makes the sum one, at a fraction of the cost of asking each value; a sum may also
    # be too large by itself.
    return cmath.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def _select(groups: list[Any], group: int) -> list[Any]:
    if group == -1:
        return groups
    if not 0 <= group < len(groups):
        raise ValueError(f"group must be 0 to {len(groups) - 1}, or -1 for all, got {group}")
    return [groups[group]]


def _steps(about: dict[str, Any] | None, optimizer: torch.optim.Optimizer) -> int:
    """Return how many steps a checkpoint's optimizer has made; PyTorch's, as many as its state counts."""
    if about is not None and "steps" in about:
        return check_count("its number of steps", about["steps"])
    counts = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    return int(max(filter(math.isfinite, counts), default=0))


def _form(p: Tensor) -> dict[str, Any]:
    return {"shape": list(p.shape), "dtype": name_of(p.dtype)}


def _layout(tensor: Tensor | SparseGrad) -> str:
    if isinstance(tensor, SparseGrad):
        return f"up to {len(tensor.indices)} sparse rows"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} of shape {tuple(tensor.shape)} with strides {tensor.stride()}"


@functools.cache
def _fuses_rightly(class_: type[torch.optim.Optimizer], dtype: torch.dtype, device: str) -> bool:
    """Tell whether the fused kernels of a class step numbers of a dtype, by trying that out.

    That of SGD for the CPU in torch 2.13 leaves half-precision numbers as they are, 16 by 16, without an
    error.  On a GPU, where to look at the numbers would wait for it, only whether there are any is tried.
    """

    def step(fused: bool) -> Tensor:
        parameter = nn.Parameter(torch.ones(100, dtype=dtype, device=device))
        parameter.grad = torch.ones_like(parameter)
        optimizer = class_([parameter], lr=0.5, fused=fused)
        with Gradients(False):
            inspect.unwrap(class_.step)(optimizer)  # without hooks, which are for the host's steps
        return parameter.detach()

    if device == "cpu":
        return torch.allclose(step(False), step(True), rtol=0.05)
    try:
        step(True)
    except RuntimeError:
        return False
    return True


@functools.cache
def classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimizers of torch by name, each made `lean`."""
    return {
        name: lean(value)
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }


@functools.lru_cache(maxsize=100)
def _read(text: str, third_party: bool) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    call = spec.parse(text)
    found = _find_class(call, third_party)
    return found, spec.check_arguments(found, call, implied=1)


def _find_class(call: Call, third_party: bool) -> type[torch.optim.Optimizer]:
    if call.module in ("", *spec.MODULES):
        spec.choose(call.name, classes(), "optimizer")
        spec.check_module(call, "torch.optim")
        return classes()[call.name]
    if not third_party:
        raise SpecError(
            f"module {shown(call.module)} is outside torch.optim and would be imported: allow that with "
            'opt_init("third_party=True")'
        )
    try:
        found = getattr(importlib.import_module(call.module), call.name)
    except Exception as error:
        raise SpecError(f"{call.module}:{call.name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SpecError(f"{call.module}:{call.name} is no torch.optim.Optimizer")
    return found
