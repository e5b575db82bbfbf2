"""What optplug asks of a GPU, and where it waits for it; see `tests/test_gpu_calls.py`, which runs this."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
import os
import re
import subprocess
import sys

import pytest
import torch

from optplug import _bridge, ctypes_api, recipe

lib = ctypes_api.load()
cuda = ctypes.CDLL(None)
cuda.standin_notes.restype = ctypes.c_char_p

# LBFGS and Muon want cuBLAS, of which there is no stand-in.
SPECS = [f"{name}()" for name in recipe.classes() if name not in ("LBFGS", "Muon", "SparseAdam")]
FUSED = ["Adam()", "AdamW(amsgrad=True)", "SGD(momentum=0.9)"]
WAITING = ("Adafactor()", "ASGD()")  # as torch has them
# What adds to the step counts, in torch's steps and in plans.
COUNT, COUNT_OURS = "BinaryOpScalarFunctor", "PointwiseOpScalarListFunctor"


def notes() -> list[str]:
    """Return what CUDA was asked since the last call: "STREAM KERNEL", a copy, or what was waited for."""
    lines = cuda.standin_notes().decode().splitlines()
    launch = re.compile(r"stream (\S+): on GPU \d+ (\S+)")
    return [launch.sub(lambda m: f"{m[1]} {functor(m[2])}", line) for line in lines]


def functor(kernel: str) -> str:
    """Return the part of a kernel's mangled name that says what it does."""
    found = re.search(r"\d([A-Z][A-Za-z]+Functor)", kernel)
    return found[1] if found else kernel


def on(stream: int) -> str:
    return hex(stream) if stream else "(nil)"


@pytest.fixture(autouse=True)
def as_found():
    yield
    assert torch.cuda.current_device() == 0
    assert [torch.cuda.current_stream(i).cuda_stream for i in range(2)] == [0, 0]
    assert lib.opt_init(b"plans=True, master_weights=False, error_if_nonfinite=False") == 0


class Run:
    """An optimizer on arrays of a GPU, on a stream of the host's."""

    def __init__(self, spec, *gpus, dtype=torch.float32, n=50, stream=True):
        gpus = gpus or (0,)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        self.arrays = [[torch.zeros(n, device=f"cuda:{gpu}", dtype=dtype) for _ in "pg"] for gpu in gpus]
        for i in range(len(gpus)):
            assert self.bind(i) == 0, lib.opt_error()
        self.streams = [torch.cuda.Stream(gpu) for gpu in sorted(set(gpus))] if stream else []
        for s in self.streams:
            self.do("opt_stream", s.cuda_stream)
        self.on = on(self.streams[0].cuda_stream if stream else 0)
        notes()

    def bind(self, i, device=None, data=None, grad=None):
        p, g = self.arrays[i]
        dtype = str(p.dtype).removeprefix("torch.").encode()
        shape = (ctypes.c_int64 * 1)(len(p))
        device = (str(p.device) if device is None else device).encode()
        data, grad = data or p.data_ptr(), grad or g.data_ptr()
        return lib.opt_bind_nd(self.opt, f"p{i}".encode(), dtype, device, 1, shape, data, None, grad, None)

    def do(self, name, *arguments):
        assert getattr(lib, name)(self.opt, *arguments) >= 0, (lib.opt_error(), lib.opt_traceback())
        return notes()

    def steps(self, count=4):
        """Return what the last of some steps asked."""
        return [self.do("opt_step") for _ in range(count)][-1]

    def describe(self):
        return lib.opt_describe(self.opt).decode()


def waits(lines):
    return [line for line in lines if line.startswith("wait")]


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
        "bind it by opt_bind_nd with the device 'cuda:0'"
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
    run, memory = Run("SGD()", 1, stream=False), ctypes.c_void_p()
    assert cuda.cudaMallocManaged(ctypes.byref(memory), ctypes.c_size_t(400), 0) == 0
    run.arrays[0][0].zero_()
    assert run.bind(0, None, memory.value, memory.value) == 0, lib.opt_error()
    assert lib.opt_free(run.opt) == 0
    opt = lib.opt_create(b"SGD()")
    assert lib.opt_bind(opt, b"w", b"float32", 50, memory.value, memory.value) == 0, lib.opt_error()
    assert lib.opt_free(opt) == 0
    assert cuda.cudaFree(memory) == 0


