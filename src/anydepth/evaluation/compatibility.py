"""How compatible the features that leave each stage are between full depth and shallower depths.

Any-depth training claims that a stage's output serves the next stage whichever path was taken; this measures
it on real images, with the measures of :mod:`anydepth.evaluation.similarity`, of two kinds of samples:

- pooled: one sample per image, the average of the map over its positions;
- spatial: one sample per image and position of the map. Of maps with more positions than asked for, an even
  grid of them counts, the same in every image and at every depth.

Linear CKA of fewer samples than channels is biased towards 1 (n centred samples span n - 1 directions, which
any two sets of features share more of, the fewer there are): pooled CKA wants more images than channels.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from anydepth.depth import DepthConfig
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.evaluation.device import autocast
from anydepth.evaluation.similarity import Similarity, SimilarityError
from anydepth.evaluation.stage_features import FirstImages, stage_features
from anydepth.images import to_unit_range
from anydepth.structures import Batch

MEASURES = ("pooled_cka", "pooled_cosine", "pooled_l2", "spatial_cka", "spatial_cosine", "spatial_l2")
"""Names of the measures: CKA and cosine are 1 for equal features, relative L2 is 0."""

POSITIONS = 400
"""Positions of a map that count per image unless told otherwise: 20 x 20, a whole stride-32 map of 640 px."""


@dataclass(frozen=True)
class CompatibilityRow:
    """One stage at one depth against full depth.

    Attributes:
        stage: One of :attr:`Compatibility.stages`.
        depth: One of :attr:`Compatibility.depths`.
        values: By the names of :data:`MEASURES`.
    """

    stage: str
    depth: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Compatibility:
    """Features of shallower depths against those of full depth.

    Attributes:
        detector: Name of the detector.
        input_size: (height, width) in pixels.
        precision: Of the forward passes; the measures are computed in float64.
        images: How many were looked at.
        positions: By stage, how many positions per image are samples of the spatial measures.
        channels: By stage, the number of features.
        depths: As they are printed, in the order asked for.
        stages: In the order of the network; one that gives several maps has an entry for each, named by its
            stride as P3 (8 pixels), P4, P5.
        rows: One per stage and depth.
    """

    detector: str
    input_size: tuple[int, int]
    precision: str
    images: int
    positions: Mapping[str, int]
    channels: Mapping[str, int]
    depths: tuple[str, ...]
    stages: tuple[str, ...]
    rows: tuple[CompatibilityRow, ...]

    def value(self, stage: str, depth: str, measure: str) -> float:
        """One figure.

        Raises:
            EvaluationError: There is no such stage, depth or measure.
        """
        for row in self.rows:
            if (row.stage, row.depth) == (stage, depth) and measure in row.values:
                return row.values[measure]
        raise EvaluationError(
            f"no {measure!r} of {stage!r} at {depth!r}: stages are {list(self.stages)}, depths "
            f"{list(self.depths)}, measures {list(MEASURES)}"
        )

    def to_json(self) -> str:
        """Everything, as JSON; :meth:`from_json` gives an equal object back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Compatibility":
        """What :meth:`to_json` printed.

        Raises:
            EvaluationError: The text is something else, or lacks a stage, a depth or a measure.
        """
        try:
            data = json.loads(text)
            height, width = data["input_size"]
            found = cls(
                **{
                    **data,
                    "input_size": (int(height), int(width)),
                    "depths": tuple(data["depths"]),
                    "stages": tuple(data["stages"]),
                    "rows": tuple(CompatibilityRow(**row) for row in data["rows"]),
                }
            )
            _check_whole(found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"no compatibility as anydepth writes it: {error!r}") from error
        return found

    def to_csv(self) -> str:
        """One line per stage and depth."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["stage", "depth", *MEASURES])
        for row in self.rows:
            writer.writerow([row.stage, row.depth, *(row.values[measure] for measure in MEASURES)])
        return text.getvalue()


def measure_compatibility(
    detector: Detector,
    loader: Iterable[Batch],
    depths: "str | Sequence[str | DepthConfig]" = "ladder",
    *,
    images: int,
    positions: int = POSITIONS,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Compatibility:
    """Compare the features of every stage at several depths with those of full depth, on real images.

    Each image is decoded once. Depths that differ in their decoder layers alone have the same features and
    run once. Memory is that of one batch, and per stage and depth of three C x C matrices in float64.

    Args:
        detector: It is moved to ``device`` and stays there.
        loader: Batches of resized images.
        depths: Texts or configurations, or ``ladder`` or ``all``.
        images: The first so many of the loader count.
        positions: Most positions per image and map of the spatial measures.
        device: Where to run.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        DepthError: A depth that the detector does not have.
        EvaluationError: A detector of fixed depth, fewer than 2 images, or features that are not finite.
    """
    configs = detector.depth_space.parse_list(depths)
    if not detector.depth_space.stages:
        raise EvaluationError("this detector has a fixed depth: it has no other features to compare with")
    if images < 2 or positions < 1:
        raise EvaluationError(f"images={images}, positions={positions}: give at least 2 images, 1 position")
    device = torch.device(device)
    comparison = _Comparison(detector, configs, images, positions)
    seen = 0
    with evaluating(detector.to(device)):
        for batch in FirstImages(loader, images):
            with autocast(device, precision):
                comparison.add(to_unit_range(batch.images.to(device, non_blocking=True)))
            seen += len(batch)
    if seen < 2:
        raise EvaluationError(f"the data gave {seen} images: compatibility needs at least 2")
    return Compatibility(
        detector=str(detector.config.get("name", type(detector).__name__)),
        input_size=detector.input_size,
        precision=precision,
        images=seen,
        positions=comparison.positions,
        channels=comparison.channels,
        depths=tuple(str(config) for config in configs),
        stages=tuple(comparison.positions),
        rows=comparison.rows(configs),
    )


class _Comparison:
    """The running measures of every stage and of every way to run the stages."""

    def __init__(
        self, detector: Detector, configs: Sequence[DepthConfig], images: int, positions: int
    ) -> None:
        space = detector.depth_space
        self.positions: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        self._detector = detector
        self._images = images
        self._most = positions
        # One decoder layer is enough: no stage comes after it.
        layers = None if space.decoder_layers is None else 1
        self._paths = {config.refine: space.config(config.refine, layers) for config in configs}
        self._full = space.config(space.full.refine, layers)
        self._measures: dict[tuple[tuple[bool, ...], str], tuple[Similarity, Similarity]] = {}

    def add(self, images: Tensor) -> None:
        """Run every path on images [B, 3, H, W] and compare its maps with those of the full one."""
        stem = self._detector.stem_features(images)
        full = self._samples(images, self._full, stem)
        for refine, config in self._paths.items():
            found = full if refine == self._full.refine else self._samples(images, config, stem)
            for stage, samples in found.items():
                self._compare(refine, stage, full[stage], samples)

    def rows(self, configs: Sequence[DepthConfig]) -> tuple[CompatibilityRow, ...]:
        """By depth, then by stage."""
        return tuple(
            CompatibilityRow(stage, str(config), self._values(config.refine, stage))
            for config in configs
            for stage in self.positions
        )

    def _samples(self, images: Tensor, config: DepthConfig, stem: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        with stage_features(self._detector) as maps:
            self._detector(images, config, stem=stem)
        found = {}
        for stage, features in maps.items():
            spatial = _on_grid(features, self._most)
            self.positions[stage] = spatial.shape[1]
            self.channels[stage] = spatial.shape[2]
            found[stage] = (features.double().mean(dim=(2, 3)), spatial.flatten(0, 1))
        return found

    def _compare(
        self,
        refine: tuple[bool, ...],
        stage: str,
        full: tuple[Tensor, Tensor],
        other: tuple[Tensor, Tensor],
    ) -> None:
        if (refine, stage) not in self._measures:
            few = self._images < self.channels[stage]
            self._measures[refine, stage] = (Similarity(keep_samples=few), Similarity())
        measures = self._measures[refine, stage]
        try:
            for measure, x, y in zip(measures, full, other, strict=True):
                measure.add(x, y)
        except SimilarityError as error:
            raise EvaluationError(f"{stage} at {self._name(refine)}: {error}") from error

    def _name(self, refine: tuple[bool, ...]) -> str:
        return str(self._detector.depth_space.config(refine))

    def _values(self, refine: tuple[bool, ...], stage: str) -> dict[str, float]:
        try:
            pooled, spatial = (measure.values() for measure in self._measures[refine, stage])
        except SimilarityError as error:
            raise EvaluationError(f"{stage} at {self._name(refine)}: {error}") from error
        values = {f"pooled_{name}": value for name, value in pooled.items()}
        return values | {f"spatial_{name}": value for name, value in spatial.items()}


def _on_grid(features: Tensor, most: int) -> Tensor:
    """[B, P, C] of maps [B, C, H, W]: all positions, or an even grid of at most ``most`` of them."""
    height, width = features.shape[-2:]
    if height * width > most:
        rows = min(height, max(1, round(math.sqrt(most * height / width))))
        columns = min(width, max(1, most // rows))
        rows = min(rows, most)
        features = features[..., _even(height, rows, features), :][..., _even(width, columns, features)]
    return features.flatten(2).transpose(1, 2).double()


def _even(length: int, count: int, like: Tensor) -> Tensor:
    """[count] indices at the centres of as many equal parts of an axis."""
    return ((torch.arange(count, device=like.device) + 0.5) * length / count).long()


def _check_whole(found: Compatibility) -> None:
    """Refuse rows that do not give every measure of every stage and depth."""
    wanted = [(depth, stage) for depth in found.depths for stage in found.stages]
    if [(row.depth, row.stage) for row in found.rows] != wanted:
        raise ValueError("the rows are not one per depth and stage")
    for row in found.rows:
        if set(row.values) != set(MEASURES) or not all(math.isfinite(v) for v in row.values.values()):
            raise ValueError(f"{row.stage} at {row.depth} has not every measure")
