"""Compatibility of the features of each stage between full depth and shallower depths.

Any-depth training claims that a stage's output suits the next stage whether or not its refinement path ran.
This is measured on real images, with :mod:`anydepth.evaluation.similarity`, on two kinds of samples:

- pooled: one sample per image, the average of the map over its positions;
- spatial: one sample per image and position of the map. Maps with more positions than requested are sampled
  on an even grid, the same in every image and at every depth.

Linear CKA of fewer samples than channels is biased towards 1 (n centred samples span only n - 1
directions, so unrelated features overlap by chance): pooled CKA needs more images than channels.
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
from anydepth.evaluation.stage_features import FirstImages, capture_stage_features
from anydepth.images import to_unit_range
from anydepth.structures import Batch

MEASURES = ("pooled_cka", "pooled_cosine", "pooled_l2", "spatial_cka", "spatial_cosine", "spatial_l2")
"""Names of the measures: CKA and cosine are 1 for equal features, relative L2 is 0."""

MAX_POSITIONS = 400
"""Default maximum of positions per image and map: 20 x 20, a whole stride-32 map of a 640-pixel image."""


@dataclass(frozen=True)
class CompatibilityRow:
    """Measures of one stage at one depth against full depth.

    Attributes:
        stage: Entry of :attr:`Compatibility.stages`.
        depth: Entry of :attr:`Compatibility.depths`.
        values: Measures by the names in :data:`MEASURES`.
    """

    stage: str
    depth: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Compatibility:
    """Compatibility of the features of shallower depths with those of full depth.

    Attributes:
        detector: Name of the detector.
        input_size: (height, width) in pixels.
        precision: Precision of the forward passes; the measures are computed in float64.
        images: Number of images compared.
        positions: Number of positions per image that are samples of the spatial measures, by stage.
        channels: Number of channels, by stage.
        depths: Texts of the depths, in the requested order.
        stages: Names of the stages in network order; a stage with several maps has an entry for each, named
            by its stride as P3 (8 pixels), P4, P5.
        rows: Rows, one per stage and depth.
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
        """Return one measure of a stage at a depth.

        Raises:
            EvaluationError: The stage, depth or measure does not exist.
        """
        for row in self.rows:
            if (row.stage, row.depth) == (stage, depth) and measure in row.values:
                return row.values[measure]
        raise EvaluationError(
            f"got {measure!r} of {stage!r} at {depth!r}, expected stages {list(self.stages)}, depths "
            f"{list(self.depths)} and measures {list(MEASURES)}"
        )

    def to_json(self) -> str:
        """Return everything as JSON; :meth:`from_json` restores an equal object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Compatibility":
        """Restore an object from the output of :meth:`to_json`.

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
            _check_complete(found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"not a compatibility file as written by anydepth: {error!r}") from error
        return found

    def to_csv(self) -> str:
        """Return one CSV line per stage and depth."""
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
    positions: int = MAX_POSITIONS,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Compatibility:
    """Compare the features of every stage at several depths with those of full depth, on real images.

    Each image is decoded once. Depths that differ in their decoder layers alone have the same features and
    run once. Memory is one batch, plus three C x C matrices in float64 per stage and depth.

    Args:
        detector: Detector, which is moved to ``device`` and stays there.
        loader: Batches of resized images.
        depths: Texts, configurations or budgets, or ``ladder`` or ``all``.
        images: Number of images, taken from the start of the loader.
        positions: Maximum of positions per image and map for the spatial measures.
        device: Device to run on.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        DepthError: A depth that the detector does not have.
        EvaluationError: A detector of fixed depth, fewer than 2 images, or features that are not finite.
    """
    configs = detector.resolve_list(depths)
    if not detector.depth_space.stages:
        raise EvaluationError("got a detector of fixed depth, expected one with several depths to compare")
    if images < 2 or positions < 1:
        raise EvaluationError(f"got images={images}, positions={positions}, expected at least 2 and 1")
    device = torch.device(device)
    seen = 0
    with evaluating(detector.to(device)) as network:
        measurement = _Measurement(network, configs, images, positions)
        for batch in FirstImages(loader, images):
            with autocast(device, precision):
                measurement.add(to_unit_range(batch.images.to(device, non_blocking=True)))
            seen += len(batch)
    if seen < 2:
        raise EvaluationError(f"got {seen} images from the data loader, expected at least 2")
    return Compatibility(
        detector=str(detector.config.get("name", type(detector).__name__)),
        input_size=detector.input_size,
        precision=precision,
        images=seen,
        positions=measurement.positions,
        channels=measurement.channels,
        depths=tuple(str(config) for config in configs),
        stages=tuple(measurement.positions),
        rows=measurement.rows(configs),
    )


