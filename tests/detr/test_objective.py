"""The objective as a whole: what is matched how often, and what the shipped configurations select."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from anydepth import zoo
from anydepth.detector import PassLosses
from anydepth.detr import matcher
from anydepth.detr.criterion import DetrCriterion
from anydepth.detr.denoising import make_denoising_queries
from anydepth.detr.distillation import DetrDistillation
from anydepth.detr.matcher import HungarianMatcher
from anydepth.detr.objective import DetrObjective
from anydepth.detr.output import DetrOutput
from anydepth.structures import DetectorOutput, Targets
from losses import detr_losses

LAYERS, QUERIES = 3, 10


def make_targets(counts: tuple[int, ...], classes: int) -> list[Targets]:
    torch.manual_seed(0)
    return [
        Targets(0.1 + 0.5 * torch.rand(count, 4), torch.randint(0, classes, (count,))) for count in counts
    ]


def make_output(targets: list[Targets], classes: int, seed: int) -> DetrOutput:
    torch.manual_seed(seed)
    denoising = make_denoising_queries(targets, num_classes=classes, num_queries=QUERIES, budget=8)

    def predictions(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(*shape, classes).requires_grad_(), torch.rand(*shape, 4).requires_grad_()

    def maps() -> tuple[Tensor, ...]:
        return tuple(torch.randn(len(targets), 4, 2, 2).requires_grad_() for _ in range(3))

    output = DetrOutput(maps(), maps(), *predictions(len(targets), QUERIES))
    logits, boxes = predictions(LAYERS, len(targets), QUERIES)
    output = replace(output, auxiliary_logits=logits, auxiliary_boxes=boxes)
    if denoising is None:
        return output
    logits, boxes = predictions(LAYERS, len(targets), denoising.labels.shape[1])
    return replace(output, denoising=denoising, denoising_logits=logits, denoising_boxes=boxes)


def both_paths(
    objective: DetrObjective, counts: tuple[int, ...] = (3, 0, 2), classes: int = 4
) -> tuple[PassLosses, PassLosses]:
    targets = make_targets(counts, classes)
    teacher, student = make_output(targets, classes, 1), make_output(targets, classes, 2)
    supervised = objective.supervised(teacher, targets)
    return supervised, objective.distilled(student, teacher, targets, supervised)


GROUND_TRUTH = {f"{kind}{term}" for kind in ("aux_", "dn_") for term in ("vfl", "l1", "giou")}
LAST_LAYER = {"vfl", "l1", "giou"}
PREDICTIONS = {"kd_class", "kd_l1", "kd_giou"}
FEATURES = {"kd_backbone", "kd_neck"}


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("detr", PREDICTIONS | FEATURES),
        ("detr_prediction_only", PREDICTIONS),
        ("detr_feature_only", LAST_LAYER | FEATURES),
        ("detr_none", LAST_LAYER),
    ],
)
def test_the_shipped_configurations_select_the_terms_of_the_shallower_pass(
    name: str, selected: set[str]
) -> None:
    objective = zoo.build_losses(name)
    supervised, distilled = both_paths(objective)
    assert supervised.terms.keys() == GROUND_TRUTH | LAST_LAYER
    assert distilled.terms.keys() == GROUND_TRUTH | selected


def test_every_option_reaches_the_part_it_is_named_after() -> None:
    """Each value has one name from the configuration to the part; no part has a default of its own."""
    names = {
        "criterion__matcher": ("class_cost", "l1_cost", "giou_cost", "alpha", "gamma"),
        "criterion": ("vfl_weight", "l1_weight", "giou_weight", "vfl_alpha", "vfl_gamma"),
        "distillation": (
            *("softmax_kl_weight", "bernoulli_kl_weight", "l1_weight", "giou_weight"),
            *("backbone_weight", "neck_weight"),
        ),
    }
    keys = [f"{part}__{name}" for part, found in names.items() for name in found]
    numbers = {key: 0.01 * (place + 1) for place, key in enumerate(keys)}
    objective = detr_losses(**numbers)
    criterion = objective.criterion
    weights = {f"criterion__{name}_weight": value for name, value in criterion.weights.items()}
    parts = {
        "criterion__matcher": criterion.matcher,
        "criterion": criterion,
        "distillation": objective.distillation,
    }
    found = weights | {
        f"{part}__{name}": getattr(parts[part], name)
        for part, names_of_part in names.items()
        for name in names_of_part
        if f"{part}__{name}" not in weights
    }
    assert found == numbers
    for builder in (HungarianMatcher, DetrCriterion, DetrDistillation, DetrObjective):
        assert not builder.__init__.__kwdefaults__


def test_the_teacher_is_matched_once() -> None:
    with patch.object(matcher, "linear_sum_assignment", wraps=matcher.linear_sum_assignment) as solver:
        both_paths(detr_losses(), counts=(3, 1, 2))
    # Two paths, 1 + 3 output sets each, 3 images; a second matching of the teacher would add 3 or 12.
    assert solver.call_count == 2 * (1 + LAYERS) * 3


def test_without_distillation_the_shallower_path_is_taught_as_the_deeper_one() -> None:
    objective = detr_losses(
        distillation__class_targets="ground_truth",
        distillation__box_targets="ground_truth",
        distillation__backbone_weight=0,
        distillation__neck_weight=0,
    )
    targets = make_targets((3, 2), classes=4)
    teacher, student = make_output(targets, 4, 1), make_output(targets, 4, 2)
    distilled = objective.distilled(student, teacher, targets, objective.supervised(teacher, targets))
    expected = objective.supervised(student, targets)
    assert distilled.terms.keys() == expected.terms.keys()
    for name, value in distilled.terms.items():
        assert torch.equal(value, expected.terms[name])


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("counts", [(0, 0), (30, 0, 1)])
def test_a_batch_without_boxes_or_with_more_boxes_than_queries_trains_both_paths(
    counts: tuple[int, ...], classes: int
) -> None:
    supervised, distilled = both_paths(detr_losses(), counts, classes)
    for path in (supervised, distilled):
        assert path.total.isfinite()
        path.total.backward()


@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_both_paths_report_the_same_names_with_and_without_boxes(counts: tuple[int, ...]) -> None:
    # Processes of one run average their logged losses, which hangs where the names differ.
    names = [path.terms.keys() for path in both_paths(detr_losses(), counts)]
    expected = [path.terms.keys() for path in both_paths(detr_losses(), (1, 2))]
    assert names == expected


def test_losses_are_float32_under_autocast() -> None:
    objective = detr_losses()
    exact = both_paths(objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = both_paths(objective)
    for path, expected in zip(cast, exact, strict=True):
        assert path.terms.keys() == expected.terms.keys()
        for name, value in path.terms.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected.terms[name], msg=name)


def test_a_taught_path_can_teach_the_next_one() -> None:
    objective = detr_losses()
    targets = make_targets((3, 2), classes=4)
    first, second, third = (make_output(targets, 4, seed) for seed in (1, 2, 3))
    middle = objective.distilled(second, first, targets, objective.supervised(first, targets))
    assert objective.distilled(third, second, targets, middle).total.isfinite()


def test_outputs_and_losses_of_another_wing_are_refused() -> None:
    objective = detr_losses()
    targets = make_targets((1,), classes=4)
    output = make_output(targets, 4, 1)
    with pytest.raises(ValueError, match="got a DetectorOutput, expected a DetrOutput"):
        objective.supervised(DetectorOutput((), ()), targets)
    with pytest.raises(ValueError, match="got a NoneType as the teacher's assignment"):
        objective.distilled(output, output, targets, PassLosses({"loss": torch.zeros(())}))
