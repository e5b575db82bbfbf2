"""One torch.optim optimizer over the parameters of a dummy module.

Plain torch: nothing here knows C but the messages, which tell the host what to call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from optplug import building, devices, gradient_check, hyperparameters, methods, recipe, schedules, stopping
from optplug.attributes import Attributes
from optplug.averages import Average
from optplug.binding import Binder
from optplug.errors import StateError
from optplug.iterate import Iteration
from optplug.kinds import Grad
from optplug.loans import Loans
from optplug.norms import clip_grad_norm_
from optplug.options import CheckpointOptions
from optplug.parameters import Parameters
from optplug.planning import Planner
from optplug.plans import Plan, Rate
from optplug.randomness import Stream
from optplug.resume import Resumption
from optplug.run import Run
from optplug.scaling import Scale, take_away
from optplug.spec import SpecError, check_name, shown
from optplug.torch_private import foreach_zero_
from optplug.trials import Trials
from optplug.undo import Undo
from optplug.values import compare


class HostedOptimizer:
    """A ``torch.optim`` optimizer whose parameters are a host's, bound one by one.

    Args:
        text: the spec, ``"Adam(lr=1e-3)"``: see `optplug.spec`.
        third_party: whether the spec may name a class outside ``torch.optim``, with its module; or of which
            packages.
        error_if_nonfinite: whether a step is refused where a gradient has an inf or a nan in it.
        makes_plans: whether to state steps as plans, which then run elsewhere instead of ``step``; or how
            they do.
        rounds_sqrt: whether recorded steps take the processor's square root, whose bits may not be torch's.
        master_weights: whether parameters in half precision are stepped in float32: see `kinds.Mastered`.
        seed: what random numbers of a class outside torch begin with: see `randomness`.
        undo: whether a failed step of such a class is undone.

    Raises:
        ValueError: the spec cannot be read, names no optimizer, or PyTorch refuses a hyperparameter.
    """

    def __init__(
        self,
        text: str,
        third_party: bool | tuple[str, ...] = False,
        error_if_nonfinite: bool = False,
        makes_plans: bool | str = False,
        rounds_sqrt: bool = False,
        master_weights: bool = False,
        seed: int = 0,
        undo: bool = True,
    ) -> None:
        try:
            self.recipe = recipe.read(text, third_party)
            self._trials = Trials(self.recipe)
            self.recipe = self._trials.recipe
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {error}") from error
        self.recipe.warn_of_unknown(self.recipe.arguments)
        self.recipe.warn_of_modes()
        self.parameters = Parameters(None if self.recipe.is_torchs else Loans())
        self.run = Run()
        #: How the next step is made.
        self.planner = Planner(self.recipe, makes_plans, rounds_sqrt, error_if_nonfinite)
        #: Whether a gradient with an inf or a nan in it is an error.
        self.error_if_nonfinite = error_if_nonfinite
        #: Where work on GPUs goes.
        self.streams = devices.Streams()
        #: What is in checkpoints, and comes out of them.
        self.checkpoint = CheckpointOptions()
        #: The host's own words, which are in checkpoints as well.
        self.attributes = Attributes()
        self._binder = Binder(self.recipe, self._trials, self.parameters, master_weights, self.planner.forget)
        self._changes = hyperparameters.Changes(self._trials, self.parameters, self.planner)
        #: The random numbers of a class outside torch.
        self.draws = Stream(self.recipe.all_classes(), seed, self.parameters.gpus)
        self._undo = Undo(self.recipe, self.parameters, self.draws, undo)
        self._resumption = Resumption(self.recipe, self._trials, self.parameters, self.attributes, self.draws)
        self._build = functools.partial(building.build, self.recipe, self.parameters, self.draws)
        self._scale = Scale()
        self._iteration: Iteration | None = None

    @property
    def plan(self) -> Plan | None:
        """The next step without Python, where it can be made so."""
        return self.planner.plan

    # ---- parameters and their groups ----

    def bind(self, name: str, data: Tensor, grad: Grad, is_staged: bool = False) -> None:
        """Take ``data`` and ``grad`` as those of the parameter ``name``; move it if it is known.

        Between steps there is nothing in them to go by if ``is_staged``.

        Raises:
            ValueError: another shape or dtype than before, or a layout that the spec's ``fused=True``
                cannot step, or a parameter that PyTorch's optimizer refuses; a second array for a name
                before the first step; memory that is another parameter's.
            StateError: a new name once the optimizer is built.
        """
        self._check_idle("opt_bind")
        self._binder.bind(name, data, grad, is_staged, self.run)
        if data.is_cuda:
            self.streams.use_gpu()

    def group(self, text: str) -> None:
        """Let the parameters that are bound from now on be a group with these options of its own.

        Raises:
            ValueError: no such option, or PyTorch refuses its value, or has no groups for this class.
            StateError: the optimizer is built, or nothing is bound to the group before this one.
        """
        self._binder.group(text, self.run)

    # ---- hyperparameters ----

    def get(self, group: int, name: str) -> float:
        """Return a hyperparameter of a group, or of all groups (-1) where they agree.

        ``name`` is "lr", or "betas[0]" for one of a tuple; True is 1.  "step" is the number of steps.
        """
        counts = {"step": self.run.steps, **stopping.counts(self.built())}
        groups = hyperparameters.select(self.built().param_groups, group)
        return float(counts[name]) if name in counts else hyperparameters.get(groups, name)

    def set(self, group: int, text: str) -> None:
        """Set hyperparameters of a group, or of all groups (-1): ``"lr=1e-4, betas=(0.9, 0.99)"``.

        Raises:
            ValueError: no such group or option, or PyTorch refuses the value.
        """
        self._check_idle("opt_set")
        self._changes.set(self.run, group, text)

    def set_value(self, group: int, name: str, value: float) -> None:
        """Set one hyperparameter, named as `get` names it, of a group or of all groups (-1).

        Raises:
            ValueError: no such group or option, or it is no number, or PyTorch refuses the value.
        """
        self._check_idle("opt_set_value")
        self._changes.set_value(self.run, group, name, value)

    def take_value(self, group: int, name: str, value: float) -> None:
        """Take over a hyperparameter that was set in the plan alone: one of `rates`."""
        self._changes.take(self.run, group, name, value)

    def rates(self) -> list[Rate]:
        """Return what may be set in the plan alone: what has been set by number before."""
        return self._changes.rates(self.run)

    # ---- steps ----

    def step(self) -> None:
        """Make one step.

        Raises:
            StateError: nothing is bound, or the class wants a closure.
            NonFiniteError: a gradient is not finite, and the host has asked to be told.
        """
        self._check_idle("opt_step")
        if self.recipe.needs_closure:
            raise StateError(
                f"{self.recipe.name} evaluates the loss several times a step: "
                "call opt_step_closure or opt_iterate"
            )
        self._compare_values()
        self.parameters.read(not self.run.stepped)
        if self.run.stepped and self.run.built:
            if self.recipe.is_torchs:  # without a context, which takes microseconds
                self._step_again(self.run.built)
            else:
                self._undo.step(self.run.built, self._step_again)
            self.planner.conclude(self.run.built)
        else:
            with self._ready("opt_step") as optimizer, self._undo.of_others(optimizer, is_first=True):
                self._gather()
                self.planner.check_state(optimizer)
                if self._scale.apply(optimizer, self.parameters, False):
                    with self._undo.on_error(optimizer, True, False, False, self._build):
                        optimizer.step()
                    self.run.stepped = True
        self._finish_step()
        self.planner.state(self.run, self.parameters, self._scale)

    def _step_again(self, optimizer: torch.optim.Optimizer) -> None:
        self._gather()
        if self._scale.apply(optimizer, self.parameters, self.planner.has_recorded):
            self.planner.step(optimizer, self.parameters, self._scale)

    def step_closure(self, closure: Callable[[], float]) -> float:
        """Make one step with a function that computes loss and gradients, and return its first loss.

        An error of the closure ends the step, and leaves parameters and state as they were.

        Raises:
            StateError: the host's gradients are scaled, which is for it to undo here.
        """
        self._check_unscaled("opt_step_closure")
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
                called = "opt_iterate", "opt_step_closure"
                self._iteration = Iteration(called, lambda f: self._step_closure(optimizer, f), prepare)
                self.planner.forget()  # until the step is made, opt_step is an error
        return self._resume("opt_iterate", loss) is None

    def _resume(self, what: str, loss: float) -> float | None:
        assert self._iteration
        if self._iteration.called != what:
            self._check_idle(what)
        iteration, self._iteration = self._iteration, None
        if not iteration.resume(loss):
            return iteration.result
        self._iteration = iteration
        return None

    def check_gradient(self, closure: Callable[[], float]) -> float:
        """Compare a closure's gradients with differences of its losses: see `gradient_check`."""
        self._check_bound("opt_check_gradient")
        self._check_unscaled("opt_check_gradient")
        return gradient_check.check(self.parameters, closure)

    def check_gradient_iterate(self, loss: float, prepare: Callable[[], None]) -> float | None:
        """Make the same check by reverse communication, and return None where a loss is wanted."""
        what = "opt_check_gradient_iterate"
        if self._iteration is None:
            self._check_bound(what)
            self._check_unscaled(what)
            check = functools.partial(gradient_check.check, self.parameters)
            self._iteration = Iteration((what, "opt_check_gradient"), check, prepare)
            self.planner.forget()
        return self._resume(what, loss)

    def _step_closure(self, optimizer: torch.optim.Optimizer, closure: Callable[[], float]) -> float:
        losses: list[float] = []

        def evaluate() -> float | Tensor:
            self.parameters.publish()
            losses.append(self.draws.aside(closure))
            self._gather()
            return losses[-1] if self.recipe.is_torchs else self.parameters.as_loss(losses[-1])

        self.planner.check_state(optimizer)
        self.parameters.read(not self.run.stepped)
        before = stopping.counts(optimizer)
        is_first, undoes = not self.run.stepped, self.planner.lbfgs.are_on_rows(optimizer)
        with self._undo.of_closures(optimizer, is_first, undoes, self._build):
            self.planner.step_closure(optimizer, evaluate)
            if not losses:
                raise StateError(f"{self.recipe.name} has not called the closure: call opt_step")
        self.run.built, self.run.stepped = optimizer, True  # whatever becomes of the average now
        self.run.stop = stopping.since(before, optimizer, losses)
        self._finish_step()
        return float(losses[0])

    def close(self) -> None:
        """End a step that iterate has left in the middle."""
        if self._iteration:
            self._iteration.abandon()
            self._iteration = None

    def call(self, method: str) -> None:
        """Call a method of a class outside torch: see `methods`."""
        methods.check(self.recipe.class_, method)
        with self._ready("opt_call") as optimizer:
            self._compare_values()
            self.parameters.read(not self.run.stepped)
            self.planner.forget()
            self._undo.call(optimizer, method)

    # ---- gradients ----

    def zero_grad(self) -> None:
        """Set every gradient to zero, in place."""
        grads = self.parameters.gradient_memory()
        if grads:
            foreach_zero_(grads)

    def clip_grad_norm(self, max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
        """Scale all gradients so that their norm is ``max_norm`` at the most, and return what it was.

        ``torch.nn.utils.clip_grad_norm_``, with its arguments; of long gradients the norm is `norms`' own.
        """
        total = clip_grad_norm_(self.parameters.clippable(), max_norm, norm_type, error_if_nonfinite)
        self.planner.clip(self.parameters)
        return total

    def clip_grad_value(self, clip_value: float) -> None:
        """Clamp every gradient to ``-clip_value`` to ``clip_value``: ``torch.nn.utils.clip_grad_value_``."""
        if not clip_value >= 0:
            raise ValueError(f"clip_value must not be negative, got {clip_value}")
        self.parameters.check_real("clamp")
        nn.utils.clip_grad_value_(self.parameters.clippable(), clip_value)
        self.planner.clip(self.parameters)

    def grad_scale(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Let steps from now on divide gradients by ``scale``, and be left out where ``found_inf`` is 1.

        Both are read when a step runs: ``torch.amp.GradScaler`` does the same.
        """
        self._check_idle("opt_grad_scale")
        self._scale = Scale(scale, found_inf)
        if self.run.built:
            take_away(self.run.built)
        self.planner.forget()

    # ---- GPUs ----

    def stream(self, address: int) -> None:
        """Let work on the GPU of a stream go there: see `devices.Streams.take`."""
        self._check_idle("opt_stream")
        gpus = self.parameters.gpus()
        if address and not gpus:
            raise StateError(f"stream {address:#x}: no parameter is on a GPU, bind one before")
        memory = [t for p in self.parameters.mastered() for t in (p.tensor.detach(), p.stepped_memory())]
        memory += self.run.memory() + (self.plan.memory() if self.plan else [])
        self.streams.take(address, gpus, memory)

    def device(self, what: str) -> torch.device:
        """Return where the parameters are, or some of them."""
        self._check_bound(what)
        return next((p.tensor.device for p in self.parameters if p.tensor.is_cuda), devices.CPU)

    # ---- schedules ----

    def schedule(self, text: str, function: schedules.Function | None = None) -> None:
        """Attach a scheduler, after those that are there: see `schedules.attach`."""
        with self._ready("opt_schedule") as optimizer:
            self.run.schedulers.append(schedules.attach(optimizer, text, function))
            self.run.schedules.append((text, function))
            self.planner.forget()  # the scheduler wants to see one step of the optimizer itself

    def unschedule(self) -> None:
        """Take all schedulers off: see `schedules.detach`."""
        self._check_idle("opt_schedule")
        if self.run.built:
            schedules.detach(self.run.built)
        self.run.schedulers, self.run.schedules = [], []
        self.planner.forget()

    def schedule_step(self, value: float | None = None) -> None:
        """Step the schedulers: see `schedules.step`."""
        with self._ready("opt_schedule_step") as optimizer:
            if value is None:
                self.planner.begin_schedule(self.run)
            schedules.step(optimizer, self.run.schedulers, value)
        self.planner.end_schedule()

    def take_numbers(self) -> None:
        """Bring schedulers, rates and counts up to date with the plan, which has moved them."""
        self.planner.take_numbers()

    # ---- averages ----

    def average(self, text: str) -> None:
        """Average the parameters after each step from now on; a new average replaces the old one."""
        with self._ready("opt_average"):
            self.run.average = Average(text, self.parameters.module)
            self.planner.forget()  # a step is more than the optimizer's from now on

    def read_average(self, name: str) -> Tensor:
        """Return the average of one parameter."""
        names = self.parameters.names()
        check_name(name, names, "parameter")
        return self.run.averaged().read(names.index(name)).to(self.parameters[name].data.dtype)

    def swap_average(self) -> None:
        """Exchange all parameters with their averages, in place; again: back."""
        self._check_idle("opt_average_swap")
        self.run.averaged().swap(self.parameters.module)
        self.planner.pause()  # a step is refused while they are swapped in
        self.parameters.publish()

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later process needs to go on: plain values, containers and tensors.

        ``"optimizer"`` is what torch's ``state_dict`` says.  The tensors are the optimizer's own, or copies
        on the CPU.  `resume` says what more is in it.
        """
        self._check_bound("opt_save")
        self._resumption.check_values("opt_save", self.checkpoint)
        self.parameters.read(not self.run.stepped)
        return self._resumption.state_dict(self.run, self.checkpoint, self._build)

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, here or elsewhere, or from plain PyTorch's state.

        Schedulers and an average are made anew, from the specs in it.  Those that have been attached here
        must be the same; a function of the host's is called for its first factor.  `checkpoint` may say
        otherwise.

        Raises:
            ValueError: it is of another class, of other parameters, or has something wrong in it.
        """
        self._check_bound("opt_load")
        self._resumption.check_values("opt_load", self.checkpoint)
        with self.parameters.lent_as_before(), self.draws.kept_on_error():
            self.run = self._resumption.load(content, self.run, self.checkpoint, self._build)
        self.planner.forget()

    # ---- how it is made ----

    def built(self) -> torch.optim.Optimizer:
        """Return the optimizer proper, or, before that, one like it on the parameters that are there."""
        return self.run.built or self._build()

    @contextlib.contextmanager
    def _ready(self, what: str) -> Iterator[torch.optim.Optimizer]:
        """Give the optimizer proper to a block; build it first, for good only if the block succeeds."""
        self._check_bound(what)
        optimizer = self.built()
        yield optimizer
        self.run.built = optimizer

    # ---- around a step ----

    def _gather(self) -> None:
        """Let a step find the host's gradients.

        Raises:
            NonFiniteError: one is not finite, and the host has asked to be told.
            ValueError: arrays that were bound again share memory; indices of a sparse gradient are wrong.
        """
        self._binder.check_moved()
        if self.error_if_nonfinite:
            self.parameters.check_finite()
        self.parameters.gather()

    def _finish_step(self) -> None:
        self.parameters.publish()
        if self.run.average:
            self.run.average.update(self.parameters.module)
        self.run.steps += 1

    def _compare_values(self) -> None:
        """Warn of other values than at the save before the first step, by which a host has read its own."""
        if self.run.expected:
            expected, self.run.expected = self.run.expected, {}
            compare(expected, self.parameters.read_by_steps())

    def _check_idle(self, what: str) -> None:
        if self._iteration:
            called = self._iteration.called
            raise StateError(f"{what} in the middle of a step: call {called} until it returns OPT_DONE")
        if self.run.average and self.run.average.swapped and what != "opt_average_swap":
            raise StateError(f"{what} while the averages are swapped in: call opt_average_swap again before")

    def _check_unscaled(self, what: str) -> None:
        if self._scale:
            raise StateError(f"{what} after opt_grad_scale: call that with NULL, and scale in the closure")

    def _check_bound(self, what: str) -> None:
        self._check_idle(what)
        if not len(self.parameters):
            raise StateError(f"nothing is bound: call opt_bind before {what}")
        if not self.parameters.groups[-1].names:
            raise StateError(f"nothing is bound to the last group: call opt_bind before {what}")
