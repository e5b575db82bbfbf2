"""Checksums of parameters' values, by which a restart without the right ones is noticed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from optplug.errors import warn
from optplug.spec import shown

_PIECE = 1 << 20  # bytes that are looked at, and where they lie apart copied, at a time
_MOST_NAMES = 10  # in a warning


def checksum(data: Tensor) -> int:
    """Return the CRC-32 of all values in C order, whatever the layout and the device."""
    crc = 0
    for piece in _pieces(data.detach()):
        piece = piece.contiguous().cpu()
        # numpy has no bfloat16
        crc = zlib.crc32((piece.view(torch.int16) if piece.dtype == torch.bfloat16 else piece).numpy(), crc)  # type: ignore[arg-type]
    return crc


def _pieces(data: Tensor) -> Iterator[Tensor]:
    if data.dim() == 0 or data.nbytes <= _PIECE or (data.is_contiguous() and not data.is_cuda):
        yield data
        return
    rows = _PIECE * len(data) // data.nbytes
    if rows:
        yield from data.split(rows)
    else:  # one alone is too much
        for row in data:
            yield from _pieces(row)


def read(saved: Any) -> dict[str, int]:
    """Return the checksums by name that a checkpoint has.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(saved, dict) or not all(type(crc) is int for crc in saved.values()):
        raise ValueError("not a checkpoint: its checksums are malformed")
    return saved


def checksums(here: Mapping[str, Tensor]) -> dict[str, int]:
    """Return those of some parameters' values, as far as somebody can look at them."""
    # In a capture nobody can look at a GPU's memory.
    is_hidden = any(data.is_cuda for data in here.values()) and torch.cuda.is_current_stream_capturing()
    return {name: checksum(data) for name, data in here.items() if not (is_hidden and data.is_cuda)}


def compare(saved: Mapping[str, int], here: Mapping[str, int]) -> None:
    """Warn of the parameters whose values do not have the checksums that were saved."""
    different = [name for name, crc in here.items() if saved[name] != crc]
    if not different:
        return
    names = ", ".join(map(shown, different[:_MOST_NAMES]))
    if len(different) > _MOST_NAMES:
        names += f" and {len(different) - _MOST_NAMES} more"
    warn(
        f"values differ from those at opt_save in the parameters {names}: restore your arrays before the "
        f"first "
        'step, or let opt_load do so: opt_checkpoint(opt, "parameters=True") before opt_save and opt_load'
    )
