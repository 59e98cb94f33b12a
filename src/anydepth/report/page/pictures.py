"""Galleries of several runs as plain data for the page, with each picture stored once."""

import base64
import hashlib
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.report.comparison import Comparison
from anydepth.report.page.curves import to_percent
from anydepth.report.runs import Run
from anydepth.results.gallery import Gallery, GalleryImage
from anydepth.structures import Detections

Json = dict[str, Any]

MAX_SIDE = 640
"""Longer side of an embedded picture in pixels: enough to see boxes, small enough for one file."""

MAX_BOXES = 100
"""Boxes per picture and depth, best scores first: as many as COCO evaluates per image."""


class Pictures:
    """Pictures of a page, each stored once however many runs show it.

    Files with equal bytes are the same picture, as runs of one data set write equal files.
    """

    def __init__(self) -> None:
        self.images: dict[str, Json] = {}
        self.unreadable: list[str] = []

    def add(self, path: Path) -> str | None:
        """Add a picture and return its key in :attr:`images`; None, with a note, if it cannot be read."""
        try:
            content = path.read_bytes()
            key = hashlib.sha256(content).hexdigest()[:16]
            if key not in self.images:
                self.images[key] = _embed(content)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            self.unreadable.append(f"{path}: not a readable picture: {error}")
            return None
        return key


def detections(comparison: Comparison, pictures: Pictures) -> Json | None:
    """Return detections per setting on its pictures, from its first run with a gallery.

    Args:
        comparison: Comparison whose settings are shown in order.
        pictures: Collection to which the pictures are added.

    Returns:
        Data of the viewer; None if no run has a picture.
    """
    settings, first = [], None
    for position, setting in enumerate(comparison.settings):
        run = next((run for run in setting.runs if run.gallery is not None and run.gallery.images), None)
        if run is None or run.gallery is None:
            continue
        shown = _setting(run, run.gallery, pictures)
        if shown["pictures"]:
            settings.append({"setting": position, "run": run.name, **shown})
            first = first or run.gallery
    if first is None:
        return None
    return {"classes": list(first.class_names), "threshold": first.threshold, "settings": settings}


def _setting(run: Run, gallery: Gallery, pictures: Pictures) -> Json:
    depths = sorted(gallery.depths, key=lambda depth: -depth.gflops)
    shown = []
    for image in gallery.images:
        key = pictures.add(image.path)
        if key is not None and all(depth.depth in image.found for depth in depths):
            found = [image.found[depth.depth] for depth in depths]
            shown.append(_picture(key, image, found, pictures.images[key]["width"] / image.size[1]))
    return {
        "depths": [
            {"depth": d.depth, "gflops": round(d.gflops, 4), "ap": _ap_percent(run, d.depth)} for d in depths
        ],
        "pictures": shown,
    }


def _picture(key: str, image: GalleryImage, found: list[Detections], scale: float) -> Json:
    return {
        "image": key,
        # As text: JavaScript's numbers merge ids beyond 2^53.
        "id": str(image.image_id),
        "truth": _boxes(image.truth, scale),
        "found": [_boxes(detections, scale) for detections in found],
    }


def _boxes(detections: Detections, scale: float) -> list[list[float]]:
    """Return rows of x1, y1, x2, y2 (pixels of the embedded picture), score, label; best score first."""
    rows = zip(
        (detections.boxes_xyxy * scale).tolist(),
        detections.scores.tolist(),
        detections.labels.tolist(),
        strict=True,
    )
    finite = [row for row in rows if all(map(isfinite, (*row[0], row[1])))]
    best = sorted(finite, key=lambda row: -row[1])[:MAX_BOXES]
    return [[*(round(side, 1) for side in box), round(score, 3), label] for box, score, label in best]


def _ap_percent(run: Run, depth: str) -> float | None:
    try:
        return to_percent(run.curve.row(depth).figures["AP"])
    except (EvaluationError, KeyError):
        return None


def _embed(content: bytes) -> Json:
    with Image.open(BytesIO(content)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    written = BytesIO()
    image.save(written, "JPEG", quality=85, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode("ascii")
    return {"uri": uri, "width": image.width, "height": image.height}
