"""Starts a command line so that what goes wrong around a command is told in a line, too: an interrupt, an output that is gone.

Imports nothing of the command line before: that takes seconds, in which people press Ctrl-C.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import NoReturn

_INTERRUPTED = 130


def start(module: str) -> NoReturn:
    """Run the Typer `app` of a module as this process's program, and end the process with its exit code."""
    if sys.stdout is None or sys.stderr is None:
        # The next file that is opened would have the descriptor, and what children print would go there.
        sys.exit("standard output and standard error must be open")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            importlib.import_module(module).app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OSError as exc:
        if _output_works():
            raise
        # What could not be written is flushed once more at the end, which would be told as an error of the interpreter's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"the output cannot be written: {exc.strerror}")
    sys.exit(0)


def _output_works() -> bool:
    try:
        # A stream without a buffer forgets what it could not write.
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True
