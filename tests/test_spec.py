"""Specs are parsed, never evaluated."""

from __future__ import annotations

import ast
import contextlib
import gc
import math
import pathlib
import subprocess
import sys
import threading
import warnings
from collections import Counter

import pytest

import hosts
from optplug import spec
from optplug.parsing import parse_expression
from optplug.spec import Call, Name, SpecError


def test_a_call_comes_with_its_arguments():
    assert spec.parse("Adam(lr=1e-3, betas=(0.9, 0.99), amsgrad=True)") == Call(
        "Adam", (), {"lr": 1e-3, "betas": (0.9, 0.99), "amsgrad": True}
    )


def test_calls_nest_in_lists_and_arguments():
    parsed = spec.parse(" SequentialLR([ConstantLR(0.5), StepLR(step_size=3)], milestones=[-5]) ")
    assert parsed == Call(
        "SequentialLR",
        ([Call("ConstantLR", (0.5,)), Call("StepLR", (), {"step_size": 3})],),
        {"milestones": [-5]},
    )


def test_a_module_stands_before_a_colon():
    assert spec.parse("my_pkg.sub : Lion(lr=1)") == Call("Lion", (), {"lr": 1}, "my_pkg.sub")
    assert spec.parse("A(x={'a': 1}, y='b:c')").kwargs == {"x": {"a": 1}, "y": "b:c"}


def test_a_module_may_be_followed_by_colons():
    assert spec.parse("a.b:C(x={'a': 1}, y='d:e')") == Call("C", (), {"x": {"a": 1}, "y": "d:e"}, "a.b")


def test_modules_of_torch_and_what_a_caller_supplies_may_stand_before():
    assert spec.parse("x.y = optim.Adam(net.parameters(), lr=1)") == Call(
        "Adam", (spec.Supplied("net.parameters()"),), {"lr": 1}, "torch.optim"
    )
    assert spec.parse("lr_scheduler.StepLR(3)").module == "torch.optim.lr_scheduler"
    assert spec.parse("A(optimizer=self.optimizer)").kwargs == {"optimizer": spec.Supplied("self.optimizer")}
    assert spec.parse("A(x=true, y=[False, FALSE])").kwargs == {"x": True, "y": [False, False]}


def test_names_of_classes_and_dtypes_are_values_and_no_others():
    text = "p.q:A(SGD, b=c.d:B, e=[f:C(g=H)], i=torch.bfloat16)"
    found = spec.parse(text)
    assert found.args == (Name("SGD"),)
    assert found.kwargs == {
        "b": Name("B", "c.d"),
        "e": [Call("C", (), {"g": Name("H")}, "f")],
        "i": Name("bfloat16", "torch"),
    }
    assert repr(found) == text
    assert spec.parse("A(x=optim.SGD)") == spec.parse("A(x=torch.optim.SGD)")
    for refused in ("sgd", "x.SGD", "torch.float32.x", "a:b.C", "a:B:C", "torch", "a:B()()", "a.b:C[0]"):
        with pytest.raises(SpecError):
            spec.parse(f"A(x={refused})")


def test_colons_elsewhere_are_what_they_are_in_python():
    assert spec.parse('A(x="""it\'s (a:b)""", y=p\n : L, z={\'a\':1, 2 : q:M})') == Call(
        "A", (), {"x": "it's (a:b)", "y": Name("L", "p"), "z": {"a": 1, 2: Name("M", "q")}}
    )
    for text in ("A(x=lambda y: z)", "A(x=a[b:c])", "A(x={a:b})", "A(p:L=1)", "A(x=(y:=p:L))", "A(x:int=3)"):
        with pytest.raises(SpecError):
            spec.parse(text)


def test_a_call_is_shown_as_it_is_written():
    text = "somebodys.module:A(1, [B(x='y')], c=C(params))"
    assert repr(spec.parse(text)) == text


def test_infinity_and_none_are_values():
    assert spec.parse("A(x=-1e999, y=None)").kwargs == {"x": -math.inf, "y": None}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('false')",
        "Adam(lr=__import__('os').getpid())",
        "Adam(lr=a.b)",
        "Adam(lr=x)",
        "Adam(lr=[i for i in (1, 2)])",
        "Adam(lr=9**9**9)",
        "Adam(lr='a' * 9)",
        "Adam(lr=f'{1}')",
        "Adam(lr=lambda: 1)",
        "Adam(**{'lr': 1})",
        "Adam(*(1, 2))",
        "Adam(lr={**{}})",
        "Adam(lr={[]: 1})",
        "Adam(lr=1 if 1 else 2)",
        "Adam(lr=(y := 1))",
        "(Adam)(lr=1)(2)",
        "Adam(lr=1), SGD(lr=2)",
        "Adam(lr=1); SGD(lr=2)",
        "Adam(lr=" + "-" * 20000 + "1)",
        "Adam(lr=" + "9" * 20000 + ")",
        "A(" * 500 + ")" * 500,
        "Adam(lr=\x00)",
        "Adam(lr=1, lr=2)",
        "Adam(lr=" + "a." * 20000 + "b)",
        "a." * 20000 + "Adam(lr=1)",
        "lr=0.1",
        "a = b = Adam()",
        "Adam(1, params)",
        "Adam(params.x())",
    ],
)
def test_nothing_but_calls_and_literals_is_read(text):
    with pytest.raises(SpecError):
        spec.parse(text)


