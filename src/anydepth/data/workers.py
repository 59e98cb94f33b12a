"""The processes of a loader."""

import os
import signal
import threading


def outlive_sigterm(worker: int) -> None:
    """Have this worker of a loader end with the process it works for: SIGTERM of others does not end it.

    Batch systems send that signal to all processes of a run. The one that trains finishes its step and saves
    it, in which the loss of a worker would interrupt it. It ends its workers by the same signal, so that the
    sender decides.

    Args:
        worker: Its number; that of the signature a loader asks for.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
