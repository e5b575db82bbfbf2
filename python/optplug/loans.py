"""What a class outside torch gets of the parameters in a step, and how the host gets it back.

torch's own classes step the host's arrays where they are.  Others may do with a parameter what they like:
set its gradient to None, keep it for later, or let the parameter be another memory, as
``p.data = p.data.contiguous()`` does.  So they get the gradients as copies, and where they have put memory
of their own in a parameter's place, the host's values are copied into it before a step and out of it after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from optplug import host
from optplug._optplug import ffi, lib
from optplug.buffers import layout_of
from optplug.copies import Moves
from optplug.holdings import holdings
from optplug.lying import Lying, address
from optplug.spec import shown
from optplug.torch_private import foreach_copy_, grad_mode, is_shared, owners, storage_of, use_count

_lend, _take_back = host.table.lend, host.table.take_back


class Loan:
    """One parameter, and the memory that stands for its arrays in a step."""

    def __init__(self, name: str, tensor: nn.Parameter) -> None:
        self.name, self.tensor = name, tensor
        #: The values that are the parameter's between steps: the host's, or those of a master copy.
        self.data = tensor.detach()
        #: The memory that the class steps in the place of that, once it has chosen one.
        self.own: Tensor | None = None
        self._is_lent = False
        self._grad: Tensor | None = None  # what the gradient was before it was lent
        self._memory: Tensor | None = None  # of gradients that are lent

    @property
    def is_elsewhere(self) -> bool:
        """Whether the class has put another memory into the parameter's place."""
        return self.tensor.dtype != self.data.dtype or not self.tensor.is_set_to(self.data)

    def begin(self) -> Tensor | None:
        """Note that the class may change the parameter from now on, and return its gradient."""
        self.note(self.tensor.grad)
        return self._grad

    def note(self, grad: Tensor | None) -> None:
        """Note that the class may change the parameter, and that this is the host's gradient."""
        self._is_lent, self._grad = True, grad

    def lend(self, needs_own: bool) -> tuple[Tensor, Tensor] | None:
        """Let the class find the values as they are now, and a gradient of its own.

        Returns:
            That gradient, which is to be filled, and the host's.
        """
        pair = None
        grad = self.begin()
        if grad is not None and grad.layout == torch.strided:
            # What the class has kept of the gradients before stays what it was; and it may have freed them.
            if self._memory is None or is_shared(self._memory) or not _is_there(self._memory):
                self._memory = torch.empty_like(grad)
            pair = self._memory, grad
            self.tensor.grad = self._memory.detach()
        if self.own is None and needs_own:
            self.own = self.data.clone()
        if self.own is not None:
            self.tensor.data = self.own.copy_(self.data)
        return pair

    def check(self) -> None:
        """Raise RuntimeError where what the class has put there cannot be the host's array."""
        if (self.tensor.shape, self.tensor.dtype) != (self.data.shape, self.data.dtype):
            raise RuntimeError(
                f"parameter {shown(self.name)}: the step changed it to {layout_of(self.tensor)}, but it is "
                f"bound as {layout_of(self.data)}"
            )

    def take_back(self) -> None:
        """Let the host find in its array what the class has made of it."""
        self.own = self.tensor.detach()
        self.data.copy_(self.own)
        self.take_away()

    def end(self) -> None:
        """Let the parameter have the host's arrays."""
        if self._is_lent:
            self.tensor.grad = self._grad
            self._is_lent, self._grad = False, None

    def take_away(self) -> None:
        """The same, whatever the class has put there."""
        if self._is_lent and self.is_elsewhere:
            self.tensor.grad = None  # or it must be of the shape that the parameter has now
            self.tensor.data = self.data
        self.end()


def _is_there(t: Tensor) -> bool:
    """Tell whether a tensor without gaps has its memory, which a class may free."""
    return t.untyped_storage().nbytes() >= t.numel() * t.itemsize


