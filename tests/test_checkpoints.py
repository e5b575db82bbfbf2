"""A run that goes on from a checkpoint is, bit for bit, the run that never stopped."""

from __future__ import annotations

import ctypes
import io
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from optplug import checkpoint, ctypes_api, recipe, schedules

lib = ctypes_api.load()
HERE = pathlib.Path(__file__).parent
KILLS = 300

SPECS = [
    "ASGD(t0=2)",
    "Adadelta()",
    "Adafactor()",
    "Adagrad()",
    "Adam(lr=0.01, amsgrad=True)",
    "Adam(fused=False)",
    "Adam(foreach=True, maximize=True)",
    "AdamW(betas=(0.8, 0.9))",
    "Adamax()",
    "LBFGS(lr=0.1, max_iter=3, history_size=4)",
    "LBFGS(max_iter=4, line_search_fn='strong_wolfe')",
    "Muon()",
    "NAdam()",
    "RAdam()",
    "RMSprop(momentum=0.5, centered=True)",
    "Rprop()",
    "SGD(lr=0.1)",
    "SGD(momentum=0.9, nesterov=True)",
    "SparseAdam()",
]
SCHEDULES = {
    "": [],
    "ChainedScheduler": ["ChainedScheduler([ConstantLR(0.5, total_iters=4), ExponentialLR(0.9)])"],
    "ConstantLR": ["ConstantLR(0.5, total_iters=4)"],
    "CosineAnnealingLR": ["CosineAnnealingLR(T_max=7)"],
    "CosineAnnealingWarmRestarts": ["CosineAnnealingWarmRestarts(T_0=3)"],
    "CyclicLR": ["CyclicLR(base_lr=1e-4, max_lr=1e-2, step_size_up=3, cycle_momentum=False)"],
    "ExponentialLR": ["ExponentialLR(0.9)"],
    "LambdaLR": ["LambdaLR()"],
    "LinearLR": ["LinearLR(total_iters=7)", "ExponentialLR(0.9)"],
    "MultiStepLR": ["MultiStepLR([2, 6])"],
    "MultiplicativeLR": ["MultiplicativeLR()"],
    "OneCycleLR": ["OneCycleLR(max_lr=0.1, total_steps=40)"],
    "PolynomialLR": ["PolynomialLR(total_iters=9, power=2.0)"],
    "ReduceLROnPlateau": ["ReduceLROnPlateau(patience=1)"],
    "SequentialLR": ["SequentialLR([ConstantLR(0.5), CosineAnnealingLR(9)], milestones=[6])"],
    "StepLR": ["StepLR(2, gamma=0.5)"],
    "SWALR": ["SWALR(swa_lr=0.05, anneal_epochs=7)"],
}
AVERAGES = ["", "AveragedModel()", "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))"]


@ctypes_api.CALLBACK
def factor(_, value):
    value[0] = 0.9 ** value[0]
    return 0


