"""A step recorded on a throw-away parameter, and proven on another.

An optimizer like the host's steps them; what it does to the one is seen by `recorder`, and C has to give the
bits of what it does to the other.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from optplug import elementwise, plans, recorder, transfer
from optplug.buffers import real
from optplug.generators import random_numbers_kept
from optplug.number import is_double
from optplug.operators import Form
from optplug.plans import Group, Operation, Plan
from optplug.recorder import Record, memory_of
from optplug.torch_private import grad_mode

#: How many values throw-away parameters have, some vectors of the processor's and a rest: the one to be read,
#: and the one that shows rare roundings, which the host's few values may not.
_FEW, _MANY = 37, 4095
#: What the process has rehearsed, by what it was made of, and how much of it is kept.
_known: dict[object, Rehearsal] = {}
_MOST_KNOWN = 256
OTHER_BITS = "its record gave other bits than the step"

#: How many throw-away parameters without a dimension prove a step of one.
_SCALARS = 32

#: Of a class outside torch, whose steps may go by shapes: how many values a parameter may have, since one of
#: its shape is recorded, and how many throw-away parameters prove it at the most.
_MOST_VALUES, _MOST_PARAMETERS = 2**20, 20
#: At how many places of a group a parameter's step is compared.
_MOST_PLACES = 64
#: Of arrays by their names: of a class of torch's, if any has gaps, whether there are gaps within its rows;
#: of another class, its shape and strides.
Layout = tuple[tuple[str, Any], ...]


class NotRecordedError(Exception):
    """Says why a step has no record."""


class Place(NamedTuple):
    """Where Python keeps a number that steps change: in the group, or in the state of a parameter."""

    is_in_group: bool
    key: str
    kind: type

    def container(self, optimizer: torch.optim.Optimizer, group: Group, p: Tensor) -> dict[str, Any]:
        """Return the dictionary that it is in."""
        return group if self.is_in_group else optimizer.state[p]


@dataclass(frozen=True)
class Rehearsal:
    """A record, and what its lists are besides parameter and gradient: tensors of the state, then numbers."""

    record: Record
    state: tuple[str, ...]
    places: tuple[Place, ...]
    #: The hyperparameters that are its scalars.
    options: tuple[str, ...]
    #: Whether it was recorded with foreach=False; the group's own implementation has the same bits.
    is_loop: bool

    @property
    def lists(self) -> object:
        """Return what an operation has fixed besides the record."""
        return self.state, self.places, self.options

    @property
    def form(self) -> Form:
        """Return what an operation of such records takes."""
        numbers = tuple(place.key for place in self.places)
        return Form(("self", "grads", *self.state, *numbers), doubles=self.options)


def is_item(value: object) -> bool:
    """Tell whether something of the state is a tensor of one value, without a dimension."""
    return isinstance(value, Tensor) and value.dim() == 0


def _options(group: Group, places: tuple[Place, ...]) -> Iterator[str]:
    """Return the names of a group's hyperparameters that are numbers, and that steps do not change."""
    moved = {place.key for place in places if place.is_in_group}
    for key, value in group.items():
        if is_double(value) and key not in moved:
            yield key
        elif type(value) is tuple:
            yield from (f"{key}[{i}]" for i, v in enumerate(value) if is_double(v))


