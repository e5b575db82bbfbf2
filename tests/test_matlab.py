"""What MATLAB's loadlibrary will find, tried without MATLAB: the header, the prototype file, the thunks."""

from __future__ import annotations

import ctypes
import pathlib
import re
import struct

import cffi
import pytest
import torch

import hosts
import optplug

HEADER = (hosts.PROJECT / "include" / "optplug.h").read_text()
FOLDER = pathlib.Path(optplug.matlabdir())
PROTOTYPE = (FOLDER / "liboptplug_proto.m").read_text()
PACKAGE = hosts.PROJECT / "bindings" / "matlab" / "+optplug"

#: Functions that take one of the host's, which MATLAB has none of.
WITH_CALLBACK = {
    f"{prefix}_{name}"
    for prefix in ("opt", "optplug")
    for name in ("distribute", "step_closure", "check_gradient", "schedule_callback", "log")
}

#: C's types by MATLAB's names, as loadlibrary's documentation has them.
TYPES = {
    "int": "int32",
    "int64_t": "int64",
    "double": "double",
    "char *": "cstring",
    "void *": "voidPtr",
    "double *": "doublePtr",
    "float *": "singlePtr",
    "int64_t *": "int64Ptr",
}


# ---- the header ----


def broken_rules(header: str) -> list[str]:
    """Return the rules of loadlibrary's documentation that a header breaks."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    in_cpp = "".join(re.findall(r"^#ifdef __cplusplus\n(.*?)^#endif", text, re.S | re.M))
    c = re.sub(r"^#ifdef __cplusplus\n.*?^#endif", "", text, flags=re.S | re.M)
    c = re.sub(r"^#.*$", "", c, flags=re.M)
    declared = re.findall(r"\w+(?=\()|\w+(?=\s*[,;)=\[])", c)
    rules = {
        'extern "C" is for C++ alone': in_cpp.count('extern "C"') == 1 and 'extern "C"' not in c,
        "no attributes": not re.search(r"__attribute__|__declspec|\[\[", c),
        "no unions and structs": not re.search(r"\b(union|struct)\b", c),
        "no bit fields": not re.search(r"\w\s*:\s*\d", c),
        "no variable number of arguments": "..." not in c,
        "no names that begin with an underscore": not any(name.startswith("_") for name in declared),
        "void for no arguments": not re.search(r"\(\s*\)", c),
        "no function types among arguments": not re.search(r"\w\([^()]*\(\s*\*", c),
        "no code": not re.search(r"\)\s*\{", c),
        "no data": not re.search(r"^\s*extern\s+\w", c, re.M),
        "known types": all(
            re.sub(r"^const (.*?) ?\*", r"\1 *", f"const {kind} {star}".strip()).removeprefix("const ")
            in TYPES
            or re.fullmatch("opt(plug)?_(callback|collective|log_function)", kind)
            for arguments in re.findall(r"\bopt(?:plug)?_\w+\(([^()]*)\)", c)
            for kind, star in re.findall(r"(?:const )?(\w+) (\*?)\w+(?:,|$)", arguments)
        ),
    }
    return [rule for rule, holds in rules.items() if not holds]


def test_the_header_keeps_loadlibrarys_rules():
    assert broken_rules(HEADER) == []


@pytest.mark.parametrize(
    ("declaration", "rule"),
    [
        ('extern "C" int opt_x(int opt);', 'extern "C" is for C++ alone'),
        ("int opt_x(int opt) __attribute__((pure));", "no attributes"),
        ("union opt_u { int i; };", "no unions and structs"),
        ("struct opt_s { int i; };", "no unions and structs"),
        ("struct opt_s { int i : 3; };", "no bit fields"),
        ("int opt_x(const char *format, ...);", "no variable number of arguments"),
        ("int _opt_x(int opt);", "no names that begin with an underscore"),
        ("int opt_x(int _opt);", "no names that begin with an underscore"),
        ("int opt_x();", "void for no arguments"),
        ("int opt_x(int opt, int (*f)(int a, int b));", "no function types among arguments"),
        ("static int opt_x(int opt) { return opt; }", "no code"),
        ("extern int opt_x;", "no data"),
        ("int opt_x(int opt, size_t n);", "known types"),
        ("int opt_x(int opt, const long *n);", "known types"),
    ],
)
def test_each_of_the_rules_can_be_broken(declaration, rule):
    broken = HEADER.replace("/* ---- the library itself", f"{declaration}\n/* ---- the library itself")
    assert rule in broken_rules(broken)


# ---- the prototype file ----


def parsed_header() -> tuple[cffi.FFI, dict[str, cffi.FFI.CType]]:
    """Return each function's type by its name, as pycparser reads the header."""
    ffi = cffi.FFI()
    text = re.sub(r"^#ifdef __cplusplus\n.*?^#endif", "", HEADER, flags=re.S | re.M)
    ffi.cdef(re.sub(r"^#.*$", "", text, flags=re.M))
    library = ffi.dlopen(optplug.library())
    return ffi, {
        name: ffi.typeof(getattr(library, name))
        for name in dir(library)
        if name.startswith(("opt_", "optplug_")) and name not in WITH_CALLBACK
    }


