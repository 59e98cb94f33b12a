"""Cut the embedded sample: tiles of airborne photographs with tree-crown boxes, in COCO layout.

Usage: ``python scripts/make_sample.py SOURCE_DIR``, where SOURCE_DIR is the folder ``deepforest/data`` inside
the wheel ``deepforest==2.1.0`` (MIT): the photographs, each with a VOC xml of the same name. The result is
the same on every run, without random numbers.

Tiles:

* The validation split is a grid of tiles inside reserved blocks of the two large photographs; validation
  tiles do not overlap. No training tile touches a block, so the splits share no pixel.
* Training tiles are larger and overlap, so that the random crop of training finds more different views. They
  are chosen greedily until almost every crown is in ``TRAIN_VIEWS`` of them, so meadows are left out.
* A box that the border of a tile cuts is clipped, and kept if at least ``MIN_VISIBLE`` of its area remains. A
  crown of which less is visible stays unlabelled.
"""

import argparse
import hashlib
import json
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Boxes = NDArray[np.float64]
Rect = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of a photograph; x1 and y1 are outside."""

# A multiple of the detectors' largest stride, 32.
VAL_SIDE = 320
# The two small photographs are tiles of this size; a random crop of 0.8 of it has the scale of validation.
TRAIN_SIDE = 400
# Pixels between candidate tiles: a finer grid gives more choice and takes longer.
TRAIN_STEP = 40
# Tiles that show each crown: more views make a larger package.
TRAIN_VIEWS = 2
# Fewest crowns that a further tile has to add: below, tiles repeat what is there already.
MIN_GAIN = 4
# Share of a crown: trades labels of cut crowns against boxes that are hard to recognise.
MIN_VISIBLE = 0.4
# Pixels; smaller boxes are remains of clipping.
MIN_SIDE = 6.0
# Trades the size of the package against JPEG artefacts.
JPEG_QUALITY = 85
OUTPUT = Path(__file__).resolve().parents[1] / "src" / "anydepth" / "data" / "sample"


@dataclass(frozen=True)
class Photograph:
    """One source photograph.

    Attributes:
        file: File name in the source folder; the VOC xml has the same stem.
        sha256: Hash of the photograph, which detects another release of the source.
        name: Prefix of the tiles.
        labelled: Part whose crowns are all labelled; no tile extends beyond it.
        val_blocks: Blocks reserved for validation; sides are multiples of ``VAL_SIDE``.
    """

    file: str
    sha256: str
    name: str
    labelled: Rect
    val_blocks: tuple[Rect, ...] = ()


@dataclass(frozen=True)
class Tile:
    """A square of one photograph and the boxes visible in it (xyxy, pixels of the tile)."""

    file_name: str
    rect: Rect
    boxes_xyxy: Boxes


PHOTOGRAPHS = (
    Photograph(
        "2019_YELL_2_528000_4978000_image_crop2.png",
        "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
        "yell_528000",
        (0, 0, 2299, 2472),
        ((1659, 400, 2299, 1680), (280, 1832, 1240, 2472), (900, 932, 1540, 1252)),
    ),
    Photograph(
        "2019_YELL_2_541000_4977000_image_crop.png",
        "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
        "yell_541000",
        # Crowns at the left border are unlabelled.
        (40, 0, 1249, 1035),
        ((929, 75, 1249, 1035),),
    ),
    Photograph(
        "OSBS_029.png",
        "d9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee",
        "osbs_029",
        (0, 0, 400, 400),
    ),
    Photograph(
        "SOAP_061.png",
        "256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424",
        "soap_061",
        (0, 0, 400, 400),
    ),
)


def read_boxes(path: Path) -> Boxes:
    """Read the boxes [N, 4] of a VOC file as xyxy; VOC counts pixels from 1 and includes the last one."""
    corners = [
        [float(box.findtext(key, "nan")) for key in ("xmin", "ymin", "xmax", "ymax")]
        for box in ET.parse(path).iter("bndbox")
    ]
    boxes: Boxes = np.array(corners, dtype=np.float64) - np.array([1.0, 1.0, 0.0, 0.0])
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise SystemExit(f"{path}: a box has no area; is this deepforest==2.1.0?")
    return boxes


def visible_boxes(boxes: Boxes, rect: Rect) -> Boxes:
    """Return boxes visible in ``rect``, clipped to it and in its frame, without mostly hidden ones."""
    origin = np.array([rect[0], rect[1], rect[0], rect[1]])
    limit = np.array([rect[2], rect[3], rect[2], rect[3]])
    clipped = np.clip(boxes, origin, limit)
    side = clipped[:, 2:] - clipped[:, :2]
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    keep = (side.prod(axis=1) >= MIN_VISIBLE * whole) & (side >= MIN_SIDE).all(axis=1)
    visible: Boxes = clipped[keep] - origin
    return visible


def overlaps(first: Rect, second: Rect) -> bool:
    """Return whether two rectangles share a pixel."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def val_rects(photograph: Photograph) -> list[Rect]:
    """Return the grid of validation tiles."""
    return [
        (x, y, x + VAL_SIDE, y + VAL_SIDE)
        for x0, y0, x1, y1 in photograph.val_blocks
        for y in range(y0, y1, VAL_SIDE)
        for x in range(x0, x1, VAL_SIDE)
    ]


