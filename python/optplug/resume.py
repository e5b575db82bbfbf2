"""What a later process needs to go on: all of an optimizer as plain values and tensors, and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optplug import attributes as texts
from optplug import devices, own_state, schedules, values
from optplug.attributes import Attributes
from optplug.averages import Average
from optplug.buffers import name_of
from optplug.checks import check_count, check_tensor, is_number, of_checkpoint, word
from optplug.errors import StateError
from optplug.generators import random_numbers_kept
from optplug.kinds import Parameter, Sparse
from optplug.options import CheckpointOptions
from optplug.parameters import Group, Parameters
from optplug.randomness import Stream
from optplug.recipe import Recipe
from optplug.run import Run
from optplug.spec import shown
from optplug.state import find, order, put
from optplug.torch_private import grad_mode, note_step
from optplug.trials import Trials
from optplug.wholes import Wholes

_FORMAT = 1  # of checkpoints
#: Builds an optimizer on parameters in these groups; with on_copies=True, on copies of them.
Build = Callable[..., torch.optim.Optimizer]


class Resumption:
    """What one optimizer saves, and goes on from."""

    def __init__(
        self,
        recipe: Recipe,
        trials: Trials,
        parameters: Parameters,
        attributes: Attributes,
        stream: Stream,
    ) -> None:
        self._recipe, self._trials, self._parameters = recipe, trials, parameters
        self._attributes, self._stream = attributes, stream

    def check_values(self, what: str, options: CheckpointOptions) -> None:
        """Check that the host's values, if they go into the checkpoint, are there.

        Raises:
            StateError: some come with each step.
        """
        staged = [p.name for p in self._parameters if p.is_staged]
        if options.parameters and staged:
            raise StateError(
                f"parameter {shown(staged[0])} has arrays only during a step, not for {what}: "
                'call opt_checkpoint(opt, "parameters=False"), and save its values yourself'
            )

    # ---- saving ----

    def state_dict(
        self, run: Run, options: CheckpointOptions, build: Build, wholes: Wholes | None = None
    ) -> dict[str, Any]:
        """Return all that there is to go on from: see `HostedOptimizer.state_dict`."""
        parameters = self._parameters
        optimizer, own = self._states(run, build)
        content: dict[str, Any] = {
            "optimizer": optimizer,
            "schedulers": [
                {"spec": text, "state": scheduler.state_dict()}
                for (text, _), scheduler in zip(run.schedules, run.schedulers, strict=True)
            ],
            "average": run.average.state_dict(parameters.names()) if run.average else None,
            "optplug": {
                "format": _FORMAT,
                "torch": str(torch.__version__),
                "class": self._recipe.title,
                "stepped": run.stepped,
                "parameters": {
                    name: _form(parameters[name], wholes) for g in parameters.groups for name in g.names
                },
                "steps": run.steps,
                "checksums": (wholes or values).checksums(parameters.read_by_steps()),
            },
        }
        content["attributes"] = self._attributes.state_dict()
        if own:
            content["own"] = own
        numbers = None if self._recipe.is_torchs else self._stream.state_dict()
        if numbers:
            content["random"] = numbers
        masters = {p.name: p.tensor.detach() for p in parameters.mastered()}
        if masters:
            content["masters"] = masters
        if options.parameters:
            content["parameters"] = {p.name: p.data.detach().clone() for p in parameters}
        return devices.to_cpu(content) if parameters.gpus() else content

    def _states(self, run: Run, build: Build) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the optimizer's state, and what a class outside torch has beside it."""
        optimizer = run.built
        if optimizer is None:
            with self._parameters.as_before(on_success=True):
                optimizer = build(self._parameters.groups)
        if self._recipe.is_torchs:
            self._check_strided(optimizer)
            saved = optimizer.state_dict()
            saved["state"] = {key: _apart(state) for key, state in saved["state"].items()}
            return saved, {}
        another = functools.partial(build, self._parameters.groups, on_copies=True)
        with random_numbers_kept(), self._parameters.as_in_a_step():
            return own_state.save(optimizer, another, self._recipe.needs_closure)

    def _check_strided(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise StateError for a state that no load takes: SGD's momentum of sparse gradients is sparse."""
        for p in self._parameters:
            for key, value in optimizer.state.get(p.tensor, {}).items():
                if isinstance(value, Tensor) and value.layout != torch.strided:
                    raise StateError(
                        f"parameter {shown(p.name)}: its {key} is sparse, and opt_load would not restore it: "
                        f"leave momentum out of {self._recipe.name}, or bind the whole gradient with opt_bind"
                    )

    # ---- loading ----

    def load(
        self,
        content: dict[str, Any],
        run: Run,
        options: CheckpointOptions,
        build: Build,
        wholes: Wholes | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> Run:
        """Return the run that goes on from what `state_dict` returned, or from plain PyTorch's state.

        Args:
            wholes: what this rank's arrays are parts of, where they are.
            confirm: is called before anything changes, and may raise.

        Raises:
            ValueError: it is of another class, of other parameters, or has something wrong in it.
        """
        with of_checkpoint():
            about = content.get("optplug")
            if about is not None:
                self._check_about(about, wholes)
            return self._take(content, about, run, options, build, wholes, confirm)

    def _check_about(self, about: dict[str, Any], wholes: Wholes | None) -> None:
        if type(about["format"]) is not int or about["format"] != _FORMAT:
            raise ValueError(
                f"its format is {shown(about['format'])}, and this optplug reads format {_FORMAT}"
            )
        if about["class"] != self._recipe.title:
            raise ValueError(f"the file is of {word(about['class'])}, this optimizer is {self._recipe.title}")
        if type(about["stepped"]) is not bool:
            raise ValueError(f"not a checkpoint: stepped is {shown(about['stepped'])}")
        for p in self._parameters:
            theirs, ours = about["parameters"].get(p.name), _form(p, wholes)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"parameter {shown(p.name)} is {word(theirs['dtype'])} of shape "
                    f"{shown(tuple(theirs['shape']))} in the file, and {ours['dtype']} of shape "
                    f"{tuple(ours['shape'])} here"
                )

    def _take(
        self,
        content: dict[str, Any],
        about: dict[str, Any] | None,
        run: Run,
        options: CheckpointOptions,
        build: Build,
        wholes: Wholes | None,
        confirm: Callable[[], None],
    ) -> Run:
        parameters, is_ours = self._parameters, about is not None
        by_its_own = not self._recipe.is_torchs
        # Those that wrap another one may save whatever they like, and nothing that torch's own classes have.
        is_free = self._recipe.wraps and type(content.get("optimizer")) is dict
        saved = content["optimizer"] if by_its_own and (is_ours or is_free) else find(content)
        names = wholes.order if wholes else [group.names for group in parameters.groups]
        if not by_its_own:
            names = order(saved, names)
        with parameters.values_as_before():  # the host's or the file's, not the class's
            if by_its_own:
                names = self._ordered(names, saved, about, run.built or build(parameters.groups))
                parameters.forget_attributes()
            groups = [Group(g.options, n) for g, n in zip(parameters.groups, names, strict=True)]
            optimizer = build(groups)
        before = [dict(group) for group in (run.built or optimizer).param_groups]
        made_of = run.schedules
        states = [s.state_dict() for s in run.schedulers]
        if is_ours and type(content["schedulers"]) is not list:
            raise ValueError("not a checkpoint: its schedulers are malformed")
        theirs = [s["state"] for s in content["schedulers"]] if is_ours else []
        if is_ours and options.schedules:
            states = theirs
            made_of = _schedules_like([s["spec"] for s in content["schedulers"]], run)
        schedulers = [schedules.attach(optimizer, text, function) for text, function in made_of]
        for (text, _), scheduler, state in zip(made_of, schedulers, states, strict=True):
            schedules.restore(scheduler, f"the saved state of scheduler {shown(text)}", state)
        masters = self._read_masters(content.get("masters", {}), wholes) if is_ours else {}
        stepped = about is not None and about["stepped"]
        if by_its_own:
            another = functools.partial(build, groups, on_copies=True)
            own_state.resume(optimizer, another, saved, content.get("own", {}), self._recipe.needs_closure)
            parameters.settle()
        else:
            sparse = {p.tensor for p in parameters if isinstance(p, Sparse)}
            states_of = self._trials.states(lambda p: p in sparse)
            mine = (wholes.state, wholes.is_elsewhere) if wholes else ()
            put(saved, optimizer, states_of, self._trials.judge_all, is_ours, stepped, *mine)
        if not options.schedules:
            schedules.keep(optimizer, before, [*states, *theirs])
        average = self._average_like(content["average"], run, wholes) if is_ours else run.average
        taken = self._values_in(content, wholes) if options.parameters else {}
        expected = values.read(about.get("checksums", {})) if about is not None and not taken else {}
        stepped = stepped if is_ours else bool(optimizer.state)
        steps = _steps(about, optimizer)
        words = texts.read(content.get("attributes", {})) if is_ours else None
        has_numbers = is_ours and by_its_own and "random" in content
        go_on = self._stream.read(content["random"]) if has_numbers else None
        if stepped:
            note_step(optimizer)
        confirm()
        # Nothing fails from here on.
        with grad_mode(False):
            for name, value in taken.items():
                parameters[name].data.copy_(value)
        for p in parameters.mastered() if is_ours else ():
            p.load(masters[p.name])
        parameters.groups = groups
        if go_on:
            go_on()
        if words is not None:
            self._attributes.load_state_dict(words)
        return Run(optimizer, schedulers, made_of, average, stepped, steps, expected)

    def _ordered(
        self,
        names: list[list[str]],
        saved: dict[str, Any],
        about: dict[str, Any] | None,
        optimizer: torch.optim.Optimizer,
    ) -> list[list[str]]:
        """Return each group's names in the order of a class outside torch, whose groups may be others."""
        if "param_groups" in saved:
            here = [self._parameters.names_of(group) for group in optimizer.param_groups]
            there = [name for group in order(saved, here) for name in group]
        elif about is not None:
            there = list(about["parameters"])
        else:
            return names
        places = {name: i for i, name in enumerate(there)}
        for name in (name for group in names for name in group):
            if name not in places:
                raise ValueError(
                    f"it has no parameter {shown(name)}: there are {', '.join(map(shown, there))}"
                )
        return [sorted(group, key=places.__getitem__) for group in names]

    def _average_like(self, state: dict[str, Any] | None, run: Run, wholes: Wholes | None) -> Average | None:
        here = run.average.text if run.average else None
        there = None if state is None else state["spec"]
        if there is not None and type(there) is not str:
            raise ValueError(f"not a checkpoint: the spec of the average in it is {shown(there)}")
        if here is not None and here != there:
            raise ValueError(
                f"the file has average {there and shown(there)}, this optimizer has {shown(here)}"
            )
        if state is None or there is None:
            return None
        average = Average(there, self._parameters.module)
        names = self._parameters.names()
        if wholes:
            parts = {
                name: wholes.part(f"the average of parameter {shown(name)}", name, state["values"][name])
                for name in names
            }
            state = {**state, "values": parts}
        average.load_state_dict(names, state)
        return average

    def _values_in(self, content: dict[str, Any], wholes: Wholes | None) -> dict[str, Tensor]:
        saved = content.get("parameters")
        if saved is None:
            raise ValueError(
                'it contains no parameters: call opt_checkpoint(opt, "parameters=True") before opt_save, or '
                '"parameters=False" before opt_load and restore your arrays yourself'
            )
        found = {
            p.name: check_tensor(
                f"the value of parameter {shown(p.name)}",
                wholes.value(p.name, saved[p.name]) if wholes else saved[p.name],
                p.data.dtype,
                p.data.shape,
            )
            for p in self._parameters
        }
        return {name: value.tensor() for name, value in found.items()}

    def _read_masters(self, saved: Any, wholes: Wholes | None) -> dict[str, Tensor]:
        """Check the master copies in a checkpoint against those that are here, and read them."""
        if not isinstance(saved, dict):
            raise ValueError("not a checkpoint: its master copies are malformed")
        here = {p.name: p for p in self._parameters.mastered()}
        for name in here:
            if name not in saved:
                raise ValueError(
                    f"it has no master copy of parameter {shown(name)}: it was saved without "
                    'opt_init("master_weights=True")'
                )
        for name in saved:
            if name not in here:
                raise ValueError(
                    f"it has a master copy of parameter {shown(name)}, this optimizer has none: "
                    'call opt_init("master_weights=True") before opt_create'
                )
        found = {}
        for name, p in here.items():
            what = f"its master copy of parameter {shown(name)}"
            value = wholes.part(what, name, saved[name]) if wholes else saved[name]
            found[name] = check_tensor(what, value, torch.float32, p.tensor.shape)
        return {name: value.tensor() for name, value in found.items()}


def _schedules_like(texts: list[str], run: Run) -> list[tuple[str, schedules.Function | None]]:
    """Return what the schedulers are made of, as they are attached here or else as they were there."""
    here = [text for text, _ in run.schedules]
    if not all(type(text) is str for text in texts):
        raise ValueError(f"not a checkpoint: the spec of a scheduler in it is {shown(texts)}")
    if here and here != texts:
        raise ValueError(
            f"the file has schedulers {', '.join(map(shown, texts)) or '(none)'}, "
            f"this optimizer has {', '.join(map(shown, here))}: "
            'attach those in the file or none, or keep yours by opt_checkpoint(opt, "schedules=False")'
        )
    return run.schedules or [(text, None) for text in texts]


def _steps(about: dict[str, Any] | None, optimizer: torch.optim.Optimizer) -> int:
    """Return how many steps a checkpoint's optimizer has made; PyTorch's, as many as its state counts."""
    if about is not None and "steps" in about:
        return check_count("its number of steps", about["steps"])
    # A class outside torch may have other things in its state, and in "step".
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    steps = [state["step"] for state in states if "step" in state]
    counts = [float(n) for n in steps if is_number(n) or (isinstance(n, Tensor) and n.numel() == 1)]
    return int(max(filter(math.isfinite, counts), default=0))


def _form(p: Parameter, wholes: Wholes | None) -> dict[str, Any]:
    shape = wholes.shape(p.name) if wholes else p.data.shape
    return {"shape": list(shape), "dtype": name_of(p.data.dtype)}


def _apart(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of LBFGS's whose products are tensors of their own, as torch's are: see `lbfgs`."""
    if "al" not in state:
        return state
    return {**state, "al": [t.clone() if isinstance(t, Tensor) else t for t in state["al"]]}
