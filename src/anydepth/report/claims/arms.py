"""Arms of a study, recognised by the configuration of a run, and the settings to compare in each arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anydepth.config.key_effects import effect_of
from anydepth.report.flat_config import differing_keys
from anydepth.report.runs import Run
from anydepth.report.settings import Setting

Arm = Literal[
    "any-depth",
    "prediction only",
    "feature only",
    "without distillation",
    "full only",
    "minimal only",
    "sandwich",
    "random",
]

ARM_OVERRIDES: Mapping[Arm, str] = {
    "any-depth": "ablation=both",
    "prediction only": "ablation=prediction_only",
    "feature only": "ablation=feature_only",
    "without distillation": "ablation=no_distillation",
    "full only": "depth_schedule=full_only",
    "minimal only": "depth_schedule=minimal_only",
    "sandwich": "depth_schedule=sandwich",
    "random": "depth_schedule=random",
}
"""Override of the command line that trains an arm."""

COUNTERPARTS: Mapping[str, str] = {
    **{f"rtdetr_{name}": f"detr_{name}" for name in ("r18", "r34", "r50", "r101", "swin_t")},
    **{f"yolov12_{name}": f"yolo_{name}" for name in ("n", "s", "l", "x")},
}
"""Any-depth detector whose full depth was published against a fixed-depth network, by name of the network."""

# Architecture keys in which the published pairs differ.
_PUBLISHED_DIFFERENCES = (
    "detector.stem",
    "detector.minimal_decoder_layers",
    "detector.widths",
    "detector.backbone_units",
    "detector.neck_units",
    "detector.c3k2_split",
    "detector.mlp_ratio",
    "detector.residual_scale",
)
# Keys of `detector` that do not make another architecture.
_IGNORED_KEYS = ("detector.switchable_norms", "detector.any_depth", "detector.num_classes")


@dataclass(frozen=True)
class DetectorArms:
    """Settings of one detector by arm.

    Attributes:
        detector: Name of the detector.
        settings: One setting per arm: for ``any-depth`` the reference setting, and for each other arm the
            setting of the same architecture that differs from the reference in the fewest keys.
        others: Labels of further settings of the same arm, by arm.
    """

    detector: str
    settings: Mapping[Arm, Setting]
    others: Mapping[Arm, tuple[str, ...]]


def arm_of(run: Run) -> Arm | None:
    """Return the arm of a run, or None if no claim needs its kind of training.

    The kind of distillation is taken from what the run's objective stated when it trained, whatever package
    the objective is from.
    """
    config = run.config
    schedule = config.get("depth_schedule")
    if not isinstance(schedule, Mapping):
        return None
    depths, random_points = schedule.get("depths"), schedule.get("random_points", 0)
    if is_fixed_depth(config) and depths != ["full"]:
        return None
    if depths == ["full"] and not random_points:
        return "full only"
    if depths == ["minimal"] and not random_points:
        return "minimal only"
    levels = run.distilled_levels if schedule.get("distill", True) else frozenset()
    if levels is None:
        return None
    if depths == ["full", "minimal"] and not random_points:
        return _ARMS_BY_LEVELS.get(levels)
    if random_points and levels == _BOTH_LEVELS and depths in (["full", "minimal"], ["full"]):
        return "sandwich" if "minimal" in depths else "random"
    return None


def is_fixed_depth(config: Mapping[str, Any]) -> bool:
    """Return whether the detector has no refinement paths to skip, such as RT-DETR and YOLOv12."""
    detector = config.get("detector")
    return isinstance(detector, Mapping) and detector.get("any_depth") is False


def find_arms(settings: Sequence[Setting]) -> tuple[DetectorArms, ...]:
    """Return the arms of each any-depth detector, by name.

    A fixed-depth network counts as the ``full only`` arm of the detector it was published against; without
    such a detector (see :func:`lacks_counterpart`) it is ignored.
    """
    by_detector: dict[str, list[Setting]] = {}
    for setting in settings:
        if not lacks_counterpart(setting):
            by_detector.setdefault(_any_depth_detector(setting), []).append(setting)
    return tuple(_choose_settings(name, members) for name, members in sorted(by_detector.items()))


def lacks_counterpart(setting: Setting) -> bool:
    """Return whether a setting is of a fixed-depth network without a published any-depth counterpart."""
    return is_fixed_depth(setting.runs[0].config) and detector_of(setting) not in COUNTERPARTS


def _any_depth_detector(setting: Setting) -> str:
    """Return the detector itself, or the any-depth counterpart of a fixed-depth network."""
    name = detector_of(setting)
    return COUNTERPARTS.get(name, name) if is_fixed_depth(setting.runs[0].config) else name


def detector_of(setting: Setting) -> str:
    """Return the name of the detector configuration that a setting was built from."""
    name = setting.runs[0].config.get("detector_name")
    return name if isinstance(name, str) else setting.runs[0].curve.detector


def further_differences(first: Setting, second: Setting) -> tuple[str, ...]:
    """Return keys in which two settings differ beyond their arms, and which confound a comparison."""
    ignored = {*_IGNORED_KEYS}
    if _any_fixed_depth(first, second):
        ignored |= {"detector_name", *_PUBLISHED_DIFFERENCES}
    keys = differing_keys([first.config, second.config])
    return tuple(key for key in keys if effect_of(key) != "arm" and key not in ignored)


def fixed_depth_differences(first: Setting, second: Setting) -> tuple[str, ...]:
    """Return architecture keys in which an any-depth and a fixed-depth network differ; empty for others."""
    if not _any_fixed_depth(first, second):
        return ()
    return tuple(
        key for key in differing_keys([first.config, second.config]) if key in _PUBLISHED_DIFFERENCES
    )


_BOTH_LEVELS = frozenset({"predictions", "features"})
# Arms that train the extremes, by the levels that are distilled.
_ARMS_BY_LEVELS: Mapping[frozenset[str], Arm] = {
    _BOTH_LEVELS: "any-depth",
    frozenset({"predictions"}): "prediction only",
    frozenset({"features"}): "feature only",
    frozenset(): "without distillation",
}


def _choose_settings(detector: str, settings: Sequence[Setting]) -> DetectorArms:
    by_arm: dict[Arm, list[Setting]] = {}
    for setting in settings:
        arm = arm_of(setting.runs[0])
        if arm is not None:
            by_arm.setdefault(arm, []).append(setting)
    # Without the method nothing can be compared, but the report still names the baselines that were trained.
    candidates = by_arm.get("any-depth") or [setting for members in by_arm.values() for setting in members]
    if not candidates:
        return DetectorArms(detector, {}, {})
    reference = min(candidates, key=lambda setting: _reference_rank(setting, settings))
    chosen: dict[Arm, Setting] = {}
    for arm, members in by_arm.items():
        comparable = [setting for setting in members if _same_architecture(setting, reference)]
        if comparable:
            chosen[arm] = min(comparable, key=lambda setting: _match_rank(setting, reference))
    others = {
        arm: tuple(setting.label for setting in members if setting is not chosen.get(arm))
        for arm, members in by_arm.items()
    }
    return DetectorArms(detector, chosen, {arm: labels for arm, labels in others.items() if labels})


def _reference_rank(setting: Setting, settings: Sequence[Setting]) -> tuple[bool, int, str]:
    """Return a rank, smallest for the setting closest to all others; switchable norms (published) first."""
    shared_norms = setting.config.get("detector.switchable_norms") is False
    return shared_norms, sum(_distance(setting, other) for other in settings), setting.label


def _distance(first: Setting, second: Setting) -> int:
    """Return the number of configuration keys in which two settings differ."""
    return len(differing_keys([first.config, second.config]))


def _match_rank(setting: Setting, reference: Setting) -> tuple[bool, int, str]:
    """Return a rank, smallest for the closest setting; fixed-depth counterparts come last."""
    return _any_fixed_depth(setting, reference), _distance(setting, reference), setting.label


def _same_architecture(first: Setting, second: Setting) -> bool:
    """Return whether two settings share an architecture or are a published pair."""
    ignored = {*_IGNORED_KEYS, *(_PUBLISHED_DIFFERENCES if _any_fixed_depth(first, second) else ())}
    differing = differing_keys([first.config, second.config])
    return not any(key.startswith("detector.") and key not in ignored for key in differing)


def _any_fixed_depth(*settings: Setting) -> bool:
    return any(is_fixed_depth(setting.runs[0].config) for setting in settings)
