"""On a GPU: the numbers are PyTorch's there, to the bit, and nothing waits that need not.

In an environment that has optplug, a torch that is built for the GPU, and pytest:

    python -m pytest tests/test_gpu.py

CMake, a GPU's toolkit and optplug's own build are not needed; a C compiler is, for the host in C.
"""

from __future__ import annotations

import ctypes
import inspect
import io
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import torch

from optplug import ctypes_api, recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here, or not for this torch"),
]

lib = ctypes_api.load()
HERE = pathlib.Path(__file__).parent
OPTIMIZERS = {
    "ASGD(t0=2)",
    "Adadelta()",
    "Adafactor()",
    "Adagrad()",
    "Adam(lr=0.01, amsgrad=True)",
    "Adam(fused=False)",
    "Adam(fused=False, foreach=False)",
    "AdamW(betas=(0.8, 0.9), maximize=True)",
    "Adamax()",
    "LBFGS(lr=0.1, max_iter=3)",
    "Muon()",
    "NAdam()",
    "RAdam()",
    "RMSprop(momentum=0.5, centered=True)",
    "Rprop()",
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True)",
}
FUSED = ["Adam(lr=0.01)", "AdamW(amsgrad=True)", "SGD(lr=0.1, momentum=0.9)"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(50, 1), (300, 700)]


@pytest.fixture(autouse=True)
def as_found():
    yield
    assert torch.cuda.current_device() == 0
    assert torch.cuda.current_stream(0) == torch.cuda.default_stream(0)
    assert lib.opt_init(b"plans=True, master_weights=False, error_if_nonfinite=False") == 0


class Twins:
    """An optimizer by optplug and one by torch, on the same numbers."""

    def __init__(self, spec, dtype=torch.float32, device="cuda:0", shapes=SHAPES, masters=False):
        self.generator = torch.Generator().manual_seed(1)
        self.device, self.masters = torch.device(device), masters
        self.name, _, arguments = spec.partition("(")
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        start = [torch.randn(shape, generator=self.generator).to(dtype) for shape in shapes]
        self.ours = [(p.to(device), torch.zeros_like(p, device=device)) for p in start]
        own = torch.float32 if masters else dtype
        self.theirs = [torch.nn.Parameter(p.to(own).to(device)) for p in start]
        for i in range(len(start)):
            assert self.bind(i) == 0, lib.opt_error()
        arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
        class_ = getattr(torch.optim, self.name)
        takes = inspect.signature(class_).parameters
        if "fused" in takes and not {"fused", "foreach", "capturable"} & arguments.keys():
            fused = "fused=True" in lib.opt_describe(self.opt).decode()
            assert fused or self.name == "Adagrad"
            arguments["fused"] = fused
        self.reference = class_(self.theirs, **arguments)
        torch.cuda.synchronize()

    def bind(self, i):
        p, g = self.ours[i]
        int64s = ctypes.c_int64 * p.dim()
        dtype = str(p.dtype).removeprefix("torch.").encode()
        return lib.opt_bind_nd(
            self.opt,
            f"p{i}".encode(),
            dtype,
            str(self.device).encode(),
            p.dim(),
            int64s(*p.shape),
            p.data_ptr(),
            int64s(*p.stride()),
            g.data_ptr(),
            int64s(*g.stride()),
        )

    def draw(self):
        for (_, g), p in zip(self.ours, self.theirs, strict=True):
            drawn = torch.randn(g.shape, generator=self.generator).to(g.dtype)
            g.copy_(drawn)
            p.grad = drawn.to(p.dtype).to(p.device)
        torch.cuda.synchronize()

    def step(self, count=1):
        for _ in range(count):
            self.draw()
            if self.name == "LBFGS":
                assert lib.opt_step_closure(self.opt, one, None, None) == 0, lib.opt_error()
                self.reference.step(lambda: 1.0)
            else:
                assert lib.opt_step(self.opt) == 0, lib.opt_error()
                self.reference.step()
            self.compare()

    def compare(self):
        torch.cuda.synchronize()
        for (p, _), other in zip(self.ours, self.theirs, strict=True):
            assert torch.equal(p.cpu(), other.detach().cpu().to(p.dtype))

    def is_planned(self):
        return "without Python" in lib.opt_describe(self.opt).decode()

    def end(self):
        assert lib.opt_free(self.opt) == 0


@ctypes_api.CALLBACK
def one(_, value):
    value[0] = 1.0
    return 0


# ---- numbers ----