class Gradients:
    """The gradients of all parameters, lent at once where nothing but those is."""

    def __init__(self, loans: Iterable[Loan]) -> None:
        loans = list(loans)
        self._tensors = [loan.tensor for loan in loans]
        self._lying = Lying(self._tensors)  # as the host's arrays do
        #: The host's.
        self.hosts = [loan.tensor.grad for loan in loans]
        pairs = [(loan.tensor, g) for loan in loans if (g := loan.tensor.grad) is not None]
        pairs = [(p, g) for p, g in pairs if g.layout == torch.strided]
        memory = [torch.empty_like(g) for _, g in pairs]
        self._lent = [t.data for t in memory]  # which are no views
        self._lying_lent = Lying(self._lent)
        self._moves = Moves([g for _, g in pairs], self._lent)
        self._storages = [storage_of(t) for t in memory]
        counted = self._lent if use_count else []
        memories, those = [place for _, place in self._storages], [p for p, _ in pairs]
        self._lists = counted, memories, those  # which C has by their addresses
        self._counts = ffi.new("int64_t[]", len(pairs) * lib.LOANS_COUNTS)
        self._stated = ffi.new(
            "optplug_loans *",
            [
                *map(address, (use_count, owners, counted, memories)),
                self._counts,
                self._lying.stated,
                self._lying_lent.stated,
                list(map(address, ("grad", self._tensors, self.hosts))),
                list(map(address, ("grad", those, self._lent))),
                *self._moves.stated,
            ],
        )

    def lend(self, is_first: bool = False) -> bool:
        """Let the class find gradients of its own; False if it has kept one, or has made it another.

        Args:
            is_first: whether it has got none of these yet.
        """
        if use_count is None and not is_first:
            return False
        if not self._lying_lent.is_told_by_c and not self._lying_lent.are_there():
            return False
        if not _lend(self._stated, is_first):
            return False
        if self._moves.has_rest:
            self._moves.make_rest()
        return True

    def take_back(self) -> bool:
        """Let the parameters have the host's gradients; False if they are elsewhere."""
        if not self._lying.is_told_by_c and not self._lying.are_there():
            return False
        return bool(_take_back(self._stated))


