"""Small data sets in COCO format, written for one test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CocoFiles, MakeCoco
from PIL import Image
from shard_files import Shards

from anydepth.data.coco.index import CocoIndex
from anydepth.data.shards.writer import write_shards


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    """Writes a data set: random pictures of the given sizes, and these annotations."""

    def make(
        *,
        sizes: Sequence[tuple[int, int]] = ((40, 60), (50, 30), (20, 20)),
        annotations: Sequence[dict[str, Any]] = (),
        categories: Sequence[tuple[int, str]] = ((3, "cat"), (7, "dog")),
        folder: str = "train",
    ) -> CocoFiles:
        root = tmp_path / "images" / folder
        root.mkdir(parents=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        random = np.random.default_rng(len(folder))
        images = []
        for number, (height, width) in enumerate(sizes):
            # Ids with gaps, not in the order of the files.
            entry = {"id": 100 - 10 * number, "file_name": f"{number}.png", "height": height, "width": width}
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(entry["file_name"]))
            images.append(entry)
        document = {
            "images": images,
            "annotations": [
                {"id": 500 + number, "iscrowd": 0} | entry for number, entry in enumerate(annotations)
            ],
            "categories": [{"id": category_id, "name": name} for category_id, name in categories],
        }
        path = tmp_path / "annotations" / f"instances_{folder}.json"
        return CocoFiles(path, root, document).rewrite()

    return make


@pytest.fixture
def shards(make_coco: MakeCoco, tmp_path: Path) -> Shards:
    """Ten pictures of about 7 kB in five shards, with crowd regions and one picture without boxes."""
    files = make_coco(
        sizes=[(40, 60)] * 10,
        annotations=[
            {
                "image_id": 100 - 10 * (number % 9),
                "category_id": (3, 7)[number % 2],
                "bbox": [number, 2.5, 10 + number, 20],
                "iscrowd": int(number % 5 == 0),
            }
            for number in range(24)
        ],
    )
    index = CocoIndex.load(files.json_path, files.images)
    folder = tmp_path / "shards" / "train"
    write_shards(index, folder, shard_mb=0.016)
    return Shards(files, index, folder)
