"""Parameters that lie in blocks of a grid: checkpoints of another decomposition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optplug.ctypes_api import Error, Optimizer
from rank_threads import Comm, drawn, on_ranks

GRID = (12, 10, 6)
#: How many blocks there are along each dimension, by the number of ranks.
CUTS = {1: (1, 1, 1), 2: (1, 2, 1), 3: (1, 1, 3), 4: (2, 2, 1), 6: (3, 1, 2)}
SPEC = "Adam(lr=0.01)"


def block(rank: int, cuts: tuple[int, ...]) -> tuple[slice, ...]:
    places = np.unravel_index(rank, cuts)
    slices = []
    for n, count, i in zip(GRID, cuts, places, strict=True):
        ends = [0, *(n * (j + 1) // count + 1 for j in range(count - 1)), n]
        slices.append(slice(ends[i], ends[i + 1]))
    return tuple(slices)


class Field:
    """A field with ghost cells around this rank's block, bound by strides, or a copy of it, bound flat."""

    def __init__(self, comm: Comm | None, how: str, seed: int = 0, spec: str = SPEC) -> None:
        rank, size = (comm.Get_rank(), comm.Get_size()) if comm else (0, 1)
        self.own = block(rank, CUTS[size])
        self.whole = drawn(seed, GRID, "float64")
        inner = self.whole[self.own]
        if how == "ghosts":
            self.w = np.full([n + 2 for n in inner.shape], np.nan)[1:-1, 1:-1, 1:-1]
            self.w[:] = inner
        else:
            self.w = np.ascontiguousarray(inner)
        self.dw = np.empty(inner.shape)
        self.opt = Optimizer(spec)
        if comm:
            self.opt.distribute("Shard(0)", comm)
        if how == "flat":
            self.opt.bind("u", self.w.reshape(-1), self.dw.reshape(-1))
        else:
            self.opt.bind("u", self.w, self.dw)
        start = [s.start for s in self.own]
        self.opt.bind_block("u", GRID, start, inner.shape if how == "flat" else None)
        self.opt.checkpoint("parameters=True")

    def loss(self) -> float:
        self.dw[:] = 2 * self.w + 4 * self.w**3
        return float((self.w**2 + self.w**4).sum())

    def steps(self, count: int) -> Field:
        for _ in range(count):
            self.opt.step_closure(self.loss)
        return self


def joined(fields: list[Field]) -> np.ndarray:
    whole = np.full(GRID, np.nan)
    for field in fields:
        whole[field.own] = field.w
    return whole


def on(size: int, work) -> list:
    results = on_ranks(size, work)
    for result in results:
        if isinstance(result, Error):
            raise result
    return results


def state(path) -> dict[str, np.ndarray]:
    saved = torch.load(path, weights_only=True)
    return {**saved["optimizer"]["state"][0], "u": saved["parameters"]["u"]}


@pytest.mark.parametrize("how", ["plain", "ghosts", "flat"])
def test_a_field_in_blocks_is_saved_as_the_grid_and_loaded_on_another_decomposition(how, tmp_path):
    def first(comm):
        field = Field(comm, how).steps(4)
        field.opt.save(tmp_path / str(comm.Get_size()))
        return field.steps(2)

    one = joined(on(1, first))
    for size in (6, 4, 3, 2):
        assert np.array_equal(joined(on(size, first)), one)
        there = state(tmp_path / str(size))
        for key, value in state(tmp_path / "1").items():
            assert torch.equal(there[key], value)
            assert there[key].shape == value.shape
    for size in (2, 3, 1, 4):
        found = on(size, lambda comm: load(comm, how, tmp_path / "6"))
        assert np.array_equal(joined(found), one)


def load(comm: Comm, how: str, path) -> Field:
    field = Field(comm, how, seed=7)
    field.opt.load(path)
    return field.steps(2)


def test_a_grid_of_one_process_is_loaded_in_blocks(tmp_path):
    field = Field(None, "ghosts").steps(4)
    field.opt.save(tmp_path / "file")
    assert np.array_equal(
        joined(on(6, lambda comm: load(comm, "ghosts", tmp_path / "file"))), field.steps(2).w
    )


