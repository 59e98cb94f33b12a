"""Which part a setting plays in the questions about the method, recognised by its configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anydepth.config.key_effects import effect_of
from anydepth.report.flat_config import differing_keys
from anydepth.report.runs import Run
from anydepth.report.settings import Setting

Role = Literal[
    "any-depth",
    "prediction only",
    "feature only",
    "without distillation",
    "full only",
    "minimal only",
    "sandwich",
    "random",
]

HOW_TO_TRAIN: Mapping[Role, str] = {
    "any-depth": "ablation=both",
    "prediction only": "ablation=prediction_only",
    "feature only": "ablation=feature_only",
    "without distillation": "ablation=no_distillation",
    "full only": "depth_schedule=full_only",
    "minimal only": "depth_schedule=minimal_only",
    "sandwich": "depth_schedule=sandwich",
    "random": "depth_schedule=random",
}
"""The override by which a run takes a role."""

FIXED_DEPTH: Mapping[str, str] = {
    **{f"rtdetr_{name}": f"detr_{name}" for name in ("r18", "r34", "r50", "r101", "swin_t")},
    **{f"yolov12_{name}": f"yolo_{name}" for name in ("n", "s", "l", "x")},
}
"""Fixed-depth networks by name, and the any-depth detector whose full depth is published against them."""

# In which these pairs differ as published.
_OF_FIXED_DEPTH = (
    "detector.stem",
    "detector.minimal_decoder_layers",
    "detector.widths",
    "detector.backbone_units",
    "detector.neck_units",
    "detector.c3k2_split",
    "detector.mlp_ratio",
    "detector.residual_scale",
)
_NORMS_AND_PATHS = ("detector.switchable_norms", "detector.any_depth", "detector.num_classes")


@dataclass(frozen=True)
class Cast:
    """The settings of one detector by the part they play.

    Attributes:
        detector: Its name.
        settings: One per role: as any-depth the setting that the others are compared with, and in each other
            role the setting that differs from it in the fewest keys, of the same architecture.
        others: Further settings in the same roles, by label.
    """

    detector: str
    settings: Mapping[Role, Setting]
    others: Mapping[Role, tuple[str, ...]]


def role_of(run: Run) -> Role | None:
    """Return the role of a run; None: none that a claim asks for.

    What teaches the shallower pass is what the run's objective stated when it trained, whatever package the
    objective is from.
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
        return _EXTREMES.get(levels)
    if random_points and levels == _BOTH_LEVELS and depths in (["full", "minimal"], ["full"]):
        return "sandwich" if "minimal" in depths else "random"
    return None


def is_fixed_depth(config: Mapping[str, Any]) -> bool:
    """Whether the detector has no paths to skip, as RT-DETR and YOLOv12."""
    detector = config.get("detector")
    return isinstance(detector, Mapping) and detector.get("any_depth") is False


def casts(settings: Sequence[Setting]) -> tuple[Cast, ...]:
    """One cast per any-depth detector, by name.

    A fixed-depth network plays for the detector that it is published against, as trained at full depth only;
    without such a detector (see :func:`unused`) it plays no part.
    """
    used = [setting for setting in settings if not unused(setting)]
    detectors = sorted({_plays_for(setting) for setting in used})
    return tuple(
        _cast(name, [setting for setting in used if _plays_for(setting) == name]) for name in detectors
    )


def unused(setting: Setting) -> bool:
    """Whether it is of a fixed-depth network that is published against no any-depth detector."""
    return is_fixed_depth(setting.runs[0].config) and detector_of(setting) not in FIXED_DEPTH


def _plays_for(setting: Setting) -> str:
    name = detector_of(setting)
    return FIXED_DEPTH.get(name, name) if is_fixed_depth(setting.runs[0].config) else name


def detector_of(setting: Setting) -> str:
    """Name of the detector: the configuration it was built from."""
    name = setting.runs[0].config.get("detector_name")
    return name if isinstance(name, str) else setting.runs[0].curve.detector


def further_differences(first: Setting, second: Setting) -> tuple[str, ...]:
    """Keys in which two settings differ beyond what makes their roles: comparing them tests these, too."""
    told = {*_NORMS_AND_PATHS}
    if _any_of_fixed_depth(first, second):
        told |= {"detector_name", *_OF_FIXED_DEPTH}
    keys = differing_keys([first.config, second.config])
    return tuple(key for key in keys if effect_of(key) != "arm" and key not in told)


def fixed_depth_differences(first: Setting, second: Setting) -> tuple[str, ...]:
    """Keys of the architecture in which an any-depth and a fixed-depth network differ; empty for others."""
    if not _any_of_fixed_depth(first, second):
        return ()
    return tuple(key for key in differing_keys([first.config, second.config]) if key in _OF_FIXED_DEPTH)


_BOTH_LEVELS = frozenset({"predictions", "features"})
_EXTREMES: Mapping[frozenset[str], Role] = {
    _BOTH_LEVELS: "any-depth",
    frozenset({"predictions"}): "prediction only",
    frozenset({"features"}): "feature only",
    frozenset(): "without distillation",
}


def _cast(detector: str, settings: Sequence[Setting]) -> Cast:
    by_role: dict[Role, list[Setting]] = {}
    for setting in settings:
        role = role_of(setting.runs[0])
        if role is not None:
            by_role.setdefault(role, []).append(setting)
    # Without the method, nothing is compared; that its baselines are there is still worth saying.
    candidates = by_role.get("any-depth") or [setting for found in by_role.values() for setting in found]
    if not candidates:
        return Cast(detector, {}, {})
    reference = min(candidates, key=lambda setting: _oddness(setting, settings))
    chosen: dict[Role, Setting] = {}
    for role, found in by_role.items():
        alike = [setting for setting in found if _alike(setting, reference)]
        if alike:
            chosen[role] = min(alike, key=lambda setting: _remoteness(setting, reference))
    others = {
        role: tuple(setting.label for setting in found if setting is not chosen.get(role))
        for role, found in by_role.items()
    }
    return Cast(detector, chosen, {role: labels for role, labels in others.items() if labels})


def _oddness(setting: Setting, settings: Sequence[Setting]) -> tuple[bool, int, str]:
    """Smallest for the setting that the others are variations of; norms for each extreme, as published."""
    shared_norms = setting.config.get("detector.switchable_norms") is False
    return shared_norms, sum(_distance(setting, other) for other in settings), setting.label


def _distance(first: Setting, second: Setting) -> int:
    return len(differing_keys([first.config, second.config]))


def _remoteness(setting: Setting, reference: Setting) -> tuple[bool, int, str]:
    """Smallest for the closest one; the same network comes before the published fixed-depth one."""
    return _any_of_fixed_depth(setting, reference), _distance(setting, reference), setting.label


def _alike(first: Setting, second: Setting) -> bool:
    """Whether two settings have one architecture, or those of a published pair."""
    told = {*_NORMS_AND_PATHS, *(_OF_FIXED_DEPTH if _any_of_fixed_depth(first, second) else ())}
    differing = differing_keys([first.config, second.config])
    return not any(key.startswith("detector.") and key not in told for key in differing)


def _any_of_fixed_depth(*settings: Setting) -> bool:
    return any(is_fixed_depth(setting.runs[0].config) for setting in settings)
