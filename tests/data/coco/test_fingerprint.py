"""The fingerprint of data: equal for equal annotations in any storage, different after any change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_files import CocoFiles, MakeCoco
from shard_files import Shards

from anydepth.data.coco.fingerprint import fingerprint
from anydepth.data.coco.index import CocoIndex
from anydepth.data.shards.source import open_stream

BOXES = (
    {"image_id": 100, "category_id": 3, "bbox": [1, 2, 10, 20]},
    {"image_id": 90, "category_id": 7, "bbox": [3, 4, 5, 6]},
)


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "box": lambda document: document["annotations"][0].update(bbox=[1, 2, 10, 20.5]),
    "label": lambda document: document["annotations"][0].update(category_id=7),
    "crowd": lambda document: document["annotations"][0].update(iscrowd=1),
    "box of another image": lambda document: document["annotations"][1].update(image_id=80),
    "one box less": lambda document: document["annotations"].pop(),
    "one image less": lambda document: document["images"].pop(),
    "image id": lambda document: document["images"][2].update(id=7),
    "order": lambda document: document["images"].reverse(),
    "class name": lambda document: document["categories"][0].update(name="lynx"),
}


def _fingerprint(files: CocoFiles) -> str:
    return fingerprint([CocoIndex.load(files.json_path, files.images)])


def test_shards_are_the_same_data_as_their_files(shards: Shards) -> None:
    assert fingerprint([open_stream(shards.folder).index]) == fingerprint([shards.index])


def test_equal_annotations_elsewhere_are_equal_data(make_coco: MakeCoco, tmp_path: Path) -> None:
    first = make_coco(annotations=BOXES)
    second = make_coco(annotations=BOXES, folder="elsewhere")
    assert _fingerprint(first) == _fingerprint(second)
    index = CocoIndex.load(first.json_path, first.images)
    assert len(fingerprint([index])) == 64
    assert fingerprint([index]) != fingerprint([index, index])


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_is_seen(make_coco: MakeCoco, name: str) -> None:
    files = make_coco(annotations=BOXES)
    before = _fingerprint(files)
    CHANGES[name](files.document)
    assert _fingerprint(files.rewrite()) != before
