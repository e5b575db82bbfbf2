"""Master copies: parameters in half precision are stepped as PyTorch steps float32 ones, and then rounded."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
from types import SimpleNamespace

import pytest
import torch

from optplug import ctypes_api
from optplug.tools import inspection

lib = ctypes_api.load()
DTYPES = [torch.bfloat16, torch.float16]
SPECS = [
    "ASGD(t0=2)",
    "Adadelta()",
    "Adafactor()",
    "Adagrad()",
    "Adam(lr=0.01, amsgrad=True)",
    "Adam(fused=False)",
    "AdamW(betas=(0.8, 0.9))",
    "Adamax()",
    "LBFGS(lr=0.1, max_iter=3)",
    "Muon()",
    "NAdam()",
    "RAdam()",
    "RMSprop(momentum=0.5, centered=True)",
    "Rprop()",
    "SGD(lr=0.1)",
    "SGD(momentum=0.9, nesterov=True)",
]
ROUTES = ["plans='direct'", "plans='stable'", "plans=False"]
SHAPES = {"w": (40, 30), "v": (150, 200)}  # below and above what is worth threads


@pytest.fixture(params=ROUTES)
def route(request):
    with options(request.param):
        yield request.param


@contextlib.contextmanager
def options(text=""):
    assert lib.opt_init(f"master_weights=True, {text}".encode()) == 0, lib.opt_error()
    try:
        yield
    finally:
        assert lib.opt_init(b"master_weights=False, plans=True, error_if_nonfinite=False") == 0


class Half:
    """An optimizer on parameters in half precision, and plain PyTorch's on float32 copies of them."""

    def __init__(self, spec, dtype, layout=lambda t: t):
        self.name, _, arguments = spec.partition("(")
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(5)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        self.values, self.grads, self.theirs = {}, {}, {}
        for name, shape in SHAPES.items():
            value = layout(torch.randn(shape, generator=self.generator).to(dtype))
            self.values[name], self.grads[name] = value, layout(torch.zeros(shape, dtype=dtype))
            self.theirs[name] = torch.nn.Parameter(value.to(torch.float32))
            self.bind(name)
        arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
        class_ = getattr(torch.optim, self.name)
        if "fused" in inspect.signature(class_).parameters:
            arguments = {"fused": True, **arguments}
        self.reference = class_(self.theirs.values(), **arguments)

    def bind(self, name):
        value, grad = self.values[name], self.grads[name]
        dtype = str(self.dtype).removeprefix("torch.").encode()
        int64s = ctypes.c_int64 * value.dim()
        strides, grad_strides = int64s(*value.stride()), int64s(*grad.stride())
        status = lib.opt_bind_nd(
            self.opt,
            name.encode(),
            dtype,
            b"cpu",
            value.dim(),
            int64s(*value.shape),
            value.data_ptr(),
            strides,
            grad.data_ptr(),
            grad_strides,
        )
        assert status == 0, lib.opt_error()

    def draw(self):
        for name, grad in self.grads.items():
            grad.copy_(torch.randn(grad.shape, generator=self.generator))
            self.theirs[name].grad = grad.to(torch.float32)

    def step(self):
        self.draw()
        if self.name == "LBFGS":
            assert lib.opt_step_closure(self.opt, loss, None, None) == 0, lib.opt_error()
            self.reference.step(lambda: 1.0)
        else:
            assert lib.opt_step(self.opt) == 0, lib.opt_error()
            self.reference.step()

    def compare(self):
        for name, value in self.values.items():
            assert torch.equal(value, self.theirs[name].detach().to(self.dtype)), name

    def describe(self):
        return lib.opt_describe(self.opt).decode()

    def end(self):
        assert lib.opt_free(self.opt) == 0


@ctypes_api.CALLBACK
def loss(_, value):
    value[0] = 1.0
    return 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.usefixtures("route")
def test_steps_are_those_of_float32_rounded(spec, dtype):
    run = Half(spec, dtype)
    for _ in range(8):
        run.step()
        run.compare()
    run.end()


def test_they_are_no_steps_in_half_precision():
    """Small steps are not lost in rounding, as they are without master copies."""
    for text, moved in (("master_weights=True", 1.0), ("master_weights=False", 0.0)):
        assert lib.opt_init(text.encode()) == 0
        run = Half("SGD(lr=1e-4)", torch.bfloat16)
        before = run.values["w"].clone()
        run.draw()
        for grad in run.grads.values():
            grad.fill_(1)
        for _ in range(100):
            assert lib.opt_step(run.opt) == 0
        assert (run.values["w"] < before).float().mean().item() == pytest.approx(moved, abs=0.2)
        run.end()


