"""`voidzoo` and `python -m voidzoo` are the command line."""

import atexit
import contextlib
import gc
import os
import sys
from typing import NoReturn

from .zoo.memory import give_back

NEW_OBJECTS = 50_000
"""Objects made since the last search for unreachable cycles at which Python looks for them again, 700 by default: the
libraries of a prediction make so many that stay that 50 of its first 500 ms go into searches that find nothing.
"""


def run() -> NoReturn:
    """The command line as a process. All is written and closed when `main` returns; taking the interpreter and its
    libraries apart object by object would cost an eighth of a second more, on every image.
    """
    gc.set_threshold(NEW_OBJECTS)
    give_back()
    from .cli import main

    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
