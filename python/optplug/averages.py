"""Averages of the weights, as torch.optim.swa_utils makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from optplug import spec
from optplug.arguments import blame, check_kinds, said
from optplug.checks import check_count, check_tensor
from optplug.errors import StateError
from optplug.known import is_known
from optplug.recorder import Record
from optplug.spec import Call, SpecError, shown
from optplug.torch_private import foreach_copy_

#: Whether torch's update is the one that `Average.update_one` makes for one parameter.
IS_KNOWN = is_known(swa_utils.AveragedModel.update_parameters)
# What AveragedModel takes for its avg_fn and multi_avg_fn.
_FUNCTIONS = ("get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn", "get_swa_multi_avg_fn")
_EMA = "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))"
_HINT = f"write 'AveragedModel()' for equal weights, or {_EMA!r} for an exponential average"


class Average:
    """A running average of a module's parameters.

    Args:
        text: ``"AveragedModel()"``, or with what swa_utils offers for its arguments:
            ``"AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))"``.
        module: whose parameters are averaged.

    Raises:
        ValueError: the spec names something else, or PyTorch refuses an argument.
    """

    def __init__(self, text: str, module: nn.Module) -> None:
        try:
            call = _read(text)
            arguments = spec.check_arguments(swa_utils.AveragedModel, call, {"model"})
            if "device" in arguments:
                raise SpecError(
                    f"device={shown(arguments['device'])}: the average is on the parameters' device: {_HINT}"
                )
            made: dict[str, Any] = {name: _argument(name, value) for name, value in arguments.items()}
            check_kinds(swa_utils.AveragedModel, arguments)

            def attempt(names: Iterable[str]) -> None:
                stand_in = nn.ParameterList([torch.zeros(1)])  # nn.Linear would draw random numbers
                trial = swa_utils.AveragedModel(stand_in, **{name: made[name] for name in names})
                for _ in range(2):  # the first update copies, the second averages
                    trial.update_parameters(stand_in)

            try:
                attempt(arguments)
            except Exception as error:
                raise SpecError(blame(error, swa_utils.AveragedModel, arguments, attempt)) from error
            self._averaged = swa_utils.AveragedModel(module, **made)
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {said(error)}") from error
        self.text = text
        #: Whether the averages stand where the parameters were, and the other way round.
        self.swapped = False
        #: What an update comes down to, by dtype and default dtype; None if it has no record.
        self.records: dict[tuple[torch.dtype, bool, torch.dtype], Record | None] = {}

    def update(self, module: nn.Module) -> None:
        """Take the parameters as they are now into the average."""
        if IS_KNOWN and any(p.is_cuda for p in module.parameters()):
            self._update_on_gpu([p.detach() for p in module.parameters()])
        else:
            self._averaged.update_parameters(module)

    def _update_on_gpu(self, current: list[Tensor]) -> None:
        """Do what ``update_parameters`` does with the count where it is, on the CPU.

        Torch's own copies that to the GPU and back, and waits for both.
        """
        averaged, count = [p.detach() for p in self._averaged.parameters()], self._averaged.n_averaged
        if not count:
            foreach_copy_(averaged, current)
        elif self._averaged.avg_fn and not self._averaged.multi_avg_fn:
            for average, value in zip(averaged, current, strict=True):
                self.update_one(average, value, count)
        else:
            (self._averaged.multi_avg_fn or swa_utils.get_swa_multi_avg_fn())(averaged, current, count)
        count += 1

    def update_one(self, averaged: Tensor, current: Tensor, count: Tensor) -> None:
        """Do what an update does to one parameter on the CPU, of which ``count`` were made, one or more."""
        if self._averaged.multi_avg_fn:
            self._averaged.multi_avg_fn([averaged], [current], count)
        else:
            averaged.copy_((self._averaged.avg_fn or swa_utils.get_swa_avg_fn())(averaged, current, count))

    def count(self) -> Tensor:
        """Return how many steps are in the average: a tensor that an update adds to."""
        return self._averaged.n_averaged

    def like(self, averaged: Tensor) -> Average:
        """Return an average of one parameter, of this kind, which is ``averaged`` after a first step."""
        other = Average(self.text, nn.ParameterList([averaged.clone()]))
        other.count().fill_(1)
        return other

    def read(self, index: int) -> Tensor:
        """Return the average of the parameter of that index."""
        self._check()
        if self.swapped:
            raise StateError("the averages are swapped in: call opt_average_swap again first")
        return list(self._averaged.parameters())[index].detach()

    def memory(self) -> list[Tensor]:
        """Return all tensors that are large."""
        return [p.detach() for p in self._averaged.parameters()]

    def state_dict(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the averages, by the parameters' names, and how many steps are in them."""
        values = (p.detach() for p in self._averaged.parameters())
        return {
            "spec": self.text,
            "n_averaged": int(self._averaged.n_averaged),
            "values": dict(zip(names, values, strict=True)),
        }

    def load_state_dict(self, names: Iterable[str], state: dict[str, Any]) -> None:
        """Take over what `state_dict` has returned.

        Raises:
            ValueError: it is of other parameters, or none.
        """
        values, count = (
            state["values"],
            check_count("the number of steps in the average", state["n_averaged"]),
        )
        for name, p in zip(names, self._averaged.parameters(), strict=True):
            check_tensor(f"the average of parameter {shown(name)}", values[name], p.dtype, p.shape)
        for name, p in zip(names, self._averaged.parameters(), strict=True):
            p.data.copy_(values[name].tensor())
        self._averaged.n_averaged.fill_(count)

    def swapping(self, module: nn.Module) -> Callable[[], None]:
        """Return what exchanges the parameters' values with the averages', in place; again: back."""
        self._check()
        values = [p.data.clone() for p in module.parameters()]  # while nothing has changed

        def swap() -> None:
            for p, average, value in zip(
                module.parameters(), self._averaged.parameters(), values, strict=True
            ):
                p.data.copy_(average.data)
                average.data.copy_(value)
            self.swapped = not self.swapped

        return swap

    def _check(self) -> None:
        if not self._averaged.n_averaged:
            raise StateError("no step has been averaged yet: opt_average averages the steps that follow it")


def _read(text: str) -> Call:
    if text.strip().isidentifier():
        raise SpecError(_HINT)
    call = spec.parse(text)
    if call.name != "AveragedModel":
        spec.check_is_torchs(call, "averages", _HINT)
        raise SpecError(f"no average {shown(call.name)}: {_HINT}")
    if "decay" in call.kwargs:
        raise SpecError(f"no argument 'decay': {_HINT}")
    spec.check_module(call, swa_utils.__name__)
    return call


def _argument(name: str, value: object) -> object:
    if not isinstance(value, Call):
        if name in ("avg_fn", "multi_avg_fn") and value is not None:
            raise SpecError(
                f"{name} must be one of {', '.join(f + '()' for f in _FUNCTIONS)}, got {shown(value)}"
            )
        return value
    spec.check_name(value.name, _FUNCTIONS, "averaging function")
    spec.check_module(value, swa_utils.__name__)
    function = getattr(swa_utils, value.name)
    arguments = spec.check_arguments(function, value)
    check_kinds(function, arguments)

    def attempt(arguments: dict[str, Any]) -> object:
        return function(**arguments)

    try:
        return attempt(arguments)
    except Exception as error:
        raise SpecError(f"{value.name}: {blame(error, function, arguments, attempt)}") from error
