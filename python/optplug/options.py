"""Options that a host gives as text, ``"name=value, name=value"``: those of opt_init and opt_checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from optplug import spec
from optplug.log import LEVELS
from optplug.spec import shown

_MOST_SEED = 2**32 - 1  # numpy's
_MOST_TIMEOUT = 10**6  # seconds: eleven days


def _read(text: str, names: Iterable[str]) -> dict[str, Any]:
    """Return what a text says of options by these names."""
    given = spec.arguments(text)
    for name in given:
        spec.check_name(name, names, "option")
    return given


def _blame(text: str, error: ValueError) -> ValueError:
    return ValueError(f"options {shown(text)}: {error}")


def _check_bool(name: str, value: Any, *others: str) -> None:
    if type(value) is not bool and value not in others:
        more = "".join(f" or {other!r}" for other in others)
        raise ValueError(f"{name} must be True or False{more}, got {shown(value)}")


def _packages(value: Any) -> bool | tuple[str, ...]:
    """Return what third_party says: True, False, or names of packages."""
    if type(value) is bool:
        return value
    names = tuple(value) if type(value) in (list, tuple) else ()
    if not names or not all(type(n) is str and all(map(str.isidentifier, n.split("."))) for n in names):
        raise ValueError(
            "third_party must be True, False or a list of packages, as in ['pytorch_optimizer'], "
            f"got {shown(value)}"
        )
    return names


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """What a host has chosen for an optimizer's checkpoints, by opt_checkpoint."""

    #: Whether a checkpoint has the parameters' values in it, and loading puts those into the host's arrays.
    parameters: bool = False
    #: Whether loading brings schedulers, and the hyperparameters that they set.
    schedules: bool = True

    def changed(self, text: str) -> CheckpointOptions:
        """Return these options with those in a text changed.

        Raises:
            ValueError: it cannot be read, or there is no such option or value.
        """
        try:
            given = _read(text, vars(self))
            for name, value in given.items():
                _check_bool(name, value)
        except ValueError as error:
            raise _blame(text, error) from error
        return dataclasses.replace(self, **given)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items())


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """What opt_init has said of the optimizers that are created from now on."""

    #: Whether specs may name classes outside torch.optim, or of which packages they may.
    third_party: bool | tuple[str, ...] = False
    error_if_nonfinite: bool = False
    plans: bool | str = True
    sqrt: str = "torch"
    master_weights: bool = False
    #: Whether ranks compare each call that all of them make.
    check_ranks: bool = False
    #: What the random numbers of classes outside torch.optim begin with.
    seed: int = 0
    #: Whether a step of such a class that fails is undone.
    undo: bool = True
    #: Seconds for which ranks of torch.distributed wait for each other.
    timeout: float = 300

    def arguments(self, can_plan: bool) -> dict[str, Any]:
        """Return those of `HostedOptimizer` that say the same, where steps can be made by plans or cannot."""
        plans = can_plan and self.plans
        renamed = {**vars(self), "makes_plans": plans, "rounds_sqrt": self.sqrt == "processor"}
        return {name: value for name, value in renamed.items() if name not in ("plans", "sqrt")}


@dataclasses.dataclass(frozen=True)
class InitOptions:
    """What one opt_init says: of later optimizers, and of the process where it does."""

    optimizers: OptimizerOptions
    num_threads: int | None
    #: The level of the host's log.
    log: int | None


def read_init(text: str, before: OptimizerOptions) -> InitOptions:
    """Return what opt_init's text says, where `before` holds for what it leaves out.

    Raises:
        ValueError: it cannot be read, or there is no such option or value.
    """
    try:
        given = spec.arguments(text)
        if "save_parameters" in given:
            raise ValueError(
                "save_parameters is set for each optimizer: call "
                f'opt_checkpoint(opt, "parameters={given["save_parameters"]}")'
            )
        if "compile" in given:
            raise ValueError(
                "compile has been removed: steps bypass Python without a compiler and match PyTorch bit for "
                "bit; sqrt='processor' makes steps of long arrays faster, with other last bits"
            )
        given = _read(text, ("python", "num_threads", "log", *vars(before)))
    except ValueError as error:
        raise _blame(text.strip(" ,"), error) from error
    threads, most = given.get("num_threads", 1), os.cpu_count() or 1
    if type(threads) is not int or not 1 <= threads <= most:
        raise ValueError(f"num_threads must be a whole number from 1 to {most}, got {shown(threads)}")
    chosen = {name: value for name, value in given.items() if name in vars(before)}
    for name, value in chosen.items():
        if name == "third_party":
            chosen[name] = _packages(value)
        elif name == "seed":
            if type(value) is not int or not 0 <= value <= _MOST_SEED:
                raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {shown(value)}")
        elif name == "timeout":
            if type(value) not in (int, float) or not 0 < value <= _MOST_TIMEOUT:
                raise ValueError(f"timeout must be seconds from 0 to {_MOST_TIMEOUT}, got {shown(value)}")
        elif name != "sqrt":
            _check_bool(name, value, *(("stable", "direct") if name == "plans" else ()))
        elif value not in ("torch", "processor"):
            raise ValueError(f"sqrt must be 'torch' or 'processor', got {shown(value)}")
    level = given.get("log", False)
    if level is True or not isinstance(level, bool | str) or level not in LEVELS:
        raise ValueError(f"log must be 'info', 'debug' or False, got {shown(level)}")
    return InitOptions(
        dataclasses.replace(before, **chosen),
        threads if "num_threads" in given else None,
        LEVELS[level] if "log" in given else None,
    )
