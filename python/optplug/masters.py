"""Master copies: a host's parameters in half precision, which are stepped in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optplug.checks import check_tensor
from optplug.lean import Gradients
from optplug.spec import shown

#: The dtypes that have them.
DTYPES = (torch.float16, torch.bfloat16)


@dataclass
class Master:
    """A parameter in float32, and the host's arrays that it stands for."""

    parameter: nn.Parameter
    data: Tensor
    grad: Tensor


def parameter(data: Tensor) -> nn.Parameter:
    """Return a parameter for a host's array, whose values are still to be read, and for its gradient."""
    result = nn.Parameter(torch.zeros_like(data, dtype=torch.float32))  # without gaps, whatever data has
    result.grad = torch.zeros_like(result)
    return result


class Masters:
    """All master copies of an optimizer, by the parameters' names."""

    def __init__(self) -> None:
        self._all: dict[str, Master] = {}
        self._unread: dict[str, bool] = {}  # arrays that are new, and whether the master's values were there

    def put(self, name: str, parameter: nn.Parameter, data: Tensor, grad: Tensor) -> None:
        """Add one, for a parameter that `parameter` has made."""
        self._all[name] = Master(parameter, data, grad)
        self._unread[name] = False

    def move(self, name: str, data: Tensor, grad: Tensor) -> None:
        """Take other arrays."""
        self._all[name] = Master(self._all[name].parameter, data, grad)
        self._unread.setdefault(name, True)

    def read_values(self, is_first: bool) -> None:
        """Take values from arrays that are new, before a step; before the first one from all.

        Where arrays have been moved, the masters are kept that have the same values, rounded.
        """
        with Gradients(False):
            for name in self._all if is_first else self._unread:
                m = self._all[name]
                values = m.data.to(torch.float32)
                if self._unread.get(name) and not is_first:
                    same = m.data == m.parameter.to(m.data.dtype)
                    values = torch.where(same, m.parameter, values)
                m.parameter.copy_(values)
        self._unread.clear()

    def get(self, name: str) -> Master | None:
        """Return one, if the parameter has one."""
        return self._all.get(name)

    def take_gradients(self) -> None:
        """Read all gradients from the host's arrays."""
        if self._all:
            with Gradients(False):
                torch._foreach_copy_(*self.gradients())

    def give_values(self) -> None:
        """Write all parameters, rounded, into the host's arrays."""
        if self._all:
            with Gradients(False):
                torch._foreach_copy_(*self.values())

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients in float32, and the host's."""
        return [m.parameter.grad for m in self._all.values()], [m.grad for m in self._all.values()]

    def values(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the host's parameters, and those in float32."""
        return [m.data for m in self._all.values()], [m.parameter for m in self._all.values()]

    def memory(self) -> list[Tensor]:
        """Return all tensors that are not the host's."""
        return [t for m in self._all.values() for t in (m.parameter.detach(), m.parameter.grad)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters in float32, by name."""
        return {name: m.parameter.detach() for name, m in self._all.items()}

    def read(self, saved: Any) -> dict[str, Tensor]:
        """Check what `state_dict` has returned once against what is here, and read it.

        Raises:
            ValueError: it has others.
        """
        if not isinstance(saved, dict):
            raise ValueError("it is no checkpoint: its masters are none")
        for name in self._all:
            if name not in saved:
                raise ValueError(
                    f"it has no master copy of parameter {shown(name)}: it was saved without "
                    'opt_init("master_weights=True")'
                )
        for name in saved:
            if name not in self._all:
                raise ValueError(
                    f"it has a master copy of parameter {shown(name)}, and here is none: "
                    'call opt_init("master_weights=True") before opt_create'
                )
        found = {
            name: check_tensor(
                f"its master copy of parameter {shown(name)}", saved[name], torch.float32, m.parameter.shape
            )
            for name, m in self._all.items()
        }
        return {name: value.tensor() for name, value in found.items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Take over what `read` has returned."""
        with Gradients(False):
            for name, m in self._all.items():
                m.parameter.copy_(saved[name])
        self._unread.clear()
