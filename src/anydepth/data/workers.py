"""Signal handling of data loader workers."""

import os
import signal
import threading


def ignore_foreign_sigterm(worker: int) -> None:
    """Make this data loader worker ignore SIGTERM unless its parent process sends it.

    Batch systems send SIGTERM to all processes of a run. The training process then finishes its step and
    saves a checkpoint, which the loss of a worker would interrupt. It also ends its workers by SIGTERM, so
    the sender of the signal has to be told apart.

    Args:
        worker: Number of the worker; unused, but part of the signature of ``worker_init_fn``.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
