"""What C has as one operation has the bits of several, and a square root without Intel's call has Intel's."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from optplug._optplug import lib as numbers

from optplug import elementwise, merging, records
from planned_twins import UnfusedTwins, direct_plans  # noqa: F401 (pytest finds the fixture here)

ROOT, ONE_ROOT = numbers.ELEMENTWISE_SQRT_MKL, numbers.ELEMENTWISE_SQRT_NEWTON
NAMES = {getattr(numbers, n): n.removeprefix("ELEMENTWISE_") for n in dir(numbers) if "ELEMENTWISE_" in n}
V, U, W = 0.3, 0.7, 1e-3
#: How many arrays and scalars those take that are no merged ones themselves.
TAKEN = {
    "MUL_SCALAR": (1, 1), "ADD_SCALAR": (1, 1), "DIV_SCALAR": (1, 1), "RECIPROCAL": (1, 0), "ABS": (1, 0),
    "MUL": (2, 0), "DIV": (2, 0), "ADD_FMA": (2, 1), "MAXIMUM": (2, 0), "MAXIMUM_FIRST": (2, 0),
    "ADDCMUL_FMA": (3, 1), "ADDCDIV": (3, 1), "MUL_MUL_SCALAR": (2, 1), "ABS_ADD_SCALAR": (1, 1),
}  # fmt: skip


def as_instruction(number, to, arrays):
    """Return an operation on these arrays with the scalars that it takes."""
    name = NAMES[number]
    if name == "ADD_RECIPROCAL":
        return merging.Instruction(number, number, to, arrays[0], u=1)
    if name.startswith("MAXIMUM") and name.endswith("ABS_ADDED"):
        return merging.Instruction(number, number, to, *arrays[:2], u=1)
    taken, scalars = TAKEN[name]
    return merging.Instruction(number, number, to, *(*arrays[:taken], -1, -1)[:3], v=0 if scalars else -1)


def result_of(instructions, arrays):
    """Run operations on copies of arrays, the last of which is a temporary one, and return the first."""
    arrays = [t.clone() for t in arrays]
    scalars = [V, U, W, 0.0]
    for one in instructions:
        a, b, c = (arrays[max(i, 0)] for i in (one.a, one.b, one.c))
        assert elementwise.run(one.elementwise, arrays[one.to], a, b, c, scalars[one.v], scalars[one.u])
    return arrays[0]


@pytest.mark.parametrize("dtype", elementwise.DTYPES)
@pytest.mark.parametrize("pair", merging._MERGED, ids=lambda pair: " ".join(NAMES[i] for i in pair))
def test_one_operation_is_two_in_turn(pair, dtype):
    _, operand = merging._MERGED[pair]
    first = as_instruction(pair[0], 3, [1, 2, 0])
    first = replace(first, v=2 if first.v >= 0 else -1)
    one = as_instruction(pair[1], 0, [3 if name == operand else i for i, name in enumerate("abc")])
    (both,) = merging.merged([first, one], 3)
    assert both.elementwise == both.end == merging._MERGED[pair][0]
    for arrays in elementwise._numbers(dtype):
        laid = [*arrays, torch.zeros_like(arrays[0])]
        assert elementwise.is_same(result_of([both], laid), result_of([first, one], laid))


def test_operations_stay_two_where_another_reads_what_the_first_makes():
    first = as_instruction(numbers.ELEMENTWISE_ABS, 3, [1])
    one = as_instruction(numbers.ELEMENTWISE_ADD_SCALAR, 2, [3])
    reads = as_instruction(numbers.ELEMENTWISE_MUL, 0, [0, 3])
    assert merging.merged([first, one, reads], 3) == [first, one, reads]
    assert len(merging.merged([first, one], 3)) == 1
    assert len(merging.merged([first, one], 4)) == 2  # an array of the state is read by others


# ---- the square root ----

needs_root = pytest.mark.skipif(
    elementwise.quickest_root() != ONE_ROOT, reason="torch's square root is no MKL's, or another processor's"
)


def roots(number, values):
    found = torch.empty_like(values)
    assert elementwise.run(number, found, values, values, values, 0.0, 0.0)
    return found.view(torch.int32)


def of_all_kinds(n):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-(2**31), 2**31, (n,), generator=generator).int().view(torch.float32)


@needs_root
def test_the_root_is_intels_for_numbers_of_all_kinds():
    values = of_all_kinds(1 << 20)
    assert torch.equal(roots(ONE_ROOT, values), roots(ROOT, values))  # those of nan too
    values = values.abs()
    assert torch.equal(roots(ONE_ROOT, values), roots(ROOT, values))
    edges = torch.tensor([0, 1, 0x7FFFFF, 0x800000, 0x7EFFFFFF, 0x7F000000, 0x7F7FFFFF, 0x7F800000]).int()
    edges = torch.cat([edges, edges - 2**31, edges + 1, edges - 1]).view(torch.float32)
    assert torch.equal(roots(ONE_ROOT, edges), roots(ROOT, edges))


@needs_root
def test_the_root_is_intels_wherever_a_value_lies():
    values = of_all_kinds(200).abs()
    values[::7] = 0
    for n in range(1, 100):
        assert torch.equal(roots(ONE_ROOT, values[:n]), roots(ROOT, values[:n])), n
        there = values[:n].clone()
        assert elementwise.run(ONE_ROOT, there, there, there, there, 0.0, 0.0)
        assert torch.equal(there.view(torch.int32), roots(ROOT, values[:n])), n


@needs_root
def test_the_root_is_intels_in_a_thread_that_flushes_denormals():
    values = of_all_kinds(1 << 16).abs()
    values[::2] = torch.rand(1 << 15) * 1e-36
    found = []

    def flush():
        assert torch.set_flush_denormal(True)
        found.append(roots(ONE_ROOT, values))

    thread = threading.Thread(target=flush)
    thread.start()
    thread.join()
    assert torch.equal(found[0], roots(ROOT, values))


@needs_root
@pytest.mark.parametrize("n", [100, 40_000])
def test_long_steps_take_that_root(n, monkeypatch):
    used = set()
    real = records.Records._as_run

    def as_run(self, optimizer, kind, copied):
        made = real(self, optimizer, kind, copied)
        used.update((copied, one.elementwise) for record in made for one in record.instructions)
        return made

    monkeypatch.setattr(records.Records, "_as_run", as_run)
    twins = UnfusedTwins("RMSprop(lr=0.1)", [("float32", n), ("float64", n)])
    for _ in range(8):
        twins.step()
    twins.end()
    for copied in (True, False):
        assert ((copied, ONE_ROOT) in used) == (n > 100)
        assert (copied, ROOT) in used  # in double precision
