"""Evaluating many depths of one detector in one pass over the data.

Each image is read, decoded, resized and moved to the device once, and then runs through the network at every
depth. The result, a :class:`DepthCurve`, is plain data: it prints as CSV and as JSON, and reads back equal.
"""

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.coco_eval import FIGURES, CocoEvaluator, CocoResult, EvaluationError
from anydepth.evaluation.cost import Latency, LatencyProtocol, count_depth, measure_latency
from anydepth.evaluation.device import autocast
from anydepth.images import to_unit_range
from anydepth.structures import Batch


class SkippedImagesWarning(UserWarning):
    """Images that could not be read were left out of an evaluation."""


@dataclass(frozen=True)
class DepthRow:
    """One depth: what it runs, what it costs, how well it detects.

    Attributes:
        depth: Its text; parses back to the same depth.
        refine: By stage name, whether its refinement path runs.
        decoder_layers: How many run; None for a detector without them.
        parameters_run: Parameters that take part.
        gflops: 2 x GMACs of one image.
        latency: None where it was not measured.
        figures: The 12 COCO figures, see :data:`anydepth.evaluation.coco_eval.FIGURES`.
        per_class: AP by category name.
    """

    depth: str
    refine: Mapping[str, bool]
    decoder_layers: int | None
    parameters_run: int
    gflops: float
    latency: Latency | None
    figures: Mapping[str, float]
    per_class: Mapping[str, float]


