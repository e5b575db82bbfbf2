"""Steps of schedulers without Python: that they are torch's, whoever looks and whatever comes between."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from optplug import _bridge, ctypes_api
from planned_twins import Twins as PlannedTwins
from planned_twins import direct_plans, lib  # noqa: F401 (pytest finds the fixture here)

SCHEDULES = [
    "StepLR(step_size=4, gamma=0.5)",
    "MultiStepLR(milestones=[5, 9, 9, 14], gamma=0.5)",
    "ConstantLR(factor=0.3, total_iters=6)",
    "LinearLR(start_factor=0.3, total_iters=7)",
    "ExponentialLR(gamma=0.9)",
    "PolynomialLR(total_iters=9, power=1.5)",
    "CosineAnnealingLR(T_max=6, eta_min=0.01)",
    "CosineAnnealingWarmRestarts(T_0=4, T_mult=2)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=3, step_size_down=5)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=3, mode='triangular2')",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=3, mode='exp_range', gamma=0.9)",
    "OneCycleLR(max_lr=0.2, total_steps=60)",
    "OneCycleLR(max_lr=0.2, total_steps=60, three_phase=True, anneal_strategy='linear')",
    "SWALR(swa_lr=0.05, anneal_epochs=6)",
    "SequentialLR([LinearLR(total_iters=5), CosineAnnealingLR(T_max=8)], milestones=[5])",
    "ChainedScheduler([LinearLR(total_iters=5), ExponentialLR(gamma=0.9)])",
]
OPTIMIZERS = ["AdamW(lr=0.1)", "RMSprop(lr=0.1, momentum=0.9)"]


pytestmark = pytest.mark.usefixtures("direct_plans")


class Twins(PlannedTwins):
    """Twins of two groups, with schedulers."""

    def __init__(self, text, *schedules):
        self.fused = text.startswith("AdamW")
        super().__init__(text, [("float32", 7)], [("float32", 5)])
        self.step()
        self.schedulers = [self.attach(schedule) for schedule in schedules]

    def attach(self, schedule):
        assert lib.opt_schedule(self.opt, schedule.encode()) == 0, lib.opt_error()
        names = {name: self.made(getattr(lr_scheduler, name)) for name in lr_scheduler.__all__}
        names["SWALR"] = self.made(swa_utils.SWALR)
        return eval(schedule, names)  # noqa: S307 - this file's own text

    def made(self, class_):
        if class_ is lr_scheduler.ChainedScheduler:
            return lambda *args, **kwargs: class_(*args, optimizer=self.reference, **kwargs)
        return lambda *args, **kwargs: class_(self.reference, *args, **kwargs)

    def schedule(self):
        """Step all schedulers, and compare nothing, so that nobody looks."""
        assert lib.opt_schedule_step(self.opt) == 0, lib.opt_error()
        for scheduler in self.schedulers:
            scheduler.step()

    def compare_rates(self):
        value = ctypes.c_double()
        names = ["lr", *(["betas[0]"] if self.fused else ["momentum"])]
        for i, group in enumerate(self.reference.param_groups):
            for name in names:
                assert lib.opt_get(self.opt, i, name.encode(), value) == 0
                key, _, index = name.partition("[")
                assert value.value == (group[key][0] if index else group[key])
        ours = _bridge.optimizer_of(self.opt).run.schedulers
        for a, b in zip(ours, self.schedulers, strict=True):
            assert flat(a.state_dict()) == flat(b.state_dict())

    def is_in_c(self):
        return "schedulers: stepped without Python" in self.described()


def flat(state):
    if isinstance(state, lr_scheduler.LRScheduler):
        state = state.state_dict()
    if isinstance(state, dict):
        return {
            k: flat(v) for k, v in state.items() if k not in ("optimizer", "_scale_fn_ref", "_schedulers")
        } | {"_schedulers": [flat(s) for s in state.get("_schedulers", [])]}
    return state


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("text", OPTIMIZERS)
def test_schedulers_step_without_python(text, schedule):
    twins = Twins(text, schedule)
    in_c = 0
    for i in range(40):
        twins.step()
        plan = _bridge.optimizer_of(twins.opt).plan
        in_c += bool(plan and plan.schedulers)
        twins.schedule()
        if i % 7 == 6:
            twins.compare_rates()
    twins.compare_rates()
    assert in_c > 25, _bridge.optimizer_of(twins.opt).planner.schedule_records.reason
    twins.end()


def test_several_schedulers_step_in_their_order():
    twins = Twins("AdamW(lr=0.1)", "StepLR(3, gamma=0.5)", "ExponentialLR(0.99)")
    for _ in range(20):
        twins.step()
        twins.schedule()
    assert twins.is_in_c()
    twins.compare_rates()
    twins.end()


def test_whoever_looks_sees_the_rate():
    twins = Twins("AdamW(lr=0.1)", "ExponentialLR(0.9)")
    value = ctypes.c_double()
    for _ in range(20):
        twins.step()
        twins.schedule()
        assert lib.opt_get(twins.opt, 0, b"lr", value) == 0
        assert value.value == twins.reference.param_groups[0]["lr"]
        assert f"lr={value.value!r}" in twins.described()
    assert twins.is_in_c()
    twins.end()


@pytest.mark.parametrize("options", ["lr=0.3", "betas=(0.7, 0.99)", "weight_decay=0.2", "maximize=True"])
def test_a_change_goes_on_from_where_c_is(options):
    twins = Twins("AdamW(lr=0.1)", "ExponentialLR(0.9)")
    for i in range(24):
        twins.step()
        twins.schedule()
        if i % 8 == 7:
            assert lib.opt_set(twins.opt, -1, options.encode()) == 0, lib.opt_error()
            for group in twins.reference.param_groups:
                group.update(eval(f"dict({options})"))  # noqa: S307
    twins.compare_rates()
    assert twins.is_in_c()
    assert lib.opt_set_value(twins.opt, 0, b"lr", 0.25) == 0
    twins.reference.param_groups[0]["lr"] = 0.25
    twins.step()
    twins.schedule()
    twins.compare_rates()
    twins.end()


def test_clipping_and_zeroing_by_python_come_between():
    twins = Twins("AdamW(lr=0.1)", "ExponentialLR(0.9)")
    for i in range(20):
        twins.draw()
        assert lib.opt_clip_grad_norm(twins.opt, 0.5, 1.0 if i > 10 else 2.0, 0, None) == 0
        torch.nn.utils.clip_grad_norm_(twins.theirs, 0.5, 1.0 if i > 10 else 2.0)
        assert lib.opt_step(twins.opt) == 0
        twins.reference.step()
        twins.schedule()
    twins.compare()
    twins.compare_rates()
    twins.end()


def test_a_checkpoint_has_the_schedule_as_it_is():
    twins = Twins("AdamW(lr=0.1)", "OneCycleLR(max_lr=0.2, total_steps=60)")
    for _ in range(15):
        twins.step()
        twins.schedule()
    assert twins.is_in_c()
    saved = ctypes.create_string_buffer(1 << 16)
    size = lib.opt_save_memory(twins.opt, saved, len(saved))
    assert size > 0, lib.opt_error()
    values = [v.clone() for v, _ in twins.ours]
    draws = twins.generator.get_state()

    def run_on():
        twins.generator.set_state(draws)
        rates = []
        for _ in range(10):
            twins.draw()
            assert lib.opt_step(twins.opt) == 0
            assert lib.opt_schedule_step(twins.opt) == 0
            value = ctypes.c_double()
            assert lib.opt_get(twins.opt, 0, b"lr", value) == 0
            rates.append(value.value)
        return rates, [v.clone() for v, _ in twins.ours]

    rates, after = run_on()
    for (value, _), before in zip(twins.ours, values, strict=True):
        value.copy_(before)
    assert lib.opt_load_memory(twins.opt, saved, size) == 0, lib.opt_error()
    again, values = run_on()
    assert again == rates
    assert all(map(torch.equal, values, after))
    assert lib.opt_free(twins.opt) == 0


def test_a_step_that_fails_in_python_changes_nothing():
    twins = Twins("AdamW(lr=0.1)", "OneCycleLR(max_lr=0.2, total_steps=12)")
    for _ in range(12):
        twins.step()
        twins.schedule()
    twins.compare_rates()
    before = twins.described()
    assert lib.opt_schedule_step(twins.opt) < 0
    assert b"12" in lib.opt_error()
    assert twins.described() == before
    twins.step()
    twins.end()


def test_functions_and_metrics_are_asked_in_python():
    twins = Twins("AdamW(lr=0.1)")
    asked = []

    @ctypes_api.CALLBACK
    def rate(_, value):
        asked.append(value[0])
        value[0] = 0.9 ** len(asked)
        return 0

    assert lib.opt_schedule_callback(twins.opt, b"MultiplicativeLR()", rate, None) == 0, lib.opt_error()
    before = len(asked)
    for _ in range(6):
        assert lib.opt_step(twins.opt) == 0
        assert lib.opt_schedule_step(twins.opt) == 0
    assert len(asked) == before + 12  # once for each group
    assert "schedulers: stepped by Python, since a function of yours computes rates" in twins.described()
    assert lib.opt_free(twins.opt) == 0
    twins = Twins("AdamW(lr=0.1)")
    assert lib.opt_schedule(twins.opt, b"ReduceLROnPlateau()") == 0
    for _ in range(4):
        assert lib.opt_step(twins.opt) == 0
        assert lib.opt_schedule_step_metric(twins.opt, 1.0) == 0
    assert "schedulers: stepped by Python" in twins.described()
    assert lib.opt_free(twins.opt) == 0


def test_a_record_that_is_not_torchs_is_noticed():
    class Crooked(lr_scheduler.ExponentialLR):
        """One whose copy computes otherwise."""

        def get_lr(self):
            factor = self.gamma if self is scheduler else self.gamma + 0.0625
            return [group["lr"] * factor for group in self.optimizer.param_groups]

    twins = Twins("AdamW(lr=0.1)", "ExponentialLR(0.9)")
    (scheduler,) = _bridge.optimizer_of(twins.opt).run.schedulers
    scheduler.__class__ = Crooked
    for _ in range(8):
        twins.step()
        twins.schedule()
    twins.compare_rates()
    assert not twins.is_in_c()
    reason = _bridge.optimizer_of(twins.opt).planner.schedule_records.reason
    assert reason == "its record gave other numbers than the step"
    twins.end()


def test_a_copy_that_is_stepped_warns_of_nothing():
    """Torch warns of a scheduler's first step where the optimizer has made none."""
    twins = Twins("AdamW(lr=0.1)", "StepLR(3)")
    for _ in range(8):
        twins.step()
        twins.schedule()
        assert lib.opt_warning() == b""
    assert twins.is_in_c()
    twins.end()
