"""Scaled gradients: steps are PyTorch's with the gradients divided, or are left out where those overflow."""

from __future__ import annotations

import ctypes
import inspect
import io

import pytest
import torch

from optplug import ctypes_api

lib = ctypes_api.load()
SPECS = [
    "ASGD(t0=2)",
    "Adadelta()",
    "Adagrad()",
    "Adam(lr=0.01, amsgrad=True)",
    "Adam(fused=False)",
    "AdamW(betas=(0.8, 0.9))",
    "Muon()",
    "RMSprop(momentum=0.5)",
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True)",
]
ROUTES = ["plans='direct'", "plans='stable'", "plans=False"]
OVERFLOWS = [set(), {0}, {0, 1, 4}, {2, 3, 7}]  # the steps that are left out


@pytest.fixture(params=ROUTES)
def route(request):
    assert lib.opt_init(request.param.encode()) == 0
    yield request.param
    assert lib.opt_init(b"plans=True") == 0


class Scaled:
    """An optimizer whose gradients are scaled, and plain PyTorch's whose gradients are not."""

    def __init__(self, spec, dtype=torch.float32):
        self.generator = torch.Generator().manual_seed(3)
        self.data = torch.randn(40, 500, generator=self.generator).to(dtype)
        self.grad = torch.zeros_like(self.data)
        self.scale, self.found_inf = torch.ones(1), torch.zeros(1)
        self.parameter = torch.nn.Parameter(self.data.clone())
        name, _, arguments = spec.partition("(")
        class_ = getattr(torch.optim, name)
        arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
        if "fused" in inspect.signature(class_).parameters:
            arguments = {"fused": True, **arguments}
        self.reference = class_([self.parameter], **arguments)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        shape = (ctypes.c_int64 * 2)(*self.data.shape)
        arrays = self.data.data_ptr(), None, self.grad.data_ptr(), None
        status = lib.opt_bind_nd(
            self.opt, b"w", str(dtype).removeprefix("torch.").encode(), b"cpu", 2, shape, *arrays
        )
        assert status == 0, lib.opt_error()

    def set(self, scale=True, found_inf=True):
        pointers = (
            self.scale.data_ptr() if scale else None,
            self.found_inf.data_ptr() if found_inf else None,
        )
        return lib.opt_grad_scale(self.opt, *pointers)

    def step(self, scale=1.0, is_left_out=False):
        """Make a step with gradients scaled so, which a power of two does without rounding."""
        true = torch.randn(self.data.shape, generator=self.generator).to(self.data.dtype)
        self.scale.fill_(scale)
        self.found_inf.fill_(is_left_out)
        self.grad.copy_(true * scale)
        if is_left_out:
            self.grad[0, 0] = torch.inf
        assert lib.opt_step(self.opt) == 0, lib.opt_error()
        if not is_left_out:
            self.parameter.grad = true
            self.reference.step()
        assert torch.equal(self.data, self.parameter)

    def end(self):
        assert lib.opt_free(self.opt) == 0


@pytest.mark.parametrize("overflows", OVERFLOWS, ids=str)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.usefixtures("route")
def test_gradients_are_divided_and_overflows_left_out(spec, overflows):
    run = Scaled(spec)
    assert run.set() == 0, lib.opt_error()
    for i in range(10):
        run.step(2.0 ** (i % 4 + 1), i in overflows)
    run.end()


@pytest.mark.usefixtures("route")
def test_it_can_begin_and_end_at_any_time_and_change():
    run = Scaled("Adam(lr=0.1)")
    for _ in range(3):
        run.step()
    assert run.set() == 0
    for i in range(6):
        run.step(4.0, i in (0, 2))
    assert run.set(found_inf=False) == 0
    for _ in range(3):
        run.step(8.0)
    run.scale, run.found_inf = run.scale.clone(), run.found_inf.clone()  # elsewhere
    assert run.set(scale=False) == 0
    for i in range(4):
        run.step(1.0, i == 1)
    assert run.set(scale=False, found_inf=False) == 0
    for _ in range(3):
        run.step()
    run.end()


