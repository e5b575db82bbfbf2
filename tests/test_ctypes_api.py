"""The C API through ctypes, with numpy's arrays; the bare functions are what the other tests call."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import re
import textwrap

import numpy as np
import pytest
import torch

import hosts
from optplug import ctypes_api
from optplug.ctypes_api import Error, Optimizer

HEADER = (hosts.PROJECT / "include" / "optplug.h").read_text()


def sgd(**arrays):
    opt = Optimizer("SGD(lr=0.5)")
    for name, array in arrays.items():
        opt.bind(name, array, np.full_like(array, 2))
    return opt


def test_every_function_has_as_many_types_as_the_header_gives_it_parameters():
    library = ctypes_api.load()
    declared = re.findall(
        r"^(?:int|int64_t|const char \*) ?(opt(?:plug)?_\w+)\((.*?)\);", HEADER, re.M | re.S
    )
    assert len(declared) > 60
    for name, parameters in declared:
        expected = 0 if parameters == "void" else parameters.count(",") + 1
        assert len(getattr(library, name).argtypes) == expected, name
    assert library.opt_save_memory.restype is ctypes.c_int64
    assert library.opt_error.restype is ctypes.c_char_p


def test_the_statuses_are_the_headers():
    assert ctypes_api.statuses()["OPT_EIO"] == -8
    assert len(ctypes_api.statuses()) == HEADER.count(" = ", HEADER.index("enum {"), HEADER.index("};"))


def test_bare_functions_take_numpys_arrays_and_lists():
    library = ctypes_api.load()
    w, dw, loss = np.ones((2, 3), order="F"), np.full((2, 3), 2.0, order="F"), np.zeros(1)
    opt = library.opt_create(b"SGD(lr=0.5)")
    assert library.opt_bind_nd(opt, b"w", b"float64", b"cpu", 2, [2, 3], w, [1, 2], dw, np.array([1, 2])) == 0
    assert library.opt_step(opt) == 0
    assert not w.any()
    assert library.opt_get(opt, 0, b"lr", loss) == 0
    assert loss[0] == 0.5
    with pytest.raises(ctypes.ArgumentError):
        library.opt_get(opt, 0, b"lr", np.zeros(1, np.float32))
    assert library.opt_free(opt) == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_arrays_of_any_dtype_and_layout_are_stepped_in_place(dtype):
    whole = np.ones((4, 6), dtype)
    opt = sgd(scalar=np.ones((), dtype), inside=whole[1:3, 1:5], fortran=np.ones((2, 3), dtype, order="F"))
    opt.step()
    assert whole.sum() == 24 - 8
    assert "inside': group 0, cpu, " + dtype in opt.describe()
    assert "strides (6, 1)" in opt.describe()


def test_bfloat16_comes_as_bits():
    w, dw = (torch.full((4,), x, dtype=torch.bfloat16).view(torch.uint16).numpy() for x in (1, 2))
    opt = Optimizer("SGD(lr=0.5)")
    opt.bind("w", w, dw, "bfloat16")
    opt.step()
    assert not w.any()


def test_the_arrays_live_as_long_as_the_optimizer_has_them():
    w = np.ones(1000)
    opt = sgd(w=w)  # whose gradient nobody else has
    gc.collect()
    np.full(1000, 5.0)
    opt.step()
    assert not w.any()


def test_closures_return_the_loss_and_may_raise():
    x, dx = np.array([3.0]), np.empty(1)
    opt = Optimizer("LBFGS(lr=0.5, max_iter=20)")
    opt.bind("x", x, dx)

    def closure():
        dx[:] = 2 * x
        return float(x[0] ** 2)

    assert opt.step_closure(closure) == 9
    assert abs(x[0]) < 1e-2
    x[:], loss = 3, 0.0
    while opt.iterate(loss):
        loss = closure()
    assert abs(x[0]) < 1e-2
    before = x.copy()
    with pytest.raises(ZeroDivisionError):
        opt.step_closure(lambda: 1 / 0)
    assert x == before
    assert opt.check_gradient(closure) < 1e-6
    with pytest.raises(Error, match="the gradient of parameter 'x' is half the derivative"):
        opt.check_gradient(lambda: 2 * closure())
    assert x == before


def test_groups_schedules_and_hyperparameters():
    a, b = np.zeros(1), np.zeros(1)
    opt = Optimizer("SGD(lr=1)")
    opt.bind("a", a, np.ones(1))
    opt.group("lr=0.5")
    opt.bind("b", b, np.ones(1))
    factors = iter([1, 1, 0.5, 0.25])
    opt.schedule("LambdaLR()", lambda _epoch, _group: next(factors))
    opt.step()
    opt.schedule_step()
    assert (a[0], b[0], opt.get(0, "lr"), opt.get(1, "lr")) == (-1, -0.5, 0.5, 0.125)
    with pytest.raises(StopIteration):
        opt.schedule_step()  # next() has no more
    opt.set(-1, "lr=2")
    assert opt.get(-1, "lr") == 2
    opt.set_value(1, "lr", 4)
    assert (opt.get(0, "lr"), opt.get(1, "lr")) == (2, 4)
    opt.set_value(-1, "lr", 2)
    opt.schedule("ReduceLROnPlateau(factor=0.5, patience=0)")
    opt.schedule_step(1.0)
    opt.schedule_step(1.0)
    assert opt.get(-1, "lr") == 1
    opt.schedule(None)
    with pytest.raises(Error, match="there is no scheduler"):
        opt.schedule_step()
    assert opt.get(-1, "lr") == 1


def test_gradients_averages_and_checkpoints(tmp_path):
    x, dx = np.zeros(2), np.array([3.0, 4.0])
    opt = Optimizer("SGD(lr=1, momentum=0.5)")
    opt.bind("x", x, dx)
    opt.average("AveragedModel()")
    assert opt.clip_grad_norm(10) == 5
    opt.clip_grad_value(3)
    assert dx[1] == 3
    opt.step()
    opt.save(tmp_path / "state of x.pt")
    content = opt.save_memory()
    opt.step()
    assert x[0] == -7.5
    assert (opt.average_get("x") == -5.25).all()
    opt.average_swap()
    assert x[0] == -5.25
    opt.average_swap()
    with pytest.raises(Error, match="method 'eval': SGD has no train"):
        opt.call("eval")
    for load in (lambda: opt.load(tmp_path / "state of x.pt"), lambda: opt.load_memory(content)):
        x[:] = -3
        load()
        opt.step()
        assert x[0] == -7.5
    opt.checkpoint("parameters=True")
    content = opt.save_memory()
    x[:] = 0
    opt.load_memory(content)
    assert x[0] == -7.5
    opt.attribute("time", "12.5 h \N{EURO SIGN}")
    opt.attribute("gone", "")
    assert (opt.attribute_get("time"), opt.attribute_get("gone")) == ("12.5 h \N{EURO SIGN}", "")
    opt.attribute("gone", None)
    opt.attribute("time", None)
    with pytest.raises(Error, match=r"no attribute 'gone': there are none$"):
        opt.attribute_get("gone")
    assert opt.get(0, "step") == 2
    opt.zero_grad()
    assert not dx.any()


def test_sparse_rows_are_stepped():
    table, count, indices, rows = np.zeros((4, 2)), np.array([1]), np.array([3, 0]), np.ones((2, 2))
    opt = Optimizer("SGD(lr=0.5)")
    opt.bind_sparse("table", table, count, indices, rows)
    opt.step()
    assert (table == [[0, 0], [0, 0], [0, 0], [-0.5, -0.5]]).all()
    with pytest.raises(ValueError, match="indices must be int64 in C order, got int32"):
        opt.bind_sparse("table", table, count, indices.astype("int32"), rows)
    with pytest.raises(ValueError, match=r"are not \(rows, columns\)"):
        opt.bind_sparse("table", table, count, indices, rows[:1])


class OnGpu:
    """What numpy's arrays would be on a GPU; this memory is of the CPU."""

    def __init__(self, array, **changes):
        is_plain = array.flags.c_contiguous
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            "strides": None if is_plain else array.strides,
            "stream": 1,
        } | changes


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<c8", "<c16"])
def test_arrays_of_a_gpu_say_where_they_are(dtype):
    m, dm = np.ones((4, 3), dtype), np.full((2, 3), 2, dtype, order="F")
    with Optimizer("SGD(lr=0.5)") as opt:
        opt.bind("m", OnGpu(m[::2]), OnGpu(dm), device="cpu")  # which is a device, too
        opt.average("AveragedModel()")
        opt.step()
        assert not m[::2].any()
        assert (m[1::2] == 1).all()
        average = opt.average_get("m")
        assert (average.shape, average.dtype.str) == ((2, 3), dtype)
        with pytest.raises(Error, match=r"no device 'cuda'|memory of the CPU, not of cuda"):
            opt.bind("m", OnGpu(m[::2]), OnGpu(dm))
        with pytest.raises(Error, match="no device 'cuda:99'"):
            opt.bind("m", OnGpu(m[::2]), dm, device="cuda:99")
        with pytest.raises(TypeError, match="got a read-only array"):
            opt.bind("m", OnGpu(m[::2], data=(m.ctypes.data, True)), OnGpu(dm))


