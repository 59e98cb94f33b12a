"""Handling of SIGTERM, with which batch systems and users end a run, during training and outside it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

EXIT_CODE: Final = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended, by convention of Unix shells."""


class Terminated(SystemExit):
    """SIGTERM ended the run."""

    def __init__(self, code: int = EXIT_CODE) -> None:
        super().__init__(code)


class _Terminate:
    """Signal handler that ends the program at once."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise Terminated


@contextmanager
def terminate_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM ends the program as Ctrl+C does, unless :class:`DeferredSigterm` defers it.

    The signal is sent to a whole group of processes, whose data loader workers may end first. A job that lost
    them would look like a failed one, and a sweep would start its next job.

    Raises:
        Terminated: SIGTERM was received.
    """
    # A launcher that handles the signal itself, to queue the job again, keeps its handler.
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    handler = _Terminate()
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    except Exception as error:
        # The loss of a worker is raised from a signal handler as well, and may replace this exception.
        if handler.received:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class DeferredSigterm:
    """Signal handler during training: records SIGTERM until training reaches a point to stop at.

    Args:
        former: Handler before training. If it neither ends the program nor comes from
            :func:`terminate_on_sigterm`, e.g. if a launcher queues the job again, it is called as well and
            decides whether the program ends.

    Attributes:
        received: Whether the signal was received.
        ends_program: Whether the signal is to end the program.
    """

    def __init__(self, former: Any) -> None:
        self.received = False
        self.ends_program = _ends_program(former)
        self._former: Any = former

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.received = True
        if not self.ends_program and callable(self._former):
            self._former(number, frame)

    def install(self) -> None:
        """Replace the current handler of the signal."""
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self)

    def restore(self) -> None:
        """Restore the handler that was there before training."""
        current: object = signal.getsignal(signal.SIGTERM)
        if _in_main_thread() and current is self and self._former is not None:
            signal.signal(signal.SIGTERM, self._former)


@contextmanager
def forward_sigterm(send: Callable[[int], object]) -> Iterator[None]:
    """Within the block, forward a SIGTERM that would end this process to the processes that it started.

    Args:
        send: Function that sends a signal of this number to all of them.

    Raises:
        Terminated: They ended after SIGTERM.
    """
    if not _in_main_thread() or not _ends_program(signal.getsignal(signal.SIGTERM)):
        yield
        return
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        send(number)

    former = signal.signal(signal.SIGTERM, forward)
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


def _ends_program(handler: Any) -> bool:
    return handler in (None, signal.SIG_DFL) or isinstance(handler, _Terminate)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
