"""The data sets of the study, each with three splits: to train, to choose, and to test once at the end."""

import json
import random
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anydepth.data.coco.fingerprint import fingerprint
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.layout import SPLIT_NAMES, Split, SplitName, find_split
from anydepth.data.errors import DataError
from anydepth.data.fetch.public_sets import PUBLIC_SETS, dataset_root
from anydepth.data.sample import sample_root
from anydepth.utils.command_line import setting
from anydepth.utils.files import write_text

_SAMPLE: Final = "sample"
_CUSTOM: Final = "custom"
_VAL_SHARE: Final = 0.2
"""Share of the training images that validate where the published validation images become the test."""


@dataclass(frozen=True)
class StudyData:
    """A data set of the study.

    Attributes:
        name: Name in folders and tables.
        settings: Settings of ``anydepth-train`` and ``anydepth-evaluate`` that choose it.
        splits: Annotations and images by split.
        train_images: Number of training images.
        digest: SHA-256 over the annotations of all three splits.
        remark: How the splits came about, if not as published; else empty.
    """

    name: str
    settings: tuple[str, ...]
    splits: Mapping[SplitName, Split]
    train_images: int
    digest: str
    remark: str = ""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the optimizer steps of an epoch; an incomplete last batch is left out.

        Raises:
            DataError: There are fewer training images than one batch takes.
        """
        if self.train_images < batch_size:
            raise DataError(
                f"{self.name}: {self.train_images} training images, fewer than one batch of {batch_size}; "
                "give a smaller --batch-size or another data set"
            )
        return self.train_images // batch_size


def prepare_data(name: str, root: Path | None, study: Path) -> StudyData:
    """Find a data set, and split off validation images where there is no test split.

    Then the published validation images are the test, which is used once, and a fifth of the training images,
    the same for every arm and seed, validate. Their annotations are written to ``STUDY/splits/NAME``.

    Args:
        name: Name of a public data set, ``sample``, or any other name together with ``root``.
        root: Folder in COCO format; None: a public data set is fetched into ``datasets/NAME`` if necessary.
        study: Folder of the study.

    Raises:
        DataError: There is no such data set or no such folder, or it lacks training or validation images.
    """
    folder = _find_root(name, root)
    # A name that data= knows brings the augmentation and the recipe of its kind.
    preset = name if name in (*PUBLIC_SETS, _SAMPLE) else _CUSTOM
    train, val = find_split(folder, "train"), find_split(folder, "val")
    try:
        test = find_split(folder, "test")
    except DataError:
        return _split_off(name, folder, {"train": train, "val": val}, study)
    settings: tuple[str, ...] = (f"data={preset}",)
    if root is not None:
        settings += (hydra_setting("data.root", folder.resolve()),)
    return _describe(name, settings, {"train": train, "val": val, "test": test}, "")


def _find_root(name: str, root: Path | None) -> Path:
    if root is not None:
        if not root.is_dir():
            raise DataError(f"{name}: got the folder {root}, which does not exist; give --root {name}=FOLDER")
        return root
    if name == _SAMPLE:
        return sample_root()
    if name in PUBLIC_SETS:
        return dataset_root(name, f"datasets/{name}")
    raise DataError(
        f"got the data set {name}, expected {_SAMPLE}, {', '.join(sorted(PUBLIC_SETS))}, or any name with "
        f"--root {name}=FOLDER"
    )


def hydra_setting(key: str, value: object) -> str:
    """Return ``key=value`` as Hydra reads it when no shell comes between."""
    return shlex.split(setting(key, value))[0]


def _split_off(name: str, folder: Path, published: Mapping[SplitName, Split], study: Path) -> StudyData:
    whole = json.loads(published["train"].json_path.read_text(encoding="utf-8"))
    images = whole["images"]
    count = round(_VAL_SHARE * len(images))
    if count < 1 or count == len(images):
        raise DataError(
            f"{folder}: no test split, and {len(images)} training images are too few to split off "
            "validation images; give a data set with a test split"
        )
    chosen = set(random.Random(0).sample(range(len(images)), count))
    own = study.resolve() / "splits" / name
    parts = {
        "train": [image for row, image in enumerate(images) if row not in chosen],
        "val": [image for row, image in enumerate(images) if row in chosen],
    }
    for split, part in parts.items():
        _write_part(whole, part, own / f"{split}.json")
    root = published["train"].image_root.resolve()
    splits: dict[SplitName, Split] = {
        "train": Split(own / "train.json", root),
        "val": Split(own / "val.json", root),
        "test": Split(published["val"].json_path.resolve(), published["val"].image_root.resolve()),
    }
    settings = (
        f"data={_CUSTOM}",
        *(hydra_setting(f"data.{split}_json", found.json_path) for split, found in splits.items()),
        *(hydra_setting(f"data.{split}_images", found.image_root) for split, found in splits.items()),
    )
    remark = (
        f"no test split is published: the {_count(splits['test'])} validation images are the test, and "
        f"{count} of the {len(images)} training images validate"
    )
    return _describe(name, settings, splits, remark)


def _write_part(whole: Mapping[str, Any], images: list[dict[str, Any]], path: Path) -> None:
    ids = {image["id"] for image in images}
    annotations = [entry for entry in whole["annotations"] if entry["image_id"] in ids]
    text = json.dumps({**whole, "images": images, "annotations": annotations}) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _count(split: Split) -> int:
    return len(_load(split))


def _load(split: Split) -> CocoIndex:
    return CocoIndex.load(split.json_path, split.image_root)


def _describe(
    name: str, settings: tuple[str, ...], splits: Mapping[SplitName, Split], remark: str
) -> StudyData:
    indices = {split: _load(splits[split]) for split in SPLIT_NAMES}
    if not indices["test"].has_objects:
        raise DataError(
            f"{splits['test'].json_path}: test images without boxes, on which nothing can be measured; give "
            "annotations, or remove this file so that the validation images become the test"
        )
    return StudyData(name, settings, splits, len(indices["train"]), fingerprint(indices.values()), remark)
