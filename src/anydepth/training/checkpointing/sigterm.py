"""SIGTERM, by which batch systems and users end a run: what it does while a run trains, and otherwise."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

EXIT_CODE: Final = 128 + signal.SIGTERM
"""Of a program that SIGTERM ended, by convention."""


class Terminated(SystemExit):
    """SIGTERM ended the run."""

    def __init__(self, code: int = EXIT_CODE) -> None:
        super().__init__(code)


class _End:
    """Ends the program, wherever it is."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise Terminated


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM ends the program, as Ctrl+C does; training postpones that, see Postponed.

    It is sent to a whole group of processes, whose loaders' workers may end first. A job that lost them would
    pass for a failed one, and a sweep would begin its next job.

    Raises:
        Terminated: SIGTERM came.
    """
    # A launcher that handles the signal itself queues the job again.
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    end = _End()
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        # The loss of a worker is raised by a signal, too, and overtakes this one.
        if end.received:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Postponed:
    """Handles SIGTERM while a run trains: notes it, until training has come to a point to stop at.

    Args:
        former: The handler before training. One that neither ends the program by itself nor comes from
            :func:`ended_by_sigterm`, as that of a launcher which queues the job again, is called, too, and
            decides about the end of the program.

    Attributes:
        received: The signal came.
        ends: Whether it is to end the program.
    """

    def __init__(self, former: Any) -> None:
        self.received = False
        self.ends = _ends(former)
        self._former: Any = former

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.received = True
        if not self.ends and callable(self._former):
            self._former(number, frame)

    def begin(self) -> None:
        """Take over from whatever handles the signal now."""
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self)

    def end(self) -> None:
        """Give back to the handler before training."""
        current: object = signal.getsignal(signal.SIGTERM)
        if _in_main_thread() and current is self and self._former is not None:
            signal.signal(signal.SIGTERM, self._former)


@contextmanager
def forwarded_sigterm(send: Callable[[int], object]) -> Iterator[None]:
    """Within the block, in which others work for this process, SIGTERM that would end it is sent to them.

    Args:
        send: Sends a signal of this number to all of them.

    Raises:
        Terminated: They have ended after SIGTERM.
    """
    if not _in_main_thread() or not _ends(signal.getsignal(signal.SIGTERM)):
        yield
        return
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        send(number)

    former = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    except Exception as error:
        if received or getattr(error, "exit_code", None) in (EXIT_CODE, -signal.SIGTERM):
            raise Terminated from error
        raise
    else:
        if received:
            raise Terminated
    finally:
        signal.signal(signal.SIGTERM, former)


def _ends(handler: Any) -> bool:
    return handler in (None, signal.SIG_DFL) or isinstance(handler, _End)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