def test_plans_have_the_copies_in_them_and_arrays_with_gaps_need_none():
    with options("plans=True"):
        dense = Half("Adam()", torch.bfloat16)
        gaps = Half("Adam()", torch.bfloat16, lambda t: torch.stack([t, t], -1)[..., 0])
    for run in (dense, gaps):
        for _ in range(3):
            run.step()
            run.compare()
    assert "step: aten::_foreach_copy_, aten::_fused_adam_ without Python" in dense.describe()
    assert "step: torch.optim.Adam with fused kernels" in gaps.describe()
    assert dense.describe().count("bfloat16") == 4
    assert dense.describe().count(", stepped in float32\n") == 2
    dense.end()
    gaps.end()


def test_a_torch_whose_copies_take_something_else_steps_by_python(monkeypatch):
    def is_with(arguments):
        schema = SimpleNamespace(default=SimpleNamespace(_schema=SimpleNamespace(arguments=arguments)))
        monkeypatch.setattr(torch.ops.aten, "_foreach_copy_", schema)
        with options():
            run = Half("Adam()", torch.bfloat16)
        for _ in range(3):
            run.step()
            run.compare()
        said = run.describe()
        run.end()
        return "aten::_foreach_copy_" in said

    arguments = torch.ops.aten._foreach_copy_.default._schema.arguments
    assert is_with(arguments)
    assert not is_with([*arguments, arguments[-1]])


@pytest.mark.usefixtures("route")
def test_other_arrays_keep_the_master_and_bring_their_values():
    run = Half("Adam(lr=0.01)", torch.bfloat16)
    for _ in range(3):
        run.step()
    for name in SHAPES:
        run.values[name], run.grads[name] = run.values[name].clone(), run.grads[name].clone()
    run.values["w"][3, 4] = 7  # the host's own change
    with torch.no_grad():
        run.theirs["w"][3, 4] = 7
    for name in SHAPES:
        run.bind(name)
    for _ in range(3):
        run.step()
        run.compare()
    run.end()


@pytest.mark.usefixtures("route")
def test_values_may_come_after_the_binding():
    run = Half("Adam(lr=0.01)", torch.bfloat16)
    for name, value in run.values.items():
        value.copy_(torch.randn(value.shape, generator=run.generator))
        with torch.no_grad():
            run.theirs[name].copy_(value)
    for _ in range(3):
        run.step()
        run.compare()
    for name in SHAPES:
        run.values[name], run.grads[name] = torch.zeros_like(run.values[name]), run.grads[name].clone()
        run.bind(name)
        run.values[name].copy_(run.theirs[name].detach())
    for _ in range(3):
        run.step()
        run.compare()
    run.end()


@pytest.mark.usefixtures("route")
def test_clipping_and_zeroing_work_on_the_hosts_gradients():
    run = Half("SGD(lr=0.1)", torch.bfloat16)
    run.draw()
    parameters = [torch.nn.Parameter(value.clone()) for value in run.values.values()]
    for p, grad in zip(parameters, run.grads.values(), strict=True):
        p.grad = grad.clone()
    norm = ctypes.c_double()
    assert lib.opt_clip_grad_norm(run.opt, 1.0, 2.0, 0, norm) == 0
    assert norm.value == float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    assert lib.opt_clip_grad_value(run.opt, 0.001) == 0
    torch.nn.utils.clip_grad_value_(parameters, 0.001)
    for p, grad in zip(parameters, run.grads.values(), strict=True):
        assert torch.equal(p.grad, grad)
    assert lib.opt_zero_grad(run.opt) == 0
    assert not any(grad.any() for grad in run.grads.values())
    run.end()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    with options("error_if_nonfinite=True"):
        run = Half("Adam()", torch.bfloat16)
    for _ in range(4):
        run.step()
        grad = run.grads["v"].clone()
        run.grads["v"][0, 0] = bad
        before = {name: value.clone() for name, value in run.values.items()}
        assert lib.opt_step(run.opt) < 0
        assert b"the gradient of parameter 'v' contains inf or nan" in lib.opt_error()
        assert all(torch.equal(before[name], run.values[name]) for name in before)
        run.grads["v"].copy_(grad)
    run.compare()
    run.end()


