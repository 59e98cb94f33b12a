"""Processes of a step that several take, as ``torch.multiprocessing.spawn`` starts them, but sooner."""

import multiprocessing
from collections.abc import Callable

from torch.multiprocessing import start_processes


def spawn(function: Callable[..., None], arguments: tuple[object, ...], count: int) -> None:
    """Call ``function(rank, *arguments)`` in so many processes; what one of them raises is raised here.

    They come from a server that has imported what takes long: ten seconds of a processor for each of them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["anydepth.train"])
    start_processes(function, args=arguments, nprocs=count, start_method="forkserver")
