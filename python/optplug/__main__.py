"""``python -m optplug``: see `tools.cli`."""

import sys

# python -m puts the current folder first, and what lies there is not meant.
if __name__ == "__main__" and __spec__ and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from optplug.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
