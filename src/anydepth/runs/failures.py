"""Errors of the jobs of a sweep: in one line for the console, and as records of their folders."""

import sys
import traceback
from pathlib import Path

from anydepth.config.errors import explain


def error_line(error: Exception) -> str:
    """Return an error in one line; a defect as the last line of its traceback."""
    text = str(error).strip()
    last = text.splitlines()[-1] if text else ""
    return " ".join((explain(error) or f"{type(error).__name__}: {last}".rstrip(": ")).splitlines())


def failure_record(error: Exception) -> dict[str, str]:
    """Return what a record says of an error: ``status``, ``error``, ``type`` and ``traceback``."""
    return {
        "status": "failed",
        "error": error_line(error),
        "type": type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
    }


def print_failure(error: Exception, record: Path) -> None:
    """Print the error of a job of a sweep.

    Args:
        error: The error.
        record: File of the job's folder that holds its traceback.
    """
    sys.stdout.flush()
    where = "" if explain(error) else f" (a defect of the program, see {record})"
    sys.stderr.write(f"\nError in {record.parent.name}: {error_line(error)}{where}\n")
