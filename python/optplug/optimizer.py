"""One torch.optim optimizer over the parameters of a dummy module.  Plain torch: knows no C."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from optplug import spec
from optplug.buffers import is_dense, same_order
from optplug.spec import Call, SpecError, shown

# A spec that names one of these has chosen an implementation; otherwise fused is taken where it is safe.
_IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")

# What an optimizer is built on before anything is bound; of two dimensions, since Muon takes no others.
_NOTHING_YET = [("", nn.Parameter(torch.empty(0, 0)))]


class StateError(RuntimeError):
    """A call at the wrong moment, such as a step with nothing bound."""


class Optimizer:
    """A ``torch.optim`` optimizer that is lent its parameters one by one.

    Args:
        text: the spec, ``"Adam(lr=1e-3)"``: see `optplug.spec`.
        third_party: whether the spec may name a class outside ``torch.optim``, with its module.

    Raises:
        ValueError: the spec cannot be read, names no optimizer, or PyTorch refuses a hyperparameter.
    """

    def __init__(self, text: str, third_party: bool = False) -> None:
        #: The dummy module.  It numbers its parameters, so that their names can be any strings.
        self.module = nn.ParameterList()
        #: The same parameters by the names that the host gave them.
        self.parameters: dict[str, nn.Parameter] = {}
        #: The optimizer proper, built at the first step, when all its parameters are there.
        self.torch: torch.optim.Optimizer | None = None
        try:
            call = spec.parse(text)
            self._class = _find_class(call, third_party)
            self._arguments = spec.check_arguments(self._class, call, implied=1)
            self._must_fuse = self._arguments.get("fused") is True
            self._may_fuse = "fused" in inspect.signature(self._class).parameters and not any(
                name in self._arguments for name in _IMPLEMENTATIONS
            )
            self._build(_NOTHING_YET)  # PyTorch checks the hyperparameters
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {error}") from error

    def bind(self, name: str, data: Tensor, grad: Tensor) -> None:
        """Take ``data`` and ``grad`` as those of the parameter ``name``; move it if it is known.

        Raises:
            ValueError: another shape or dtype than before, or a layout that the spec's ``fused=True``
                cannot step, or a parameter that PyTorch's optimizer refuses.
            StateError: a new name after the first step.
        """
        if self._must_fuse and not _can_fuse(data, grad):
            raise ValueError(
                f"parameter {shown(name)}: with fused=True data and grad must be real, without gaps and "
                f"of one layout, got {data.dtype} with strides {data.stride()} and {grad.stride()}: "
                "leave fused out"
            )
        known = self.parameters.get(name)
        if known is not None:
            self._move(name, known, data, grad)
        elif self.torch is not None:
            raise StateError(
                f"name {shown(name)} is new after the first step: bind every parameter before it"
            )
        else:
            parameter = nn.Parameter(data)
            parameter.grad = grad
            try:
                self._build([(name, parameter)])  # to hear what PyTorch says of it
            except Exception as error:
                raise ValueError(f"parameter {shown(name)}: {error}") from error
            self.parameters[name] = parameter
            self.module.append(parameter)

    def step(self) -> None:
        """Make one step.

        Raises:
            StateError: nothing is bound.
        """
        if self.torch is None:
            if not self.parameters:
                raise StateError("nothing is bound: call opt_bind before opt_step")
            self.torch = self._build(self.parameters.items())
        self.torch.step()

    def describe(self) -> str:
        """Return what the optimizer is and what it works on, a ``name: value`` a line."""
        optimizer = self.torch or self._build(self.parameters.items() or _NOTHING_YET)
        lines = [f"optimizer: {self._class.__name__}"]
        for i, group in enumerate(optimizer.param_groups):
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            lines.append(f"group {i}: {', '.join(f'{k}={v!r}' for k, v in options.items())}")
        for name, p in self.parameters.items():
            dtype = str(p.dtype).removeprefix("torch.")
            lines.append(
                f"parameter {name!r}: {dtype}, {p.device}, shape {tuple(p.shape)}, strides {p.stride()}, "
                f"gradient's {p.grad.stride()}"
            )
        return "".join(line + "\n" for line in lines)

    def _build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        named = list(named)
        fuse = self._may_fuse and all(p.grad is None or _can_fuse(p, p.grad) for _, p in named)
        return self._class(named, **self._arguments, **({"fused": True} if fuse else {}))

    def _move(self, name: str, parameter: nn.Parameter, data: Tensor, grad: Tensor) -> None:
        for what, old, new in (
            ("shape", tuple(parameter.shape), tuple(data.shape)),
            ("dtype", parameter.dtype, data.dtype),
            ("device", parameter.device, data.device),
        ):
            if old != new:
                raise ValueError(f"name {shown(name)} is bound with {what} {old}, got {new}")
        # The Parameter object stays: it is what the optimizer knows its state by.
        parameter.data = data
        parameter.grad = grad
        if self.torch is None:
            return
        if self._may_fuse and not _can_fuse(data, grad):
            for group in self.torch.param_groups:
                group["fused"] = None
        # The fused kernels take the state to lie as the parameter does.
        state = self.torch.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == data.shape and value.stride() != data.stride():
                state[key] = torch.empty_like(data, dtype=value.dtype).copy_(value)


def _can_fuse(data: Tensor, grad: Tensor) -> bool:
    """Tell whether the fused CPU kernels step these arrays rightly.

    They run over both as if flat: where the layouts differ or have gaps they give wrong numbers and
    write outside of the array (torch 2.13), without an error.
    """
    return (
        data.is_floating_point()
        and is_dense(data.shape, data.stride())
        and same_order(data.shape, data.stride(), grad.stride())
    )


def _find_class(call: Call, third_party: bool) -> type[torch.optim.Optimizer]:
    if call.module in ("", "torch.optim"):
        known = {
            name
            for name, value in vars(torch.optim).items()
            if isinstance(value, type)
            and issubclass(value, torch.optim.Optimizer)
            and value is not torch.optim.Optimizer
        }
        spec.choose(call.name, known, "optimizer")
        return getattr(torch.optim, call.name)
    if not third_party:
        raise SpecError(
            f"module {shown(call.module)} is outside torch.optim and would be imported: allow that with "
            'opt_init("third_party=True")'
        )
    try:
        found = getattr(importlib.import_module(call.module), call.name)
    except Exception as error:
        raise SpecError(f"{call.module}:{call.name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SpecError(f"{call.module}:{call.name} is no torch.optim.Optimizer")
    return found
