"""``data=coco`` on COCO's own layout: 80 categories with gaps, and test-dev without ground truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anydepth.config.compose import compose, instantiate
from anydepth.data.datamodule import CocoDataModule

# https://cocodataset.org: 80 of the 90 ids are used.
MISSING = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in MISSING]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    categories = [{"id": number, "name": f"thing {number}", "supercategory": "all"} for number in IDS]
    jsons = {"train2017": "instances_train2017", "val2017": "instances_val2017"}
    for first, folder in enumerate(("train2017", "val2017", "test2017")):
        (tmp_path / folder).mkdir()
        images, annotations = [], []
        for number in range(10 * first, 10 * first + 2):
            name = f"{number:012}.jpg"
            Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(tmp_path / folder / name)
            images.append({"id": number, "file_name": name, "height": 40, "width": 60, "license": 1})
            for category_id in (1, 90):
                box = {"bbox": [3, 4, 20, 10], "area": 100.5, "iscrowd": 0}
                entry = {"id": 1000 + len(annotations), "image_id": number, "category_id": category_id}
                annotations.append(entry | box)
        document = {"info": {}, "licenses": [], "images": images, "categories": categories}
        if folder in jsons:
            document["annotations"] = annotations
        name = jsons.get(folder, "image_info_test-dev2017")
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_splits_categories_and_boxes_are_found(root: Path) -> None:
    config = compose("evaluate", ["data=coco", f"data.root={root}", "data.num_workers=0"])
    config.data.input_size = [64, 64]
    data: CocoDataModule = instantiate(config.data)

    assert (data.num_classes, list(data.category_ids)) == (80, IDS)
    assert data.class_names[-1] == "thing 90"
    _, labels = data.index("train").training_boxes(0)
    assert labels.tolist() == [0, 79]
    assert [entry["category_id"] for entry in data.val_index.to_coco_dict()["annotations"]] == [1, 90, 1, 90]


def test_test_dev_has_images_and_no_ground_truth(root: Path) -> None:
    data = CocoDataModule(input_size=(64, 64), batch_size=2, num_workers=0, root=root)

    (batch,) = data.test_dataloader()

    assert batch.image_ids == (20, 21)
    assert [len(targets) for targets in batch.targets] == [0, 0]
    assert data.split("test").json_path.name == "image_info_test-dev2017.json"


def test_a_test_split_with_ground_truth_comes_first(root: Path) -> None:
    val = root / "annotations" / "instances_val2017.json"
    (root / "annotations" / "instances_test2017.json").write_text(val.read_text())

    data = CocoDataModule(input_size=(64, 64), batch_size=2, num_workers=0, root=root)
    assert data.split("test").json_path.name == "instances_test2017.json"
