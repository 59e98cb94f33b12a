"""Evaluation of many depths of one detector in one pass over the data.

Each image is read, decoded, resized and moved to the device once, and then runs through the network at every
depth. The result, a :class:`DepthCurve`, is plain data that is written as CSV and JSON and reads back equal.
"""

import csv
import io
import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
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
from anydepth.evaluation.cost import Latency, LatencyProtocol, count_depth, measure_latency, networks_of
from anydepth.evaluation.device import autocast
from anydepth.images import to_unit_range
from anydepth.structures import Batch


class SkippedImagesWarning(UserWarning):
    """Warns that images that could not be read were left out of an evaluation."""


@dataclass(frozen=True)
class DepthRow:
    """One depth of a curve: the parts that run, their cost, and the accuracy.

    Attributes:
        depth: Text of the depth; parses back to the same depth.
        refine: Whether the refinement path runs, by stage name.
        decoder_layers: Number of decoder layers that run; None for a detector without them.
        parameters_run: Number of parameters that the pass reads.
        gflops: GFLOPs of one image (2 x GMACs).
        latency: Latency; None if it was not measured.
        figures: The 12 COCO metrics by name, see :data:`anydepth.evaluation.coco_eval.FIGURES`.
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
        parameters: Number of parameters of the whole detector.
        input_size: (height, width) in pixels.
        precision: Precision of the evaluation: ``fp32``, ``bf16`` or ``fp16``; of a bundle also ``int8``.
        images: Number of images evaluated.
        boxes_clipped: Whether boxes were clipped to the image before they were scored, see
            :attr:`anydepth.detector.Detector.clips_boxes`; None: not recorded, by a version that clipped all.
        protocol: Protocol of the latency measurement; None if latency was not measured.
        rows: Rows, one per depth, in the requested order.
    """

    detector: str
    parameters: int
    input_size: tuple[int, int]
    precision: str
    images: int
    boxes_clipped: bool | None = field(default=None, kw_only=True)
    protocol: LatencyProtocol | None
    rows: tuple[DepthRow, ...]

    @property
    def boxes_text(self) -> str:
        """How boxes were scored, for tables and pages."""
        if self.boxes_clipped is None:
            return "boxes clipped (not recorded, by an earlier version)"
        return "boxes clipped" if self.boxes_clipped else "boxes not clipped"

    def row(self, depth: str) -> DepthRow:
        """Return the row of a depth.

        Raises:
            EvaluationError: The curve has no such depth.
        """
        for row in self.rows:
            if row.depth == depth:
                return row
        raise EvaluationError(f"got depth {depth!r}, expected one of {[row.depth for row in self.rows]}")

    def measured_ap(self, space: DepthSpace) -> dict[DepthConfig, float]:
        """Return AP by configuration, as :meth:`anydepth.depth.DepthSpace.ladder` takes it.

        Raises:
            DepthError: The curve is of a detector with different stages.
        """
        return {
            space.config(list(row.refine.values()), row.decoder_layers): row.figures["AP"]
            for row in self.rows
        }

    def to_json(self) -> str:
        """Return the whole curve as JSON; :meth:`from_json` restores an equal curve."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DepthCurve":
        """Restore a curve from the output of :meth:`to_json`.

        Raises:
            EvaluationError: The text is not a depth curve.
        """
        try:
            data = json.loads(text)
            protocol = data["protocol"]
            if protocol is not None:
                protocol = LatencyProtocol(**{**protocol, "input_size": _parse_size(protocol["input_size"])})
            rows = tuple(_parse_row(row) for row in data["rows"])
            return cls(
                **{**data, "input_size": _parse_size(data["input_size"]), "protocol": protocol, "rows": rows}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"not a depth curve as written by anydepth: {error!r}") from error

    def records(self) -> list[dict[str, object]]:
        """Return one flat record per depth with its costs and the 12 metrics; AP per class is left out."""
        return [_flatten(row) for row in self.rows]

    def to_csv(self) -> str:
        """Return one CSV line per depth: its costs, the 12 metrics, and AP of each class as ``AP/CLASS``."""
        text = io.StringIO()
        lines = [
            {**record, **{f"AP/{name}": ap for name, ap in row.per_class.items()}}
            for record, row in zip(self.records(), self.rows, strict=True)
        ]
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
    specialised: bool = False,
    compiled: bool = False,
    progress: bool = True,
) -> DepthCurve:
    """Evaluate a detector at several depths in one pass over the data.

    With several processes, each one evaluates its own shard of the data, and all get the same curve.

    Args:
        detector: Detector, which is moved to ``device`` and stays there.
        loader: Batches of resized images.
        evaluator: Evaluator with the ground truth; earlier detections in it are removed.
        depths: Texts, configurations or budgets, or ``ladder`` or ``all``.
        device: Device to run on.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        latency_repetitions: Timed passes per depth; 0 measures no latency.
        latency_batch_size: Images per timed pass.
        specialised: Whether each depth runs as a network of its own, see
            :meth:`anydepth.detector.Detector.specialise`: faster, with figures that are equal to rounding. On
            a GPU, the peak memory of each depth includes the weights of all these networks.
        compiled: Whether these networks are compiled as well, see :func:`anydepth.detector.compile_depth`.
        progress: Whether to show a progress bar.

    Warns:
        SkippedImagesWarning: Images could not be read and were skipped; the message names them.

    Raises:
        DepthError: A depth that the detector does not have.
        EvaluationError: The loader yields nothing, or detections that do not fit the ground truth.
    """
    configs = detector.resolve_list(depths, specialised=specialised, compiled=compiled)
    device = torch.device(device)
    detector.to(device)
    evaluator.reset()
    with evaluating(detector) as network, _progress_bar(enabled=progress) as bar:
        total = len(loader) if isinstance(loader, Sized) else None
        networks = networks_of(network, configs, specialised=specialised, compiled=compiled)
        skipped: dict[str, None] = {}
        for batch in bar.track(loader, total=total, description=f"evaluating {len(configs)} depths"):
            skipped |= dict.fromkeys(batch.skipped)
            _evaluate_batch(networks, batch, evaluator, configs, device, precision)
    warn_of_skipped(skipped)
    results = evaluator.evaluate()
    if not results:
        raise EvaluationError("got no image from the data loader, expected at least one; check the data set")
    latencies: Sequence[Latency | None] = [None] * len(configs)
    protocol = None
    if latency_repetitions:
        latencies, protocol = measure_latency(
            detector,
            configs,
            precision=precision,
            batch_size=latency_batch_size,
            repetitions=latency_repetitions,
            specialised=specialised,
            compiled=compiled,
        )
    return DepthCurve(
        detector=str(detector.config.get("name", type(detector).__name__)),
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        input_size=detector.input_size,
        precision=precision,
        images=results[str(configs[0])].images,
        boxes_clipped=detector.clips_boxes,
        protocol=protocol,
        rows=tuple(
            _make_row(detector, config, results[str(config)], latency)
            for config, latency in zip(configs, latencies, strict=True)
        ),
    )


def warn_of_skipped(skipped: Collection[str]) -> None:
    """Warn of images that were left out of an evaluation, if there are any.

    Args:
        skipped: Errors of the images, each once.
    """
    if skipped:
        warnings.warn(
            f"{len(skipped)} images could not be read and were not evaluated: {'; '.join(skipped)}",
            SkippedImagesWarning,
            stacklevel=3,
        )


def _evaluate_batch(
    networks: Sequence[Detector],
    batch: Batch,
    evaluator: CocoEvaluator,
    depths: Sequence[DepthConfig],
    device: torch.device,
    precision: str,
) -> None:
    images = to_unit_range(batch.images.to(device, non_blocking=True))
    stem = None
    if not networks[0].compiled:  # Else the compiled network computes it.
        with autocast(device, precision):
            # The same at every depth, also in networks of one depth.
            stem = networks[0].stem_features(images)
    for network, depth in zip(networks, depths, strict=True):
        with autocast(device, precision):
            output = network(images, depth=depth, stem=stem)
        evaluator.add(str(depth), batch.image_ids, network.postprocess(output, batch.original_sizes))


def _make_row(
    detector: Detector, config: DepthConfig, result: CocoResult, latency: Latency | None
) -> DepthRow:
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


def _progress_bar(*, enabled: bool) -> Progress:
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


def _flatten(row: DepthRow) -> dict[str, object]:
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


def _parse_size(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def _parse_row(data: Mapping[str, Any]) -> DepthRow:
    latency = data["latency"]
    return DepthRow(**{**data, "latency": None if latency is None else Latency(**latency)})
