"""LBFGS beside plain PyTorch, with the same function of the host's: every bit of values and state."""

from __future__ import annotations

import itertools
import pathlib
import platform
import sys

import numpy as np
import pytest
import torch

import hosts
from optplug import _bridge, ctypes_api, lbfgs, rows


@pytest.fixture
def _nothing_proven(monkeypatch):
    """Let steps be proven anew."""
    monkeypatch.setattr(lbfgs, "_proven", set())


def valley(w: np.ndarray, grad: np.ndarray) -> float:
    """Rosenbrock's valley, along neighbours, with its gradient; in the arrays' own precision."""
    steep = w[1:] - w[:-1] ** 2
    grad[:] = 0
    grad[:-1] = -2 * (1 - w[:-1]) - 40 * steep * w[:-1]
    grad[1:] += 20 * steep
    return float(np.sum((1 - w[:-1]) ** 2 + 10 * steep**2))


def shifted(values: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy that begins so many values behind an address that torch's own memory could have."""
    whole = np.zeros(values.size + 32, values.dtype)
    first = -whole.ctypes.data % 64 // values.itemsize + offset
    part = whole[first : first + values.size]
    part[:] = values
    return part


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_the_bits_do_not_depend_on_where_the_hosts_arrays_lie(dtype, offset):
    values = np.random.default_rng(1).normal(size=50).astype(dtype)
    w, dw = shifted(values, offset), shifted(0 * values, offset)
    v, dv = values.copy(), 0 * values
    p = torch.nn.Parameter(torch.from_numpy(v))
    p.grad = torch.from_numpy(dv)
    reference = torch.optim.LBFGS([p], line_search_fn="strong_wolfe")
    with ctypes_api.Optimizer("LBFGS(line_search_fn='strong_wolfe')") as opt:
        opt.bind("w", w, dw)
        for _ in range(3):
            loss = opt.step_closure(lambda: valley(w, dw))
            assert loss == reference.step(lambda: valley(v, dv))
            assert w.tobytes() == v.tobytes()


# ---- the same steps on rows ----


class Twins:
    """The same optimizer twice, by optplug and by torch, on the same valley."""

    def __init__(self, arguments: str, dtype: str = "float32", shapes=((50,),)) -> None:
        self.dtype, self.shapes = dtype, shapes
        self.size = sum(int(np.prod(shape)) for shape in shapes)
        start = np.random.default_rng(2).normal(size=self.size).astype(dtype)
        self.ours, self.theirs = self.arrays(start), self.arrays(start)
        self.opt = ctypes_api.Optimizer(f"LBFGS({arguments})")
        for i, (data, grad) in enumerate(self.ours):
            self.opt.bind(str(i), data, grad)
        parameters = [torch.nn.Parameter(torch.from_numpy(data)) for data, _ in self.theirs]
        for p, (_, grad) in zip(parameters, self.theirs, strict=True):
            p.grad = torch.from_numpy(grad)
        self.reference = torch.optim.LBFGS(parameters, **eval(f"dict({arguments})"))  # noqa: S307 - ours
        self.iterate = False
        self.calls = {"ours": 0, "theirs": 0}

    def arrays(self, values):
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        parts = [p.reshape(s).copy() for p, s in zip(np.split(values, ends), self.shapes, strict=True)]
        return [(data, np.zeros_like(data)) for data in parts]

    def loss(self, whose: str) -> float:
        self.calls[whose] += 1
        arrays = getattr(self, whose)
        grad = np.empty(self.size, self.dtype)
        result = valley(np.concatenate([data.ravel() for data, _ in arrays]), grad)
        begin = 0
        for data, part in arrays:
            part[...] = grad[begin : begin + data.size].reshape(data.shape)
            begin += data.size
        return result

    def step(self) -> None:
        if self.iterate:
            losses = [0.0]
            while self.opt.iterate(losses[-1]):
                losses.append(self.loss("ours"))
            first = losses[1]
        else:
            first = self.opt.step_closure(lambda: self.loss("ours"))
        self.iterate = not self.iterate
        assert repr(first) == repr(self.reference.step(lambda: self.loss("theirs")))
        self.compare()

    def compare(self) -> None:
        assert self.calls["ours"] == self.calls["theirs"]
        for (data, _), (other, _) in zip(self.ours, self.theirs, strict=True):
            assert bits(torch.from_numpy(data)) == bits(torch.from_numpy(other))
        assert bits(self.state()) == bits(next(iter(self.reference.state.values())))

    def state(self):
        return next(iter(_bridge.optimizer_of(self.opt._handle).run.built.state.values()))

    def has_rows(self) -> bool:
        """Tell whether a step was made on rows."""
        return _bridge.optimizer_of(self.opt._handle).planner.lbfgs._rows is not None

    def is_on_rows(self) -> bool:
        return "on rows" in self.opt.describe()


def bits(value):
    """Return a state with the bits of its tensors, but for those of a nan, and the types of its numbers."""
    if isinstance(value, dict):
        return {key: bits(v) for key, v in value.items()}
    if isinstance(value, list):
        return [bits(v) for v in value]
    if isinstance(value, torch.Tensor):
        numbers = torch.where(value.isnan(), torch.nan, value)
        return value.dtype, tuple(value.shape), numbers.numpy().tobytes()
    return type(value), repr(value)


SHAPES = {"one": ((50,),), "odd": ((7,),), "single": ((1,), (2,)), "several": ((6, 5), (0, 3), (), (2, 3, 4))}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("search", ["", ", line_search_fn='strong_wolfe'"])
@pytest.mark.parametrize("history", [3, 100])
@pytest.mark.usefixtures("_nothing_proven")
def test_every_step_and_its_state_are_torchs(shapes, search, history):
    """In both dtypes with each of these, in turn."""
    turn = list(SHAPES).index(shapes) + bool(search) + (history == 100)
    dtype = ("float32", "float64")[turn % 2]
    arguments = f"lr={0.5 if search else 0.01}, history_size={history}{search}"
    for is_proven in (False, True):
        twins = Twins(arguments, dtype, SHAPES[shapes])
        twins.step()
        assert twins.has_rows() == twins.is_on_rows() == is_proven
        for _ in range(8):
            twins.step()
        assert twins.is_on_rows()


@pytest.mark.usefixtures("_nothing_proven")
def test_all_of_a_first_step_is_compared(monkeypatch):
    """Rows that go wrong after the sixth point."""
    moves, move = itertools.count(), lbfgs._Rows._add_grad

    def wrong(self, size, direction):
        move(self, size * 2 if next(moves) > 6 else size, direction)

    monkeypatch.setattr(lbfgs._Rows, "_add_grad", wrong)
    twins, second = Twins("lr=0.01"), Twins("lr=0.01")
    twins.step()
    assert next(moves) > 6
    assert not twins.is_on_rows()
    second.step()


@pytest.mark.parametrize("search", ["", ", line_search_fn='strong_wolfe'"])
@pytest.mark.parametrize(("threads", "dtype"), [(1, "float32"), (2, "float32"), (2, "float64")])
@pytest.mark.usefixtures("_nothing_proven")
def test_long_arrays_are_stepped_on_rows_by_all_threads(search, threads, dtype):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(2):
            arguments = f"lr={0.5 if search else 0.01}, max_iter=4, history_size=3{search}"
            twins = Twins(arguments, dtype, shapes=((70_001,), (300, 9)))
            for _ in range(4):
                twins.step()
            can = rows.Kind(getattr(torch, dtype), twins.size).can()
            assert can or (dtype == "float32" and platform.machine() == "aarch64")  # by bfloat16
            assert twins.is_on_rows() == can
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 31, 33, 1000, 32_768, 100_003])
def test_the_largest_absolute_value_of_a_row_is_torchs(dtype, n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=dtype)
    row = rows.Kind(dtype, n).row_of(values)
    for place in {0, n // 3, n // 2, n - 1}:
        for value in (0.0, -9.0, float("inf"), float("-inf"), float("nan"), -float("nan")):
            before, values[place] = values[place].clone(), value
            assert repr(float(row.largest())) == repr(float(values.abs().max()))
            values[place] = before


@pytest.mark.usefixtures("_nothing_proven")
def test_steps_of_one_evaluation_each_come_to_rows_too_and_so_do_those_without_a_history():
    twins, flat = Twins("lr=1e-3, max_iter=1"), Twins("lr=1e-3")
    flat.loss = lambda whose: Twins.loss(flat, whose) * 0 + 1
    for _ in range(6):
        twins.step()
        for arrays in (flat.ours, flat.theirs):  # where gradients stay the same no pair is kept
            arrays[0][0][:] = 0.5
        flat.step()
    assert twins.is_on_rows()
    assert flat.state()["old_dirs"] == []
    assert flat.is_on_rows()
    flat.loss = lambda whose: Twins.loss(flat, whose)
    for _ in range(3):  # a step that comes by its history on rows
        flat.step()
    assert flat.state()["old_dirs"]


@pytest.mark.parametrize("search", ["", ", line_search_fn='strong_wolfe'"])
def test_a_step_on_rows_that_fails_changes_nothing(search):
    twins = Twins(f"lr={0.5 if search else 0.01}, history_size=5, max_iter=5{search}")
    for _ in range(3):
        twins.step()
    for at in (1, 2, 5):
        before = [data.copy() for data, _ in twins.ours], bits(twins.state())
        left = [at]

        def failing(left=left) -> float:
            left[0] -= 1
            if not left[0]:
                raise KeyError("the host's")
            return Twins.loss(twins, "ours")

        assert twins.is_on_rows()
        with pytest.raises(KeyError, match="the host's"):
            twins.opt.step_closure(failing)
        assert all((a == b).all() for a, (b, _) in zip(before[0], twins.ours, strict=True))
        assert bits(twins.state()) == before[1]
        twins.calls["ours"] = twins.calls["theirs"]
        twins.step()


def test_a_closure_finds_the_hosts_own_settings_in_a_step_on_rows():
    twins, seen = Twins("lr=0.01"), set()

    def loss(whose: str) -> float:
        seen.add((torch.is_grad_enabled(), np.geterr()["over"], np.geterr()["invalid"]))
        return Twins.loss(twins, whose)

    twins.loss = loss
    with np.errstate(over="raise", invalid="warn"):
        for _ in range(4):
            twins.step()
    assert twins.is_on_rows()
    assert seen == {(True, "raise", "warn")}


@pytest.mark.parametrize("search", ["", ", line_search_fn='strong_wolfe'"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_overflows_does_so_as_in_torch_and_without_a_warning(search):
    twins = Twins(f"lr=1.0, max_iter=7, history_size=3{search}")

    def loss(whose: str) -> float:
        value = Twins.loss(twins, whose)
        return {5: 1e300, 17: float("inf"), 31: -1e39, 42: float("nan")}.get(twins.calls[whose] % 47, value)

    for _ in range(3):
        twins.step()
    assert twins.is_on_rows()
    ctypes_api.warning()
    twins.loss = loss
    for k in range(12):
        if k == 6:
            for (data, _), (other, _) in zip(twins.ours, twins.theirs, strict=True):
                data *= np.float32(1e15)
                other[:] = data
        twins.step()
    assert ctypes_api.warning() == ""


def test_a_rate_too_large_for_the_dtype_is_torchs_error():
    twins = Twins("lr=0.01")
    for _ in range(3):
        twins.step()
    assert twins.is_on_rows()
    before = twins.ours[0][0].copy()
    twins.opt.set(-1, "lr=1e39")
    with pytest.raises(RuntimeError, match="without overflow"):
        twins.opt.step_closure(lambda: twins.loss("ours"))
    assert (twins.ours[0][0] == before).all()


def test_steps_on_rows_go_on_after_one_that_torch_has_made():
    twins = Twins("lr=0.01, max_iter=3, history_size=4")
    for _ in range(5):
        twins.step()
    assert twins.is_on_rows()
    hook = _bridge.optimizer_of(twins.opt._handle).run.built.register_step_post_hook(lambda *_: None)
    twins.step()
    assert not twins.is_on_rows()
    hook.remove()
    for _ in range(3):
        twins.step()
    assert twins.is_on_rows()


def test_hooks_of_torchs_are_called_and_a_step_that_fails_is_undone_with_them():
    twins, seen = Twins("lr=0.01"), []
    for _ in range(3):
        twins.step()
    _bridge.optimizer_of(twins.opt._handle).run.built.register_step_post_hook(lambda *_: seen.append(1))
    assert not twins.is_on_rows()
    twins.step()
    assert seen == [1]
    before = twins.ours[0][0].copy()
    losses = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        twins.opt.step_closure(lambda: next(losses))
    assert (twins.ours[0][0] == before).all()


ANOTHER_TORCH = """
import inspect, sys
import torch
from torch.optim import lbfgs
text = inspect.getsource(lbfgs).replace("from .optimizer", "from torch.optim.optimizer")
assert text.count(sys.argv[1]) >= 1
exec(compile(text.replace(sys.argv[1], sys.argv[2]), lbfgs.__file__, "exec"), vars(lbfgs))
torch.optim.LBFGS = lbfgs.LBFGS
sys.path.insert(0, sys.argv[3])
import test_lbfgs
for search in ("", ", line_search_fn='strong_wolfe'"):
    twins = test_lbfgs.Twins(f"lr={0.5 if search else 0.01}, history_size=5{search}")
    for _ in range(5):
        twins.step()
    print(twins.is_on_rows())
"""


@pytest.mark.parametrize(
    ("old", "new", "is_known"),
    [
        ("# compute step length", "# that of the step", True),
        ("for i in range(num_old):", "for i in reversed(range(num_old)):", False),
        ("for i in range(num_old - 1, -1, -1):", "for i in range(num_old):", False),
        ("q = flat_grad.neg()", "q = flat_grad.negative()", False),
        ("d = r = torch.mul(q, H_diag)", "d = r = torch.mul(H_diag, q)", False),
        ("d2 = d2_square.sqrt()", "d2 = d2_square.sqrt() * 2", False),
    ],
)
def test_a_torch_that_steps_in_another_way_is_followed_and_only_one_that_is_known_on_rows(old, new, is_known):
    done = hosts.python("-c", ANOTHER_TORCH, old, new, str(pathlib.Path(__file__).parent))
    assert (done.returncode, done.stdout.split()) == (0, [str(is_known)] * 2), done.stderr


def test_a_run_that_is_saved_and_loaded_goes_on_the_same(tmp_path):
    twins, others = (Twins("lr=0.5, history_size=5, line_search_fn='strong_wolfe'") for _ in "ab")
    for _ in range(4):
        twins.step()
    twins.opt.save(tmp_path / "run.pt")
    for (data, _), (copy, _) in zip(twins.ours, others.ours, strict=True):
        copy[:] = data
    others.opt.load(tmp_path / "run.pt")
    for _ in range(3):
        twins.step()
        others.opt.step_closure(lambda: Twins.loss(others, "ours"))
        assert bits(others.state()) == bits(twins.state())
        assert bits(torch.from_numpy(others.ours[0][0])) == bits(torch.from_numpy(twins.ours[0][0]))
    assert others.is_on_rows()


def test_a_run_that_was_begun_anew_in_plain_pytorch_goes_on_the_same(tmp_path):
    twins = Twins("max_iter=5, line_search_fn='strong_wolfe'")
    for _ in range(3):
        twins.step()  # which proves steps of this kind
    next(iter(twins.reference.state.values()))["n_iter"] = 0  # torch then drops the history
    torch.save(twins.reference.state_dict(), tmp_path / "run.pt")
    twins.opt.load(tmp_path / "run.pt")
    for _ in range(3):
        twins.step()


@pytest.mark.parametrize("change", ["tolerance_grad=1.0", "history_size=9"])
def test_a_run_whose_options_were_set_in_between_is_loaded_too(change, tmp_path):
    twins = Twins("lr=1e-3, max_iter=1, history_size=5")
    for _ in range(4):
        twins.step()
    twins.opt.set(-1, change)
    twins.reference.param_groups[0].update(eval(f"dict({change})"))  # noqa: S307 - ours
    for _ in range(2):
        twins.opt.save(tmp_path / "run.pt")
        twins.opt.load(tmp_path / "run.pt")
        twins.step()


def test_options_and_arrays_may_change_in_between():
    twins = Twins("lr=0.01, history_size=5")
    for _ in range(4):
        twins.step()
    twins.opt.set(-1, "lr=0.02, max_iter=5")
    twins.reference.param_groups[0].update(lr=0.02, max_iter=5)
    for _ in range(2):
        twins.step()
    moved = twins.ours[0][0].copy(), np.zeros(50, np.float32)
    twins.ours = [moved]
    twins.opt.bind("0", *moved)
    for _ in range(3):
        twins.step()
    assert twins.is_on_rows()


def doubled(function):
    """Return a function that does what torch's does, with twice the step, direction or loss."""

    def call(*args, **kwargs):
        if function.__name__ == "_cubic_interpolate":
            return function(*args, **kwargs) * 0.5
        if function.__name__ == "_add_grad":
            return function(args[0], args[1] * 2, *args[2:])
        if function.__name__ == "step":
            args[0].param_groups[0]["lr"] *= 0.5
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("where", ["the class", "the module", "the step"])
def test_functions_that_a_host_replaces_are_noticed_after_the_proof(where, monkeypatch):
    search = where == "the module"
    twins = Twins("lr=0.01, history_size=5" + ", line_search_fn='strong_wolfe'" * search)
    for _ in range(4):
        twins.step()
    assert twins.is_on_rows()
    name, owner = {
        "the class": ("_add_grad", torch.optim.LBFGS),
        "the module": ("_cubic_interpolate", sys.modules[torch.optim.LBFGS.__module__]),
        "the step": ("step", torch.optim.LBFGS),
    }[where]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, doubled(getattr(owner, name)))
        for _ in range(4):
            twins.step()
            assert not twins.is_on_rows()
    twins.step()
    assert twins.is_on_rows()