def test_memory_is_bound_by_addresses():
    w, dw = (torch.full((2, 3), x, dtype=torch.bfloat16) for x in (1, 2))
    row, of_row = torch.ones(3, dtype=torch.bfloat16), torch.full([3], 2, dtype=torch.bfloat16)
    with Optimizer("SGD(lr=0.5)") as opt:
        opt.bind_device("w", "bfloat16", "cpu", w.shape, w.data_ptr(), dw.data_ptr())
        opt.bind_device("row", "bfloat16", "cpu", [3], row.data_ptr(), of_row.data_ptr(), [1], (1,))
        opt.bind_device("none", "float32", "cpu", [0], 0, 0)
        opt.average("AveragedModel()")
        opt.step()
        assert not w.any()
        assert not row.any()
        assert opt.average_get("w").dtype == np.uint16
        with pytest.raises(KeyError):
            opt.average_get("v")
        with pytest.raises(ValueError, match="1 strides for 2 dimensions"):
            opt.bind_device("w", "bfloat16", "cpu", w.shape, w.data_ptr(), dw.data_ptr(), [1])
        with pytest.raises(Error, match="no device 'cuda:99'"):
            opt.bind_device("w", "bfloat16", "cuda:99", w.shape, w.data_ptr(), dw.data_ptr())


