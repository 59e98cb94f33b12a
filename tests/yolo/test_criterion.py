"""The criterion against loops over foreground anchors with torchvision's and torch's own losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from anydepth.structures import Targets
from anydepth.yolo.assigner import Assignment, GroundTruth
from anydepth.yolo.criterion import YoloCriterion, distribution_focal_loss, side_distances
from anydepth.yolo.decode import Predictions
from losses import yolo_criterion
from yolo.cases import HEIGHT, WIDTH, make_maps, make_targets


def make_criterion(**weights: float) -> YoloCriterion:
    return yolo_criterion(**weights)


def losses_of(
    maps: tuple[Tensor, ...], targets: list[Targets], **weights: float
) -> tuple[dict[str, Tensor], Predictions, GroundTruth, Assignment]:
    criterion = make_criterion(**weights)
    predictions = Predictions.decode(maps)
    truth = GroundTruth.collect(targets, (HEIGHT, WIDTH))
    assignment = criterion.assign(predictions, truth)
    return criterion.terms(predictions, truth, assignment), predictions, truth, assignment


def loop_losses(predictions: Predictions, truth: GroundTruth, assignment: Assignment) -> dict[str, Tensor]:
    """Compute the formulas of the specification, section 3.2, anchor by anchor."""
    images, anchors, _ = predictions.class_logits.shape
    normalizer = max(assignment.soft_targets.sum().item(), 1.0)
    box = dfl = torch.zeros(())
    for image in range(images):
        for anchor in range(anchors):
            if not assignment.foreground[image, anchor]:
                continue
            weight = assignment.soft_targets[image, anchor].sum()
            stride = predictions.strides[anchor]
            wanted = truth.boxes_xyxy[image, assignment.targets[image, anchor]] / stride
            box = box + weight * complete_box_iou_loss(predictions.boxes_xyxy[image, anchor] / stride, wanted)
            x, y = (predictions.centres[anchor] / stride).tolist()
            x1, y1, x2, y2 = wanted.tolist()
            for side, distance in enumerate((x - x1, y - y1, x2 - x, y2 - y)):
                d = min(max(distance, 0.0), 14.99)
                floor = int(d)
                logits = predictions.box_logits[image, anchor, side]
                entropies = [F.cross_entropy(logits, torch.tensor(bin_)) for bin_ in (floor, floor + 1)]
                dfl = dfl + weight / 4 * (entropies[0] * (floor + 1 - d) + entropies[1] * (d - floor))
    z, y = predictions.class_logits, assignment.soft_targets
    entropy = (y * F.softplus(-z) + (1 - y) * F.softplus(z)).sum()
    return {
        "box": 7.5 * box / normalizer,
        "class": 0.5 * entropy / normalizer,
        "dfl": 1.5 * dfl / normalizer,
    }


@pytest.mark.parametrize("counts", [(3, 5), (0, 4, 1), (1,)])
@pytest.mark.parametrize("classes", [1, 5])
def test_all_terms_and_their_gradients_equal_those_of_plain_loops(
    counts: tuple[int, ...], classes: int
) -> None:
    maps = make_maps(len(counts), classes, seed=3)
    ours, *context = losses_of(maps, make_targets(counts, classes))
    expected = loop_losses(*context)
    assert ours.keys() == expected.keys()
    assert context[-1].foreground.sum() > 3  # otherwise this case tests nothing
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, msg=name)
        gradients = torch.autograd.grad(value, maps, retain_graph=True)
        references = torch.autograd.grad(expected[name], maps, retain_graph=True)
        torch.testing.assert_close(gradients, references, atol=1e-5, rtol=1e-4, msg=name)


def test_the_class_loss_is_divided_by_the_sum_of_the_soft_targets_once_it_exceeds_one() -> None:
    _, *context = losses_of(make_maps(2, 3, seed=3), make_targets((3, 5), 3))
    total = context[-1].soft_targets.sum()
    assert total > 1  # the loops above could not distinguish it from 1 otherwise
    predictions, truth, assignment = context
    halves = Assignment(assignment.foreground, assignment.targets, assignment.soft_targets * 0.5 / total)
    small = make_criterion().terms(predictions, truth, halves)
    expected = 0.5 * F.binary_cross_entropy_with_logits(
        predictions.class_logits, halves.soft_targets, reduction="sum"
    )
    torch.testing.assert_close(small["class"], expected)


def test_a_distance_is_split_between_the_two_bins_around_it() -> None:
    logits = torch.randn(1, 1, 4, 16, generator=torch.Generator().manual_seed(0))
    # 2.25 lies between bins 2 and 3; 7 is a bin of its own; 40 is clipped to 14.99 and -3 to 0.
    found = distribution_focal_loss(logits, torch.tensor([[[2.25, 7.0, 40.0, -3.0]]]))
    shares = torch.zeros(4, 16)
    shares[0, [2, 3]] = torch.tensor([0.75, 0.25])
    shares[1, 7] = shares[3, 0] = 1
    shares[2, [14, 15]] = torch.tensor([0.01, 0.99])
    torch.testing.assert_close(found[0, 0], F.cross_entropy(logits[0, 0], shares))


def test_distances_are_those_of_left_top_right_and_bottom() -> None:
    found = side_distances(torch.tensor([[[1.0, 2.0, 10.0, 20.0]]]), torch.tensor([[4.0, 8.0]]))
    assert found.tolist() == [[[3.0, 6.0, 6.0, 12.0]]]


def test_without_boxes_only_the_background_has_losses() -> None:
    maps = make_maps(2, 3)
    terms, predictions, *_ = losses_of(maps, make_targets((0, 0), 3))
    # All labels are 0: BCE = sum softplus(z), divided by 1 (the minimum of S), times the weight 0.5.
    torch.testing.assert_close(terms["class"], 0.5 * F.softplus(predictions.class_logits).sum())
    assert terms["box"] == terms["dfl"] == 0
    torch.stack(list(terms.values())).sum().backward()
    for level in maps:
        assert level.grad is not None
        assert level.grad.isfinite().all()
        assert not level.grad[:, :64].any()
        assert level.grad[:, 64:].all()


def test_losses_do_not_depend_on_the_number_of_images() -> None:
    # S grows with the number of images, and so do the sums.
    maps, targets = make_maps(1, 3, seed=3), make_targets((5,), 3)
    alone, *_, assignment = losses_of(maps, targets)
    assert assignment.soft_targets.sum() > 1
    batch, *_ = losses_of(tuple(level.repeat(3, 1, 1, 1) for level in maps), targets * 3)
    for name, value in alone.items():
        torch.testing.assert_close(batch[name], value, msg=name)


def test_saturated_predictions_have_finite_losses_and_gradients() -> None:
    # All probability on one bin, which gives boxes without width or height at distance 0, among others.
    maps = tuple((200 * level.detach()).requires_grad_() for level in make_maps(2, 3))
    with torch.no_grad():
        maps[0][:, range(0, 64, 16)] = 1e4
    terms, *_ = losses_of(maps, make_targets((4, 2), 3))
    total = torch.stack(list(terms.values())).sum()
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, maps):
        assert gradient.isfinite().all()


def test_the_assignment_has_no_gradient() -> None:
    maps = make_maps(2, 3)
    _, _, _, assignment = losses_of(maps, make_targets((4, 2), 3))
    assert not assignment.soft_targets.requires_grad


@pytest.mark.parametrize("name", ["box", "class", "dfl"])
def test_a_weight_scales_its_own_term_and_zero_skips_it(name: str) -> None:
    maps, targets = make_maps(2, 3), make_targets((4, 2), 3)
    ones = {"box_weight": 1.0, "class_weight": 1.0, "dfl_weight": 1.0}
    base, *_ = losses_of(maps, targets, **ones)
    tripled, *_ = losses_of(maps, targets, **{**ones, f"{name}_weight": 3.0})
    for term, value in tripled.items():
        torch.testing.assert_close(value, base[term] * (3 if term == name else 1))
    off, *_ = losses_of(maps, targets, **{**ones, f"{name}_weight": 0.0})
    assert off.keys() == base.keys() - {name}


@pytest.mark.parametrize(
    "wrong", [{"box_weight": -1.0}, {"box_weight": 0.0, "class_weight": 0.0, "dfl_weight": 0.0}]
)
def test_weights_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        make_criterion(**wrong)
