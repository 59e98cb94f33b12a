"""What training does to images: the list of RT-DETR (Zhao et al., CVPR 2024), most of it from SSD.

It gives what the transforms of these names in ``torchvision.transforms.v2`` give, and each strength can be
set, permuted channels included. All parts draw first, in the published order; then only what will be seen is
recoloured, and no canvas is made that a crop cuts up again. The pixels are as if one part followed another.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anydepth.data.augment.crop import Frame, IoUCrop, ZoomOut
from anydepth.data.augment.photometric import PhotometricDistort
from anydepth.data.augment.view import Turn, View


class RTDETRAugmentation:
    """The training list in RT-DETR's order; None leaves a part out.

    Resizing, dropping boxes below a pixel and normalising follow in the data set, for every image alike.

    Args:
        photometric: Colours.
        zoom_out: Larger canvas.
        crop: Part of the image.
        turn: Flips and right angles.
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
        """See :class:`anydepth.data.augment.view.Augmentation`; no partner is used, and no size."""
        recolouring = None if self.photometric is None else self.photometric.draw(generator)
        frame, fill = Frame.around(view), 0
        if self.zoom_out is not None:
            frame, fill = self.zoom_out.draw(frame, generator), self.zoom_out.fill
        if self.crop is not None:
            frame = self.crop.draw(frame, generator)
        view = frame.view_of(view.image.as_subclass(Tensor), recolouring, fill)
        return view if self.turn is None else self.turn(view, generator)
