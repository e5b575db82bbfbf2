"""What an optimizer has come to: all that a load replaces, at one stroke."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optplug import schedules
from optplug.averages import Average
from optplug.errors import StateError
from optplug.stopping import Stop


@dataclass
class Run:
    """The optimizer proper with what steps along, and how far they are."""

    #: Torch's optimizer, built when all its parameters are there.
    built: torch.optim.Optimizer | None = None
    schedulers: list[LRScheduler] = field(default_factory=list)
    #: What the schedulers are made of: specs, and functions of the host's.
    schedules: list[tuple[str, schedules.Function | None]] = field(default_factory=list)
    average: Average | None = None
    stepped: bool = False
    #: How many steps were made, those before a load included.  Who runs a plan adds its steps.
    steps: int = 0
    #: Checksums of the values that the next step should find.
    expected: dict[str, int] = field(default_factory=dict)
    #: What the last step of LBFGS came to.
    stop: Stop | None = None

    def averaged(self) -> Average:
        """Return the average, if there is one.

        Raises:
            StateError: there is none.
        """
        if self.average is None:
            raise StateError("there is no average: call opt_average first")
        return self.average

    def memory(self) -> list[Tensor]:
        """Return all tensors of the state and of the average."""
        states = self.built.state.values() if self.built else ()
        memory = [t for s in states if isinstance(s, dict) for t in s.values() if isinstance(t, Tensor)]
        return memory + (self.average.memory() if self.average else [])
