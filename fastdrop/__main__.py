"""``python -m fastdrop`` is the ``fastdrop`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