def test_lbfgs_in_blocks_comes_back_on_another_decomposition(tmp_path):
    spec = "LBFGS(max_iter=4, history_size=3)"

    def save(comm, path, before=None):
        field = Field(comm, "flat", seed=0 if before is None else 7, spec=spec)
        if before is None:
            field.steps(3)
        else:
            field.opt.load(before)
        field.opt.save(path)
        return field

    on(6, lambda comm: save(comm, tmp_path / "6"))
    for before, size in (("6", 4), ("4", 1), ("1", 3)):
        on(size, lambda comm, b=before, n=size: save(comm, tmp_path / str(n), tmp_path / b))
    there, here = state(tmp_path / "6"), state(tmp_path / "3")
    assert there.keys() == here.keys()
    for key, value in there.items():
        values, again = (v if isinstance(v, list) else [v] for v in (value, here[key]))
        for a, b in zip(values, again, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# ---- what is refused ----


def refused(size: int, call, status: int = -1) -> str:
    """Return what all ranks say of a call on an optimizer over them, with u and c bound."""

    def work(comm):
        with Optimizer(SPEC) as opt:
            opt.distribute("Shard(0)", comm)
            opt.bind("u", np.ones((2, 3)), np.ones((2, 3)))
            opt.distribute("Replicate(), Replicate()", comm)
            opt.bind("c", np.ones(3), np.ones(3))
            with pytest.raises(Error) as error:
                call(opt, comm.Get_rank())
            return str(error.value), error.value.status

    ((message, found),) = set(on(size, work))
    assert found == status
    return message


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: o.bind_block("v", (4, 3), (0, 0)), "no parameter 'v'"),
        (lambda o: o.bind_block("c", (6,), (0,)), "every rank has all of it"),
        (lambda o: o.bind_block("u", (4,), (0,)), "pass its shape as well"),
        (lambda o: o.bind_block("u", (4, 3), (0, 0), (3, 2)), "it was bound with shape (2, 3)"),
        (lambda o: o.bind_block("u", (4, 3), (3, 0)), "is not within it"),
        (lambda o: o.bind_block("u", (4, 3), (-1, 0)), "is not within it"),
        (lambda o: o.bind_block("u", (), ()), "ndim must be positive"),
        (lambda o: (o.step(), o.bind_block("u", (4, 3), (0, 0))), "call opt_bind_block before"),
    ],
)
def test_what_is_no_block_is_refused(call, words):
    assert words in refused(2, lambda opt, _: call(opt), -3 if "before" in words else -1)


def test_blocks_that_do_not_fill_the_grid_are_an_error_of_all(tmp_path):
    def call(offset):
        def save(opt, rank):
            opt.bind_block("u", (4, 3), (offset * rank, 0))
            opt.save(tmp_path / "file")

        return save

    assert "blocks at (0, 0) and (1, 0) overlap" in refused(2, call(1))

    def gap(opt, rank):
        opt.bind_block("u", (5, 3), (2 * rank, 0))
        opt.save(tmp_path / "file")

    assert "have 12 values, the whole (5, 3) has 15" in refused(2, gap)
    assert not list(tmp_path.iterdir())


def test_grids_that_differ_are_an_error_of_all():
    def call(opt, rank):
        opt.bind_block("u", (4 + rank, 3), (2 * rank, 0))
        opt.step()

    message = refused(2, call)
    assert message.startswith("ranks differ: parameter 'u' is float64 [..., ...] in group 0, Shard(0), in ")


def test_without_ranks_a_block_is_the_whole():
    with Optimizer(SPEC) as opt:
        opt.bind("u", np.ones((2, 3)), np.ones((2, 3)))
        opt.bind_block("u", (2, 3), (0, 0))
        with pytest.raises(Error, match="there are no other ranks"):
            opt.bind_block("u", (4, 3), (0, 0))


def test_the_blocks_of_these_tests_are_uneven():
    sizes = {math.prod(s.stop - s.start for s in block(rank, CUTS[6])) for rank in range(6)}
    assert len(sizes) > 1