def test_gradients_are_divided_by_the_scale():
    x, found_inf = np.ones(1), np.zeros(1, np.float32)
    with sgd(x=x) as opt:
        opt.grad_scale(np.full((), 2, np.float32), OnGpu(found_inf))  # which nobody else has
        gc.collect()
        np.full((), 5, np.float32)
        opt.step()
        assert x == 0.5
        found_inf[:] = 1
        opt.step()
        assert x == 0.5
        found_inf[:] = 0
        opt.grad_scale(None, found_inf.ctypes.data)
        opt.step()
        assert x < 0.5
        opt.grad_scale(None)
        with pytest.raises(Error, match=r"scale is at address .* which is not aligned to 4 bytes"):
            opt.grad_scale(found_inf.ctypes.data + 1)
        with pytest.raises(ValueError, match=r"scale must be one float32, got float64 of shape \(1,\)"):
            opt.grad_scale(x)
        with pytest.raises(ValueError, match=r"found_inf must be one float32, got float32 of shape \(2,\)"):
            opt.grad_scale(None, np.zeros(2, np.float32))
        with pytest.raises(TypeError, match="scale must be an array or an address, got float"):
            opt.grad_scale(2.0)


def test_streams_are_for_gpus():
    with sgd(x=np.ones(1)) as opt:
        opt.stream(None)
        opt.stream(0)
        with pytest.raises(Error, match="stream 0x7f00: no parameter is on a GPU"):
            opt.stream(0x7F00)


def test_failures_are_errors_with_status_message_and_traceback():
    with pytest.raises(Error, match="did you mean Adam") as caught:
        Optimizer("Adm()")
    assert caught.value.status == ctypes_api.statuses()["OPT_EINVAL"]
    with pytest.raises(Error) as caught:
        Optimizer("Adam(lr=-1)")
    assert "Invalid learning rate" in caught.value.traceback
    with sgd() as opt, pytest.raises(Error, match="bind"):
        opt.step()
    for use in (opt.step, opt.free, opt.describe):
        with pytest.raises(Error, match="is not an optimizer"):
            use()
    with pytest.raises(Error, match="num_threads"):
        ctypes_api.init("num_threads=0")
    with pytest.raises(Error, match="optimisers"):
        ctypes_api.listing("optimisers")


