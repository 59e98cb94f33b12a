"""The training augmentation of YOLOv12 (Tian et al., 2025), with which AnyDepth-YOLO is trained.

Mosaic, copy-paste, random affine map, mixup, colours and flips, in this order. The published list also blurs,
converts to grey or equalises one image in a hundred each (its "light" part), which is left out here.
"""

from collections.abc import Callable, Sequence

import torch

from anydepth.data.augment.affine import RandomAffine, scale_about_centre
from anydepth.data.augment.copy_paste import CopyPaste
from anydepth.data.augment.hsv import HSVJitter
from anydepth.data.augment.mosaic import MixUp, Mosaic
from anydepth.data.augment.random_arguments import check_grey_level, draw_bernoulli
from anydepth.data.augment.scene import letter_box_scene
from anydepth.data.augment.view import Turn, View

Partners = Sequence[Callable[[], View]]


class YOLOAugmentation:
    """YOLO's transforms in their order; None leaves one out.

    Without partners, as in the final epochs, nothing is mixed: the image is letter-boxed, and the affine map,
    the colours and the flips follow. The same holds for an image for which no mosaic is drawn.

    Args:
        mosaic: Mosaic of four images.
        copy_paste: Copy-paste of mirrored objects; has no effect on objects without polygons.
        affine: Scale and translation; None shows the centre of a mosaic, and all of a letter-boxed image.
        mixup: Weighted mean of two samples.
        hsv: Colour changes.
        turn: Flips, and rotations by right angles if the size is square.
        fill: Grey level outside the images.
    """

    def __init__(
        self,
        *,
        mosaic: Mosaic | None = None,
        copy_paste: CopyPaste | None = None,
        affine: RandomAffine | None = None,
        mixup: MixUp | None = None,
        hsv: HSVJitter | None = None,
        turn: Turn | None = None,
        fill: int = 114,
    ) -> None:
        self.mosaic = mosaic if mosaic is not None and mosaic.p else None
        self.copy_paste = copy_paste
        self.affine = affine
        self.mixup = mixup if mixup is not None and mixup.p else None
        self.hsv = hsv
        self.turn = turn
        self.outlines = copy_paste is not None and copy_paste.share > 0
        self.fill = check_grey_level("fill", fill)
        self._mosaic_partners = 0 if self.mosaic is None else self.mosaic.partners
        self.partners = self._mosaic_partners + (0 if self.mixup is None else 1 + self._mosaic_partners)

    def __call__(
        self, view: View, partners: Partners, generator: torch.Generator, size: tuple[int, int]
    ) -> View:
        """See :class:`anydepth.data.augment.view.Augmentation`; the output has exactly ``size``.

        Raises:
            ValueError: There are partners, but fewer than ``self.partners``; or the size is not square,
                although ``turn`` may swap rows and columns.
        """
        self._check_arguments(partners, size)
        augmented = self._compose(view, partners[: self._mosaic_partners], generator, size)
        if partners and self.mixup is not None and draw_bernoulli(self.mixup.p, generator):
            other, *rest = partners[self._mosaic_partners :]
            augmented = self.mixup(augmented, self._compose(other(), rest, generator, size), generator)
        if self.hsv is not None:
            augmented = self.hsv(augmented, generator)
        return augmented if self.turn is None else self.turn(augmented, generator)

    def _compose(
        self, view: View, partners: Partners, generator: torch.Generator, size: tuple[int, int]
    ) -> View:
        """Apply the transforms up to the affine map to one sample."""
        if partners and self.mosaic is not None and draw_bernoulli(self.mosaic.p, generator):
            scene = self.mosaic(view, partners, generator, size)
        else:
            scene = letter_box_scene(view, size)
        if partners and self.copy_paste is not None:
            scene = self.copy_paste(scene)
        if self.affine is None:
            to_output = scale_about_centre(scene.size, 1.0, (size[1] / 2, size[0] / 2))
        else:
            to_output = self.affine(scene.size, size, generator)
        return scene.render(to_output, size, self.fill)

    def _check_arguments(self, partners: Partners, size: tuple[int, int]) -> None:
        if 0 < len(partners) < self.partners:
            raise ValueError(
                f"got {len(partners)} partners, expected {self.partners}; give none at all to leave out "
                "mosaic, copy-paste and mixup"
            )
        if self.turn is not None and self.turn.transpose and size[0] != size[1]:
            raise ValueError(
                f"got turn.transpose={self.turn.transpose} with a size of {size[0]} x {size[1]}; swapping "
                "rows and columns requires a square size: set transpose to 0"
            )