def test_every_optimizer_is_here():
    assert {spec.partition("(")[0] for spec in OPTIMIZERS} == recipe.classes().keys() - {"SparseAdam"}


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", sorted(OPTIMIZERS))
def test_steps_are_torchs(spec, dtype, plans):
    assert lib.opt_init(f"plans={plans}".encode()) == 0
    twins = Twins(spec, dtype)
    twins.step(10)
    assert twins.is_planned() == (
        plans and spec.partition("(")[0] in ("Adam", "AdamW", "SGD") and "fused" not in spec
    )
    twins.end()


@pytest.mark.parametrize(
    "layout", [lambda t: t.t().contiguous().t(), lambda t: t.repeat(1, 2)[:, : t.shape[1]]]
)
@pytest.mark.parametrize("spec", ["Adam()", "RMSprop()"])
def test_layouts(spec, layout):
    twins = Twins(spec)
    twins.ours = [(layout(p), layout(g)) for p, g in twins.ours]
    for i in range(len(twins.ours)):
        assert twins.bind(i) == 0, lib.opt_error()
    assert lib.opt_save_memory(twins.opt, None, 0) > 0
    for _ in range(6):
        twins.draw()
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
        twins.reference.step()
        for (p, _), other in zip(twins.ours, twins.theirs, strict=True):
            assert torch.allclose(p, other.detach(), rtol=1e-5, atol=1e-6)
    twins.end()


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("spec", FUSED)
def test_bfloat16_with_master_copies(spec, plans):
    assert lib.opt_init(f"plans={plans}, master_weights=True".encode()) == 0
    twins = Twins(spec, torch.bfloat16, masters=True)
    twins.step(10)
    twins.end()


@pytest.mark.parametrize("overflows", [set(), {0}, {1, 4}], ids=str)
@pytest.mark.parametrize("spec", [*FUSED, "RMSprop()"])
def test_scaled_gradients(spec, overflows):
    twins = Twins(spec)
    scale, found_inf = torch.ones(1, device="cuda:0"), torch.zeros(1, device="cuda:0")
    assert lib.opt_grad_scale(twins.opt, scale.data_ptr(), found_inf.data_ptr()) == 0, lib.opt_error()
    for i in range(8):
        twins.draw()
        scale.fill_(2.0**i)
        found_inf.fill_(i in overflows)
        for _, g in twins.ours:
            g.mul_(2.0**i)
        torch.cuda.synchronize()
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
        if i not in overflows:
            twins.reference.step()
        twins.compare()
    twins.end()


def test_clipping_zeroing_and_averages():
    twins, norm = Twins("Adam(lr=0.01)"), ctypes.c_double()
    assert lib.opt_average(twins.opt, b"AveragedModel()") == 0, lib.opt_error()
    module = torch.nn.ParameterList(twins.theirs)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for i in range(6):
        twins.draw()
        where = ctypes.byref(norm) if i % 2 else None
        assert lib.opt_clip_grad_norm(twins.opt, 1.0, 2.0, 0, where) == 0
        expected = torch.nn.utils.clip_grad_norm_(twins.theirs, 1.0)
        assert not i % 2 or norm.value == expected.item()
        assert lib.opt_step(twins.opt) == 0
        twins.reference.step()
        averaged.update_parameters(module)
        twins.compare()
    expected = [p.detach() for p in averaged.parameters()]
    for device in ("cpu", "cuda:0"):
        found = torch.zeros(SHAPES[1], device=device)
        assert lib.opt_average_get(twins.opt, b"p1", found.data_ptr()) == 0, lib.opt_error()
        torch.cuda.synchronize()
        assert torch.equal(found.cpu(), expected[1].cpu())
    assert lib.opt_average_swap(twins.opt) == 0
    torch.cuda.synchronize()
    assert all(torch.equal(p, value) for (p, _), value in zip(twins.ours, expected, strict=True))
    assert lib.opt_zero_grad(twins.opt) == 0
    torch.cuda.synchronize()
    assert not any(g.any() for _, g in twins.ours)
    twins.end()


def saved(opt) -> bytes:
    room = ctypes.create_string_buffer(lib.opt_save_memory(opt, None, 0))
    assert lib.opt_save_memory(opt, room, len(room)) > 0, lib.opt_error()
    return room.raw


