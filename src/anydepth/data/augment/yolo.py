"""What training does to images: the list of YOLOv12 (Tian et al., 2025), with which AnyDepth-YOLO is trained.

Mosaic, copy-paste, random affine map, mixup, colours, flips, in this order. The published list also blurs,
greys or equalises one image in a hundred each (its "light" part); that is left out.
"""

from collections.abc import Callable, Sequence

import torch

from anydepth.data.augment.affine import RandomAffine, scaled_about_centre
from anydepth.data.augment.copy_paste import CopyPaste
from anydepth.data.augment.hsv import HSVJitter
from anydepth.data.augment.mosaic import MixUp, Mosaic
from anydepth.data.augment.random_arguments import grey_level, happens
from anydepth.data.augment.scene import letter_boxed
from anydepth.data.augment.view import Turn, View

Partners = Sequence[Callable[[], View]]


class YOLOAugmentation:
    """The training list of YOLO; None leaves a part out.

    Without partners, as in the closing epochs, nothing is mixed: an image is letter-boxed, and the affine
    map, the colours and the flips follow. So is an image that no mosaic is made of.

    Args:
        mosaic: Four images in one.
        copy_paste: Mirror images of objects; does something where objects have polygons.
        affine: Scale and translation; None shows the middle of a mosaic, and all of a letter-boxed image.
        mixup: Two samples on top of each other.
        hsv: Colours.
        turn: Flips, and right angles if the size is square.
        fill: Grey level beside images.
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
        self.fill = grey_level("fill", fill)
        self._mosaic_partners = 0 if self.mosaic is None else self.mosaic.partners
        self.partners = self._mosaic_partners + (0 if self.mixup is None else 1 + self._mosaic_partners)

    def __call__(
        self, view: View, partners: Partners, generator: torch.Generator, size: tuple[int, int]
    ) -> View:
        """See :class:`anydepth.data.augment.view.Augmentation`; the view that comes out has exactly ``size``.

        Raises:
            ValueError: Fewer partners than ``self.partners``, but some; or a size that is not square where
                rows and columns may be swapped.
        """
        self._check(partners, size)
        augmented = self._placed(view, partners[: self._mosaic_partners], generator, size)
        if partners and self.mixup is not None and happens(self.mixup.p, generator):
            other, *rest = partners[self._mosaic_partners :]
            augmented = self.mixup(augmented, self._placed(other(), rest, generator, size), generator)
        if self.hsv is not None:
            augmented = self.hsv(augmented, generator)
        return augmented if self.turn is None else self.turn(augmented, generator)

    def _placed(
        self, view: View, partners: Partners, generator: torch.Generator, size: tuple[int, int]
    ) -> View:
        """One sample up to the affine map."""
        if partners and self.mosaic is not None and happens(self.mosaic.p, generator):
            scene = self.mosaic(view, partners, generator, size)
        else:
            scene = letter_boxed(view, size)
        if partners and self.copy_paste is not None:
            scene = self.copy_paste(scene)
        if self.affine is None:
            to_output = scaled_about_centre(scene.size, 1.0, (size[1] / 2, size[0] / 2))
        else:
            to_output = self.affine(scene.size, size, generator)
        return scene.seen_through(to_output, size, self.fill)

    def _check(self, partners: Partners, size: tuple[int, int]) -> None:
        if 0 < len(partners) < self.partners:
            raise ValueError(
                f"{len(partners)} partners: give {self.partners}, or none at all to leave mosaic, copy-paste "
                "and mixup out"
            )
        if self.turn is not None and self.turn.transpose and size[0] != size[1]:
            raise ValueError(
                f"turn.transpose={self.turn.transpose} with a size of {size[0]} x {size[1]}: to swap rows "
                "and columns takes a square size; set transpose to 0"
            )
