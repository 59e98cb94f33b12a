"""Pictures whose pixels identify their objects, and a simple mosaic as the reference."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anydepth.data.augment.view import View
from anydepth.data.outlines import Outlines

BACKGROUND = 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(view: View) -> tuple[Tensor, Tensor]:
    return view.image.as_subclass(Tensor), view.boxes_xyxy.as_subclass(Tensor)


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour of one of 16 labels; far from the others, the background and grey."""
    return 255 * (label % 2), 30 * (label // 2), 255 * (1 - label % 2)


def painted(
    height: int, width: int, boxes: Sequence[Sequence[int]], *, first_label: int = 0, outlined: bool = False
) -> View:
    """Paint each box in the colour of its label; later boxes cover earlier ones."""
    image = torch.full((height, width, 3), BACKGROUND, dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1] = torch.tensor(colour_of(first_label + number), dtype=torch.uint8)
    return View.of(
        image.permute(2, 0, 1),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(first_label, first_label + len(boxes)),
        rectangles(boxes) if outlined else None,
    )


def rectangles(boxes: Sequence[Sequence[float]]) -> Outlines:
    """Return the boxes as polygons."""
    rings = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in boxes]
    starts = np.arange(len(boxes) + 1, dtype=np.int64)
    return Outlines(np.array(rings, np.float32).reshape(-1, 2), 4 * starts, starts)


def loaders(views: Sequence[View]) -> list[Callable[[], View]]:
    return [lambda view=view: view for view in views]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize in float, so that no intermediate result is rounded."""
    return F.resize(image.float(), list(size), antialias=True)


def mapped(canvas: Tensor, scale: float, shift: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Interpolate every output pixel between four pixels of the canvas; outside it is the fill."""
    rows = (torch.arange(size[0]) + 0.5 - shift[1]) / scale
    columns = (torch.arange(size[1]) + 0.5 - shift[0]) / scale
    grid = torch.stack(torch.meshgrid(columns / canvas.shape[2], rows / canvas.shape[1], indexing="xy"), -1)
    sampled = torch.nn.functional.grid_sample(
        (canvas.float() - 114)[None], grid[None] * 2 - 1, align_corners=False
    )
    return sampled[0] + 114
