"""Say what is in a checkpoint, optplug's or plain PyTorch's, without an optimizer to load it into."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from optplug import attributes, checkpoint
from optplug.buffers import name_of
from optplug.spec import shown


def read(path: str) -> dict[str, Any]:
    """Return the facts of a checkpoint, and rows for its groups, parameters, state and schedulers.

    Raises:
        FileError: the system refuses.
        ValueError: it is damaged, or no checkpoint.
    """
    try:
        content = checkpoint.load(path)
        return {"file": path, "bytes": pathlib.Path(path).stat().st_size} | _contents(content)
    except ValueError as error:
        raise ValueError(f"path {shown(path)}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"path {shown(path)}: it is no checkpoint: {type(error).__name__} {error}"
        ) from error


def _contents(content: dict[str, Any]) -> dict[str, Any]:
    about, saved = content.get("optplug"), content.get("optimizer", content)
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError("it has no state of an optimizer in it")
    average, values = content.get("average"), content.get("parameters") or {}
    groups, state = saved["param_groups"], saved["state"]
    names = {
        key: name
        for group in groups
        for key, name in zip(group["params"], group.get("param_names") or group["params"], strict=True)
    }
    tensors = [
        {"parameter": names.get(key, key), "state": what, **_form(tensor)}
        for key, entries in state.items()
        for what, tensor in _tensors(entries)
    ]
    facts = {
        "format": f"optplug {about['format']}" if about else "plain PyTorch",
        "seal": "intact" if about else "none",  # or it would not have been read
        "torch": about and about["torch"],
        "optimizer": about and about["class"],
        "steps": about and about.get("steps"),
        "average": average and f"{average['spec']} of {average['n_averaged']} steps",
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
                "hyperparameters": {k: v for k, v in group.items() if k not in ("params", "param_names")},
            }
            for i, group in enumerate(groups)
        ],
        "parameters": [
            {
                "parameter": names[key],
                "group": i,
                "dtype": forms.get(names[key], {}).get("dtype"),
                "shape": forms.get(names[key], {}).get("shape"),
                "steps": _steps(state.get(key, {})),
                "values": "in the file" if names[key] in values else None,
            }
            for i, group in enumerate(groups)
            for key in group["params"]
        ],
        "state": tensors,
        "schedulers": [
            {
                "scheduler": entry["spec"],
                "steps": entry["state"].get("last_epoch"),
                "lr": entry["state"].get("_last_lr"),
            }
            for entry in content.get("schedulers", ())
            if about
        ],
        "attributes": [
            {"attribute": name, "text": text}
            for name, text in attributes.read(content.get("attributes", {}) if about else {}).items()
        ],
    }


def _tensors(entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in entries.items():
        for i, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, Tensor):
                yield f"{name}[{i}]" if isinstance(value, list) else name, tensor


def _form(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": name_of(tensor.dtype), "shape": list(tensor.shape), "bytes": tensor.nbytes}


def _steps(entries: dict[str, Any]) -> int | None:
    """Return how many steps are in a state that counts them."""
    count = entries.get("step")
    return None if count is None else int(count)
