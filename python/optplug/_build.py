"""Write the C source of the extension module _optplug, which cffi generates from the headers.

Usage: python _build.py INCLUDE_DIR CSRC_DIR OUTPUT.c
"""

import re
import sys
from pathlib import Path

import cffi


def _declarations(header: Path) -> str:
    """Return a header's text without the preprocessor's lines."""
    return "".join(line for line in header.read_text().splitlines(keepends=True) if not line.startswith("#"))


def main(include: Path, csrc: Path, output: Path) -> None:
    """Generate the module for the bridge's functions and the statuses of the public header."""
    contract = _declarations(csrc / "bridge.h")
    statuses = re.search(r"enum \{\s*OPT_OK.*?\};", (include / "optplug.h").read_text(), re.S)[0]
    table = re.search(r"struct optplug_python \{(.*?)\}", contract, re.S)[1]
    members = re.findall(r"int \(\*(\w+)\)(\(.*?\));", table, re.S)

    ffi = cffi.FFI()
    ffi.cdef(contract)
    ffi.cdef(statuses)
    ffi.cdef("const optplug_host *attach(void);")
    for name, arguments in members:
        ffi.cdef(f'extern "Python" int py_{name}{arguments};')
    prototypes = "\n".join(f"static int py_{name}{arguments};" for name, arguments in members)
    table = ", ".join(f".{name} = py_{name}" for name, _ in members)
    ffi.set_source(
        "optplug._optplug",
        f"""
#include "bridge.h"
#include "optplug.h"

{prototypes}

static const optplug_host *attach(void)
{{
    static const optplug_python table = {{{table}}};
    return optplug_attach(&table, OPTPLUG_VERSION);
}}
""",
    )
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