@pytest.mark.parametrize("spec", sorted(OPTIMIZERS))
def test_checkpoints_go_on_bit_for_bit(spec):
    """On the GPU exactly; and over the CPU and back nothing of the state is lost."""
    twins, other, here = Twins(spec), Twins(spec), Twins(spec, device="cpu")
    twins.step(4)
    text = saved(twins.opt)
    assert lib.opt_load_memory(here.opt, text, len(text)) == 0, lib.opt_error()
    back = saved(here.opt)
    ours, theirs = (torch.load(io.BytesIO(t), weights_only=True)["optimizer"]["state"] for t in (text, back))
    for key, state in ours.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[key][name])
    for (p, _), (q, _) in zip(twins.ours, other.ours, strict=True):
        q.copy_(p)
    torch.cuda.synchronize()
    assert lib.opt_load_memory(other.opt, back, len(back)) == 0, lib.opt_error()
    other.theirs, other.reference, other.generator = twins.theirs, twins.reference, twins.generator
    other.step(4)
    for run in (twins, other, here):
        run.end()


# ---- streams and graphs ----


def busy(stream, seconds=0.3):
    """Put work of so long onto a stream."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(seconds * 1e9))  # cycles, of which there are 1 to 2 in a nanosecond


@pytest.mark.parametrize(
    ("spec", "options"),
    [(s, o) for s in (*FUSED, "RMSprop()", "NAdam()") for o in ("plans=True", "plans=False")]
    + [("AdamW()", "master_weights=True")],
)
def test_a_step_waits_for_nothing(spec, options):
    assert lib.opt_init(options.encode()) == 0
    masters = "master" in options
    twins, stream = (
        Twins(spec, torch.bfloat16 if masters else torch.float32, masters=masters),
        torch.cuda.Stream(0),
    )
    assert lib.opt_stream(twins.opt, stream.cuda_stream) == 0, lib.opt_error()
    twins.step(4)
    twins.draw()
    before = [p.clone() for p, _ in twins.ours]
    busy(stream)
    start = time.perf_counter()
    assert lib.opt_step(twins.opt) == 0
    took = time.perf_counter() - start
    assert not stream.query(), "the work before it is done already: it was not on that stream"
    assert took < 0.1
    assert all(torch.equal(p, value) for (p, _), value in zip(twins.ours, before, strict=True))
    twins.reference.step()
    twins.compare()
    twins.end()


def test_the_default_is_torchs_current_stream():
    twins, stream = Twins("Adam()"), torch.cuda.Stream(0)
    twins.step(4)
    twins.draw()
    with torch.cuda.stream(stream):
        busy(stream)
        assert lib.opt_step(twins.opt) == 0
        assert not stream.query()
    twins.reference.step()
    twins.compare()
    twins.end()


@pytest.mark.parametrize("spec", FUSED)
def test_a_graph_replays_steps(spec):
    twins = Twins(spec)
    stream = torch.cuda.Stream(0)
    assert lib.opt_stream(twins.opt, stream.cuda_stream) == 0
    twins.step(3)
    graph = torch.cuda.CUDAGraph()
    before = [p.clone() for p, _ in twins.ours]
    with torch.cuda.graph(graph, stream=stream):
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
    torch.cuda.synchronize()
    assert all(torch.equal(p, value) for (p, _), value in zip(twins.ours, before, strict=True))
    for _ in range(5):
        twins.draw()
        graph.replay()
        twins.reference.step()
        twins.compare()
    twins.step(3)  # and on without it
    twins.end()


# ---- memory of others ----


HOST = {**os.environ, "OPTPLUG_PYTHON": sys.executable}


def compiled(folder, source=HERE / "gpu_host.c", *arguments) -> pathlib.Path:
    flags = [
        subprocess.run(
            [sys.executable, "-m", "optplug", "config", option], capture_output=True, text=True, check=True
        ).stdout.split()
        for option in ("--cflags", "--libs")
    ]
    program = folder / "gpu_host"
    compiler = os.environ.get("OPTPLUG_TEST_CC", "cc")
    subprocess.run(
        [compiler, "-std=gnu11", *flags[0], source, "-o", program, *flags[1], "-ldl", *arguments], check=True
    )
    return program


@pytest.mark.parametrize("graph", [[], ["graph"]])
@pytest.mark.parametrize("spec", ["Adam(lr=0.1)", "SGD(lr=0.1, momentum=0.9)"])
def test_a_host_in_c_with_memory_and_a_stream_of_its_own(spec, graph, tmp_path):
    runtimes = sorted(pathlib.Path(torch.__file__).parent.parent.glob("nvidia/**/libcudart.so.*"))
    steps, n = 10, 1000
    done = subprocess.run(
        [compiled(tmp_path), spec, str(n), str(steps), *graph],
        env=HOST | ({"OPTPLUG_TEST_CUDART": str(runtimes[0])} if runtimes else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    parameter = torch.nn.Parameter(torch.zeros(n, device="cuda:0"))
    name, _, arguments = spec.partition("(")
    arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
    reference = getattr(torch.optim, name)([parameter], fused=True, **arguments)
    index = torch.arange(n, device="cuda:0")
    for step in range(steps):
        parameter.grad = ((index * 7 + step * 5) % 11 - 5).to(torch.float32) / 4
        reference.step()
    assert [float.fromhex(line) for line in done.stdout.split()] == parameter.tolist()


def test_the_program_in_docs(tmp_path):
    runtimes = sorted(pathlib.Path(torch.__file__).parent.parent.glob("nvidia/**/libcudart.so.*"))
    headers = [
        path
        for folder in (os.environ.get("CUDA_HOME", "/usr/local/cuda"), *(r.parent.parent for r in runtimes))
        for path in pathlib.Path(folder).glob("include")
        if (path / "crt/host_defines.h").exists()
    ]
    if not runtimes or not headers:
        pytest.skip("no headers of CUDA, or no runtime")
    page = (HERE.parent / "docs/gpu.md").read_text()
    (tmp_path / "page.c").write_text(re.search(r"```c\n(.*?)```", page, re.S)[1])
    linked = f"-isystem{headers[0]}", str(runtimes[0]), f"-Wl,-rpath,{runtimes[0].parent}"
    program = compiled(tmp_path, tmp_path / "page.c", *linked)
    done = subprocess.run(program, env=HOST, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-2 -4 -6\n", "")


@pytest.mark.parametrize("managed", [False, True])
def test_memory_of_cupys(managed):
    cupy = pytest.importorskip("cupy")
    allocator = cupy.cuda.malloc_managed if managed else cupy.get_default_memory_pool().malloc
    with cupy.cuda.using_allocator(allocator):
        p, g = cupy.zeros(100, dtype=cupy.float32), cupy.ones(100, dtype=cupy.float32)
    opt, shape = lib.opt_create(b"SGD(lr=0.5)"), (ctypes.c_int64 * 1)(100)
    bound = lib.opt_bind_nd(opt, b"w", b"float32", b"cuda:0", 1, shape, p.data.ptr, None, g.data.ptr, None)
    assert bound == 0, lib.opt_error()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device(0).synchronize()
    assert lib.opt_stream(opt, stream.ptr) == 0, lib.opt_error()
    for _ in range(4):
        assert lib.opt_step(opt) == 0
    stream.synchronize()
    assert (p.get() == -2).all()
    assert lib.opt_free(opt) == 0


def test_memory_that_is_elsewhere_is_refused():
    twins, here = Twins("Adam()"), torch.zeros(50, 1)
    pinned = torch.zeros(50, 1).pin_memory()
    device = twins.ours[0][0]
    for other, words in ((here, "memory of the CPU"), (pinned, "pinned memory of the CPU")):
        twins.ours[0] = other, other
        assert twins.bind(0) < 0
        assert f"data is at address {other.data_ptr():#x}, which is {words}, not of cuda:0" in str(
            lib.opt_error()
        )
    assert lib.opt_bind(twins.opt, b"p0", b"float32", 50, device.data_ptr(), device.data_ptr()) < 0
    assert "memory of cuda:0, not of the CPU" in str(lib.opt_error())
    twins.end()


# ---- several GPUs, and processes ----


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_second_gpu():
    twins, stream = Twins("Adam()", device="cuda:1"), torch.cuda.Stream(1)
    assert lib.opt_stream(twins.opt, torch.cuda.Stream(0).cuda_stream) < 0
    assert "is of cuda:0, and the parameters are on cuda:1" in str(lib.opt_error())
    assert lib.opt_stream(twins.opt, stream.cuda_stream) == 0, lib.opt_error()
    twins.step(5)
    twins.end()


def test_a_forked_process_is_told():
    twins = Twins("Adam()")
    twins.step(3)
    child = os.fork()
    if child == 0:
        refused = lib.opt_step(twins.opt) < 0 and b"which a forked process has not" in lib.opt_error()
        os._exit(0 if refused else 1)
    assert os.waitpid(child, 0)[1] == 0
    twins.step(3)
    twins.end()
