"""Say what is in a checkpoint, optplug's or plain PyTorch's, without an optimizer to load it into."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from optplug import attributes, checkpoint
from optplug.buffers import name_of
from optplug.checks import of_checkpoint
from optplug.spec import shown
from optplug.state import find
from optplug.stored import Stored
from optplug.tools.report import Told, printable, silent

_LONGEST, _MANY = 1000, 64  # characters of a text, numbers in a row
_NUMBER, _BITS = 16, 1000


def read(path: str, told: Told = silent) -> dict[str, Any]:
    """Return the facts of a checkpoint, and rows for its groups, parameters, state and schedulers.

    Raises:
        FileError: the system refuses.
        ValueError: it is damaged, or no checkpoint.
    """
    with (
        checkpoint.load(path, functools.partial(told, f"checking {printable(path)}")) as content,
        of_checkpoint(),
    ):
        return {"file": path, "bytes": pathlib.Path(path).stat().st_size} | _contents(content)


def _contents(content: dict[str, Any]) -> dict[str, Any]:
    about, saved = content.get("optplug"), find(content)
    average, values = content.get("average"), content.get("parameters") or {}
    groups, state = saved["param_groups"], saved["state"]
    names = {
        key: name
        for group in groups
        for key, name in zip(group["params"], group.get("param_names") or group["params"], strict=True)
    }
    tensors = [
        {"parameter": _plain(names.get(key, key)), "state": _plain(what), **_form(tensor)}
        for key, entries in state.items()
        for what, tensor in _tensors(entries)
    ]
    facts = {
        "format": f"optplug {_plain(about['format'])}" if about else "plain PyTorch",
        "seal": "intact" if about else "none",  # or it would not have been read
        "torch": about and _plain(about["torch"]),
        "optimizer": about and _plain(about["class"]),
        "steps": about and _plain(about.get("steps")),
        "average": average and f"{_plain(average['spec'])} of {_plain(average['n_averaged'])} steps",
        "bytes of state": sum(row["bytes"] for row in tensors),
        "bytes of the average": average and sum(t.nbytes for t in average["values"].values()),
        "bytes of master copies": sum(t.nbytes for t in (content.get("masters") or {}).values()) or None,
        "bytes of parameters": sum(t.nbytes for t in values.values()) or None,
    }
    forms = about["parameters"] if about else {}
    return {name: value for name, value in facts.items() if value is not None} | {
        "groups": [
            {
                "group": i,
                "parameters": len(group["params"]),
                "hyperparameters": {
                    _plain(k): _plain(v) for k, v in group.items() if k not in ("params", "param_names")
                },
            }
            for i, group in enumerate(groups)
        ],
        "parameters": [
            {
                "parameter": _plain(names[key]),
                "group": i,
                "dtype": _plain(forms.get(names[key], {}).get("dtype")),
                "shape": _plain(forms.get(names[key], {}).get("shape")),
                "steps": _steps(state.get(key, {})),
                "values": "in the file" if names[key] in values else None,
            }
            for i, group in enumerate(groups)
            for key in group["params"]
        ],
        "state": tensors,
        "schedulers": [
            {
                "scheduler": _plain(entry["spec"]),
                "steps": _plain(entry["state"].get("last_epoch")),
                "lr": _plain(entry["state"].get("_last_lr")),
            }
            for entry in content.get("schedulers", ())
            if about
        ],
        "attributes": [
            {"attribute": name, "text": text}
            for name, text in attributes.read(content.get("attributes", {}) if about else {}).items()
        ],
    }


def _tensors(entries: dict[str, Any]) -> Iterator[tuple[str, Stored]]:
    for name, value in entries.items():
        for i, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, Stored):
                yield f"{name}[{i}]" if isinstance(value, list) else name, tensor


def _form(tensor: Stored) -> dict[str, Any]:
    return {"dtype": name_of(tensor.dtype), "shape": list(tensor.shape), "bytes": tensor.nbytes}


def _steps(entries: dict[str, Any]) -> Any:
    """Return how many steps are in a state that counts them."""
    count = entries.get("step")
    if isinstance(count, Stored) and count.nbytes <= _NUMBER:
        count = count.tensor().tolist()
    return int(count) if isinstance(count, float) and count.is_integer() else _plain(count)


def _plain(value: Any) -> Any:
    """Return a value of a file's as it can be shown: numbers and short rows of them, and text on one line."""
    if isinstance(value, float | None) or (isinstance(value, int) and value.bit_length() < _BITS):
        return value
    if isinstance(value, str):
        return printable(value[:_LONGEST]) + "..." * (len(value) > _LONGEST)
    if isinstance(value, list | tuple) and all(isinstance(v, float | int | None) for v in value[:_MANY]):
        row = [_plain(v) for v in value[:_MANY]]
        return (
            row
            if isinstance(value, list) and len(value) <= _MANY
            else (*row, *["..."] * (len(value) > _MANY))
        )
    return shown(value)
