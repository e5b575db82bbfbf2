"""One torch.optim optimizer over the parameters of a dummy module: its steps, and what goes with them.

Plain torch: nothing here knows C but the messages, which tell the host what to call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from optplug import check_over_ranks, gradient_check, methods, schedules, stopping
from optplug.averages import Average
from optplug.errors import StateError
from optplug.hosted import Hosted
from optplug.iterate import Iteration
from optplug.norms import clip_grad_norm_, clip_grad_value_
from optplug.ranks import Ranks
from optplug.scaling import Scale, take_away
from optplug.sliced import Sliced
from optplug.spec import check_name
from optplug.torch_private import foreach_zero_
from optplug.wholes import Wholes


class HostedOptimizer(Hosted):
    """A ``torch.optim`` optimizer whose parameters are a host's: see `Hosted` for how it is made."""

    # ---- steps ----

    def step(self) -> None:
        """Make one step.

        Raises:
            StateError: nothing is bound, or the class wants a closure.
            NonFiniteError: a gradient is not finite, and the host has asked to be told.
        """
        self.meet("opt_step")
        self._check_idle("opt_step")
        if self.recipe.needs_closure:
            raise StateError(
                f"{self.recipe.name} evaluates the loss several times a step: "
                "call opt_step_closure or opt_iterate"
            )
        if self.run.expected:
            self._compare_values()
        if self.ranks:
            self._step_over_ranks(self.ranks)
        else:
            self._step_alone()
        self.planner.state(self.run, self.parameters, self.scale)
        self.planner.settle(self.run, self.parameters, self.scale)

    def step_steadily(self) -> bool:
        """Make a step that comes down to one of a class outside torch, as `planning` has noted it.

        What else `step` looks at cannot be other than it was, and takes as long as some classes' own steps.

        Returns:
            False if nothing was noted, and no step is made.
        """
        optimizer = self.planner.steady
        if optimizer is None:
            return False
        self._undo.step(optimizer, self._undo.step_lent)
        self.run.steps += 1
        return True

    def _step_alone(self) -> None:
        self.parameters.read(not self.run.stepped)
        if self.run.stepped and self.run.built:
            if not self.recipe.is_torchs:
                self._undo.step(self.run.built, self._step_again)
            elif not self.scale and self._undo.is_needless(self.run.built):
                self._step_again(self.run.built)  # without a context, which takes microseconds
            else:
                self._gather()
                divided = self.scale.divided(self.run.built, self.parameters)
                with self._undo.on_error(self.run.built, False, False, False, self._build, divided):
                    self._step_gathered(self.run.built)
            self.planner.conclude(self.run.built)
        elif self.recipe.is_torchs and not self.scale:  # the same without contexts
            self._check_bound("opt_step")
            optimizer = self.run.built or self._build()
            self._gather()
            self.planner.check_state(optimizer)
            self._undo.first_step(optimizer, self._build)
            self.run.built, self.run.stepped = optimizer, True
        else:
            with self._ready("opt_step") as optimizer, self._undo.of_others(optimizer, is_first=True):
                self._gather()
                self.planner.check_state(optimizer)
                divided = self.scale.divided(optimizer, self.parameters)
                with self._undo.on_error(optimizer, True, False, False, self._build, divided):
                    is_made = self.scale.apply(optimizer, self.parameters, False)
                    if is_made:
                        optimizer.step()
                self.run.stepped = self.run.stepped or is_made
        self._finish_step()

    def _step_over_ranks(self, ranks: Ranks) -> None:
        """Make a step that fails on all ranks if it does on one, where they communicate."""
        is_first, all_of = not self.run.stepped, None
        with self._ready("opt_step") as optimizer:

            def look() -> None:
                self.planner.check_state(optimizer)
                self.parameters.read(is_first)
                self._check_gradients()

            if ranks.sliced():
                all_of = self._all_that_steps_change(optimizer)
            if (divided := self.scale.divided(optimizer, self.parameters)) is not None:
                all_of = [*(all_of or ()), *divided]
            with contextlib.ExitStack() as undo, ranks.publishing(all_of is not None):
                ranks.gather(look)
                self.parameters.gather()
                undo.enter_context(
                    self._undo.on_error(optimizer, is_first, False, False, self._build, all_of)
                )
                undo.enter_context(self.planner.forgetting())
                scale = ranks.scale(self.scale) if self.scale else self.scale
                is_made = scale.apply(optimizer, self.parameters, self.planner.has_recorded)
                if is_made and is_first:
                    optimizer.step()
                elif is_made:
                    self.planner.step(optimizer, self.parameters, self.scale)
                if self.run.average:
                    self.run.average.update(self.parameters.module)
            self.parameters.publish(but=Sliced)
            if is_made and not is_first:
                self.planner.conclude(optimizer)
            self.run.stepped = self.run.stepped or is_made
        self.run.steps += 1

    def _all_that_steps_change(self, optimizer: torch.optim.Optimizer) -> list[Tensor] | None:
        """Return what a step changes besides parameters and state; None if nothing can fail in it.

        Torch's fused kernels want no memory once there is a state.
        """
        average = self.run.average
        if self.run.stepped and not average and all(g.get("fused") for g in optimizer.param_groups):
            return None
        return [*average.memory(), average.count()] if average else []

    def _step_again(self, optimizer: torch.optim.Optimizer) -> None:
        self._gather()
        self._step_gathered(optimizer)

    def _step_gathered(self, optimizer: torch.optim.Optimizer) -> None:
        scale = self.scale
        if not scale or scale.apply(optimizer, self.parameters, self.planner.has_recorded):
            self.planner.step(optimizer, self.parameters, scale)

    def step_closure(self, closure: Callable[[], float]) -> float:
        """Make one step with a function that computes loss and gradients, and return its first loss.

        An error of the closure ends the step, and leaves parameters and state as they were.

        Raises:
            StateError: the host's gradients are scaled, which is for it to undo here.
        """
        self.meet("opt_step_closure")
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
            self.meet("opt_iterate")
            self._check_unscaled("opt_iterate")
            with self._ready("opt_iterate") as optimizer:
                self._compare_values()
                called = "opt_iterate", "opt_step_closure"
                self._begin(called, lambda closure: self._step_closure(optimizer, closure), prepare)
                self.planner.forget()  # until the step is made, opt_step is an error
        return self._resume("opt_iterate", loss) is None

    def _begin(
        self,
        called: tuple[str, str],
        work: Callable[[Callable[[], float]], float],
        prepare: Callable[[], None],
    ) -> None:
        self._iteration = Iteration(called, work, prepare)
        if self.ranks:
            self.ranks.world.caller = self._iteration.in_host

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
        self.meet("opt_check_gradient")
        self._check_bound("opt_check_gradient")
        self._check_unscaled("opt_check_gradient")
        return self._check_gradient(closure)

    def _check_gradient(self, closure: Callable[[], float]) -> float:
        if self.ranks:
            return check_over_ranks.check(self.ranks, self.parameters, closure)
        return gradient_check.check(self.parameters, closure)

    def check_gradient_iterate(self, loss: float, prepare: Callable[[], None]) -> float | None:
        """Make the same check by reverse communication, and return None where a loss is wanted."""
        what = "opt_check_gradient_iterate"
        if self._iteration is None:
            self.meet(what)
            self._check_bound(what)
            self._check_unscaled(what)
            self._begin((what, "opt_check_gradient"), self._check_gradient, prepare)
            self.planner.pause()  # until it is made, opt_step is an error
        return self._resume(what, loss)

    def _step_closure(self, optimizer: torch.optim.Optimizer, closure: Callable[[], float]) -> float:
        losses: list[float] = []

        def evaluate() -> float | Tensor:
            if self.ranks:
                self.ranks.before_values()
            self.parameters.publish()
            evaluated = functools.partial(self.ranks.evaluate, closure) if self.ranks else closure
            losses.append(self.draws.aside(evaluated))
            self._gather()
            return losses[-1] if self.recipe.is_torchs else self.parameters.as_loss(losses[-1])

        all_of = self._all_that_steps_change(optimizer) if self.ranks else None
        on_rows = not self.ranks and self.planner.is_on_rows(optimizer)
        with contextlib.ExitStack() as undo:
            if self.ranks:
                undo.enter_context(self.ranks.restored())
            of_closures = undo.enter_context(contextlib.ExitStack())
            if self.ranks:
                undo.enter_context(self.ranks.world.as_one(all_of is not None))
            self.planner.check_state(optimizer)
            self.parameters.read(not self.run.stepped)
            before = stopping.counts(optimizer)
            if self.run.stop and not on_rows:  # which leave the state alone until the end
                self.run.stop = self.run.stop.kept(optimizer)
            of_closures.enter_context(
                self._undo.of_closures(optimizer, not self.run.stepped, on_rows, self._build, all_of)
            )
            if self.ranks:
                self.ranks.step_closure(optimizer, evaluate)
            else:
                self.planner.step_closure(optimizer, evaluate, on_rows)
            if not losses:
                raise StateError(f"{self.recipe.name} has not called the closure: call opt_step")
            if self.ranks and self.run.average:
                self.run.average.update(self.parameters.module)
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
        if self.ranks:
            self.ranks.renew()
        grads = self.parameters.gradient_memory()
        if grads:
            foreach_zero_(grads)

    def clip_grad_norm(
        self, max_norm: float, norm_type: float, error_if_nonfinite: bool, is_told: bool = False
    ) -> Tensor:
        """Scale all gradients so that their norm is ``max_norm`` at the most, and return what it was.

        ``torch.nn.utils.clip_grad_norm_``, with its arguments; of long gradients the norm is `norms`' own.
        """
        if self.ranks:
            self.meet("opt_clip_grad_norm")
            with self.ranks.clipping():
                total = self.ranks.clip_grad_norm(max_norm, norm_type, error_if_nonfinite, is_told)
            if self.planner.together():
                self.planner.clip(self.parameters)
            return total
        total = clip_grad_norm_(self.parameters.clippable(), max_norm, norm_type, error_if_nonfinite)
        self.planner.clip(self.parameters)
        return total

    def clip_grad_value(self, clip_value: float) -> None:
        """Clamp every gradient to ``-clip_value`` to ``clip_value``: ``torch.nn.utils.clip_grad_value_``."""
        self.parameters.check_real("clamp")
        if self.ranks:
            self.meet("opt_clip_grad_value")
            with self.ranks.clipping():
                self.ranks.clip_grad_value(clip_value)
            return
        clip_grad_value_(self.parameters.clippable(), clip_value)
        self.planner.clip(self.parameters)

    def grad_scale(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Let steps from now on divide gradients by ``scale``, and be left out where ``found_inf`` is 1.

        Both are read when a step runs: ``torch.amp.GradScaler`` does the same.
        """
        self._check_idle("opt_grad_scale")
        self.scale = Scale(scale, found_inf)
        if self.run.built:
            take_away(self.run.built)
        self.planner.forget()
        if self.ranks and self.scale:
            self.planner.refuse("ranks agree on their scales")

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
        if self.ranks and value is not None and schedules.takes_metric(self.run.schedulers):
            self.meet("opt_schedule_step_metric")
            value = self.ranks.metric(value)
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
        self.meet(f"opt_average_get of {name}")
        with self._as_one():
            names = self.parameters.names()
            check_name(name, names, "parameter")
            average, p = self.run.averaged().read(names.index(name)), self.parameters[name]
            return (p.whole(average) if isinstance(p, Sliced) else average).to(p.data.dtype)

    def swap_average(self) -> None:
        """Exchange all parameters with their averages, in place; again: back."""
        self.meet("opt_average_swap")
        with self._as_one():
            self._check_idle("opt_average_swap")
            swap = self.run.averaged().swapping(self.parameters.module)
        swap()
        self.planner.pause()  # a step is refused while they are swapped in
        self.parameters.publish()

    def _as_one(self) -> AbstractContextManager[None]:
        """Let a block fail on all ranks, where there are any, if it does on one."""
        return self.ranks.world.as_one() if self.ranks else contextlib.nullcontext()

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later process needs to go on: plain values, containers and tensors.

        ``"optimizer"`` is what torch's ``state_dict`` says.  The tensors are the optimizer's own, or copies
        on the CPU.  `resume` says what more is in it.
        """
        return self._state_dict(None)

    def _state_dict(self, wholes: Wholes | None) -> dict[str, Any]:
        self._check_bound("opt_save")
        self._resumption.check_values("opt_save", self.checkpoint)
        self.parameters.read(not self.run.stepped)
        return self._resumption.state_dict(self.run, self.checkpoint, self._build, wholes)

    def joint_state_dict(self) -> dict[str, Any]:
        """Return what `state_dict` would in one process, each array one of which all ranks have a part."""
        assert self._joint_state
        self.meet("opt_save")
        return self._joint_state.save(self.run, self.checkpoint, self._state_dict)

    def load(self, opened: AbstractContextManager[dict[str, Any]]) -> None:
        """Go on from what is in a file, or in each rank's, which are the same: see `load_state_dict`."""
        if self._joint_state is None:
            with opened as content:
                self.load_state_dict(content)
            return
        self.meet("opt_load")

        def load(wholes: Wholes, confirm: Callable[[dict[str, Any]], None]) -> None:
            with opened as content:
                self.load_state_dict(content, wholes, lambda: confirm(content))

        self._joint_state.load(self.checkpoint, load)
        self._joint_state.share_counts(self.run)
        if self.ranks:
            self.ranks.renew()

    def load_state_dict(
        self,
        content: dict[str, Any],
        wholes: Wholes | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        """Go on from what `state_dict` returned, here or elsewhere, or from plain PyTorch's state.

        Schedulers and an average are made anew, from the specs in it.  Those that have been attached here
        must be the same; a function of the host's is called for its first factor.  `checkpoint` may say
        otherwise.

        Raises:
            ValueError: it is of another class, of other parameters, or has something wrong in it.
        """
        self._check_bound("opt_load")
        self._resumption.check_values("opt_load", self.checkpoint)
        with self.parameters.as_before(), self.draws.kept_on_error():
            self.run = self._resumption.load(content, self.run, self.checkpoint, self._build, wholes, confirm)
        self.planner.forget()

    # ---- around a step ----

    def _gather(self) -> None:
        """Let a step find the host's gradients.

        Raises:
            NonFiniteError: one is not finite, and the host has asked to be told.
            ValueError: arrays that were bound again share memory; indices of a sparse gradient are wrong.
        """
        if self.ranks:
            self.ranks.gather(self._check_gradients)
        else:
            self._check_gradients()
        self.parameters.gather()

    def _check_gradients(self) -> None:
        self._binder.check_moved()
        if self.error_if_nonfinite:
            self.parameters.check_finite()

    def _finish_step(self) -> None:
        self.parameters.publish()
        if self.run.average and not self.ranks:  # which have done so, where they fail together
            self.run.average.update(self.parameters.module)
        self.run.steps += 1
