"""Ctrl-C during a command: one line and an exit code of its own, in place of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended, by convention of Unix shells: 128 and the number of SIGINT."""


@contextmanager
def readable_interrupt() -> Iterator[None]:
    """Turn Ctrl-C into one line on stderr and exit code 130; also usable as a decorator."""
    try:
        yield
    except KeyboardInterrupt as error:
        sys.stdout.flush()
        sys.stderr.write("\nstopped by Ctrl-C\n")
        raise SystemExit(INTERRUPTED) from error