class Run:
    """An optimizer on two matrices, each in a group of its own, where the class has groups."""

    def __init__(
        self,
        spec: str,
        schedule: str = "",
        average: str = "",
        dtype: torch.dtype = torch.float32,
        values: dict[str, torch.Tensor] | None = None,
        attach: bool = True,
    ):
        self.spec, self.schedules, self.average, self.dtype = spec, SCHEDULES[schedule], average, dtype
        self.name = spec.partition("(")[0]
        generator = torch.Generator().manual_seed(7)
        shapes = {"w": (4, 3), "v": (3, 2)}
        start = {
            n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()
        }
        source = values or start
        # In the other order, where the order is not the groups'.
        names = list(start) if values is None or self.has_groups() else list(start)[::-1]
        self.values = {n: source[n].to(dtype).clone() for n in names}
        self.grads = {n: torch.zeros_like(p) for n, p in self.values.items()}
        self.count, self.rows = ctypes.c_int64(2), (ctypes.c_int64 * 2)(0, 2)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        for i, (n, p) in enumerate(self.values.items()):
            if i and self.has_groups():
                assert lib.opt_group(self.opt, b"lr=2e-3") == 0, lib.opt_error()
            self.bind(n, p)
        self.made = 0
        if attach:
            for text in self.schedules:
                if text.startswith(("Lambda", "Multiplicative")):
                    assert lib.opt_schedule_callback(self.opt, text.encode(), factor, None) == 0, (
                        lib.opt_error()
                    )
                else:
                    assert lib.opt_schedule(self.opt, text.encode()) == 0, lib.opt_error()
            if average:
                assert lib.opt_average(self.opt, average.encode()) == 0, lib.opt_error()

    def has_groups(self) -> bool:
        return self.name != "LBFGS"

    def bind(self, n: str, p: torch.Tensor) -> None:
        dtype = str(self.dtype).removeprefix("torch.").encode()
        if self.name == "SparseAdam":
            status = lib.opt_bind_sparse(
                self.opt,
                n.encode(),
                dtype,
                *p.shape,
                p.data_ptr(),
                2,
                ctypes.byref(self.count),
                self.rows,
                self.grads[n].data_ptr(),
            )
        else:
            shape = (ctypes.c_int64 * 2)(*p.shape)
            data, grad = p.data_ptr(), self.grads[n].data_ptr()
            status = lib.opt_bind_nd(self.opt, n.encode(), dtype, b"cpu", 2, shape, data, None, grad, None)
        assert status == 0, lib.opt_error()

    def loss(self, _=None, value=None) -> int:
        total = 0.0
        for n, p in self.values.items():
            generator = torch.Generator().manual_seed(self.made * 2 + (n == "w"))
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(self.dtype)
            self.grads[n].copy_(p + 0.3 * noise)
            total += float((p * p).double().sum())
        if value is not None:
            value[0] = total
        return 0

    def go(self, steps: int) -> None:
        for _ in range(steps):
            if self.name == "LBFGS":
                closure = ctypes_api.CALLBACK(self.loss)
                assert lib.opt_step_closure(self.opt, closure, None, None) == 0, lib.opt_error()
            else:
                self.loss()
                assert lib.opt_step(self.opt) == 0, lib.opt_error()
            self.made += 1
            if any(text.startswith("Reduce") for text in self.schedules):
                assert lib.opt_schedule_step_metric(self.opt, 1.0) == 0, lib.opt_error()
            elif self.schedules:
                assert lib.opt_schedule_step(self.opt) == 0, lib.opt_error()

    def averages(self) -> list[torch.Tensor]:
        result = []
        for n in sorted(self.values) if self.average else []:
            result.append(torch.empty_like(self.values[n]))
            assert lib.opt_average_get(self.opt, n.encode(), result[-1].data_ptr()) == 0, lib.opt_error()
        return result

    def bits(self) -> list[list]:
        return [
            t.double().tolist() for t in (*(self.values[n] for n in sorted(self.values)), *self.averages())
        ]

    def free(self) -> None:
        assert lib.opt_free(self.opt) == 0


def in_memory(run: Run) -> bytes:
    size = lib.opt_save_memory(run.opt, None, 0)
    assert size > 0, lib.opt_error()
    buffer = ctypes.create_string_buffer(size)
    assert lib.opt_save_memory(run.opt, buffer, size) == size, lib.opt_error()
    return buffer.raw


def check_goes_on(attach: bool = True, before: int = 5, after: int = 5, **kind) -> None:
    run = Run(**kind)
    run.go(before)
    saved = in_memory(run)
    resumed = Run(**kind, values=run.values, attach=attach)
    resumed.made = run.made
    assert lib.opt_load_memory(resumed.opt, saved, len(saved)) == 0, lib.opt_error()
    run.go(after)
    resumed.go(after)
    assert run.bits() == resumed.bits()
    run.free()
    resumed.free()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
