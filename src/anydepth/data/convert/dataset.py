"""Data sets of other formats as COCO: what every reader hands over, and how it is written.

Readers (:mod:`anydepth.data.convert.voc`, :mod:`anydepth.data.convert.yolo`) say which images and objects
there are. Numbers that cannot be meant are errors, with file and line; what one image or object lacks to be
learnt from is left out and listed in the summary, so that one bad file among ten thousand does not stop an
import.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anydepth.data.coco.layout import SplitName
from anydepth.data.errors import DataError
from anydepth.images import open_picture
from anydepth.utils.files import scratch_folder

ImageLink = Literal["hard", "symbolic"]

SPLIT_FOLDERS: Mapping[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm"}
_EXIF_ORIENTATION = 0x0112
_ON_ITS_SIDE = {5, 6, 7, 8}


@dataclass(frozen=True)
class ForeignObject:
    """One object of an image.

    Attributes:
        class_name: Its class.
        box_xyxy: In pixels; the origin is the upper left corner of the image.
        where: File and line, for messages.
        ignored: Neither learnt nor counted in evaluation: a crowd region in COCO's terms.
        polygon: x and y of each point in pixels, where the object is outlined.
    """

    class_name: str
    box_xyxy: tuple[float, float, float, float]
    where: str
    ignored: bool = False
    polygon: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ForeignImage:
    """One image.

    Attributes:
        path: The file.
        size: (height, width) in pixels, in the frame that the boxes lie in.
        objects: May be empty: such an image teaches what is no object.
    """

    path: Path
    size: tuple[int, int]
    objects: tuple[ForeignObject, ...]


@dataclass(eq=False)
class ForeignDataset:
    """What a reader found.

    Attributes:
        class_names: In the order of the labels to be.
        splits: Images of each split.
        skipped: What was left out: the reason, and where.
        remarks: What the user should look at.
    """

    class_names: tuple[str, ...] = ()
    splits: dict[SplitName, list[ForeignImage]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def skip(self, reason: str, where: object) -> None:
        """Remember what was left out."""
        self.skipped.append((reason, str(where)))

    def usable(self, objects: Sequence[ForeignObject], size: tuple[int, int]) -> tuple[ForeignObject, ...]:
        """Objects with their boxes clipped to the image; those without an area in it are skipped."""
        return tuple(kept for item in objects if (kept := self._clipped(item, size)) is not None)

    def _clipped(self, item: ForeignObject, size: tuple[int, int]) -> ForeignObject | None:
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


def picture_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of a picture upright and as stored, from its header alone.

    Raises:
        DataError: It is no picture.
    """
    try:
        with open_picture(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_EXIF_ORIENTATION) in _ON_ITS_SIDE
    # Decoders meet arbitrary bytes; which exception a codec raises is its own affair.
    except Exception as error:
        raise DataError(f"{path}: not a readable picture ({error}); restore or remove it") from error
    return ((width, height) if turned else (height, width)), (height, width)


def pictures_below(folder: Path) -> list[Path]:
    """Every picture in a folder and its subfolders, by suffix in any case, sorted; no hidden files.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of the images")
    return sorted(path for path in files_below(folder) if path.suffix.lower() in _IMAGE_SUFFIXES)


def split_folders(parent: Path) -> dict[SplitName, Path]:
    """The folders in this one that are named after splits.

    Raises:
        DataError: Two of them mean the same split.
    """
    found: dict[SplitName, Path] = {}
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        split = SPLIT_FOLDERS.get(path.name.lower())
        if split is not None and path.is_dir():
            if split in found:
                raise DataError(f"{found[split]} and {path} are both the {split} split; remove or rename one")
            found[split] = path
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and its subfolders, without hidden ones.

    Links are the user's own way of putting data sets together, as no archive that is unpacked here can bring
    any: they are followed wherever they lead, but into each folder only once, as links may form circles.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, whatever ends them.

    Raises:
        DataError: It is missing or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a text file in UTF-8") from error


def split_off_val(dataset: ForeignDataset, share: float, seed: int) -> None:
    """Move a random share of the training images to a validation split, where there is none.

    Args:
        dataset: Changed in place.
        share: Of the training images, between 0 and 1; at least one image goes and one stays.
        seed: Equal seeds choose equal images.

    Raises:
        DataError: There are fewer than two training images.
    """
    if "val" in dataset.splits:
        return
    images = dataset.splits.get("train", [])
    if len(images) < 2:
        raise DataError(
            f"{len(images)} training images: at least 2 are needed to split off validation images"
        )
    count = min(max(round(share * len(images)), 1), len(images) - 1)
    chosen = set(random.Random(seed).sample(range(len(images)), count))
    dataset.splits["val"] = [image for row, image in enumerate(images) if row in chosen]
    dataset.splits["train"] = [image for row, image in enumerate(images) if row not in chosen]
    dataset.remarks.append(f"no validation split came with the data: {count} training images became it")


def write_coco(dataset: ForeignDataset, out: Path, *, link: ImageLink = "hard") -> None:
    """Write a data set that ``data=custom data.root=OUT`` reads, whole or not at all.

    Images keep their bytes, names and subfolders.

    Args:
        dataset: What a reader found.
        out: A folder that is not there yet, or empty.
        link: How images get there: ``hard`` links, or copies where the file system has none; ``symbolic``
            links to where they are.

    Raises:
        DataError: ``out`` holds something, there is nothing to train on, or it cannot be written.
    """
    refuse_filled(out)
    if not any(not item.ignored for image in dataset.splits.get("train", []) for item in image.objects):
        raise DataError("no training image holds a box to learn from; check the folders and the labels")
    try:
        with scratch_folder(out.absolute().with_name(f".{out.name}.importing")) as scratch:
            (scratch / "annotations").mkdir()
            for split, images in dataset.splits.items():
                names = _names_of([image.path for image in images])
                for image, name in zip(images, names, strict=True):
                    _place(image.path, scratch / "images" / split / name, link)
                document = _document(images, names, dataset.class_names)
                text = json.dumps(document, ensure_ascii=False)
                (scratch / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
            if out.is_dir():
                out.rmdir()
            scratch.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); make room or choose another folder") from error


def refuse_filled(out: Path) -> None:
    """Refuse a result folder that holds something.

    Raises:
        DataError: It does, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already holds something; give a new folder, or remove it first")


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Distinct names relative to the folder that all have in common.

    Raises:
        DataError: A json cannot hold one of them.
    """
    if not paths:
        return []
    common = os.path.commonpath([path.absolute().parent for path in paths])
    names = [path.absolute().relative_to(common).as_posix() for path in paths]
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{common}: the file name {name!r} is no UTF-8; rename it") from error
    return names


def _place(source: Path, target: Path, link: ImageLink) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link == "symbolic":
        target.symlink_to(source.resolve())
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # Another disk, or a file system without hard links.
        shutil.copy2(source, target)


def _document(images: Sequence[ForeignImage], names: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    category_of = {name: number for number, name in enumerate(classes, start=1)}
    annotations = [
        {"image_id": image_id, "category_id": category_of[item.class_name]} | _shape(item)
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


def _shape(item: ForeignObject) -> dict[str, Any]:
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
