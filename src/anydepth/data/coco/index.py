"""The packed index: a split in COCO format in flat numpy arrays.

The dictionaries of the json cost over twenty times as much memory, and every worker process would copy them
page by page, because reading a Python object writes its reference count. The arrays lie in memory that worker
processes share, whatever their start method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anydepth.data.coco.categories import Categories
from anydepth.data.coco.memory import SharedArrays, release_freed_memory
from anydepth.data.coco.orientation import read_in_json_frame
from anydepth.data.coco.packing import pack
from anydepth.data.coco.tables import BoxRepairs, select_training_boxes
from anydepth.data.errors import warn
from anydepth.data.outlines import Outlines
from anydepth.images import read_image


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images and cleaned boxes of one COCO json. ``I`` images, ``A`` annotations, sorted by image.

    Attributes:
        json_path: Json that was read.
        image_root: Folder that file names are relative to.
        categories: Map from contiguous labels to the data set's category ids.
        image_ids: [I] int64, in the order of the json.
        sizes: [I, 2] int32, (height, width) in pixels according to the json.
        boxes_xywh: [A, 4] float64, corner and size in pixels, as COCO stores them.
        labels: [A] int16, contiguous classes in [0, K).
        crowd: [A] bool. Crowd regions are never training targets; evaluation ignores detections in them.
        areas: [A] float64, square pixels: the json's area (of the mask, if any), else width x height.
        annotation_ids: [A] int64.
        starts: [I + 1] int32; the annotations of image ``i`` are ``starts[i]:starts[i + 1]``.
        repairs: Counts of the boxes that were clipped or dropped.
    """

    json_path: Path
    image_root: Path
    categories: Categories
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int16]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    starts: NDArray[np.int32]
    repairs: BoxRepairs
    _memory: SharedArrays

    @classmethod
    def load(
        cls,
        json_path: str | Path,
        image_root: str | Path,
        *,
        categories: Categories | None = None,
        for_training: bool = False,
        outlines: bool = False,
        annotated: bool = True,
        report: Callable[[str], None] = warn,
    ) -> "CocoIndex":
        """Read, check and pack a COCO json.

        Args:
            json_path: Json with ``images``, ``annotations`` and ``categories``.
            image_root: Folder that ``file_name`` is relative to.
            categories: Categories of the training split, which define the labels; None uses the json's own.
            for_training: Whether to refuse a json without training boxes.
            outlines: Whether to keep the polygons of the json, about 200 MB for COCO's training split.
            annotated: Whether ``annotations`` are required; if False, a json without them holds images
                without ground truth.
            report: Called at most once with a message that counts the clipped and dropped boxes and the
                malformed outlines, and says what was not in the json or matched by name.

        Raises:
            DataError: The json is malformed, or an image is missing on disk.
        """
        path, root = Path(json_path), Path(image_root)
        packed = pack(
            path,
            root,
            categories=categories,
            for_training=for_training,
            outlines=outlines,
            annotated=annotated,
            report=report,
        )
        release_freed_memory()
        return cls.from_memory(
            path, root, categories=packed.categories, repairs=packed.repairs, memory=packed.memory
        )

    @classmethod
    def from_memory(
        cls,
        json_path: Path,
        image_root: Path,
        *,
        categories: Categories,
        repairs: BoxRepairs,
        memory: SharedArrays,
    ) -> "CocoIndex":
        """Create an index of arrays, which are not checked.

        Args:
            json_path: See the attribute.
            image_root: See the attribute.
            categories: See the attribute.
            repairs: See the attribute.
            memory: Arrays by the names of the attributes, ``names`` (UTF-8) and ``name_starts`` [I + 1], and
                those of ``Outlines`` if they are kept.
        """
        columns = {
            field.name: memory.arrays[field.name] for field in fields(cls) if field.name in memory.arrays
        }
        return cls(
            json_path=json_path,
            image_root=image_root,
            categories=categories,
            repairs=repairs,
            _memory=memory,
            **columns,
        )

    def __getstate__(self) -> dict[str, Any]:
        # The arrays travel inside `_memory`, which hands them to worker processes without a copy.
        return {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state["_memory"].arrays
        vars(self).update(state)
        vars(self).update({field.name: arrays[field.name] for field in fields(self) if field.name in arrays})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each contiguous label."""
        return self.categories.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's category id of each contiguous label."""
        return self.categories.ids

    @property
    def has_objects(self) -> bool:
        """Whether there is an object to find in an evaluation; crowd regions are none."""
        return not bool(self.crowd.all())

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The arrays by name, see :meth:`from_memory`."""
        return self._memory.arrays

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return self._memory.nbytes

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """Return the ``file_name`` of the image in this row."""
        names, starts = self._memory.arrays["names"], self._memory.arrays["name_starts"]
        text: bytes = names[starts[row] : starts[row + 1]].tobytes()
        return text.decode("utf-8")

    def path(self, row: int) -> Path:
        """Return the file of the image in this row."""
        return self.image_root / self.file_name(row)

    def read_image(self, row: int) -> Tensor:
        """Read the image of this row, [3, H, W] uint8 RGB, in the frame of its boxes.

        If the EXIF orientation rotates an image by 90 degrees, the json may hold either frame: the one whose
        size it gives is used for pixels, boxes and detections alike. A square image, or one rotated by 180
        degrees, is read upright.

        Raises:
            BadImageError: The file cannot be read, or its size fits the json in neither frame.
        """
        path = self.path(row)
        height, width = self.sizes[row].tolist()
        return read_in_json_frame(
            lambda upright: read_image(path, upright=upright),
            (height, width),
            name=str(path),
            entry=f"{self.json_path}: image id {self.image_ids[row]}",
        )

    def annotations_of(self, row: int) -> slice:
        """Return the slice of the annotations of the image in this row."""
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def training_boxes(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the boxes [N, 4] xyxy in pixels and the labels [N] of one image, without crowd regions."""
        part = self.annotations_of(row)
        return select_training_boxes(self.boxes_xywh[part], self.labels[part], self.crowd[part])

    def outlines_of(self, row: int) -> Outlines | None:
        """Return the outlines of :meth:`training_boxes`, clipped to the image; None if they were not kept."""
        arrays = self._memory.arrays
        if "points" not in arrays:
            return None
        part = self.annotations_of(row)
        first, last = arrays["object_starts"][[part.start, part.stop]]
        ring_starts = arrays["ring_starts"][first : last + 1]
        points = arrays["points"][ring_starts[0] : ring_starts[-1]]
        # Crowd regions have no rings, so that the rings of the other objects are contiguous.
        starts = arrays["object_starts"][part][~self.crowd[part]]
        return Outlines(
            points=points.clip(0, self.sizes[row, ::-1].astype(np.float32)),
            ring_starts=ring_starts - ring_starts[0],
            object_starts=np.append(starts, last) - first,
        )

    def to_coco_dict(self, *, contiguous_ids: bool = False) -> dict[str, list[dict[str, Any]]]:
        """Return the ground truth in the format of ``pycocotools``, with cleaned boxes and crowd flags.

        Args:
            contiguous_ids: Whether ``category_id`` is the label 0..K-1 instead of the data set's own id.
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
