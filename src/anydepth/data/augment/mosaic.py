"""The mosaic of four images, and the mixture of two."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from anydepth.data.augment.random_arguments import probability, uniform
from anydepth.data.augment.scene import Scene, placed, scene_of
from anydepth.data.augment.view import View, image_size
from anydepth.images import letter_box_frame


class Mosaic:
    """Four images around a point of a canvas of twice the size (YOLOv4; Bochkovskiy et al., 2020).

    Each is as large as fits into the size with its aspect ratio; what leaves the canvas is cut off, and what
    stays empty shows the fill.

    Args:
        p: Probability; otherwise the image is letter-boxed.
    """

    partners = 3

    def __init__(self, *, p: float = 1.0) -> None:
        self.p = probability("p", p)

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> Scene:
        """The canvas of 2 x ``size`` (height, width): ``view`` top left, three partners clockwise."""
        # Whole pixels: the images meet between two columns and two rows.
        x, y = (int(uniform((side / 2, 3 * side / 2), generator)) for side in (size[1], size[0]))
        views = [view, *(load() for load in partners[: self.partners])]
        places = []
        for (right, below), each in zip(((0, 0), (1, 0), (1, 1), (0, 1)), views, strict=True):
            original = image_size(each.image)
            height, width = letter_box_frame(original, size).resized
            corner = (x if right else x - width, y if below else y - height)
            places.append(placed(original, (height, width), corner))
        return scene_of((2 * size[0], 2 * size[1]), views, places)


class MixUp:
    """Two samples on top of each other, with the objects of both (Zhang et al., ICLR 2018).

    Args:
        p: Probability.
        alpha: The share of each is drawn from Beta(alpha, alpha): the larger, the closer to a half.
    """

    def __init__(self, *, p: float = 0.15, alpha: int = 32) -> None:
        self.p = probability("p", p)
        if alpha < 1 or alpha != int(alpha):
            raise ValueError(f"alpha={alpha}: allowed are whole numbers from 1; 32 mixes about evenly")
        self.alpha = int(alpha)

    def __call__(self, first: View, second: View, generator: torch.Generator) -> View:
        """The mixture of two views of one size."""
        # The median of 2 alpha - 1 uniform numbers has just this distribution.
        share = float(torch.rand(2 * self.alpha - 1, generator=generator).median())
        one, other = (view.image.permute(1, 2, 0).numpy().astype(np.float32) for view in (first, second))
        mixed = one * share + other * (1 - share)
        return View.of(
            torch.from_numpy((mixed + 0.5).astype(np.uint8)).permute(2, 0, 1),
            torch.cat([view.boxes_xyxy.as_subclass(Tensor) for view in (first, second)]),
            torch.cat([first.labels, second.labels]),
        )
