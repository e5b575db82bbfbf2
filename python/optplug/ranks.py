"""One optimizer over the ranks of a parallel program: what all must agree on, and what they compute together.

A rank steps its part alone, whether the host has cut it so, "Shard(0)", or `sliced` has.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from optplug import norms, spec
from optplug.buffers import name_of
from optplug.errors import NonFiniteError
from optplug.gradient_check import Check
from optplug.kinds import Grad, Parameter, SparseGrad
from optplug.over_ranks import OverRanks, add, largest, norm
from optplug.parameters import Parameters, make
from optplug.plans import Together
from optplug.recipe import Recipe
from optplug.run import Run
from optplug.scaling import Scale
from optplug.sliced import Exchange, Sliced
from optplug.spec import Call, shown
from optplug.world import World, is_of_all, statement_of

T = TypeVar("T")
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

    Raises:
        ValueError: the optimizer's class cannot be stepped so.
    """

    def __init__(self, world: World, recipe: Recipe, parameters: Parameters, checks_gradients: bool) -> None:
        if not recipe.is_torchs or not (recipe.is_lbfgs or recipe.name in _ELEMENTWISE):
            raise ValueError(
                f"opt_distribute with {recipe.name} is not built: keep all of its parameters on every rank, "
                "reduce the gradients yourself, and call opt_step without opt_distribute"
            )
        self.world = world
        self._recipe, self._parameters = recipe, parameters
        self._checks_gradients = checks_gradients
        self._exchange = Exchange(world)
        self._placement, self._placements = "", dict[str, str]()
        self._is_agreed = False
        self._table = np.zeros(5 * (world.size + 1))  # room for C's numbers
        self._found_inf = torch.zeros(())  # of all ranks: the same tensor for good, as steps are made again

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
        if isinstance(grad, SparseGrad):
            raise ValueError(f"parameter {shown(name)}: sparse rows over ranks are not built: bind it dense")
        if data.device.type != "cpu":
            raise ValueError(f"parameter {shown(name)}: GPU arrays over ranks are not built: bind CPU memory")
        if self._placement == "Shard(0)":
            if not data.dim():
                raise ValueError(f'parameter {shown(name)}: "Shard(0)" needs a dimension 0, got a scalar')
            made = make(name, data, grad, has_master)
        elif has_master:
            raise ValueError(
                f"parameter {shown(name)}: master copies with {shown(self._placement)} are not built: "
                'call opt_init("master_weights=False") before opt_create, or bind float32'
            )
        else:
            made = Sliced(name, data, grad, PLACEMENTS[self._placement], self._exchange)
        self._placements[name] = self._placement
        return made

    def sliced(self) -> list[Sliced]:
        """Return the parameters of which each rank steps a slice."""
        return [p for p in self._parameters if isinstance(p, Sliced)]

    @property
    def reason(self) -> str:
        """Why steps run by Python; "" if they need not."""
        if self._recipe.is_lbfgs or (self.sliced() and self.together() is None):
            return "they communicate with other ranks"
        return "ranks agree on errors of gradients" if self._checks_gradients else ""

    def together(self) -> Together | None:
        """State for C what steps and clipping send; None if only Python can do it."""
        function = getattr(self.world.collective, "function", None)
        sliced = self.sliced()
        exchanges = (
            self._exchange.stated(sliced) if function is not None and not self._checks_gradients else None
        )
        if exchanges is None:
            return None
        user = self.world.collective.user  # type: ignore[attr-defined]
        return Together(
            self.world.rank,
            self.world.size,
            function,
            user,
            self._exchange.state,
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
        if self._is_agreed:
            return False
        try:
            statement: Mapping[str, Any] = self._statement(what, state())
        except Exception as error:
            statement = statement_of(error)
        self.world.agree(statement)
        self._is_agreed = True
        return True

    def _statement(self, what: str, run: Run) -> dict[str, Any]:
        arguments = ", ".join(f"{k}={v!r}" for k, v in sorted(self._recipe.arguments.items()))
        return {
            "call": what,
            "spec": f"{self._recipe.name}({arguments})",
            "torch": str(torch.__version__),
            "error_if_nonfinite": self._checks_gradients,
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
        shape = [*p.data.shape]
        if not isinstance(p, Sliced):
            shape[0] = "..."
        order = f", strides {p.data.stride()}" if isinstance(p, Sliced) and p.data.dim() > 1 else ""
        kind = ", with a master copy" if not p.is_read else ""
        sizes = ", ".join(map(str, shape))
        return f"{name_of(p.data.dtype)} [{sizes}]{order} in group {group}, {self._placements[p.name]}{kind}"

    def names(self) -> list[str]:
        """Return the parameters' names in the order that all ranks share."""
        return [name for group in self._parameters.groups for name in sorted(group.names)]

    # ---- gradients ----

    def gather(self, look: Callable[[], None]) -> None:
        """Check the host's gradients, by ``look``, and reduce them; fail on all ranks if one does."""
        error: Exception | None = None
        try:
            look()
        except Exception as found:
            error = found
        if self._exchange.takes_failure():
            self.world.fail(error)
        reduces = [p for p in self.sliced() if p.reduction] if not self._exchange.is_reduced else []
        if reduces:
            failed = self._exchange.reduce(reduces, error is not None)
            if failed:
                self.world.fail(error)
        elif error is not None and not self._checks_gradients:
            raise error
        if self._checks_gradients:
            for p in reduces:
                if error is None and not torch.isfinite(p.stepped_memory()).all():
                    error = NonFiniteError(
                        f"the reduced gradient of parameter {shown(p.name)} has an inf or a nan in it"
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
        self._exchange.is_reduced = False

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
        try:
            loss = closure()
        except Exception as found:
            error = found
        table = self.world.numbers(error is not None, loss)
        if any(failed for failed, _ in table):
            self.world.fail(error)
        return self.combine([loss for _, loss in table])

    def check_gradient(self, closure: Callable[[], float]) -> float:
        """Do what `gradient_check.check` does, with the loss of all ranks.

        Of parts, the values that are compared one by one are shared out among the ranks, which take turns.
        """
        world, was_reduced = self.world, self._exchange.is_reduced
        loss = functools.partial(self.evaluate, closure)
        check = Check(self._parameters[name] for name in self.names())
        share = slice(world.rank, None, world.size)
        try:
            with check.moving():
                self._told(lambda: check.evaluate(loss, self._whole_gradient))
                check.compare(loss, _is_whole)
                self._in_turns(closure, lambda loss: check.compare_some(loss, _is_part, share))
                self._told(check.judge)  # since along a direction a part that is wrong makes all so
                check.compare_along(loss, _is_part, lambda part: add(v for (v,) in world.numbers(part)))
        finally:
            self._exchange.is_reduced = was_reduced
        worst = self._told(check.judge)
        return max(error for (error,) in world.numbers(worst))

    def _whole_gradient(self, p: Parameter, gradient: np.ndarray) -> np.ndarray:
        if not isinstance(p, Sliced) or not p.reduction:
            return gradient
        total = functools.reduce(torch.add, self.world.all_gather(torch.from_numpy(gradient))).numpy()
        return total / self.world.size if p.reduction == "mean" else total

    def _told(self, work: Callable[[], T]) -> T:
        """Do some work, and fail on all ranks if one has failed."""
        results: list[T] = []
        self.world.exchange(_error_of(lambda: results.append(work())))
        return results[0]

    def _in_turns(self, closure: Callable[[], float], work: Callable[[Callable[[], float]], None]) -> None:
        """Let one rank after the other do some work, with the loss of all as often as it wants that."""
        error: Exception | None = None

        def loss() -> float:
            self.world.numbers(True)
            return self.evaluate(closure)

        for rank in range(self.world.size):
            if rank == self.world.rank:
                error = _error_of(lambda: work(loss))
                self.world.numbers(False)
            else:
                while any(wants for (wants,) in self.world.numbers(False)):
                    self.evaluate(closure)
        self.world.exchange(error)

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


def _is_whole(p: Parameter) -> bool:
    return isinstance(p, Sliced)


def _is_part(p: Parameter) -> bool:
    return not isinstance(p, Sliced)


def _error_of(work: Callable[[], None]) -> Exception | None:
    """Return the error of some work, if it is not one that all ranks have raised."""
    try:
        work()
    except Exception as error:
        if is_of_all(error):
            raise
        return error
    return None
