"""The records of one optimizer: made beside a step by Python, proven by it, and stated for a plan.

A record is used only after C has repeated the step that Python has just made, on copies, and got the same
bits.  See `recorder` for what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from optplug import elementwise, plans, transfer
from optplug._optplug import lib
from optplug.buffers import flat, gaps, real
from optplug.number import is_double
from optplug.plans import Operation, Plan
from optplug.recorder import Record, memory_of
from optplug.rehearsal import OTHER_BITS, Case, Layout, NotRecordedError, Rehearsal, is_item
from optplug.torch_private import has_hooks
from optplug.watch import Watch, opaque

#: How many records one group may have; how often a step is looked at in all, times that it has to be proven.
_MOST_RECORDS, _MOST_LOOKS = 6, 8
#: How often a record is proven before it is used: of a class outside torch nobody knows by what it goes.
_PROOFS = 3
#: For how many steps after the first an optimizer is left alone, since a record takes as long as ten of them.
_FIRST = 2
#: For how many steps a host that always binds other arrays is left alone at the most.
_MOST_PATIENCE = 64
#: What is proven of an array: all of it, or so many values at both ends of the first and last thread's share.
_BLOCK = 4096
#: From how many values on a quicker square root is worth its proof, which takes some 20 ms.
_WORTH_A_PROOF = 16384
#: Records with the square root that they run, by what they are made of, and how many of them are kept.
_rooted: dict[tuple[int, int], tuple[Record, Record]] = {}
_MOST_ROOTED = 256


@dataclass
class _Kind:
    """Parameters of one group and one dtype that lie alike, which a record serves alike."""

    group: int
    parameters: list[Tensor]
    #: What is the same in all its steps: see `plans.fixed`.
    fixed: object
    #: One of them, which has the same lists as all.
    like: Rehearsal | None = None
    #: Those that are proven, and how often those were that are not proven often enough.
    records: list[Record] = field(default_factory=list)
    proofs: dict[Record, int] = field(default_factory=dict)


class Records:
    """What is known of an optimizer's steps, and why there is no record."""

    def __init__(self, rounds_sqrt: bool = False, is_torchs: bool = True) -> None:
        self._rounds_sqrt, self._is_torchs = rounds_sqrt, is_torchs
        self._proofs = 1 if is_torchs else _PROOFS
        #: Why there is no record; "" if there is one, or none was tried.
        self.reason = ""
        self._kinds: dict[tuple[int, torch.dtype, Layout], _Kind] = {}
        self._copies: Plan | None = None
        self._watch: Watch | None = None  # over what a class outside torch has besides
        #: The numbers of Python's that plans move: where they are, and C's memory of them.
        self._moving: list[tuple[dict[str, Any], str, Tensor]] = []
        self._new: list[tuple[_Kind, Record]] = []
        self._looks = self._patience = 0
        self._waits = _FIRST

    @property
    def are_complete(self) -> bool:
        """Whether there are records for all of a step."""
        return bool(self._kinds) and all(kind.records for kind in self._kinds.values())

    @property
    def are_kept(self) -> bool:
        """Whether there are any records."""
        return any(kind.records for kind in self._kinds.values())

    @property
    def may_begin(self) -> bool:
        """Whether a step may be looked at, now or later."""
        return self._looks < _MOST_LOOKS * self._proofs

    def forget(self) -> None:
        """Begin anew, since the parameters, the state or what a step does may be others.

        A host that binds other arrays all the time would have each step looked at, which takes longer than
        the step: it is left alone for some steps, each time for twice as many.
        """
        if self._looks:
            self._patience = min(max(1, 2 * self._patience), _MOST_PATIENCE)
        self._kinds, self._new, self._copies, self._moving = {}, [], None, []
        self.reason, self._looks, self._waits = "", 0, max(self._waits, self._patience)

    def begin(self, optimizer: torch.optim.Optimizer) -> bool:
        """Look at the step that Python is about to make; True if `finish` is to be called after it."""
        self._new, self._copies = [], None
        try:
            if self._waits:
                self._waits -= 1
            else:
                self._looks += 1
                self._look(optimizer)
                if self._new:
                    self._copies = Plan(list(self._operations(optimizer, copied=True)))
        except Exception as error:
            self._give_up(
                str(error) if isinstance(error, NotRecordedError) else f"{type(error).__name__}: {error}"
            )
        return self._begins_to_watch(optimizer)

    def watch(self, optimizer: torch.optim.Optimizer) -> bool:
        """Look only at what else a step by Python changes; True if `finish` is to be called after it."""
        self._new, self._copies = [], None
        return self._begins_to_watch(optimizer)

    def _begins_to_watch(self, optimizer: torch.optim.Optimizer) -> bool:
        """Watch a step that may change by what others go, which records do not see: of torch's the proofs."""
        self._watch = None
        if not self._new and (self._is_torchs or not self.are_kept):
            return False
        try:
            known, changing = self._own(optimizer), self._changing(optimizer)
            self._watch = Watch(optimizer, known, changing, may_draw=self._is_torchs)
        except Exception as error:
            self._end(f"{type(error).__name__}: {error}")
        return True

    def finish(self, optimizer: torch.optim.Optimizer) -> bool:
        """Compare the step that was made with C's on copies; True if the next one is to be stated anew."""
        try:
            reason = self._watch.found(optimizer) if self._watch else ""
            if not reason and self._new and not self._is_same(optimizer):
                reason = OTHER_BITS
        except (Exception, KeyboardInterrupt) as error:  # the step is made all the same
            reason = f"{type(error).__name__}: {error}"
        self._watch = None
        if reason:
            self._end(reason)
            return not self._is_torchs
        new, self._new = self._new, []
        for kind, record in new:
            kind.proofs[record] = kind.proofs.get(record, 0) + 1
            if kind.proofs[record] >= self._proofs:
                kind.records.append(record)
        # A step of such a class may have changed options.
        return not self._is_torchs or any(record in kind.records for kind, record in new)

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
        self.reason, self._new, self._copies = reason, [], None
        self._looks = _MOST_LOOKS * self._proofs

    def _end(self, reason: str) -> None:
        """Keep to none of a class outside torch, whose steps may go by what is other than it was."""
        self._give_up(reason)
        if not self._is_torchs:
            self._kinds, self._moving = {}, []

    def operations(self, optimizer: torch.optim.Optimizer) -> list[Operation]:
        """State the next step; nothing where there are no records for all of it."""
        if not self.are_complete:
            return []
        if not self._holds(optimizer):
            self.forget()
            return []
        self._moving = []
        return list(self._operations(optimizer, copied=False))

    def take(self) -> None:
        """Give Python the numbers that C has moved."""
        for container, key, memory in self._moving:
            container[key] = type(container[key])(memory.item())

    def give(self) -> bool:
        """Give C the numbers as Python has them; False if they are such as its plan does not take."""
        for container, key, memory in self._moving:
            number = container.get(key)
            if number is None or not is_double(number) or memory_of(number).dtype != memory.dtype:
                return False
            memory.fill_(number)
        return True

    def _holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the records are still of this optimizer as it is."""
        try:
            self._check(optimizer)
        except NotRecordedError:
            return False
        groups = optimizer.param_groups
        return all(plans.fixed(groups[kind.group]) == kind.fixed for kind in self._kinds.values()) and all(
            is_double(number := place.container(optimizer, groups[kind.group], p).get(place.key))
            and type(number) is place.kind
            for kind in self._kinds.values()
            for p in kind.parameters
            for place in (kind.like.places if kind.like else ())
        )

    # ---- looking ----

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        """Record the steps of parameters that no record is known to serve."""
        self._check(optimizer)
        if not self._is_torchs and (kind_of_it := opaque(optimizer)):
            raise NotRecordedError(f"it holds a {kind_of_it}, which may change unseen")
        if not self._holds(optimizer):
            self._kinds = {}
        for i, group in enumerate(optimizer.param_groups):
            alike: dict[tuple[torch.dtype, Layout], list[Tensor]] = {}
            for p in group["params"]:
                alike.setdefault((p.dtype, self._layout(optimizer, p)), []).append(p)
            for (dtype, lie), parameters in alike.items():
                kind = self._kinds.setdefault((i, dtype, lie), _Kind(i, parameters, plans.fixed(group)))
                seen = set[tuple[float, ...]]()
                for p in parameters:
                    state = optimizer.state.get(p, {})
                    items = {k: v for k, v in state.items() if is_item(v) or is_double(v)}
                    has_none = p.dim() == 0
                    if has_none:
                        for name in Case(True, optimizer, group, dtype, lie, {}).arrays():
                            items.pop(name, None)
                    values = tuple(float(v) for v in items.values())
                    if values in seen or len(seen) > _MOST_RECORDS:
                        continue
                    seen.add(values)
                    case = Case(self._is_torchs, optimizer, group, dtype, lie, items, has_none)
                    made = case.rehearse()
                    # By the numbers of the lists those before it go.
                    if kind.like is None or made.lists != kind.like.lists:
                        if self._unproven(kind):
                            raise NotRecordedError("its parameters have different states")
                        kind.records.clear()
                        kind.proofs.clear()
                        kind.like = made
                    known = [*kind.records, *self._unproven(kind)]
                    if made.record not in known:
                        if len(known) == _MOST_RECORDS:
                            raise NotRecordedError("its steps take too many branches")
                        if not (self._is_torchs or made.record in kind.proofs):
                            alike_ids = set(map(id, parameters))
                            at = [k for k, p in enumerate(group["params"]) if id(p) in alike_ids]
                            case.check_places(made, group["params"], at)
                        self._new.append((kind, made.record))

    def _as_run(self, optimizer: torch.optim.Optimizer, kind: _Kind, copied: bool) -> list[Record]:
        """Return records with the square root that they run: the processor's only once they are proven."""
        records = [*kind.records, *(self._unproven(kind) if copied else ())]
        root = lib.ELEMENTWISE_SQRT_MKL
        if not any(one.elementwise == root for record in records for one in record.instructions):
            return records
        values = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        if self._rounds_sqrt and not copied:
            root = lib.ELEMENTWISE_SQRT
        elif values >= _WORTH_A_PROOF and real(kind.parameters[0]).dtype != torch.float64:
            root = elementwise.quickest_root()
        return [_with_root(record, root) for record in records]

    def _unproven(self, kind: _Kind) -> list[Record]:
        return [record for k, record in self._new if k is kind]

    def _memory(
        self, optimizer: torch.optim.Optimizer, kind: _Kind, like: Rehearsal, copied: bool
    ) -> list[list[Tensor]]:
        """Return memory of the numbers that Python keeps, for each parameter: of a group's the same."""
        found: dict[tuple[int, str], Tensor] = {}
        rows = []
        for p in kind.parameters:
            row = []
            for place in like.places:
                container = place.container(optimizer, optimizer.param_groups[kind.group], p)
                key = id(container), place.key
                if key not in found:
                    found[key] = memory_of(container[place.key])
                    if not copied:
                        self._moving.append((container, place.key, found[key]))
                row.append(found[key])
            rows.append(row)
        return rows

    def _own(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return the tensors that records know."""
        return [
            t
            for group in optimizer.param_groups
            for p in group["params"]
            for t in (p, p.grad, *optimizer.state.get(p, {}).values())
            if isinstance(t, Tensor)
        ]

    def _changing(self, optimizer: torch.optim.Optimizer) -> set[tuple[int, str]]:
        """Return where the numbers are that steps change: the dictionary's id, and the key."""
        return {
            (id(place.container(optimizer, optimizer.param_groups[kind.group], p)), place.key)
            for kind in self._kinds.values()
            if kind.like
            for p in kind.parameters
            for place in kind.like.places
        }

    def _layout(self, optimizer: torch.optim.Optimizer, p: Tensor) -> Layout:
        """Return how a parameter's arrays lie, as far as its step may go by it."""
        arrays = _arrays(optimizer, p)
        if not self._is_torchs:
            return tuple((name, (tuple(t.shape), t.stride())) for name, t in arrays.items())
        if all(t.is_contiguous() for t in arrays.values()):
            return ()
        found = {name: gaps(t, p) for name, t in arrays.items()}
        if not any(found.values()):
            return ()
        return tuple((name, bool(lie) and lie[0][1] != 1) for name, lie in found.items())

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise where C could not step these parameters, whatever the step."""
        if has_hooks(optimizer):
            raise NotRecordedError("PyTorch hooks watch its steps")
        for group in optimizer.param_groups:
            for name in ("fused", "capturable", "differentiable"):
                if group.get(name):
                    raise NotRecordedError(f"{name}=True")
            for key, value in group.items():
                if not self._is_torchs and key not in ("params", "param_names") and not _fits(value):
                    raise NotRecordedError(f"its option {key} is {type(value).__name__}")
            for p in group["params"]:
                if real(p).dtype not in elementwise.RECORDED or p.device.type != "cpu":
                    raise NotRecordedError(f"a parameter is {p.dtype} on {p.device}")
                grad = p.grad
                if grad is None or grad.layout != torch.strided:
                    raise NotRecordedError("a gradient is sparse")
                if not self._is_torchs and vars(p):
                    raise NotRecordedError("a parameter has attributes")
                if p.dim() == 0 and not self._is_torchs:
                    raise NotRecordedError("a parameter has no dimension")
                if any(t.shape != p.shape or t.dtype != p.dtype for t in _arrays(optimizer, p).values()):
                    raise NotRecordedError("an array is not like its parameter")

    def _operations(self, optimizer: torch.optim.Optimizer, copied: bool) -> Iterator[Operation]:
        for kind in self._kinds.values():
            assert kind.like
            group, form = optimizer.param_groups[kind.group], kind.like.form
            rows = [_tensors(optimizer, p, kind.like) for p in kind.parameters]
            memory = self._memory(optimizer, kind, kind.like, copied)
            whole = ([*row, *more] for row, more in zip(rows, memory, strict=True))
            lists = [list(column) for column in zip(*whole, strict=True)]
            if copied:
                lists = _copy(lists)
            alone = max(t.numel() for t in lists[0]) < plans.WORTH_THREADS
            yield Operation(
                type(optimizer).__name__,
                form,
                group,
                lists,
                plans.scalars(form, group),
                alone,
                records=self._as_run(optimizer, kind, copied),
                moves=bool(kind.like.places),
            )


def _with_root(record: Record, root: int) -> Record:
    """Return a record with another square root in the place of the one of Intel's library."""
    if root == lib.ELEMENTWISE_SQRT_MKL:
        return record
    known = _rooted.get((id(record), root))
    if known is None:
        if len(_rooted) >= _MOST_ROOTED:
            _rooted.clear()
        instructions = [
            replace(one, elementwise=root, end=root) if one.elementwise == lib.ELEMENTWISE_SQRT_MKL else one
            for one in record.instructions
        ]
        known = record, replace(record, instructions=tuple(instructions))
        _rooted[id(record), root] = known
    return known[1]


def _fits(value: object) -> bool:
    """Tell whether a hyperparameter can be compared with what it was."""
    return type(value) in (bool, int, float, str, type(None)) or (
        type(value) is tuple and all(map(_fits, value))
    )


def _arrays(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    """Return a parameter, its gradient, and what it has in the state that is not one value."""
    assert p.grad is not None
    state = optimizer.state.get(p, {}).items()
    found = {k: t for k, t in state if isinstance(t, Tensor) and not is_item(t)}
    return {"self": p, "grads": p.grad, **found}


def _tensors(optimizer: torch.optim.Optimizer, p: Tensor, like: Rehearsal) -> list[Tensor]:
    assert p.grad is not None
    return list(map(real, (p, p.grad, *(optimizer.state[p][name] for name in like.state))))


def _copy(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    """Copy what a step is proven on: each block as a parameter of its own, with its own values beside it."""
    copies: list[list[Tensor]] = [[] for _ in lists]
    for row in zip(*lists, strict=True):
        for begin, end in _parts(row[0].numel()):
            for copy, t in zip(copies, row, strict=True):
                part = flat(t, row[0])[begin:end] if t.dim() else t.detach()
                copy.append(part.clone())
    return copies


def _parts(n: int) -> list[tuple[int, int]]:
    """Return parts of n values to prove a step on: each begins whole vectors into one thread's share."""
    if n <= 4 * _BLOCK:
        return [(0, n)]
    parts = set[tuple[int, int]]()
    shares = elementwise.shares(n)
    for begin, end in (shares[0], shares[-1]):
        last = begin + max(0, (end - begin - _BLOCK) // _BLOCK * _BLOCK)
        parts |= {(begin, begin + min(_BLOCK, (end - begin) // _BLOCK * _BLOCK)), (last, end)}
    return sorted((begin, end) for begin, end in parts if begin < end)
