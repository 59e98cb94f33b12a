"""Functions of the console scripts, which import a command only where Ctrl-C already ends in one line.

The imports of torch, Lightning and Hydra take seconds, in which Ctrl-C would end in a traceback.
"""

from importlib import import_module
from typing import Any

from anydepth.utils.interrupt import readable_interrupt


def train() -> Any:
    """``anydepth-train``."""
    return _start("anydepth.train")


def evaluate() -> Any:
    """``anydepth-evaluate``."""
    return _start("anydepth.evaluate")


def predict() -> Any:
    """``anydepth-predict``."""
    return _start("anydepth.predict")


def analyze() -> Any:
    """``anydepth-analyze``."""
    return _start("anydepth.analyze")


def export() -> Any:
    """``anydepth-export``."""
    return _start("anydepth.export")


def route() -> Any:
    """``anydepth-route``."""
    return _start("anydepth.route")


def quantize() -> Any:
    """``anydepth-quantize``."""
    return _start("anydepth.quantize")


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


def _start(module: str) -> Any:
    """Import a command and run its ``main``, which handles Ctrl-C itself."""
    with readable_interrupt():
        main = import_module(module).main
    return main()
