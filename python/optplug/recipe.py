"""What a spec says: a class, its arguments, and what optimizers made so can do."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optplug import methods, spec
from optplug.arguments import check_kinds
from optplug.buffers import is_dense, same_order
from optplug.errors import warn
from optplug.kinds import Grad
from optplug.lean import lean
from optplug.spec import Call, SpecError, shown
from optplug.torch_private import grad_mode

#: Torch's implementations of a step: no hyperparameters, but in the groups beside them.
IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")
# Where torch's foreach implementation gives the very bits of its loop over parameters, which is its default
# on the CPU, in float32 and float64; and for how many parameters, of how many values, it is faster.
_FOREACH_IS_EQUAL = {
    lean(getattr(torch.optim, name))
    for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "RMSprop", "Rprop", "SGD")
}
_WORTH_FOREACH, _MOST_FOR_FOREACH = 8, 10_000


@functools.cache
def classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimizers of torch by name, each made `lean`."""
    return {
        name: lean(value)  # type: ignore[arg-type]
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }


@dataclass(frozen=True)
class Recipe:
    """A class and its arguments, as a spec has them; see `read`."""

    class_: type[torch.optim.Optimizer]
    arguments: dict[str, Any]
    #: Whether a step wants a closure.
    needs_closure: bool
    #: Whether it is of torch.optim.
    is_torchs: bool
    #: Whether the spec says fused=True; whether fused kernels may be chosen, since it says nothing.
    must_fuse: bool
    may_fuse: bool

    @property
    def name(self) -> str:
        """The class's name."""
        return self.class_.__name__

    @property
    def is_lbfgs(self) -> bool:
        """Whether it puts all gradients into a row, and keeps one state for all parameters."""
        return issubclass(self.class_, torch.optim.LBFGS)

    def warn_of_unknown(self, names: Iterable[str]) -> None:
        """Warn of options that are no arguments of a class outside torch, and that nothing there mentions."""
        for name in names:
            is_argument = name in spec.signature_of(self.class_).parameters  # type: ignore[arg-type]
            if not (self.is_torchs or is_argument or _mentions(self.class_, name)):
                warn(f"option {shown(name)}: nothing in {self.class_.__module__} mentions it")

    def chosen(self) -> list[str]:
        """Return what the spec says of torch's implementations."""
        return [f"{name}={self.arguments[name]}" for name in IMPLEMENTATIONS if name in self.arguments]

    def build(
        self, groups: list[dict[str, Any]], arguments: dict[str, Any] | None = None
    ) -> torch.optim.Optimizer:
        """Return an optimizer with groups of named parameters, as torch takes them.

        A class outside torch gets them as most programs give them, without names, and as a mere list where
        that is all and it takes one.  It is left in training mode, if it has one.

        Args:
            groups: each with its options.
            arguments: others than the spec's.
        """
        arguments = self.arguments if arguments is None else arguments
        if self.is_torchs:
            return self.class_(groups, **arguments)
        unnamed = [{**group, "params": [p for _, p in group["params"]]} for group in groups]
        try:
            is_list = len(unnamed) == 1 and len(unnamed[0]) == 1
            made = self.class_(unnamed[0]["params"] if is_list else unnamed, **copy.deepcopy(arguments))
        except Exception:
            made = self.class_(unnamed, **copy.deepcopy(arguments))
        names = {id(p): name for group in groups for name, p in group["params"]}
        for group in made.param_groups:
            group["param_names"] = [names.get(id(p), "") for p in group["params"]]
        methods.begin(made)
        return made

    def can_fuse(self, data: Tensor, grad: Grad) -> bool:
        """Tell whether the fused kernels step these arrays rightly.

        They run over both as if flat: where the layouts differ or have gaps, those for the CPU give wrong
        numbers and write outside of the array (torch 2.13), without an error.
        """
        return (
            isinstance(grad, Tensor)
            and data.is_floating_point()
            and is_dense(data.shape, data.stride())
            and same_order(data.shape, data.stride(), grad.stride())
            and fuses_rightly(self.class_, data.dtype, data.device.type)  # type: ignore[arg-type]
        )

    def implementation(self, arrays: Iterable[tuple[Tensor, Grad]]) -> dict[str, Any]:
        """Choose among torch's implementations, where the spec does not, by what has been measured.

        Args:
            arrays: those that are stepped.
        """
        arrays = list(arrays)
        if self.may_fuse and all(self.can_fuse(data, grad) for data, grad in arrays):
            return {"fused": True}
        if self.class_ not in _FOREACH_IS_EQUAL or self.chosen():
            return {}
        if any(data.is_cuda for data, _ in arrays):  # where foreach is torch's own default
            return {}
        count, size = len(arrays), sum(data.numel() for data, _ in arrays)
        small = count >= _WORTH_FOREACH and size <= count * _MOST_FOR_FOREACH
        equal = all(
            data.dtype in (torch.float32, torch.float64) and isinstance(grad, Tensor) for data, grad in arrays
        )
        return {"foreach": True} if small and equal else {}


