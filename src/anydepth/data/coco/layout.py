"""Folder layouts of data sets: the json and the image folder of each split."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from anydepth.data.errors import DataError

SplitName = Literal["train", "val", "test"]

SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")
_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "train2017"),
    "val": ("val", "val2017", "valid"),
    "test": ("test", "test2017"),
}
_LAYOUTS = (
    ("annotations/instances_{name}.json", "images/{name}"),
    ("annotations/instances_{name}.json", "{name}"),
    ("{name}/_annotations.coco.json", "{name}"),
)
# Images without ground truth, for the evaluation server of COCO.
_WITHOUT_TRUTH: dict[SplitName, tuple[tuple[str, str], ...]] = {
    "train": (),
    "val": (),
    "test": (
        ("annotations/image_info_test-dev2017.json", "test2017"),
        ("annotations/image_info_test2017.json", "test2017"),
    ),
}


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        json_path: COCO json of the split.
        image_root: Folder that the json's file names are relative to.
    """

    json_path: Path
    image_root: Path


def find_split(root: Path, split: SplitName) -> Split:
    """Find a split in one of the known layouts.

    The layouts are ``annotations/instances_NAME.json`` with the images in ``images/NAME`` or in ``NAME`` (the
    official one of COCO), and ``NAME/_annotations.coco.json`` with the images beside it. NAME is train or
    train2017; val, val2017 or valid; test or test2017. As a fallback, COCO's test-dev and test images are a
    test split without ground truth.

    Raises:
        DataError: None of them exists; the message lists the places searched.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's folder as data.root")
    places = [
        (json_pattern.format(name=name), image_pattern.format(name=name))
        for name, (json_pattern, image_pattern) in product(_FOLDERS[split], _LAYOUTS)
    ]
    places += _WITHOUT_TRUTH[split]
    for json_name, image_name in places:
        found = Split(root / json_name, root / image_name)
        if found.json_path.is_file() and found.image_root.is_dir():
            return found
    tried = [f"{json_name} with {image_name}/" for json_name, image_name in places]
    raise DataError(
        f"{root}: no {split} split; looked for {'; '.join(tried)}. Rename the folders, or give "
        f"data.{split}_json and data.{split}_images"
    )
