"""Every number is PyTorch's: each case runs beside torch.optim, live, and is compared bit for bit.

Run with OPTPLUG_WRITE_DOCS=1, this writes docs/support.md from what it has seen.
"""

from __future__ import annotations

import collections
import itertools
import os
import re

import pytest
import torch
from torch.optim import lr_scheduler

import hosts
from pairs import (
    DENSE,
    DTYPES,
    FUSED,
    LAYOUTS,
    OPTIMIZERS,
    PARAMETERS,
    SCHEDULERS,
    STEPS,
    TAKE_A_FUNCTION,
    classes,
    compare,
    lib,
    name_of,
    pytestmark,  # noqa: F401 (pytest finds them here)
)

assert lib.opt_init(b"plans='direct'") == 0  # as in hosts that are no Python

#: Layouts that come with every grouping of parameters; the others have one.
ALL_GROUPINGS = {"rows", "sparse rows"}

seen: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)


def test_nothing_of_torch_is_left_out():
    assert {name_of(text) for text in OPTIMIZERS} == classes(torch.optim, torch.optim.Optimizer)
    known = {name_of(text) for text in SCHEDULERS} - {"", "SWALR"}
    assert known == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("text", OPTIMIZERS)
def test_steps_are_bit_for_bit_those_of_torch(text):
    """Each dtype in a third of the layouts, in turn, and in all groupings; with all schedulers in turn."""
    name = name_of(text)
    number = [other for other in OPTIMIZERS if name_of(other) == name].index(text)
    layouts, share = (DENSE, 2) if name == "LBFGS" else (LAYOUTS, 3)  # its loss here has no sparse gradients
    turn, turn_of_sparse = itertools.cycle(SCHEDULERS), itertools.cycle(SCHEDULERS[::-1])
    for (i, dtype), (j, layout) in itertools.product(enumerate(DTYPES), enumerate(layouts)):
        if layout != "sparse rows" and (i + j + number) % share:
            continue
        for k, groups in enumerate(PARAMETERS.values()):
            if layout not in ALL_GROUPINGS and k != (i + j // 3) % len(PARAMETERS):
                continue
            scheduler = next(turn_of_sparse if layout == "sparse rows" else turn)
            ran = compare(text, dtype, layout, groups, scheduler)
            seen[name]["compared" if ran else "refused"] += 1
            if ran:
                seen[name][dtype] += 1
                seen[name_of(scheduler)]["compared"] += 1
    assert seen[name]["compared"] >= 10


def table(version: str) -> str:
    """Render what this run has seen, for the page that a run with this torch has written."""
    lines = [
        "# What optplug does with PyTorch's optimizers and schedulers",
        "",
        f"Written by `tests/test_numbers.py` from a run with torch {version}: "
        f"each case is {STEPS} steps beside plain PyTorch, with every bit compared after each, "
        f"in every dtype below, {len(LAYOUTS)} layouts of memory ({', '.join(LAYOUTS)}), "
        "with one parameter, three, or two groups, and one of the schedulers; these take turns: "
        "with each of an optimizer's arguments a dtype has each grouping, and a third of the layouts "
        "(with LBFGS half) and sparse rows.",
        "A case counts as refused where PyTorch raises an error and optplug returned the same.",
        "",
        "| optimizer | step | kernels | dtypes | cases compared | differing | refused alike |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(classes(torch.optim, torch.optim.Optimizer)):
        step = {
            "LBFGS": "`opt_step_closure`, `opt_iterate`",
            "SparseAdam": "`opt_step`, after `opt_bind_sparse`",
        }.get(name, "`opt_step`")
        kernels = "fused where the arrays allow it" if name in FUSED else "torch's own choice"
        dtypes = ", ".join(dtype for dtype in DTYPES if seen[name][dtype])
        counts = f"{seen[name]['compared']} | 0 | {seen[name]['refused']}"
        lines.append(f"| {name} | {step} | {kernels} | {dtypes} | {counts} |")
    lines += [
        "",
        "| scheduler | attached by | stepped by | cases compared | differing |",
        "|---|---|---|---|---|",
    ]
    for name in sorted({name_of(text) for text in SCHEDULERS} - {""}):
        attach = "opt_schedule_callback" if name in TAKE_A_FUNCTION else "opt_schedule"
        stepped = "opt_schedule_step" + ("_metric" if name == "ReduceLROnPlateau" else "")
        lines.append(f"| {name} | `{attach}` | `{stepped}` | {seen[name]['compared']} | 0 |")
    total = sum(seen[name]["compared"] for name in classes(torch.optim, torch.optim.Optimizer))
    refused = sum(counter["refused"] for counter in seen.values())
    lines += ["", f"In all {total} cases compared, 0 differing, {refused} refused alike."]
    return "\n".join(lines) + "\n"


def test_the_table_in_docs_is_of_such_a_run():
    if sum(counter["compared"] for counter in seen.values()) < 1000:
        pytest.skip("needs the whole file to have run")
    path = hosts.PROJECT / "docs" / "support.md"
    if os.environ.get("OPTPLUG_WRITE_DOCS"):
        path.write_text(table(torch.__version__.partition("+")[0]))
    page = path.read_text()
    assert page == table(re.search(r"with torch (\S+):", page)[1])