def test_every_optimizer_goes_on(spec, dtype):
    for before in (0, 1, 5):
        check_goes_on(spec=spec, dtype=dtype, before=before)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_goes_on(schedule):
    has_function = schedule in ("LambdaLR", "MultiplicativeLR")
    for spec, attach in itertools.product(("Adam(lr=0.01)", "RMSprop(lr=0.01)"), (True, has_function)):
        check_goes_on(spec=spec, schedule=schedule, attach=attach)


def test_there_is_no_other_schedule():
    assert schedules.classes().keys() == SCHEDULES.keys() - {""}
    assert {spec.partition("(")[0] for spec in SPECS} == recipe.classes().keys()


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("average", AVERAGES)
def test_averages_go_on(average, attach):
    for spec in ("Adam(lr=0.01)", "SGD(momentum=0.9)"):
        check_goes_on(spec=spec, average=average, schedule="StepLR", attach=attach)


# ---- with plain PyTorch ----

PLAIN = [s for s in SPECS if not s.startswith(("LBFGS", "SparseAdam"))]


def plain(run: Run) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
    """Return what a program of plain PyTorch would have: the same optimizer, with the same parameters."""
    parameters = {n: torch.nn.Parameter(p.clone()) for n, p in run.values.items()}
    groups = [{"params": [pair], **({"lr": 2e-3} if i else {})} for i, pair in enumerate(parameters.items())]
    arguments = run.spec.partition("(")[2].removesuffix(")")
    made = eval(f"torch.optim.{run.name}(groups, {arguments})", {"torch": torch, "groups": groups})  # noqa: S307
    return made, parameters


def go_plainly(made: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], like: Run) -> None:
    """Make the steps that `like` is to make."""
    for n, p in parameters.items():
        like.values[n].copy_(p.detach())
    like.loss()
    like.made += 1
    for n, p in parameters.items():
        p.grad = like.grads[n].clone()
    made.step()


@pytest.mark.parametrize("spec", PLAIN)
def test_pytorch_goes_on_from_our_file(spec, tmp_path):
    run = Run(spec)
    run.go(4)
    assert lib.opt_save(run.opt, str(tmp_path / "c.pt").encode()) == 0, lib.opt_error()
    # This is all that the other program needs.
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    made, parameters = plain(run)
    made.load_state_dict(saved["optimizer"])
    shadow = Run(spec)
    shadow.made = run.made
    for _ in range(4):
        go_plainly(made, parameters, shadow)
    run.go(4)
    assert {n: p.tolist() for n, p in run.values.items()} == {n: p.tolist() for n, p in parameters.items()}
    run.free()
    shadow.free()


@pytest.mark.parametrize("form", ["bare", "in a dict", "without names"])
@pytest.mark.parametrize("spec", PLAIN)
def test_we_go_on_from_a_file_of_pytorchs(spec, form, tmp_path):
    shadow = Run(spec)
    made, parameters = plain(shadow)
    implementation = {k: True for k in ("fused",) if k in made.defaults and "f" not in spec.partition("(")[2]}
    for group in made.param_groups:  # what optplug chooses
        group.update(implementation)
    for _ in range(4):
        go_plainly(made, parameters, shadow)
    state = made.state_dict()
    if form == "without names":
        for group in state["param_groups"]:
            del group["param_names"]
    torch.save({"optimizer": state, "epoch": 3} if form == "in a dict" else state, tmp_path / "c.pt")
    run = Run(spec, values={n: p.detach() for n, p in parameters.items()})
    run.made = shadow.made
    assert lib.opt_load(run.opt, str(tmp_path / "c.pt").encode()) == 0, lib.opt_error()
    for _ in range(4):
        go_plainly(made, parameters, shadow)
    run.go(4)
    assert {n: p.tolist() for n, p in run.values.items()} == {n: p.tolist() for n, p in parameters.items()}
    run.free()
    shadow.free()