def test_odd_strings_and_numbers_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spec.parse(r"A(x='\d')").kwargs == {"x": r"\d"}
        with pytest.raises(SpecError):
            spec.parse("A(x=1if 1else 2)")


def test_a_spec_is_read_while_threads_of_the_host_parse():
    """Python 3.11.7's parser counts its depth for all threads together, and raises SystemError."""

    class Cyclic:
        def __init__(self):
            self.itself = self

        def __del__(self):  # run within a parse, by the garbage collector, and lets other threads go on
            for _ in range(50):
                pass

    def parse():
        while not done.is_set():
            Cyclic()
            with contextlib.suppress(SystemError):
                ast.parse(source)

    source, done = pathlib.Path(__file__).read_text(), threading.Event()
    text = f"SequentialLR([{', '.join(['StepLR(1)'] * 500)}], milestones=[2])"
    threads = [threading.Thread(target=parse) for _ in range(2)]
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    try:
        for t in threads:
            t.start()
        for _ in range(20):
            Cyclic()
            assert len(parse_expression(text).args[0].elts) == 500
    finally:
        done.set()
        for t in threads:
            t.join()
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)


def test_arguments_are_names_with_values():
    assert spec.arguments("lr=1e-4, betas=(0.9, 0.99)") == {"lr": 1e-4, "betas": (0.9, 0.99)}
    assert spec.arguments("") == {}
    assert spec.arguments("lr=1 # )") == {"lr": 1}
    for text in ("1", "lr", "lr=1)(b=2", "lr=1) + _(b=2", "lr=x"):
        with pytest.raises(SpecError):
            spec.arguments(text)


def test_a_shown_value_is_quoted_and_short():
    assert spec.shown("a\nb") == r"'a\nb'"
    assert len(spec.shown("x" * 10**6)) == 120


def test_a_value_is_shown_at_once_however_large_it_would_print():
    laugh: object = ("ha",) * 2
    deep: object = []
    for _ in range(40):
        laugh = laugh, laugh
    for _ in range(5000):
        deep = [deep]
    large = (laugh, {1: laugh}, Counter({1: laugh}), deep, {"x" * 10**6: 1}, "x" * 10**6, 1 << 10**6)
    for value in large:
        text = spec.shown(value)
        assert len(text) <= 120, text
        assert "..." in text or "bits" in text
    assert spec.shown({"a": (1, [2.5, None])}) == "{'a': (1, [2.5, None])}"
    assert spec.shown("a\nb\x1b") == r"'a\nb\x1b'"


# Every function that reads text, given every text that tries to be code, under an audit hook: Python
# tells it of each thing that is executed, imported, opened or started.
AUDITED = """
import sys
import threading
import optplug
from optplug import ctypes_api
lib = ctypes_api.load()
opts = [lib.opt_create(b"Adam()"), lib.opt_create(b"SGD()")]
texts = sys.stdin.read().split("\\0")
events = "exec", "import", "open", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork"
forms = b"%s", b"Adam(lr=%s)", b"StepLR(%s)", b"lr=%s", b"AveragedModel(%s)"
seen = []
def hook(event, arguments):
    # Tracebacks show lines of source; the parser of 3.13 looks for them in "<unknown>" and "<string>", too.
    source = event == "open" and str(arguments[0]).endswith((".py", "<unknown>", "<string>"))
    if event in events and not source:
        seen.append((event, arguments))
sys.addaudithook(hook)
import optplug.tools.doctor  # what is seen is seen
assert seen
del seen[:]
for text in texts:
    for form in forms:
        call = form % text.encode()
        statuses = [lib.opt_create(call), lib.opt_init(call)]
        for opt in opts:
            for function in (lib.opt_group, lib.opt_schedule, lib.opt_average):
                statuses.append(function(opt, call))
            statuses.append(lib.opt_set(opt, -1, call))
        assert all(status < 0 for status in statuses), (call, statuses)
        assert not seen, (call, seen)
"""

CODE = [
    "__import__('os').system('false')",
    "os.system('false')",
    "os:system('false')",
    "os:_exit(1)",
    "builtins:exec('1')",
    "torch.optim:Adam.step()",
    "torch.optim.lr_scheduler:LambdaLR(print)",
    "Adam.__init__.__globals__['os'].system('false')",
    "Adam.__subclasses__()",
    "Adam().__class__()",
    "__class__()",
    "__builtins__",
    "().__class__.__base__.__subclasses__()",
    "exec('1')",
    "eval('1')",
    "open('/etc/passwd')",
    "print(1)",
    "[x for x in (1,)]",
    "(x := 1)",
    "lambda: 1",
    "f'{1}'",
    "f'{__import__(\"os\").getpid()}'",
    "9**9**9",
    "'a' * 9**9",
    "1 + 1",
    "1 if 1 else 2",
    "x[0]",
    "*(1, 2)",
    "**{'lr': 1}",
    "`ls`",
    "1; import os",
    "1\nimport os",
    "1)\nprint(1)\n(",
    "yield 1",
    "await x",
    "@x",
    "get_ema_multi_avg_fn.__globals__",
    "torch.float32",
    "torch.float32.__class__",
    "torch.load",
    "SGD",
    "os:system",
    "[os:system]",
    "x=os:system",
    "x=os:system('false')",
    "{1: builtins:exec('1')}",
    "os:path:system",
]


def test_no_text_runs_code():
    done = subprocess.run(
        [*hosts.PYTHON, "-c", AUDITED],
        input="\0".join(CODE),
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
