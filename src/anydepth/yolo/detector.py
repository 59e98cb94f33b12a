"""AnyDepth-YOLO: backbone, neck and head behind one ``forward(images, depth)``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import Detector, NonFiniteOutputError, check_images, check_input_size
from anydepth.pictures.fitting import Fit, check_fit
from anydepth.selection import NmsConfig
from anydepth.structures import Candidates, Detections, DetectorOutput, Targets
from anydepth.weights.report import LoadReport
from anydepth.yolo.backbone import YoloBackbone
from anydepth.yolo.decode import Predictions, image_size
from anydepth.yolo.head import YoloHead
from anydepth.yolo.neck import YoloNeck
from anydepth.yolo.output import YoloOutput
from anydepth.yolo.weights.load import load_weights

# Names of the refinement paths, in the order of the network.
BACKBONE_STAGES = ("stage1", "stage2", "stage3", "stage4")
NECK_STAGES = ("neck1", "neck2", "neck3", "neck4")


class YoloDetector(Detector):
    """YOLOv12 of any depth, or of a fixed depth if its parts have no refinement paths.

    Args:
        backbone: Backbone of four stages and three output maps.
        neck: Neck of four stages and three output maps.
        head: Head that predicts distance bins and classes.
        any_depth: Whether the stages have refinement paths.
        input_size: (height, width) in pixels for evaluation and prediction; multiples of 32.
        fit: Way in which evaluation and prediction fit images to that size, with or without the aspect ratio.
        class_names: One name per class.
        nms: Settings of non-maximum suppression.
        config: Plain values that build an equal detector.

    Raises:
        ValueError: An input size or fit that is not allowed.
    """

    # As the published figures are measured.
    clips_boxes = True
    memory_format = torch.channels_last

    def __init__(
        self,
        *,
        backbone: YoloBackbone,
        neck: YoloNeck,
        head: YoloHead,
        any_depth: bool,
        input_size: tuple[int, int],
        fit: Fit,
        class_names: Sequence[str],
        nms: NmsConfig,
        config: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        check_input_size(*input_size)
        check_fit(fit)
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.any_depth = any_depth
        self.input_size = input_size
        self.fit = fit
        self.num_classes = len(class_names)
        self.class_names = tuple(class_names)
        self.nms = nms
        self.config = config or {}
        self.depth_space = DepthSpace(
            stages=(*BACKBONE_STAGES, *NECK_STAGES) if any_depth else (), costs=self.measure_depth_costs
        )

    @property
    def stage_modules(self) -> tuple[str, ...]:
        """Names of the submodules that hold the stages of the depth space."""
        return tuple(f"{part}.stages.{index}" for part in ("backbone", "neck") for index in range(4))

    def forward(
        self,
        images: Tensor,
        depth: str | DepthConfig = "full",
        targets: Sequence[Targets] | None = None,
        stem: Tensor | None = None,
    ) -> YoloOutput:
        """Run the network at one depth.

        Args:
            images: [B, 3, H, W] float RGB in [0, 1]; H and W multiples of 32.
            depth: A depth of :attr:`depth_space`.
            targets: Not used: this family has no denoising.
            stem: Result of :meth:`stem_features` for these images, to share it between depths.

        Raises:
            DepthError: The depth does not exist.
            ValueError: Images of a wrong shape or type.
        """
        refine = self.depth_space.parse(depth).refine if self.any_depth else (True,) * 8
        features = self.stem_features(images) if stem is None else stem
        backbone_features = self.backbone(features, refine[:4])
        neck_features = self.neck(backbone_features, refine[4:])
        return YoloOutput(backbone_features, neck_features, maps=self.head(neck_features))

    def stem_features(self, images: Tensor) -> Tensor:
        """Compute stem features [B, C, H/4, W/4] of images [B, 3, H, W], the same at every depth.

        Raises:
            ValueError: Images of a wrong shape or type.
        """
        check_images(images, training=self.training)
        features: Tensor = self.backbone.stem(images)
        return features

    @property
    def selection(self) -> NmsConfig:
        """Class-wise non-maximum suppression."""
        return self.nms

    def candidates(self, output: DetectorOutput) -> Candidates:
        """Decode the head's maps: one box per cell, with a score for every class.

        Args:
            output: Result of :meth:`forward`.
        """
        assert isinstance(output, YoloOutput)
        predictions = Predictions.decode(output.maps)
        return Candidates(predictions.boxes_xyxy, predictions.class_logits.sigmoid(), normalised=False)

    def postprocess(
        self, output: DetectorOutput, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the scored boxes of every class after class-wise non-maximum suppression, then clipped.

        One cell may predict boxes of several classes.

        Args:
            output: Result of :meth:`forward`.
            original_sizes: (height, width) of each image in pixels.

        Raises:
            NonFiniteOutputError: The output is NaN or infinite.
        """
        assert isinstance(output, YoloOutput)
        if not bool(torch.stack([level.isfinite().all() for level in output.maps]).all()):
            raise NonFiniteOutputError(
                "the head's maps hold NaN or infinite values: the weights are damaged, or too large for this "
                "precision; check the weights file, or use precision=fp32"
            )
        candidates = self.candidates(output)
        height, width = image_size(output.maps)
        found = []
        # Per image, because suppression keeps another number of boxes in each: boxes [A, 4], scores [A, K].
        for image_boxes, scores, (h, w), (canvas, offset) in zip(
            candidates.boxes_xyxy,
            candidates.scores,
            original_sizes,
            self.placements(original_sizes, (height, width)),
            strict=True,
        ):
            scale = image_boxes.new_tensor([canvas[1] / width, canvas[0] / height] * 2)  # [4]
            corner = image_boxes.new_tensor([offset[1], offset[0]] * 2)  # [4]
            found.append(self._suppress(image_boxes * scale - corner, scores).clipped(h, w))
        return found

    def load_weights(self, source: str | Path | Mapping[str, object]) -> LoadReport:
        """Load weights; :func:`anydepth.yolo.weights.load.load_weights` lists the known layouts."""
        return load_weights(self, source)

    def reset_classes(self, class_names: Sequence[str]) -> None:
        """Set the class names; if their number changes, the class branches are freshly initialised."""
        if len(class_names) != self.num_classes:
            device = next(self.parameters()).device
            self.head.reset_classes(len(class_names))
            self.head.to(device)
            self.num_classes = len(class_names)
            self.config = {**self.config, "num_classes": self.num_classes}
        self.class_names = tuple(class_names)

    def _suppress(self, boxes: Tensor, scores: Tensor) -> Detections:
        """Suppress boxes of one image.

        Args:
            boxes: [A, 4] xyxy in pixels of the original image.
            scores: [A, K].
        """
        # Q counts the (cell, class) pairs that are candidates.
        cells, labels = (scores > self.nms.score).nonzero(as_tuple=True)  # [Q] each
        best, order = scores[cells, labels].sort(descending=True, stable=True)  # [Q] each
        best, order = best[: self.nms.candidates], order[: self.nms.candidates]
        cells, labels = cells[order], labels[order]
        kept = batched_nms(boxes[cells], best, labels, self.nms.iou)[: self.nms.detections]  # [N]
        return Detections(boxes[cells[kept]], best[kept], labels[kept])
