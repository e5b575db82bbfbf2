"""Classes outside torch that are made of optimizers, models, dtypes, beside the same in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import wrappers
from optplug import _bridge, ctypes_api
from optplug.ctypes_api import Optimizer
from optplug.ctypes_library import Error
from somebodys import Dropping, Somebodys
from third_party_twins import drawn, same

lib = ctypes_api.load()
STATUSES = ctypes_api.statuses()
LAST, SAVED = 8, 3


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=['wrappers', 'somebodys']") == 0, lib.opt_error()
    yield
    assert lib.opt_init(b"third_party=False") == 0


def adam(ps, **more):
    return torch.optim.Adam(ps, lr=0.05, **more)


def sgd(ps):
    return torch.optim.SGD(ps, lr=0.05, momentum=0.9)


def module(ps):
    """A model with the names that the host gives."""
    made = torch.nn.Module()
    for i, p in enumerate(ps):
        made.register_parameter(f"w{i}", p)
    return made


#: By the spec: what makes the same in plain PyTorch.
CASES = {
    "wrappers:Slow(SGD(lr=0.05, momentum=0.9), k=3)": lambda ps: wrappers.Slow(sgd(ps), k=3),
    "wrappers:Slow(optimizer=torch.optim.Adam(lr=0.05), k=3)": lambda ps: wrappers.Slow(adam(ps), k=3),
    "wrappers:Slow(somebodys:Dropping(lr=0.05))": lambda ps: wrappers.Slow(Dropping(ps, lr=0.05)),
    "wrappers:Slow(wrappers:Slow(SGD(lr=0.05, momentum=0.9)), k=3)": lambda ps: wrappers.Slow(
        wrappers.Slow(sgd(ps)), k=3
    ),
    "wrappers:Slow(wrappers:Typed(kind=torch.bfloat16))": lambda ps: wrappers.Slow(
        wrappers.Typed(ps, kind=torch.bfloat16)
    ),
    "wrappers:Either(SGD(lr=0.05, momentum=0.9))": lambda ps: wrappers.Either(sgd(ps)),
    "wrappers:Either(k=3, lr=0.05)": lambda ps: wrappers.Either(ps, k=3, lr=0.05),
    "wrappers:Beside(SGD(lr=0.05, momentum=0.9))": lambda ps: wrappers.Beside(sgd(ps)),
    "wrappers:Beside(wrappers:Typed(), weight=0.25)": lambda ps: wrappers.Beside(wrappers.Typed(ps), 0.25),
    "wrappers:Modelled(lr=0.2)": lambda ps: wrappers.Modelled(module(ps), lr=0.2),
    "wrappers:Named(lr=0.02)": lambda ps: wrappers.Named(module(ps).named_parameters(), lr=0.02),
    "wrappers:Both(SGD(lr=0.05, momentum=0.9))": lambda ps: wrappers.Both(ps, sgd(ps), module(ps)),
    "wrappers:Late()": wrappers.Late,
    "wrappers:Central()": wrappers.Central,
    "wrappers:Typed(kind=torch.bfloat16)": lambda ps: wrappers.Typed(ps, kind=torch.bfloat16),
    "wrappers:Typed(kind=[torch.bfloat16])": lambda ps: wrappers.Typed(ps, kind=[torch.bfloat16]),
    "wrappers:Typed(other_kind=torch.float64)": lambda ps: wrappers.Typed(ps, kind=torch.float64),
}
#: Those that ask for gradients elsewhere.
CLOSURES = {
    "wrappers:Sharp(SGD, lr=0.05, momentum=0.9)": lambda ps: wrappers.Sharp(
        ps, torch.optim.SGD, lr=0.05, momentum=0.9
    ),
    "wrappers:Sharp(base_optimizer=somebodys:Somebodys, rho=0.1)": lambda ps: wrappers.Sharp(
        ps, Somebodys, rho=0.1
    ),
    "wrappers:Sharp(base_optimizer=optim.Adam(lr=0.05), rho=0.1)": lambda ps: wrappers.Sharp(
        ps, adam, rho=0.1
    ),
    "wrappers:Slow(wrappers:Sharp(SGD, lr=0.05))": lambda ps: wrappers.Slow(
        wrappers.Sharp(ps, torch.optim.SGD, lr=0.05)
    ),
    "wrappers:Unlike()": lambda ps: wrappers.Unlike(ps),
}
EVERY = CASES | CLOSURES


class Hosted:
    def __init__(self, spec, order="C", values=None):
        self.values = values or drawn(0, order)
        self.grads = [np.zeros_like(v) for v in self.values]
        self.opt = Optimizer(spec)
        for i, (value, grad) in enumerate(zip(self.values, self.grads, strict=True)):
            self.opt.bind(f"w{i}", value, grad)

    def fill(self, i: int) -> float:
        for grad, value, new in zip(self.grads, self.values, drawn(10 + i), strict=True):
            grad[...] = new + value
        return float(sum(np.abs(v).sum() for v in self.values))


class Plain:
    def __init__(self, make, order="C"):
        self.tensors = [torch.nn.Parameter(torch.from_numpy(v)) for v in drawn(0, order)]
        self.opt = make(self.tensors)

    def fill(self, i: int) -> torch.Tensor:
        for p, new in zip(self.tensors, drawn(10 + i), strict=True):
            p.grad = torch.empty_like(p).copy_(torch.from_numpy(new) + p.detach())
        return sum(p.abs().sum() for p in self.tensors)

    @property
    def values(self):
        return [p.detach().numpy() for p in self.tensors]


def step(twin, spec: str, i: int) -> None:
    twin.fill(i)
    if spec not in CLOSURES:
        twin.opt.step()
        return
    call = getattr(twin.opt, "step_closure", twin.opt.step)
    if isinstance(twin, Plain) and "Unlike" in spec:
        call(lambda: loss_of(twin, i))
    else:
        call(lambda: twin.fill(i + 100))


def loss_of(twin: Plain, i: int) -> torch.Tensor:
    """The gradients are here already: a loss whose backward() leaves them alone."""
    twin.fill(i + 100)
    return torch.zeros((), requires_grad=True)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("spec", EVERY)
def test_every_step_is_the_classs_own_and_goes_on_after_a_load(spec, order):
    ours, theirs = Hosted(spec, order), Plain(EVERY[spec], order)
    twins = [ours, theirs]
    for i in range(LAST):
        if i == SAVED:
            resumed = Hosted(spec, order, [v.copy(order="K") for v in ours.values])
            resumed.opt.load_memory(ours.opt.save_memory())
            twins.append(resumed)
        for twin in twins:
            step(twin, spec, i)
            assert same(twin.values, theirs.values) or twin is ours, i
        assert same(ours.values, theirs.values), i
    assert not same(ours.values, drawn(0))


@pytest.mark.parametrize("spec", EVERY)
def test_a_rate_that_is_set_is_the_wrapped_optimizers(spec):
    ours, theirs = Hosted(spec), Plain(EVERY[spec])
    for i in range(LAST):
        if i == SAVED:
            ours.opt.set(-1, "lr=0.02")
            assert ours.opt.get(-1, "lr") == 0.02
            for group in theirs.opt.param_groups:
                group["lr"] = 0.02
        step(ours, spec, i), step(theirs, spec, i)
        assert same(ours.values, theirs.values), i
    with pytest.raises(Error, match="no option 'rate': "):
        ours.opt.set(-1, "rate=1")


@pytest.mark.parametrize("spec", [s for s in EVERY if "Beside" not in s and "Unlike" not in s])
def test_schedules_are_torchs(spec):
    ours, theirs = Hosted(spec), Plain(EVERY[spec])
    ours.opt.schedule("StepLR(2, gamma=0.5)")
    scheduler = torch.optim.lr_scheduler.StepLR(theirs.opt, 2, gamma=0.5)
    for i in range(LAST):
        step(ours, spec, i), step(theirs, spec, i)
        ours.opt.schedule_step(), scheduler.step()
        assert same(ours.values, theirs.values), i


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.2}])
@pytest.mark.parametrize("name", ["Late", "LateTensor"])
def test_a_rate_that_the_first_step_makes_has_a_schedule_that_goes_on(name, arguments):
    spec = f"wrappers:{name}({', '.join(f'{k}={v}' for k, v in arguments.items())})"
    ours, theirs = Hosted(spec), Plain(lambda ps: getattr(wrappers, name)(ps, **arguments))
    ours.opt.schedule("ExponentialLR(0.9)")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(theirs.opt, 0.9)
    for i in range(LAST):
        if i == SAVED:
            content, values = ours.opt.save_memory(), [v.copy() for v in ours.values]
            ours = Hosted(spec, values=values)
            ours.opt.load_memory(content)
        for twin in (ours, theirs):
            step(twin, "", i)
        ours.opt.schedule_step(), scheduler.step()
        assert same(ours.values, theirs.values), i


def test_what_is_no_optimizer_of_torchs_has_no_schedule():
    ours = Hosted("wrappers:Beside(SGD())")
    with pytest.raises(
        Error, match=r"schedulers take a torch\.optim\.Optimizer, which Beside is not: set lr"
    ):
        ours.opt.schedule("StepLR(2)")


@pytest.mark.parametrize("spec", [s for s in CASES if ":Slow(" in s])
@pytest.mark.parametrize("stepped", [0, SAVED])
def test_a_step_that_fails_changes_nothing_of_what_is_wrapped(spec, stepped):
    ours, theirs = Hosted(spec), Plain(EVERY[spec])
    for i in range(stepped):
        step(ours, spec, i), step(theirs, spec, i)
    values = [v.copy() for v in ours.values]
    ours.fill(0)
    ours.grads[1][...] = np.nan
    with pytest.raises(Error) as e:
        ours.opt.step()
    assert str(e.value) == "PyTorch raised AssertionError"  # it says nothing itself
    assert same(ours.values, values)
    for i in range(stepped, LAST):
        step(ours, spec, i), step(theirs, spec, i)
        assert same(ours.values, theirs.values), i


@pytest.mark.parametrize("spec", EVERY)
def test_no_step_that_is_wrapped_runs_as_a_record_of_what_it_is_not(spec):
    ours, theirs = Hosted(spec), Plain(EVERY[spec])
    for i in range(4 * LAST):
        step(ours, spec, i), step(theirs, spec, i)
        assert same(ours.values, theirs.values), i
    assert _bridge.optimizer_of(ours.opt._handle).plan is None


@pytest.mark.parametrize("spec", ["wrappers:Slow(wrappers:Seldom())", "wrappers:Sharp(wrappers:Seldom)"])
def test_what_is_wrapped_draws_from_the_optimizers_own_stream(spec):
    torch.manual_seed(0)
    made = {
        "Slow": lambda ps: wrappers.Slow(wrappers.Seldom(ps)),
        "Sharp": lambda ps: wrappers.Sharp(ps, wrappers.Seldom),
    }[spec.partition(":")[2].partition("(")[0]]
    theirs, expected = Plain(made), []
    has_closure = "Sharp" in spec

    def go(twin, i):
        twin.fill(i)
        call = getattr(twin.opt, "step_closure", twin.opt.step) if has_closure else twin.opt.step
        call(*[lambda: twin.fill(i + 100)] * has_closure)

    for i in range(LAST):
        go(theirs, i)
        expected.append([v.copy() for v in theirs.values])
    torch.manual_seed(99)
    assert lib.opt_init(b"seed=0") == 0
    ours = Hosted(spec)
    for i in range(LAST):
        before = torch.get_rng_state()
        go(ours, i)
        assert torch.equal(torch.get_rng_state(), before)
        assert same(ours.values, expected[i]), i
        torch.rand(())


def test_groups_are_the_wrapped_optimizers():
    ours = Optimizer("wrappers:Slow(SGD(lr=0.05, momentum=0.9))")
    values, grads = drawn(0), [np.ones_like(v) for v in drawn(0)]
    ours.bind("w0", values[0], grads[0])
    ours.group("lr=0.01, nesterov=True")
    ours.bind("w1", values[1], grads[1])
    theirs = [torch.nn.Parameter(torch.from_numpy(v)) for v in drawn(0)]
    groups = [{"params": [theirs[0]]}, {"params": [theirs[1]], "lr": 0.01, "nesterov": True}]
    plain = wrappers.Slow(torch.optim.SGD(groups, lr=0.05, momentum=0.9))
    for _ in range(LAST):
        for p in theirs:
            p.grad = torch.ones_like(p)
        ours.step(), plain.step()
        assert same(values, [p.detach().numpy() for p in theirs])
    assert "\ngroup 1: " in ours.describe()
    assert "lr=0.01" in ours.describe()


@pytest.mark.parametrize(("name", "what"), [("Modelled", "model"), ("Named", "named_parameters")])
def test_a_class_that_takes_a_model_has_no_groups(name, what):
    opt = Optimizer(f"wrappers:{name}()")
    opt.group("lr=0.2")
    opt.bind("w0", *([np.ones(3, "f4")] * 1), np.ones(3, "f4"))
    with pytest.raises(
        Error, match=f"{name} takes its parameters as {what}, without groups: leave out opt_g"
    ):
        opt.group("lr=0.1")
    opt.step()
    assert opt.get(-1, "lr") == 0.2


def test_a_class_with_groups_of_its_own_is_described_and_set_by_them():
    ours = Hosted("wrappers:Modelled()")
    ours.opt.step()
    lines = ours.opt.describe().splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("parameter")] == [
        "parameter 'w0'",
        "parameter 'w1'",
    ]
    assert "group 1: decay=0.0, lr=0.1, momentum=0.9" in lines
    ours.opt.set(1, "lr=0.3")
    assert (ours.opt.get(0, "lr"), ours.opt.get(1, "lr")) == (0.1, 0.3)


def test_a_model_has_the_hosts_names_whatever_they_are():
    opt = Optimizer("wrappers:Modelled()")
    names = ["layer.0.weight", "", "a b", "forward", "layer", "ä"]
    arrays = [(np.ones(2, "f4"), np.ones(2, "f4")) for _ in names]
    for name, pair in zip(names, arrays, strict=True):
        if name:
            opt.bind(name, *pair)
    opt.step()
    model = _bridge.optimizer_of(opt._handle).run.built.model
    assert [name for name, _ in model.named_parameters()] == [n for n in names if n]


@pytest.mark.parametrize("name", ["Slow", "Beside"])
def test_a_checkpoint_is_of_what_is_wrapped_as_well(name):
    ours, other = Hosted(f"wrappers:{name}(SGD())"), Hosted(f"wrappers:{name}(Adam())")
    ours.opt.step()
    with pytest.raises(Error, match=rf"the file is of '?{name}\(SGD\)'?, this optimizer is {name}\(Adam\)"):
        other.opt.load_memory(ours.opt.save_memory())


def test_a_checkpoint_goes_by_names_where_the_class_goes_by_order():
    ours = Hosted("wrappers:Slow(SGD(lr=0.05, momentum=0.9))")
    shapes = [(4,), (4,)]
    arrays = {f"x{i}": (np.full(s, i + 1.0, "f4"), np.full(s, i + 0.5, "f4")) for i, s in enumerate(shapes)}
    first = Optimizer("wrappers:Slow(SGD(lr=0.05, momentum=0.9))")
    for name, pair in arrays.items():
        first.bind(name, *pair)
    for _ in range(3):
        first.step()
    copies = {name: tuple(a.copy() for a in pair) for name, pair in arrays.items()}
    later = Optimizer("wrappers:Slow(SGD(lr=0.05, momentum=0.9))")
    for name in reversed(copies):
        later.bind(name, *copies[name])
    later.load_memory(first.save_memory())
    again = Optimizer("wrappers:Slow(SGD(lr=0.05, momentum=0.9))")
    third = {name: tuple(a.copy() for a in pair) for name, pair in arrays.items()}
    for name in third:
        again.bind(name, *third[name])
    again.load_memory(later.save_memory())
    for _ in range(3):
        first.step(), later.step(), again.step()
    assert all(same(copies[name], arrays[name]) and same(third[name], arrays[name]) for name in arrays)
    assert ours.opt.save_memory()


def test_a_checkpoint_without_a_parameter_is_refused():
    first, later = (Optimizer("wrappers:Slow(SGD(lr=0.05))") for _ in range(2))
    for opt, names in ((first, "ab"), (later, "ac")):
        for name in names:
            opt.bind(name, np.ones(2, "f4"), np.ones(2, "f4"))
        opt.step()
    with pytest.raises(Error, match="it has no parameter 'c': there are 'a', 'b'"):
        later.load_memory(first.save_memory())


@pytest.mark.parametrize("spec", [s for s in CASES if ":Slow(" in s])
def test_what_plain_pytorch_has_saved_is_gone_on_from(spec, tmp_path):
    ours, theirs = Hosted(spec), Plain(EVERY[spec])
    for i in range(SAVED):
        step(ours, spec, i), step(theirs, spec, i)
    torch.save({"optimizer": theirs.opt.state_dict()}, tmp_path / "plain.pt")
    later = Hosted(spec, values=ours.values)
    later.opt.load(tmp_path / "plain.pt")
    for i in range(SAVED, LAST):
        step(later, spec, i), step(theirs, spec, i)
        assert same(later.values, theirs.values), i


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "wrappers:Slow(SGD)",
            r"optimizer must be an optimizer, SGD\(...\) with its arguments, got the class SGD",
        ),
        (
            "wrappers:Slow(SGD(lr=0.1), lr=0.5)",
            r"lr is an argument of SGD: write it inside optimizer=SGD\(...\)",
        ),
        ("wrappers:Slow(Foo())", r"optimizer=Foo\(\): no optimizer 'Foo'"),
        ("wrappers:Slow(SGD(rate=1))", r"optimizer=SGD\(rate=1\): no argument of SGD 'rate'"),
        ("wrappers:Slow(SGD(lr=-1.0))", "Invalid learning rate: -1.0"),
        ("wrappers:Slow(os:system())", r"module 'os' is in no package that may be imported"),
        ("wrappers:Slow()", "missing a required argument: 'optimizer'"),
        (
            "wrappers:Slow(SGD(), k=print())",
            r"k must be a literal \(a number, True, a tuple, ...\), got print\(\)",
        ),
        ("wrappers:Slow(SGD(), k=SGD)", "k must be a literal"),
        ("wrappers:Sharp(base_optimizer=os:path)", "module 'os' is in no package that may be imported"),
        ("wrappers:Sharp(base_optimizer=torch)", "'torch' is a name whose value is unknown here"),
        ("wrappers:Typed(kind=torch.float33)", "no dtype of torch's 'float33': did you mean"),
        ("wrappers:Typed(kind=torch.load)", "no dtype of torch's 'load'"),
        ("wrappers:Typed(kind=torch.float32.__class__)", "is a name whose value is unknown here"),
        ("wrappers:Typed(kind=[SGD])", "kind must be a literal"),
        ("wrappers:Typed(kind=[torch.load])", "no dtype of torch's 'load'"),
        ("wrappers:Typed(params=3)", "Typed gets params from optplug: leave it out"),
        ("Adam(foreach=print())", r"foreach must be True, False or None, got print\(\)"),
        ("Adam(lr=SGD)", "lr must be a number, got SGD"),
        ("SGD(lr=torch.float32)", "lr must be a number, got torch.float32"),
        ("Adam(lr=SGD())", r"lr must be a number, got SGD\(\)"),
    ],
)
def test_what_stands_for_nothing_is_refused(spec, words):
    with pytest.raises(Error, match=words) as e:
        Optimizer(spec)
    assert e.value.status == STATUSES["OPT_EINVAL"]


def test_nothing_is_imported_that_is_not_allowed_within_an_argument(tmp_path, monkeypatch):
    (tmp_path / "trap2.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("trap2:Lion", "trap2:Lion()", "trap2.x:Lion(trap2:Y)"):
        with pytest.raises(Error, match="in no package that may be imported"):
            Optimizer(f"wrappers:Sharp(base_optimizer={value})")
    ours = Optimizer("wrappers:Typed()")
    with pytest.raises(Error, match="in no package that may be imported"):
        ours.group("optimizer=trap2:Lion")


def test_options_of_groups_are_values_dtypes_or_optimizers_and_nothing_else():
    ours = Optimizer("wrappers:Typed()")
    for text in ("x=print()", "x=SGD", "x=[SGD]", "optimizer=[SGD()]", "x=torch.load"):
        with pytest.raises(Error, match=r"must be a literal|no dtype of torch's 'load'"):
            ours.group(text)
    with pytest.warns(UserWarning, match="nothing in wrappers mentions it"):
        ours.group("state_type=torch.float64")


def test_a_wrapper_that_hides_the_weights_to_evaluate_is_warned_of():
    words = (
        r"Slow has no train\(\) and eval\(\), which the ScheduleFree in it has, so the weights to evaluate"
    )
    with pytest.warns(UserWarning, match=words):
        ours = Optimizer("wrappers:Slow(somebodys:ScheduleFree())")
    ours.bind("w", np.ones(2, "f4"), np.ones(2, "f4"))
    ours.step()  # it is in training mode


def test_a_description_names_the_class_with_its_module_and_what_it_wraps():
    for spec, called in {
        "wrappers:Slow(SGD(lr=0.1))": "wrappers:Slow(SGD)",
        "wrappers:Sharp(somebodys:Somebodys)": "wrappers:Sharp(Somebodys)",
        "wrappers:Typed()": "wrappers:Typed",
        "torch.optim.Adam()": "Adam",
    }.items():
        assert f"optimizer: {called}\n" in Optimizer(spec).describe()
