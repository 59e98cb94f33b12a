"""Predictions: detections on images outside any data set, in COCO's results format.

``detections.json`` is the list that COCO tools read: ``image_id``, ``category_id``, ``bbox`` (x, y, width,
height in pixels of the image, with the origin at its upper left corner) and ``score``. As such images have no
ids of their own, ``images.json`` explains the ids: ``images`` with ``id``, ``file_name``, ``width`` and
``height``, including images without detections, and ``categories`` with ``id`` and ``name``. Image ids count
from 1 in the order of the images; a category id is 1 + the label of the detector.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from anydepth.structures import Detections
from anydepth.utils.files import write_text


class Predictions:
    """Collects detections image by image and writes them together.

    Args:
        class_names: Names of the detector's classes.
        info: Further values for ``images.json``, e.g. weights and depth; plain values only.
    """

    def __init__(self, *, class_names: Sequence[str], info: Mapping[str, object]) -> None:
        self.images: list[dict[str, object]] = []
        self.results: list[dict[str, object]] = []
        self._categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
        self._info = dict(info)

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        found: Detections,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Add the detections of a further image.

        Args:
            file_name: File name of the image, without its folder.
            size: (height, width) in pixels.
            found: Detections in pixels of the image.
            extra: Further values for the entry of the image, e.g. the time of a video frame.
        """
        image_id = len(self.images) + 1
        height, width = size
        entry: dict[str, object] = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.images.append(entry | dict(extra or {}))
        boxes, scores, labels = found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()
        for (left, top, right, bottom), score, label in zip(boxes, scores, labels, strict=True):
            self.results.append(
                {
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score,
                }
            )

    def write(self, folder: str | Path) -> None:
        """Write ``detections.json`` and ``images.json`` into a folder."""
        document = {"info": self._info, "images": self.images, "categories": self._categories}
        write_text(Path(folder) / "images.json", json.dumps(document, indent=1) + "\n")
        write_text(Path(folder) / "detections.json", json.dumps(self.results) + "\n")
