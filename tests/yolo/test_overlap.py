"""CIoU against torchvision's, and for boxes for which torchvision's has no gradient."""

import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from anydepth.yolo.overlap import complete_iou


def random_boxes(*shape: int, seed: int) -> Tensor:
    corners = 50 * torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners.amin(-2), corners.amax(-2) + 1], dim=-1)


def test_values_and_gradients_equal_those_of_torchvision() -> None:
    first, second = (random_boxes(200, seed=seed).requires_grad_() for seed in (1, 2))
    found, expected = 1 - complete_iou(first, second), complete_box_iou_loss(first, second)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    # The gradients are equal only because neither differentiates the weight of the aspect term.
    gradients = torch.autograd.grad(found.sum(), [first, second])
    references = torch.autograd.grad(expected.sum(), [first, second])
    torch.testing.assert_close(gradients, references, atol=1e-6, rtol=1e-4)


def test_leading_axes_broadcast() -> None:
    first, second = random_boxes(7, seed=1), random_boxes(5, seed=2)
    table = complete_iou(first, second[:, None])
    assert table.shape == (5, 7)
    for row in range(5):
        for column in range(7):
            torch.testing.assert_close(table[row, column], complete_iou(first[column], second[row]))


def test_boxes_without_area_have_finite_overlaps_and_gradients() -> None:
    flat = torch.tensor([[5.0, 5, 9, 5], [5, 5, 5, 9], [5, 5, 5, 5], [0, 0, 0, 0]]).requires_grad_()
    for other in (torch.tensor([4.0, 4, 8, 7]), torch.zeros(4), torch.tensor([5.0, 5, 5, 5])):
        overlap = complete_iou(flat, other)
        assert overlap.isfinite().all()
        (gradient,) = torch.autograd.grad(overlap.sum(), [flat])
        assert gradient.isfinite().all()
