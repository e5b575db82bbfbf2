"""What one optimizer over ranks saves and loads: what one process that has all of it would."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from optplug import digest
from optplug.blocks import Block, Place, check_tiling, row_major
from optplug.kinds import Parameter
from optplug.options import CheckpointOptions
from optplug.parameters import Parameters
from optplug.run import Run
from optplug.sliced import Sliced
from optplug.wholes import Wholes, form_of, told
from optplug.world import World


class JointState:
    """What all ranks save and load together.

    Args:
        world: the ranks.
        parameters: those that are bound here, ...
        blocks: ... and which blocks of grids some of them are.
    """

    def __init__(self, world: World, parameters: Parameters, blocks: Mapping[str, Block]) -> None:
        self._world, self._parameters, self._blocks = world, parameters, blocks
        self._loaded: Wholes | None = None

    def _wholes(self, state: Mapping[Tensor, Mapping[str, Any]]) -> Wholes:
        """Return where all parameters lie in what a checkpoint has of them.

        Args:
            state: the optimizer's, of which all ranks learn what the parameters have that one of them steps.

        Raises:
            ValueError: the ranks' parts are no whole.
        """
        parameters = self._parameters
        order = [group.names for group in parameters.groups]
        blocks = {name: dataclasses.astuple(block) for name, block in self._blocks.items()}
        owned = {p.name: form_of(state[p.tensor]) for p in self._owned() if state.get(p.tensor)}
        mine = order, {p.name: [*p.data.shape] for p in parameters}, blocks, owned
        ranks = [json.loads(text) for text in self._world.texts(json.dumps(mine))]
        for name in blocks:
            check_tiling(name, [Block(*map(tuple, theirs[name])) for _, _, theirs, _ in ranks])
        places = {p.name: self._place(p, [shapes[p.name] for _, shapes, _, _ in ranks]) for p in parameters}
        forms = {name: form for *_, theirs in ranks for name, form in theirs.items()}
        return Wholes(parameters, places, ranks[0][0], forms, self._world.rank == 0)

    def _owned(self) -> list[Sliced]:
        return [p for p in self._parameters if isinstance(p, Sliced) and p.is_owned]

    def _place(self, p: Parameter, shapes: list[list[int]]) -> Place:
        shape = tuple(p.data.shape)
        if isinstance(p, Sliced):
            mine = p.slices.mine
            block = Block((p.data.numel(),), (mine.start,), (mine.stop - mine.start,))
            return Place(shape, p.data.stride(), block, block.size)
        if p.name in self._blocks:
            block = self._blocks[p.name]
            whole = block.shape if block.size == shape else (math.prod(block.shape),)
            return Place(whole, row_major(whole), block, shape)
        lengths = [first for first, *_ in shapes]
        whole = (sum(lengths), *shape[1:])
        start = (sum(lengths[: self._world.rank]), *(0 for _ in shape[1:]))
        return Place(whole, row_major(whole), Block(whole, start, shape), shape)

    def save(
        self, run: Run, options: CheckpointOptions, state_dict: Callable[[Wholes], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what all ranks save, from what each would."""
        wholes = self._wholes(run.built.state if run.built else {})

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
                    "groups": told([g["param_names"] for g in groups]),
                    **digest.told(groups),
                    "schedulers": rest["schedulers"],
                    "average": rest["average"],
                    "attributes": rest["attributes"],
                    "parameters": {name: told(optimizer["state"].get(i)) for name, i in named},
                }
            )
            return merged

        merged = self._world.all_or_none(merge)
        groups, about = merged["optimizer"]["param_groups"], merged["optplug"]
        # Each rank's arrays tell whether they can be fused, at the save and at the load.
        fused = self._world.numbers(*(group.get("fused") is True for group in groups))
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
        wholes = self._loaded = self._wholes({})

        def load(state: Callable[[Mapping[str, Any]], None]) -> None:
            def confirm(content: dict[str, Any]) -> None:
                file = hashlib.sha256(told(content).encode()).hexdigest()
                state({"call": "opt_load", "opt_checkpoint": repr(options), "file": file, "parameters": {}})

            work(wholes, confirm)

        self._world.all_or_none(load)

    def share_counts(self, run: Run) -> None:
        """Let all ranks know of steps that the states alone count which some of them have got."""
        if self._owned():
            table = self._world.numbers(run.steps, run.stepped)
            run.steps = int(max(steps for steps, _ in table))
            run.stepped = any(stepped for _, stepped in table)

    def checksums(self, here: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the checksums of some parameters' values, as the last load takes them."""
        assert self._loaded
        return self._combined(self._loaded, self._loaded.checksums(here))

    def _combined(self, wholes: Wholes, parts: Mapping[str, int]) -> dict[str, int]:
        names = sorted(parts)
        columns = zip(*self._world.numbers(*(parts[name] for name in names)), strict=True)
        return {name: wholes.checksum(name, [*map(int, c)]) for name, c in zip(names, columns, strict=True)}
