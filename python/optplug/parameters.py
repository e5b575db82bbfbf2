"""The parameters of one optimizer, in their groups, and the dummy module that has them."""

from __future__ import annotations

import cmath
import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from optplug.errors import NonFiniteError
from optplug.kinds import Dense, Grad, Mastered, Parameter, Sparse, SparseGrad
from optplug.loans import Loans
from optplug.spec import shown


@dataclass
class Group:
    """A parameter group: its options, as the host gave them, and its parameters' names."""

    options: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


class Parameters:
    """All parameters, by the names that the host gave them, in the order of binding.

    Args:
        loans: those of a class outside torch, which does not get the arrays themselves.
    """

    def __init__(self, loans: Loans | None = None) -> None:
        self.loans = loans
        self.groups = [Group()]
        self._all: dict[str, Parameter] = {}
        self._kinds: dict[type[Parameter], list[Parameter]] = {}
        self._masters: list[Mastered] = []
        self._stepped: list[nn.Parameter] = []

    @functools.cached_property
    def module(self) -> nn.ParameterList:
        """The dummy module.  It numbers its parameters, so that their names can be any strings."""
        return nn.ParameterList(self._stepped)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._all.values())

    def __getitem__(self, name: str) -> Parameter:
        return self._all[name]

    def get(self, name: str) -> Parameter | None:
        """Return a parameter, if there is one of that name."""
        return self._all.get(name)

    def names(self) -> list[str]:
        """Return all names."""
        return list(self._all)

    def add(self, parameter: Parameter) -> None:
        """Add one to the last group."""
        self.groups[-1].names.append(parameter.name)
        self._all[parameter.name] = parameter
        self._stepped = [p.tensor for p in self]
        vars(self).pop("module", None)  # which is another one now
        self._kinds.setdefault(type(parameter), []).append(parameter)
        if master := parameter.master():
            self._masters.append(master)
        if self.loans:
            self.loans.put(parameter.name, parameter.tensor)

    def replace(self, parameter: Parameter) -> None:
        """Take a parameter of another kind, in the place of the one of its name."""
        self._all[parameter.name] = parameter
        self._stepped = list(self._stepped)  # for whoever goes by where they are
        self._kinds = {}
        for p in self:
            self._kinds.setdefault(type(p), []).append(p)
        if self.loans:
            self.loans.put(parameter.name, parameter.tensor)

    def names_of(self, group: dict[str, Any]) -> list[str]:
        """Return the names of the parameters in one of an optimizer's groups, which may not be the host's."""
        names = {id(p.tensor): p.name for p in self}
        return [names[id(p)] for p in group["params"] if id(p) in names]

    def options_of(self, name: str) -> dict[str, Any]:
        """Return the options of a parameter's group."""
        return next(group.options for group in self.groups if name in group.names)

    # ---- what a step does ----

    def are_plain(self) -> bool:
        """Tell whether steps work on the host's own arrays on the CPU, dense ones."""
        return list(self._kinds) == [Dense] and not self.gpus()

    def has_sparse(self) -> bool:
        """Tell whether a gradient is sparse, and so a new tensor at each step."""
        return Sparse in self._kinds

    def all_tensors(self) -> Sequence[Tensor]:
        """Return what is stepped, and the host's arrays where those are others."""
        return [*self._stepped, *(p.data for p in self._masters)] if self._masters else self._stepped

    def mastered(self) -> list[Mastered]:
        """Return those that have master copies."""
        return self._masters

    def read(self, is_first: bool) -> None:
        """Let master copies take values before a step: from new arrays, or, before the first, from all."""
        for p in self._masters:
            if is_first or p.is_unread:
                p.read(is_first)

    def gather(self) -> None:
        """Let the next step find the host's gradients."""
        for kind, members in self._kinds.items():
            kind.gather(members)
        if self.loans:
            self.loans.lend()

    def check_finite(self) -> None:
        """Check the host's gradients.

        Raises:
            NonFiniteError: one contains inf or nan.
        """
        for p in self:
            if not _is_finite(p.memory()):
                raise NonFiniteError(f"the gradient of parameter {shown(p.name)} contains inf or nan")

    def publish(self, but: type[Parameter] | None = None) -> None:
        """Write what a step has made into the host's arrays, where it is not there yet; of one kind it is."""
        if self.loans:
            self.loans.take_back()
        for kind, members in self._kinds.items():
            if kind is not but:
                kind.publish(members)

    def gradient_memory(self) -> list[Tensor]:
        """Return the memory of each gradient; of a sparse one, the rows that are there."""
        return [p.memory() for p in self]

    def clippable(self) -> list[Tensor]:
        """Return what torch's clipping takes: parameters, or stand-ins that have the host's gradients."""
        return [found for p in self if (found := p.clippable()) is not None]

    def check_real(self, what: str) -> None:
        """Raise ValueError if a parameter is complex, for which PyTorch has no such function."""
        for p in self:
            if p.tensor.is_complex():
                raise ValueError(f"parameter {shown(p.name)}: {what} is not supported for complex types")

    def as_loss(self, loss: float) -> Tensor:
        """Return a loss as a class outside torch takes it: as one computed from the parameters would be.

        Its ``backward()`` leaves the gradients as the host's closure has set them.
        """
        dtype = torch.float32
        for p in self._stepped:
            dtype = torch.promote_types(dtype, p.abs().dtype if p.is_complex() else p.dtype)
        return torch.tensor(loss, dtype=dtype, device=self._stepped[0].device, requires_grad=True)

    def settle(self) -> None:
        """Let parameters that a class outside torch has moved in between be the host's arrays again."""
        if self.loans:
            self.loans.settle()

    def as_in_a_step(self) -> contextlib.AbstractContextManager[None]:
        """Let the parameters be, in a block, what a class outside torch has made of them."""
        return self.loans.as_in_a_step() if self.loans else contextlib.nullcontext()

    @contextlib.contextmanager
    def as_before(self, on_success: bool = False) -> Iterator[None]:
        """Let a block that fails leave a class outside torch, if it is one, with the memory that it has.

        Values and the parameters' attributes are left as they were, too, which its constructor and its
        ``load_state_dict`` may change.

        Args:
            on_success: whether to leave those of a block that does not fail as well.
        """
        if self.loans is None:
            yield
            return
        attributes = [dict(vars(p)) for p in self._stepped]
        is_made = False
        with self.loans.as_before_on_error(), self.values_as_before(on_success):
            try:
                yield
                is_made = True
            finally:
                if not is_made or on_success:
                    self.forget_attributes()
                    for p, known in zip(self._stepped, attributes, strict=True):
                        vars(p).update(known)

    @contextlib.contextmanager
    def values_as_before(self, on_success: bool = True) -> Iterator[None]:
        """Leave all values as they were after a block that fails, or after any."""
        memory = [p.data.detach() for p in self if self.loans and not p.is_staged]
        memory += [p.tensor.detach() for p in self.mastered() if self.loans]
        before = [t.clone() for t in memory]
        is_made = False
        try:
            yield
            is_made = True
        finally:
            if not is_made or on_success:
                for t, values in zip(memory, before, strict=True):
                    t.copy_(values)

    def forget_attributes(self) -> None:
        """Take away the attributes that a class outside torch has set."""
        for p in self._stepped:
            vars(p).clear()

    # ---- what they are ----

    def gpus(self) -> set[int]:
        """Return those on which parameters are."""
        return {p.device.index for p in self._stepped if p.is_cuda}

    def arrays(self) -> list[tuple[Tensor, Grad]]:
        """Return what is stepped, and the gradient's kind with it."""
        return [(p.tensor, p.grad if isinstance(p, Sparse) else p.stepped_memory()) for p in self]

    def kinds_of(self, names: Sequence[str]) -> list[tuple[Tensor | None, bool]]:
        """Return one of each kind among parameters, and whether its gradient is sparse."""
        bound = [(self._all[name].tensor, isinstance(self._all[name], Sparse)) for name in names]
        kinds = {(p.dtype, p.dim(), p.device, sparse): (p, sparse) for p, sparse in bound}
        return list(kinds.values()) or [(None, False)]

    def read_by_steps(self) -> dict[str, Tensor]:
        """Return the host's arrays from whose values the next step goes on."""
        return {p.name: p.data for p in self if p.is_read and not p.is_staged}


def make(name: str, data: Tensor, grad: Grad, has_master: bool) -> Parameter:
    """Return a parameter of the kind that these arrays want."""
    if isinstance(grad, SparseGrad):
        return Sparse(name, nn.Parameter(data), grad)
    if has_master:
        return Mastered(name, data, grad)
    parameter = Dense(name, nn.Parameter(data))
    parameter.tensor.grad = grad
    return parameter


def again(known: Parameter, data: Tensor, grad: Grad) -> Parameter:
    """Return a parameter that is known as one of these arrays, whose gradient may be of another kind."""
    if isinstance(grad, SparseGrad) == isinstance(known, Sparse):
        known.move(data, grad)
        return known
    changed: Parameter
    if isinstance(grad, SparseGrad):
        changed = Sparse(known.name, known.tensor, grad)
    else:
        changed = Dense(known.name, known.tensor)
    changed.move(data, grad)
    return changed


def _is_finite(tensor: Tensor) -> bool:
    # An inf or a nan makes the sum one, at a fraction of the cost of asking each value; a sum may also
    # be too large by itself.
    return cmath.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
