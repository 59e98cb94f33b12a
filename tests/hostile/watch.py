"""What a reader of a hostile file must not do, seen through Python's audit hook, whatever library does it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_FORBIDDEN = (
    "ctypes.dlopen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.system",
    "os.truncate",
    "pty.spawn",
    "shutil.rmtree",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "webbrowser.open",
)
# By the clock a case may take so many times its limit of the processor's time: a busy machine is no defect.
_CLOCK = 6
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class HostileError(AssertionError):
    """A reader did what no file may make it do, or did not come to an end."""


class Watch:
    """Watches this process while a case runs.

    Args:
        folder: Where cases may be written; ``folder/outside`` must never be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.secret = str(folder / "outside")
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)  # It stays until the process ends.

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self._opened(*arguments[:3])
        elif event == "ctypes.dlopen" and arguments[0] is None:
            return  # The program itself, which ctypes asks for when it is imported.
        elif event in _FORBIDDEN and not self._is_inside(arguments):
            self.seen.append(f"{event}{arguments!r}"[:300])

    def _opened(self, path: object, mode: object = None, flags: object = 0) -> None:
        if isinstance(path, int):
            return
        text = os.path.realpath(os.fsdecode(path))  # type: ignore[call-overload]
        writes = isinstance(flags, int) and flags & _WRITES
        compiled = text.endswith(".pyc") or "__pycache__" in text
        if text.startswith(self.secret):
            self.seen.append(f"opened {text}")
        elif writes and not compiled and not text.startswith((self.folder, "/dev/")):
            self.seen.append(f"opened {text} to write ({mode})")

    def _is_inside(self, arguments: tuple[object, ...]) -> bool:
        texts = [
            str(os.fsdecode(value)) for value in arguments if isinstance(value, str | bytes | os.PathLike)
        ]
        return bool(texts) and all(text.startswith(self.folder) for text in texts)

    @contextmanager
    def case(self, seconds: float) -> Iterator[None]:
        """One case.

        Args:
            seconds: Of the processor that it may take; by the clock six times as many.

        Raises:
            HostileError: It takes longer, or does what is forbidden.
        """
        self.seen.clear()
        before = time.process_time()

        def too_long(number: int, frame: FrameType | None) -> None:
            raise HostileError(f"no end within {_CLOCK * seconds:g} s by the clock")

        former = signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, _CLOCK * seconds)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        # A reader that catches everything would swallow what the signal raises.
        if time.process_time() - before > seconds:
            raise HostileError(f"took {time.process_time() - before:.1f} s of the processor")
        if self.seen:
            raise HostileError("; ".join(self.seen))
