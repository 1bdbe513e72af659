"""`voidzoo` and `python -m voidzoo` are the command line."""

import atexit
import contextlib
import os
import sys
from typing import NoReturn

from .cli import main


def run() -> NoReturn:
    """The command line as a process. All is written and closed when `main` returns; taking the interpreter and its
    libraries apart object by object would cost an eighth of a second more, on every image.
    """
    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