def test_a_file_of_pytorchs_that_does_not_fit_is_refused(tmp_path):
    run = Run("Adam()")
    run.go(2)
    made, parameters = plain(run)
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    made.step()
    good = made.state_dict()

    def refused(words: str, change) -> None:
        state = {"state": {k: dict(v) for k, v in good["state"].items()}}
        state["param_groups"] = [dict(g) for g in good["param_groups"]]
        state = change(state) or state
        torch.save(state, tmp_path / "c.pt")
        assert lib.opt_load(run.opt, str(tmp_path / "c.pt").encode()) == -1
        assert words in lib.opt_error().decode(), lib.opt_error()

    refused("has shape (5,)", lambda s: s["state"][0].update(exp_avg=torch.zeros(5)))
    refused("is int32, and float32 here", lambda s: s["state"][0].update(exp_avg=torch.zeros(4, 3).int()))
    refused("is str", lambda s: s["state"][0].update(exp_avg="x"))
    refused("has the state exp_avg, step, where", lambda s: s["state"][0].__delitem__("exp_avg_sq"))
    refused("Invalid weight_decay value: -1", lambda s: s["param_groups"][0].update(weight_decay=-1))
    refused("group 0", lambda s: s["param_groups"][0].update(lr="x"))
    refused("group 0", lambda s: s["param_groups"][0].update(betas="x"))
    refused("no parameter 'w'", lambda s: s["param_groups"][0].update(param_names=["x"]))
    refused(
        "2 parameters in it", lambda s: s["param_groups"][0].update(params=[0, 9], param_names=["w", "w"])
    )
    refused("it has 1 parameter groups", lambda s: s["param_groups"].__delitem__(1))
    refused("in none of its groups", lambda s: s["state"].update({7: {}}))
    refused("no state of an optimizer", lambda _: {"weights": torch.zeros(3)})
    refused("it has a list in it", lambda _: [1, 2])
    refused("it is no checkpoint", lambda s: s.update(param_groups=3))
    refused("it is no checkpoint", lambda s: s.update(state={0: 3}))
    before = [run.values, run.made]
    run.go(3)
    assert run.made == before[1] + 3
    run.free()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch bomb",)


def test_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("Adam()")
    for content in (Bomb(), {"optimizer": Bomb()}, {"optplug": Bomb()}):
        for zipped in (True, False):
            torch.save(content, "c.pt", _use_new_zipfile_serialization=zipped)
            assert lib.opt_load(run.opt, b"c.pt") == -1
            assert lib.opt_error().startswith(b"path 'c.pt': it is ")
    assert not (tmp_path / "bomb").exists()
    run.free()


# ---- what can happen to files ----


def test_a_new_process_goes_on(tmp_path):
    """The whole run again, in another process: every optimizer, with a schedule and an average."""
    kinds = [
        {"spec": spec, "schedule": "" if "LBFGS" in spec else "StepLR", "average": AVERAGES[1]}
        for spec in SPECS
    ]
    script = (
        "import json, sys, pathlib, torch\n"
        "from test_checkpoints import Run, lib\n"
        "kinds, folder = json.load(sys.stdin), pathlib.Path(sys.argv[1])\n"
        "for i, kind in enumerate(kinds):\n"
        "    run = Run(**kind, values=torch.load(folder / f'{i}.values', weights_only=True), attach=False)\n"
        "    run.made = 5\n"
        "    assert lib.opt_load(run.opt, str(folder / f'{i}.pt').encode()) == 0, lib.opt_error()\n"
        "    run.go(5)\n"
        "    print(json.dumps(run.bits()))\n"
    )
    expected = []
    for i, kind in enumerate(kinds):
        run = Run(**kind)
        run.go(5)
        assert lib.opt_save(run.opt, str(tmp_path / f"{i}.pt").encode()) == 0, lib.opt_error()
        torch.save(run.values, tmp_path / f"{i}.values")
        run.go(5)
        expected.append(run.bits())
        run.free()
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        input=json.dumps(kinds), capture_output=True, text=True, check=False, cwd=HERE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_every_flip_and_every_truncation_is_noticed():
    run, twin = Run("Adam()", "StepLR"), Run("Adam()", "StepLR")
    run.go(3)
    twin.go(3)
    good = in_memory(run)
    rng = random.Random(1)  # noqa: S311
    damaged = [
        bytes([*good[:i], good[i] ^ (1 << rng.randrange(8)), *good[i + 1 :]]) for i in range(len(good))
    ]
    damaged += [good[:n] for n in range(1, len(good), 7)]
    damaged += [good + b"x", good * 2, good[1:], bytes(len(good)), rng.randbytes(len(good))]
    for _ in range(1000):
        i, n = rng.randrange(len(good)), rng.randrange(1, 200)
        damaged.append(good[:i] + rng.randbytes(n) + good[i + n :])
    for content in damaged:
        if content != good:
            assert lib.opt_load_memory(run.opt, content, len(content)) == -1
            assert b"buffer: it is " in lib.opt_error()
    run.go(3)
    twin.go(3)
    assert run.bits() == twin.bits()
    run.free()
    twin.free()


