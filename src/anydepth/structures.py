"""Typed containers that travel between data, detectors and evaluation.

The shape legend used everywhere: ``B`` batch, ``N`` boxes of one image, ``Q`` queries or candidates,
``K`` classes, ``L`` levels, ``H W`` height and width in pixels (of an image) or cells (of a feature map).
Boxes carry their format in their name: ``boxes_xyxy`` are in pixels, ``boxes_cxcywh`` normalised to [0, 1].
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from anydepth.detections import BaseDetections

# Pixels per cell of a neck's finest map, in both families.
_FINEST_STRIDE = 8


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image, in the coordinates of the image as it is fed to the detector.

    Attributes:
        boxes_cxcywh: [N, 4] float32, normalised; N may be 0.
        labels: [N] int64, contiguous classes in [0, K).
    """

    boxes_cxcywh: Tensor
    labels: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Targets":
        """Return the same targets on another device."""
        return Targets(
            self.boxes_cxcywh.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """Images and ground truth of one step, as a data loader yields them.

    Attributes:
        images: [B, 3, H, W] RGB, uint8 in [0, 255] (the loader's form) or float in [0, 1].
        targets: Ground truth per image, without crowd regions.
        image_ids: Image ids of the data set.
        original_sizes: (height, width) of each image in its file, in pixels.
        skipped: Errors of images that could not be read and were replaced by fallback images.
    """

    images: Tensor
    targets: tuple[Targets, ...]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the same batch on another device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=tuple(target.to(device, non_blocking) for target in self.targets),
        )

    def pin_memory(self) -> "Batch":
        """Copy the batch into page-locked memory, for asynchronous copies to a GPU."""
        targets = tuple(Targets(t.boxes_cxcywh.pin_memory(), t.labels.pin_memory()) for t in self.targets)
        return replace(self, images=self.images.pin_memory(), targets=targets)

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Detections(BaseDetections[Tensor]):
    """Detections of one image, best score first.

    Attributes:
        boxes_xyxy: [N, 4] float32, pixels of the original image.
        scores: [N] float32 in [0, 1].
        labels: [N] int64, contiguous classes in [0, K).
        class_names: One name per class; empty until :meth:`anydepth.detector.Detector.predict` names them.
    """

    def clipped(self, height: int, width: int) -> "Detections":
        """Return the same detections with their boxes clipped to an image of this size in pixels."""
        limit = self.boxes_xyxy.new_tensor([width, height, width, height])
        return replace(self, boxes_xyxy=self.boxes_xyxy.clamp(min=0).minimum(limit))

    def cpu(self) -> "Detections":
        """Return the same detections in host memory."""
        return replace(
            self, boxes_xyxy=self.boxes_xyxy.cpu(), scores=self.scores.cpu(), labels=self.labels.cpu()
        )


@dataclass(frozen=True)
class Candidates:
    """Boxes that a network proposes, before detections are selected among them.

    Attributes:
        boxes_xyxy: [B, N, 4] float32, of the network input.
        scores: [B, N, K] float32 in [0, 1].
        normalised: Whether boxes are in shares of the input's width and height; otherwise in its pixels.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    normalised: bool


@dataclass(frozen=True)
class DetectorOutput:
    """Output of every detector's forward; each family adds its own predictions.

    Attributes:
        backbone_features: Maps from the backbone to the neck, [B, C, H, W] each, finest first.
        neck_features: Maps from the neck to the head or decoder, [B, C, H, W] each, finest first.
    """

    backbone_features: tuple[Tensor, ...] = field(repr=False)
    neck_features: tuple[Tensor, ...] = field(repr=False)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        height, width = self.neck_features[0].shape[-2:]
        return _FINEST_STRIDE * height, _FINEST_STRIDE * width