def test_averages_are_of_the_masters():
    with options():
        run = Half("Adam(lr=0.1)", torch.bfloat16)
    assert lib.opt_average(run.opt, b"AveragedModel()") == 0, lib.opt_error()
    module = torch.nn.ParameterList(run.theirs.values())
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for _ in range(4):
        run.step()
        averaged.update_parameters(module)
    expected = dict(zip(SHAPES, (p.detach().to(torch.bfloat16) for p in averaged.parameters()), strict=True))
    found = torch.empty(SHAPES["v"], dtype=torch.bfloat16)
    assert lib.opt_average_get(run.opt, b"v", found.data_ptr()) == 0, lib.opt_error()
    assert torch.equal(found, expected["v"])
    before = {name: value.clone() for name, value in run.values.items()}
    assert lib.opt_average_swap(run.opt) == 0
    assert all(torch.equal(run.values[name], expected[name]) for name in SHAPES)
    assert lib.opt_average_swap(run.opt) == 0
    assert all(torch.equal(run.values[name], before[name]) for name in SHAPES)
    run.end()


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("spec", ["LBFGS(lr=1e4, max_iter=5)", "Adam()"])
def test_a_closure_finds_the_values_and_undoes_them_if_it_fails(spec, is_first):
    with options():
        run = Half(spec, torch.bfloat16)
    calls, fail_at = [], 2 if spec.startswith("LBFGS") else 1

    @ctypes_api.CALLBACK
    def closure(_, value):
        calls.append({name: v.clone() for name, v in run.values.items()})
        for name, grad in run.grads.items():
            grad.copy_(run.values[name])
        value[0] = sum(float((v.double() ** 2).sum()) for v in run.values.values())
        return -77 if len(calls) == fail_at else 0

    if not is_first:
        run.step()
    run.values["v"][0, 0] = 3  # the host's own, which a step takes no account of
    before = {name: v.clone() for name, v in run.values.items()}
    assert lib.opt_step_closure(run.opt, closure, None, None) == -77
    assert all(torch.equal(before[name], run.values[name]) for name in before)
    if fail_at > 1:  # what the second call has found was moved, and rounded
        assert not torch.equal(calls[0]["w"], calls[1]["w"])
    fail_at = 0
    assert lib.opt_step_closure(run.opt, closure, None, None) == 0, lib.opt_error()
    assert not torch.equal(before["w"], run.values["w"])
    run.end()


def saved(opt) -> bytes:
    room = ctypes.create_string_buffer(lib.opt_save_memory(opt, None, 0))
    assert lib.opt_save_memory(opt, room, len(room)) > 0, lib.opt_error()
    return room.raw


@pytest.mark.usefixtures("route")
def test_a_checkpoint_has_the_masters(tmp_path):
    run, other = Half("AdamW()", torch.bfloat16), Half("AdamW()", torch.bfloat16)
    for _ in range(4):
        run.step()
    text = saved(run.opt)
    content = torch.load(io.BytesIO(text), weights_only=True)
    (tmp_path / "run.pt").write_bytes(text)
    assert inspection.read(str(tmp_path / "run.pt"))["bytes of master copies"] == 4 * (40 * 30 + 150 * 200)
    assert all(torch.equal(content["masters"][name], run.theirs[name]) for name in SHAPES)
    for name in SHAPES:  # a new run has only the rounded values
        other.values[name].copy_(run.values[name])
        other.bind(name)
    assert lib.opt_load_memory(other.opt, text, len(text)) == 0, lib.opt_error()
    other.theirs, other.reference, other.generator = run.theirs, run.reference, run.generator
    for _ in range(4):
        other.step()
        other.compare()
    run.end()
    other.end()


def test_a_checkpoint_without_masters_or_with_them_is_refused_where_that_does_not_fit():
    with options():
        half = Half("AdamW()", torch.bfloat16)
    plain = Half("AdamW()", torch.bfloat16)
    for run in (half, plain):
        run.draw()
        assert lib.opt_step(run.opt) == 0
    for theirs, ours, words in (
        (plain, half, "it has no master copy of parameter 'w': it was saved without"),
        (half, plain, "it has a master copy of parameter 'w', this optimizer has none: call opt_init"),
    ):
        text, before = saved(theirs.opt), saved(ours.opt)
        assert lib.opt_load_memory(ours.opt, text, len(text)) < 0
        assert words in lib.opt_error().decode()
        assert saved(ours.opt) == before
    half.end()
    plain.end()


def test_sparse_gradients_have_none():
    with options():
        opt = lib.opt_create(b"SparseAdam()")
    table, rows = torch.zeros(4, 2, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.bfloat16)
    one, indices = ctypes.c_int64(1), (ctypes.c_int64 * 1)(0)
    arguments = (b"w", b"bfloat16", 4, 2, table.data_ptr(), 1, ctypes.byref(one), indices, rows.data_ptr())
    assert lib.opt_bind_sparse(opt, *arguments) < 0
    assert lib.opt_error() == b"parameter 'w': master_weights does not support sparse gradients"
    assert lib.opt_free(opt) == 0
