"""One optimizer over the ranks of a parallel program: what all must agree on, and what they compute together.

A rank steps its part alone, whether the host has cut it so, "Shard(0)", or `sliced` has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from optplug import norms, spec
from optplug.blocks import Block, Place, check_tiling, row_major
from optplug.buffers import layout_of, name_of
from optplug.errors import NonFiniteError, StateError
from optplug.kinds import Grad, Parameter, SparseGrad
from optplug.options import CheckpointOptions
from optplug.over_ranks import OverRanks, add, largest, norm
from optplug.parameters import Parameters, make
from optplug.plans import Together
from optplug.recipe import Recipe
from optplug.run import Run
from optplug.scaling import Scale
from optplug.sliced import Exchange, Sliced
from optplug.spec import Call, shown
from optplug.wholes import Wholes, told
from optplug.world import World, is_of_all, statement_of

#: How ranks' gradients and losses become one, by placement.
PLACEMENTS = {
    "Replicate()": "mean",
    "Replicate(), Partial('sum')": "sum",
    "Replicate(), Replicate()": "",
    "Shard(0)": "sum",
}
# Classes of torch.optim whose steps treat each value by itself.
_ELEMENTWISE = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"),
    "SGD",
)


def read_placement(text: str) -> str:
    """Return a placement as it stands in `PLACEMENTS`.

    Raises:
        ValueError: it is none of those.
    """
    try:
        calls = spec.parse(f"placements({text})").args
        if not all(isinstance(call, Call) and not call.kwargs for call in calls):
            raise ValueError
        said = ", ".join(f"{call.name}({', '.join(map(repr, call.args))})" for call in calls)
    except ValueError:
        said = ""
    if said not in PLACEMENTS:
        raise ValueError(f"placement must be one of {'; '.join(PLACEMENTS)}; got {shown(text)}")
    return said


class Ranks:
    """What one optimizer does together with those of the other ranks.

    Args:
        world: the ranks, two or more.
        recipe: the optimizer's.
        parameters: those that are bound here.
        checks_gradients: whether a gradient with an inf or a nan in it is an error.
        checks_calls: whether ranks compare each call that all of them make.

    Raises:
        ValueError: the optimizer's class cannot be stepped so.
    """

    def __init__(
        self, world: World, recipe: Recipe, parameters: Parameters, checks_gradients: bool, checks_calls: bool
    ) -> None:
        if not recipe.is_torchs or not (recipe.is_lbfgs or recipe.name in _ELEMENTWISE):
            raise ValueError(
                f"opt_distribute with {recipe.name} is not supported: keep its parameters on every rank, "
                "reduce the gradients yourself, and call opt_step without opt_distribute"
            )
        self.world = world
        self._recipe, self._parameters = recipe, parameters
        self._checks_gradients, self._checks_calls = checks_gradients, checks_calls
        #: What moves the gradients and values of parameters that all ranks have.
        self.exchange = Exchange(world)
        self._placement, self._placements = "", dict[str, str]()
        self._blocks = dict[str, Block]()
        self._is_agreed = False
        self._table = np.zeros(5 * (world.size + 1))  # room for C's numbers
        self._found_inf = torch.zeros(())  # of all ranks: the same tensor for good, as steps are made again
        self._loaded: Wholes | None = None

    # ---- parameters ----

    def place(self, placement: str) -> None:
        """Let the parameters that are bound from now on lie so."""
        others = {*self._placements.values(), placement} - {"Replicate(), Replicate()"}
        if len({PLACEMENTS[p] for p in others}) > 1:
            raise ValueError(
                f"placement {shown(placement)} beside {', '.join(map(shown, sorted(others - {placement})))}: "
                'losses would be averaged and added up: use "Replicate(), Partial(\'sum\')" with "Shard(0)"'
            )
        self._placement = placement

    def make(self, name: str, data: Tensor, grad: Grad, has_master: bool) -> Parameter:
        """Return a parameter of these arrays: `parameters.make`, where they lie on ranks."""
        if self._is_agreed:
            raise StateError(
                f"name {shown(name)} is new after the first call that all ranks make: "
                "bind all parameters before"
            )
        if isinstance(grad, SparseGrad):
            raise ValueError(f"parameter {shown(name)}: ranks cannot have sparse rows: bind it dense")
        if data.device.type != "cpu":
            raise ValueError(f"parameter {shown(name)}: ranks cannot have GPU arrays: bind CPU memory")
        if self._placement == "Shard(0)":
            if not data.dim():
                raise ValueError(f'parameter {shown(name)}: "Shard(0)" needs a dimension 0, got a scalar')
            made = make(name, data, grad, has_master)
        elif has_master:
            raise ValueError(
                f"parameter {shown(name)}: master copies with {shown(self._placement)} are not supported: "
                'call opt_init("master_weights=False") before opt_create, or bind float32'
            )
        elif self._recipe.is_lbfgs and not data.is_contiguous():
            raise ValueError(
                f"parameter {shown(name)}: LBFGS needs C order, got {layout_of(data)}: bind it flat"
            )
        else:
            made = Sliced(name, data, grad, PLACEMENTS[self._placement], self.exchange)
        self._placements[name] = self._placement
        return made

    def bind_block(self, name: str, block: Block) -> None:
        """Let a parameter's part be a block of a grid."""
        if self._placements[name] != "Shard(0)":
            raise ValueError(
                f"parameter {shown(name)}: every rank has all of it, by {shown(self._placements[name])}: "
                'blocks are for "Shard(0)"'
            )
        if self._is_agreed:
            raise StateError(f"parameter {shown(name)} has been stepped: call opt_bind_block before that")
        self._blocks[name] = block

    def sliced(self) -> list[Sliced]:
        """Return the parameters of which each rank steps a slice."""
        return [p for p in self._parameters if isinstance(p, Sliced)]

    @property
    def reason(self) -> str:
        """Why steps run by Python; "" if they need not."""
        if self._checks_calls:
            return "check_ranks compares every call"
        if self._recipe.is_lbfgs or (self.sliced() and self.together() is None):
            return "they communicate with other ranks"
        return "ranks agree on errors of gradients" if self._checks_gradients else ""

    def together(self) -> Together | None:
        """State for C what steps and clipping send; None if only Python can do it."""
        function = getattr(self.world.collective, "function", None)
        sliced = self.sliced()
        exchanges = (
            self.exchange.stated(sliced)
            if function is not None and not (self._checks_gradients or self._checks_calls)
            else None
        )
        if exchanges is None:
            return None
        user = self.world.collective.user  # type: ignore[attr-defined]
        return Together(
            self.world.rank,
            self.world.size,
            function,
            user,
            self.exchange.state,
            self.world.sent,
            self._table,
            exchanges,
        )

    def describe(self) -> list[str]:
        """Say which rank this is, and where parameters lie."""
        world = self.world
        where = [f"placement {name!r}: {placement}" for name, placement in self._placements.items()]
        calls, sent_bytes = map(int, world.sent)
        sent = f"{calls} collectives, {sent_bytes} bytes sent to each other rank"
        return [f"rank: {world.rank} of {world.size}, {sent}", *where]

    # ---- agreement ----

    def meet(self, what: str, state: Callable[[], Run]) -> bool:
        """See, at the first call that all ranks make, that they mean the same optimizer; True if it was that.

        Args:
            what: the call.
            state: checks whether this rank can make it, and returns its run.
        """
        self.world.check(what)
        if self._is_agreed:
            return False
        try:
            statement: Mapping[str, Any] = self._statement(what, state())
        except Exception as error:
            statement = statement_of(error)
        self.world.agree(statement)
        self._is_agreed = True
        self.world.is_checked = self._checks_calls  # by all ranks, as they know now
        return True

    def _statement(self, what: str, run: Run) -> dict[str, Any]:
        arguments = ", ".join(f"{k}={v!r}" for k, v in sorted(self._recipe.arguments.items()))
        return {
            "call": what,
            "spec": f"{self._recipe.name}({arguments})",
            "torch": str(torch.__version__),
            "error_if_nonfinite": self._checks_gradients,
            "check_ranks": self._checks_calls,
            "groups": [repr(sorted(group.options.items())) for group in self._parameters.groups],
            "schedules": [text for text, _ in run.schedules],
            "average": run.average.text if run.average else None,
            "parameters": {
                p.name: self._form(p, i)
                for i, group in enumerate(self._parameters.groups)
                for p in map(self._parameters.__getitem__, group.names)
            },
        }

    def _form(self, p: Parameter, group: int) -> str:
        block, shape = self._blocks.get(p.name), [*p.data.shape]
        if not isinstance(p, Sliced):
            shape = ["..."] * len(shape) if block else ["...", *shape[1:]]
        order = f", strides {p.data.stride()}" if isinstance(p, Sliced) and p.data.dim() > 1 else ""
        kind = ", with a master copy" if not p.is_read else ""
        kind += f", in blocks of a grid of {block.shape}" if block else ""
        sizes = ", ".join(map(str, shape))
        return f"{name_of(p.data.dtype)} [{sizes}]{order} in group {group}, {self._placements[p.name]}{kind}"

    def names(self) -> list[str]:
        """Return the parameters' names in the order that all ranks share."""
        return [name for group in self._parameters.groups for name in sorted(group.names)]

    # ---- checkpoints ----

    def wholes(self) -> Wholes:
        """Return where all parameters lie in what a checkpoint has of them.

        Raises:
            ValueError: the ranks' parts are no whole.
        """
        parameters = self._parameters
        order = [group.names for group in parameters.groups]
        blocks = {name: dataclasses.astuple(block) for name, block in self._blocks.items()}
        mine = order, {p.name: [*p.data.shape] for p in parameters}, blocks
        ranks = [json.loads(text) for text in self.world.texts(json.dumps(mine))]
        for name in blocks:
            check_tiling(name, [Block(*map(tuple, theirs[name])) for _, _, theirs in ranks])
        places = {p.name: self._place(p, [shapes[p.name] for _, shapes, _ in ranks]) for p in parameters}
        return Wholes(parameters, places, ranks[0][0], self.world.rank == 0)

    def _place(self, p: Parameter, shapes: list[list[int]]) -> Place:
        shape = tuple(p.data.shape)
        if isinstance(p, Sliced):
            first = p.slices.mine.start // (1 + p.data.is_complex())
            block = Block((p.data.numel(),), (first,), tuple(p.tensor.shape))
            return Place(shape, p.data.stride(), block, tuple(p.tensor.shape))
        if p.name in self._blocks:
            block = self._blocks[p.name]
            whole = block.shape if block.size == shape else (math.prod(block.shape),)
            return Place(whole, row_major(whole), block, shape)
        lengths = [first for first, *_ in shapes]
        whole = (sum(lengths), *shape[1:])
        start = (sum(lengths[: self.world.rank]), *(0 for _ in shape[1:]))
        return Place(whole, row_major(whole), Block(whole, start, shape), shape)

    def save(
        self, options: CheckpointOptions, state_dict: Callable[[Wholes], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what all ranks save, from what each would."""
        wholes = self.wholes()

        def merge(state: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
            merged = wholes.merge(state_dict(wholes))
            optimizer, about = merged["optimizer"], merged["optplug"]
            groups = optimizer["param_groups"]
            rest = {key: told(value) for key, value in merged.items() if key != "optimizer"}
            named = zip((n for g in groups for n in g["param_names"]), itertools.count())
            state(
                {
                    "call": "opt_save",
                    "opt_checkpoint": repr(options),
                    "steps": about["steps"],
                    "groups": told([{k: v for k, v in g.items() if k != "fused"} for g in groups]),
                    "schedulers": rest["schedulers"],
                    "average": rest["average"],
                    "attributes": rest["attributes"],
                    "parameters": {name: told(optimizer["state"].get(i)) for name, i in named},
                }
            )
            return merged

        merged = self.world.all_or_none(merge)
        groups, about = merged["optimizer"]["param_groups"], merged["optplug"]
        # Each rank's arrays tell whether they can be fused, at the save and at the load.
        fused = self.world.numbers(*(group.get("fused") is True for group in groups))
        for group, is_fused in zip(groups, zip(*fused, strict=True), strict=True):
            group |= {"fused": True} if any(is_fused) else {}
        about["checksums"] = self._combined(wholes, about["checksums"])
        return cast(dict[str, Any], wholes.share(merged))

    def load(
        self,
        options: CheckpointOptions,
        work: Callable[[Wholes, Callable[[dict[str, Any]], None]], None],
    ) -> None:
        """Load on all ranks, or on none: ``work`` confirms what it has read before it changes anything."""
        wholes = self._loaded = self.wholes()

        def load(state: Callable[[Mapping[str, Any]], None]) -> None:
            def confirm(content: dict[str, Any]) -> None:
                file = hashlib.sha256(told(content).encode()).hexdigest()
                state({"call": "opt_load", "opt_checkpoint": repr(options), "file": file, "parameters": {}})

            work(wholes, confirm)

        self.world.all_or_none(load)

    def checksums(self, here: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the checksums of some parameters' values, as the last load takes them."""
        assert self._loaded
        return self._combined(self._loaded, self._loaded.checksums(here))

    def _combined(self, wholes: Wholes, parts: Mapping[str, int]) -> dict[str, int]:
        names = sorted(parts)
        columns = zip(*self.world.numbers(*(parts[name] for name in names)), strict=True)
        return {name: wholes.checksum(name, [*map(int, c)]) for name, c in zip(names, columns, strict=True)}

    # ---- gradients ----

    def gather(self, look: Callable[[], None]) -> None:
        """Check the host's gradients, by ``look``, and reduce them; fail on all ranks if one does."""
        error: Exception | None = None
        try:
            look()
        except Exception as found:
            error = found
        if self.exchange.takes_failure():
            self.world.fail(error)
        reduces = [p for p in self.sliced() if p.reduction] if not self.exchange.is_reduced else []
        if reduces:
            failed = self.exchange.reduce(reduces, error is not None)
            if failed:
                self.world.fail(error)
        elif error is not None and not self._checks_gradients:
            raise error
        if self._checks_gradients:
            for p in reduces:
                if error is None and not torch.isfinite(p.stepped_memory()).all():
                    error = NonFiniteError(
                        f"the reduced gradient of parameter {shown(p.name)} contains inf or nan"
                    )
            self.world.exchange(error)

    def scale(self, scale: Scale) -> Scale:
        """Return the scale of all ranks, which must be one, and leaves a step out if it does so on any.

        Raises:
            ValueError: they differ.
        """
        mine = (0.0 if number is None else number.item() for number in scale.numbers())
        factors, found_inf = zip(*self.world.numbers(*mine), strict=True)
        for rank, factor in enumerate(factors):
            if repr(factor) != repr(factors[0]):
                raise ValueError(
                    f"ranks differ: scale is {factor:g} on rank {rank}, {factors[0]:g} on rank 0"
                )
        self._found_inf.fill_(largest(found_inf))
        return Scale(scale.factor, self._found_inf)

    def renew(self) -> None:
        """Note that the host's gradients are new."""
        self.exchange.is_reduced = False

    def clip_grad_norm(
        self, max_norm: float, norm_type: float, error_if_nonfinite: bool, is_told: bool
    ) -> Tensor:
        """Do what `norms.clip_grad_norm_` does, by the norm over all ranks.

        Ranks tell each other what they have once, and once more if anything is wrong with it: C may have been
        told so the first time, and then leaves the rest to this, ``is_told``.
        """
        error: Exception | None = None
        clippable = self._parameters.clippable()
        dtype = functools.reduce(torch.promote_types, (p.abs().dtype for p in clippable))
        part = torch.zeros((), dtype=dtype)
        self.gather(lambda: None)
        try:
            norms.check(max_norm, norm_type)
            if not norm_type > 0:
                raise ValueError(f"norm_type over ranks must be positive, got {norm_type}")
            grads = [p for p in clippable if p.numel()]
            part = norms.total_norm(grads, norm_type) if grads else part
        except Exception as found:
            error = found

        def total_of(table: list[tuple[float, ...]]) -> Tensor:
            return part.new_tensor(norm((row[1] for row in table), norm_type))

        mine = error is not None, part.item(), max_norm, norm_type, error_if_nonfinite
        table = [] if is_told else self.world.numbers(*mine)
        if not table or any(row[0] or row[2:] != mine[2:] for row in table) or not total_of(table).isfinite():
            table = self.world.numbers(*mine)
        if any(row[0] for row in table):
            self.world.fail(error)
        for i, what in enumerate(("max_norm", "norm_type", "error_if_nonfinite"), 2):
            for rank, row in enumerate(table):
                if row[i] != table[0][i]:
                    raise ValueError(
                        f"ranks differ: {what} is {row[i]:g} on rank {rank}, {table[0][i]:g} on rank 0"
                    )
        total = total_of(table)
        if error_if_nonfinite and not total.isfinite():
            raise NonFiniteError(f"the total norm of order {norm_type} over all ranks is {total.item()}")
        nn.utils.clip_grads_with_norm_(clippable, max_norm, total)
        return total

    # ---- losses ----

    def combine(self, values: list[float]) -> float:
        """Return the one loss or metric that the ranks' are."""
        kinds = {PLACEMENTS[p] for p in self._placements.values()} - {""}
        if not kinds:
            return values[0]
        total = add(values)
        return total / len(values) if "mean" in kinds else total

    def evaluate(self, closure: Callable[[], float]) -> float:
        """Return the loss of all ranks' closures; fail on all if one does."""
        error, loss = None, 0.0
        self.renew()
        self.world.is_in_host = True
        try:
            loss = closure()
        except Exception as found:
            error = found
        finally:
            self.world.is_in_host = False
        table = self.world.numbers(error is not None, loss)
        if any(failed for failed, _ in table):
            self.world.fail(error)
        return self.combine([loss for _, loss in table])

    def metric(self, value: float) -> float:
        """Return the metric of all ranks."""
        return self.combine([v for (v,) in self.world.numbers(value)])

    def step_closure(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> None:
        """Make a step whose vectors have parts on all ranks."""
        if not self._recipe.is_lbfgs:
            optimizer.step(closure)
            return
        mode = OverRanks(self.world)

        def outside() -> Any:
            with mode.off():
                return closure()

        with mode:
            optimizer.step(outside)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Let the hosts have the values of before again, after a step that has failed on all ranks."""
        try:
            yield
        except Exception as error:
            if is_of_all(error):
                self._parameters.publish()
            raise
