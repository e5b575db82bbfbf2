"""How the next step is made: by a plan, by the function call that the last one came down to, or by torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from optplug import followers, lbfgs, plans
from optplug.digest import Stated
from optplug.lean import step_unhooked
from optplug.parameters import Parameters
from optplug.proof import Proofs
from optplug.recipe import Recipe
from optplug.records import Records
from optplug.replay import Replay
from optplug.run import Run
from optplug.scaling import Scale
from optplug.schedule_records import ScheduleRecords


class Planner:
    """What one optimizer knows of its next step.

    Args:
        recipe: the optimizer's.
        makes_plans: whether to state steps as plans, which then run elsewhere; or how they do.
        rounds_sqrt: whether records take the processor's square root, which is rounded correctly.
        error_if_nonfinite: whether a gradient with an inf or a nan in it is an error.
    """

    def __init__(
        self, recipe: Recipe, makes_plans: bool | str, rounds_sqrt: bool, error_if_nonfinite: bool
    ) -> None:
        self._recipe, self._error_if_nonfinite = recipe, error_if_nonfinite
        self.makes_plans = makes_plans
        #: Whether gradients are clipped before steps.
        self.clips = False
        #: States what steps and clipping send to other ranks; None: there are none, or only Python can do it.
        self.together: Callable[[], plans.Together | None] = lambda: None
        #: The next step without Python, where it can be made so.
        self.plan: plans.Plan | None = None
        #: Whether those are what torch has an operator for.
        self.proofs = Proofs()
        #: What its steps come down to, where torch has no operator for them.
        self.records = Records(rounds_sqrt, recipe.is_torchs)
        #: The same of its schedulers.
        self.schedule_records = ScheduleRecords()
        #: The same of LBFGS, whose steps call the host.
        self.lbfgs = lbfgs.Steps()
        self._replay = Replay()
        self._has_operator = plans.may_make(recipe.class_)
        self._is_looked_at = False  # whether a record is to be compared with the step that is made
        self._is_checked = False  # whether the state is known to fit
        #: What makes the next step, where that is to call a class outside torch and nothing else.
        self.steady: torch.optim.Optimizer | None = None

    @property
    def has_recorded(self) -> bool:
        """Whether the next step is to be like the last one."""
        return self._replay.has_noted

    def forget(self) -> None:
        """Let the next step look at everything anew."""
        self.plan, self.steady, self._is_checked = None, None, False
        self._replay.forget()
        self.records.forget()
        self.schedule_records.forget()
        self.lbfgs.forget()

    @contextlib.contextmanager
    def forgetting(self) -> Iterator[None]:
        """Forget where a block fails."""
        try:
            yield
        except Exception:
            self.forget()
            raise

    def pause(self) -> None:
        """Let the next step come to Python, which may refuse it."""
        self.plan = self.steady = None
        self._replay.forget()

    def clip(self, parameters: Parameters) -> None:
        """State how gradients are clipped, too, from now on."""
        if self.plan and not self.clips:
            self.plan = self._whole(plans.Plan(self.plan.operations, self._gradients(parameters, True)))
        self.clips = True

    def _gradients(self, parameters: Parameters, clips: bool) -> plans.Gradients | None:
        stated = followers.gradients(parameters, clips)
        if self.together() is None or stated is None:
            return stated
        return dataclasses.replace(stated, tensors=[t for t in stated.tensors if t.numel()])

    def _whole(self, plan: plans.Plan) -> plans.Plan:
        """Return a plan with what is known of the schedulers, and of other ranks."""
        plan.together = self.together()
        if plan.together:
            plan.digest = Stated(plan.together.groups, plan.together.rest, plan.places)
        schedule = self.schedule_records.schedule
        if schedule:
            plan.schedulers = schedule.stated(plan)
        return plan

    def begin_schedule(self, run: Run) -> None:
        """Look at a step that the schedulers are about to make by Python."""
        if self.plan:
            self.schedule_records.begin(run)

    def end_schedule(self) -> None:
        """State how C makes the next one, if that is known now."""
        self.refresh()
        if self.schedule_records.finish():
            self.restate()

    def restate(self) -> None:
        """Let C take the whole plan once more, with what has changed besides numbers."""
        if self.plan:
            self.plan = self._whole(plans.Plan(self.plan.operations, self.plan.gradients))

    def take_numbers(self) -> None:
        """Take the numbers that C has moved."""
        self.records.take()
        if self.plan and self.plan.schedulers and self.schedule_records.schedule:
            self.schedule_records.schedule.take()
        self.refresh()

    def refresh(self) -> None:
        """Let the next step look at the hyperparameters anew."""
        self._replay.forget()
        if self.plan and not (self.records.give() and self.plan.refresh()):
            self.plan = None

    def is_scalar(self, group: dict[str, Any], name: str, value: Any) -> bool:
        """Tell whether steps only hand a hyperparameter on to kernels, now and with another value."""
        return self.plan is not None and self.plan.is_scalar(group, name, value)

    def check_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the state, before a step, where it may be another than the last step's."""
        if not self._is_checked:
            if self._recipe.is_torchs:
                plans.check_state(optimizer)
            self._is_checked = True

    def step(self, optimizer: torch.optim.Optimizer, parameters: Parameters, scale: Scale) -> None:
        """Make a step that is not the first, by Python."""
        self.check_state(optimizer)
        look = self.records.begin if self._may_record(parameters, scale) else self.records.watch
        self._is_looked_at = look(optimizer)
        self._step(optimizer, parameters)

    def conclude(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at what that step has made, when the host's arrays have it."""
        if self._is_looked_at and self.records.finish(optimizer):
            self.plan = None

    def is_on_rows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the next step of LBFGS changes nothing if it fails: see `lbfgs`."""
        return bool(self.makes_plans) and self._recipe.is_lbfgs and self.lbfgs.are_on_rows(optimizer)

    def step_closure(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], on_rows: bool
    ) -> None:
        """Make a step with a function that computes loss and gradients.

        Args:
            optimizer: what makes it.
            closure: that function.
            on_rows: what `is_on_rows` says.
        """
        if self.makes_plans and self._recipe.is_lbfgs:
            self.lbfgs.step(optimizer, closure, on_rows)
            return
        is_watched = self.records.watch(optimizer)
        optimizer.step(closure)
        if is_watched and self.records.finish(optimizer):
            self.plan = None

    def _may_record(self, parameters: Parameters, scale: Scale) -> bool:
        """Tell whether steps may run as records of what Python does."""
        return bool(self.makes_plans) and self.records.may_begin and not self.unrecorded(parameters, scale)

    def unrecorded(self, parameters: Parameters, scale: Scale) -> str:
        """Say why steps are none of which there are records; "" if they may be."""
        if self._recipe.needs_closure:
            return "each calls your function"
        if parameters.loans and parameters.loans.have_own():
            return "the class steps arrays of its own instead of yours"
        if scale:
            return "gradients are scaled"
        return "a gradient is sparse" if parameters.has_sparse() else ""

    def _step(self, optimizer: torch.optim.Optimizer, parameters: Parameters) -> None:
        if parameters.loans:
            step_unhooked(optimizer)
        elif parameters.has_sparse():  # their gradients are new tensors each time
            optimizer.step()
        else:
            self._replay.step(optimizer)

    def state(self, run: Run, parameters: Parameters, scale: Scale) -> None:
        """State the next step as a plan, after one by Python, where there is none yet."""
        if run.built is None or not run.stepped or not self.makes_plans:
            return
        if not self.records.give():  # this step may have moved them
            self.plan = None
        if self.plan is None and (self._has_operator or self.records.are_complete):
            self.plan = self._state(run, run.built, parameters, scale)
            if self.plan:
                self._replay.forget()  # the state may lie elsewhere now

    def settle(self, run: Run, parameters: Parameters, scale: Scale) -> None:
        """Note, after a step by Python, whether the next ones come down to the class's own."""
        is_steady = not (
            parameters.loans is None
            or parameters.loans.have_own()
            or not parameters.are_plain()
            or self._error_if_nonfinite
            or self.plan
            or scale
            or run.average
            or (self.makes_plans and (self.records.may_begin or self.records.are_kept))
        )
        self.steady = run.built if is_steady else None

    def _state(
        self, run: Run, optimizer: torch.optim.Optimizer, parameters: Parameters, scale: Scale
    ) -> plans.Plan | None:
        operations = plans.make(optimizer, scale.numbers(), self._error_if_nonfinite)
        if operations is not None and not self.proofs.hold(optimizer, operations, scale):
            return None
        if operations is None and not scale:
            operations = self.records.operations(optimizer)
        if not operations:
            return None
        averaging: list[plans.Operation] | None = []
        if run.average:
            averaging = followers.average(run.average, [p.tensor.detach() for p in parameters])
        if averaging is None:
            return None
        gradients = self._gradients(parameters, self.clips)
        plan = plans.stated(operations, parameters.mastered(), averaging, gradients)
        return self._whole(plan) if plan else None

    def refuse(self, reason: str) -> None:
        """Step without plans from now on."""
        self.plan, self.makes_plans, self.proofs.reason = None, False, reason
