"""Mosaic of four images, and mixup of two."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from anydepth.data.augment.random_arguments import check_probability, draw_uniform
from anydepth.data.augment.scene import Scene, compose_scene, placement_map
from anydepth.data.augment.view import View, image_size
from anydepth.pictures.fitting import letter_box_frame


class Mosaic:
    """Mosaic of four images around a point of a canvas of twice the size (YOLOv4; Bochkovskiy et al., 2020).

    Each image is as large as fits into the size with its aspect ratio, and is clipped to the canvas; empty
    regions show the fill.

    Args:
        p: Probability of a mosaic; otherwise the image is letter-boxed.
    """

    partners = 3

    def __init__(self, *, p: float = 1.0) -> None:
        self.p = check_probability("p", p)

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> Scene:
        """Compose a canvas of 2 x ``size`` (height, width): ``view`` top left, three partners clockwise."""
        # Whole pixels, so that the images meet at pixel borders.
        x, y = (int(draw_uniform((side / 2, 3 * side / 2), generator)) for side in (size[1], size[0]))
        views = [view, *(load() for load in partners[: self.partners])]
        places = []
        for (right, below), each in zip(((0, 0), (1, 0), (1, 1), (0, 1)), views, strict=True):
            original = image_size(each.image)
            height, width = letter_box_frame(original, size).resized
            corner = (x if right else x - width, y if below else y - height)
            places.append(placement_map(original, (height, width), corner))
        return compose_scene((2 * size[0], 2 * size[1]), views, places)


class MixUp:
    """Weighted mean of two samples, with the objects of both (Zhang et al., ICLR 2018).

    Args:
        p: Probability of mixing.
        alpha: Parameter of Beta(alpha, alpha), from which the weight is drawn: the larger, the closer to 0.5.
    """

    def __init__(self, *, p: float = 0.15, alpha: int = 32) -> None:
        self.p = check_probability("p", p)
        if alpha < 1 or alpha != int(alpha):
            raise ValueError(f"got alpha={alpha}, expected a whole number from 1; 32 mixes about evenly")
        self.alpha = int(alpha)

    def __call__(self, first: View, second: View, generator: torch.Generator) -> View:
        """Mix two views of equal size."""
        # The median of 2 alpha - 1 uniform numbers is distributed as Beta(alpha, alpha).
        weight = float(torch.rand(2 * self.alpha - 1, generator=generator).median())
        one, other = (view.image.permute(1, 2, 0).numpy().astype(np.float32) for view in (first, second))
        mixed = one * weight + other * (1 - weight)  # [H, W, 3]
        return View.of(
            torch.from_numpy((mixed + 0.5).astype(np.uint8)).permute(2, 0, 1),
            torch.cat([view.boxes_xyxy.as_subclass(Tensor) for view in (first, second)]),
            torch.cat([first.labels, second.labels]),
        )
