"""The detector: a stem, two stages, and a head of 1x1 convolutions at stride 8."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import Detector, check_images, check_input_size
from anydepth.layers.norm import SwitchableNorm, batch_norm
from anydepth.layers.stage import DepthStage
from anydepth.pictures.fitting import Fit
from anydepth.selection import TopScores
from anydepth.structures import Candidates, Detections, DetectorOutput, Targets

STRIDE = 8
MOST_DETECTIONS = 100


@dataclass(frozen=True)
class SpotOutput(DetectorOutput):
    """Output of the network.

    Attributes:
        scores: [B, K, H/8, W/8] logits: is the middle of an object of the class in this cell?
        boxes: [B, 4, H/8, W/8] logits of (cx, cy) within the cell and (w, h) of the image.
    """

    scores: Tensor
    boxes: Tensor


class Block(nn.Module):
    """A residual 3x3 convolution whose norm follows the stage."""

    def __init__(self, width: int, *, switchable: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm: SwitchableNorm = batch_norm(width, switchable=switchable)

    def forward(self, features: Tensor, refine: bool) -> Tensor:
        """[B, C, H, W] -> the same."""
        return features + F.relu(self.norm(self.conv(features), refine))


class SpotDetector(Detector):
    """One map of class scores and boxes; two stages of one essential and one refinement block each."""

    def __init__(
        self,
        *,
        num_classes: int,
        width: int,
        any_depth: bool,
        input_size: Sequence[int],
        fit: Fit,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_input_size(*input_size)
        self.num_classes, self.any_depth, self.fit = num_classes, any_depth, fit
        self.class_names = tuple(class_names or map(str, range(num_classes)))
        self.input_size = (input_size[0], input_size[1])
        self.width = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(width, width, 2, stride=2)
        )
        self.backbone = nn.ModuleList(
            DepthStage(
                essential=[Block(width, switchable=any_depth)], refinement=[Block(width, switchable=False)]
            )
            for _ in range(2)
        )
        self.head = nn.Conv2d(width, num_classes + 4, 1)
        stages = ("early", "late") if any_depth else ()
        self.depth_space = DepthSpace(stages=stages, costs=self.measure_depth_costs)
        self.config = {}

    @property
    def stage_modules(self) -> tuple[str, ...]:
        """The submodule of each stage."""
        return ("backbone.0", "backbone.1")

    def forward(
        self,
        images: Tensor,
        depth: str | DepthConfig = "full",
        targets: Sequence[Targets] | None = None,
        stem: Tensor | None = None,
    ) -> SpotOutput:
        """Run the network at one depth; see :meth:`anydepth.detector.Detector.forward`."""
        refine = self.depth_space.parse(depth).refine if self.any_depth else (True, True)
        features = self.stem_features(images) if stem is None else stem
        maps = []
        for stage, flag in zip(self.backbone, refine, strict=True):
            features = stage(features, flag)
            maps.append(features)
        found = self.head(features)
        return SpotOutput(tuple(maps), (features,), scores=found[:, :-4], boxes=found[:, -4:])

    def stem_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H/8, W/8]."""
        check_images(images)
        features: Tensor = self.stem(images)
        return features

    @property
    def selection(self) -> TopScores:
        """The best pairs of a cell and a class."""
        return TopScores(MOST_DETECTIONS)

    def candidates(self, output: DetectorOutput) -> Candidates:
        """The box of every cell, with a score for every class."""
        assert isinstance(output, SpotOutput)
        centre, size = decode(output.boxes).flatten(2).transpose(1, 2).split(2, dim=2)  # [B, H * W, 2] each
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=2)
        scores = output.scores.sigmoid().flatten(2).transpose(1, 2)  # [B, H * W, K]
        return Candidates(boxes, scores, normalised=True)

    def postprocess(
        self, output: DetectorOutput, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The best cells of every image."""
        assert isinstance(output, SpotOutput)
        found = []
        boxes = decode(output.boxes)
        for scores, own, (height, width) in zip(output.scores, boxes, original_sizes, strict=True):
            best, places = scores.sigmoid().flatten().sort(descending=True)
            best, places = best[:MOST_DETECTIONS], places[:MOST_DETECTIONS]
            cells = scores.shape[1] * scores.shape[2]
            centre, size = own.flatten(1).T[places % cells].split(2, dim=1)
            corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
            scale = corners.new_tensor([width, height, width, height])
            found.append(Detections(corners * scale, best, places // cells))
        return found

    def reset_classes(self, class_names: Sequence[str]) -> None:
        """Name the classes; another number of them gives a fresh head."""
        if len(class_names) != self.num_classes:
            self.num_classes = len(class_names)
            self.head = nn.Conv2d(self.width, self.num_classes + 4, 1).to(self.head.weight.device)
            self.config = {**self.config, "num_classes": self.num_classes}
        self.class_names = tuple(class_names)


def decode(boxes: Tensor) -> Tensor:
    """[B, 4, H, W] logits -> [B, 4, H, W] (cx, cy, w, h), normalised."""
    height, width = boxes.shape[-2:]
    rows = torch.arange(height, device=boxes.device).view(1, height, 1)
    columns = torch.arange(width, device=boxes.device).view(1, 1, width)
    inside = boxes.sigmoid()
    return torch.stack(
        [(inside[:, 0] + columns) / width, (inside[:, 1] + rows) / height, inside[:, 2], inside[:, 3]], dim=1
    )