class Loans:
    """All parameters of an optimizer, lent to its class while that steps."""

    def __init__(self) -> None:
        self._all: dict[str, Loan] = {}
        self._optimizer: torch.optim.Optimizer | None = None  # what steps
        self._needs_own = self._are_lent = False
        self._has_own = False  # whether it steps memory of its own in the place of an array
        self._owns: dict[str, Tensor | None] = {}  # before the step
        self._gradients: Gradients | None = None  # all that are lent, where it has none
        self._is_quick = False  # whether they are lent now

    def put(self, name: str, tensor: nn.Parameter) -> None:
        """Take a parameter, or one that has other arrays now."""
        known, loan = self._all.get(name), Loan(name, tensor)
        loan.own = known.own if known else None
        self._all[name] = loan
        self._gradients = None

    def begin(self, optimizer: torch.optim.Optimizer, has_closure: bool) -> None:
        """Let `lend` and `take_back` be about an optimizer's step from now on.

        Args:
            has_closure: whether the host is called in the middle of it, when the class may have put a
                parameter's memory aside, to go back to it.
        """
        self._optimizer, self._needs_own = optimizer, has_closure
        self._owns = {name: loan.own for name, loan in self._all.items()} if self._has_own else {}
        if has_closure:
            self.lend()

    def finish(self) -> None:
        """Take back what is lent, at the end of the step."""
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is not None and self._are_lent:
            self._take_back(optimizer)

    def give_up(self) -> None:
        """Take away what is lent, and let the class have the memory that it had before a step that fails."""
        self._optimizer = None
        self._take_away(self._owns)

    def build(self, make: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Build an optimizer, which may choose memory of its own for the parameters there and then."""
        with self.as_before_on_error():
            for loan in self._all.values():
                loan.own = None
                loan.begin()
            self._are_lent = True
            made = make()
            self._take_back(made)
        return made

    @contextlib.contextmanager
    def as_before_on_error(self) -> Iterator[None]:
        """Take away what is lent, and let the class have the memory that it had, if a block fails."""
        owns = {name: loan.own for name, loan in self._all.items()}
        try:
            yield
        except BaseException:
            self._take_away(owns)
            raise
        finally:
            self._are_lent = False

    def _take_away(self, owns: dict[str, Tensor | None]) -> None:
        self._note_lent()
        for name, loan in self._all.items():
            loan.take_away()
            loan.own = owns.get(name)
        self._has_own = any(loan.own is not None for loan in self._all.values())
        self._are_lent = False

    def have_own(self) -> bool:
        """Tell whether the class steps memory of its own, in the place of an array."""
        return self._has_own

    @contextlib.contextmanager
    def as_in_a_step(self) -> Iterator[None]:
        """Let the parameters have the memory that the class steps, in a block that steps nothing."""
        owned = [(loan, loan.own) for loan in self._all.values() if loan.own is not None]
        try:
            for loan, own in owned:
                with grad_mode(False):
                    loan.tensor.data = own.copy_(loan.data)
            yield
        finally:
            for loan, _ in owned:
                loan.tensor.data = loan.data

    def settle(self) -> None:
        """Let the host have its arrays where a class has put others in their place in between."""
        for loan in self._all.values():
            if loan.is_elsewhere:
                loan.begin()
                loan.take_back()
                self._has_own = True

    def lend(self) -> None:
        """Let the class find values and gradients as they are now."""
        if self._optimizer is None or self._are_lent:
            return
        self._are_lent = True
        if not (self._needs_own or self._has_own):
            if not (self._gradients and self._gradients.lend()):
                self._gradients = Gradients(self._all.values())
                if not self._gradients.lend(is_first=True):
                    raise RuntimeError("the gradients cannot be lent")
            self._is_quick = True
            return
        with grad_mode(False):
            pairs = [pair for loan in self._all.values() if (pair := loan.lend(self._needs_own))]
            if pairs:
                foreach_copy_([lent for lent, _ in pairs], [hosts for _, hosts in pairs])

    def take_back(self) -> None:
        """Let the host find in its arrays what the class has made of them.

        Raises:
            RuntimeError: a parameter has become one of another shape or dtype.
        """
        if self._optimizer is not None and self._are_lent:
            self._take_back(self._optimizer)

    def _note_lent(self) -> None:
        """Let each parameter know by itself what it has lent."""
        if self._is_quick and self._gradients:
            self._is_quick = False
            for loan, grad in zip(self._all.values(), self._gradients.hosts, strict=True):
                loan.note(grad)

    def _take_back(self, optimizer: torch.optim.Optimizer) -> None:
        if self._is_quick and self._gradients and self._gradients.take_back():
            self._is_quick = self._are_lent = False
            return
        self._note_lent()
        moved = []
        for loan in self._all.values():
            if loan.is_elsewhere:
                loan.check()
                moved.append(loan)
            else:
                loan.own = None
        with grad_mode(False):
            self._separate(optimizer, [loan.data for loan in moved if loan.own is None])
            for loan in moved:
                loan.take_back()
            for loan in self._all.values():
                loan.end()
        self._has_own = any(loan.own is not None for loan in self._all.values())
        self._are_lent = False

    def _separate(self, optimizer: torch.optim.Optimizer, left: list[Tensor]) -> None:
        """Give memory of its own to what an optimizer keeps of the arrays that it has left."""
        if not left:
            return
        arrays = {data.untyped_storage().data_ptr() for data in left}
        parameters = {id(loan.tensor) for loan in self._all.values()}
        for tensor in holdings(optimizer).tensors:
            if id(tensor) in parameters or tensor.layout != torch.strided:
                continue
            if tensor.untyped_storage().data_ptr() in arrays:
                tensor.data = tensor.detach().clone()


def follow(optimizer: torch.optim.Optimizer, parameter: Tensor, before: Tensor, data: Tensor) -> None:
    """Let what an optimizer keeps of an array be of another one, since the host may have freed the array.

    Raises:
        ValueError: it cannot be, for the other one lies in another way.
    """
    begin, size = before.data_ptr(), before.itemsize
    end = begin + before.untyped_storage().nbytes()
    kept = [t for t in holdings(optimizer).tensors if t is not parameter and t.layout == torch.strided]
    kept = [t for t in kept if begin <= t.data_ptr() < end and t.dtype == data.dtype]
    if kept and before.stride() != data.stride() and any(t.shape != data.shape for t in kept):
        raise ValueError(
            f"{type(optimizer).__name__} keeps views of the array that was bound: bind one of the same layout"
        )
    for t in kept:
        if before.stride() == data.stride():
            place = data.storage_offset() + (t.data_ptr() - begin) // size
            t.data = data.as_strided(t.shape, t.stride(), place)
        else:
            t.data = data