# ---- steps ----


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
    assert bool(fused) == ("fused" in inspect.signature(class_).parameters and spec != "Adagrad()")
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
        r"stream 0x[0-9a-f]+ is of cuda:0, and the parameters are on cuda:1: bind them before, or .*",
        lib.opt_error().decode(),
    )
    assert run.describe() == ours


def test_a_stream_needs_a_parameter_on_a_gpu():
    opt, s = lib.opt_create(b"Adam()"), torch.cuda.Stream(0)
    assert lib.opt_stream(opt, s.cuda_stream) < 0
    assert b"no parameter is on a GPU, bind one before" in lib.opt_error()
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


# ---- what is around a step ----


def test_zeroing_and_clipping_wait_only_for_a_norm_that_is_asked_for():
    run, norm = Run("Adam()", 0, 0, 0), ctypes.c_double()
    for asked in (
        run.do("opt_zero_grad"),
        run.do("opt_clip_grad_value", 1.0),
        run.do("opt_clip_grad_norm", 1.0, 2.0, 0, None),
    ):
        assert asked
        assert not waits(asked)
        assert all(run.on in line for line in asked)
    assert len(run.do("opt_zero_grad")) == 1  # for all three
    assert waits(run.do("opt_clip_grad_norm", 1.0, 2.0, 0, norm))


@pytest.mark.parametrize(
    "average",
    [
        "AveragedModel()",
        "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))",
        "AveragedModel(avg_fn=get_ema_avg_fn(0.9))",
    ],
)
def test_averages_wait_only_where_the_cpu_gets_one(average):
    run = Run("Adam()")
    run.do("opt_average", average.encode())
    for _ in range(4):
        asked = run.do("opt_step")
        assert len(asked) > 2
        assert not waits(asked)
        assert all(run.on in line for line in asked)
    assert not waits(run.do("opt_average_swap"))
    assert not waits(run.do("opt_average_swap"))
    here, there = torch.ones(50), torch.ones(50, device="cuda:0")
    assert not waits(run.do("opt_average_get", b"p0", there.data_ptr()))
    assert waits(run.do("opt_average_get", b"p0", here.data_ptr()))
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("spec", FUSED)
def test_a_scale_is_read_on_the_gpu(spec):
    run, plain = Run(spec), Run(spec)
    scale, found_inf = torch.ones(1).to("cuda:0"), torch.zeros(1).to("cuda:0")
    run.do("opt_grad_scale", scale.data_ptr(), found_inf.data_ptr())
    asked, expected = run.steps(), [line.replace(plain.on, run.on) for line in plain.steps()]
    if not spec.startswith("SGD"):
        expected += [f"{run.on} {COUNT_OURS}"]  # takes the count back where the step is left out
    assert asked == expected
    assert "without Python" in run.describe()
    here = torch.ones(1)
    assert lib.opt_grad_scale(run.opt, here.data_ptr(), None) < 0
    assert b"scale is at address" in lib.opt_error()
    assert run.steps() == asked


def test_a_scale_on_one_gpu_is_for_all():
    run, scale = Run("Adam()", 0, 1), torch.ones(1).to("cuda:0")
    run.do("opt_grad_scale", scale.data_ptr(), None)
    assert any("copy 4 bytes" in line for line in run.steps())  # to the other one, for this step
    assert "without Python" not in run.describe()


def test_master_copies_are_made_on_the_gpu():
    assert lib.opt_init(b"master_weights=True") == 0
    run = Run("AdamW()", dtype=torch.bfloat16)
    copies = [f"{run.on} CopyFunctor"]
    assert run.steps() == [*copies, f"{run.on} {COUNT_OURS}", f"{run.on} FusedAdamMathFunctor", *copies]
    assert "stepped in float32" in run.describe()


def test_a_scale_with_averages_waits_at_the_first_steps_alone():
    run, scale, found_inf = Run("Adam()"), torch.ones(1).to("cuda:0"), torch.zeros(1).to("cuda:0")
    run.do("opt_average", b"AveragedModel()")
    run.do("opt_grad_scale", scale.data_ptr(), found_inf.data_ptr())
    assert waits(run.steps(1))
    assert not waits(run.steps(3))


