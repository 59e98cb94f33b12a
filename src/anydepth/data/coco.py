"""A data set in COCO format, packed into flat numpy arrays.

The dictionaries of the json cost over twenty times as much memory, and every worker process would copy them
page by page, because reading a Python object writes its reference count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anydepth.data.categories import Categories, categories_of
from anydepth.data.coco_json import DataError, read_json, warn
from anydepth.data.coco_tables import (
    BoxRepairs,
    annotation_table,
    clean_boxes,
    image_table,
    pack_names,
    refuse_missing_files,
)
from anydepth.images import ImageError, read_image


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images and cleaned boxes of one COCO json. ``I`` images, ``A`` annotations, sorted by image.

    Attributes:
        json_path: Where it was read from.
        image_root: The folder that file names are relative to.
        categories: The map from contiguous labels to the data set's category ids.
        image_ids: [I] int64, in the order of the json.
        sizes: [I, 2] int32, (height, width) in pixels as the json says.
        boxes_xywh: [A, 4] float64, corner and size in pixels, as COCO stores them.
        labels: [A] int32, contiguous classes in [0, K).
        crowd: [A] bool. Crowd regions are never training targets; evaluation ignores detections in them.
        areas: [A] float64, square pixels: the json's (of a mask, where there was one), else width x height.
        annotation_ids: [A] int64.
        starts: [I + 1] int64; the annotations of image ``i`` are ``starts[i]:starts[i + 1]``.
        repairs: What was wrong with boxes of the json.
    """

    json_path: Path
    image_root: Path
    categories: Categories
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    repairs: BoxRepairs
    _names: NDArray[np.uint8]
    _name_starts: NDArray[np.int64]

    @classmethod
    def load(
        cls,
        json_path: str | Path,
        image_root: str | Path,
        *,
        categories: Categories | None = None,
        for_training: bool = False,
        annotated: bool = True,
        report: Callable[[str], None] = warn,
    ) -> "CocoIndex":
        """Read, check and pack a COCO json.

        Args:
            json_path: The json with ``images``, ``annotations`` and ``categories``.
            image_root: The folder that ``file_name`` is relative to.
            categories: The categories of the training split, which rule this split's labels. None: its own.
            for_training: Refuse a json without any box to learn from.
            annotated: False takes a json without ``annotations`` as images without ground truth.
            report: Called at most once, with the counts of boxes that were clipped or dropped.

        Raises:
            DataError: Anything that is wrong with the json, or an image that is missing on disk.
        """
        path, root = Path(json_path), Path(image_root)
        document = read_json(path)
        if not annotated:
            document.setdefault("annotations", [])
        own = categories_of(document, path)
        if categories is not None:
            own.check_known_to(categories)
        rules = categories or own
        image_ids, sizes, names = image_table(document, path)
        refuse_missing_files(path, root, image_ids, names)
        rows, columns = annotation_table(document, path, image_ids, rules)
        del document
        keep, columns, repairs = clean_boxes(columns, sizes[rows])
        rows = rows[keep]
        order = np.argsort(rows, kind="stable")
        columns = columns.take(np.flatnonzero(keep)[order])
        if repairs:
            report(f"{path}: {repairs}")
        if for_training and columns.crowd.all():
            raise DataError(
                f"{path}: no image holds a box to learn from (crowd regions do not count); check that this "
                "is the json of the training split"
            )
        packed, name_starts = pack_names(names)
        return cls(
            json_path=path,
            image_root=root,
            categories=rules,
            image_ids=image_ids,
            sizes=sizes,
            boxes_xywh=columns.boxes_xywh,
            labels=columns.labels,
            crowd=columns.crowd,
            areas=columns.areas,
            annotation_ids=columns.ids,
            starts=np.searchsorted(rows[order], np.arange(len(image_ids) + 1)).astype(np.int64),
            repairs=repairs,
            _names=packed,
            _name_starts=name_starts,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each contiguous label."""
        return self.categories.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's category id of each contiguous label."""
        return self.categories.ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """``file_name`` of the image in this row."""
        return self._names[self._name_starts[row] : self._name_starts[row + 1]].tobytes().decode("utf-8")

    def path(self, row: int) -> Path:
        """Where the image of this row lies."""
        return self.image_root / self.file_name(row)

    def read_image(self, row: int) -> Tensor:
        """The picture of this row, [3, H, W] uint8 RGB, in the frame that its boxes lie in.

        Where the EXIF orientation turns a picture on its side, the json may hold either frame: the one whose
        size the json gives is used, for pixels, boxes and detections alike. A square picture, or one turned
        upside down, is taken upright.

        Raises:
            DataError: The file cannot be read, or its size fits the json in neither frame.
        """
        path, size = self.path(row), tuple(self.sizes[row].tolist())
        name = f"{self.json_path}: image id {self.image_ids[row]}"
        try:
            image = read_image(path)
            if tuple(image.shape[-2:]) != size:
                image = read_image(path, upright=False)
        except ImageError as error:
            raise DataError(f"{name}: {error}, together with its entry in the json") from error
        if tuple(image.shape[-2:]) != size:
            raise DataError(
                f"{name}: {path} is {tuple(image.shape[-2:])} pixels (height, width), but the json says "
                f"{size}; its boxes belong to another picture: correct the json or restore the file"
            )
        return image

    def annotations_of(self, row: int) -> slice:
        """Which annotations belong to the image of this row."""
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def training_boxes(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes [N, 4] xyxy in pixels and labels [N] of one image, without crowd regions."""
        part = self.annotations_of(row)
        learnt = ~self.crowd[part]
        boxes = self.boxes_xywh[part][learnt]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        return corners.astype(np.float32), self.labels[part][learnt].astype(np.int64)

    def to_coco_dict(self, *, contiguous_ids: bool = False) -> dict[str, list[dict[str, Any]]]:
        """Ground truth as ``pycocotools`` takes it, with the boxes as cleaned and crowd regions marked.

        Args:
            contiguous_ids: Write the label 0..K-1 as ``category_id`` instead of the data set's own id.
        """
        ids = range(len(self.category_ids)) if contiguous_ids else self.category_ids
        category_of_label = list(ids)
        image_of_annotation = np.repeat(self.image_ids, np.diff(self.starts))
        columns = zip(
            self.annotation_ids.tolist(),
            image_of_annotation.tolist(),
            self.labels.tolist(),
            self.boxes_xywh.tolist(),
            self.areas.tolist(),
            self.crowd.tolist(),
            strict=True,
        )
        return {
            "images": [
                {"id": image_id, "file_name": self.file_name(row), "height": height, "width": width}
                for row, (image_id, (height, width)) in enumerate(
                    zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
                )
            ],
            "annotations": [
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": category_of_label[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for annotation_id, image_id, label, box, area, crowd in columns
            ],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(category_of_label, self.class_names, strict=True)
            ],
        }
