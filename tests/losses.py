"""Losses of both families with the values of ``conf/``, and some of them changed."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from anydepth import zoo
from anydepth.config.compose import compose, instantiate
from anydepth.detector import Detector, Objective
from anydepth.detr.criterion import DetrCriterion
from anydepth.detr.distillation import DetrDistillation
from anydepth.detr.matcher import HungarianMatcher
from anydepth.detr.objective import DetrObjective
from anydepth.structures import Targets
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


def share_of_class_distillation(detector: Detector, objective: Objective, size: int, seed: int) -> float:
    """Return the share of the class term of the shallower pass in the gradient of a first step.

    Args:
        detector: Detector in training mode.
        objective: Its losses.
        size: Height and width of the images.
        seed: Seed of images and boxes.

    Returns:
        Norm of the term's gradient by that of the deeper pass's losses, on the parameters of both passes.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, size, size, generator=generator)
    centres = 0.25 + 0.5 * torch.rand(2, 5, 2, generator=generator)
    sizes = 0.1 + 0.3 * torch.rand(2, 5, 2, generator=generator)
    labels = torch.randint(0, detector.num_classes, (2, 5), generator=generator)
    targets = [Targets(torch.cat([c, s], 1), k) for c, s, k in zip(centres, sizes, labels, strict=True)]
    full = detector(images, "full", targets)
    taught = objective.supervised(full, targets)
    learnt = objective.distilled(detector(images, "minimal", targets), full, targets, taught)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    of_full = torch.autograd.grad(taught.total, parameters, retain_graph=True, allow_unused=True)
    of_minimal = torch.autograd.grad(learnt.total, parameters, retain_graph=True, allow_unused=True)
    both = [
        (p, a)
        for p, a, b in zip(parameters, of_full, of_minimal, strict=True)
        if a is not None and b is not None
    ]
    of_term = torch.autograd.grad(learnt.terms["kd_class"], [p for p, _ in both], allow_unused=True)
    norm = torch.nn.utils.get_total_norm([gradient for gradient in of_term if gradient is not None])
    return float(norm / torch.nn.utils.get_total_norm([gradient for _, gradient in both]))


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