def train_rects(photograph: Photograph, boxes: Boxes) -> list[Rect]:
    """Choose training tiles greedily: next the one with most whole crowns not yet in enough tiles."""
    x0, y0, x1, y1 = photograph.labelled
    columns = [*range(x0, x1 - TRAIN_SIDE, TRAIN_STEP), x1 - TRAIN_SIDE]
    rows = [*range(y0, y1 - TRAIN_SIDE, TRAIN_STEP), y1 - TRAIN_SIDE]
    squares = [(x, y, x + TRAIN_SIDE, y + TRAIN_SIDE) for y in rows for x in columns]
    free = [rect for rect in squares if not any(overlaps(rect, block) for block in photograph.val_blocks)]
    rects = np.array(free, dtype=np.float64)[:, None]
    starts_inside = np.all(boxes[:, :2] >= rects[..., :2], axis=2)
    inside: NDArray[np.bool_] = starts_inside & np.all(boxes[:, 2:] <= rects[..., 2:], axis=2)
    views = np.zeros(len(boxes), dtype=np.int64)
    chosen: list[Rect] = []
    while True:
        gains = (inside & (views < TRAIN_VIEWS)).sum(axis=1)
        best = int(gains.argmax())
        if gains[best] < MIN_GAIN:
            return chosen
        views += inside[best]
        inside[best] = False
        chosen.append(free[best])


def write_split(source: Path, output: Path, split: str, plan: dict[Photograph, list[Rect]]) -> list[Tile]:
    """Write the tiles and the json of one split."""
    folder = output / "images" / split
    folder.mkdir(parents=True)
    tiles: list[Tile] = []
    for photograph, rects in plan.items():
        boxes = read_boxes((source / photograph.file).with_suffix(".xml"))
        with Image.open(source / photograph.file) as opened:
            picture = opened.convert("RGB")
        for rect in sorted(rects, key=lambda r: (r[1], r[0])):
            tile = Tile(
                f"{photograph.name}_{rect[0]:04d}_{rect[1]:04d}.jpg", rect, visible_boxes(boxes, rect)
            )
            picture.crop(rect).save(folder / tile.file_name, quality=JPEG_QUALITY, optimize=True)
            tiles.append(tile)
    (output / "annotations").mkdir(exist_ok=True)
    text = json.dumps(coco_dict(tiles), indent=None, separators=(",", ":"))
    (output / "annotations" / f"instances_{split}.json").write_text(text + "\n", encoding="utf-8")
    return tiles


def coco_dict(tiles: list[Tile]) -> dict[str, object]:
    """Return the COCO dictionary of a list of tiles."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, tile in enumerate(tiles, start=1):
        side = tile.rect[2] - tile.rect[0]
        images.append({"id": image_id, "file_name": tile.file_name, "width": side, "height": side})
        for x0, y0, x1, y1 in tile.boxes_xyxy.tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    info = {"description": "Tree crowns from the air; see ATTRIBUTION.md", "version": "1"}
    categories = [{"id": 1, "name": "tree"}]
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def check_source(source: Path) -> None:
    """Exit unless the folder holds the photographs that the blocks were chosen for."""
    for photograph in PHOTOGRAPHS:
        path = source / photograph.file
        if not path.is_file():
            raise SystemExit(
                f"{path}: missing; unzip the wheel deepforest==2.1.0 and give its deepforest/data"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != photograph.sha256:
            raise SystemExit(
                f"{path}: differs from the photograph in deepforest==2.1.0, which the blocks were chosen for"
            )


def check_result(
    output: Path, tiles: dict[str, list[Tile]], plans: dict[str, dict[Photograph, list[Rect]]]
) -> None:
    """Verify the written files: splits disjoint, images readable, boxes inside their tile."""
    for photograph in PHOTOGRAPHS:
        for train in plans["train"][photograph]:
            if any(overlaps(train, val) for val in plans["val"][photograph]):
                raise SystemExit(f"{photograph.file}: training tile {train} shares pixels with validation")
    for split, expected in tiles.items():
        written = json.loads((output / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        if len(written["images"]) != len(expected):
            raise SystemExit(f"{split}: {len(written['images'])} images written, {len(expected)} planned")
        sides = {}
        for entry in written["images"]:
            with Image.open(output / "images" / split / entry["file_name"]) as tile:
                tile.load()
                if tile.size != (entry["width"], entry["height"]):
                    raise SystemExit(f"{entry['file_name']}: {tile.size} differs from the size in the json")
            sides[entry["id"]] = entry["width"]
        for annotation in written["annotations"]:
            x, y, width, height = annotation["bbox"]
            side = sides[annotation["image_id"]]
            if min(x, y) < 0 or min(width, height) < MIN_SIDE or max(x + width, y + height) > side:
                raise SystemExit(f"annotation {annotation['id']} of {split}: box {annotation['bbox']}")


def main() -> None:
    """Cut the sample, verify it and print its size."""
    parser = argparse.ArgumentParser(description="Cut the embedded sample from its source photographs.")
    parser.add_argument("source", type=Path, help="folder deepforest/data of the wheel deepforest==2.1.0")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: the package's sample folder")
    arguments = parser.parse_args()
    source, output = arguments.source, arguments.output
    check_source(source)
    for name in ("images", "annotations"):
        shutil.rmtree(output / name, ignore_errors=True)
    plans: dict[str, dict[Photograph, list[Rect]]] = {"train": {}, "val": {}}
    for photograph in PHOTOGRAPHS:
        boxes = read_boxes((source / photograph.file).with_suffix(".xml"))
        plans["train"][photograph] = train_rects(photograph, boxes)
        plans["val"][photograph] = val_rects(photograph)
    tiles = {split: write_split(source, output, split, plan) for split, plan in plans.items()}
    check_result(output, tiles, plans)
    for split, written in tiles.items():
        counts = np.array([len(tile.boxes_xyxy) for tile in written])
        size = sum(path.stat().st_size for path in (output / "images" / split).iterdir())
        sys.stdout.write(
            f"{split}: {len(written)} tiles, {counts.sum()} boxes "
            f"({counts.min()} to {counts.max()} a tile), {size / 1e6:.2f} MB\n"
        )


if __name__ == "__main__":
    main()