def test_what_is_whole_but_wrong_is_refused():
    run, twin = Run("Adam()", "StepLR", AVERAGES[1]), Run("Adam()", "StepLR", AVERAGES[1])
    run.go(3)
    twin.go(3)
    good = in_memory(run)

    def refused(words: str, change) -> None:
        content = torch.load(io.BytesIO(good), weights_only=True)
        change(content)
        file = io.BytesIO()
        checkpoint.write(file, content)
        content = file.getvalue()
        assert lib.opt_load_memory(run.opt, content, len(content)) == -1
        assert words in lib.opt_error().decode(), lib.opt_error()

    refused("it is of format 2, and this optplug reads format 1", lambda c: c["optplug"].update(format=2))
    refused("it is of SGD, and this optimizer is Adam", lambda c: c["optplug"].update({"class": "SGD"}))
    refused("it has the schedulers (none), and here are 'StepLR", lambda c: c.update(schedulers=[]))
    refused("it has the average None, and here is 'Averaged", lambda c: c.update(average=None))
    refused("its state of the scheduler", lambda c: c["schedulers"][0]["state"].pop("last_epoch"))
    refused(
        "the average of parameter 'w' has another shape",
        lambda c: c["average"]["values"].update(w=torch.zeros(1)),
    )
    refused("it is no checkpoint: it has no 'average'", lambda c: c.pop("average"))
    refused("something in it is of another kind than it must be", lambda c: c.update(optplug=3))
    refused("group 0 has no lr", lambda c: c["optimizer"]["param_groups"][0].pop("lr"))
    run.go(3)
    twin.go(3)
    assert run.bits() == twin.bits()
    run.free()
    twin.free()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = str(tmp_path / "c.pt").encode()
    run = Run("Adam()")
    assert lib.opt_checkpoint(run.opt, b"parameters=True") == 0, lib.opt_error()
    run.go(1)
    assert lib.opt_save(run.opt, path) == 0
    rng, last, longest = random.Random(2), 1, 0.03  # noqa: S311
    for _ in range(KILLS):
        child = os.fork()
        if not child:
            try:
                while True:
                    run.go(1)
                    lib.opt_save(run.opt, path)
            finally:
                os._exit(1)  # rather than go on with the tests
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert lib.opt_load(run.opt, path) == 0, lib.opt_error()
        steps = int(torch.load(path.decode(), weights_only=True)["optimizer"]["state"][0]["step"])
        assert steps >= last
        longest = max(0.03, longest * (1.1 if steps == last else 0.9))  # as fast as the disk is today
        last = steps
    assert last > KILLS // 10  # they did save
    assert lib.opt_save(run.opt, path) == 0  # whatever the last one has left behind
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    run.free()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: root can")
    yield disk
    subprocess.run(["umount", disk], check=True)  # noqa: S607


