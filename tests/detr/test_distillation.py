"""Distillation losses against plain loops over pairs, images and classes with torch's own functions."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from anydepth.detr.criterion import GroundTruth
from anydepth.detr.distillation import pair_queries, pooled_feature_kl
from anydepth.detr.matcher import Assignment
from anydepth.detr.output import DetrOutput
from anydepth.structures import Targets
from losses import detr_distillation, hungarian_matcher


def make_output(batch: int, queries: int, classes: int, seed: int) -> DetrOutput:
    generator = torch.Generator().manual_seed(seed)

    def maps(*widths: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(batch, width, 8 // 2**level, 6 // 2**level, generator=generator).requires_grad_()
            for level, width in enumerate(widths)
        )

    return DetrOutput(
        backbone_features=maps(4, 6, 8),
        neck_features=maps(5, 5, 5),
        logits=(2 * torch.randn(batch, queries, classes, generator=generator)).requires_grad_(),
        boxes_cxcywh=(0.1 + 0.5 * torch.rand(batch, queries, 4, generator=generator)).requires_grad_(),
    )


def make_case(
    counts: tuple[int, ...], *, queries: int = 12, classes: int = 6
) -> tuple[DetrOutput, DetrOutput, list[Targets], Assignment, Assignment]:
    """Make student, teacher, targets, and the assignments of student and teacher."""
    student, teacher = (make_output(len(counts), queries, classes, seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    targets = [
        Targets(
            0.1 + 0.5 * torch.rand(count, 4, generator=generator),
            torch.randint(0, classes, (count,), generator=generator),
        )
        for count in counts
    ]
    match = hungarian_matcher()
    assignments = [match(o.logits[None], o.boxes_cxcywh[None], targets) for o in (student, teacher)]
    return student, teacher, targets, assignments[0], assignments[1]


def loop_over_pairs(
    student: DetrOutput, teacher: DetrOutput, first: Assignment, second: Assignment, class_loss: str
) -> tuple[float, float, float]:
    """Sum the class divergence, the L1 distance and 1 - GIoU over the pairs."""
    theirs = {
        target: (image, query)
        for image, query, target in zip(
            second.images.tolist(), second.queries[0].tolist(), second.targets[0].tolist(), strict=True
        )
    }
    divergence = l1 = giou = 0.0
    for image, query, target in zip(
        first.images.tolist(), first.queries[0].tolist(), first.targets[0].tolist(), strict=True
    ):
        if target not in theirs:
            continue
        s, t = student.logits[image, query].detach(), teacher.logits[theirs[target]].detach()
        if class_loss == "softmax_kl":
            divergence += F.kl_div(s.log_softmax(0), t.softmax(0), reduction="sum").item()
        else:
            for ours, wanted in zip(s, t, strict=True):
                two = torch.stack([ours, -ours]).sigmoid(), torch.stack([wanted, -wanted]).sigmoid()
                divergence += F.kl_div(two[0].log(), two[1], reduction="sum").item()
        a, b = student.boxes_cxcywh[image, query].detach(), teacher.boxes_cxcywh[theirs[target]].detach()
        l1 += (a - b).abs().sum().item()
        corners = [box_convert(box[None], "cxcywh", "xyxy") for box in (a, b)]
        giou += 1 - generalized_box_iou(*corners).item()
    return divergence, l1, giou


@pytest.mark.parametrize("counts", [(3, 5), (0, 4, 1), (40, 2), (0, 0)])
@pytest.mark.parametrize(
    ("class_loss", "softmax_kl_weight", "weight"),
    [
        # As released: 12 queries / 6 classes (specification, 3.3 a).
        ("softmax_kl", "queries/classes", 12 / 6),
        ("softmax_kl", "auto", 3.75 * math.log(7) / math.log(81)),
        ("softmax_kl", 1.5, 1.5),
        ("bernoulli_kl", "auto", 0.7),
    ],
)
def test_predictions_are_compared_pair_by_pair_through_the_shared_box(
    counts: tuple[int, ...], class_loss: str, softmax_kl_weight: str | float, weight: float
) -> None:
    student, teacher, targets, first, second = make_case(counts)
    distillation = detr_distillation(
        class_loss=class_loss, softmax_kl_weight=softmax_kl_weight, bernoulli_kl_weight=0.7
    )
    truth = GroundTruth.collect(targets)
    terms = distillation.predictions(student, teacher, first, second, truth)
    divergence, l1, giou = loop_over_pairs(student, teacher, first, second, class_loss)
    boxes = max(sum(counts), 1)
    assert terms["kd_class"].item() == pytest.approx(weight * divergence / boxes, rel=1e-5, abs=1e-6)
    # L1 5, GIoU 2 (specification, 3.3 a).
    assert terms["kd_l1"].item() == pytest.approx(5 * l1 / boxes, rel=1e-5, abs=1e-6)
    assert terms["kd_giou"].item() == pytest.approx(2 * giou / boxes, rel=1e-5, abs=1e-6)


def test_with_more_boxes_than_queries_only_boxes_that_both_matched_form_pairs() -> None:
    *_, first, second = make_case((40,))
    common = set(first.targets[0].tolist()) & set(second.targets[0].tolist())
    assert 0 < len(common) < 12  # otherwise this case tests nothing
    ours, theirs, shared = pair_queries(first, second, 40)
    assert shared.sum().item() == len(common)
    partner = dict(zip(second.targets[0].tolist(), second.queries[0].tolist(), strict=True))
    for target, query, weight in zip(
        ours.targets[0].tolist(), theirs.queries[0].tolist(), shared.tolist(), strict=True
    ):
        assert weight == (target in common)
        assert not weight or query == partner[target]


def test_the_teacher_gets_no_gradient_and_an_equal_student_no_loss() -> None:
    student, teacher, targets, first, second = make_case((3, 5))
    truth, distillation = GroundTruth.collect(targets), detr_distillation()
    terms = distillation.predictions(student, teacher, first, second, truth)
    terms |= distillation.features(student, teacher)
    torch.stack(list(terms.values())).sum().backward()
    for output, taught in ((student, True), (teacher, False)):
        for leaf in (output.logits, output.boxes_cxcywh, *output.backbone_features, *output.neck_features):
            assert (leaf.grad is not None) == taught
    same = distillation.predictions(teacher, teacher, second, second, truth)
    same |= distillation.features(teacher, teacher)
    assert same.keys() == terms.keys() == {"kd_class", "kd_l1", "kd_giou", "kd_backbone", "kd_neck"}
    for name, value in same.items():
        assert value.item() == pytest.approx(0, abs=1e-5), name


def test_pooled_features_are_compared_image_by_image() -> None:
    student, teacher = make_output(5, 4, 3, seed=1), make_output(5, 4, 3, seed=2)
    found = pooled_feature_kl(student.backbone_features, teacher.backbone_features)
    total = 0.0
    for image in range(5):
        pooled = [
            torch.cat(
                [F.adaptive_avg_pool2d(level[image], 1).flatten() for level in output.backbone_features]
            )
            for output in (student, teacher)
        ]
        total += F.kl_div(pooled[0].log_softmax(0), pooled[1].softmax(0), reduction="sum").item()
    assert found.item() == pytest.approx(total / 5, rel=1e-5)


def test_an_image_contributes_the_same_in_a_batch_of_one() -> None:
    student, teacher = make_output(4, 4, 3, seed=1), make_output(4, 4, 3, seed=2)
    whole = pooled_feature_kl(student.neck_features, teacher.neck_features)
    alone = [
        pooled_feature_kl(
            [level[i : i + 1] for level in student.neck_features],
            [level[i : i + 1] for level in teacher.neck_features],
        )
        for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_a_feature_weight_of_zero_never_touches_the_features() -> None:
    student, teacher = make_output(2, 4, 3, seed=1), make_output(2, 4, 3, seed=2)
    without = [replace(output, backbone_features=()) for output in (student, teacher)]
    both = detr_distillation(backbone_weight=1, neck_weight=3).features(student, teacher)
    neck = detr_distillation(backbone_weight=0, neck_weight=3).features(*without)
    assert neck.keys() == {"kd_neck"}
    assert torch.equal(neck["kd_neck"], both["kd_neck"])


@pytest.mark.parametrize(
    ("classes", "options", "kd", "ground_truth"),
    [
        (6, {}, {"kd_class", "kd_l1", "kd_giou"}, set()),
        (1, {}, {"kd_class", "kd_l1", "kd_giou"}, {"vfl"}),
        (6, {"class_targets": "both", "box_targets": "both"}, {"kd_class", "kd_l1", "kd_giou"}, None),
        (6, {"class_targets": "ground_truth"}, {"kd_l1", "kd_giou"}, {"vfl"}),
        (6, {"class_targets": "ground_truth", "box_targets": "ground_truth"}, set(), None),
        (6, {"l1_weight": 0, "softmax_kl_weight": 0}, {"kd_giou"}, set()),
    ],
)
def test_the_choice_of_targets_selects_the_terms_of_the_last_layer(
    classes: int, options: dict[str, str | float], kd: set[str], ground_truth: set[str] | None
) -> None:
    student, teacher, targets, first, second = make_case((3,), classes=classes)
    distillation = detr_distillation(**options)
    truth = GroundTruth.collect(targets)
    assert distillation.predictions(student, teacher, first, second, truth).keys() == kd
    expected = {"vfl", "l1", "giou"} if ground_truth is None else ground_truth
    assert distillation.ground_truth_terms(classes) == expected


@pytest.mark.parametrize("counts", [(3, 2), (40, 2), (0, 0)])
def test_one_class_is_compared_beside_the_mean_of_the_teachers_logits(counts: tuple[int, ...]) -> None:
    student, teacher, targets, first, second = make_case(counts, classes=1)
    truth = GroundTruth.collect(targets)
    terms = detr_distillation().predictions(student, teacher, first, second, truth)
    ours, theirs = (
        {
            target: logits[image, query, 0].detach()
            for image, query, target in zip(
                side.images, side.queries[0], side.targets[0].tolist(), strict=True
            )
        }
        for side, logits in ((first, student.logits), (second, teacher.logits))
    )
    pairs = [(ours[target], theirs[target]) for target in ours.keys() & theirs.keys()]
    none = sum(wanted for _, wanted in pairs) / max(len(pairs), 1)
    divergence = sum(
        F.kl_div(
            torch.stack([score, none]).log_softmax(0), torch.stack([wanted, none]).softmax(0), reduction="sum"
        ).item()
        for score, wanted in pairs
    )
    # Twice the weight of two classes.
    weight = 2 * 3.75 * math.log(3) / math.log(81)
    assert terms["kd_class"].item() == pytest.approx(weight * divergence / max(sum(counts), 1), rel=1e-4)
    (gradient,) = torch.autograd.grad(terms["kd_class"], [student.logits])
    assert (gradient != 0).sum().item() == len(pairs)


def test_logits_of_one_class_near_zero_score_teach_as_much_as_those_of_even_score() -> None:
    """Early in training all scores are near 0.01; sigmoids hide their differences."""
    student, teacher, targets, first, second = make_case((3, 2), classes=1)
    truth = GroundTruth.collect(targets)

    def loss(shift: float, **options: str) -> float:
        low = [replace(output, logits=output.logits + shift) for output in (student, teacher)]
        return detr_distillation(**options).predictions(*low, first, second, truth)["kd_class"].item()

    assert loss(-4.6) == pytest.approx(loss(0), rel=1e-4)
    assert loss(-4.6, class_loss="bernoulli_kl") < 0.5 * loss(0, class_loss="bernoulli_kl")


@pytest.mark.parametrize("extreme", [60.0, -60.0])
def test_saturated_teachers_give_finite_losses(extreme: float) -> None:
    student, teacher, targets, first, second = make_case((3, 2))
    with torch.no_grad():
        teacher.logits.mul_(extreme)
    for class_loss in ("softmax_kl", "bernoulli_kl"):
        terms = detr_distillation(class_loss=class_loss).predictions(
            student, teacher, first, second, GroundTruth.collect(targets)
        )
        assert math.isfinite(terms["kd_class"].item())
        (gradient,) = torch.autograd.grad(terms["kd_class"], [student.logits])
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_loss": "kl"},
        {"class_targets": "student"},
        {"box_targets": "auto"},
        {"softmax_kl_weight": "classes/queries"},
        {"neck_weight": -1.0},
    ],
)
def test_unknown_choices_and_negative_weights_are_named(wrong: dict[str, str | float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*allowed"):
        detr_distillation(**wrong)