@dataclass(frozen=True)
class DepthCurve:
    """Accuracy against cost over the depths of one detector.

    Attributes:
        detector: Name of the detector.
        parameters: Of the whole detector, whatever the depth.
        input_size: (height, width) in pixels.
        precision: ``fp32``, ``bf16`` or ``fp16``, of the detections.
        images: How many were evaluated.
        protocol: How latency was measured; None where it was not.
        rows: One per depth, in the order asked for.
    """

    detector: str
    parameters: int
    input_size: tuple[int, int]
    precision: str
    images: int
    protocol: LatencyProtocol | None
    rows: tuple[DepthRow, ...]

    def row(self, depth: str) -> DepthRow:
        """The row of a depth.

        Raises:
            EvaluationError: The curve has no such row.
        """
        for row in self.rows:
            if row.depth == depth:
                return row
        raise EvaluationError(f"the curve has no depth {depth!r}: it has {[row.depth for row in self.rows]}")

    def measured_ap(self, space: DepthSpace) -> dict[DepthConfig, float]:
        """AP by configuration, as :meth:`anydepth.depth.DepthSpace.ladder` takes it.

        Raises:
            DepthError: The curve is of a detector with other stages.
        """
        return {
            space.config(list(row.refine.values()), row.decoder_layers): row.figures["AP"]
            for row in self.rows
        }

    def to_json(self) -> str:
        """Everything, as JSON; :meth:`from_json` gives an equal curve back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DepthCurve":
        """The curve that :meth:`to_json` printed.

        Raises:
            EvaluationError: The text is no depth curve.
        """
        try:
            data = json.loads(text)
            protocol = data["protocol"]
            if protocol is not None:
                protocol = LatencyProtocol(**{**protocol, "input_size": _size(protocol["input_size"])})
            rows = tuple(_row_from(row) for row in data["rows"])
            return cls(
                **{**data, "input_size": _size(data["input_size"]), "protocol": protocol, "rows": rows}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"no depth curve as anydepth writes it: {error!r}") from error

    def records(self) -> list[dict[str, object]]:
        """One flat record per depth with its costs and the 12 figures; without the figures per class."""
        return [_flat(row) for row in self.rows]

    def to_csv(self) -> str:
        """One line per depth with its costs and the 12 figures; without the figures per class."""
        text = io.StringIO()
        lines = self.records()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()


def evaluate_depths(
    detector: Detector,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    depths: "str | Sequence[str | DepthConfig]",
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    latency_repetitions: int = 0,
    latency_batch_size: int = 1,
    progress: bool = True,
) -> DepthCurve:
    """Evaluate a detector at several depths in one pass over the data.

    Over several processes each one passes its own share of the data, and all get the same figures.

    Args:
        detector: It is moved to ``device`` and stays there.
        loader: Batches of resized images.
        evaluator: Holds the ground truth; earlier detections in it are forgotten.
        depths: Texts or configurations, or ``ladder`` or ``all``.
        device: Where to run.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        latency_repetitions: Timed passes per depth; 0 measures no latency.
        latency_batch_size: Images per timed pass.
        progress: Whether to show a progress bar.

    Warns:
        SkippedImagesWarning: Images were skipped because they could not be read; names them.

    Raises:
        DepthError: A depth that the detector does not have.
        EvaluationError: The loader yields nothing, or detections that do not fit the ground truth.
    """
    configs = detector.depth_space.parse_list(depths)
    device = torch.device(device)
    detector.to(device)
    evaluator.reset()
    with evaluating(detector), _progress(enabled=progress) as bar:
        total = len(loader) if isinstance(loader, Sized) else None
        skipped: dict[str, None] = {}
        for batch in bar.track(loader, total=total, description=f"evaluating {len(configs)} depths"):
            skipped |= dict.fromkeys(batch.skipped)
            _evaluate_batch(detector, batch, evaluator, configs, device, precision)
    if skipped:
        warnings.warn(
            f"{len(skipped)} images could not be read and are not part of the figures: {'; '.join(skipped)}",
            SkippedImagesWarning,
            stacklevel=2,
        )
    results = evaluator.evaluate()
    if not results:
        raise EvaluationError("the data loader gave no image: nothing can be evaluated")
    latencies: Sequence[Latency | None] = [None] * len(configs)
    protocol = None
    if latency_repetitions:
        latencies, protocol = measure_latency(
            detector,
            configs,
            precision=precision,
            batch_size=latency_batch_size,
            repetitions=latency_repetitions,
        )
    return DepthCurve(
        detector=str(detector.config.get("name", type(detector).__name__)),
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        input_size=detector.input_size,
        precision=precision,
        images=results[str(configs[0])].images,
        protocol=protocol,
        rows=tuple(
            _row(detector, config, results[str(config)], latency)
            for config, latency in zip(configs, latencies, strict=True)
        ),
    )


def _evaluate_batch(
    detector: Detector,
    batch: Batch,
    evaluator: CocoEvaluator,
    depths: Sequence[DepthConfig],
    device: torch.device,
    precision: str,
) -> None:
    images = to_unit_range(batch.images.to(device, non_blocking=True))
    with autocast(device, precision):
        stem = detector.stem_features(images)
    for depth in depths:
        with autocast(device, precision):
            output = detector(images, depth=depth, stem=stem)
        evaluator.add(str(depth), batch.image_ids, detector.postprocess(output, batch.original_sizes))


def _row(detector: Detector, config: DepthConfig, result: CocoResult, latency: Latency | None) -> DepthRow:
    cost = count_depth(detector, config)
    return DepthRow(
        depth=str(config),
        refine=dict(zip(detector.depth_space.stages, config.refine, strict=True)),
        decoder_layers=config.decoder_layers,
        parameters_run=cost.parameters_run,
        gflops=cost.gflops,
        latency=latency,
        figures=result.figures,
        per_class=result.per_class,
    )


def _progress(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not enabled,
    )


def _flat(row: DepthRow) -> dict[str, object]:
    return {
        "depth": row.depth,
        **{f"refine_{stage}": int(runs) for stage, runs in row.refine.items()},
        "decoder_layers": row.decoder_layers,
        "parameters_run": row.parameters_run,
        "gflops": row.gflops,
        "latency_median_ms": row.latency and row.latency.median_ms,
        "latency_p90_ms": row.latency and row.latency.p90_ms,
        "peak_memory_mib": row.latency and row.latency.peak_memory_mib,
        **{name: row.figures[name] for name in FIGURES},
    }


def _size(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def _row_from(data: Mapping[str, Any]) -> DepthRow:
    latency = data["latency"]
    return DepthRow(**{**data, "latency": None if latency is None else Latency(**latency)})