@functools.cache
def fuses_rightly(class_: type[torch.optim.Optimizer], dtype: torch.dtype, device: str) -> bool:
    """Tell whether the fused kernels of a class step numbers of a dtype, by trying that out.

    That of SGD for the CPU in torch 2.13 leaves half-precision numbers as they are, 16 by 16, without an
    error.  On a GPU, where to look at the numbers would wait for it, only whether there are any is tried.
    """

    def step(fused: bool) -> Tensor:
        parameter = nn.Parameter(torch.ones(100, dtype=dtype, device=device))
        parameter.grad = torch.ones_like(parameter)
        optimizer = class_([parameter], lr=0.5, fused=fused)  # type: ignore[call-arg]
        with grad_mode(False):
            inspect.unwrap(class_.step)(optimizer)  # without hooks, which are for the host's steps
        return parameter.detach()

    if device == "cpu":
        return torch.allclose(step(False), step(True), rtol=0.05)
    try:
        step(True)
    except RuntimeError:
        return False
    return True


def _mentions(class_: type, name: str) -> bool:
    """Tell whether the modules of a class outside torch, and of its bases, have a name in quotes."""
    modules = {base.__module__ for base in class_.__mro__}
    for module in (m for m in modules if not m.startswith(("torch.", "builtins"))):
        try:
            source = inspect.getsource(sys.modules[module])
        except (OSError, TypeError):
            return True  # nobody can tell
        if re.search(rf"""['"]{re.escape(name)}['"]""", source):
            return True
    return False


def read(text: str, third_party: bool | tuple[str, ...]) -> Recipe:
    """Read a spec; see `OptimizerOptions` for what classes outside torch it may name.

    Raises:
        ValueError: it cannot be read, names no optimizer, or has an argument of a wrong kind.
    """
    known = _read(text, third_party)
    return dataclasses.replace(known, arguments=copy.deepcopy(known.arguments))


@functools.lru_cache(maxsize=100)
def _read(text: str, third_party: bool | tuple[str, ...]) -> Recipe:
    call = spec.parse(text)
    class_ = _find_class(call, third_party)
    arguments = spec.check_arguments(class_, call, implied=1)
    check_kinds(class_, arguments)
    for name, value in arguments.items():
        if _has_call(value):
            raise SpecError(f"{name} must be a literal (a number, True, a tuple, ...), got {shown(value)}")
    closure = spec.signature_of(class_.step).parameters.get("closure")
    is_torchs = class_ in classes().values()
    return Recipe(
        class_,
        arguments,
        needs_closure=closure is not None and closure.default is closure.empty,
        is_torchs=is_torchs,
        must_fuse=is_torchs and bool(arguments.get("fused")),
        may_fuse=is_torchs
        and "fused" in spec.signature_of(class_).parameters  # type: ignore[arg-type]
        and not any(name in arguments for name in IMPLEMENTATIONS),
    )


def _has_call(value: Any) -> bool:
    """Tell whether a value of a spec is a call, or has one in it."""
    if isinstance(value, dict):
        return any(_has_call(v) for pair in value.items() for v in pair)
    return isinstance(value, Call) or (isinstance(value, list | tuple) and any(map(_has_call, value)))


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _find_class(call: Call, third_party: bool | tuple[str, ...]) -> type[torch.optim.Optimizer]:
    if call.module in ("", *spec.MODULES):
        spec.check_name(call.name, classes(), "optimizer")
        spec.check_module(call, "torch.optim")
        return classes()[call.name]
    if not third_party:
        raise SpecError(
            f"module {shown(call.module)} is outside torch.optim and would be imported: allow that with "
            'opt_init("third_party=True")'
        )
    if isinstance(third_party, tuple) and not any(_is_within(call.module, name) for name in third_party):
        allowed = [*third_party, call.module.partition(".")[0]]
        raise SpecError(
            f"module {shown(call.module)} is in no package that may be imported: allow that with "
            f'opt_init("third_party={allowed}")'
        )
    try:
        found = getattr(importlib.import_module(call.module), call.name)
    except Exception as error:
        raise SpecError(f"{call.module}:{call.name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SpecError(f"{call.module}:{call.name} is not a torch.optim.Optimizer")
    return found