FFI, FUNCTIONS = parsed_header()
ENTRIES = {
    name: (thunk, left.strip("'[]"), re.findall(r"'(\w+)'", right))
    for thunk, name, left, right in re.findall(
        r"^fcns\.thunkname\{fcnNum\}='(\w+)';fcns\.name\{fcnNum\}='(\w+)'; fcns\.calltype\{fcnNum\}='Thunk'; "
        r"fcns\.LHS\{fcnNum\}=('\w+'|\[\]); fcns\.RHS\{fcnNum\}=(\{.*\}|\[\]);fcnNum=fcnNum\+1;$",
        PROTOTYPE,
        re.M,
    )
}


def test_the_prototype_file_has_all_functions_but_those_with_callbacks():
    assert set(ENTRIES) == set(FUNCTIONS) | {"optplug_copy"}
    assert PROTOTYPE.count("fcnNum=fcnNum+1;") == len(ENTRIES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_prototype_has_the_headers_types(name):
    _, left, right = ENTRIES[name]
    kind = FUNCTIONS[name]
    assert left == TYPES[kind.result.cname]
    assert right == [TYPES[argument.cname] for argument in kind.args]


def test_the_thunk_library_lies_beside_the_prototype_file():
    name = re.search(r"^ThunkLibName=fullfile\(MfilePath,'(\w+)'\);$", PROTOTYPE, re.M)[1]
    assert [path.stem for path in FOLDER.glob("liboptplug_thunk_*")] == [name]


# ---- the thunks, called as MATLAB calls them ----

[THUNKS] = [ctypes.CDLL(str(path)) for path in FOLDER.glob("liboptplug_thunk_*")]
RESULTS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "cstring": ctypes.c_void_p, "": None}


def call(name: str, address: int, *arguments: float) -> float:
    """Call a function at an address through its thunk: arguments go into slots of eight bytes."""
    thunk, left, right = ENTRIES[name]
    formats = {"int32": "=i4s", "int64": "=q", "double": "=d"}
    stack = b"".join(
        struct.pack(formats.get(kind, "=Q"), value, *([b"\xee" * 4] if kind == "int32" else []))
        for kind, value in zip(right, arguments, strict=True)
    )
    function = getattr(THUNKS, thunk)
    function.restype = RESULTS[left]
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    return function(address, stack, len(stack))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_thunk_hands_on_all_arguments_and_the_result(name):
    kind = FUNCTIONS[name]
    numbers = {"int": lambda i: -3 - i, "int64_t": lambda i: 2**40 + i, "double": lambda i: 0.1 + i}
    sent = [numbers.get(a.cname, lambda i: 0x7F0012340000 + i)(i) for i, a in enumerate(kind.args)]
    back = {"int": -7, "int64_t": -(2**40)}.get(kind.result.cname, 0x7F0056780000)
    received = []

    def receive(*values):
        received.extend(int(FFI.cast("intptr_t", v)) if isinstance(v, FFI.CData) else v for v in values)
        return FFI.cast(kind.result, back)

    callback = FFI.callback(FFI.getctype(kind).replace("(*)", ""), receive)
    assert call(name, int(FFI.cast("intptr_t", callback)), *sent) == back
    assert received == sent


