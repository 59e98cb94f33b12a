"""The Hungarian matcher against the one in transformers, and in edge cases."""

import pytest
import torch
from torch import Tensor
from transformers import RTDetrConfig
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from anydepth.detr.matcher import NonFiniteCostError
from anydepth.structures import Targets
from losses import hungarian_matcher


def make_case(
    counts: tuple[int, ...], *, sets: int = 1, queries: int = 20, classes: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, list[Targets]]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(sets, len(counts), queries, classes, generator=generator)
    boxes = 0.1 + 0.5 * torch.rand(sets, len(counts), queries, 4, generator=generator)
    targets = [
        Targets(
            0.1 + 0.5 * torch.rand(count, 4, generator=generator),
            torch.randint(0, classes, (count,), generator=generator),
        )
        for count in counts
    ]
    return logits, boxes, targets


@pytest.mark.parametrize("counts", [(3, 7), (0, 5, 1), (30, 4), (20,)])
@pytest.mark.parametrize("classes", [1, 6])
def test_every_output_set_is_matched_as_in_transformers(counts: tuple[int, ...], classes: int) -> None:
    logits, boxes, targets = make_case(counts, sets=3, classes=classes)
    assignment = hungarian_matcher()(logits, boxes, targets)
    reference = RTDetrHungarianMatcher(RTDetrConfig())
    rows = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh} for t in targets]
    for output_set in range(3):
        expected = reference({"logits": logits[output_set], "pred_boxes": boxes[output_set]}, rows)
        images, queries, matched = [], [], []
        start = 0
        for image, (rows_of_image, columns) in enumerate(expected):
            images += [image] * len(rows_of_image)
            queries += rows_of_image.tolist()
            matched += (columns + start).tolist()
            start += counts[image]
        assert assignment.images.tolist() == images
        assert assignment.queries[output_set].tolist() == queries
        assert assignment.targets[output_set].tolist() == matched


def test_each_cost_alone_decides_the_match() -> None:
    # One target of class 1 in the middle; each query is the best in one respect only.
    target = Targets(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    logits = torch.tensor([[[[-3.0, 4.0], [-3.0, -3.0], [-3.0, -3.0]]]])
    far, near, overlapping = [0.9, 0.9, 0.1, 0.1], [0.57, 0.5, 0.1, 0.15], [0.5, 0.5, 0.4, 0.22]
    boxes = torch.tensor([[[far, near, overlapping]]])
    # L1: near .07 + .1 + .05 = .22, overlapping .2 + .02 = .22 -> make the first one slightly nearer
    boxes[0, 0, 1, 3] = 0.16
    # IoU: near 0.016 * 0.93 / union < 0.4; overlapping 0.04 / 0.088 = 0.45
    for name, winner in (("class_cost", 0), ("l1_cost", 1), ("giou_cost", 2)):
        costs = {"class_cost": 0.0, "l1_cost": 0.0, "giou_cost": 0.0, name: 1.0}
        assert hungarian_matcher(**costs)(logits, boxes, [target]).queries.tolist() == [[winner]]


def test_more_boxes_than_queries_uses_every_query_once() -> None:
    assignment = hungarian_matcher()(*make_case((50, 2), sets=2, queries=8))
    assert assignment.queries.shape == (2, 10)
    assert assignment.queries[0, :8].tolist() == list(range(8))
    assert len(set(assignment.targets[0, :8].tolist())) == 8


def test_a_batch_without_boxes_has_no_pairs() -> None:
    logits, boxes, targets = make_case((0, 0), sets=4)
    assignment = hungarian_matcher()(logits, boxes, targets)
    assert assignment.queries.shape == assignment.targets.shape == (4, 0)
    assert assignment.gather(boxes).shape == (4, 0, 4)


def test_half_precision_predictions_are_matched_in_float32() -> None:
    logits, boxes, targets = make_case((5, 3))
    half = hungarian_matcher()(logits.bfloat16(), boxes.bfloat16(), targets)
    widened = hungarian_matcher()(logits.bfloat16().float(), boxes.bfloat16().float(), targets)
    assert torch.equal(half.queries, widened.queries)


@pytest.mark.parametrize(
    ("where", "named"),
    [("logits", "predicted logits"), ("boxes", "predicted boxes"), ("targets", "ground-truth boxes")],
)
def test_a_non_finite_cost_names_the_culprit_the_set_and_the_image(where: str, named: str) -> None:
    logits, boxes, targets = make_case((2, 3), sets=2)
    spoilt = {"logits": logits[1, 1, 4], "boxes": boxes[1, 1, 4], "targets": targets[1].boxes_cxcywh[0]}
    spoilt[where][0:] = torch.nan
    with pytest.raises(NonFiniteCostError, match=named) as caught:
        hungarian_matcher()(logits, boxes, targets)
    assert caught.value.images == (1,)
    assert "images [1]" in str(caught.value)
    sets = "[0, 1]" if where == "targets" else "[1]"
    assert f"sets {sets} of 2" in str(caught.value)


def test_predictions_and_targets_of_different_batches_are_refused() -> None:
    logits, boxes, targets = make_case((1, 2))
    with pytest.raises(ValueError, match="got targets of 1 images, expected 2"):
        hungarian_matcher()(logits, boxes, targets[:1])


@pytest.mark.parametrize(
    "wrong",
    [{"class_cost": -1.0}, {"class_cost": 0.0, "l1_cost": 0.0, "giou_cost": 0.0}, {"alpha": 2.0}],
)
def test_costs_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        hungarian_matcher(**wrong)