class _Measurement:
    """Accumulated measures by stage and by choice of the refinement paths that run."""

    def __init__(
        self, detector: Detector, configs: Sequence[DepthConfig], images: int, positions: int
    ) -> None:
        space = detector.depth_space
        self.positions: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        self._detector = detector
        self._images = images
        self._max_positions = positions
        # One decoder layer suffices, as no stage follows the decoder.
        layers = None if space.decoder_layers is None else 1
        self._configs = {config.refine: space.config(config.refine, layers) for config in configs}
        self._full = space.config(space.full.refine, layers)
        self._measures: dict[tuple[tuple[bool, ...], str], tuple[Similarity, Similarity]] = {}

    def add(self, images: Tensor) -> None:
        """Run every choice of refinement paths on images [B, 3, H, W] and compare with full depth."""
        stem = self._detector.stem_features(images)
        full = self._samples(images, self._full, stem)
        for refine, config in self._configs.items():
            other = full if refine == self._full.refine else self._samples(images, config, stem)
            for stage, samples in other.items():
                self._compare(refine, stage, full[stage], samples)

    def rows(self, configs: Sequence[DepthConfig]) -> tuple[CompatibilityRow, ...]:
        """Return the rows by depth, then by stage."""
        return tuple(
            CompatibilityRow(stage, str(config), self._values(config.refine, stage))
            for config in configs
            for stage in self.positions
        )

    def _samples(self, images: Tensor, config: DepthConfig, stem: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return pooled samples [B, C] and spatial samples [B * P, C] by stage."""
        with capture_stage_features(self._detector) as maps:
            self._detector(images, config, stem=stem)
        samples = {}
        for stage, features in maps.items():
            spatial = _sample_on_grid(features, self._max_positions)  # [B, P, C]
            self.positions[stage] = spatial.shape[1]
            self.channels[stage] = spatial.shape[2]
            samples[stage] = (features.double().mean(dim=(2, 3)), spatial.flatten(0, 1))
        return samples

    def _compare(
        self,
        refine: tuple[bool, ...],
        stage: str,
        full: tuple[Tensor, Tensor],
        other: tuple[Tensor, Tensor],
    ) -> None:
        if (refine, stage) not in self._measures:
            keep_samples = self._images < self.channels[stage]
            self._measures[refine, stage] = (Similarity(keep_samples=keep_samples), Similarity())
        measures = self._measures[refine, stage]
        try:
            for measure, x, y in zip(measures, full, other, strict=True):
                measure.add(x, y)
        except SimilarityError as error:
            raise EvaluationError(f"{stage} at {self._depth_text(refine)}: {error}") from error

    def _depth_text(self, refine: tuple[bool, ...]) -> str:
        return str(self._detector.depth_space.config(refine))

    def _values(self, refine: tuple[bool, ...], stage: str) -> dict[str, float]:
        try:
            pooled, spatial = (measure.values() for measure in self._measures[refine, stage])
        except SimilarityError as error:
            raise EvaluationError(f"{stage} at {self._depth_text(refine)}: {error}") from error
        values = {f"pooled_{name}": value for name, value in pooled.items()}
        return values | {f"spatial_{name}": value for name, value in spatial.items()}


def _sample_on_grid(features: Tensor, max_positions: int) -> Tensor:
    """Return [B, P, C] of maps [B, C, H, W]: all positions, or an even grid of at most ``max_positions``."""
    height, width = features.shape[-2:]
    if height * width > max_positions:
        rows = min(height, max(1, round(math.sqrt(max_positions * height / width))))
        columns = min(width, max(1, max_positions // rows))
        rows = min(rows, max_positions)
        features = features[..., _even_indices(height, rows, features), :]
        features = features[..., _even_indices(width, columns, features)]
    return features.flatten(2).transpose(1, 2).double()


def _even_indices(length: int, count: int, like: Tensor) -> Tensor:
    """Return [count] indices at the centres of ``count`` equal parts of an axis."""
    return ((torch.arange(count, device=like.device) + 0.5) * length / count).long()


def _check_complete(found: Compatibility) -> None:
    """Raise ValueError unless the rows hold every measure of every stage and depth."""
    expected = [(depth, stage) for depth in found.depths for stage in found.stages]
    if [(row.depth, row.stage) for row in found.rows] != expected:
        raise ValueError("expected one row per depth and stage")
    for row in found.rows:
        if set(row.values) != set(MEASURES) or not all(math.isfinite(v) for v in row.values.values()):
            raise ValueError(f"{row.stage} at {row.depth} lacks a measure, or one is not finite")
