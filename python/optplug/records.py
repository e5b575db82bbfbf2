"""The records of one optimizer: made beside a step by Python, proven by it, and stated for a plan.

A record is used only after C has repeated the step that Python has just made, on copies, and got the same
bits.  See `recorder` for what it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from optplug import elementwise, plans, recorder, transfer
from optplug._optplug import lib
from optplug.buffers import flat, gaps, real
from optplug.number import is_double
from optplug.plans import Form, Group, Operation, Plan
from optplug.recorder import Record
from optplug.torch_private import grad_mode, has_hooks

#: How many records one group may have; how often a step is looked at in all.
_MOST_RECORDS, _MOST_LOOKS = 6, 8
#: For how many steps a host that always binds other arrays is left alone at the most.
_MOST_PATIENCE = 64
#: What is proven of an array: all of it, or so many values at both ends and in the middle.
_BLOCK = 4096
#: How many values throw-away parameters have, some vectors of the processor's and a rest: the one to be read,
#: and the one that shows rare roundings, which the host's few values may not.
_FEW, _MANY = 37, 4099
#: Records of the process, by what they were made of, and how many are kept.
_known: dict[object, tuple[Record, tuple[str, ...]]] = {}
_MOST_KNOWN = 256
_OTHER_BITS = "its record gave other bits than the step"


#: Of arrays by their names, whether there are gaps within their rows.
_Gaps = tuple[tuple[str, bool], ...]


@dataclass
class _Kind:
    """Parameters of one group and one dtype that lie alike, which a record serves alike."""

    group: int
    parameters: list[Tensor]
    options: tuple[str, ...]
    #: What is the same in all its steps: see `plans.fixed`.
    fixed: object
    state: tuple[str, ...] = ()
    #: Those that are proven.
    records: list[Record] = field(default_factory=list)


class Records:
    """What is known of an optimizer's steps, and why there is no record."""

    def __init__(self, rounds_sqrt: bool = False) -> None:
        self._rounds_sqrt = rounds_sqrt
        #: Why there is no record; "" if there is one, or none was tried.
        self.reason = ""
        self._kinds: dict[tuple[int, torch.dtype, _Gaps], _Kind] = {}
        self._copies: Plan | None = None
        self._new: list[tuple[_Kind, Record]] = []
        self._looks = self._waits = self._patience = 0

    def forget(self) -> None:
        """Begin anew, since the parameters, the state or what a step does may be others.

        A host that binds other arrays all the time would have each step looked at, which takes longer than
        the step: it is left alone for some steps, each time for twice as many.
        """
        if self._looks:
            self._patience = min(max(1, 2 * self._patience), _MOST_PATIENCE)
        self._kinds, self._new, self._copies = {}, [], None
        self.reason, self._looks, self._waits = "", 0, self._patience

    def begin(self, optimizer: torch.optim.Optimizer) -> bool:
        """Look at the step that Python is about to make; True if `finish` is to be called after it."""
        if self._waits or self._looks == _MOST_LOOKS:
            self._waits -= bool(self._waits)
            return False
        self._looks += 1
        self._new, self._copies = [], None
        try:
            self._look(optimizer)
            if self._new:
                self._copies = Plan(list(self._operations(optimizer, copied=True)))
        except Exception as error:
            self._give_up(
                str(error) if isinstance(error, _NotRecordedError) else f"{type(error).__name__}: {error}"
            )
        return bool(self._new)

    def finish(self, optimizer: torch.optim.Optimizer) -> bool:
        """Compare the step that was made with C's on copies; True if there are new records by that."""
        try:
            is_same = self._is_same(optimizer)
        except (Exception, KeyboardInterrupt) as error:  # the step is made all the same
            self._give_up(f"{type(error).__name__}: {error}")
            return False
        if not is_same:
            self._give_up(_OTHER_BITS)
        for kind, record in self._new:
            kind.records.append(record)
        self._new = []
        return is_same

    def _is_same(self, optimizer: torch.optim.Optimizer) -> bool:
        copies, self._copies = self._copies, None
        assert copies
        if not transfer.run(copies):
            return False
        made = self._operations(optimizer, copied=True)
        return all(
            elementwise.is_same(a, b)
            for ours, theirs in zip(copies.operations, made, strict=True)
            for left, right in zip(ours.lists, theirs.lists, strict=True)
            for a, b in zip(left, right, strict=True)
        )

    def _give_up(self, reason: str) -> None:
        """Keep to the records that are proven."""
        self.reason, self._new, self._copies, self._looks = reason, [], None, _MOST_LOOKS

    def operations(self, optimizer: torch.optim.Optimizer) -> list[Operation]:
        """State the next step; nothing where there are no records for all of it."""
        if not self._kinds or any(not kind.records for kind in self._kinds.values()):
            return []
        if not self._holds(optimizer):
            self.forget()
            return []
        return list(self._operations(optimizer, copied=False))

    def _holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the records are still of this optimizer as it is."""
        try:
            _check(optimizer)
        except _NotRecordedError:
            return False
        groups = optimizer.param_groups
        return all(plans.fixed(groups[kind.group]) == kind.fixed for kind in self._kinds.values())

    # ---- looking ----

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        """Record the steps of parameters that no record is known to serve."""
        _check(optimizer)
        if not self._holds(optimizer):
            self._kinds = {}
        for i, group in enumerate(optimizer.param_groups):
            alike: dict[tuple[torch.dtype, _Gaps], list[Tensor]] = {}
            for p in group["params"]:
                alike.setdefault((p.dtype, _gaps(optimizer, p)), []).append(p)
            for (dtype, lie), parameters in alike.items():
                names = tuple(_options(group))
                kind = self._kinds.setdefault(
                    (i, dtype, lie), _Kind(i, parameters, names, plans.fixed(group))
                )
                seen = set[tuple[float, ...]]()
                for p in parameters:
                    items = {k: v for k, v in optimizer.state[p].items() if _is_item(v)}
                    values = tuple(float(v) for v in items.values())
                    if values in seen or len(seen) > _MOST_RECORDS:
                        continue
                    seen.add(values)
                    record, state = _Case(optimizer, group, dtype, lie, items, kind.options).record()
                    if state != kind.state:  # by whose numbers those before it go
                        if self._unproven(kind):
                            raise _NotRecordedError("its parameters have different states")
                        kind.records.clear()
                        kind.state = state
                    known = [*kind.records, *self._unproven(kind)]
                    if record not in known:
                        if len(known) == _MOST_RECORDS:
                            raise _NotRecordedError("its steps take too many branches")
                        self._new.append((kind, record))

    def _used(self, kind: _Kind) -> list[Record]:
        """Return the records that steps run, which may have another square root than the proven ones."""
        if not self._rounds_sqrt:
            return list(kind.records)
        return [
            replace(
                record,
                instructions=tuple(
                    replace(one, elementwise=lib.ELEMENTWISE_SQRT)
                    if one.elementwise == lib.ELEMENTWISE_SQRT_MKL
                    else one
                    for one in record.instructions
                ),
            )
            for record in kind.records
        ]

    def _unproven(self, kind: _Kind) -> list[Record]:
        return [record for k, record in self._new if k is kind]

    def _operations(self, optimizer: torch.optim.Optimizer, copied: bool) -> Iterator[Operation]:
        for kind in self._kinds.values():
            group = optimizer.param_groups[kind.group]
            lists = [
                list(row)
                for row in zip(*(_tensors(optimizer, p, kind) for p in kind.parameters), strict=True)
            ]
            if copied:
                lists = _copy(lists)
            form = Form(("self", "grads", *kind.state), doubles=kind.options)
            alone = max(t.numel() for t in lists[0]) < plans.WORTH_THREADS
            yield Operation(
                type(optimizer).__name__,
                form,
                group,
                lists,
                plans.scalars(form, group),
                alone,
                records=[*kind.records, *self._unproven(kind)] if copied else self._used(kind),
            )


class _NotRecordedError(Exception):
    """Says why a step has no record."""


def _check(optimizer: torch.optim.Optimizer) -> None:
    """Raise where C could not step these parameters, whatever the step."""
    if has_hooks(optimizer):
        raise _NotRecordedError("hooks of PyTorch's watch its steps")
    for group in optimizer.param_groups:
        for name in ("fused", "capturable", "differentiable"):
            if group.get(name):
                raise _NotRecordedError(f"{name}=True")
        for p in group["params"]:
            if real(p).dtype not in elementwise.DTYPES or p.device.type != "cpu":
                raise _NotRecordedError(f"a parameter is {p.dtype} on {p.device}")
            grad = p.grad
            if grad is None or grad.layout != torch.strided:
                raise _NotRecordedError("a gradient is sparse")
            if p.dim() == 0:
                raise _NotRecordedError("a parameter has no dimension")
            if any(t.shape != p.shape or t.dtype != p.dtype for t in _arrays(optimizer, p).values()):
                raise _NotRecordedError("an array is not like its parameter")


def _arrays(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    """Return a parameter, its gradient, and what it has in the state that is not one value."""
    assert p.grad is not None
    state = optimizer.state[p].items()
    found = {k: t for k, t in state if isinstance(t, Tensor) and not _is_item(t)}
    return {"self": p, "grads": p.grad, **found}


def _gaps(optimizer: torch.optim.Optimizer, p: Tensor) -> _Gaps:
    """Return which of a parameter's arrays have gaps within their rows; nothing where none has any gaps."""
    arrays = _arrays(optimizer, p)
    if all(t.is_contiguous() for t in arrays.values()):
        return ()
    found = {name: gaps(t, p) for name, t in arrays.items()}
    if not any(found.values()):
        return ()
    return tuple((name, bool(lie) and lie[0][1] != 1) for name, lie in found.items())


