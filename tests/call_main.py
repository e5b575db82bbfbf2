"""Run a program that is linked as a library: its path is the first argument, the others are its own."""

from __future__ import annotations

import ctypes
import sys

words = [word.encode() for word in sys.argv[1:]]
program = ctypes.CDLL(sys.argv[1])
if hasattr(program, "_gfortran_flush_i4"):  # of files that it leaves open: in a fork no library ends
    getattr(program, "__cxa_atexit")(program._gfortran_flush_i4, None, None)
sys.exit(program.main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words)))
