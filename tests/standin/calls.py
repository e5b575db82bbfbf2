"""What optplug asks of a GPU, and where it waits for it; see `tests/test_gpu_calls.py`, which runs this."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import re

import pytest
import torch
from asked import (
    COUNT,
    COUNT_OURS,
    FUSED,
    SPECS,
    WAITING,
    Run,
    as_found,  # noqa: F401 (pytest finds it here)
    cuda,
    lib,
    notes,
    on,
    saved,
    waits,
)

from optplug import _bridge, ctypes_api

cuda.standin_notes.restype = ctypes.c_char_p


# ---- where arrays are ----


def test_devices_are_listed_and_others_refused():
    assert lib.opt_list(b"devices") == b"cpu\ncuda:0\ncuda:1\n"
    run = Run("Adam()")
    for device in ("cuda:2", "gpu", "mps", "cuda:-1", ""):
        assert run.bind(0, device) < 0
        assert lib.opt_error().decode() == f"no device '{device}': there are cpu, cuda:0, cuda:1"
    assert run.bind(0, "cuda") == 0  # the current one


def test_memory_that_is_elsewhere_is_refused():
    run = Run("Adam()", stream=False)
    value, other, memory = torch.zeros(50), torch.zeros(50, device="cuda:1"), ctypes.c_void_p()
    assert cuda.cudaHostAlloc(ctypes.byref(memory), ctypes.c_size_t(400), 0) == 0
    p, g = (t.data_ptr() for t in run.arrays[0])
    here, there, pinned = value.data_ptr(), other.data_ptr(), memory.value
    for data, grad, words in (
        (here, g, f"data is at address {here:#x}, which is memory of the CPU, not of cuda:0"),
        (p, here, f"grad is at address {here:#x}, which is memory of the CPU, not of cuda:0"),
        (there, g, f"data is at address {there:#x}, which is memory of cuda:1, not of cuda:0"),
        (p, pinned, f"grad is at address {pinned:#x}, which is pinned memory of the CPU, not of cuda:0"),
    ):
        assert run.bind(0, None, data, grad) < 0
        assert lib.opt_error().decode() == words
    assert run.bind(0, "cpu") < 0
    assert lib.opt_error().decode() == (
        f"data is at address {p:#x}, which is memory of cuda:0, not of the CPU: "
        "bind it with opt_bind_nd and the device 'cuda:0'"
    )
    assert run.bind(0) == 0
    assert cuda.cudaFreeHost(memory) == 0


def test_an_array_that_ends_elsewhere_is_refused():
    run, memory = Run("Adam()", stream=False), ctypes.c_void_p()
    assert cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(100)) == 0
    assert run.bind(0, None, memory.value) < 0
    assert b"data reaches to address" in lib.opt_error()
    assert cuda.cudaFree(memory) == 0


def test_managed_memory_is_of_any_device():
    memory, shape = ctypes.c_void_p(), (ctypes.c_int64 * 1)(50)
    assert cuda.cudaMallocManaged(ctypes.byref(memory), ctypes.c_size_t(400), 0) == 0
    data, grad = memory.value, memory.value + 200
    for device in (b"cpu", b"cuda:0", b"cuda:1"):
        opt = lib.opt_create(b"SGD()")
        assert lib.opt_bind_nd(opt, b"w", b"float32", device, 1, shape, data, None, grad, None) == 0, (
            lib.opt_error()
        )
        assert lib.opt_free(opt) == 0
    assert cuda.cudaFree(memory) == 0


# ---- steps ----


def test_an_error_of_the_hosts_own_kernel_makes_no_second_step():
    run = Run("SGD()")
    assert len(run.steps()) == 1
    cuda.standin_fail()
    with pytest.warns(UserWarning, match="PyTorch failed in aten::_fused_sgd_, which it ran before"):
        assert lib.opt_step(run.opt) == -5
    assert b"the GPU failed in aten::_fused_sgd_" in lib.opt_error()
    assert len(notes()) == 1
    assert len(run.steps(1)) == 1  # by Python, and on


@pytest.mark.parametrize("gpu", [0, 1])
@pytest.mark.parametrize("plans", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_a_step_asks_what_a_step_of_torch_asks(spec, plans, gpu):
    assert lib.opt_init(f"plans={plans}".encode()) == 0
    run = Run(spec, gpu)
    p, g = (t.clone() for t in run.arrays[0])
    p = torch.nn.Parameter(p)
    p.grad = g
    class_ = getattr(torch.optim, spec.removesuffix("()"))
    fused = {"fused": True} if "fused=True" in run.describe() else {}
    is_on_gpu_too = spec != "Adagrad()" or torch.torch_version.TorchVersion(torch.__version__) >= (2, 14)
    assert bool(fused) == (is_on_gpu_too and "fused" in inspect.signature(class_).parameters)
    with torch.cuda.stream(run.streams[0]):
        reference = class_([p], **fused)
        for _ in range(4):
            notes()
            reference.step()
    theirs, ours = notes(), run.steps()
    is_planned = plans and fused
    assert ours == [line.replace(COUNT, COUNT_OURS) if is_planned else line for line in theirs]
    assert all(run.on in line for line in ours)
    if spec not in WAITING:
        assert not waits(ours)
    assert ("without Python" in run.describe()) == bool(is_planned)
    run.do("opt_free")


def test_without_a_stream_of_the_hosts_it_is_torchs_current_one():
    run, s = Run("Adam()", stream=False), torch.cuda.Stream(0)
    for plans in (True, False):
        assert lib.opt_init(f"plans={plans}".encode()) == 0
        run = Run("Adam()", stream=False)
        assert all(line.startswith("(nil) ") for line in run.steps())
        with torch.cuda.stream(s):
            assert all(line.startswith(f"{on(s.cuda_stream)} ") for line in run.steps())
    run.do("opt_free")


def test_a_schedule_keeps_the_plan():
    run = Run("Adam()")
    run.do("opt_schedule", b"ExponentialLR(0.5)")
    for _ in range(4):
        run.steps(1)
        assert run.do("opt_schedule_step") == []
    assert "without Python" in run.describe()


def test_parameters_may_be_on_several_gpus_each_with_its_stream():
    run = Run("AdamW()", 1, 0, 1)
    ours = run.steps()
    zero, one = (on(s.cuda_stream) for s in run.streams)
    assert ours == [f"{s} {what}" for s in (one, zero) for what in (COUNT_OURS, "FusedAdamMathFunctor")]
    assert run.describe().count("stream: ") == 2
    assert "without Python" in run.describe()


def test_the_cpus_parameters_may_be_among_them():
    run = Run("Adam()")
    value, grad = torch.zeros(3), torch.ones(3)
    assert lib.opt_bind(run.opt, b"c", b"float32", 3, value.data_ptr(), grad.data_ptr()) == 0, lib.opt_error()
    run.steps()
    assert torch.allclose(value, torch.full((3,), -0.004))
    assert "without Python" in run.describe()


# ---- streams ----


def test_a_stream_of_another_gpu_is_refused():
    run, other = Run("Adam()", 1), torch.cuda.Stream(0)
    ours = run.describe()
    assert lib.opt_stream(run.opt, other.cuda_stream) < 0
    assert re.fullmatch(
        r"stream 0x[0-9a-f]+ is of cuda:0, and the parameters are on cuda:1: bind them first, or .*",
        lib.opt_error().decode(),
    )
    assert run.describe() == ours


def test_a_stream_needs_a_parameter_on_a_gpu():
    opt, s = lib.opt_create(b"Adam()"), torch.cuda.Stream(0)
    assert lib.opt_stream(opt, s.cuda_stream) < 0
    assert b"no parameter is on a GPU, bind one first" in lib.opt_error()
    assert lib.opt_stream(opt, None) == 0
    assert lib.opt_free(opt) == 0


@pytest.mark.parametrize("plans", [False, True])
def test_a_new_stream_begins_behind_the_old_one(plans):
    assert lib.opt_init(f"plans={plans}".encode()) == 0
    run, other = Run("Adam()"), torch.cuda.Stream(0)
    run.steps()
    behind = [f"stream {run.on}: record", f"stream {on(other.cuda_stream)}: behind an event"]
    assert run.do("opt_stream", other.cuda_stream) == behind
    assert all(line.startswith(on(other.cuda_stream)) for line in run.steps())
    behind = [f"stream {on(other.cuda_stream)}: record", "stream (nil): behind an event"]
    assert run.do("opt_stream", None) == behind
    assert all(line.startswith("(nil) ") for line in run.steps())


@pytest.mark.parametrize(("default", "name"), [(1, "(nil)"), (2, "0x2")])  # legacy, per thread
def test_default_streams_by_their_numbers(default, name):
    run = Run("Adam()", stream=False)
    run.do("opt_stream", default)
    with torch.cuda.stream(torch.cuda.Stream(0)):
        notes()
        assert all(line.startswith(f"{name} ") for line in run.steps())


def test_a_function_of_the_hosts_finds_its_own_streams():
    run, mine, seen = Run("RMSprop()", 1), torch.cuda.Stream(1), []

    @ctypes_api.CALLBACK
    def closure(_, value):
        seen.append((torch.cuda.current_stream(1).cuda_stream, torch.cuda.current_device()))
        assert lib.opt_zero_grad(run.opt) == 0  # on the optimizer's, from within
        seen.append((torch.cuda.current_stream(1).cuda_stream, torch.cuda.current_device()))
        value[0] = 1.0
        return 0

    for outside in (contextlib.nullcontext(), torch.cuda.stream(mine)):
        with outside:
            ours = torch.cuda.current_stream(1).cuda_stream, torch.cuda.current_device()
            asked = run.do("opt_step_closure", closure, None, None)
            assert ours == (torch.cuda.current_stream(1).cuda_stream, torch.cuda.current_device())
        assert seen == [ours, ours]
        assert all(line.startswith(run.on) for line in asked)
        assert not waits(asked)
        seen.clear()


def test_reverse_communication_is_on_the_callers_streams():
    run, mine = Run("RMSprop()"), torch.cuda.Stream(0)
    for _ in range(2):
        assert run.do("opt_iterate", 0.0) == []
        asked = run.do("opt_iterate", 1.0)
    assert asked
    assert all(line.startswith(run.on) for line in asked)
    run.do("opt_stream", None)
    with torch.cuda.stream(mine):
        run.do("opt_iterate", 0.0)
        assert all(line.startswith(on(mine.cuda_stream)) for line in run.do("opt_iterate", 1.0))


@pytest.mark.parametrize("spec", FUSED)
def test_a_captured_step_asks_the_same_and_waits_for_nothing(spec):
    run = Run(spec)
    ours, stream, graph = run.steps(), ctypes.c_void_p(run.streams[0].cuda_stream), ctypes.c_void_p()
    assert cuda.cudaStreamBeginCapture(stream, 0) == 0
    assert run.do("opt_step") == ours
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0


def test_no_plan_is_made_in_a_capture():
    run = Run("Adam(fused=True, capturable=True)")
    stream, graph = ctypes.c_void_p(run.streams[0].cuda_stream), ctypes.c_void_p()
    run.steps()
    assert run.bind(0) == 0, lib.opt_error()  # the next step is Python's
    assert cuda.cudaStreamBeginCapture(stream, 0) == 0
    assert run.do("opt_step") == [f"{run.on} {COUNT}", f"{run.on} FusedAdamMathFunctor"]
    assert "without Python" not in run.describe()
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
    run.steps(1)
    assert "without Python" in run.describe()


def test_one_launch_counts_the_steps_of_all_parameters():
    run = Run("Adam()", *[0] * 200)
    asked = run.steps()
    assert asked[0] == f"{run.on} {COUNT_OURS}"
    assert set(asked[1:]) == {f"{run.on} FusedAdamMathFunctor"}
    states = _bridge.optimizer_of(run.opt).run.built.state.values()
    steps = [state["step"] for state in states]
    assert len(steps) == len({step.data_ptr() for step in steps}) == 200
    assert all(step.shape == () for step in steps)
    text = saved(run.opt)
    assert lib.opt_load_memory(run.opt, text, len(text)) == 0, lib.opt_error()
    assert run.steps() == asked


def test_a_step_that_cannot_be_captured_is_an_error():
    run, graph = Run("RMSprop()"), ctypes.c_void_p()
    run.steps()
    stream = ctypes.c_void_p(run.streams[0].cuda_stream)
    assert lib.opt_set(run.opt, -1, b"alpha=0.5") == 0  # torch's own step, whose check comes first
    assert cuda.cudaStreamBeginCapture(stream, 0) == 0
    assert lib.opt_step(run.opt) < 0
    assert b"capturable" in lib.opt_error()
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