def test_the_step_counts_are_those_of_the_steps_made():
    run = Scaled("Adam(lr=0.1)")
    assert run.set() == 0
    for i in range(9):
        run.step(2.0, i % 3 == 2)
    assert "without Python" in lib.opt_describe(run.opt).decode()
    room = ctypes.create_string_buffer(lib.opt_save_memory(run.opt, None, 0))
    assert lib.opt_save_memory(run.opt, room, len(room)) > 0
    state = torch.load(io.BytesIO(room.raw), weights_only=True)["optimizer"]["state"][0]
    assert state["step"] == run.reference.state_dict()["state"][0]["step"] == 6
    run.end()


def test_momentum_that_begins_at_a_step_that_is_left_out():
    run = Scaled("SGD(lr=0.1)")
    assert run.set() == 0
    for _ in range(3):
        run.step(2.0)
    assert lib.opt_set(run.opt, -1, b"momentum=0.9") == 0, lib.opt_error()
    run.reference.param_groups[0]["momentum"] = 0.9
    for i in range(5):
        run.step(2.0, i in (0, 1))
    run.end()


def test_arrays_that_the_fused_kernels_do_not_take_may_follow():
    run = Scaled("Adagrad(lr=0.5)")
    assert run.set() == 0
    run.step(2.0)
    run.step(2.0)
    wide = torch.zeros(40, 1000)
    run.grad = wide[:, ::2]
    shape, strides = (ctypes.c_int64 * 2)(40, 500), (ctypes.c_int64 * 2)(1000, 2)
    data, grad = run.data.data_ptr(), wide.data_ptr()
    assert lib.opt_bind_nd(run.opt, b"w", b"float32", b"cpu", 2, shape, data, None, grad, strides) == 0
    run.reference.param_groups[0]["fused"] = None
    for i in range(4):
        run.step(4.0, i == 1)
    run.end()


def test_what_does_not_go_is_an_error_and_changes_nothing():
    @ctypes_api.CALLBACK
    def closure(_, value):
        value[0] = 1.0
        return 0

    opt = lib.opt_create(b"Adam()")
    number = torch.ones(2)
    assert lib.opt_grad_scale(opt, number.data_ptr(), None) < 0
    assert lib.opt_error() == b"nothing is bound: call opt_bind before opt_grad_scale"
    assert lib.opt_free(opt) == 0
    run = Scaled("Adam()")
    assert lib.opt_grad_scale(run.opt, number.data_ptr() + 1, None) < 0
    assert b"scale is at address" in lib.opt_error()
    assert b"not aligned to 4 bytes" in lib.opt_error()
    assert lib.opt_grad_scale(run.opt, None, number.data_ptr() + 2) < 0
    assert b"found_inf is at address" in lib.opt_error()
    run.step()
    assert run.set() == 0
    for call in (
        lambda: lib.opt_step_closure(run.opt, closure, None, None),
        lambda: lib.opt_iterate(run.opt, 0.0),
    ):
        assert call() < 0
        assert (
            b"after opt_grad_scale: call opt_grad_scale with NULL, and scale in the closure"
            in lib.opt_error()
        )
    run.step(2.0)
    assert run.set(scale=False, found_inf=False) == 0
    assert lib.opt_step_closure(run.opt, closure, None, None) == 0, lib.opt_error()
    run.end()


def test_with_master_copies():
    """Both, as in mixed precision: bfloat16 arrays, float32 steps, scaled gradients."""
    assert lib.opt_init(b"master_weights=True") == 0
    value = torch.linspace(-1, 1, 50).to(torch.bfloat16)
    grad, scale, found_inf = torch.zeros_like(value), torch.tensor([4.0]), torch.zeros(1)
    opt = lib.opt_create(b"AdamW(lr=0.01)")
    assert lib.opt_init(b"master_weights=False") == 0
    assert lib.opt_bind(opt, b"w", b"bfloat16", 50, value.data_ptr(), grad.data_ptr()) == 0
    assert lib.opt_grad_scale(opt, scale.data_ptr(), found_inf.data_ptr()) == 0
    master = torch.nn.Parameter(value.to(torch.float32))
    reference = torch.optim.AdamW([master], lr=0.01, fused=True)
    for i in range(8):
        true = torch.sin(torch.arange(50) + i).to(torch.bfloat16)
        grad.copy_(true * 4)
        found_inf.fill_(i in (0, 5))
        assert lib.opt_step(opt) == 0, lib.opt_error()
        if not found_inf:
            master.grad = true.to(torch.float32)
            reference.step()
        assert torch.equal(value, master.detach().to(torch.bfloat16))
    assert lib.opt_free(opt) == 0
