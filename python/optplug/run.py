"""What an optimizer has come to: all that a load replaces, at one stroke."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optplug import schedules
from optplug.averages import Average


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

    def state_memory(self) -> list[Tensor]:
        """Return the tensors of the optimizer's state."""
        states = self.built.state.values() if self.built else ()
        return [t for s in states if isinstance(s, dict) for t in s.values() if isinstance(t, Tensor)]
