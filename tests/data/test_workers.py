"""Data loader workers and SIGTERM."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, signal, subprocess, sys, time
from torch.utils.data import DataLoader
from anydepth.data.workers import ignore_foreign_sigterm

class Slow:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        time.sleep(0.3)
        return os.getpid()

if __name__ == "__main__":
    loader = iter(DataLoader(Slow(), batch_size=1, num_workers=1, worker_init_fn=ignore_foreign_sigterm))
    worker = int(next(loader)[0])
    # From another process: the worker continues.
    subprocess.run(["kill", "-TERM", str(worker)], check=True)
    assert [int(found[0]) for found in loader] == [worker] * 3
    loader = iter(DataLoader(Slow(), batch_size=1, num_workers=1, worker_init_fn=ignore_foreign_sigterm))
    worker = int(next(loader)[0])
    # From its parent process.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0)[1] == 0
    loader = iter(DataLoader(Slow(), batch_size=1, num_workers=1, worker_init_fn=ignore_foreign_sigterm))
    print(int(next(loader)[0]), flush=True)
    if sys.argv[1] == "exit":
        raise SystemExit(3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not report the sender of a signal"
)
@pytest.mark.parametrize(
    ("way", "code"), [("exit", 3), pytest.param("kill", -signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_worker_ignores_sigterm_unless_its_parent_sends_it(way: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, way], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    worker, end = int(done.stdout.split()[-1]), time.monotonic() + 60
    while _alive(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"  # a zombie has ended
