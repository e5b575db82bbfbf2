"""A torch.optim optimizer over a host's parameters, up to its steps: how it is made, and of what.

Plain torch: nothing here knows C but the messages, which tell the host what to call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug import building, devices, hyperparameters, recipe, stopping
from optplug.attributes import Attributes
from optplug.binding import Binder
from optplug.blocks import block_of
from optplug.distributed import torchs
from optplug.errors import StateError
from optplug.iterate import Iteration
from optplug.joint_state import JointState
from optplug.kinds import Grad
from optplug.loans import Loans
from optplug.options import CheckpointOptions
from optplug.parameters import Parameters
from optplug.placements import read_placement
from optplug.planning import Planner
from optplug.plans import Plan, Rate
from optplug.randomness import Stream
from optplug.ranks import Ranks
from optplug.resume import Resumption
from optplug.run import Run
from optplug.scaling import Scale
from optplug.spec import SpecError, check_name, shown
from optplug.trials import Trials
from optplug.undo import Undo
from optplug.values import checksums, compare
from optplug.world import Collective, World


class Hosted:
    """A ``torch.optim`` optimizer whose parameters are a host's, bound one by one.

    Args:
        text: the spec, ``"Adam(lr=1e-3)"``: see `optplug.spec`.
        third_party: whether the spec may name a class outside ``torch.optim``, with its module; or of which
            packages.
        error_if_nonfinite: whether a step is refused where a gradient contains inf or nan.
        makes_plans: whether to state steps as plans, which then run elsewhere instead of ``step``; or how
            they do.
        rounds_sqrt: whether recorded steps take the processor's square root, whose bits may not be torch's.
        master_weights: whether parameters in half precision are stepped in float32: see `kinds.Mastered`.
        check_ranks: whether ranks compare each call that all of them make.
        seed, undo: those of classes outside torch: see `options.OptimizerOptions`.
        timeout: seconds for which ranks of torch.distributed wait for each other.

    Raises:
        ValueError: the spec cannot be read, names no optimizer, or PyTorch refuses a hyperparameter.
    """

    def __init__(
        self,
        text: str,
        third_party: bool | tuple[str, ...] = False,
        error_if_nonfinite: bool = False,
        makes_plans: bool | str = False,
        rounds_sqrt: bool = False,
        master_weights: bool = False,
        check_ranks: bool = False,
        seed: int = 0,
        undo: bool = True,
        timeout: float = 300,
    ) -> None:
        try:
            self.recipe = recipe.read(text, third_party)
            self._trials = Trials(self.recipe)
            self.recipe = self._trials.recipe
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {error}") from error
        self.recipe.warn_of_unknown(self.recipe.arguments)
        self.recipe.warn_of_modes()
        self.parameters = Parameters(None if self.recipe.is_torchs else Loans())
        self.run = Run()
        #: How the next step is made.
        self.planner = Planner(self.recipe, makes_plans, rounds_sqrt, error_if_nonfinite)
        #: Whether a gradient with an inf or a nan in it is an error.
        self.error_if_nonfinite = error_if_nonfinite
        #: Where work on GPUs goes.
        self.streams = devices.Streams()
        #: What is in checkpoints, and comes out of them.
        self.checkpoint = CheckpointOptions()
        #: The host's own words, which are in checkpoints as well.
        self.attributes = Attributes()
        self._binder = Binder(self.recipe, self._trials, self.parameters, master_weights, self.planner.forget)
        self._changes = hyperparameters.Changes(self._trials, self.parameters, self.planner)
        #: The random numbers of a class outside torch.
        parameters = self.parameters.all_tensors, self.parameters.gpus
        self.draws = Stream(self.recipe.all_classes(), seed, *parameters)
        self._undo = Undo(self.recipe, self.parameters, self.draws, undo)
        self._resumption = Resumption(self.recipe, self._trials, self.parameters, self.attributes, self.draws)
        self._build = functools.partial(building.build, self.recipe, self.parameters, self.draws)
        self.scale = Scale()
        self._iteration: Iteration | None = None
        self._timeout = timeout
        #: Those that step it together, where there are several.
        self.ranks: Ranks | None = None
        self._joint_state: JointState | None = None
        self._check_ranks = check_ranks

    @property
    def plan(self) -> Plan | None:
        """The next step without Python, where it can be made so."""
        return self.planner.plan

    # ---- parameters and their groups ----

    def bind(self, name: str, data: Tensor, grad: Grad, is_staged: bool = False) -> None:
        """Take ``data`` and ``grad`` as those of the parameter ``name``; move it if it is known.

        Between steps there is nothing in them to go by if ``is_staged``.

        Raises:
            ValueError: another shape or dtype than before, or a layout that the spec's ``fused=True``
                cannot step, or a parameter that PyTorch's optimizer refuses; a second array for a name
                before the first step; memory that is another parameter's.
            StateError: a new name once the optimizer is built.
        """
        self._check_idle("opt_bind")
        self._binder.bind(name, data, grad, is_staged, self.run)
        if data.is_cuda:
            self.streams.use_gpu()

    def group(self, text: str) -> None:
        """Let the parameters that are bound from now on be a group with these options of its own.

        Raises:
            ValueError: no such option, or PyTorch refuses its value, or has no groups for this class.
            StateError: the optimizer is built, or nothing is bound to the group before this one.
        """
        self._binder.group(text, self.run)

    def distribute(self, placement: str, collective: Collective | None, rank: int, size: int) -> None:
        """Let ranks step this optimizer together; parameters bound from now on lie as ``placement`` says.

        Args:
            placement: one of `placements.PLACEMENTS`.
            collective: is made by all ranks, or torch.distributed's if None.
            rank: this process's.
            size: of how many; 0 for as many as torch.distributed has.

        Raises:
            ValueError: there is no such placement, or the optimizer's class cannot be stepped so.
            StateError: something was bound before.
        """
        self._check_idle("opt_distribute")
        placement = read_placement(placement)
        if len(self.parameters) and (self.ranks is None or self.run.built is not None):
            first = next(iter(self.parameters)).name
            raise StateError(f"parameter {shown(first)} is bound: call opt_distribute before opt_bind")
        if size == 1:
            return  # it is as if nobody had called this
        ranks = self.ranks
        if ranks is None:
            world = World(collective, rank, size) if collective else torchs(rank, size, self._timeout)
            if world.size == 1:
                return
            ranks = Ranks(
                world,
                self.recipe,
                self.parameters,
                self._groups,
                lambda: bool(self.scale),
                self.error_if_nonfinite,
                self._check_ranks,
            )
        ranks.place(placement)
        if self.ranks is None:
            self.ranks, self._binder.make = ranks, ranks.make
            self._joint_state = JointState(ranks.world, self.parameters, ranks.blocks)

    def _groups(self) -> list[dict[str, Any]]:
        return self.run.built.param_groups if self.run.built else []

    def bind_block(
        self, name: str, whole: Sequence[int], start: Sequence[int], size: Sequence[int] | None
    ) -> None:
        """Let a parameter be a block of a whole that begins at ``start``, and has its own shape or ``size``.

        Raises:
            ValueError: there is no such parameter or block.
            StateError: ranks have stepped it.
        """
        self._check_idle("opt_bind_block")
        check_name(name, self.parameters.names(), "parameter")
        block = block_of(name, self.parameters[name].data.shape, whole, start, size)
        if self.ranks is not None:
            self.ranks.bind_block(name, block)
        elif block.size != block.shape:
            raise ValueError(
                f"parameter {shown(name)} is a block of shape {block.size} in {block.shape}, and there are "
                'no other ranks: call opt_distribute(opt, "Shard(0)", ...) before opt_bind'
            )

    def meet(self, what: str) -> None:
        """See that the other ranks, where there are any, make the same call on the same optimizer.

        All ranks must make it; with check_ranks each time, else the first.
        """
        if self.ranks is None:
            return

        def run() -> Run:
            self._check_bound(what)
            self.built()  # lest that fails on one rank when the others are in a step
            return self.run

        if self.ranks.meet(what, run):
            self.planner.makes_plans = self.planner.makes_plans and not self.ranks.reason
            self.planner.together = self.ranks.together

    # ---- hyperparameters ----

    def get(self, group: int, name: str) -> float:
        """Return a hyperparameter of a group, or of all groups (-1) where they agree.

        ``name`` is "lr", or "betas[0]" for one of a tuple; True is 1.  "step" is the number of steps.
        """
        optimizer = self.built()
        counts = {"step": self.run.steps, **stopping.counts(optimizer)}
        groups = hyperparameters.select(optimizer.param_groups, group)
        return float(counts[name]) if name in counts else hyperparameters.get(groups, name)

    def set(self, group: int, text: str) -> None:
        """Set hyperparameters of a group, or of all groups (-1): ``"lr=1e-4, betas=(0.9, 0.99)"``.

        Raises:
            ValueError: no such group or option, or PyTorch refuses the value.
        """
        self._check_idle("opt_set")
        self._changes.set(self.run, group, text)

    def set_value(self, group: int, name: str, value: float) -> None:
        """Set one hyperparameter, named as `get` names it, of a group or of all groups (-1).

        Raises:
            ValueError: no such group or option, or it is no number, or PyTorch refuses the value.
        """
        self._check_idle("opt_set_value")
        self._changes.set_value(self.run, group, name, value)

    def take_value(self, group: int, name: str, value: float) -> None:
        """Take over a hyperparameter that was set in the plan alone: one of `rates`."""
        self._changes.take(self.run, group, name, value)

    def rates(self) -> list[Rate]:
        """Return what may be set in the plan alone: what has been set by number before."""
        return self._changes.rates(self.run)

    # ---- GPUs ----

    def stream(self, address: int) -> None:
        """Let work on the GPU of a stream go there: see `devices.Streams.take`."""
        self._check_idle("opt_stream")
        gpus = self.parameters.gpus()
        if address and not gpus:
            raise StateError(f"stream {address:#x}: no parameter is on a GPU, bind one first")
        memory = [t for p in self.parameters.mastered() for t in (p.tensor.detach(), p.stepped_memory())]
        memory += self.run.memory() + (self.plan.memory() if self.plan else [])
        self.streams.take(address, gpus, memory)
        self.planner.restate()

    def device(self, what: str) -> torch.device:
        """Return where the parameters are, or some of them."""
        self._check_bound(what)
        return next((p.tensor.device for p in self.parameters if p.tensor.is_cuda), devices.CPU)

    # ---- how it is made ----

    def built(self) -> torch.optim.Optimizer:
        """Return the optimizer proper, or, before that, one like it on the parameters that are there."""
        with contextlib.nullcontext() if self.run.built else self.parameters.as_before(on_success=True):
            return self.run.built or self._build()

    @contextlib.contextmanager
    def _ready(self, what: str) -> Iterator[torch.optim.Optimizer]:
        """Give the optimizer proper to a block; build it first, for good only if the block succeeds."""
        self._check_bound(what)
        with contextlib.nullcontext() if self.run.built else self.parameters.as_before():
            optimizer = self.run.built or self._build()
            yield optimizer
            self.run.built = optimizer

    def _compare_values(self) -> None:
        """Warn of other values than at the save before the first step, by which a host has read its own."""
        if self.run.expected:
            expected, self.run.expected = self.run.expected, {}
            here = {n: data for n, data in self.parameters.read_by_steps().items() if n in expected}
            compare(expected, (self._joint_state.checksums if self._joint_state else checksums)(here))

    # ---- whether a call may be made ----

    def _check_idle(self, what: str) -> None:
        if self._iteration:
            called = self._iteration.called
            raise StateError(f"{what} in the middle of a step: call {called} until it returns OPT_DONE")
        if self.run.average and self.run.average.swapped and what != "opt_average_swap":
            raise StateError(f"{what} while the averages are swapped in: call opt_average_swap again first")

    def check_alone(self, what: str, remedy: str) -> None:
        """Refuse a call that is not built for ranks.

        Raises:
            StateError: there are ranks.
        """
        if self.ranks:
            raise StateError(f"{what} after opt_distribute is not supported: {remedy}")

    def _check_unscaled(self, what: str) -> None:
        if self.scale:
            raise StateError(
                f"{what} after opt_grad_scale: call opt_grad_scale with NULL, and scale in the closure"
            )

    def _check_bound(self, what: str) -> None:
        self._check_idle(what)
        if not len(self.parameters):
            raise StateError(f"nothing is bound: call opt_bind before {what}")
        if not self.parameters.groups[-1].names:
            raise StateError(f"nothing is bound to the last group: call opt_bind before {what}")
