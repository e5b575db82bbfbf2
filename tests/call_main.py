"""Run a program that is linked as a library: its path is the first argument, the others are its own."""

from __future__ import annotations

import ctypes
import sys

words = [word.encode() for word in sys.argv[1:]]
sys.exit(ctypes.CDLL(sys.argv[1]).main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words)))
