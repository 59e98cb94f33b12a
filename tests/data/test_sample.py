"""The embedded sample, and the script that cuts it."""

import hashlib
import importlib.util
import json
import sys
from itertools import combinations, product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from anydepth.data.coco.index import CocoIndex
from anydepth.data.sample import sample_root

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_sample.py"
SIDES = {"train": 400, "val": 320}


def load_split(split: str) -> CocoIndex:
    root = sample_root()
    return CocoIndex.load(root / "annotations" / f"instances_{split}.json", root / "images" / split)


def squares(split: str) -> list[tuple[str, int, int, int]]:
    """Photograph, left, top and side of each tile, from its name."""
    index = load_split(split)
    parts = [index.file_name(row).removesuffix(".jpg").rsplit("_", 2) for row in range(len(index))]
    return [(name, int(left), int(top), SIDES[split]) for name, left, top in parts]


def share_pixels(first: tuple[str, int, int, int], second: tuple[str, int, int, int]) -> bool:
    return first[0] == second[0] and all(
        first[axis] < second[axis] + second[3] and second[axis] < first[axis] + first[3] for axis in (1, 2)
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_sample", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "make_sample", module)
    specification.loader.exec_module(module)
    return module


def test_sample_has_enough_tiles_and_is_small() -> None:
    train, val = load_split("train"), load_split("val")
    assert len(val) >= 15
    assert len(train) + len(val) >= 40
    assert not train.repairs
    assert not val.repairs
    assert min(np.diff(val.starts).min(), np.diff(train.starts).min()) >= 5
    assert sum(path.stat().st_size for path in sample_root().rglob("*") if path.is_file()) < 6e6


def test_splits_share_no_pixel_and_validation_tiles_do_not_overlap() -> None:
    assert not [pair for pair in product(squares("train"), squares("val")) if share_pixels(*pair)]
    assert not [pair for pair in combinations(squares("val"), 2) if share_pixels(*pair)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_have_the_size_that_the_json_says(split: str) -> None:
    index = load_split(split)
    for row in range(len(index)):
        with Image.open(index.path(row)) as picture:
            assert picture.size == (SIDES[split], SIDES[split])
        assert index.sizes[row].tolist() == [SIDES[split], SIDES[split]]


def test_licence_is_shipped_with_the_pictures() -> None:
    text = (sample_root() / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "MIT License" in text
    assert "Copyright (c) 2019, Ben Weinstein" in text


def test_boxes_at_a_border_are_kept_by_what_is_visible(script: ModuleType) -> None:
    boxes = np.array(
        [
            [110, 120, 150, 160],  # whole
            [80, 120, 130, 160],  # 60 % visible
            [75, 120, 115, 160],  # 37.5 % visible
            [90, 90, 116, 116],  # (16 / 26)² = 38 % visible
            [194, 120, 204, 160],  # 60 % visible, 6 px wide
            [195, 120, 204, 160],  # 56 % visible, 5 px wide
        ],
        dtype=float,
    )
    found = script.visible_boxes(boxes, (100, 100, 200, 200))
    assert found.tolist() == [[10, 20, 50, 60], [0, 20, 30, 60], [94, 20, 100, 60]]


def test_voc_corners_count_from_one(script: ModuleType, tmp_path: Path) -> None:
    corners = "<xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>30</ymax>"
    (tmp_path / "a.xml").write_text(f"<a><object><bndbox>{corners}</bndbox></object></a>", encoding="utf-8")
    assert script.read_boxes(tmp_path / "a.xml").tolist() == [[0, 10, 20, 30]]


def test_cutting_twice_gives_the_same_files(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    picture, boxes = tmp_path / "p.png", random.integers(1, 850, (60, 2))
    Image.fromarray(random.integers(0, 255, (900, 900, 3), dtype=np.uint8)).save(picture)
    objects = "".join(
        f"<bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 40}</xmax><ymax>{y + 40}</ymax></bndbox>"
        for x, y in boxes.tolist()
    )
    (tmp_path / "p.xml").write_text(f"<a>{objects}</a>", encoding="utf-8")
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    photograph = script.Photograph("p.png", digest, "p", (0, 0, 900, 900), ((0, 580, 320, 900),))
    monkeypatch.setattr(script, "PHOTOGRAPHS", (photograph,))
    contents = []
    for name in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["make_sample", str(tmp_path), "--output", str(tmp_path / name)])
        script.main()
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    train = json.loads((tmp_path / "first/annotations/instances_train.json").read_text(encoding="utf-8"))
    assert len(train["images"]) >= 3
    monkeypatch.setattr(script, "PHOTOGRAPHS", (script.Photograph("p.png", "0" * 64, "p", (0, 0, 900, 900)),))
    with pytest.raises(SystemExit, match="differs from the photograph in"):
        script.main()
