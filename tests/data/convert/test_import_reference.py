"""Readers of other formats against `supervision`, which writes and reads the same files."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from anydepth.data.convert.dataset import ForeignDataset
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.sample import sample_root

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import supervision as sv

Boxes = dict[str, NDArray[np.float64]]
IMAGES = 6


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> sv.DetectionDataset:
    """Some tiles of the sample, as supervision reads them."""
    document = json.loads((sample_root() / "annotations" / "instances_val.json").read_text())
    kept = {image["id"] for image in document["images"][:IMAGES]}
    document["images"] = [image for image in document["images"] if image["id"] in kept]
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in kept]
    path = tmp_path_factory.mktemp("coco") / "few.json"
    path.write_text(json.dumps(document))
    return sv.DetectionDataset.from_coco(str(sample_root() / "images" / "val"), str(path))


def boxes_of(dataset: sv.DetectionDataset) -> Boxes:
    return {Path(path).name: np.sort(found.xyxy.astype(np.float64), axis=0) for path, _, found in dataset}


def read_boxes(dataset: ForeignDataset) -> Boxes:
    (images,) = [images for images in dataset.splits.values() if images]
    return {
        Path(image.path).name: np.sort(np.array([item.box_xyxy for item in image.objects]), axis=0)
        for image in images
    }


def write_voc(dataset: sv.DetectionDataset, root: Path) -> sv.DetectionDataset:
    images, xmls = root / "JPEGImages", root / "Annotations"
    dataset.as_pascal_voc(images_directory_path=str(images), annotations_directory_path=str(xmls))
    return sv.DetectionDataset.from_pascal_voc(str(images), str(xmls))


def write_yolo(dataset: sv.DetectionDataset, root: Path) -> sv.DetectionDataset:
    images, labels, names = root / "images" / "train", root / "labels" / "train", root / "data.yaml"
    dataset.as_yolo(str(images), str(labels), str(names))
    return sv.DetectionDataset.from_yolo(str(images), str(labels), str(names))


@pytest.mark.parametrize(
    ("write", "read"),
    [(write_voc, read_voc), (write_yolo, lambda root: read_yolo(root / "data.yaml"))],
    ids=["voc", "yolo"],
)
def test_boxes_are_those_that_another_library_reads(
    original: sv.DetectionDataset,
    tmp_path: Path,
    write: Callable[[sv.DetectionDataset, Path], sv.DetectionDataset],
    read: Callable[[Path], ForeignDataset],
) -> None:
    expected, found = boxes_of(write(original, tmp_path)), read_boxes(read(tmp_path))
    source = boxes_of(original)
    assert found.keys() == expected.keys() == source.keys()
    assert sum(map(len, found.values())) > 50
    for name, boxes in found.items():
        np.testing.assert_allclose(boxes, expected[name], atol=1e-2)
        # Files of whole pixels round.
        np.testing.assert_allclose(boxes, source[name], atol=1.01)
