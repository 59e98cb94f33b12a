"""Small files in the layouts of other tools."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anydepth.data.convert.dataset import ForeignDataset

YOLO_LINE = "0 0.5 0.5 0.2 0.4"
"""One object; in :func:`picture`'s 60 x 40 pixels its box is (24, 12, 36, 28)."""


def picture(path: Path, width: int = 60, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)
    return path


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def xml_object(name: str = "cat", box: Sequence[object] = (11, 6, 30, 20)) -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"


def xml(path: Path, *objects: str, database: str | None = None) -> Path:
    source = f"<source><database>{database}</database></source>" if database else ""
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    return text(path, f"<annotation>{source}{size}{''.join(objects)}</annotation>")


def found(dataset: ForeignDataset) -> dict[str, dict[str, int]]:
    """Return the number of objects of each image, by split and name."""
    return {
        split: {image.path.name: len(image.objects) for image in images}
        for split, images in dataset.splits.items()
    }
