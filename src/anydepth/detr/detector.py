"""AnyDepth-DETR: backbone, neck and decoder behind one ``forward(images, depth)``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import Detector, NonFiniteOutputError, check_images, check_input_size
from anydepth.detr.backbones.base import Backbone
from anydepth.detr.decoder import DecoderOutput, RTDETRDecoder
from anydepth.detr.denoising import make_denoising_queries
from anydepth.detr.neck import HybridEncoder
from anydepth.detr.output import DenoisingQueries, DetrOutput
from anydepth.detr.weights.load import load_weights
from anydepth.layers.boxes import cxcywh_to_xyxy
from anydepth.pictures.fitting import Fit, check_fit
from anydepth.selection import TopScores
from anydepth.structures import Candidates, Detections, DetectorOutput, Targets
from anydepth.weights.report import LoadReport

# Names of the refinement paths: one flag per backbone stage, one for the whole neck.
STAGES = ("stage1", "stage2", "stage3", "stage4", "neck")


@dataclass(frozen=True)
class DenoisingConfig:
    """Noise of the denoising queries in training (DN-DETR, DINO); the defaults are RT-DETR's.

    Attributes:
        queries: Budget of positive queries per image; 0 switches denoising off.
        label_noise: Share of the labels of which half are replaced by random ones.
        box_noise: Jitter of the corners in half box sizes.
    """

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0


class DetrDetector(Detector):
    """RT-DETR of any depth, or of a fixed depth if its parts have no refinement paths.

    Args:
        backbone: Backbone of four stages and three output maps.
        neck: Neck that fuses the three maps.
        decoder: Decoder that predicts classes and boxes.
        minimal_decoder_layers: Number of decoder layers of the minimal depth.
        any_depth: Whether backbone and neck have refinement paths.
        input_size: (height, width) in pixels for evaluation and prediction; multiples of 32.
        fit: Way in which evaluation and prediction fit images to that size, with or without the aspect ratio.
        class_names: One name per class.
        denoising: Noise of the denoising queries in training.
        image_mean: Mean subtracted per channel; None for no subtraction, as released.
        image_std: Standard deviation divided by per channel; None for no division, as released.
        config: Plain values that build an equal detector.

    Raises:
        ValueError: The number of class names differs from the decoder's number of classes, an input size or
            fit that is not allowed, or ``image_mean`` or ``image_std`` without exactly three values.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: HybridEncoder,
        decoder: RTDETRDecoder,
        minimal_decoder_layers: int,
        any_depth: bool,
        input_size: tuple[int, int],
        fit: Fit,
        class_names: Sequence[str],
        denoising: DenoisingConfig,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        config: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        if len(class_names) != decoder.num_classes:
            raise ValueError(
                f"got {len(class_names)} class names, expected num_classes={decoder.num_classes}"
            )
        check_input_size(*input_size)
        check_fit(fit)
        self.backbone = backbone
        self.neck = neck
        self.decoder = decoder
        self.any_depth = any_depth
        self.input_size = input_size
        self.fit = fit
        self.num_classes = decoder.num_classes
        self.class_names = tuple(class_names)
        self.denoising = denoising
        self.config = config or {}
        self.depth_space = DepthSpace(
            stages=STAGES if any_depth else (),
            decoder_layers=len(decoder.layers),
            minimal_decoder_layers=minimal_decoder_layers,
            costs=self.measure_depth_costs,
        )
        self.register_buffer("image_mean", _per_channel(image_mean), persistent=False)
        self.register_buffer("image_std", _per_channel(image_std), persistent=False)
        self.image_mean: Tensor | None
        self.image_std: Tensor | None

    @property
    def stage_modules(self) -> tuple[str, ...]:
        """Names of the submodules that hold the stages of the depth space."""
        return (*(f"backbone.stages.{index}" for index in range(4)), "neck")

    def forward(
        self,
        images: Tensor,
        depth: str | DepthConfig = "full",
        targets: Sequence[Targets] | None = None,
        stem: Tensor | None = None,
    ) -> DetrOutput:
        """Run the network at one depth; in training mode all decoder layers run at every depth.

        Args:
            images: [B, 3, H, W] float RGB in [0, 1]; H and W multiples of 32.
            depth: A depth of :attr:`depth_space`.
            targets: Ground truth per image for denoising, in training mode.
            stem: Result of :meth:`stem_features` for these images, to share it between depths.

        Raises:
            DepthError: The depth does not exist.
            ValueError: Images of a wrong shape or type.
        """
        config = self.depth_space.parse(depth)
        refine_backbone, refine_neck = self._refine_flags(config)
        backbone_features = self.backbone(
            self.stem_features(images) if stem is None else stem, refine_backbone
        )
        neck_features = self.neck(backbone_features, refine_neck)
        denoising = self._make_denoising(targets)
        layers = len(self.decoder.layers) if self.training else config.decoder_layers
        decoded = self.decoder(neck_features, layers, denoising)
        return _as_output(decoded, denoising, backbone_features, neck_features, self.training)

    def stem_features(self, images: Tensor) -> Tensor:
        """Compute stem features [B, C, H/4, W/4] of images [B, 3, H, W], the same at every depth.

        Raises:
            ValueError: Images of a wrong shape or type.
        """
        check_images(images, training=self.training)
        features: Tensor = self.backbone.stem(self._normalise(images))
        return features

    @property
    def selection(self) -> TopScores:
        """As many (query, class) pairs as there are queries."""
        return TopScores(self.decoder.num_queries)

    def candidates(self, output: DetectorOutput) -> Candidates:
        """Return the box of every query, with a score for every class.

        Args:
            output: Result of :meth:`forward`.
        """
        assert isinstance(output, DetrOutput)
        boxes = cxcywh_to_xyxy(output.boxes_cxcywh.float())
        return Candidates(boxes, output.logits.float().sigmoid(), normalised=True)

    def postprocess(
        self, output: DetectorOutput, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the Q best (query, class) pairs per image, as RT-DETR is evaluated.

        There is no NMS and no threshold, and boxes reach beyond the image where the network predicts so.

        Args:
            output: Result of :meth:`forward` in eval mode.
            original_sizes: (height, width) of each image in pixels.

        Raises:
            NonFiniteOutputError: The output is NaN or infinite.
        """
        assert isinstance(output, DetrOutput)
        if not bool(output.logits.isfinite().all() & output.boxes_cxcywh.isfinite().all()):
            raise NonFiniteOutputError(
                "the decoder's output holds NaN or infinite values: the weights are damaged, or too large "
                "for this precision; check the weights file, or use precision=fp32"
            )
        candidates = self.candidates(output)
        pairs = candidates.scores.flatten(1)  # [B, Q * K]
        scores, indices = pairs.topk(output.logits.shape[1], dim=1)  # [B, Q] each
        labels = indices % self.num_classes  # [B, Q]
        queries = (indices // self.num_classes)[..., None].expand(-1, -1, 4)  # [B, Q, 4]
        boxes = candidates.boxes_xyxy.gather(1, queries)  # [B, Q, 4], normalised
        numbers = [
            [*placement.canvas[::-1] * 2, *placement.offset[::-1] * 2]
            for placement in self.placements(original_sizes, output.input_size)
        ]
        canvas, offset = boxes.new_tensor(numbers).reshape(-1, 2, 1, 4).unbind(dim=1)  # [B, 1, 4] each
        pixels = boxes * canvas - offset  # [B, Q, 4], of the original image
        return [Detections(*one) for one in zip(pixels, scores, labels, strict=True)]

    def load_weights(self, source: str | Path | Mapping[str, object]) -> LoadReport:
        """Load weights; :func:`anydepth.detr.weights.load.load_weights` lists the known layouts."""
        return load_weights(self, source)

    def reset_classes(self, class_names: Sequence[str]) -> None:
        """Set the class names; if their number changes, the class heads are freshly initialised."""
        if len(class_names) != self.num_classes:
            device = next(self.parameters()).device
            self.decoder.reset_classes(len(class_names))
            self.decoder.to(device)
            self.num_classes = len(class_names)
            self.config = {**self.config, "num_classes": self.num_classes}
        self.class_names = tuple(class_names)

    def _refine_flags(self, config: DepthConfig) -> tuple[tuple[bool, ...], bool]:
        """Return the flags of the four backbone stages and of the neck, all true in a fixed-depth network."""
        if not self.any_depth:
            return (True,) * 4, True
        return config.refine[:4], config.refine[4]

    def _normalise(self, images: Tensor) -> Tensor:
        if self.image_mean is not None:
            images = images - self.image_mean
        return images if self.image_std is None else images / self.image_std

    def _make_denoising(self, targets: Sequence[Targets] | None) -> DenoisingQueries | None:
        if not self.training or targets is None:
            return None
        return make_denoising_queries(
            targets,
            num_classes=self.num_classes,
            num_queries=self.decoder.num_queries,
            budget=self.denoising.queries,
            label_noise=self.denoising.label_noise,
            box_noise=self.denoising.box_noise,
        )


def _as_output(
    decoded: DecoderOutput,
    denoising: DenoisingQueries | None,
    backbone_features: tuple[Tensor, ...],
    neck_features: tuple[Tensor, ...],
    training: bool,
) -> DetrOutput:
    """Split the denoising queries from the matching queries, and the last layer from the earlier ones."""
    noised = 0 if denoising is None else denoising.labels.shape[1]  # D
    logits, boxes = decoded.logits[:, :, noised:], decoded.boxes_cxcywh[:, :, noised:]  # [layers, B, Q, ...]
    return DetrOutput(
        backbone_features=backbone_features,
        neck_features=neck_features,
        logits=logits[-1],
        boxes_cxcywh=boxes[-1],
        auxiliary_logits=torch.cat([logits[:-1], decoded.encoder_logits[None]]) if training else None,
        auxiliary_boxes=torch.cat([boxes[:-1], decoded.encoder_boxes[None]]) if training else None,
        denoising=denoising,
        denoising_logits=decoded.logits[:, :, :noised] if denoising is not None else None,
        denoising_boxes=decoded.boxes_cxcywh[:, :, :noised] if denoising is not None else None,
    )


def _per_channel(values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    if len(values) != 3:
        raise ValueError(f"got {list(values)}; give three values, one for each of R, G and B")
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
