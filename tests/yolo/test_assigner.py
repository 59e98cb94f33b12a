"""The task-aligned assigner against plain loops written from the formulas, and hand-made cases."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from anydepth.structures import Targets
from anydepth.yolo import assigner as assigner_module
from anydepth.yolo.assigner import Assignment, GroundTruth
from anydepth.yolo.decode import Predictions
from losses import task_aligned_assigner
from yolo.cases import HEIGHT, WIDTH, make_maps, make_targets

# Random cases with a closer choice than this are skipped: float32 and float64 may choose differently.
CLOSE = 1e-4


def make_case(counts: list[int], classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor, GroundTruth]:
    predictions = Predictions.decode([level.detach() for level in make_maps(len(counts), classes, seed)])
    truth = GroundTruth.collect(make_targets(counts, classes, seed), (HEIGHT, WIDTH))
    return predictions.class_logits.sigmoid(), predictions.boxes_xyxy, predictions.centres, truth


def overlaps(boxes: Tensor, wanted: Tensor) -> list[float]:
    loss = complete_box_iou_loss(boxes.double(), wanted.double().expand(len(boxes), -1))
    return (1 - loss).tolist()


def loop_assignment(
    scores: Tensor,
    boxes: Tensor,
    centres: Tensor,
    truth: GroundTruth,
    top_k: int,
    alpha: float,
    beta: float,
) -> tuple[list[dict[int, tuple[int, float]]], bool]:
    """Return anchor -> (box, soft target) for each image, and whether any choice was too close to compare."""
    images: list[dict[int, tuple[int, float]]] = []
    close = False
    for image in range(len(scores)):
        claims: dict[int, list[int]] = {}
        pairs: dict[tuple[int, int], tuple[float, float]] = {}
        for box in range(truth.valid.shape[1]):
            if not truth.valid[image, box]:
                continue
            x1, y1, x2, y2 = truth.boxes_xyxy[image, box].tolist()
            label = int(truth.labels[image, box])
            ranked = []
            for anchor, overlap in enumerate(overlaps(boxes[image], truth.boxes_xyxy[image, box])):
                x, y = centres[anchor].tolist()
                if min(x - x1, y - y1, x2 - x, y2 - y) <= 1e-9:
                    continue
                close |= abs(overlap) < 1e-5
                u = max(overlap, 0.0)
                t = float(scores[image, anchor, label]) ** alpha * u**beta
                pairs[box, anchor] = t, u
                if t > 0:
                    ranked.append((t, anchor))
            ranked.sort(reverse=True)
            if len(ranked) > top_k:
                close |= ranked[top_k][0] > (1 - CLOSE) * ranked[top_k - 1][0]
            for _, anchor in ranked[:top_k]:
                claims.setdefault(anchor, []).append(box)
        owners = {}
        for anchor, claimants in claims.items():
            # Several claims: the highest overlap of all boxes that contain the anchor decides.
            around = [box for box, other in pairs if other == anchor]
            rivals = around if len(claimants) > 1 else claimants
            ordered = sorted(rivals, key=lambda box: pairs[box, anchor][1], reverse=True)
            owners[anchor] = ordered[0]
            if len(ordered) > 1:
                close |= pairs[ordered[0], anchor][1] - pairs[ordered[1], anchor][1] < CLOSE
        found = {}
        for anchor, box in owners.items():
            own = [pairs[box, other] for other, owner in owners.items() if owner == box]
            largest_t, largest_u = max(t for t, _ in own), max(u for _, u in own)
            found[anchor] = box, pairs[box, anchor][0] * largest_u / (largest_t + 1e-9)
        images.append(found)
    return images, close


def check(found: Assignment, expected: list[dict[int, tuple[int, float]]], labels: Tensor) -> None:
    soft_targets = torch.zeros_like(found.soft_targets)
    for image, anchors in enumerate(expected):
        assert found.foreground[image].nonzero()[:, 0].tolist() == sorted(anchors)
        for anchor, (box, value) in anchors.items():
            assert found.targets[image, anchor] == box
            soft_targets[image, anchor, labels[image, box]] = value
    torch.testing.assert_close(found.soft_targets, soft_targets, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    classes=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    top_k=st.integers(1, 13),
    exponents=st.sampled_from([(0.5, 6.0), (1.0, 2.0), (0.0, 1.0)]),
)
def test_random_batches_are_assigned_by_the_formulas(
    counts: list[int], classes: int, seed: int, top_k: int, exponents: tuple[float, float]
) -> None:
    case = make_case(counts, classes, seed)
    expected, close = loop_assignment(*case, top_k, *exponents)
    assume(not close)
    found = task_aligned_assigner(top_k=top_k, alpha=exponents[0], beta=exponents[1])(*case)
    check(found, expected, case[3].labels)


def test_the_random_batches_hold_contested_and_unassigned_anchors() -> None:
    # Otherwise the test above would cover less than it claims.
    *predictions, truth = make_case([6, 0, 2], 3, seed=1)
    found = task_aligned_assigner()(*predictions, truth)
    claims = 0
    for box in range(6):
        alone = GroundTruth(truth.labels[:, [box]], truth.boxes_xyxy[:, [box]], truth.valid[:, [box]])
        claims += int(task_aligned_assigner()(*predictions, alone).foreground[0].sum())
    assert 0 < found.foreground[0].sum() < claims
    assert not found.foreground[1].any()


def test_a_hand_made_case() -> None:
    # Two anchors in one box; both predict it with the same score 0.25, the second one a quarter too narrow.
    wanted = [0.0, 0.0, 40.0, 40.0]
    truth = GroundTruth(torch.tensor([[1]]), torch.tensor([[wanted]]), torch.tensor([[True]]))
    boxes = torch.tensor([[wanted, [5.0, 0.0, 35.0, 40.0], wanted]])
    scores = torch.tensor([[[0.9, 0.25]] * 3])
    centres = torch.tensor([[12.0, 20.0], [20.0, 20.0], [60.0, 20.0]])
    found = task_aligned_assigner()(scores, boxes, centres, truth)
    assert found.foreground.tolist() == [[True, True, False]]
    # u = 1 and 3/4 minus the aspect term (concentric, so no distance): v = 4/pi^2 (atan 1 - atan 3/4)^2.
    v = 4 / torch.pi**2 * (torch.pi / 4 - torch.atan(torch.tensor(0.75))) ** 2
    u = 0.75 - v * v / (v - 0.75 + 1)
    # Equal scores cancel: t2 / t1 = u^6, and the largest is scaled to the largest overlap, 1.
    assert found.soft_targets[0, :, 1].tolist() == pytest.approx([1.0, float(u**6), 0.0], rel=1e-4)
    assert found.soft_targets[0, :, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.weights, found.soft_targets[..., 1])


def test_a_contested_anchor_goes_to_the_highest_overlap_of_all_boxes_that_contain_it() -> None:
    """Boxes 0 and 1 claim the first anchor, box 2 the second one; box 2 overlaps both predictions fully."""
    boxes = [[0.0, 0.0, 40.0, 36.0], [0.0, 0.0, 32.0, 40.0], [0.0, 0.0, 40.0, 40.0]]
    truth = GroundTruth(torch.tensor([[0, 1, 2]]), torch.tensor([boxes]), torch.tensor([[True] * 3]))
    predicted = torch.tensor([[boxes[2], boxes[2]]])
    centres = torch.tensor([[20.0, 20.0], [22.0, 20.0]])
    # Classes 0 and 1 score higher at the first anchor, class 2 at the second.
    scores = torch.tensor([[[0.9, 0.9, 0.2], [0.1, 0.1, 0.8]]])
    found = task_aligned_assigner(top_k=1, alpha=1.0, beta=1.0)(scores, predicted, centres, truth)
    assert found.foreground.tolist() == [[True, True]]
    assert found.targets.tolist() == [[2, 2]]
    # t = s, as u = 1: 0.2 and 0.8, scaled so that the largest is the largest overlap, 1.
    expected = torch.tensor([[[0, 0, 0.25], [0, 0, 1.0]]])
    torch.testing.assert_close(found.soft_targets, expected, atol=1e-4, rtol=0)


def test_an_anchor_that_one_box_claims_stays_its_own() -> None:
    """Box 1 overlaps the first prediction more, but only box 0 claims it."""
    boxes = [[0.0, 0.0, 40.0, 36.0], [0.0, 0.0, 40.0, 40.0]]
    truth = GroundTruth(torch.tensor([[0, 1]]), torch.tensor([boxes]), torch.tensor([[True] * 2]))
    predicted = torch.tensor([[boxes[1], boxes[1]]])
    centres = torch.tensor([[20.0, 20.0], [22.0, 20.0]])
    scores = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]])
    found = task_aligned_assigner(top_k=1, alpha=1.0, beta=1.0)(scores, predicted, centres, truth)
    assert found.targets.tolist() == [[0, 1]]


def test_an_anchor_on_a_side_is_outside() -> None:
    truth = GroundTruth(torch.tensor([[0]]), torch.tensor([[[8.0, 8.0, 24.0, 24.0]]]), torch.tensor([[True]]))
    centres = torch.tensor([[8.0, 16.0], [24.0, 16.0], [16.0, 8.0], [16.0, 24.0], [8.01, 23.99]])
    boxes = truth.boxes_xyxy.expand(1, 5, 4)
    found = task_aligned_assigner()(torch.full((1, 5, 1), 0.5), boxes, centres, truth)
    assert found.foreground.tolist() == [[False, False, False, False, True]]


def test_an_anchor_whose_prediction_misses_the_box_is_not_assigned() -> None:
    truth = GroundTruth(torch.tensor([[0]]), torch.tensor([[[0.0, 0, 20, 20]]]), torch.tensor([[True]]))
    far = torch.tensor([[[50.0, 50, 60, 60], [0, 0, 20, 20]]])
    centres = torch.tensor([[10.0, 10.0], [12.0, 10.0]])
    found = task_aligned_assigner()(torch.full((1, 2, 1), 0.5), far, centres, truth)
    assert found.foreground.tolist() == [[False, True]]


def test_padding_is_never_assigned_even_if_it_would_fit() -> None:
    scores, boxes, centres, truth = make_case([3, 3], 2, seed=4)
    hidden = GroundTruth(
        truth.labels, truth.boxes_xyxy, torch.tensor([[True, True, True], [True, False, False]])
    )
    found = task_aligned_assigner()(scores, boxes, centres, hidden)
    assert task_aligned_assigner()(scores, boxes, centres, truth).targets[1].max() == 2
    assert found.foreground[1].any()
    assert found.targets[1].max() == 0


@pytest.mark.parametrize("padded_boxes", [0, 1, 3])
def test_a_batch_without_boxes_is_all_background(padded_boxes: int) -> None:
    scores, boxes, centres, _ = make_case([0, 0], 2, seed=0)
    shape = (2, padded_boxes)
    truth = GroundTruth(
        torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool)
    )
    found = task_aligned_assigner()(scores, boxes, centres, truth)
    assert not found.foreground.any()
    assert not found.targets.any()
    assert found.soft_targets.shape == scores.shape
    assert not found.soft_targets.any()


def test_large_batches_are_assigned_in_chunks_with_the_same_result() -> None:
    case = make_case([3, 0, 6, 1, 2], 3, seed=2)
    whole = task_aligned_assigner()(*case)
    for pairs in (1, 2 * 6 * 126):
        with patch.object(assigner_module, "_MAX_PAIRS", pairs):
            chunked = task_aligned_assigner()(*case)
        for name in ("foreground", "targets", "soft_targets"):
            assert torch.equal(getattr(chunked, name), getattr(whole, name))


def test_each_image_is_assigned_as_if_it_were_alone() -> None:
    scores, boxes, centres, truth = make_case([3, 0, 6], 3, seed=5)
    batch = task_aligned_assigner()(scores, boxes, centres, truth)
    for image, count in enumerate([3, 0, 6]):
        rows = slice(image, image + 1), slice(0, count)
        own = GroundTruth(truth.labels[rows], truth.boxes_xyxy[rows], truth.valid[rows])
        alone = task_aligned_assigner()(scores[rows[0]], boxes[rows[0]], centres, own)
        for name in ("foreground", "targets", "soft_targets"):
            assert torch.equal(getattr(alone, name)[0], getattr(batch, name)[image])


def test_half_precision_scores_have_float32_targets() -> None:
    scores, boxes, centres, truth = make_case([4], 3, seed=0)
    found = task_aligned_assigner()(scores.bfloat16(), boxes, centres, truth)
    expected = task_aligned_assigner()(scores.bfloat16().float(), boxes, centres, truth)
    assert found.soft_targets.dtype == torch.float32
    assert torch.equal(found.soft_targets, expected.soft_targets)


def test_ground_truth_is_padded_and_converted_to_pixels() -> None:
    targets = [
        Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
        Targets(torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.1, 0.1]]), torch.tensor([2, 1])),
    ]
    truth = GroundTruth.collect(targets, (100, 200))
    assert truth.valid.tolist() == [[False, False], [True, True]]
    assert truth.labels.tolist() == [[0, 0], [2, 1]]
    expected = torch.tensor([[[0.0] * 4] * 2, [[80, 30, 120, 70], [40, 70, 60, 80]]])
    torch.testing.assert_close(truth.boxes_xyxy, expected)
    empty = GroundTruth.collect(targets[:1] * 3, (100, 200))
    assert empty.valid.tolist() == [[False]] * 3
    assert empty.boxes_xyxy.shape == (3, 1, 4)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"alpha": -1.0}, {"beta": -0.5}])
def test_numbers_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        task_aligned_assigner(**wrong)


def test_predictions_and_ground_truth_of_different_batches_are_refused() -> None:
    scores, boxes, centres, truth = make_case([1, 2], 2, seed=0)
    with pytest.raises(ValueError, match="got ground truth of 2 images, expected 1"):
        task_aligned_assigner()(scores[:1], boxes[:1], centres, truth)
