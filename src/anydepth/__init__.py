"""Any-depth object detection: one network, one set of weights, depth chosen at inference.

Example:
    >>> import anydepth
    >>> detector = anydepth.build("detr_tiny", num_classes=3)
    >>> detector.depth_space.parse("minimal").refine.count(True)
    0
"""

import os

# Not from typing, whose import takes longer than all the rest; type checkers take it for true.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from anydepth.zoo import build, build_losses, load, load_weights, save

    __version__: str

# How long an idle OpenMP thread spins before it sleeps. The default, milliseconds, makes training on a CPU
# that is shared with other work several times slower; not spinning at all halves the speed of two threads on
# an idle CPU. It only counts before torch is imported, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__all__ = ["build", "build_losses", "load", "load_weights", "save"]


def __getattr__(name: str) -> object:
    # Imported when first used: `import anydepth` must stay quick and free of the training dependencies.
    if name in __all__:
        from anydepth import zoo

        return getattr(zoo, name)
    if name == "__version__":
        from anydepth.utils.version import package_version

        return package_version()
    raise AttributeError(f"module 'anydepth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
