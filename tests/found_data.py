"""Data on which a network that was never trained has figures above zero, other ones at each depth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anydepth.detector import Detector
from anydepth.images import fit_image, to_unit_range

CATEGORIES = {"cat": 17, "dog": 18}


def unlike_itself(detector: Detector, classes: tuple[str, str] = ("dog", "cat")) -> Detector:
    """The detector, of these classes, with weights that no longer start refinements as the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    detector.reset_classes(classes)
    return detector.eval()


def used_to_noise(detector: Detector) -> Detector:
    """The detector, with the normalisation statistics of this data's images, as training would leave it."""
    random = np.random.default_rng(1)
    detector.train()
    with torch.no_grad():
        for _ in range(50):
            noise = (torch.from_numpy(_noise(random)).permute(2, 0, 1) for _ in range(4))
            fitted = [fit_image(image, detector.input_size, detector.fit) for image in noise]
            images = to_unit_range(torch.stack(fitted))
            for depth in ("full", "minimal"):
                detector(images, depth)
    return detector.eval()


def _noise(random: np.random.Generator) -> NDArray[np.uint8]:
    return random.integers(0, 255, (80, 100, 3), dtype=np.uint8)


def write_found_data(folder: Path, detector: Detector, splits: tuple[str, ...] = ("val",)) -> Path:
    """Five noise images whose ground truth is what the detector finds, slightly moved, as every split."""
    random = np.random.default_rng(0)
    document: dict[str, Any] = {"images": [], "annotations": []}
    document["categories"] = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
    for number in range(5):
        pixels = _noise(random)
        for split in splits:
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
        path = folder / "images" / splits[0] / f"{number}.png"
        document["images"].append({"id": number, "file_name": path.name, "height": 80, "width": 100})
        found = detector.predict(path, threshold=0)[0]
        for box, label in zip(found.boxes_xyxy[::2].tolist(), found.labels[::2].tolist(), strict=True):
            left, top, right, bottom = np.clip(np.array(box) + random.normal(0, 2, 4), 0, [100, 80] * 2)
            if right - left > 2 and bottom - top > 2:
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": number,
                        "category_id": CATEGORIES[detector.class_names[label]],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
    (folder / "annotations").mkdir()
    for split in splits:
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder
