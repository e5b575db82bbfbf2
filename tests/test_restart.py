"""A run that goes on: with the values it had, its steps and texts, or another schedule."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch

from optplug import checkpoint, ctypes_api, values
from optplug.optimizer import HostedOptimizer

unshown = pytest.mark.filterwarnings("ignore:values differ")  # all others are errors in these tests


def made(spec: str, arrays: dict[str, np.ndarray], grads: dict[str, np.ndarray] | None = None):
    opt = ctypes_api.Optimizer(spec)
    for name, array in arrays.items():
        opt.bind(name, array, np.ones_like(array) if grads is None else grads[name])
    return opt


# ---- values that are not those that were saved ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (700, 900), (3, 300_000), (2, 5, 90_000)])
def test_a_checksum_is_that_of_the_values_in_c_order(shape, dtype):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    expected = zlib.crc32(data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b"")
    assert values.checksum(data) == expected
    if data.numel() > 1:
        apart = torch.zeros(*shape, 2, dtype=dtype)[..., 0].copy_(data)
        assert values.checksum(apart) == expected
        other = data.clone()
        other.view(-1)[-1] += 1
        assert values.checksum(other) != expected
    if data.dim() > 1:
        column_major = (
            data.permute(*range(data.dim() - 1, -1, -1)).contiguous().permute(*range(data.dim() - 1, -1, -1))
        )
        assert values.checksum(column_major) == expected


def by_closure(opt):
    opt.step_closure(lambda: 1.0)


def by_iterate(opt):
    loss = 0.0
    while opt.iterate(loss):
        loss = 1.0


@pytest.mark.parametrize("step", [ctypes_api.Optimizer.step, by_closure, by_iterate])
def test_only_what_differs_is_warned_of_and_once(step):
    arrays = {"w": np.arange(6.0), "v": np.ones((2, 3)), "u": np.ones(3, np.float32)}
    opt = made("Adam()", arrays)
    opt.step()
    content = opt.save_memory()
    arrays["v"] = np.asfortranarray(arrays["v"])  # the same values in another order
    arrays["w"][3] += 1e-9
    arrays["u"] = arrays["u"][::-1] * np.float32(2)
    again = made("Adam()", arrays, {name: np.ones_like(array) for name, array in arrays.items()})
    again.load_memory(content)
    with pytest.warns(UserWarning, match="from those at opt_save in the parameters 'w', 'u': restore"):
        step(again)
    step(again)  # where a warning would be an error


def test_many_names_are_cut_short():
    arrays = {f"w{i}": np.ones(1) for i in range(12)}
    opt = made("SGD()", arrays)
    content = opt.save_memory()
    for array in arrays.values():
        array += 1
    opt.load_memory(content)
    with pytest.warns(UserWarning, match="'w8', 'w9' and 2 more:"):
        opt.step()


def test_where_warnings_are_errors_nothing_is_stepped():
    w = np.ones(3)
    opt = made("SGD(lr=1.0)", {"w": w})
    content = opt.save_memory()
    w[:] = 5
    opt.load_memory(content)
    with pytest.raises(ctypes_api.Error, match="UserWarning: values differ from those at opt_save"):
        opt.step()
    assert (w == 5).all()
    opt.step()
    assert (w == 4).all()


def test_arrays_that_are_restored_after_the_load_are_right():
    w = np.arange(4.0)
    opt = made("SGD(momentum=0.9)", {"w": w})
    opt.step()
    content, before = opt.save_memory(), w.copy()
    w[:] = 0
    opt.load_memory(content)
    other = np.zeros(4)
    opt.bind("w", other, np.ones(4))
    other[:] = before
    opt.step()


def test_a_file_of_pytorchs_has_no_checksums(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([("w", parameter)])
    parameter.grad = torch.ones(3)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "c.pt")
    opt = made("Adam()", {"w": np.zeros(3, np.float32)})
    opt.load(tmp_path / "c.pt")
    opt.step()


@pytest.mark.parametrize(("class_", "count"), [(torch.optim.Adam, 4), (torch.optim.SGD, 0)])
def test_steps_of_pytorchs_are_those_that_its_state_counts(class_, count, tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = class_([("w", parameter)])
    for _ in range(4):
        parameter.grad = torch.ones(3)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "c.pt")
    opt = made(f"{class_.__name__}()", {"w": np.zeros(3, np.float32)})
    opt.attribute("mine", "stays")
    opt.load(tmp_path / "c.pt")
    opt.step()
    assert (opt.get(0, "step"), opt.attribute_get("mine")) == (count + 1, "stays")


@pytest.mark.parametrize(
    ("key", "bad", "words"),
    [
        ("steps", -1, "its number of steps must be a whole number from 0 to .*, got -1"),
        ("steps", 1 << 60, "its number of steps must be .*, got 1152921504606846976"),
        ("steps", True, "its number of steps is True, and must be a number"),
        ("attributes", ["x"], "its attributes are malformed"),
        ("attributes", {"x": 3}, "its attributes are malformed"),
        ("attributes", {"": "x"}, "its attributes are malformed"),
        ("attributes", {"x": "a\0b"}, "its attributes are malformed"),
        ("attributes", {"x": "y" * (1 << 20)}, "its attributes are malformed"),
    ],
)
def test_a_forged_file_is_refused(key, bad, words):
    opt = made("SGD()", {"w": np.ones(3)})
    opt.attribute("mine", "stays")
    opt.step()
    content = torch.load(io.BytesIO(opt.save_memory()), weights_only=True)
    (content if key in content else content["optplug"])[key] = bad
    file = io.BytesIO()
    checkpoint.write(file, content)
    with pytest.raises(ctypes_api.Error, match=words):
        opt.load_memory(file.getvalue())
    assert (opt.get(0, "step"), opt.attribute_get("mine")) == (1, "stays")


def test_master_copies_come_out_of_the_file():
    ctypes_api.init("master_weights=True")
    try:
        w = np.ones(3, np.float16)
        opt = made("Adam()", {"w": w})
        opt.step()
        content = opt.save_memory()
        w[:] = 7
        opt.load_memory(content)
        opt.step()
    finally:
        ctypes_api.init("master_weights=False")
    assert (w < 1).all()


# ---- other schedules ----


class Plain:
    """The same in plain PyTorch: two parameters, each in a group of its own."""

    def __init__(self, class_: type, **arguments):
        self.parameters = {"w": torch.nn.Parameter(torch.ones(3)), "v": torch.nn.Parameter(torch.ones(2))}
        groups = [{"params": [pair]} for pair in self.parameters.items()]
        groups[1]["lr"] = 0.02
        self.optimizer = class_(groups, fused=True, **arguments)

    def step(self):
        for p in self.parameters.values():
            p.grad = p.detach() * 2
        self.optimizer.step()

    def rates(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def values(self):
        return {name: p.tolist() for name, p in self.parameters.items()}


class Ours:
    def __init__(self, spec: str, start: dict[str, list[float]] | None = None):
        start = start or {"w": [1.0] * 3, "v": [1.0] * 2}
        self.arrays = {name: np.array(value, np.float32) for name, value in start.items()}
        self.grads = {name: np.zeros_like(array) for name, array in self.arrays.items()}
        self.opt = ctypes_api.Optimizer(spec)
        self.opt.bind("w", self.arrays["w"], self.grads["w"])
        self.opt.group("lr=0.02")
        self.opt.bind("v", self.arrays["v"], self.grads["v"])

    def step(self):
        for name, grad in self.grads.items():
            grad[:] = self.arrays[name] * 2
        self.opt.step()

    def rates(self):
        return [self.opt.get(0, "lr"), self.opt.get(1, "lr")]

    def values(self):
        return {name: array.tolist() for name, array in self.arrays.items()}


def run_alike(plain: Plain, scheduler, ours: Ours, steps: int):
    for _ in range(steps):
        plain.step()
        scheduler.step()
        ours.step()
        ours.opt.schedule_step()
        assert (plain.rates(), plain.values()) == (ours.rates(), ours.values())


def planned(steps: int):
    """Return a run that was planned for ten steps, after some of them, in PyTorch and here."""
    plain, ours = Plain(torch.optim.Adam, lr=0.1), Ours("Adam(lr=0.1)")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(plain.optimizer, T_max=10)
    ours.opt.schedule("CosineAnnealingLR(T_max=10)")
    run_alike(plain, scheduler, ours, steps)
    return plain, ours


def in_pytorch(plain: Plain):
    """Go on in a new optimizer of PyTorch's, with none of the old schedule but the rates it has left."""
    state = plain.optimizer.state_dict()
    for group in state["param_groups"]:
        del group["initial_lr"]
    new = Plain(torch.optim.Adam, lr=0.1)
    new.optimizer.load_state_dict(state)
    for name, p in new.parameters.items():
        p.data.copy_(plain.parameters[name])
    return new


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_run_goes_on_with_another_schedule_from_the_rate_it_has(is_loaded):
    plain, ours = planned(5)
    if is_loaded:
        content, ours = ours.opt.save_memory(), Ours("Adam(lr=0.1)", ours.values())
        ours.opt.load_memory(content)
    ours.opt.schedule(None)
    ours.opt.schedule("CosineAnnealingLR(T_max=15)")
    plain = in_pytorch(plain)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(plain.optimizer, T_max=15)
    assert ours.rates() == plain.rates() == pytest.approx([0.05, 0.01])
    run_alike(plain, scheduler, ours, 15)
    assert ours.rates() == pytest.approx([0, 0], abs=1e-15)


def test_a_run_that_has_ended_goes_on_at_a_new_rate():
    plain, ours = planned(10)
    content, ours = ours.opt.save_memory(), Ours("Adam(lr=0.1)", ours.values())
    ours.opt.load_memory(content)
    assert ours.rates() == pytest.approx([0, 0], abs=1e-15)
    ours.opt.schedule(None)
    ours.opt.set(-1, "lr=0.05")
    ours.opt.schedule("CosineAnnealingLR(T_max=20)")
    plain = in_pytorch(plain)
    for group in plain.optimizer.param_groups:
        group["lr"] = 0.05
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(plain.optimizer, T_max=20)
    run_alike(plain, scheduler, ours, 20)


def test_a_run_goes_on_as_if_it_had_been_planned_longer():
    plain, ours = planned(5)
    content, ours = ours.opt.save_memory(), Ours("Adam(lr=0.1)", ours.values())
    ours.opt.schedule("CosineAnnealingLR(T_max=20)")
    ours.opt.checkpoint("schedules=False")
    ours.opt.load_memory(content)
    assert ours.rates() == [0.1, 0.02]
    for _ in range(5):
        ours.opt.schedule_step()
    state = plain.optimizer.state_dict()
    for group, rate in zip(state["param_groups"], (0.1, 0.02), strict=True):
        del group["initial_lr"]
        group["lr"] = rate
    start, plain = plain.values(), Plain(torch.optim.Adam)
    plain.optimizer.load_state_dict(state)
    for name, p in plain.parameters.items():
        p.data.copy_(torch.tensor(start[name]))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(plain.optimizer, T_max=20)
    plain.optimizer._opt_called = True  # or it warns
    for _ in range(5):
        scheduler.step()
    assert ours.rates()[0] == pytest.approx(0.1 * (1 + np.cos(np.pi * 5 / 20)) / 2)
    run_alike(plain, scheduler, ours, 15)


def test_schedules_that_are_taken_off_leave_nothing_behind():
    def built() -> HostedOptimizer:
        opt = HostedOptimizer("SGD(lr=1.0, momentum=0.5)")
        opt.bind("w", torch.ones(3), torch.ones(3))
        opt.step()
        return opt

    plain, opt = built(), built()
    for spec in ("OneCycleLR(max_lr=1.0, total_steps=10)", "SWALR(swa_lr=0.5)", "StepLR(3)"):
        opt.schedule(spec)
        assert "step" in vars(opt.run.built)
    opt.unschedule()
    assert "step" not in vars(opt.run.built)
    assert opt.run.built.param_groups[0].keys() == plain.run.built.param_groups[0].keys()


def test_a_schedule_is_taken_off_before_a_load():
    _, ours = planned(5)
    content, ours = ours.opt.save_memory(), Ours("Adam(lr=0.1)", ours.values())
    ours.opt.schedule("StepLR(3)")
    with pytest.raises(ctypes_api.Error, match=r"this optimizer has 'StepLR\(3\)': .* \"schedules=False\"\)"):
        ours.opt.load_memory(content)
    ours.opt.schedule(None)
    ours.opt.load_memory(content)
    assert "scheduler: CosineAnnealingLR(T_max=10)" in ours.opt.describe()