def test_a_run_through_the_thunks_is_pytorchs():
    """MATLAB loads the thunks alone: the library's functions are found through them."""

    def matlab(name: str, *arguments: float) -> float:
        address = ctypes.cast(getattr(THUNKS, name), ctypes.c_void_p).value
        return call(name, address, *arguments)

    spec, name, dtype = (ctypes.create_string_buffer(text) for text in (b"Adam(lr=0.1)", b"w", b"float64"))
    opt = matlab("opt_create", ctypes.addressof(spec))
    assert matlab("opt_bind", opt, ctypes.addressof(name), ctypes.addressof(dtype), 3, 0, 0) == 0
    held = (ctypes.c_double * 3)()
    for i in range(50):
        # arrays of this call alone, as MATLAB's are
        lent = (ctypes.c_double * 3)(*(held if i else (5, -3, 2)))
        grad = (ctypes.c_double * 3)(*(2 * x for x in lent))
        assert matlab("opt_step_f64", opt, ctypes.addressof(lent), ctypes.addressof(grad)) == 0
        matlab("optplug_copy", ctypes.addressof(held), ctypes.addressof(lent), ctypes.sizeof(held))
    assert matlab("opt_free", opt) == 0
    assert matlab("opt_free", opt) == -2
    assert b"is not an optimizer" in ctypes.string_at(matlab("opt_error"))

    w = torch.tensor([5.0, -3, 2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1, fused=True)
    for _ in range(50):
        w.grad = 2 * w.detach()
        optimizer.step()
    assert list(held) == w.tolist()


# ---- the class ----


def test_the_class_names_every_status_as_the_header_does():
    errors = re.findall(r"OPT_E(\w+) = (-\d)", HEADER)
    listed = re.search(r"identifiers = \{(.*)\}", (PACKAGE / "+internal" / "check.m").read_text())[1]
    short = {"INVAL": "invalid", "NOMEM": "memory"}
    assert [f"'{short.get(name, name.lower())}'" for name, _ in errors] == listed.split(", ")
    assert [int(number) for _, number in errors] == list(range(-1, -len(errors) - 1, -1))
    for name in re.findall(r"'(\w+)'", listed):
        assert f"optplug:{name}" in (PACKAGE / "Optimizer.m").read_text()


def test_the_class_calls_all_but_what_its_own_ways_replace_and_what_is_for_gpus():
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.m"))
    called = set(re.findall(r"(?:call|ask|optplug_mex)\('(opt\w+)'", code))
    replaced = {"optplug_bind", "optplug_bind_sparse", "optplug_step_f64", "optplug_step_f32"}
    for_gpus = {"optplug_stream", "optplug_grad_scale"}  # MATLAB does not tell where a gpuArray lies
    for_ranks = {"optplug_bind_block"}  # of which MATLAB has none, without a collective
    names = {name for name in ENTRIES if name.startswith("optplug_")}
    assert called == names - replaced - for_gpus - for_ranks


def test_the_mex_file_has_what_the_class_calls():
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.m"))
    source = (hosts.PROJECT / "bindings" / "octave" / "optplug_mex.c").read_text()
    called = set(re.findall(r"(?:call|ask|optplug_mex)\('(\w+)'", code))
    assert set(re.findall(r'^    \{"(\w+)", \d', source, re.M)) == called


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.m")), ids=lambda path: path.stem)
def test_each_public_function_has_help(path):
    code = path.read_text()
    for name, comment in re.findall(r"^ *(?:classdef|function) (?:.*= )?(\w+).*\n(.*)\n", public(code), re.M):
        if name != "Optimizer" or "OPTIMIZER" in comment:
            assert re.match(rf" *%{name.upper()} [A-Z].*[.:]", comment), (name, comment)


def public(code: str) -> str:
    """Return what of a class or a function is to be called by others."""
    return code.partition("    methods (Access = private)")[0]
