"""Write the C source of the extension module _optplug, which cffi generates from the headers.

Usage: python _build.py INCLUDE_DIR CSRC_DIR OUTPUT.c
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cffi

if TYPE_CHECKING:
    from optplug import header
else:
    import header  # beside this file: the package is not there yet


def parameters_of(function: header.Function) -> str:
    """Return a function's parameters as C declares them."""
    return ", ".join(f"{p.type} {p.name}" for p in function.parameters) or "void"


def main(include: Path, csrc: Path, output: Path) -> None:
    """Generate the module for the bridge's functions and the statuses of the public header."""
    bridge, public = csrc / "bridge.h", header.read(include / "optplug.h")
    statuses = [f"{name} = {value}" for name, value in public.statuses.items() if name.startswith("OPT_")]
    signatures = {f.name: parameters_of(f) for f in header.members(bridge, "optplug_python")}
    # What the host has, as functions of the module: cffi takes longer to call a pointer.
    functions = {
        f"{f.result} host_{f.name}({parameters_of(f)})": f for f in header.members(bridge, "optplug_host")
    }

    ffi = cffi.FFI()
    ffi.cdef(header.declarations(bridge))
    ffi.cdef(f"enum {{ {', '.join(statuses)} }};")
    ffi.cdef("const optplug_host *attach(void);")
    for name, parameters in signatures.items():
        ffi.cdef(f'extern "Python" int py_{name}({parameters});')
    for declaration in functions:
        ffi.cdef(f"{declaration};")
    prototypes = "\n".join(f"static int py_{name}({parameters});" for name, parameters in signatures.items())
    wrappers = "\n".join(
        f"static {declaration}\n{{\n    {'' if f.result == 'void' else 'return '}"
        f"host->{f.name}({', '.join(p.name for p in f.parameters)});\n}}"
        for declaration, f in functions.items()
    )
    table = ", ".join(f".{name} = py_{name}" for name in signatures)
    ffi.set_source(
        "optplug._optplug",
        f"""
#include "bridge.h"
#include "optplug.h"

static const optplug_host *host;

{wrappers}

{prototypes}

static const optplug_host *attach(void)
{{
    static const optplug_python table = {{{table}}};
    return host = optplug_attach(&table, OPTPLUG_VERSION);
}}
""",
    )
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
