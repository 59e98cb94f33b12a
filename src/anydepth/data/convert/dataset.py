"""Data sets of other formats: the result of their readers, and its conversion to COCO.

Readers (:mod:`anydepth.data.convert.voc`, :mod:`anydepth.data.convert.yolo`) return images and objects.
Invalid numbers are errors, with file and line; an image or object that cannot be used is skipped and listed
in the summary, so that one bad file among ten thousand does not stop an import.
"""

import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anydepth.data.coco.layout import SplitName
from anydepth.data.errors import DataError
from anydepth.utils.files import scratch_folder

_MAX_PLACES = 3  # Examples per reason: enough to find the cause, and still a readable summary.
ImageLink = Literal["hard", "symbolic"]


@dataclass(frozen=True)
class ForeignObject:
    """One object of an image.

    Attributes:
        class_name: Name of its class.
        box_xyxy: Box in pixels; the origin is the upper left corner of the image.
        where: File and line, for messages.
        ignored: Whether training and evaluation ignore it: a crowd region in COCO's terms.
        polygon: x and y of each point in pixels; None without an outline.
    """

    class_name: str
    box_xyxy: tuple[float, float, float, float]
    where: str
    ignored: bool = False
    polygon: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ForeignImage:
    """One image and its objects.

    Attributes:
        path: Image file.
        size: (height, width) in pixels, in the frame of the boxes.
        objects: Objects of the image; empty for a pure background image.
    """

    path: Path
    size: tuple[int, int]
    objects: tuple[ForeignObject, ...]


