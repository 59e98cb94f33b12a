"""``anydepth-predict``: detect in images or a video; draw, and write COCO's results format."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig
from PIL import Image
from rich import get_console
from rich.progress import track
from torch import Tensor

from anydepth import zoo
from anydepth.config.compose import check_config, entry_point
from anydepth.config.errors import readable_errors
from anydepth.depth import DepthConfig
from anydepth.detector import Detector
from anydepth.evaluation.device import autocast, resolve_device
from anydepth.images import read_image
from anydepth.results.pictures import draw_detections, save_picture
from anydepth.results.predictions import Predictions
from anydepth.results.video import VIDEO_SUFFIXES, VideoReader, VideoWriter
from anydepth.runs.job import check_output
from anydepth.runs.provenance import write_provenance
from anydepth.structures import Detections

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
# Formats that every browser shows; images of other formats are drawn as PNG.
_KEPT_FORMATS = frozenset({".jpg", ".jpeg", ".png", ".webp"})

T = TypeVar("T")


class SourceError(ValueError):
    """A source holds nothing to detect in; the message names it."""


@dataclass(frozen=True)
class Task:
    """Detector and settings of a prediction.

    Attributes:
        detector: Detector on its device.
        depth: Depth of its depth space.
        threshold: Lowest score that is kept.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: Images per forward pass.
    """

    detector: Detector
    depth: DepthConfig
    threshold: float
    precision: str
    batch_size: int

    def detect(self, images: list[Tensor]) -> list[Detections]:
        """Return the detections of one batch of images of any size."""
        with autocast(next(self.detector.parameters()).device, self.precision):
            return self.detector.predict(images, self.depth, self.threshold, self.batch_size)

    def draw(self, image: Tensor, found: Detections) -> Image.Image:
        """Return a picture of an image with its detections."""
        return draw_detections(image, found, self.detector.class_names)


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Detect objects in an image, a folder of images or a video.

    The results appear in the output folder once all of them are complete: ``pictures/`` or a video named like
    the source, ``detections.json`` and ``images.json`` (see :mod:`anydepth.results.predictions`).

    Args:
        cfg: Configuration composed from ``conf/predict.yaml``.

    Returns:
        Numbers of ``images`` or frames, of ``detections`` and of ``skipped`` files, and the objects of the
        run by name: ``detector``, ``predictions`` and ``output`` (the folder).

    Raises:
        ValueError: A setting or a file that cannot be used; the message says what to change.
    """
    config = check_config(cfg, "predict")
    for name in ("weights", "source"):
        if not cfg[name]:
            raise ValueError(f"no {name}: give {name}=PATH")
    source, output = Path(cfg.source), Path(cfg.output)
    check_output(output)
    images, skipped = find_images(source)
    detector = zoo.load(Path(cfg.weights)).to(resolve_device(cfg.device))
    depth = detector.depth_space.parse(str(cfg.depth))
    task = Task(detector, depth, cfg.threshold, cfg.precision, _at_least_one("batch_size", cfg.batch_size))
    info = {
        "weights": str(cfg.weights),
        "depth": str(depth),
        "threshold": cfg.threshold,
        "source": str(source),
    }
    predictions = Predictions(class_names=detector.class_names, info=info)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".partial-") as staging:
        if images:
            _predict_images(task, images, predictions, Path(staging) / "pictures")
        else:
            _predict_video(task, source, predictions, Path(staging) / f"{source.stem}.mp4")
        predictions.write(staging)
        _move_into(Path(staging), output)
    write_provenance(output, config)
    what = f"{len(predictions.images)} {'images' if images else 'frames'}"
    ignored = f"; {skipped} other files in the folder were skipped" if skipped else ""
    get_console().print(
        f"{len(predictions.results)} detections in {what} at depth {depth}{ignored}\n{output}",
        highlight=False,
        soft_wrap=True,
    )
    metrics = {"images": len(predictions.images), "detections": len(predictions.results), "skipped": skipped}
    objects = {"detector": detector, "predictions": predictions, "output": output}
    return {name: float(value) for name, value in metrics.items()}, objects


def find_images(source: Path) -> tuple[list[Path], int]:
    """Find the image files of a source by their suffixes, in sorted order.

    Returns:
        The images (none for a video), and the number of other files in a folder. Subfolders and files whose
        name starts with a dot are ignored.

    Raises:
        SourceError: A missing source, a folder without images, or a file that is neither image nor video.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise SourceError(
                f"{source}: no image in this folder ({len(files)} other files); allowed suffixes are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return images, len(files) - len(images)
    if not source.is_file():
        raise SourceError(f"{source}: no such file or folder; give an image, a folder of images or a video")
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return [source], 0
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return [], 0
    raise SourceError(
        f"{source}: unknown suffix; give an image ({', '.join(sorted(IMAGE_SUFFIXES))}) or a video "
        f"({', '.join(sorted(VIDEO_SUFFIXES))})"
    )


def _predict_images(task: Task, paths: list[Path], predictions: Predictions, folder: Path) -> None:
    batches = list(_batches(paths, task.batch_size))
    for batch in track(batches, description="detecting", disable=len(batches) < 2):
        images = [read_image(path) for path in batch]
        for path, image, found in zip(batch, images, task.detect(images), strict=True):
            predictions.add(path.name, (image.shape[-2], image.shape[-1]), found)
            known = path.suffix.lower() in _KEPT_FORMATS
            save_picture(task.draw(image, found), folder / (path.name if known else f"{path.name}.png"))


def _predict_video(task: Task, path: Path, predictions: Predictions, target: Path) -> None:
    reader = VideoReader(path)
    total = None if reader.length is None else -(-reader.length // task.batch_size)
    with VideoWriter(target, reader.rate) as writer:
        for frames in track(_batches(reader.frames(), task.batch_size), description="detecting", total=total):
            for frame, found in zip(frames, task.detect(frames), strict=True):
                seconds = float(len(predictions.images) / reader.rate)
                size = (frame.shape[-2], frame.shape[-1])
                predictions.add(
                    path.name, size, found, {"frame": len(predictions.images), "seconds": seconds}
                )
                writer.add(task.draw(frame, found))


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _move_into(staging: Path, output: Path) -> None:
    """Move results into the output folder, replacing those of an earlier run with the same names."""
    for item in sorted(staging.iterdir()):
        target = output / item.name
        if target.is_dir():
            shutil.rmtree(target)
        item.replace(target)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}={value}: allowed are 1 and above")
    return value


@entry_point("predict")
def main(cfg: DictConfig) -> None:
    """Console script ``anydepth-predict``."""
    with readable_errors():
        run(cfg)


if __name__ == "__main__":
    main()
