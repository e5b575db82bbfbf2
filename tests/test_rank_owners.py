"""Over ranks: classes that step whole parameters, each on one rank, and master copies of what ranks step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optplug import _bridge
from optplug.ctypes_api import Error, load
from rank_threads import drawn, made, on_ranks
from test_rank_checkpoints import on, read

SHAPES = {"a": (7, 5), "b": (12, 30), "c": (4, 4), "d": (9, 2), "e": (3, 3)}
WHOLE = ["Muon(lr=0.1)", "Adafactor(lr=0.1)", "Adafactor(lr=0.1, weight_decay=0.1, maximize=True)"]
REDUCED = "Replicate(), Replicate()"  # where three ranks have the bits of one: three thirds may not
ELEMENTWISE = ["Adam(lr=0.1)", "SGD(lr=0.1, momentum=0.9)", "RMSprop(lr=0.01)"]


class Run:
    """Matrices, and gradients that depend on the step alone."""

    def __init__(self, spec, comm, placement="Replicate()", dtype="float32", seed=0, average=False):
        self.w = {
            name: torch.from_numpy(drawn(seed + i, shape, "float64")).to(getattr(torch, dtype))
            for i, (name, shape) in enumerate(SHAPES.items())
        }
        self.dw = {name: torch.zeros_like(a) for name, a in self.w.items()}
        self.scale = 1 / comm.Get_size() if comm and "sum" in placement else 1
        self.opt = made(spec, placement, comm)
        self.bind(list(SHAPES)[:: -1 if comm and comm.Get_rank() % 2 else 1])
        if average:
            self.opt.average("AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))")
        self.count = 0

    def bind(self, names) -> None:
        for name in names:
            w, dw = self.w[name], self.dw[name]
            kind = str(w.dtype).removeprefix("torch.")
            self.opt.bind_device(name, kind, "cpu", w.shape, w.data_ptr(), dw.data_ptr())

    def fill(self) -> None:
        for i, dw in enumerate(self.dw.values()):
            dw.copy_(torch.from_numpy(drawn(1000 + 10 * self.count + i, tuple(dw.shape), "float64")))
            dw.mul_(self.scale)
        self.count += 1

    def steps(self, count: int) -> Run:
        for _ in range(count):
            self.fill()
            self.opt.step()
        return self

    def bits(self) -> list[bytes]:
        return [w.view(torch.uint8).numpy().tobytes() for w in self.w.values()]

    def state(self) -> dict[str, list[tuple[int, ...]]]:
        """Return the shapes in the state here, by parameter."""
        hosted = _bridge.optimizer_of(self.opt._handle)
        states = hosted.run.built.state
        found = {p.name: states.get(p.tensor, {}) for p in hosted.parameters}
        return {name: [tuple(t.shape) for t in state.values()] for name, state in found.items() if state}


@pytest.fixture
def masters():
    load().optplug_init(b"master_weights=True")
    yield
    load().optplug_init(b"master_weights=False")


# ---- the bits of one process ----


@pytest.mark.parametrize(
    ("placement", "size"),
    [
        ("Replicate()", 2),
        ("Replicate()", 4),
        ("Replicate(), Partial('sum')", 2),
        ("Replicate(), Replicate()", 3),
        ("Replicate(), Replicate()", 7),  # more than there are parameters
    ],
)
@pytest.mark.parametrize("spec", WHOLE)
def test_whole_parameters_are_stepped_by_an_owner_each_with_the_bits_of_one_process(spec, placement, size):
    one = Run(spec, None).steps(5).bits()
    found = on(size, lambda comm: Run(spec, comm, placement).steps(5))
    assert all(run.bits() == one for run in found)
    whole = Run(spec, None).steps(1).state()
    owned = [run.state() for run in found]
    assert sorted(name for state in owned for name in state) == sorted(whole)
    assert all(state[name] == whole[name] for state in owned for name in state)
    assert [*owned[0]] == ["b"]  # the largest, and rank 0 is done


@pytest.mark.usefixtures("masters")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("spec", [*ELEMENTWISE, *WHOLE])
def test_master_copies_have_the_bits_of_one_process(spec, dtype):
    one = Run(spec, None, dtype=dtype).steps(5)
    assert "stepped in float32" in one.opt.describe()
    for size, placement in ((3, "Replicate()"), (2, REDUCED)):
        found = on(size, lambda comm, p=placement: Run(spec, comm, p, dtype).steps(5))
        assert all(run.bits() == one.bits() for run in found)
        assert all("stepped in float32" in run.opt.describe() for run in found)


def test_other_arrays_are_stepped_by_the_same_owners():
    def work(comm):
        run = Run("Muon(lr=0.1)", comm).steps(2)
        run.w = {name: w.clone() for name, w in run.w.items()}
        run.dw = {name: dw.clone() for name, dw in run.dw.items()}
        run.bind(SHAPES)
        return run.steps(2).bits()

    one = Run("Muon(lr=0.1)", None).steps(4).bits()
    assert on(2, work) == [one] * 2


def test_a_step_of_whole_parameters_is_two_collectives_of_what_the_busiest_rank_has():
    def work(comm):
        run = Run("Muon()", comm).steps(1)
        before = len(comm.calls)
        run.steps(1)
        return comm.calls[before:]

    assert on(3, work) == [[("reduce_scatter", 4 * (360 + 33)), ("all_gather", 4 * (360 + 1))]] * 3


# ---- around a step ----


@pytest.mark.usefixtures("masters")
@pytest.mark.parametrize("spec", WHOLE[:2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_averages_of_whole_parameters_are_their_owners(spec, dtype):
    def work(comm):
        run = Run(spec, comm, dtype=dtype, average=True).steps(4)
        averages = [run.opt.average_get(name).tobytes() for name in SHAPES] if dtype == "float32" else []
        before = run.bits()
        run.opt.average_swap()
        swapped = run.bits()
        run.opt.average_swap()
        assert run.bits() == before
        return averages, swapped, run.steps(1).bits()

    assert on(2, work) == on(1, work) * 2


def test_the_gradients_of_whole_parameters_are_clipped_by_the_norm_of_all():
    def work(comm):
        run = Run("Muon(lr=0.1)", comm)
        run.fill()
        norm = run.opt.clip_grad_norm(0.5)
        run.opt.step()
        run.dw["c"][0, 0] = np.nan
        with pytest.raises(Error) as error:
            run.opt.clip_grad_norm(0.5, error_if_nonfinite=True)
        return norm, error.value.status

    (one,) = on(1, work)
    for size in (2, 7):
        for norm, status in on(size, work):
            assert norm == pytest.approx(one[0], rel=1e-6)
            assert status == one[1]


# ---- checkpoints ----


def saved(comm, path, spec, dtype) -> list[bytes]:
    run = Run(spec, comm, "Replicate()", dtype, average=dtype == "bfloat16").steps(3)
    run.opt.checkpoint("parameters=True")
    run.opt.save(path)
    return run.steps(2).bits()


def resumed(comm, path, spec, dtype, to=None) -> list[bytes]:
    run = Run(spec, comm, REDUCED, dtype, seed=99)
    run.opt.checkpoint("parameters=True")
    run.opt.load(path)
    if to:
        run.opt.save(to)
    run.count = 3
    assert run.opt.get(-1, "step") == 3
    return run.steps(2).bits()


@pytest.mark.usefixtures("masters")
@pytest.mark.parametrize(
    ("spec", "dtype"), [*((s, "float32") for s in WHOLE[:2]), *((s, "bfloat16") for s in ELEMENTWISE + WHOLE)]
)
def test_a_run_goes_on_with_its_bits_on_any_number_of_ranks(spec, dtype, tmp_path):
    one = on(1, lambda comm: saved(comm, tmp_path / "1", spec, dtype))
    assert on(4, lambda comm: saved(comm, tmp_path / "4", spec, dtype)) == one * 4
    assert read(tmp_path / "4") == read(tmp_path / "1")
    again = tmp_path / "again"
    for size in (2, 1, 3):
        assert on(size, lambda comm: resumed(comm, tmp_path / "4", spec, dtype, again)) == one * size
        assert read(again) == read(tmp_path / "1")


def test_a_parameter_that_was_looked_at_where_it_is_not_stepped_is_saved(tmp_path):
    def work(comm):
        run = Run("Muon(lr=0.1)", comm).steps(4)
        run.opt.set(0, "lr=0.1")
        run.steps(1).opt.save(tmp_path / "file")

    on(2, work)
    assert len(torch.load(tmp_path / "file", weights_only=True)["optimizer"]["state"]) == len(SHAPES)


@pytest.mark.parametrize("spec", WHOLE[:2])
def test_a_file_of_plain_pytorchs_goes_on_with_one_count_of_steps(spec, tmp_path):
    def work(comm):
        run = Run(spec, comm, REDUCED)
        parameters = [torch.nn.Parameter(w.clone()) for w in run.w.values()]
        class_ = getattr(torch.optim, spec.partition("(")[0])
        optimizer = class_([*zip(SHAPES, parameters, strict=True)], lr=0.1)
        for _ in range(3):
            run.fill()
            for p, dw in zip(parameters, run.dw.values(), strict=True):
                p.grad = dw.clone()
            optimizer.step()
        for w, p in zip(run.w.values(), parameters, strict=True):
            w.copy_(p.detach())
        path = tmp_path / str(comm.Get_rank() if comm else "one")
        torch.save(optimizer.state_dict(), path)
        run.opt.load(path)
        steps = run.opt.get(-1, "step")
        return steps, run.steps(2).bits()

    assert on(7, work) == on(1, work) * 7


@pytest.mark.parametrize("spec", ["Adam(lr=0.1)", "SGD(lr=0.1, momentum=0.9)"])
def test_complex_slices_are_saved_where_they_lie(spec, tmp_path):
    def work(comm, call):
        w, dw = drawn(0 if call == "save" else 1, (500,), "complex128"), drawn(2, (500,), "complex128")
        opt = made(spec, "Replicate(), Replicate()", comm)
        opt.bind("w", w, dw)
        opt.checkpoint("parameters=True")
        for _ in range(3 if call == "save" else 0):
            opt.step()
        getattr(opt, call)(tmp_path / "file")
        opt.step()
        return w.tobytes()

    one = on(3, lambda comm: work(comm, "save"))
    assert len(set(one)) == 1
    for size in (1, 2):
        assert on(size, lambda comm: work(comm, "load")) == one[:1] * size


def test_an_owner_that_fails_to_read_its_state_is_an_error_of_all(tmp_path):
    on(1, lambda comm: saved(comm, tmp_path / "file", "Muon(lr=0.1)", "float32"))
    content = torch.load(tmp_path / "file", weights_only=True)
    state = content["optimizer"]["state"][3]
    state["momentum_buffer"] = state["momentum_buffer"][:, :1]
    torch.save({"optimizer": content["optimizer"]}, tmp_path / "wrong")

    def work(comm):
        run = Run("Muon(lr=0.1)", comm).steps(1)
        before = run.bits()
        with pytest.raises(Error, match=r"rank 0: .*'d': momentum_buffer has shape"):
            run.opt.load(tmp_path / "wrong")
        return before == run.bits(), run.steps(1).bits()

    found = on_ranks(3, work)
    assert found == [(True, found[0][1])] * 3