@dataclass(eq=False)
class ForeignDataset:
    """A data set as a reader returns it.

    Attributes:
        class_names: Class names in the order of the labels.
        splits: Images of each split.
        skipped: Reason and location of everything that was skipped.
        remarks: Notes for the user.
    """

    class_names: tuple[str, ...] = ()
    splits: dict[SplitName, list[ForeignImage]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def skip(self, reason: str, where: object) -> None:
        """Record something that is skipped."""
        self.skipped.append((reason, str(where)))

    def describe_skipped(self) -> list[str]:
        """Return a line for each reason: how many were skipped, and the first places."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for reason, where in self.skipped:
            reasons[reason].append(where)
        return [
            f"skipped {len(places)} {reason}: {'; '.join(places[:_MAX_PLACES])}"
            + (f" and {len(places) - _MAX_PLACES} more" if len(places) > _MAX_PLACES else "")
            for reason, places in reasons.items()
        ]

    def error(self, message: str) -> DataError:
        """Create an error that also says what was skipped, because that is usually its cause."""
        return DataError("\n  ".join([message, *self.describe_skipped()]))

    def keep_usable(
        self, objects: Sequence[ForeignObject], size: tuple[int, int]
    ) -> tuple[ForeignObject, ...]:
        """Clip the boxes of objects to the image, and skip objects without an area in it."""
        return tuple(kept for item in objects if (kept := self._clip(item, size)) is not None)

    def _clip(self, item: ForeignObject, size: tuple[int, int]) -> ForeignObject | None:
        height, width = size
        left, top, right, bottom = item.box_xyxy
        if right <= left or bottom <= top:
            self.skip("boxes without a positive size", item.where)
            return None
        box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if box[2] <= box[0] or box[3] <= box[1]:
            self.skip("boxes outside their image", item.where)
            return None
        return ForeignObject(item.class_name, box, item.where, item.ignored, item.polygon)


def split_off_val(dataset: ForeignDataset, share: float, seed: int) -> None:
    """Move a random share of the training images to a validation split if there is none.

    Args:
        dataset: Data set, changed in place.
        share: Share of the training images, between 0 and 1; at least one image moves and one stays.
        seed: Seed of the choice.

    Raises:
        DataError: There are fewer than two training images.
    """
    if "val" in dataset.splits:
        return
    images = dataset.splits.get("train", [])
    if len(images) < 2:
        raise dataset.error(
            f"got {len(images)} training images, expected at least 2 to split off validation images"
        )
    count = min(max(round(share * len(images)), 1), len(images) - 1)
    chosen = set(random.Random(seed).sample(range(len(images)), count))
    dataset.splits["val"] = [image for row, image in enumerate(images) if row in chosen]
    dataset.splits["train"] = [image for row, image in enumerate(images) if row not in chosen]
    dataset.remarks.append(f"the data has no validation split: {count} training images were moved to one")


def write_coco(dataset: ForeignDataset, out: Path, *, link: ImageLink = "hard") -> None:
    """Write a data set for ``data=custom data.root=OUT``, completely or not at all.

    Images keep their bytes, names and subfolders.

    Args:
        dataset: Data set to write.
        out: Folder that does not exist yet or is empty.
        link: How images are placed in ``out``: as ``hard`` links, or copies if those are impossible; or as
            ``symbolic`` links.

    Raises:
        DataError: ``out`` is not empty, there are no training boxes, or it cannot be written.
    """
    check_empty_folder(out)
    if not any(not item.ignored for image in dataset.splits.get("train", []) for item in image.objects):
        raise dataset.error("no training image holds a box to learn from; check the folders and the labels")
    try:
        with scratch_folder(out.absolute().with_name(f".{out.name}.importing")) as scratch:
            (scratch / "annotations").mkdir()
            for split, images in dataset.splits.items():
                names = _relative_names([image.path for image in images])
                for image, name in zip(images, names, strict=True):
                    _link_or_copy(image.path, scratch / "images" / split / name, link)
                document = _coco_document(images, names, dataset.class_names)
                text = json.dumps(document, ensure_ascii=False)
                (scratch / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
            if out.is_dir():
                out.rmdir()
            scratch.rename(out)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error}); free disk space or choose another folder"
        ) from error


def check_empty_folder(out: Path) -> None:
    """Check that an output folder is missing or empty.

    Raises:
        DataError: It is not empty, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: not an empty folder; give a new folder, or remove it first")


def _relative_names(paths: Sequence[Path]) -> list[str]:
    """Return distinct names relative to the common folder of all files.

    Raises:
        DataError: A name is not UTF-8, which a json cannot hold.
    """
    if not paths:
        return []
    common = os.path.commonpath([path.absolute().parent for path in paths])
    names = [path.absolute().relative_to(common).as_posix() for path in paths]
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{common}: the file name {name!r} is not UTF-8; rename it") from error
    return names


def _link_or_copy(source: Path, target: Path, link: ImageLink) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link == "symbolic":
        target.symlink_to(source.resolve())
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # Another disk, or a file system without hard links.
        shutil.copy2(source, target)


def _coco_document(
    images: Sequence[ForeignImage], names: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    category_of = {name: number for number, name in enumerate(classes, start=1)}
    annotations = [
        {"image_id": image_id, "category_id": category_of[item.class_name]} | _annotation_fields(item)
        for image_id, image in enumerate(images, start=1)
        for item in image.objects
    ]
    return {
        "images": [
            {"id": image_id, "file_name": name, "height": image.size[0], "width": image.size[1]}
            for image_id, (image, name) in enumerate(zip(images, names, strict=True), start=1)
        ],
        "annotations": [{"id": number} | entry for number, entry in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for name, number in category_of.items()],
    }


def _annotation_fields(item: ForeignObject) -> dict[str, Any]:
    left, top, right, bottom = item.box_xyxy
    shape: dict[str, Any] = {
        "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
        "area": round((right - left) * (bottom - top), 3),
        "iscrowd": int(item.ignored),
    }
    if item.polygon is not None:
        shape["segmentation"] = [[round(value, 3) for value in item.polygon]]
        shape["area"] = round(_polygon_area(item.polygon), 3) or shape["area"]
    return shape


def _polygon_area(polygon: Sequence[float]) -> float:
    xs, ys = polygon[0::2], polygon[1::2]
    pairs = zip(xs, ys, (*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in pairs)) / 2
