"""The arms of the study: what is trained, from where, and what it is compared with."""

from dataclasses import dataclass
from typing import Final, Literal

Start = Literal["scratch", "base", "converted"]

BASE: Final = "base"
NAIVE: Final = "naive"


@dataclass(frozen=True)
class Arm:
    """One way to train a detector.

    Attributes:
        name: Name in folders, options and tables.
        start: Where its weights begin: at random (``scratch``), or in the converted base network.
            ``base`` is the fixed-depth network that everything ``converted`` begins with.
        settings: Settings of ``anydepth-train`` that make it this arm.
        scored_depths: Depths whose AP on the validation images selects the checkpoint: those that it trains.
        passes: Cost of a training step in steps of the full network, for estimates of time.
        rank: Place in the order of a seed: smaller is earlier.
        by_default: Whether it is trained unless arms are named.
        about: What it is, for tables.
    """

    name: str
    start: Start
    settings: tuple[str, ...]
    scored_depths: tuple[str, ...]
    passes: float
    rank: int
    about: str
    by_default: bool = True

    @property
    def score(self) -> str:
        """Value of ``validation.score``."""
        return "mean" if len(self.scored_depths) > 1 else self.scored_depths[0]

    @property
    def is_trained(self) -> bool:
        """Whether it takes training; the naively skipped network takes none."""
        return self.name != NAIVE


_ENDS: Final = ("full", "minimal")

ARMS: Final = (
    Arm(
        BASE,
        "scratch",
        ("detector.any_depth=false", "depth_schedule=full_only"),
        ("full",),
        1.0,
        0,
        "fixed-depth network, the source of the conversion",
    ),
    Arm(NAIVE, "converted", (), _ENDS, 0.0, 1, "converted, no training: stages skipped naively"),
    Arm(
        "converted-any_depth",
        "converted",
        ("ablation=both",),
        _ENDS,
        1.65,
        2,
        "converted, both distillations (the method)",
    ),
    Arm("converted-full", "converted", ("ablation=full_only",), ("full",), 1.0, 3, "converted, full only"),
    Arm(
        "converted-minimal",
        "converted",
        ("ablation=minimal_only",),
        ("minimal",),
        0.75,
        4,
        "converted, minimal only",
    ),
    Arm(
        "scratch-minimal",
        "scratch",
        ("ablation=minimal_only",),
        ("minimal",),
        0.75,
        5,
        "from scratch, minimal only",
    ),
    Arm(
        "converted-no_distillation",
        "converted",
        ("ablation=no_distillation",),
        _ENDS,
        1.65,
        6,
        "converted, both extremes, no distillation",
    ),
    Arm(
        "converted-prediction",
        "converted",
        ("ablation=prediction_only",),
        _ENDS,
        1.65,
        7,
        "converted, predictions only",
    ),
    Arm(
        "converted-feature",
        "converted",
        ("ablation=feature_only",),
        _ENDS,
        1.65,
        8,
        "converted, features only",
    ),
    Arm(
        "scratch-any_depth",
        "scratch",
        ("ablation=both",),
        _ENDS,
        1.65,
        9,
        "from scratch, both distillations (the method)",
    ),
    Arm("scratch-full", "scratch", ("ablation=full_only",), ("full",), 1.0, 10, "from scratch, full only"),
    Arm(
        "scratch-no_distillation",
        "scratch",
        ("ablation=no_distillation",),
        _ENDS,
        1.65,
        11,
        "from scratch, both extremes, no distillation",
        by_default=False,
    ),
    Arm(
        "converted-sandwich",
        "converted",
        ("ablation=sandwich",),
        _ENDS,
        2.5,
        12,
        "converted, three depths per step",
        by_default=False,
    ),
    Arm(
        "converted-random",
        "converted",
        ("ablation=random",),
        _ENDS,
        1.75,
        13,
        "converted, full and a random depth per step",
        by_default=False,
    ),
)
"""All arms, in the order in which a seed trains them: each finished prefix answers a question."""

BY_NAME: Final = {arm.name: arm for arm in ARMS}


def choose_arms(names: tuple[str, ...] | None) -> tuple[Arm, ...]:
    """Return the named arms with what they need, in their order.

    Args:
        names: Names; None: those of the default; ``all``: every one.

    Raises:
        ValueError: An unknown name.
    """
    if names is None:
        return tuple(arm for arm in ARMS if arm.by_default)
    if names == ("all",):
        return ARMS
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise ValueError(f"got the arm {unknown[0]}, expected all or some of {', '.join(BY_NAME)}")
    chosen = {BY_NAME[name] for name in names}
    if any(arm.start == "converted" for arm in chosen):
        chosen.add(BY_NAME[BASE])
    return tuple(arm for arm in ARMS if arm in chosen)