def test_a_text_that_is_not_there_has_the_status_of_its_own_failure():
    code = """
        import sys
        sys.modules["torch"] = None  # so that no start succeeds
        from optplug import ctypes_api
        try:
            ctypes_api.listing("optimizers")
        except ctypes_api.Error as error:
            print(error.status)
    """
    done = hosts.run(*hosts.PYTHON, "-c", textwrap.dedent(code))
    assert int(done.stdout) == ctypes_api.statuses()["OPT_ESTART"]


@pytest.mark.parametrize(
    ("data", "grad", "error", "words"),
    [
        ([1.0], np.ones(1), TypeError, "data must be a writable numpy or GPU array, got list"),
        (
            np.ones(1),
            np.broadcast_to(1.0, 1),
            TypeError,
            "writable numpy or GPU array, got a read-only array",
        ),
        (np.ones(2), np.ones(3), ValueError, r"of shape \(2,\), grad float64 of shape \(3,\)"),
        (np.ones(2), np.ones(2, "f"), ValueError, "data is float64 of .*, grad float32"),
        (np.ones(2, ">f8"), np.ones(2, ">f8"), ValueError, "data is >f8, not in native byte order"),
        (np.ones(2, int), np.ones(2, int), Error, "does not step integers"),
        (np.ones(2)[::-1], np.ones(2), Error, "must not be negative"),
        (np.ones(2, "d,f")["f0"], np.ones(2), ValueError, "are not multiples of its 8-byte values"),
    ],
)
def test_arrays_that_cannot_be_bound_are_refused(data, grad, error, words):
    with sgd(x=np.ones(1)) as opt:
        with pytest.raises(error, match=words):
            opt.bind("w", data, grad)
        opt.step()


def test_the_library_tells_of_itself():
    ctypes_api.init()
    assert "AdamW" in ctypes_api.listing("optimizers")
    assert "torch" in ctypes_api.describe()
    assert ctypes_api.warning() == ""


def test_paths_of_every_kind_name_the_file_that_python_means(tmp_path):
    opt = sgd(w=np.ones(3))
    opt.step()
    names = ["text", tmp_path / "path", os.fsencode(tmp_path / "bytes"), tmp_path / os.fsdecode(b"caf\xe9")]
    for name in names:
        path = tmp_path / name if isinstance(name, str) else name
        opt.save(path)
        opt.load(path)
    assert len(list(tmp_path.iterdir())) == len(names)


def test_text_with_a_zero_byte_is_refused(tmp_path):
    opt = sgd(w=np.ones(3))
    with pytest.raises(ctypes.ArgumentError, match="contains a zero byte"):
        opt.save(tmp_path / "a\0b")
    with pytest.raises(ctypes.ArgumentError, match="contains a zero byte"):
        opt.bind("a\0b", np.ones(3), np.ones(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda _: Optimizer(3), "spec must be text, got 3"),
        (lambda _: ctypes_api.init(None), "options must be text, got None"),
        (lambda opt: opt.set(0, {"lr": 1}), "options must be text, got {'lr': 1}"),
        (lambda opt: opt.get(0, b"lr"), "name must be text, got b'lr'"),
        (lambda opt: opt.set_value(0, b"lr", 1), "name must be text, got b'lr'"),
        (lambda opt: opt.bind(0, np.ones(1), np.ones(1)), "name must be text, got 0"),
        (lambda opt: opt.attribute("time", 1.5), "text must be text, got 1.5"),
        (lambda opt: opt.save(3), "expected str, bytes or os.PathLike object, not int"),
        (lambda opt: opt.step_closure(lambda: None), "the function returned None: it must return a number"),
    ],
)
def test_what_is_no_text_or_no_number_is_named(call, words):
    opt = sgd(w=np.ones(3))
    with pytest.raises(TypeError, match=re.escape(words)):
        call(opt)


def test_an_optimizer_that_a_log_keeps_until_the_end_is_silent():
    script = """
        from optplug import ctypes_api
        ctypes_api.log(lambda level, line: None)
        opt = ctypes_api.Optimizer("SGD()")
    """
    hosts.run(*hosts.PYTHON, "-c", textwrap.dedent(script))


def test_a_rate_that_is_no_number_is_got_as_it_is():
    opt = sgd(w=np.ones(3))
    opt.schedule("LambdaLR()", lambda _epoch, _group: math.nan)
    assert math.isnan(opt.get(0, "lr"))
    assert math.isnan(opt.get(-1, "lr"))
