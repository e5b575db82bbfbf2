"""The kinds of parameters: with dense gradients, with sparse ones, and with master copies in float32.

Each knows the host's arrays, and what torch steps for them.  What a step does to all parameters of a kind,
`gather` before it and `publish` after it, is done to all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optplug.buffers import layout_of
from optplug.spec import shown
from optplug.torch_private import foreach_copy_, grad_mode, nnz

#: The dtypes for which there are master copies.
HALF = (torch.float16, torch.bfloat16)


@dataclass
class SparseGrad:
    """A gradient that is zero but for some rows: ``values[i]`` belongs to row ``indices[i]``.

    The first ``count`` of them are there; rows that come twice are added up, as torch's ``coalesce`` does.
    """

    count: Tensor
    indices: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        self._count = self.count.numpy()
        self._unsigned = self.indices.numpy().view("uint64")  # where a negative index is a huge one
        self._tensor: Tensor | None = None

    def _checked_count(self, name: str, limit: int) -> int:
        count, capacity = int(self._count), len(self._unsigned)
        if not 0 <= count <= capacity:
            raise ValueError(f"count of parameter {shown(name)} must be 0 to {capacity}, got {count}")
        if count and self._unsigned[:count].max() >= limit:
            indices = self.indices[:count]
            wrong = int(indices.min()) if indices.min() < 0 else int(indices.max())
            raise ValueError(f"indices of parameter {shown(name)} must be 0 to {limit - 1}, got {wrong}")
        return count

    def rows(self, name: str, limit: int) -> Tensor:
        """Return the values that are there now, their indices checked: ``name`` is for errors."""
        return self.values[: self._checked_count(name, limit)]

    def tensor(self, name: str, shape: torch.Size) -> Tensor:
        """Return the gradient as torch has it: the same tensor as before, while its rows are as many."""
        count = self._checked_count(name, shape[0])
        if self._tensor is None or nnz(self._tensor) != count:
            indices, values = self.indices[:count].unsqueeze(0), self.values[:count]
            self._tensor = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
        return self._tensor

    def __str__(self) -> str:
        return f"up to {len(self.indices)} sparse rows"


#: A host's gradient.
Grad = Tensor | SparseGrad


def some_gradient(p: Tensor) -> Tensor:
    """Return a gradient to try a class with: some take the mean of a row away, and divide by what is left."""
    rising = torch.arange(p.numel(), device=p.device).view(p.shape) / (p.numel() or 1)
    return torch.ones_like(p).add_(rising.to(p.dtype))


def layout(array: Grad) -> str:
    """Say what an array is, for people."""
    return str(array) if isinstance(array, SparseGrad) else layout_of(array)


class Parameter:
    """One parameter.  The methods of this class are those of dense gradients, `Dense`."""

    #: Whether a step reads the host's values.
    is_read = True
    #: What describe says besides.
    note = ""

    def __init__(self, name: str, tensor: nn.Parameter) -> None:
        #: The name that the host gave it.
        self.name = name
        #: What the optimizer steps, and knows its state by: the same object for good.
        self.tensor = tensor
        #: Whether its values come with each step, and are nowhere in between.
        self.is_staged = False

    @property
    def data(self) -> Tensor:
        """The host's values."""
        return self.tensor

    @property
    def grad(self) -> Grad:
        """The host's gradient."""
        return self._dense()

    def _dense(self) -> Tensor:
        assert self.tensor.grad is not None
        return self.tensor.grad

    def memory(self) -> Tensor:
        """Return the memory of the host's gradient, as far as it is in use now."""
        return self._dense()

    def stepped_memory(self) -> Tensor:
        """Return the memory of the gradient that a step takes."""
        return self.memory()

    def clipped_memory(self) -> Tensor:
        """Return the memory of the gradient that clipping takes."""
        return self.memory()

    def clippable(self) -> Tensor | None:
        """Return what torch's clipping takes for the host's gradient; None if there is nothing to clip."""
        return self.tensor

    def master(self) -> Mastered | None:
        """Return what has a copy in float32, this or a part of it; None if nothing has."""
        return None

    def copied(self) -> nn.Parameter:
        """Return a parameter of the same values, with a gradient of ones."""
        copy = nn.Parameter(self.tensor.detach().clone())
        copy.grad = torch.ones_like(copy)
        return copy

    def move(self, data: Tensor, grad: Grad) -> None:
        """Take other arrays of the same kind."""
        raise NotImplementedError

    @staticmethod
    def gather(parameters: Sequence[Parameter]) -> None:
        """Let the next step find the host's gradients of all parameters of this kind."""

    @staticmethod
    def publish(parameters: Sequence[Parameter]) -> None:
        """Write what a step has made of all parameters of this kind into the host's arrays."""


