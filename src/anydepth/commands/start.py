"""Functions of the console scripts, which import a command only where Ctrl-C already ends in one line.

The imports of torch, Lightning and Hydra take seconds, in which Ctrl-C would end in a traceback.
"""

import sys
from importlib import import_module
from typing import Any, Final

from anydepth.utils.interrupt import readable_interrupt

_HELP: Final = ("--help", "-h")


def train() -> Any:
    """``anydepth-train``."""
    return _start("anydepth.train", composed=True)


def evaluate() -> Any:
    """``anydepth-evaluate``."""
    return _start("anydepth.evaluate", composed=True)


def predict() -> Any:
    """``anydepth-predict``."""
    return _start("anydepth.predict", composed=True)


def analyze() -> Any:
    """``anydepth-analyze``."""
    return _start("anydepth.analyze", composed=True)


def export() -> Any:
    """``anydepth-export``."""
    return _start("anydepth.export", composed=True)


def route() -> Any:
    """``anydepth-route``."""
    return _start("anydepth.route", composed=True)


def quantize() -> Any:
    """``anydepth-quantize``."""
    return _start("anydepth.quantize", composed=True)


def convert() -> Any:
    """``anydepth-convert``."""
    return _start("anydepth.commands.convert")


def benchmark() -> Any:
    """``anydepth-benchmark``."""
    return _start("anydepth.commands.benchmark")


def serve() -> Any:
    """``anydepth-serve``."""
    return _start("anydepth.commands.serve")


def demo() -> Any:
    """``anydepth-demo``."""
    return _start("anydepth.commands.demo")


def report() -> Any:
    """``anydepth-report``."""
    return _start("anydepth.report.cli")


def data() -> Any:
    """``anydepth-data``."""
    return _start("anydepth.commands.data")


def replay() -> Any:
    """``anydepth-replay``."""
    return _start("anydepth.commands.replay_step")


def _start(module: str, *, composed: bool = False) -> Any:
    """Import a command and run its ``main``, which handles Ctrl-C itself.

    Args:
        module: Module of the command.
        composed: Whether Hydra composes its configuration, from the file of the module's name.
    """
    with readable_interrupt():
        if composed and len(sys.argv) == 2 and sys.argv[1] in _HELP:
            import_module("anydepth.config.help").print_help(module.rpartition(".")[2])
            return None
        main = import_module(module).main
    return main()