@unshown
def test_without_schedules_what_they_set_stays_and_all_else_is_taken():
    theirs = made("Adam(lr=0.1, betas=(0.5, 0.6), weight_decay=0.25)", {"w": np.ones(3)})
    theirs.schedule("OneCycleLR(max_lr=1.0, total_steps=10)")
    theirs.step()
    theirs.schedule_step()
    content = theirs.save_memory()
    ours = made("Adam(lr=0.3, betas=(0.7, 0.8))", {"w": np.ones(3)})
    ours.checkpoint("schedules=False")
    ours.load_memory(content)
    names = ("lr", "betas[0]", "betas[1]", "weight_decay")
    assert [ours.get(0, name) for name in names] == [0.3, 0.7, 0.6, 0.25]
    for name in ("initial_lr", "max_lr"):
        with pytest.raises(ctypes_api.Error, match="no hyperparameter"):
            ours.get(0, name)
    with pytest.raises(ctypes_api.Error, match="there is no scheduler"):
        ours.schedule_step()

    ours.schedule("CyclicLR(base_lr=0.1, max_lr=0.2, base_momentum=0.4, max_momentum=0.45)")
    ours.step()
    ours.schedule_step()
    before = [ours.get(0, name) for name in names]
    ours.load_memory(content)
    assert [ours.get(0, name) for name in names] == before
    assert before[1] not in (0.4, 0.45, 0.5, 0.7)

    plain = made("SGD(lr=0.3, momentum=0.1)", {"w": np.ones(3)})
    plain.checkpoint("schedules=False")
    file = io.BytesIO()
    state = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.5, momentum=0.25).state_dict()
    torch.save(state, file)
    plain.load_memory(file.getvalue())
    assert [plain.get(0, name) for name in ("lr", "momentum")] == [0.3, 0.25]


@unshown
def test_a_schedule_with_a_function_stays_without_a_function_in_the_file():
    factors: list[float] = []

    def factor(epoch: float, _group: int) -> float:
        factors.append(epoch)
        return 0.5**epoch

    theirs = made("SGD(lr=1.0)", {"w": np.ones(3)})
    theirs.schedule("ExponentialLR(0.9)")
    content = theirs.save_memory()
    ours = made("SGD(lr=1.0)", {"w": np.ones(3)})
    ours.schedule("LambdaLR()", factor)
    for _ in range(2):
        ours.step()
        ours.schedule_step()
    ours.checkpoint("schedules=False")
    ours.load_memory(content)
    assert ours.get(0, "lr") == 0.25
    ours.step()
    ours.schedule_step()
    assert ours.get(0, "lr") == 0.125
    assert factors[-1] == 3
    ours.schedule(None)
    before = len(factors)
    ours.schedule("StepLR(1)")
    ours.schedule_step()
    assert len(factors) == before


def test_a_file_may_say_nothing_that_is_no_checksum():
    opt = made("SGD()", {"w": np.ones(3)})
    content = torch.load(io.BytesIO(opt.save_memory()), weights_only=True)
    for bad in ([1], {"w": "x"}, {"w": torch.ones(3)}, 3):
        content["optplug"]["checksums"] = bad
        file = io.BytesIO()
        checkpoint.write(file, content)
        with pytest.raises(ctypes_api.Error, match="its checksums are malformed"):
            opt.load_memory(file.getvalue())
