"""Losses of both families with the values of ``conf/``, and some of them changed."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from anydepth import zoo
from anydepth.config.compose import compose, instantiate
from anydepth.detr.criterion import DetrCriterion
from anydepth.detr.distillation import DetrDistillation
from anydepth.detr.matcher import HungarianMatcher
from anydepth.detr.objective import DetrObjective
from anydepth.yolo.assigner import TaskAlignedAssigner
from anydepth.yolo.criterion import YoloCriterion
from anydepth.yolo.distillation import YoloDistillation
from anydepth.yolo.objective import YoloObjective


def detr_losses(**changes: object) -> DetrObjective:
    """Build the losses of AnyDepth-DETR; two underscores lead into parts: ``distillation__l1_weight=0``."""
    objective = zoo.build_losses("detr", _overrides(changes))
    assert isinstance(objective, DetrObjective)
    return objective


def yolo_losses(**changes: object) -> YoloObjective:
    """Build the losses of AnyDepth-YOLO in the same way."""
    objective = zoo.build_losses("yolo", _overrides(changes))
    assert isinstance(objective, YoloObjective)
    return objective


def _overrides(changes: dict[str, object]) -> list[str]:
    return [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]


_NODES: dict[str, DictConfig] = {}


def _part(family: str, key: str, changes: dict[str, object]) -> Any:
    if family not in _NODES:
        _NODES[family] = compose(None, [f"+losses={family}"]).losses
    node = OmegaConf.to_container(OmegaConf.select(_NODES[family], key))
    assert isinstance(node, dict)
    return instantiate({**node, **changes})


def hungarian_matcher(**changes: object) -> HungarianMatcher:
    """Build the matcher with the values of ``conf/losses/detr.yaml``."""
    matcher: HungarianMatcher = _part("detr", "criterion.matcher", changes)
    return matcher


def detr_criterion(**changes: object) -> DetrCriterion:
    """Build the losses against ground truth with the values of ``conf/losses/detr.yaml``."""
    criterion: DetrCriterion = _part("detr", "criterion", changes)
    return criterion


def detr_distillation(**changes: object) -> DetrDistillation:
    """Build the distillation with the values of ``conf/losses/detr.yaml``."""
    distillation: DetrDistillation = _part("detr", "distillation", changes)
    return distillation


def task_aligned_assigner(**changes: object) -> TaskAlignedAssigner:
    """Build the assigner with the values of ``conf/losses/yolo.yaml``."""
    assigner: TaskAlignedAssigner = _part("yolo", "criterion.assigner", changes)
    return assigner


def yolo_criterion(**changes: object) -> YoloCriterion:
    """Build the losses against ground truth with the values of ``conf/losses/yolo.yaml``."""
    criterion: YoloCriterion = _part("yolo", "criterion", changes)
    return criterion


def yolo_distillation(**changes: object) -> YoloDistillation:
    """Build the distillation with the values of ``conf/losses/yolo.yaml``."""
    distillation: YoloDistillation = _part("yolo", "distillation", changes)
    return distillation