def test_memory_of_before_a_stream_is_kept_until_that_has_done_with_it():
    assert lib.opt_init(b"master_weights=True") == 0
    run = Run("AdamW()", dtype=torch.bfloat16)  # whose copies are made before
    run.steps()
    assert f"stream {run.on}: record" in run.do("opt_free")


def test_a_look_at_gradients_waits():
    assert lib.opt_init(b"error_if_nonfinite=True") == 0
    run = Run("Adam()")
    assert waits(run.steps())
    assert "without Python" not in run.describe()


# ---- checkpoints ----


def saved(opt) -> bytes:
    room = ctypes.create_string_buffer(lib.opt_save_memory(opt, None, 0))
    assert lib.opt_save_memory(opt, room, len(room)) > 0, lib.opt_error()
    return room.raw


def state_in(text) -> dict[str, object]:
    return torch.load(io.BytesIO(text), weights_only=True)["optimizer"]["state"].get(0, {})


def devices_of(opt) -> list[tuple[str, torch.device]]:
    states = _bridge.optimizer_of(opt).run.built.state.values()
    return sorted((key, t.device) for s in states for key, t in s.items() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("spec", SPECS)
def test_checkpoints_go_from_one_device_to_another(spec):
    data, grad = torch.zeros(50), torch.zeros(50)
    here = lib.opt_create(spec.encode())
    assert lib.opt_bind(here, b"p0", b"float32", 50, data.data_ptr(), grad.data_ptr()) == 0
    for _ in range(3):
        assert lib.opt_step(here) == 0
    text, run = saved(here), Run(spec, 1)
    assert lib.opt_load_memory(run.opt, text, len(text)) == 0, lib.opt_error()
    states = [
        torch.load(io.BytesIO(t), weights_only=True)["optimizer"]["state"] for t in (text, saved(run.opt))
    ]
    for name, value in states[0].get(0, {}).items():
        there = states[1][0][name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, there), name
        else:
            assert value == there
    fresh = Run(spec, 1)
    fresh.steps(1)
    assert devices_of(run.opt) == devices_of(fresh.opt)
    assert run.steps() == [line.replace(fresh.on, run.on) for line in fresh.steps()]
    back = saved(run.opt)
    for value in state_in(back).values():
        assert not isinstance(value, torch.Tensor) or not value.is_cuda
    assert lib.opt_load_memory(here, back, len(back)) == 0, lib.opt_error()
    assert lib.opt_step(here) == 0, lib.opt_error()
    assert lib.opt_free(here) == 0


# ---- the process ----


def test_the_environment_is_as_before_and_nothing_more_is_imported():
    program = """if True:
        import ctypes, os, sys
        from optplug import ctypes_api
        lib, memory, shape = ctypes_api.load(), ctypes.c_void_p(), (ctypes.c_int64 * 1)(3)
        before = dict(os.environ)
        assert ctypes.CDLL(None).cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(12)) == 0
        opt = lib.opt_create(b"Adam()")
        assert lib.opt_bind_nd(opt, b"w", b"float32", b"cuda:0", 1, shape, memory, None, memory, None) == 0
        assert lib.opt_step(opt) == lib.opt_step(opt) == lib.opt_free(opt) == 0
        assert dict(os.environ) == before
        assert "torch._dynamo" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_forked_process_has_no_gpu():
    runs = Run("Adam()"), Run("RMSprop()")
    for run in runs:
        run.steps()
    child = os.fork()
    if child == 0:
        refused = [
            call(run.opt, *arguments) < 0 and b"which a forked process has not" in lib.opt_error()
            for run in runs
            for call, *arguments in (
                (lib.opt_step,),
                (lib.opt_zero_grad,),
                (lib.opt_average, b"AveragedModel()"),
            )
        ]
        os._exit(0 if all(refused) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("graph", [[], ["graph"]])
def test_a_host_in_c(graph):
    done = subprocess.run(
        [os.environ["OPTPLUG_TEST_GPU_HOST"], "Adam(lr=0.1)", "50", "6", *graph],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout == "0x0p+0\n" * 50


def test_the_program_in_docs():
    done = subprocess.run(os.environ["OPTPLUG_TEST_GPU_PAGE"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0 0\n", "")
