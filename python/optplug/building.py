"""The optimizer proper: on the parameters, on copies of them, or on a stand-in where there are none yet."""

from __future__ import annotations

import torch

from optplug.parameters import Group, Parameters
from optplug.randomness import Stream
from optplug.recipe import Recipe
from optplug.trials import nothing_yet


def build(
    recipe: Recipe,
    parameters: Parameters,
    draws: Stream,
    groups: list[Group] | None = None,
    on_copies: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimizer on the parameters that are there, in their groups or in others."""
    tensors = {p.name: p.copied() if on_copies else p.tensor for p in parameters}
    made = [
        {"params": [(n, tensors[n]) for n in g.names] or nothing_yet(), **g.options}
        for g in groups or parameters.groups
    ]
    if on_copies:
        return recipe.build(made)
    if parameters.loans:
        draws.restart()
        with draws.current(sees_all=True):
            return parameters.loans.build(lambda: recipe.build(made))
    chosen = recipe.implementation(parameters.arrays())
    return recipe.build(made, {**recipe.arguments, **chosen})
