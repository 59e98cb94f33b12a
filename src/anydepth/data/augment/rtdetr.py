"""The training augmentation of RT-DETR (Zhao et al., CVPR 2024), most of it from SSD.

It is equivalent to the transforms of these names in ``torchvision.transforms.v2``, and every strength can be
set, including channel permutation. All transforms draw first, in the published order; then only the visible
part is recoloured, and no canvas is painted of which a crop discards most. The pixels equal those of one
transform after the other.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anydepth.data.augment.crop import Frame, IoUCrop, ZoomOut
from anydepth.data.augment.photometric import PhotometricDistort
from anydepth.data.augment.view import Turn, View


class RTDETRAugmentation:
    """RT-DETR's transforms in their order; None leaves one out.

    The data set then resizes every image, drops boxes below a pixel and normalises the others.

    Args:
        photometric: Colour changes.
        zoom_out: Placement on a larger canvas.
        crop: Crop of a part.
        turn: Flips and rotations by right angles.
    """

    partners = 0
    outlines = False

    def __init__(
        self,
        *,
        photometric: PhotometricDistort | None = None,
        zoom_out: ZoomOut | None = None,
        crop: IoUCrop | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.photometric = photometric
        self.zoom_out = zoom_out
        self.crop = crop
        self.turn = turn

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> View:
        """See :class:`anydepth.data.augment.view.Augmentation`; partners and size are not used."""
        recolouring = None if self.photometric is None else self.photometric.draw(generator)
        frame, fill = Frame.whole(view), 0
        if self.zoom_out is not None:
            frame, fill = self.zoom_out.draw(frame, generator), self.zoom_out.fill
        if self.crop is not None:
            frame = self.crop.draw(frame, generator)
        view = frame.render(view.image.as_subclass(Tensor), recolouring, fill)
        return view if self.turn is None else self.turn(view, generator)
