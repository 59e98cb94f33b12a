"""Boxes against torchvision's all-pairs functions and cases computed by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from anydepth.layers.boxes import cxcywh_to_xyxy, paired_iou_giou, xyxy_to_cxcywh


def random_boxes(count: int, seed: int) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 0.01], dim=1)


def test_formats_are_centre_and_size_and_corners() -> None:
    assert torch.equal(
        cxcywh_to_xyxy(torch.tensor([[4.0, 5.0, 2.0, 6.0]])), torch.tensor([[3.0, 2.0, 5.0, 8.0]])
    )
    assert torch.equal(xyxy_to_cxcywh(torch.tensor([3.0, 2.0, 5.0, 8.0])), torch.tensor([4.0, 5.0, 2.0, 6.0]))


@given(st.lists(st.floats(0, 1000, width=32), min_size=4, max_size=4))
def test_conversions_round_trip(values: list[float]) -> None:
    boxes = torch.tensor([values])
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-3, rtol=1e-5)


def test_paired_overlaps_are_the_diagonal_of_all_pairs() -> None:
    first, second = random_boxes(200, 0), random_boxes(200, 1)
    iou, giou = paired_iou_giou(first, second)
    torch.testing.assert_close(iou, box_iou(first, second).diagonal())
    torch.testing.assert_close(giou, generalized_box_iou(first, second).diagonal(), atol=1e-6, rtol=1e-5)
    assert (iou > 0).any()
    assert (iou == 0).any()


@pytest.mark.parametrize(
    ("first", "second", "iou", "giou"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0, 1.0),
        # Intersection 1, union 7, hull 9.
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        # Apart: union 2, hull 3.
        ([0, 0, 1, 1], [2, 0, 3, 1], 0.0, -1 / 3),
    ],
)
def test_overlaps_computed_by_hand(first: list[float], second: list[float], iou: float, giou: float) -> None:
    found = paired_iou_giou(torch.tensor([first]).float(), torch.tensor([second]).float())
    assert [value.item() for value in found] == pytest.approx([iou, giou], abs=1e-6)


def test_boxes_without_extent_have_finite_overlaps_and_gradients() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    for other in (point.detach(), torch.tensor([[0.5, 0.5, 0.7, 0.7]])):
        iou, giou = paired_iou_giou(point, other)
        assert iou.item() == 0
        assert torch.isfinite(giou)
        (gradient,) = torch.autograd.grad(giou.sum(), point)
        assert torch.isfinite(gradient).all()


def test_no_pairs_have_no_overlaps() -> None:
    iou, giou = paired_iou_giou(torch.zeros(0, 4), torch.zeros(0, 4))
    assert iou.shape == giou.shape == (0,)
