"""Detectors outside of PyTorch: a bundle of one graph per depth, and the runtime that detects with it.

:mod:`anydepth.deploy.runtime` needs numpy, Pillow and an inference engine, and never imports torch;
:mod:`anydepth.deploy.export` makes bundles and does.
"""

# Not from typing, whose import takes longer than all the rest; type checkers take it for true.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from anydepth.deploy.runtime.detector import DeployedDetector, load

__all__ = ["DeployedDetector", "load"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from anydepth.deploy.runtime import detector

        return getattr(detector, name)
    raise AttributeError(f"module 'anydepth.deploy' has no attribute {name!r}")
