"""Reports built by hand, so that tests of the page know every figure in it."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from anydepth.depth import DepthSpace
from anydepth.evaluation.coco_eval import FIGURES
from anydepth.evaluation.compatibility import MEASURES, Compatibility, CompatibilityRow
from anydepth.evaluation.cost import Latency, LatencyProtocol
from anydepth.evaluation.curve_summary import summarize
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.report.comparison import Comparison, Report
from anydepth.report.logs import Series
from anydepth.report.runs import Run, UnusableRun
from anydepth.report.settings import CurvePoint, Setting
from anydepth.results.gallery import Gallery, GalleryDepth, GalleryImage
from anydepth.structures import Detections

STAGES = ("stage2", "stage3", "stage4", "neck")
SPACE = DepthSpace(stages=STAGES, decoder_layers=3, minimal_decoder_layers=2)


def sample_curve(best: float, *, loss: float = 0.01, latency: bool = True) -> DepthCurve:
    """Return a ladder of 6 depths: per rung, AP falls from ``best`` by ``loss`` and cost by 0.2 GFLOPs."""
    rows = []
    for position, config in enumerate(SPACE.ladder()):
        accuracy = best - loss * position
        figures = {
            **dict.fromkeys(FIGURES, 0.5),
            "AP": accuracy,
            "AP50": accuracy * 1.5,
            "AP75": accuracy * 0.9,
        }
        rows.append(
            DepthRow(
                depth=str(config),
                refine=dict(zip(STAGES, config.refine, strict=True)),
                decoder_layers=config.decoder_layers,
                parameters_run=1000,
                gflops=2.4 - 0.2 * position,
                latency=Latency(12.0 - position, 13.0, None) if latency else None,
                figures=figures,
                per_class={},
            )
        )
    protocol = LatencyProtocol("cpu, 2 threads", "fp32", 1, (320, 320), 3, 20) if latency else None
    return DepthCurve("detr_tiny", 4_000_000, (320, 320), "fp32", 19, protocol, tuple(rows))


def sample_log(best: float, seed: int, epochs: int = 12, per_epoch: int = 25) -> dict[str, Series]:
    """Return logs with falling losses, rising validation, and gradients of three modules."""
    draw = random.Random(seed)
    steps = tuple(range(epochs * per_epoch))
    by_step = tuple(step // per_epoch for step in steps)

    def falling(start: float, end: float) -> Series:
        values = [end + (start - end) * math.exp(-step / 90) + draw.gauss(0, 0.02 * start) for step in steps]
        return Series(steps, tuple(float(epoch) for epoch in by_step), tuple(values))

    ends = tuple(per_epoch * (epoch + 1) - 1 for epoch in range(epochs))
    whole = tuple(float(epoch) for epoch in range(epochs))

    def rising(end: float) -> Series:
        values = tuple(end * (1 - math.exp(-(epoch + 1) / 4)) for epoch in range(epochs))
        return Series(ends, whole, values)

    log = {f"train/{path}/loss": falling(22 + at, 9 + at) for at, path in enumerate(("full", "minimal"))}
    log |= {
        f"train/{path}/{term}": falling(2, 0.6) for path in ("full", "minimal") for term in ("vfl", "giou")
    }
    log |= {f"train/minimal/{term}": falling(1.5, 0.2) for term in ("kd_class", "kd_neck")}
    log |= {"train/gradient_norm": falling(20, 6), "lr/backbone": falling(1e-4, 1e-6)}
    log |= {
        f"val/{depth}/{figure}": rising(share * best)
        for depth, share in (("full", 1.0), ("minimal", 0.8))
        for figure in ("AP", "AP50")
    }
    log |= {
        f"gradients/cosine/minimal/{module}": falling(0.1, 0.6)
        for module in ("all", "backbone", "neck", "decoder")
    }
    log |= {f"gradients/norm/{path}": falling(5, 2) for path in ("full", "minimal")}
    return log


def sample_gallery(
    folder: Path, best: float, seed: int, *, classes: Sequence[str], images: int = 3
) -> Gallery:
    """Return coloured blocks, with lower scores and more false detections at shallower depths."""
    depths = [GalleryDepth(row.depth, row.gflops) for row in sample_curve(best).rows]
    shown = []
    for number in range(images):
        path = folder / "originals" / f"{number}.jpg"
        boxes = _blocks(number, len(classes))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(path, boxes, number)
        shown.append(gallery_image(path, number, (480, 800), boxes, depths, best, seed, len(classes)))
    return Gallery(tuple(classes), 0.4, tuple(depths), tuple(shown))


def gallery_image(
    path: Path,
    number: int,
    size: tuple[int, int],
    boxes: Sequence[tuple[list[float], int]],
    depths: Sequence[GalleryDepth],
    best: float,
    seed: int,
    classes: int,
) -> GalleryImage:
    """Return detections that deviate further from the ground truth at shallower depths."""
    found = {}
    for position, depth in enumerate(depths):
        draw = random.Random(seed * 1000 + number)
        rows = []
        for box, label in boxes:
            jitter = [side + draw.gauss(0, 1.5 + position) for side in box]
            score = draw.uniform(0.45, 0.98) - 0.05 * position + 0.1 * best
            rows.append((jitter, max(0.05, min(0.99, score)), label))
        for _ in range(position // 2):
            x, y = draw.uniform(0, size[1] * 0.8), draw.uniform(0, size[0] * 0.8)
            wrong = [x, y, x + size[1] * 0.12, y + size[0] * 0.12]
            rows.append((wrong, draw.uniform(0.3, 0.6), draw.randrange(classes)))
        rows.sort(key=lambda row: -row[1])
        found[depth.depth] = _detections(rows)
    truth = _detections([(box, 1.0, label) for box, label in boxes])
    return GalleryImage(image_id=number, path=path, size=size, truth=truth, found=found)


def sample_run(folder: Path, best: float, seed: int, **parts: object) -> Run:
    """Return a run with a curve; ``parts`` replaces its other attributes."""
    curve = parts.pop("curve", None) or sample_curve(best)
    assert isinstance(curve, DepthCurve)
    provenance = {
        "command": f"anydepth-train detector=detr_tiny seed={seed}",
        "git": {"commit": "0123456789abcdef", "changed": seed == 1},
        "device": "cpu",
        "python": "3.11.7",
        "versions": {"torch": "2.15.0", "lightning": "2.6.6"},
        "data": {"fingerprint": "sha256:00ff", "class_names": ["tree", "lake"]},
    }
    given = {
        "folder": folder,
        "name": folder.name,
        "config": {"seed": seed},
        "provenance": provenance,
        "result": {"seconds": 100.0 + seed},
        "curve": curve,
        "summary": summarize(curve),
        "log": {},
        "compatibility": None,
        "gallery": None,
        "notes": (),
    }
    return Run(**{**given, **parts})  # type: ignore[arg-type]


def sample_setting(label: str, runs: Sequence[Run], differing: Mapping[str, object]) -> Setting:
    """Return a setting with means over runs, computed here with plain sums."""
    figures = [run.summary.figures() for run in runs]
    points = []
    for row in runs[0].curve.rows:
        values = [run.curve.row(row.depth).figures["AP"] for run in runs]
        latency = row.latency.median_ms if row.latency else None
        points.append(
            CurvePoint(row.depth, row.gflops, latency, sum(values) / len(values), min(values), max(values))
        )
    return Setting(
        label=label,
        runs=tuple(runs),
        differing=differing,
        mean={name: sum(f[name] for f in figures) / len(figures) for name in figures[0]},
        spread={
            name: (max(f[name] for f in figures) - min(f[name] for f in figures)) / 2 for name in figures[0]
        },
        curve_mean=tuple(points),
    )


def sample_compatibility(best: float) -> Compatibility:
    """Return features that diverge further from stage to stage."""
    depths = tuple(row.depth for row in sample_curve(best).rows)
    rows = [
        CompatibilityRow(
            stage,
            depth,
            {
                name: 0.03 * at * (n + 1) if name.endswith("_l2") else 1 - 0.02 * at * (n + 1) * (1 - best)
                for name in MEASURES
            },
        )
        for n, stage in enumerate(STAGES)
        for at, depth in enumerate(depths)
    ]
    every = dict.fromkeys(STAGES, 64)
    return Compatibility("detr_tiny", (320, 320), "fp32", 19, every, every, depths, STAGES, tuple(rows))


def one_comparison(settings: Sequence[Setting], **parts: object) -> Report:
    """Return a report of one comparison and one folder that was left out."""
    given = {
        "title": "sample: 19 images, 2 classes, detr_tiny",
        "settings": tuple(settings),
        "findings": (),
        "warnings": (),
    }
    unusable = (UnusableRun(Path("/runs/broken"), "no depth curve: the run was interrupted"),)
    return Report((Comparison(**{**given, **parts}),), unusable, ())  # type: ignore[arg-type]


def _blocks(number: int, classes: int) -> list[tuple[list[float], int]]:
    draw = random.Random(number)
    blocks = []
    for _ in range(5):
        x, y = draw.uniform(0, 600), draw.uniform(0, 340)
        blocks.append(([x, y, x + draw.uniform(60, 190), y + draw.uniform(50, 130)], draw.randrange(classes)))
    return blocks


def _draw(path: Path, boxes: Sequence[tuple[list[float], int]], number: int) -> None:
    picture = Image.linear_gradient("L").resize((800, 480)).convert("RGB")
    drawing = ImageDraw.Draw(picture)
    for box, label in boxes:
        drawing.rectangle(box, fill=(40 + 30 * number, 90 + 60 * label, 120))
    picture.save(path, quality=80)


def _detections(rows: Sequence[tuple[list[float], float, int]]) -> Detections:
    return Detections(
        torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        torch.tensor([row[1] for row in rows]),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
    )
