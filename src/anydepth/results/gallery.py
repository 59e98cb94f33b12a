"""Gallery: detections of the same images at many depths, between which a viewer can switch.

A gallery is a folder with ``gallery.json`` and the images themselves under ``originals/``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anydepth.data.source import SampleSource
from anydepth.detector import Detector
from anydepth.evaluation.curve_summary import ladder_rows
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.images import read_image
from anydepth.results.pictures import Panel, grid, save_picture, side_by_side
from anydepth.structures import Detections
from anydepth.utils.files import write_text

GALLERY_FILE = "gallery.json"
MIN_SCORE = 0.05
"""Score from which detections are stored: low, so that a viewer can lower the threshold of the pictures."""

MAX_DEPTHS = 12
"""Depths of a gallery: more than a ladder has rungs as a rule, and few enough to step through."""


class GalleryError(ValueError):
    """Folder without a gallery that this version can read."""


@dataclass(frozen=True)
class GalleryDepth:
    """Depth of a gallery.

    Attributes:
        depth: Text of the depth.
        gflops: GFLOPs of one image (2 x GMACs).
    """

    depth: str
    gflops: float


@dataclass(frozen=True)
class GalleryImage:
    """Image of a gallery with its ground truth and its detections.

    Attributes:
        image_id: Image id of the data set.
        path: Image file.
        size: (height, width) in pixels.
        truth: Ground truth, with scores of 1, in pixels.
        found: Detections in pixels by the text of the depth, best score first.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    truth: Detections
    found: Mapping[str, Detections]


@dataclass(frozen=True)
class Gallery:
    """Images with their detections at every depth.

    Attributes:
        class_names: Class names, one per label.
        threshold: Score from which pictures show a box; detections below it may be stored, too.
        depths: Depths in the order of the curve.
        images: Images in the order of the data set.
    """

    class_names: tuple[str, ...]
    threshold: float
    depths: tuple[GalleryDepth, ...]
    images: tuple[GalleryImage, ...]


def detect_gallery(
    detector: Detector,
    source: SampleSource,
    curve: DepthCurve,
    folder: str | Path,
    *,
    count: int,
    threshold: float,
) -> Gallery:
    """Detect on evenly spaced images of a data set at the depths of a curve, and write the gallery.

    Args:
        detector: Detector on any device.
        source: Images with their ground truth.
        curve: Curve whose depths are shown; of more than 12, the rungs of the ladder, or 12 evenly spaced by
            cost.
        folder: Folder to write to; ``gallery.json`` is written last.
        count: Number of images.
        threshold: Score from which pictures show a box. Detections down to a score of 0.05 are stored, too.
    """
    folder = Path(folder)
    rows = _select_rows(curve)
    images = []
    for position in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist():
        sample = source.read(position)
        path = folder / _original_path(sample.image_id)
        save_picture(Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy()), path)
        boxes, labels = torch.from_numpy(sample.boxes_xyxy), torch.from_numpy(sample.labels)
        found = {
            row.depth: detector.predict(sample.image, depth=row.depth, threshold=MIN_SCORE)[0] for row in rows
        }
        images.append(
            GalleryImage(
                image_id=sample.image_id,
                path=path,
                size=(int(sample.image.shape[1]), int(sample.image.shape[2])),
                truth=Detections(boxes, torch.ones(len(boxes)), labels),
                found=found,
            )
        )
    gallery = Gallery(
        class_names=tuple(detector.class_names),
        threshold=threshold,
        depths=tuple(GalleryDepth(row.depth, row.gflops) for row in rows),
        images=tuple(images),
    )
    write_text(folder / GALLERY_FILE, _to_json(gallery))
    return gallery


