"""Distillation losses against plain loops over anchors and images, and masks computed by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from anydepth.yolo.assigner import Assignment, GroundTruth
from anydepth.yolo.decode import Predictions
from anydepth.yolo.distillation import distilled_weights, pooled_feature_distance
from anydepth.yolo.output import YoloOutput
from losses import yolo_criterion, yolo_distillation
from yolo.cases import HEIGHT, WIDTH, leaves_of, make_output, make_targets, repeated

Case = tuple[YoloOutput, YoloOutput, Predictions, Predictions, Assignment, Assignment]


def make_case(counts: tuple[int, ...], *, classes: int = 4, times: int = 1) -> Case:
    """Make outputs, predictions and assignments of student and teacher. The batch may be repeated."""
    outputs = [repeated(make_output(len(counts), classes, seed), times) for seed in (1, 2)]
    truth = GroundTruth.collect(make_targets(counts, classes) * times, (HEIGHT, WIDTH))
    decoded = [Predictions.decode(output.maps) for output in outputs]
    criterion = yolo_criterion()
    first, second = (criterion.assign(predictions, truth) for predictions in decoded)
    return outputs[0], outputs[1], decoded[0], decoded[1], first, second


def loop_losses(
    student: Predictions,
    teacher: Predictions,
    first: Assignment,
    second: Assignment,
    class_loss: str,
    class_temperature: float,
    dfl_temperature: float,
) -> dict[str, float]:
    """Compute section 3.3 of the specification, anchor by anchor, with weights of 1."""
    sums = {"kd_box": 0.0, "kd_class": 0.0, "kd_dfl": 0.0}
    weights = dict.fromkeys(sums, 0.0)
    images, anchors, _ = student.class_logits.shape
    for i, a in ((i, a) for i in range(images) for a in range(anchors)):
        seen, taught = bool(first.foreground[i, a]), bool(second.foreground[i, a])
        conflict = seen and taught and bool(first.targets[i, a] != second.targets[i, a])
        if not taught or conflict:
            continue
        w = second.soft_targets[i, a].sum().item()
        z_s, z_t = (p.class_logits[i, a].detach() / class_temperature for p in (student, teacher))
        if class_loss == "softmax_kl":
            divergence = F.kl_div(z_s.log_softmax(0), z_t.softmax(0), reduction="sum").item()
        else:
            divergence = sum(
                F.kl_div(
                    torch.stack([ours, -ours]).sigmoid().log(),
                    torch.stack([wanted, -wanted]).sigmoid(),
                    reduction="sum",
                ).item()
                for ours, wanted in zip(z_s, z_t, strict=True)
            )
        sums["kd_class"] += class_temperature**2 * w * divergence
        weights["kd_class"] += w
        if not seen:
            continue
        stride = student.strides[a]
        boxes = [p.boxes_xyxy[i, a].detach() / stride for p in (student, teacher)]
        sums["kd_box"] += w * complete_box_iou_loss(*boxes).item()
        for side in range(4):
            b_s, b_t = (p.box_logits[i, a, side].detach() / dfl_temperature for p in (student, teacher))
            sums["kd_dfl"] += w / 4 * F.kl_div(b_s.log_softmax(0), b_t.softmax(0), reduction="sum").item()
        weights["kd_box"] += w
        weights["kd_dfl"] += w
    return {name: value / max(weights[name], 1.0) for name, value in sums.items()}


@pytest.mark.parametrize("counts", [(3, 5), (0, 4, 1), (6, 6), (0, 0)])
@pytest.mark.parametrize("class_loss", ["softmax_kl", "bernoulli_kl"])
@pytest.mark.parametrize("temperatures", [(2.0, 1.0), (1.5, 3.0)])
def test_predictions_are_compared_anchor_by_anchor(
    counts: tuple[int, ...], class_loss: str, temperatures: tuple[float, float]
) -> None:
    _, _, *case = make_case(counts)
    distillation = yolo_distillation(
        class_loss=class_loss, class_temperature=temperatures[0], dfl_temperature=temperatures[1]
    )
    terms = distillation.predictions(*case)
    expected = loop_losses(*case, class_loss, *temperatures)
    # Weights of the released L model (specification, 3.4).
    weights = {"kd_box": 1.2, "kd_class": 0.4, "kd_dfl": 0.8}
    assert terms.keys() == weights.keys()
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(weights[name] * expected[name], rel=1e-4, abs=1e-6), name


def test_the_cases_hold_conflicts_and_anchors_of_one_pass_alone() -> None:
    # Otherwise the loops above would cover less than they claim.
    *_, first, second = make_case((6, 6))
    both = first.foreground & second.foreground
    assert (both & (first.targets != second.targets)).any()
    assert (both & (first.targets == second.targets)).any()
    assert (second.foreground & ~first.foreground).any()
    assert (first.foreground & ~second.foreground).any()
    taught, shared = distilled_weights(first, second)
    assert taught.sum() > 1  # otherwise the divisor would be 1
    assert shared.sum() > 1


def test_an_anchor_counts_if_the_teacher_sees_an_object_and_the_student_no_other() -> None:
    # Anchors: same box, conflict, teacher alone, student alone, background.
    student = Assignment(
        torch.tensor([[True, True, False, True, False]]), torch.tensor([[1, 0, 0, 1, 0]]), torch.ones(1, 5, 2)
    )
    soft_targets = torch.tensor([[[0.5, 0.0], [0.0, 0.4], [0.3, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    teacher = Assignment(
        torch.tensor([[True, True, True, False, False]]), torch.tensor([[1, 1, 1, 0, 0]]), soft_targets
    )
    taught, shared = distilled_weights(student, teacher)
    torch.testing.assert_close(taught, torch.tensor([[0.5, 0, 0.3, 0, 0]]))
    torch.testing.assert_close(shared, torch.tensor([[0.5, 0, 0, 0, 0]]))


def test_the_divisor_is_the_sum_of_the_weights_once_it_exceeds_one() -> None:
    _, _, student, teacher, first, second = make_case((6, 6))
    distillation = yolo_distillation()
    base = distillation.predictions(student, teacher, first, second)
    doubled = replace(second, soft_targets=2 * second.soft_targets)
    tiny = replace(second, soft_targets=1e-3 * second.soft_targets)
    more = distillation.predictions(student, teacher, first, doubled)
    less = distillation.predictions(student, teacher, first, tiny)
    taught, shared = distilled_weights(first, second)
    for name, value in base.items():
        torch.testing.assert_close(more[name], value)
        total = (taught if name == "kd_class" else shared).sum()
        torch.testing.assert_close(less[name], 1e-3 * total * value)


def test_features_are_compared_map_by_map_and_image_by_image() -> None:
    student, teacher, *_ = make_case((1, 1, 1))
    found = yolo_distillation(feature_weight=0.7).features(student, teacher)
    assert found.keys() == {"kd_feature"}
    total = 0.0
    # Strides 16 and 32 of the backbone, all of the neck: layers 6, 8, 14, 17, 20.
    pairs = [
        *zip(student.backbone_features[1:], teacher.backbone_features[1:], strict=True),
        *zip(student.neck_features, teacher.neck_features, strict=True),
    ]
    for ours, theirs in pairs:
        for image in range(3):
            pooled = [F.adaptive_avg_pool2d(level[image], 1).flatten() for level in (ours, theirs)]
            # Squared distance of unit vectors = 2 (1 - cosine).
            total += 2 * (1 - F.cosine_similarity(*pooled, dim=0)).item()
    # Mean over 5 maps and 3 images.
    assert found["kd_feature"].item() == pytest.approx(0.7 * total / (5 * 3), rel=1e-5)


def test_an_image_contributes_the_same_in_a_batch_of_one() -> None:
    student, teacher, *_ = make_case((1, 1, 1))
    whole = pooled_feature_distance(student.neck_features, teacher.neck_features)
    alone = [
        pooled_feature_distance(
            [level[i : i + 1] for level in student.neck_features],
            [level[i : i + 1] for level in teacher.neck_features],
        )
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_losses_do_not_depend_on_the_number_of_images() -> None:
    distillation = yolo_distillation()

    def losses(times: int) -> dict[str, Tensor]:
        student, teacher, *case = make_case((6,), times=times)
        assert distilled_weights(case[2], case[3])[1].sum() > 1
        return distillation.predictions(*case) | distillation.features(student, teacher)

    alone, batch = losses(1), losses(3)
    for name, value in alone.items():
        torch.testing.assert_close(batch[name], value, msg=name)


def test_the_teacher_gets_no_gradient_and_an_equal_student_no_loss() -> None:
    student, teacher, ours, theirs, first, second = make_case((6, 2))
    distillation = yolo_distillation()
    terms = distillation.predictions(ours, theirs, first, second) | distillation.features(student, teacher)
    torch.stack(list(terms.values())).sum().backward()
    for leaf in leaves_of(student):
        # The finest map of the backbone is not compared.
        assert (leaf.grad is None) == (leaf is student.backbone_features[0])
        assert leaf.grad is None or leaf.grad.isfinite().all()
    assert all(leaf.grad is None for leaf in leaves_of(teacher))
    same = distillation.predictions(theirs, theirs, second, second)
    same |= distillation.features(teacher, teacher)
    assert len(same) == 4
    for name, value in same.items():
        assert value.item() == pytest.approx(0, abs=1e-5), name


def test_a_weight_of_zero_skips_its_term_and_never_touches_its_inputs() -> None:
    student, teacher, *case = make_case((3, 2))
    for weight, name in (("box_weight", "kd_box"), ("class_weight", "kd_class"), ("dfl_weight", "kd_dfl")):
        terms = yolo_distillation(**{weight: 0.0}).predictions(*case)
        assert terms.keys() == {"kd_box", "kd_class", "kd_dfl"} - {name}
    without = [replace(output, backbone_features=(), neck_features=()) for output in (student, teacher)]
    assert yolo_distillation(feature_weight=0).features(*without) == {}
    off = {"box_weight": 0.0, "class_weight": 0.0, "dfl_weight": 0.0}
    assert yolo_distillation(**off).levels == {"features"}
    assert yolo_distillation(feature_weight=0).levels == {"predictions"}
    assert yolo_distillation(**off, feature_weight=0).levels == frozenset()


def test_without_boxes_the_terms_are_zero_with_finite_gradients() -> None:
    student, _, *case = make_case((0, 0))
    terms = yolo_distillation().predictions(*case)
    assert [value.item() for value in terms.values()] == [0, 0, 0]
    for gradient in torch.autograd.grad(torch.stack(list(terms.values())).sum(), student.maps):
        assert not gradient.any()


def test_one_class_is_compared_beside_the_mean_of_the_teachers_logits() -> None:
    student, _, *case = make_case((3, 2), classes=1)
    terms = yolo_distillation().predictions(*case)
    ours, theirs, first, second = case
    taught, _ = distilled_weights(first, second)
    none = (taught * theirs.class_logits[..., 0]).sum() / taught.sum()
    # Two classes, of which the second has that logit everywhere.
    two = [
        replace(side, class_logits=torch.cat([side.class_logits, none.expand_as(side.class_logits)], -1))
        for side in (ours, theirs)
    ]
    expected = loop_losses(*two, first, second, "softmax_kl", 2.0, 1.0)
    assert terms["kd_class"].item() == pytest.approx(0.4 * expected["kd_class"], rel=1e-4)
    gradients = torch.autograd.grad(terms["kd_class"], student.maps)
    assert any(gradient[:, 64:].any() for gradient in gradients)


@pytest.mark.parametrize("extreme", [60.0, -60.0])
def test_saturated_teachers_give_finite_losses(extreme: float) -> None:
    student, _, ours, theirs, first, second = make_case((3, 2))
    theirs = replace(
        theirs, class_logits=extreme * theirs.class_logits, box_logits=extreme * theirs.box_logits
    )
    for class_loss in ("softmax_kl", "bernoulli_kl"):
        terms = yolo_distillation(class_loss=class_loss).predictions(ours, theirs, first, second)
        total = torch.stack(list(terms.values())).sum()
        assert math.isfinite(total.item())
        for gradient in torch.autograd.grad(total, student.maps, retain_graph=True):
            assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_loss": "kl"},
        {"box_weight": -1.0},
        {"feature_weight": -0.1},
        {"class_temperature": 0.0},
        {"dfl_temperature": -1.0},
    ],
)
def test_unknown_choices_and_numbers_outside_their_range_are_named(wrong: dict[str, str | float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*allowed"):
        yolo_distillation(**wrong)
