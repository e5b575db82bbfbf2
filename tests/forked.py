"""Run what a Python would in a fork of the one that preloaded.py serves.

    python -S forked.py FOLDER -m pytest …

is python -m pytest …; likewise -c CODE, or a file.  This is started for each process of the tests, so it
imports nothing that takes time.
"""

import _socket
import marshal
import os
import sys

folder, *arguments = sys.argv[1:]
if arguments[0].startswith("preloaded-"):  # what a fork starts names the socket, ctest the folder alone
    name, *arguments = arguments
else:
    name = f"preloaded-{os.getppid()}"
here = os.getcwd()  # noqa: PTH109
os.chdir(folder)  # the name of a socket must be short
command = [sys.executable, "-S", __file__, folder, name]
client = _socket.socket(_socket.AF_UNIX)
client.connect(name)
streams = b"".join(stream.to_bytes(4, sys.byteorder) for stream in range(3))
client.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
with os.fdopen(os.dup(client.fileno()), "wb") as file:
    marshal.dump((command, arguments, here, dict(os.environ)), file)
os._exit((client.recv(1) or b"\1")[0])
