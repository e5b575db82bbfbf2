"""Checkpoints of optimizers over ranks: one file, for any number of ranks."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import pytest
import torch

from optplug import ctypes_api
from optplug.ctypes_api import Error, Optimizer, load
from rank_threads import ELEMENTWISE, bounds, drawn, made, on_ranks

N, ROWS = 64 * 7 + 5, (13, 64)
LBFGS = ["LBFGS(lr=0.1, max_iter=5)", "LBFGS(line_search_fn='strong_wolfe', max_iter=10, history_size=7)"]
FIELD, REST = "Shard(0)", "Replicate(), Replicate()"


def cut(comm, n: int, how: str, unit: int) -> slice:
    """Return this rank's part: of so many values at once, but for the last."""
    if comm is None:
        return slice(0, n)
    part = bounds(n // unit, comm.Get_rank(), comm.Get_size(), how)
    is_last = comm.Get_rank() == comm.Get_size() - 1
    return slice(unit * part.start, n if is_last else unit * part.stop)


class Run:
    """A field and a table that are cut, and constants and a scale that all ranks have."""

    def __init__(self, spec: str, comm, how: str = "even", unit: int = 64, seed: int = 0) -> None:
        self.spec = spec
        self.size = 1 if comm is None else comm.Get_size()
        self.own = {"u": cut(comm, N, how, unit), "t": cut(comm, ROWS[0], how, 1), "c": slice(None), "s": ()}
        whole = {"u": (N,), "t": ROWS, "c": (70, 3), "s": ()}
        self.w = {
            name: drawn(seed + i, whole[name], "float64")[self.own[name]].copy()
            for i, name in enumerate(whole)
        }
        self.w["s"] = np.array(self.w["s"])
        self.dw = {name: np.empty_like(a) for name, a in self.w.items()}
        self.opt = made(spec, FIELD, comm)
        order = ["t", "u"] if comm is None or comm.Get_rank() != 1 else ["u", "t"]
        for name in order:
            self.opt.bind(name, self.w[name], self.dw[name])
        if comm is not None:
            self.opt.distribute(REST, comm)
        for name in ("c", "s"):
            self.opt.bind(name, self.w[name], self.dw[name])

    def fill(self) -> float:
        """Compute the gradients; the loss is this rank's share of the sum."""
        total = 0.0
        for name, w in self.w.items():
            self.dw[name][...] = 2 * w + w**3
            total += float((w * w + w**4 / 4).sum()) / (self.size if name in ("c", "s") else 1)
        return total

    def steps(self, count: int) -> Run:
        for _ in range(count):
            if "LBFGS" in self.spec:
                self.opt.step_closure(self.fill)
            else:
                self.fill()
                self.opt.step()
        return self


def values(runs: list[Run]) -> dict[str, np.ndarray]:
    """Return the whole arrays of all ranks; those that each has must be the same."""
    assert all(np.array_equal(run.w[name], runs[0].w[name]) for run in runs for name in ("c", "s"))
    joined = {name: np.concatenate([run.w[name] for run in runs]) for name in ("u", "t")}
    return {**joined, "c": runs[0].w["c"], "s": runs[0].w["s"]}


def on(size: int, work):
    results = on_ranks(size, work) if size > 1 else [work(None)]
    for result in results:
        if isinstance(result, Error):
            raise result
    return results


def saved(spec: str, size: int, path, how: str = "even", unit: int = 64) -> list[Run]:
    def work(comm):
        run = Run(spec, comm, how, unit).steps(5)
        run.opt.checkpoint("parameters=True")
        run.opt.save(path)
        return run.steps(3)

    return on(size, work)


def resumed(spec: str, size: int, path, how: str = "even") -> list[Run]:
    def work(comm):
        run = Run(spec, comm, how, seed=99)
        run.opt.checkpoint("parameters=True")
        run.opt.load(path)
        return run.steps(3)

    return on(size, work)


def copied(spec: str, size: int, path, to, how: str = "even", unit: int = 1) -> None:
    """Load a file on so many ranks, and save it there."""

    def work(comm):
        run = Run(spec, comm, how, unit, seed=99)
        run.opt.checkpoint("parameters=True")
        run.opt.load(path)
        run.opt.save(to)

    on(size, work)


def read(path):
    return plain(torch.load(path, weights_only=True))


def plain(value):
    """Return a value with each tensor as its dtype, shape and bytes, for == to compare."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.shape, value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def same(a, b) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("spec", ELEMENTWISE)
def test_a_run_goes_on_with_its_bits_on_any_number_of_ranks(spec, tmp_path):
    whole = values(saved(spec, 1, tmp_path / "1"))
    assert same(values(saved(spec, 4, tmp_path / "4")), whole)
    for path, sizes in ((tmp_path / "4", (1, 2, 3)), (tmp_path / "1", (2,))):
        for size in sizes:
            assert same(values(resumed(spec, size, path)), whole)


@pytest.mark.parametrize(
    ("spec", "how"), [*zip([*ELEMENTWISE, *LBFGS], itertools.cycle(["lopsided", "last"]), strict=False)]
)
def test_every_bit_of_a_file_comes_back_on_any_cut(spec, how, tmp_path):
    saved(spec, 4, tmp_path / "4", how, unit=1)
    before, expected = "4", read(tmp_path / "4")
    for size, again in ((2, "even"), (1, ""), (3, "lopsided"), (4, "last")):
        after = f"{before}-{size}"
        copied(spec, size, tmp_path / before, tmp_path / after, again)
        assert read(tmp_path / after) == expected
        before = after


def test_plain_pytorch_reads_the_file_and_finds_what_one_process_saves(tmp_path):
    for size in (1, 3):
        saved("Adam(lr=0.01)", size, tmp_path / str(size))
    assert read(tmp_path / "3") == read(tmp_path / "1")


# ---- all that is in a file ----


def rich(comm, rate: float = 0.1):
    """Two groups, a schedule, an average, master copies and texts."""
    part = cut(comm, 300, "lopsided", 1)
    arrays = [
        drawn(i, (300,), dtype)[part].copy() for i, dtype in enumerate(("float32", "float16", "float64"))
    ]
    grads = [np.empty_like(a) for a in arrays]
    opt = made(f"AdamW(lr={rate})", FIELD, comm)
    opt.bind("a", arrays[0], grads[0])
    opt.group("lr=0.01, weight_decay=0.1")
    opt.bind("h", arrays[1], grads[1])
    opt.bind("d", arrays[2], grads[2])
    return opt, arrays, grads


def go(opt, arrays, grads, count: int) -> None:
    for _ in range(count):
        for w, dw in zip(arrays, grads, strict=True):
            dw[:] = np.sin(w)
        opt.step()
        opt.schedule_step()


def test_groups_schedules_averages_master_copies_and_texts_go_on(tmp_path):
    path = tmp_path / "file"

    def first(comm):
        opt, arrays, grads = rich(comm)
        opt.schedule("SequentialLR([LinearLR(total_iters=3), StepLR(2)], milestones=[3])")
        opt.average("AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))")
        opt.attribute("grid", "300 points")
        opt.checkpoint("parameters=True")
        go(opt, arrays, grads, 4)
        opt.save(path)
        go(opt, arrays, grads, 3)
        return found(opt, arrays)

    def then(comm):
        opt, arrays, grads = rich(comm, rate=0.7)
        for w in arrays:
            w[:] = 0
        opt.checkpoint("parameters=True")
        opt.load(path)
        go(opt, arrays, grads, 3)
        return found(opt, arrays)

    def found(opt, arrays):
        averages = [opt.average_get(name) for name in ("a", "h", "d")]
        return [*arrays, *averages], opt.get(1, "lr"), opt.get(-1, "step"), opt.attribute_get("grid")

    load().optplug_init(b"master_weights=True")
    try:
        before = on(4, first)
        whole = [np.concatenate(parts) for parts in zip(*(arrays for arrays, *_ in before), strict=True)]
        for size in (3, 2, 1, 4):
            after = on(size, then)
            again = [np.concatenate(parts) for parts in zip(*(arrays for arrays, *_ in after), strict=True)]
            assert all(map(np.array_equal, whole, again))
            assert {tuple(rest) for _, *rest in after} == {tuple(rest) for _, *rest in before}
    finally:
        load().optplug_init(b"master_weights=False")


def test_other_values_than_at_the_save_are_warned_of_by_those_of_the_whole(tmp_path):
    saved("Adam(lr=0.01)", 3, tmp_path / "file")

    def work(comm, change: str):
        run = Run("Adam(lr=0.01)", comm).steps(5)
        if comm.Get_rank() == 1 and change:
            run.w[change].flat[0] += 1e-9
        run.opt.load(tmp_path / "file")
        run.steps(1)

    with warnings.catch_warnings(record=True) as none:
        warnings.simplefilter("always")
        on(2, lambda comm: work(comm, ""))
    assert not none
    with pytest.warns(UserWarning, match="in the parameters 'u': restore") as caught:
        on(2, lambda comm: work(comm, "u"))
    assert len(caught) == 2


def test_ranks_say_how_far_a_save_is(tmp_path, monkeypatch):
    monkeypatch.setattr("optplug.log._EVERY", 0)
    lines = []
    ctypes_api.log(lambda _, line: lines.append(line))

    def work(comm):
        w = np.ones(1 << 20)
        opt = made("SGD()", FIELD, comm)
        opt.bind("w", w, w.copy())
        opt.checkpoint("parameters=True")
        opt.save(tmp_path / "file")

    on(2, work)
    ctypes_api.log(None)
    told = [re.search(r"saving to '.*file': ([\d.]+) of ([\d.]+) GB$", line) for line in lines]
    found = [match.groups() for match in told if match]
    assert found == [("0.0", "0.0")] * 8  # 4 MB at a time: rank 1 writes 8, rank 0 as many, and reads 16


def test_a_save_before_the_first_step_is_loaded_before_it(tmp_path):
    def work(comm, call: str):
        opt = made("Adam(lr=0.01)", FIELD, comm)
        n = 6 // comm.Get_size()
        opt.bind("u", np.ones(n), np.ones(n))
        getattr(opt, call)(tmp_path / "file")
        opt.step()
        return opt.get(-1, "step")

    assert on(2, lambda comm: work(comm, "save")) == [1, 1]
    assert on(3, lambda comm: work(comm, "load")) == [1, 1, 1]


def test_ranks_with_and_without_ghost_cells_save_what_each_goes_on_from(tmp_path):
    def work(comm, count: int, call: str):
        rank = comm.Get_rank()
        w = np.ones((4, 5 + rank))[:, :5]  # rank 0 has no gaps, and so its step is fused
        dw = np.empty((4, 5))
        opt = made("Adam(lr=0.01)", FIELD, comm)
        opt.bind("u", w, dw)
        opt.checkpoint("parameters=True")
        if call == "load":
            opt.load(tmp_path / "file")
        for i in range(count):
            dw[:] = np.sin(3 * w + rank)
            opt.step()
            if call == "save" and i == 4:
                opt.save(tmp_path / "file")
        return w.copy()

    before = on(2, lambda comm: work(comm, 9, "save"))
    assert torch.load(tmp_path / "file", weights_only=True)["optimizer"]["param_groups"][0]["fused"] is True
    assert all(map(np.array_equal, before, on(2, lambda comm: work(comm, 4, "load"))))


def torchs_own(path, *grads: float) -> None:
    """Save what plain PyTorch has of parameters of 4 values after a step with these gradients."""
    parameters = [torch.nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in grads]
    optimizer = torch.optim.SGD(parameters, lr=1, momentum=0.5)
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = torch.full_like(p, grad)
    optimizer.step()
    torch.save(optimizer.state_dict(), path)


def test_a_file_without_names_has_the_order_of_rank_0(tmp_path):
    torchs_own(tmp_path / "file", 1, 100)

    def work(comm):
        arrays = {name: np.zeros(2) for name in "uv"}
        opt = made("SGD(lr=1, momentum=0.5)", FIELD, comm)
        for name in "vu" if comm.Get_rank() else "uv":
            opt.bind(name, arrays[name], np.zeros(2))
        opt.load(tmp_path / "file")
        opt.step()
        return {name: w.tolist() for name, w in arrays.items()}

    assert on(2, work) == [{"u": [-0.5, -0.5], "v": [-50.0, -50.0]}] * 2


# ---- what fails ----


def fails(size: int, path, change, spec: str = "Adam(lr=0.01)", call: str = "save") -> str:
    """Let a call fail on all ranks, by a change to one, and return what all say; nothing has changed."""

    def work(comm):
        run = Run(spec, comm).steps(2)
        run.opt.checkpoint("parameters=True")
        before = run.opt.describe(), {name: a.copy() for name, a in run.w.items()}
        where = change(run, comm.Get_rank()) or path
        with pytest.raises(Error) as error:
            getattr(run.opt, call)(where)
        assert same(run.w, before[1])
        run.steps(1)
        return str(error.value), run.opt.get(-1, "step")

    results = on(size, work)
    assert {step for _, step in results} == {3}
    (message,) = {message for message, _ in results}
    return message


def on_rank_1(do):
    return lambda run, rank: do(run) if rank == 1 else None


@pytest.mark.parametrize(
    ("do", "line"),
    [
        (lambda _: "elsewhere", "ranks differ: path is 'elsewhere' on rank 1, "),
        (lambda run: run.opt.checkpoint("schedules=False"), "ranks differ: opt_checkpoint is "),
        (
            lambda run: run.opt.set(0, "lr=0.3"),
            "ranks differ: lr of group 0 is 0.3 on rank 1, 0.01 on rank 0",
        ),
        (
            lambda run: run.opt.attribute("a", "b"),
            "ranks differ: attributes is \"{'a': 'b'}\" on rank 1, '{}'",
        ),
    ],
)
def test_ranks_that_would_save_different_things_say_so(do, line, tmp_path):
    saved("Adam(lr=0.01)", 2, tmp_path / "file")
    old = (tmp_path / "file").read_bytes()
    assert fails(3, tmp_path / "file", on_rank_1(do)).startswith(line)
    assert (tmp_path / "file").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_an_error_of_all(tmp_path):
    message = fails(2, tmp_path / "none" / "file", lambda *_: None)
    assert message == f"rank 0: path '{tmp_path}/none/file': No such file or directory"


def test_a_file_that_one_rank_cannot_read_changes_nothing_on_any(tmp_path):
    saved("Adam(lr=0.01)", 2, tmp_path / "file")
    (tmp_path / "damaged").write_bytes((tmp_path / "file").read_bytes()[:-100])
    for name, words in (("damaged", "damaged: "), ("none", "No such file or directory")):
        message = fails(3, tmp_path / "file", on_rank_1(lambda _, name=name: tmp_path / name), call="load")
        assert message.startswith(f"rank 1: path '{tmp_path}/{name}': ")
        assert words in message


def test_files_that_differ_change_nothing_on_any_rank(tmp_path):
    saved("Adam(lr=0.01)", 2, tmp_path / "file")
    saved("Adam(lr=0.02)", 2, tmp_path / "other")
    message = fails(3, tmp_path / "file", on_rank_1(lambda _: tmp_path / "other"), call="load")
    assert message.startswith("ranks differ: file is ")


def test_files_of_pytorchs_that_differ_by_numbers_alone_are_an_error_of_all(tmp_path):
    def work(comm):
        path = tmp_path / str(comm.Get_rank())
        torchs_own(path, 1 + comm.Get_rank())
        opt = made("SGD(lr=1, momentum=0.5)", FIELD, comm)
        opt.bind("u", np.zeros(2), np.zeros(2))
        with pytest.raises(Error) as error:
            opt.load(path)
        return str(error.value)

    (message,) = set(on(2, work))
    assert message.startswith("ranks differ: file is ")


def test_ranks_of_which_one_saves_and_one_loads_say_so(tmp_path):
    saved("Adam(lr=0.01)", 2, tmp_path / "file")

    def work(comm):
        run = Run("Adam(lr=0.01)", comm)
        with pytest.raises(Error) as error:
            (run.opt.load if comm.Get_rank() else run.opt.save)(tmp_path / "file")
        run.steps(1)
        with pytest.raises(Error) as again:
            (run.opt.load if comm.Get_rank() else run.opt.save)(tmp_path / "file")
        return str(error.value), str(again.value)

    line = "ranks differ: call is 'opt_load' on rank 1, 'opt_save' on rank 0"
    assert on(2, work) == [(line, line)] * 2


def test_a_parameter_that_is_new_after_ranks_have_compared_theirs_is_refused(tmp_path):
    def work(comm):
        opt = made("Adam(lr=0.01)", FIELD, comm)
        opt.bind("u", np.ones(3), np.ones(3))
        opt.save(tmp_path / "file")
        if comm.Get_rank():
            with pytest.raises(Error, match="'v' is new after the first call that all ranks make") as error:
                opt.bind("v", np.ones(3), np.ones(3))
            assert error.value.status == -3
        opt.save(tmp_path / "file")

    on(2, work)


def test_another_whole_is_refused_by_its_shape(tmp_path):
    with Optimizer("Adam(lr=0.01)") as opt:
        for name, shape in (("u", (N + 1,)), ("t", ROWS), ("c", (70, 3)), ("s", ())):
            opt.bind(name, np.ones(shape), np.ones(shape))
        opt.step()
        opt.save(tmp_path / "file")
    message = fails(2, tmp_path / "file", lambda *_: None, call="load")
    assert message.endswith(
        f"parameter 'u' is float64 of shape ({N + 1},) in the file, and float64 of shape ({N},) here"
    )


def test_a_value_that_is_damaged_is_an_error_of_all(tmp_path):
    saved("Adam(lr=0.01)", 2, tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "file").write_bytes(content)
    assert "damaged: checksum mismatch" in fails(2, tmp_path / "file", lambda *_: None, call="load")


@pytest.mark.parametrize("call", ["save_memory", "load_memory"])
def test_memory_is_refused(call):
    def work(comm):
        run = Run("Adam(lr=0.01)", comm)
        with pytest.raises(Error, match="after opt_distribute is not supported: call opt_") as error:
            run.opt.save_memory() if call == "save_memory" else run.opt.load_memory(b"a")
        return error.value.status

    assert on(2, work) == [-3, -3]
