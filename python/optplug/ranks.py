"""One optimizer over the ranks of a parallel program: what all must agree on, and what they compute together.

A rank steps its part alone, whether the host has cut it so, "Shard(0)", or `sliced` has.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from optplug import norms
from optplug._optplug import lib
from optplug.blocks import Block
from optplug.buffers import layout_of, name_of
from optplug.digest import Digest, Groups, told
from optplug.errors import NonFiniteError, StateError
from optplug.kinds import Grad, Parameter, SparseGrad
from optplug.over_ranks import OverRanks, add, largest, norm
from optplug.parameters import Parameters, make
from optplug.placements import BY_WHOLE, PLACEMENTS, check_class
from optplug.plans import Together
from optplug.recipe import Recipe
from optplug.run import Run
from optplug.scaling import Scale
from optplug.sliced import Exchange, Sliced
from optplug.spec import shown
from optplug.world import Unheard, World, is_of_all, statement_of

# What a digest has besides, where opt_grad_scale has set something.
_SCALED = 0x9E3779B97F4A7C15


class Ranks:
    """What one optimizer does together with those of the other ranks.

    Args:
        world: the ranks, two or more.
        recipe: the optimizer's.
        parameters: those that are bound here.
        groups: returns the optimizer's groups, once it is built.
        is_scaled: tells whether opt_grad_scale has set something.
        checks_gradients: whether a gradient with an inf or a nan in it is an error.
        checks_calls: whether ranks compare each call that all of them make.
    """

    def __init__(
        self,
        world: World,
        recipe: Recipe,
        parameters: Parameters,
        groups: Callable[[], Groups],
        is_scaled: Callable[[], bool],
        checks_gradients: bool,
        checks_calls: bool,
    ) -> None:
        self.world = world
        self._recipe, self._parameters = recipe, parameters
        self._groups, self._is_scaled = groups, is_scaled
        self._checks_gradients, self._checks_calls = checks_gradients, checks_calls
        self._digest = Digest()
        #: What moves the gradients and values of parameters that all ranks have.
        self.exchange = Exchange(world, self._digest_of_all)
        self._placement, self._placements = "", dict[str, str]()
        #: Which blocks of grids parameters are.
        self.blocks = dict[str, Block]()
        self._is_agreed = False
        # Room for C's numbers, and the part of the digest that it does not compute.
        self._table, self._rest = np.zeros(6 * (world.size + 1)), np.zeros(1, np.uint64)
        self._found_inf = torch.zeros(())  # of all ranks: the same tensor for good, as steps are made again

    # ---- parameters ----

    def place(self, placement: str) -> None:
        """Let the parameters that are bound from now on lie so.

        Raises:
            ValueError: the optimizer's class cannot step them, or they go with none that are there.
        """
        check_class(self._recipe, placement)
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
                "bind all parameters before that"
            )
        if isinstance(grad, SparseGrad):
            raise ValueError(f"parameter {shown(name)}: ranks cannot have sparse rows: bind it dense")
        if data.device.type != "cpu":
            raise ValueError(f"parameter {shown(name)}: ranks cannot have GPU arrays: bind CPU memory")
        if self._placement == "Shard(0)":
            if not data.dim():
                raise ValueError(f'parameter {shown(name)}: "Shard(0)" needs a dimension 0, got a scalar')
            made = make(name, data, grad, has_master)
        elif self._recipe.is_lbfgs and not data.is_contiguous():
            raise ValueError(
                f"parameter {shown(name)}: LBFGS needs C order, got {layout_of(data)}: bind it flat"
            )
        else:
            reduction, is_owned = PLACEMENTS[self._placement], self._recipe.name in BY_WHOLE
            made = Sliced(name, data, grad, reduction, self.exchange, has_master, is_owned)
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
            raise StateError(
                f"parameter {shown(name)} has been stepped: call opt_bind_block before the first step"
            )
        self.blocks[name] = block

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
            self.exchange.seen,
            self.world.sent,
            self._table,
            self._rest,
            self._groups(),
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
        if self.world.is_checked:
            self._compare_hyperparameters()
        if self._is_agreed:
            return False
        try:
            statement: Mapping[str, Any] = self._statement(what, state())
            self.exchange.share_out(self.sliced())
            self.exchange.prepare(self.sliced())
        except Exception as error:
            statement = statement_of(error)
        self.world.agree(statement)
        self._is_agreed = True
        self.world.is_checked = self._checks_calls  # by all ranks, as they know now
        return True

    def _compare_hyperparameters(self) -> None:
        """Fail on all ranks, which all call this, if their hyperparameters differ."""
        scale = "set" if self._is_scaled() else "NULL"
        self.world.agree({**told(self._groups()), "opt_grad_scale": scale, "parameters": {}})

    def _digest_of_all(self) -> int:
        return self._digest.of(self._groups()) ^ (_SCALED if self._is_scaled() else 0)

    def _fail_of_digests(self) -> NoReturn:
        self._compare_hyperparameters()
        raise RuntimeError("ranks differ in their hyperparameters' digests, and not in their values")

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
        block, shape = self.blocks.get(p.name), [*p.data.shape]
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

    # ---- gradients ----

    def gather(self, look: Callable[[], None]) -> None:
        """Check the host's gradients, by ``look``, and reduce them; fail on all ranks if one does."""
        sliced = self.sliced()
        if sliced:
            self.world.check_process()  # before values change that are sent after the step
        error: Exception | None = None
        try:
            look()
            self.exchange.check_seen(sliced)
        except Exception as found:
            error = found
        reduces = [p for p in sliced if p.reduction] if not self.exchange.is_reduced else []
        wrong = self.exchange.take_failure()
        if wrong == lib.RANKS_TORN:
            self.world.fail(None, has_stepped=True)
        if wrong == lib.RANKS_BROKEN:
            self.world.fail(
                RuntimeError("PyTorch has failed in the middle of a step: load a checkpoint on all ranks")
            )
        if reduces:
            wrong = wrong or self.exchange.reduce(reduces, error is not None)
            if wrong == lib.RANKS_FAILED:
                self.world.fail(error)
            if wrong == lib.RANKS_DIFFER:
                self._fail_of_digests()
        elif error is not None and not self._checks_gradients:
            raise error
        if self._checks_gradients:
            for p in reduces:
                if error is None and not torch.isfinite(p.clipped_memory()).all():
                    error = NonFiniteError(
                        f"the reduced gradient of parameter {shown(p.name)} contains inf or nan"
                    )
            try:
                self.world.exchange(error)
            except Exception:
                self.exchange.settle(False)
                raise

    def scale(self, scale: Scale) -> Scale:
        """Return the scale of all ranks, which must be one, and leaves a step out if it does so on any.

        Raises:
            ValueError: they differ.
        """
        mine = (0.0 if number is None else number.item() for number in scale.numbers())
        factors, found_inf = zip(*self.world.numbers(*mine), strict=True)
        for rank, factor in enumerate(factors):
            if repr(factor) != repr(factors[0]):
                self.exchange.settle(False)
                raise ValueError(
                    f"ranks differ: scale is {factor:g} on rank {rank}, {factors[0]:g} on rank 0"
                )
        self._found_inf.fill_(largest(found_inf))
        return Scale(scale.factor, self._found_inf)

    @contextlib.contextmanager
    def clipping(self) -> Iterator[None]:
        """Let the step take the gradients that a block reduces; where it fails, the host may have others."""
        try:
            yield
        except BaseException:
            self.exchange.settle(False)
            raise
        self.exchange.settle(True, self.sliced())

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
        clippable = self._parameters.clippable()
        dtype = functools.reduce(torch.promote_types, (p.abs().dtype for p in clippable))
        part = torch.zeros((), dtype=dtype)
        self.world.listen()
        with Unheard() as block:
            self.gather(lambda: None)
            norms.check(max_norm, norm_type)
            if not norm_type > 0:
                raise ValueError(f"norm_type over ranks must be positive, got {norm_type}")
            grads = [p for p in clippable if p.numel()]
            part = norms.total_norm(grads, norm_type) if grads else part

        def total_of(table: list[tuple[float, ...]]) -> Tensor:
            return part.new_tensor(norm((row[1] for row in table), norm_type))

        digest = float(self._digest_of_all() >> 11)  # as many bits as a double has
        mine = block.error is not None, part.item(), max_norm, norm_type, error_if_nonfinite, digest
        table = [] if is_told else self.world.numbers(*mine)
        if not table or any(row[0] or row[2:] != mine[2:] for row in table) or not total_of(table).isfinite():
            table = self.world.numbers(*mine)
        if any(row[0] for row in table):
            self.world.fail(block.error)
        for i, what in enumerate(("max_norm", "norm_type", "error_if_nonfinite"), 2):
            for rank, row in enumerate(table):
                if row[i] != table[0][i]:
                    raise ValueError(
                        f"ranks differ: {what} is {row[i]:g} on rank {rank}, {table[0][i]:g} on rank 0"
                    )
        if any(row[5] != digest for row in table):
            self._fail_of_digests()
        total = total_of(table)
        if error_if_nonfinite and not total.isfinite():
            raise norms.non_finite(norm_type, " over all ranks")
        nn.utils.clip_grads_with_norm_(clippable, max_norm, total)
        return total

    def clip_grad_value(self, clip_value: float) -> None:
        """Clip the gradients, reduced, by a value, which must be one where they are.

        Raises:
            ValueError: it is not.
        """
        if self.sliced() or self._checks_calls:
            self.world.listen()
            with Unheard() as block:
                self.gather(lambda: None)
            values = self.world.numbers(block.error is not None, clip_value)
            if any(failed for failed, _ in values):
                self.world.fail(block.error)
            for rank, (_, value) in enumerate(values):
                if repr(value) != repr(values[0][1]):
                    raise ValueError(
                        f"ranks differ: clip_value is {value:g} on rank {rank}, {values[0][1]:g} on rank 0"
                    )
        # What was added up in float32 is clipped by the value in the host's dtype, as torch does.
        limits = [p.data.new_zeros(()).fill_(clip_value).item() for p in self._parameters]
        for p, limit in zip(self._parameters, limits, strict=True):
            norms.clip_grad_value_([t for t in [p.clippable()] if t is not None], limit)

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
        self.exchange.pause(True)  # since C does not listen
        try:
            with self.world.in_host():
                try:
                    loss = closure()
                except Exception as found:
                    error = found
        finally:
            self.exchange.pause(False)
        digest = float(self._digest_of_all() >> 11)
        table = self.world.share(loss, digest, error=error)
        if any(theirs != digest for _, theirs in table):
            self._fail_of_digests()
        return self.combine([loss for loss, _ in table])

    def before_values(self) -> None:
        """Fail with a rank that has failed in a closure's step, before values are sent in it."""
        if self.sliced():
            self.world.share()

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
    def publishing(self, can_undo: bool) -> Iterator[None]:
        """Let all ranks have what a block steps on each; fail on all if it does on one.

        Args:
            can_undo: whether what the block has changed is put back if this fails.
        """
        sliced = self.sliced()
        if not sliced:
            yield
            return
        with Unheard() as block:
            yield
        error = block.error
        try:
            if not self.exchange.publish(sliced, error is not None):
                self.world.fail(error, has_stepped=error is None and not can_undo)
        except Exception:
            self.exchange.settle(False)
            raise

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Let the hosts have the values of before again, after a step that has failed on all ranks."""
        try:
            yield
        except Exception as error:
            if is_of_all(error):
                self._parameters.publish()
            raise
