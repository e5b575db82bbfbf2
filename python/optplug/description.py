"""What an optimizer is and how it steps, in words."""

from __future__ import annotations

import torch

from optplug.kinds import layout
from optplug.optimizer import HostedOptimizer
from optplug.torch_private import has_hooks


def describe(hosted: HostedOptimizer, plan: str) -> str:
    """Return what an optimizer is and what it works on, a ``name: value`` a line.

    Args:
        hosted: the optimizer.
        plan: how C makes its steps.
    """
    optimizer, parameters = hosted.built(), hosted.parameters
    step = way(hosted) if hosted.run.stepped else _path(hosted, optimizer)
    lines = [
        f"optimizer: {hosted.recipe.called}",
        f"step: {step}",
        f"way: {plan}",
        f"gradients: {_gradients(hosted)}",
    ]
    if hosted.run.schedulers:
        lines.append(f"schedulers: stepped {_schedulers(hosted)}")
    for i, group in enumerate(optimizer.param_groups):
        options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        lines.append(f"group {i}: {', '.join(f'{k}={v!r}' for k, v in options.items())}")
        for name in parameters.names_of(group):
            p = parameters[name]
            lines.append(
                f"parameter {name!r}: group {i}, {p.data.device}, {layout(p.data)}, "
                f"gradient {layout(p.grad)}{p.note}"
            )
    if not hosted.recipe.is_torchs and hosted.draws.sources:
        lines.append(f"random numbers: of {', '.join(hosted.draws.sources)}, seed {hosted.draws.seed}")
    lines += hosted.streams.describe()
    lines += hosted.ranks.describe() if hosted.ranks else []
    lines += [f"{kind}: {text}" for kind, text in attached(hosted)]
    if hosted.run.stop:
        lines.append(f"last step: {hosted.run.stop.describe(optimizer)}")
    lines += [
        f"steps: {hosted.run.steps}",
        f"checkpoint: {hosted.checkpoint}",
        *hosted.attributes.describe(),
    ]
    return "".join(line + "\n" for line in lines)


def attached(hosted: HostedOptimizer) -> list[tuple[str, str]]:
    """Return "scheduler" or "average" and the spec, on one line, for each that steps along."""
    texts = [("scheduler", text) for text, _ in hosted.run.schedules]
    if hosted.run.average:
        texts.append(("average", hosted.run.average.text))
    return [(kind, " ".join(text.split())) for kind, text in texts]


def way(hosted: HostedOptimizer) -> str:
    """Say how steps are made now, and why by Python if that is so."""
    optimizer = hosted.run.built
    if not optimizer:
        return "nothing yet"
    path = _path(hosted, optimizer)
    if hosted.plan:
        return path
    if not hosted.ranks and hosted.planner.is_on_rows(optimizer):
        return f"{path}, by Python on rows of numbers by C"
    of_ranks = hosted.ranks.reason if hosted.ranks else ""
    reasons = {
        of_ranks: bool(of_ranks),
        "plans=False": not (hosted.planner.makes_plans or hosted.planner.proofs.reason or of_ranks),
        "PyTorch hooks watch them": has_hooks(optimizer),
        hosted.planner.proofs.reason: bool(hosted.planner.proofs.reason),
        f"they cannot be recorded: {hosted.planner.records.reason}": bool(hosted.planner.records.reason)
        and not hosted.planner.proofs.reason,
    }
    found = [why for why, holds in reasons.items() if holds]
    found = found or [hosted.planner.unrecorded(hosted.parameters, hosted.scale)]
    return ", ".join([f"{path}, by Python", *(f"since {why}" for why in found if why)])


def _gradients(hosted: HostedOptimizer) -> str:
    """Say how gradients are zeroed and clipped."""
    gradients = hosted.plan.gradients if hosted.plan else None
    if gradients is None:
        return "zeroed and clipped by Python"
    if gradients.lanes:
        return "zeroed and clipped without Python"
    return "zeroed without Python, and clipped by Python" + (
        "" if hosted.planner.clips else " the first time"
    )


def _schedulers(hosted: HostedOptimizer) -> str:
    if hosted.plan and hosted.plan.schedulers:
        return "without Python"
    reason = hosted.planner.schedule_records.reason
    return f"by Python, since {reason}" if reason else "by Python"


def _path(hosted: HostedOptimizer, optimizer: torch.optim.Optimizer) -> str:
    recipe, name = hosted.recipe, hosted.recipe.name
    if hosted.plan:
        return f"{', '.join(hosted.plan.names())} without Python"
    if not recipe.is_torchs:
        return f"{recipe.class_.__module__}.{name}"
    if any(group.get("fused") for group in optimizer.param_groups):
        return f"torch.optim.{name} with fused kernels"
    chosen = recipe.chosen()
    if chosen:
        return f"torch.optim.{name}, not fused, since the spec says {', '.join(chosen)}"
    if not recipe.may_fuse:
        return f"torch.optim.{name}, which has no fused kernels"
    arrays = zip(hosted.parameters.names(), hosted.parameters.arrays(), strict=True)
    unfit = [name for name, (data, grad) in arrays if not recipe.can_fuse(data, grad)]
    reason = f"parameter {unfit[0]!r} is" if unfit else "a parameter was"
    wanted = "real, dense, in its gradient's layout and of a dtype that it steps correctly"
    return f"torch.optim.{name}, not fused, since {reason} not {wanted}"