class Dense(Parameter):
    """A parameter whose arrays torch steps as they are."""

    def move(self, data: Tensor, grad: Grad) -> None:
        assert isinstance(grad, Tensor)
        self.tensor.data = data
        self.tensor.grad = grad


class Sparse(Parameter):
    """A parameter whose gradient is zero but for some rows."""

    def __init__(self, name: str, tensor: nn.Parameter, grad: SparseGrad) -> None:
        super().__init__(name, tensor)
        self._sparse = grad

    @property
    def grad(self) -> Grad:
        return self._sparse

    def memory(self) -> Tensor:
        return self._sparse.rows(self.name, len(self.tensor))

    def clippable(self) -> Tensor | None:
        rows = self.memory()
        return stand_in(rows) if len(rows) else None  # of no rows there is no norm

    def copied(self) -> nn.Parameter:
        copy = super().copied()
        copy.grad = copy.grad.to_sparse(1) if copy.grad is not None else None
        return copy

    def move(self, data: Tensor, grad: Grad) -> None:
        assert isinstance(grad, SparseGrad)
        self.tensor.data = data
        self.tensor.grad = None
        self._sparse = grad

    @staticmethod
    def gather(parameters: Sequence[Parameter]) -> None:
        for p in parameters:
            assert isinstance(p, Sparse)
            p.tensor.grad = p._sparse.tensor(p.name, p.tensor.shape)


class Beside(Parameter):
    """A parameter whose tensor, and its gradient, are others than the host's arrays."""

    _data: Tensor
    _grad: Tensor

    @property
    def data(self) -> Tensor:
        return self._data

    @property
    def grad(self) -> Tensor:
        return self._grad

    def memory(self) -> Tensor:
        return self._grad

    def stepped_memory(self) -> Tensor:
        return self._dense()


class Mastered(Beside):
    """A parameter in half precision that is stepped in float32, in a copy of our own."""

    is_read = False
    note = ", stepped in float32"

    def __init__(self, name: str, data: Tensor, grad: Tensor) -> None:
        tensor = nn.Parameter(torch.zeros_like(data, dtype=torch.float32))  # no gaps, whatever data has
        tensor.grad = torch.zeros_like(tensor)
        super().__init__(name, tensor)
        self._data, self._grad = data, grad
        #: Whether the host's values are still to be read, and whether the copy had them before.
        self.is_unread, self._had_values = True, False

    def clippable(self) -> Tensor | None:
        return stand_in(self._grad)

    def master(self) -> Mastered | None:
        return self

    def move(self, data: Tensor, grad: Grad) -> None:
        assert isinstance(grad, Tensor)
        self._data, self._grad = data, grad
        if not self.is_unread:
            self.is_unread = self._had_values = True

    def read(self, is_first: bool) -> None:
        """Take the host's values, before a step that is the first or finds another array.

        Where the array was moved, the copy's values are kept that are the same when rounded.
        """
        with grad_mode(False):
            values = self._data.to(torch.float32)
            if self.is_unread and self._had_values and not is_first:
                same = self._data == self.tensor.to(self._data.dtype)
                values = torch.where(same, self.tensor, values)
            self.tensor.copy_(values)
        self.is_unread = False

    def load(self, values: Tensor) -> None:
        """Take the copy's values out of a checkpoint."""
        with grad_mode(False):
            self.tensor.copy_(values)
        self.is_unread = False

    @staticmethod
    def gather(parameters: Sequence[Parameter]) -> None:
        with grad_mode(False):
            foreach_copy_(*gradients(parameters))

    @staticmethod
    def publish(parameters: Sequence[Parameter]) -> None:
        with grad_mode(False):
            foreach_copy_(*values(parameters))


def gradients(parameters: Iterable[Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients that a step takes, and the host's."""
    pairs = [(p.stepped_memory(), p.memory()) for p in parameters]
    return [stepped for stepped, _ in pairs], [hosts for _, hosts in pairs]


def values(parameters: Iterable[Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the host's values, and those that are stepped."""
    pairs = [(p.data, p.tensor) for p in parameters]
    return [hosts for hosts, _ in pairs], [stepped for _, stepped in pairs]


def stand_in(grad: Tensor) -> Tensor:
    """Return what torch's clipping takes for a gradient alone."""
    result = torch.empty_like(grad)
    result.grad = grad
    return result
