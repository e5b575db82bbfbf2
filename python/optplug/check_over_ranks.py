"""Whether the gradients of ranks are the derivatives of the loss of all: `gradient_check` over them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from optplug.gradient_check import Array, Check
from optplug.kinds import Parameter
from optplug.over_ranks import add
from optplug.parameters import Parameters
from optplug.ranks import Ranks
from optplug.sliced import Sliced
from optplug.world import World

Closure = Callable[[], float]


def check(ranks: Ranks, parameters: Parameters, closure: Closure) -> float:
    """Do what `gradient_check.check` does, with the loss of all ranks.

    Of parts, the values that are compared one by one are shared out among the ranks, which take turns.
    """
    world, was_reduced = ranks.world, ranks.exchange.is_reduced
    loss = functools.partial(ranks.evaluate, closure)
    this = Check(parameters[name] for name in ranks.names())
    share = slice(world.rank, None, world.size)
    try:
        with world.as_one(), this.moving():
            this.evaluate(loss, functools.partial(_whole_gradient, world))
            this.compare(loss, _is_whole)
            _in_turns(world, loss, lambda loss: this.compare_some(loss, _is_part, share))
            with world.as_one():  # since along a direction a part that is wrong makes all so
                this.judge()
            this.compare_along(loss, _is_part, lambda part: add(v for (v,) in world.share(part)))
            worst = this.judge()
    finally:
        ranks.exchange.is_reduced = was_reduced
    return max(error for (error,) in world.share(worst))


def _whole_gradient(world: World, p: Parameter, gradient: Array) -> Array:
    if not isinstance(p, Sliced) or not p.reduction:
        return gradient
    world.share()
    total = functools.reduce(torch.add, world.all_gather(torch.from_numpy(gradient))).numpy()
    return total / world.size if p.reduction == "mean" else total


def _in_turns(world: World, loss: Closure, work: Callable[[Closure], None]) -> None:
    """Let one rank after the other do some work, with the loss of all as often as it wants that."""

    def wanted_loss() -> float:
        world.share(True)
        return loss()

    for rank in range(world.size):
        if rank == world.rank:
            work(wanted_loss)
            world.share(False)
        else:
            while any(wants for (wants,) in world.share(False)):
                loss()


def _is_whole(p: Parameter) -> bool:
    return isinstance(p, Sliced)


def _is_part(p: Parameter) -> bool:
    return not isinstance(p, Sliced)