def test_a_full_disk_loses_nothing(small_disk):
    path = small_disk / "c.pt"
    run = Run("Adam()")
    run.go(1)
    assert lib.opt_save(run.opt, str(path).encode()) == 0
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(bytes(50000))
    big, gradient = torch.zeros(50000), torch.zeros(50000)
    opt = lib.opt_create(b"Adam()")
    assert lib.opt_bind(opt, b"w", b"float32", 50000, big.data_ptr(), gradient.data_ptr()) == 0
    assert lib.opt_step(opt) == 0
    assert lib.opt_save(opt, str(path).encode()) == -8
    assert b"No space left on device" in lib.opt_error()
    assert path.read_bytes() == before
    assert sorted(p.name for p in small_disk.iterdir()) == ["c.pt", "filler"]
    assert lib.opt_step(opt) == 0
    assert lib.opt_free(opt) == 0
    run.free()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    run = Run("Adam()")
    assert lib.opt_save(run.opt, str(tmp_path / "c.pt").encode()) == -8
    assert b"Permission denied" in lib.opt_error()
    run.free()


def test_a_new_file_gets_the_usual_mode_and_an_old_one_keeps_its_own(tmp_path):
    run = Run("Adam()")
    path = tmp_path / "c.pt"
    before = os.umask(0o027)
    try:
        assert lib.opt_save(run.opt, str(path).encode()) == 0, lib.opt_error()
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        assert lib.opt_save(run.opt, str(path).encode()) == 0, lib.opt_error()
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    run.free()


def test_a_pipe_is_an_error_and_waits_for_nobody(tmp_path):
    run = Run("Adam()")
    os.mkfifo(tmp_path / "pipe")
    assert lib.opt_save(run.opt, str(tmp_path / "pipe").encode()) == -8
    assert lib.opt_error().endswith(b"/pipe': it is a device, pipe or socket, and must be a file")
    run.free()


# ---- how it is written ----


class Counting(io.BytesIO):
    def __init__(self):
        super().__init__()
        self.writes = 0

    def write(self, data):
        self.writes += 1
        return super().write(data)


def sealed(content: dict) -> bytes:
    file = io.BytesIO()
    checkpoint.write(file, content)
    return file.getvalue()


def test_many_small_tensors_are_written_in_few_pieces(monkeypatch):
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    file = Counting()
    checkpoint.write(file, {"optimizer": {i: torch.zeros(8) for i in range(1000)}})
    assert len(file.getvalue()) < 1 << 20
    assert (file.writes, len(started)) == (2, 0)  # with the seal
    checkpoint.write(Counting(), {"optimizer": torch.zeros(1 << 19)})
    assert len(started) == 1


def test_small_and_large_pieces_stay_in_their_order():
    sizes = [1, 1 << 18, 3, 1 << 20, 5, 1 << 17, 1 << 17, 1 << 17, 7]
    content = {"optimizer": [torch.full((n,), float(i)) for i, n in enumerate(sizes)]}
    with checkpoint.load_memory(sealed(content)) as read:
        pairs = zip(read["optimizer"], content["optimizer"], strict=True)
        assert all(torch.equal(a.tensor(), b) for a, b in pairs)


def test_where_no_thread_can_be_made_a_checkpoint_is_written_all_the_same():
    content = {"optimizer": torch.arange(1 << 19)}
    before = threading.stack_size(1 << 46)  # more than there is
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        written = sealed(content)
    finally:
        threading.stack_size(before)
    with checkpoint.load_memory(written) as read:
        assert torch.equal(read["optimizer"].tensor(), content["optimizer"])


@pytest.mark.parametrize("count", [10, 1 << 22])
def test_memory_that_is_too_small_stays_as_it_was(count):
    content = {"optimizer": torch.ones(count)}
    size = checkpoint.save_memory(None, content)
    room = bytearray(b"x" * (size + 5))
    with pytest.raises(ValueError, match=f"size must be {size} at least, got {size - 1}"):
        checkpoint.save_memory(memoryview(room)[: size - 1], content)
    assert room == b"x" * (size + 5)
    assert checkpoint.save_memory(room, content) == size
    assert room[size:] == b"xxxxx"
    with checkpoint.load_memory(room[:size]) as read:
        assert torch.equal(read["optimizer"].tensor(), content["optimizer"])