def draw_gallery(gallery: Gallery, folder: str | Path) -> Path:
    """Draw ground truth and the most and least expensive depth side by side, above the threshold.

    Returns:
        Path of ``grid.jpg``, which holds the pictures of all images; there is also one file per image.
    """
    by_cost = sorted(gallery.depths, key=lambda depth: -depth.gflops)
    depths = list({by_cost[0].depth: by_cost[0], by_cost[-1].depth: by_cost[-1]}.values())
    rows = []
    for image in gallery.images:
        panels = [Panel("ground truth", image.truth, show_scores=False)]
        for depth in depths:
            found = image.found[depth.depth].above(gallery.threshold)
            panels.append(Panel(f"{depth.depth}, {depth.gflops:.2f} GFLOPs", found))
        rows.append(side_by_side(read_image(image.path), panels, gallery.class_names))
        save_picture(rows[-1], Path(folder) / f"{image.image_id}.jpg")
    save_picture(grid(rows), Path(folder) / "grid.jpg")
    return Path(folder) / "grid.jpg"


def read_gallery(folder: str | Path) -> Gallery:
    """Read the gallery of a folder; coordinates are as written, to a tenth of a pixel.

    Raises:
        GalleryError: The folder holds no gallery, or a damaged one.
    """
    path = Path(folder) / GALLERY_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Gallery(
            class_names=tuple(map(str, document["class_names"])),
            threshold=float(document["threshold"]),
            depths=tuple(GalleryDepth(d["depth"], float(d["gflops"])) for d in document["depths"]),
            images=tuple(_parse_image(entry, Path(folder)) for entry in document["images"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise GalleryError(f"{path}: not a gallery as written by anydepth: {error!r}") from error


def _select_rows(curve: DepthCurve) -> list[DepthRow]:
    """Return the rows of a curve that a viewer can step through, in order."""
    if len(curve.rows) <= MAX_DEPTHS:
        return list(curve.rows)
    by_cost = sorted(curve.rows, key=lambda row: -row.gflops)
    evenly = np.linspace(0, len(by_cost) - 1, MAX_DEPTHS).round().astype(int).tolist()
    return list(ladder_rows(curve)) or [by_cost[position] for position in evenly]


def _to_json(gallery: Gallery) -> str:
    document = {
        "class_names": list(gallery.class_names),
        "threshold": gallery.threshold,
        "depths": [{"depth": depth.depth, "gflops": depth.gflops} for depth in gallery.depths],
        "images": [
            {
                "image_id": image.image_id,
                "size": list(image.size),
                "truth": _to_plain(image.truth),
                "found": {depth: _to_plain(found) for depth, found in image.found.items()},
            }
            for image in gallery.images
        ],
    }
    return json.dumps(document) + "\n"


def _original_path(image_id: int) -> Path:
    return Path("originals") / f"{image_id}.jpg"


def _parse_image(entry: Mapping[str, object], folder: Path) -> GalleryImage:
    found, size = entry["found"], entry["size"]
    if not isinstance(found, Mapping) or not isinstance(size, Sequence) or len(size) != 2:
        raise TypeError("an image lacks detections by depth, or its size")
    image_id = int(str(entry["image_id"]))
    return GalleryImage(
        image_id=image_id,
        path=folder / _original_path(image_id),
        size=(int(size[0]), int(size[1])),
        truth=_parse_detections(entry["truth"]),
        found={str(depth): _parse_detections(boxes) for depth, boxes in found.items()},
    )


def _to_plain(detections: Detections) -> dict[str, list[object]]:
    return {
        "boxes_xyxy": [[round(side, 1) for side in box] for box in detections.boxes_xyxy.tolist()],
        "scores": [round(score, 4) for score in detections.scores.tolist()],
        "labels": detections.labels.tolist(),
    }


def _parse_detections(entry: object) -> Detections:
    if not isinstance(entry, Mapping):
        raise TypeError("detections are not a mapping")
    boxes = torch.tensor(entry["boxes_xyxy"], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(entry["scores"], dtype=torch.float32)
    labels = torch.tensor(entry["labels"], dtype=torch.int64)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError("boxes, scores and labels differ in length")
    return Detections(boxes, scores, labels)