@dataclass(frozen=True)
class Case:
    """A step to be recorded: of a group, for parameters of a dtype that lie so and have these values.

    Args:
        items: what a parameter has in its state that is one value: tensors, and numbers of Python's.
        place: where it is among the parameters of the group.
        others: these parameters, or what stands for them.
    """

    is_torchs: bool
    optimizer: torch.optim.Optimizer
    group: Group
    dtype: torch.dtype
    layout: Layout
    items: dict[str, Any]
    #: Whether the parameter has no dimension; its step is recorded on a vector all the same.
    has_no_dimension: bool = False
    place: int = 0
    others: tuple[nn.Parameter, ...] = ()

    def arrays(self) -> set[str]:
        """Return what in the state of a parameter is as many values as the parameter."""
        optimizer, names = self._stand_in(self.group, (_FEW,))
        ((_, state),) = optimizer.state.items()
        return {name for name in names if not is_item(state[name])}

    def rehearse(self) -> Rehearsal:
        """Return what its step comes down to, which is the same for all optimizers that have the same here.

        Raises:
            NotRecordedError: it is not understood.
        """
        if not self.is_torchs:  # whose attributes nobody knows
            if math.prod(dict(self.layout)["self"][0]) > _MOST_VALUES:
                raise NotRecordedError(f"a parameter has more than {_MOST_VALUES} values")
            with random_numbers_kept():
                return self._make()
        options = tuple(_options(self.group, ()))
        key = (
            type(self.optimizer),
            repr(
                (
                    self.dtype,
                    self.layout,
                    self.has_no_dimension,
                    options,
                    plans.scalars(Form((), doubles=options), self.group),
                    plans.fixed(self.group),
                    {k: (v.dtype, v.item()) if is_item(v) else v for k, v in self.items.items()},
                )
            ),
        )
        if key not in _known:
            made = self._make()
            if len(_known) == _MOST_KNOWN:
                _known.clear()
            _known[key] = made
        return _known[key]

    def check_places(self, made: Rehearsal, members: list[Tensor], places: list[int]) -> None:
        """Check that a step is the same for parameters at other places of their group, beside others.

        At the first two places and the last one the others have gradients, too.

        Args:
            members: the parameters of the group.
            places: where those are that are alike.

        Raises:
            NotRecordedError: it is another one.
        """
        if len(members) == 1:
            return
        chosen = places if len(places) <= _MOST_PLACES else places[:: -(-len(places) // _MOST_PLACES)]
        whole = {places[0], places[min(1, len(places) - 1)], places[-1]}
        stand_ins = [_small(p) for p in members]
        with random_numbers_kept():
            for place in dict.fromkeys([*whole, *chosen]):
                case = replace(self, place=place, others=(*stand_ins[:place], *stand_ins[place + 1 :]))
                try:
                    case._check_place(made, place in whole)
                except NotRecordedError:
                    if place in whole:
                        raise
                    case._check_place(made, True)  # a class may want gradients of all

    def _check_place(self, made: Rehearsal, have_grads: bool) -> None:
        for p in self.others:
            p.grad = torch.ones_like(p) if have_grads else None
        group = {**self.group, "foreach": False} if made.is_loop else self.group
        recording, names = self._record(group, made.places)
        record = recording.record()
        if record is None or names != made.state or not recorder.is_same_step(record, made.record):
            reason = f" ({recording.reason})" if recording.reason else ""
            raise NotRecordedError(f"its steps go by a parameter's place in its group{reason}")

    def _make(self) -> Rehearsal:
        """Record a step of a throw-away parameter, and prove it by another."""
        foreach = self.group.get("foreach")
        # Torch rounds lists otherwise there; most changes are too small for a proof to show that.
        if foreach and self.dtype in elementwise.HALVES:
            raise NotRecordedError("foreach=True in half precision")
        try:
            return self._made(self.group, is_loop=False)
        except NotRecordedError:
            if not foreach:
                raise
        # The loop over parameters may be understood, and the group's own implementation give its bits.
        return self._made({**self.group, "foreach": False}, is_loop=True)

    def _made(self, group: Group, is_loop: bool) -> Rehearsal:
        places = tuple(Place(False, k, type(v)) for k, v in self.items.items() if not is_item(v))
        recording, names = self._record(group, places)
        if recording.moved:  # of which is known only now that they are no hyperparameters
            places += tuple(Place(True, key, type(self.group[key])) for key in recording.moved)
            recording, names = self._record(group, places)
        record = recording.record()
        if record is None:
            raise NotRecordedError(recording.reason)
        made = Rehearsal(record, names, places, tuple(_options(self.group, places)), is_loop)
        self._prove(made)
        return made

    def _record(self, group: Group, places: tuple[Place, ...]) -> tuple[recorder.Recording, tuple[str, ...]]:
        optimizer, names = self._stand_in(group, self._shape(_FEW))
        lists = self._lists(optimizer, names, ())
        containers = [
            (place.container(optimizer, optimizer.param_groups[0], lists[0]), place.key) for place in places
        ]
        others = [t for p in self.others for t in (p, p.grad, *optimizer.state.get(p, {}).values())]
        tensors = [t for t in others if isinstance(t, Tensor)]
        return recorder.run(optimizer, lists, list(_options(group, places)), containers, tensors), names

    def _prove(self, made: Rehearsal) -> None:
        size = _MANY if self.is_torchs else math.prod(dict(self.layout)["self"][0])
        for seed in range(1, 1 + min(-(-_MANY // size), _MOST_PARAMETERS)):
            self._prove_once(made, self._shape(_MANY), seed)
        for seed in range(_SCALARS if self.has_no_dimension else 0):
            self._prove_once(made, (), seed)

    def _prove_once(self, made: Rehearsal, shape: tuple[int, ...], seed: int) -> None:
        own, names = self._stand_in(self.group, shape, seed)
        copies = [[real(t).clone()] for t in self._lists(own, names, made.places)]
        numbers = plans.scalars(made.form, self.group)
        step = Operation("step", made.form, self.group, copies, numbers, True, records=[made.record])
        with grad_mode(False):
            recorder.plain_step(own)
        is_same = transfer.run(Plan([step])) and all(
            i == 1
            or elementwise.is_same(copies[i][0], real(t))  # a class may do with gradients what it likes
            for i, t in enumerate(self._lists(own, names, made.places))
        )
        if not is_same:
            raise NotRecordedError(OTHER_BITS)

    def _lists(
        self, optimizer: torch.optim.Optimizer, names: tuple[str, ...], places: tuple[Place, ...]
    ) -> list[Tensor]:
        (group,) = optimizer.param_groups
        p = group["params"][self.place]
        state = optimizer.state[p]
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        numbers = [place.container(optimizer, group, p)[place.key] for place in places]
        return [p, grad, *(state[name] for name in names), *map(memory_of, numbers)]

    def _shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of a throw-away parameter: n values, of a class outside torch the host's."""
        return (n,) if self.is_torchs else dict(self.layout)["self"][0]

    def _stand_in(
        self, group: Group, shape: tuple[int, ...], seed: int = 0
    ) -> tuple[torch.optim.Optimizer, tuple[str, ...]]:
        """Make an optimizer like this one, of one parameter, and name the tensors of its state."""
        generator = torch.Generator().manual_seed(seed)

        def draw(name: str) -> Tensor:
            dtype = torch.complex128 if self.dtype.is_complex else torch.float64
            return self._lay(name, torch.randn(shape, generator=generator, dtype=dtype).to(self.dtype))

        parameter = nn.Parameter(draw("self"))
        members = [*self.others[: self.place], parameter, *self.others[self.place :]]
        grads = [p.grad for p in self.others]
        other = object.__new__(type(self.optimizer))
        try:
            vars(other).update(
                self._attributes(),
                param_groups=[{**group, "params": list(members)}],
                state=defaultdict(dict),
            )
            if (
                other.param_groups is not vars(other)["param_groups"]
                or other.state is not vars(other)["state"]
            ):
                raise NotRecordedError("another optimizer has its parameters")
            for _ in range(2):
                parameter.grad = draw("grads")
                for p, grad in zip(self.others, grads, strict=True):
                    p.grad = None if grad is None else grad.clone()
                with grad_mode(False):
                    recorder.plain_step(other)
            parameter.grad = draw("grads")
            for p, grad in zip(self.others, grads, strict=True):
                p.grad = None if grad is None else grad.clone()
        except NotRecordedError:
            raise
        except Exception as error:
            raise NotRecordedError(f"{type(error).__name__}: {error}") from error
        (made,) = other.param_groups
        made.update({**group, "params": members})  # whose numbers steps may have changed
        state = other.state[parameter]
        for name, value in self.items.items():
            if not is_item(value):
                state[name] = value
                continue
            if not is_item(state.get(name)) or state[name].dtype != value.dtype:
                raise NotRecordedError(f"its state {name} is not understood")
            state[name].copy_(value)
        for p in self.others:
            for name, value in self.items.items():
                if name in other.state.get(p, {}):
                    other.state[p][name] = value.clone() if is_item(value) else value
        for name in dict(self.layout).keys() & state.keys():
            state[name] = self._lay(name, state[name].flatten() if self.is_torchs else state[name])
        names = tuple(name for name, value in state.items() if isinstance(value, Tensor))
        if any(v is not None and k not in names and k not in self.items for k, v in state.items()):
            raise NotRecordedError("its state holds something other than tensors and numbers")
        return other, names

    def _lay(self, name: str, values: Tensor) -> Tensor:
        """Return values laid out as one of the arrays is: of a class of torch's, a vector's."""
        if not self.layout:
            return values
        how = dict(self.layout)[name]
        if not self.is_torchs:
            return torch.empty_strided(*how, dtype=values.dtype).copy_(values)
        rows = elementwise.in_rows(values)
        return elementwise.scattered(rows) if how else rows

    def _attributes(self) -> dict[str, Any]:
        """Return copies of the optimizer's attributes, which a step may change."""
        left_out = ("param_groups", "state", "step")
        return copy.deepcopy({k: v for k, v in vars(self.optimizer).items() if k not in left_out})


def _small(p: Tensor) -> nn.Parameter:
    """Return what stands for a parameter beside the one that is recorded: of as many dimensions."""
    return nn.Parameter(torch.ones([min(n, 4) for n in p.shape], dtype=p.dtype))