def _is_item(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def _options(group: Group) -> Iterator[str]:
    """Return the names of a group's hyperparameters that are numbers."""
    for key, value in group.items():
        if is_double(value):
            yield key
        elif type(value) is tuple:
            yield from (f"{key}[{i}]" for i, v in enumerate(value) if is_double(v))


@dataclass(frozen=True)
class _Case:
    """A step to be recorded: of a group, for parameters of a dtype that have these gaps and values."""

    optimizer: torch.optim.Optimizer
    group: Group
    dtype: torch.dtype
    gaps: _Gaps
    items: dict[str, Tensor]
    options: tuple[str, ...]

    def record(self) -> tuple[Record, tuple[str, ...]]:
        """Return its record, and the names of the state's tensors, whose lists count after the gradient's.

        They are the same for all optimizers that have the same in all this.
        """
        key = (
            type(self.optimizer),
            repr(
                (
                    self.dtype,
                    self.gaps,
                    self.options,
                    plans.scalars(Form((), doubles=self.options), self.group),
                    plans.fixed(self.group),
                    {name: (value.dtype, value.item()) for name, value in self.items.items()},
                )
            ),
        )
        if key not in _known:
            made = self._make()
            if len(_known) == _MOST_KNOWN:
                _known.clear()
            _known[key] = made
        return _known[key]

    def _make(self) -> tuple[Record, tuple[str, ...]]:
        """Record a step of a throw-away parameter, and prove it by another."""
        # The loop over parameters can be read; the group's own implementation then has to give its bits.
        loop, lists, names = self._stand_in({**self.group, "foreach": False}, _FEW)
        recording = recorder.run(loop, lists, list(self.options))
        record = recording.record()
        if record is None:
            raise _NotRecordedError(recording.reason)
        own, lists, _ = self._stand_in(self.group, _MANY)
        form = Form(("self", "grads", *names), doubles=self.options)
        copies = [[real(t).clone()] for t in lists]
        numbers = plans.scalars(form, self.group)
        step = Operation("step", form, self.group, copies, numbers, True, records=[record])
        with grad_mode(False):
            recorder.plain_step(own)
        if not transfer.run(Plan([step])) or not all(
            elementwise.is_same(a, real(t)) for (a,), t in zip(copies, lists, strict=True)
        ):
            raise _NotRecordedError(_OTHER_BITS)
        return record, names

    def _stand_in(self, group: Group, n: int) -> tuple[torch.optim.Optimizer, list[Tensor], tuple[str, ...]]:
        """Make an optimizer like this one, of one parameter of n values.

        Returns:
            The optimizer; its parameter, the gradient, and the tensors of the state, with their names.
        """
        generator = torch.Generator().manual_seed(0)

        def draw(name: str) -> Tensor:
            dtype = torch.complex128 if self.dtype.is_complex else torch.float64
            return self._lay(name, torch.randn(n, generator=generator, dtype=dtype).to(self.dtype))

        parameter = nn.Parameter(draw("self"))
        other = object.__new__(type(self.optimizer))
        vars(other).update(
            vars(self.optimizer), param_groups=[{**group, "params": [parameter]}], state=defaultdict(dict)
        )
        vars(other).pop("step", None)  # a scheduler's, which calls the optimizer itself
        try:
            for _ in range(2):
                parameter.grad = draw("grads")
                with grad_mode(False):
                    recorder.plain_step(other)
        except Exception as error:
            raise _NotRecordedError(f"{type(error).__name__}: {error}") from error
        state = other.state[parameter]
        for name, value in self.items.items():
            if name not in state or not _is_item(state[name]) or state[name].dtype != value.dtype:
                raise _NotRecordedError(f"its state {name} is not understood")
            state[name].copy_(value)
        for name in dict(self.gaps).keys() & state.keys():
            state[name] = self._lay(name, state[name].flatten())
        names = tuple(name for name, value in state.items() if isinstance(value, Tensor))
        if len(names) != len([v for v in state.values() if v is not None]):
            raise _NotRecordedError("a state that is no tensor")
        assert parameter.grad is not None
        return other, [parameter, parameter.grad, *(state[name] for name in names)], names

    def _lay(self, name: str, values: Tensor) -> Tensor:
        """Return a vector laid out as one of the arrays is."""
        if not self.gaps:
            return values
        rows = elementwise.in_rows(values)
        return elementwise.scattered(rows) if dict(self.gaps)[name] else rows


def _tensors(optimizer: torch.optim.Optimizer, p: Tensor, kind: _Kind) -> list[Tensor]:
    assert p.grad is not None
    return list(map(real, (p, p.grad, *(optimizer.state[p][name] for name in kind.state))))


def _copy(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    """Copy what a step is proven on: each block as a parameter of its own, with its own values beside it."""
    copies: list[list[Tensor]] = [[] for _ in lists]
    for row in zip(*lists, strict=True):
        n = row[0].numel()
        starts = [0, n // 2, n - _BLOCK] if n > 3 * _BLOCK else [0]
        for start in starts:
            length = _BLOCK if len(starts) > 1 else n
            for copy, t in zip(copies, row, strict=True):
                part = flat(t, row[0])[start : start + length] if t.dim() else t.detach()
                copy.append(part.clone())
    return copies
