"""What is in a checkpoint of many ranks: whole arrays, of which each rank has parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug import blocks, values
from optplug.blocks import Place, Whole
from optplug.buffers import name_of
from optplug.checks import kind_of
from optplug.parameters import Parameters
from optplug.sliced import Sliced
from optplug.spec import shown
from optplug.stored import Stored

#: What a state of torch's is made of: see `form_of`.
Form = dict[str, Any]

# What LBFGS keeps for all parameters together: vectors, and lists of them.
_VECTORS, _LISTS = ("d", "prev_flat_grad"), ("old_dirs", "old_stps")


class Wholes:
    """Turns what one rank would save into what all of them save, and back.

    Args:
        parameters: those of this rank, ...
        places: ... where they lie in the wholes, ...
        order: ... and all names, by group, in the order that all ranks save and load them in.
        forms: of the states that one rank has: see `form_of`.
        is_first: whether this rank saves what all ranks have alike.
    """

    def __init__(
        self,
        parameters: Parameters,
        places: Mapping[str, Place],
        order: list[list[str]],
        forms: Mapping[str, Form],
        is_first: bool,
    ) -> None:
        self._parameters, self._places = parameters, places
        self.order, self._forms, self._is_first = order, forms, is_first

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole of a parameter."""
        return self._places[name].shape

    # ---- saving ----

    def merge(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return what all ranks save, each array a `Whole`, from what this one would save."""
        average, about = content["average"], content["optplug"]
        names = [name for group in self.order for name in group]
        merged = {
            **content,
            "optimizer": self._merge_optimizer(content["optimizer"]),
            "average": average and {**average, "values": self._merge_named(average["values"], names)},
            "optplug": {**about, "parameters": {name: about["parameters"][name] for name in names}},
        }
        merged |= {
            key: self._merge_named(content[key], names) for key in ("masters", "parameters") if key in content
        }
        return merged

    def _merge_optimizer(self, saved: dict[str, Any]) -> dict[str, Any]:
        # LBFGS has one state for all, as that of the first.
        is_one = any("func_evals" in state for state in saved["state"].values())
        states, groups, count = {}, [], 0
        for group, names in zip(saved["param_groups"], self.order, strict=True):
            keys = dict(zip(group["param_names"], group["params"], strict=True))
            for i, name in enumerate(names, count):
                key = i if is_one else keys[name]
                if name in self._forms:
                    states[i] = self._merge_owned(self._forms[name], saved["state"].get(key) or None)
                elif key in saved["state"]:
                    states[i] = self._merge_state(name, saved["state"][key], group["param_names"], names)
            groups.append({**group, "params": list(range(count, count + len(names))), "param_names": names})
            count += len(names)
        return {**saved, "state": states, "param_groups": groups}

    def _merge_state(
        self, name: str, state: dict[str, Any], here: Sequence[str], there: Sequence[str]
    ) -> dict[str, Any]:
        if "func_evals" not in state:
            tensor = self._parameters[name].tensor
            return {
                key: self._places[name].whole(value)
                if isinstance(value, Tensor) and value.dim() and value.shape == tensor.shape
                else value
                for key, value in state.items()
            }
        total, by_name = self._vector(there)

        def whole(vector: Tensor) -> Whole:
            parts = dict(zip(here, vector.split([self._count(name) for name in here]), strict=True))
            pieces = [(at, block, parts[name].view(block.size)) for name, (at, block) in by_name.items()]
            return Whole(vector.dtype, (total,), (1,), pieces)

        merged: dict[str, Any] = {key: whole(state[key]) for key in _VECTORS if key in state}
        merged |= {key: [whole(vector) for vector in state[key]] for key in _LISTS if key in state}
        return {key: merged.get(key, value) for key, value in state.items()}

    def _merge_owned(self, form: Form, state: dict[str, Any] | None) -> dict[str, Any]:
        """Return a state that one rank has, which may be this one."""
        return {
            key: blocks.of_one(value if state is None else state[key], state is not None)
            if isinstance(value, Tensor)
            else value
            for key, value in _stand_ins(form).items()
        }

    def _vector(self, names: Sequence[str]) -> tuple[int, dict[str, tuple[int, blocks.Block]]]:
        """Return how long LBFGS's vectors are, and this rank's blocks in one, by parameter."""
        has_pairs = [self._parameters[name].tensor.is_complex() for name in names]
        total, found = blocks.join([self._places[name] for name in names], has_pairs)
        return total, dict(zip(names, found, strict=True))

    def _count(self, name: str) -> int:
        p = self._parameters[name].tensor
        return p.numel() * (1 + p.is_complex())

    def _mine(self, name: str, value: Tensor) -> Tensor:
        """Return this rank's part of what it may have whole."""
        p, block = self._parameters[name], self._places[name].block
        if not isinstance(p, Sliced) or value.numel() != p.data.numel():
            return value
        return value.as_strided(block.shape, (1,))[block.offset :][: block.size[0]]

    def _merge_named(self, values_: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Whole]:
        return {
            name: self._places[name].whole(self._mine(name, values_[name]))
            for name in names
            if name in values_
        }

    def share(self, value: Any) -> Any:
        """Let all tensors in a merged checkpoint that are no `Whole` be those of one rank."""
        if isinstance(value, Tensor):
            return blocks.of_one(value, self._is_first)
        if isinstance(value, dict):
            return {key: self.share(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self.share, value))
        return value

    # ---- checksums of values ----

    def checksums(self, here: Mapping[str, Tensor]) -> dict[str, int]:
        """Return what this rank adds to the checksums of some parameters' values."""
        return {
            name: values.checksum(data)
            if isinstance(self._parameters[name], Sliced)
            else blocks.checksum_part(self._places[name].whole(data))
            for name, data in here.items()
        }

    def checksum(self, name: str, parts: Sequence[int]) -> int:
        """Return the checksum to which the ranks have added so."""
        if isinstance(self._parameters[name], Sliced):
            return parts[0]
        place, dtype = self._places[name], self._parameters[name].data.dtype
        return blocks.checksum(Whole(dtype, place.shape, place.strides).nbytes, parts)

    # ---- loading ----

    def is_elsewhere(self, tensor: Tensor) -> bool:
        """Tell whether another rank alone steps a parameter."""
        return any(
            p.tensor is tensor and isinstance(p, Sliced) and not p.slices.is_here for p in self._parameters
        )

    def part(self, what: str, name: str, value: Any) -> Any:
        """Return this rank's part of an array in a file; all of it where one rank steps that."""
        if not isinstance(value, Stored):
            raise ValueError(f"{what} is {kind_of(value)}, and must be a tensor")
        p = self._parameters[name]
        return value if isinstance(p, Sliced) and p.is_owned else self._places[name].part(what, value)

    def value(self, name: str, value: Any) -> Any:
        """Return what is in the host's array: the whole, where all ranks have that."""
        p, what = self._parameters[name], f"the value of parameter {shown(name)}"
        return value if isinstance(p, Sliced) else self.part(what, name, value)

    def state(
        self, p: Tensor, name: str, state: dict[str, Any], like: dict[str, Any], names: Sequence[str]
    ) -> dict[str, Any]:
        """Return this rank's part of a parameter's state in a file; ``like`` is what it must come to."""
        what = f"parameter {shown(name)}"
        owned = self._parameters[name]
        if isinstance(owned, Sliced) and owned.is_owned:
            return state
        if "func_evals" not in like:
            return {
                key: self.part(f"{what}: {key}", name, value)
                if p.dim() and getattr(like.get(key), "shape", None) == tuple(p.shape)
                else value
                for key, value in state.items()
            }
        total, found = self._vector(names)

        def cut(key: str, value: Any) -> Any:
            if not isinstance(value, Stored) or value.shape != (total,):
                raise ValueError(f"{what}: {key} is {shown(value)}, and must have shape {(total,)}")
            return blocks.cut_vector(value, list(found.values()))

        changed = {key: cut(key, state[key]) for key in _VECTORS if key in state}
        for key in _LISTS:
            if isinstance(state.get(key), list):
                changed[key] = [cut(f"{key}[{i}]", v) for i, v in enumerate(state[key])]
        return {**state, **changed}


def form_of(state: Mapping[str, Any]) -> Form:
    """Return what a state is made of, as JSON can have it: of tensors the dtype and shape."""
    return {
        key: [[name_of(value.dtype), list(value.shape)]] if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def _stand_ins(form: Form) -> dict[str, Any]:
    """Return a state of such a form, of tensors nobody has filled."""
    return {
        key: torch.empty(value[0][1], dtype=getattr(torch, value[0][0])) if isinstance(value, list) else value
        for key, value in form.items()
    }


def told(value: Any) -> str:
    """Return what a part of a checkpoint says, of arrays in a file by their checksums.

    The numbers in arrays that lie on several ranks are left out.
    """
    return repr(_told(value))


def _told(value: Any) -> Any:
    if isinstance(value, Whole):
        return name_of(value.dtype), value.shape
    if isinstance(value, Stored):
        return name_of(value.dtype), value.shape, value.strides, value.offset, value.storage.checksum
    if isinstance(value, dict):
        return {key: _told(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_told(v) for v in value]
    return value.tolist() if isinstance(value, Tensor) else value
