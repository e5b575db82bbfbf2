"""Whether optplug's values are PyTorch's after the same steps: otherwise there is nothing to time."""

from __future__ import annotations

import pathlib

import torch

from peers import PROCESSORS_SQRT, TIMES, Peer, values_of

CHECKED_STEPS = 5
CHECKED_LOOPS = 1200  # so many that StepLR changes the learning rate
TOLERANCE = 1e-5  # of steps with the processor's square root


def twins(names: list[str]) -> dict[str, str]:
    """Return which way of PyTorch's has the numbers of each of optplug's, of those that are there."""
    usual = "PyTorch fused" if "PyTorch fused" in names else "PyTorch default"
    pairs = {
        "optplug": usual,
        "optplug, foreach": "PyTorch foreach",
        PROCESSORS_SQRT: "PyTorch default",
    }
    return {ours: theirs for ours, theirs in pairs.items() if ours in names and theirs in names}


def difference(programs: pathlib.Path, ours: str, theirs: str) -> str:
    """Say how the values differ that two peers have written; "" if they do not, as far as they promise."""
    files = [values_of(programs, name) for name in (ours, theirs)]
    sizes = [file.stat().st_size for file in files]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]:,} bytes, not {sizes[1]:,}"
    made, wanted = (torch.from_file(str(file), size=sizes[0] // 4, dtype=torch.int32) for file in files)
    wrong = made != wanted
    if ours == PROCESSORS_SQRT:
        made, wanted = made.view(torch.float32), wanted.view(torch.float32)
        wrong = ~((made - wanted).abs() <= TOLERANCE * wanted.abs().clamp(min=1))
    count = int(torch.count_nonzero(wrong))
    return f"{count:,} of {wrong.numel():,} values are not those of {theirs}" if count else ""


def check(programs: pathlib.Path, peers: dict[str, Peer], what: str, *words: object) -> None:
    """Compare what the peers have written, if told to by a command, and stop if it differs."""
    pairs = twins(list(peers))
    names = dict.fromkeys([*pairs, *pairs.values()])
    for name in names if words else ():
        peers[name].ask(*words)
    for ours, theirs in pairs.items():
        found = difference(programs, ours, theirs)
        if found:
            raise SystemExit(f"{what.replace(' x ', f' {TIMES} ')}: {ours}: {found}")
    for name in names:
        values_of(programs, name).unlink()
