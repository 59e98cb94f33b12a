"""Predictions: detections on images outside any data set, in COCO's results format.

``detections.json`` is the list that COCO tools read: ``image_id``, ``category_id``, ``bbox`` (x, y, width,
height in pixels of the image, with the origin at its upper left corner) and ``score``. As such images have no
ids of their own, ``images.json`` explains the ids: ``images`` with ``id``, ``file_name``, ``width`` and
``height``, including images without detections, ``categories`` with ``id`` and ``name``, and ``skipped`` with
the images that could not be read. Image ids count from 1 in the order of the images, with those that could
not be read; a category id is 1 + the label of the detector.

Both are written at the end. Until then, ``predictions.jsonl`` gets a line for each image as soon as it is
done, so that a program that is killed loses nothing and can resume.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from anydepth.detections import BaseDetections
from anydepth.utils.files import write_text

IMAGES: Final = "images.json"
DETECTIONS: Final = "detections.json"
LOG: Final = "predictions.jsonl"
PICTURES: Final = "pictures"
"""Folder of the drawn pictures."""

_FORMAT: Final = "anydepth_predictions"
# Keys of a line of the log that images.json leaves out.
_LOG_ONLY: Final = ("detections", "stamp")


class ResultsFolderError(ValueError):
    """Results must not be written to a folder; the message says why."""


Record = dict[str, Any]
"""Line of the log: ``file_name``, ``width``, ``height``, ``detections`` and further values of one image."""


class PredictionLog:
    """File with a line per image that is done, to which lines are only appended.

    Args:
        path: File; it is created with the first line.
        settings: What the results depend on; a log of other settings is not resumed. Plain values only.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, object]) -> None:
        self.path = Path(path)
        self._settings = json.loads(json.dumps(dict(settings)))
        self._file: IO[str] | None = None

    def read(self) -> tuple[list[Record], list[str]]:
        """Read the log of an interrupted prediction.

        Returns:
            Its lines, without one that was cut short, if it has the same settings; and what differs between
            the settings if it has others, as texts. Both are empty if there is no log.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return [], []
        records = list(_parse(lines))
        if not records or not isinstance(former := records[0].get(_FORMAT), dict):
            return [], []
        different = [
            f"{key}: {former.get(key)} there, {self._settings.get(key)} here"
            for key in sorted({*former, *self._settings})
            if former.get(key) != self._settings.get(key)
        ]
        return ([] if different else records[1:]), different

    def begin(self, records: Sequence[Record]) -> None:
        """Replace the log by one that holds these lines, and open it for further ones."""
        lines = [json.dumps(record) + "\n" for record in ({_FORMAT: self._settings}, *records)]
        write_text(self.path, "".join(lines))
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, record: Record) -> None:
        """Append a line; it is in the file when the method returns, also if the program is killed then."""
        assert self._file is not None, "begin() opens the log"
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self, *, remove: bool) -> None:
        """Close the log, and remove it if it is not needed any more."""
        if self._file is not None:
            self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)


class Predictions:
    """Collects detections image by image and writes them together.

    Args:
        class_names: Names of the detector's classes.
        info: Further values for ``images.json``, e.g. weights and depth; plain values only.
    """

    def __init__(self, *, class_names: Sequence[str], info: Mapping[str, object]) -> None:
        self._categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
        self._info = dict(info)
        self._records: dict[int, Record] = {}
        self._skipped: dict[int, dict[str, object]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._records

    @property
    def images(self) -> list[dict[str, object]]:
        """Images with their ids, in the order of the ids."""
        return [
            {"id": image_id, **{key: value for key, value in record.items() if key not in _LOG_ONLY}}
            for image_id, record in sorted(self._records.items())
        ]

    @property
    def results(self) -> list[dict[str, object]]:
        """Detections in COCO's results format, in the order of the image ids."""
        return [
            {"image_id": image_id, **found}
            for image_id, record in sorted(self._records.items())
            for found in record["detections"]
        ]

    @property
    def skipped(self) -> list[dict[str, object]]:
        """Images that could not be read: ``id``, ``file_name`` and ``error``."""
        return [entry for _, entry in sorted(self._skipped.items())]

    def add(self, image_id: int, record: Record) -> None:
        """Add a further image; :func:`make_record` makes its record."""
        self._records[image_id] = record

    def skip(self, image_id: int, file_name: str, error: str) -> None:
        """Record that an image, or the rest of a video, could not be read."""
        self._skipped[image_id] = {"id": image_id, "file_name": file_name, "error": error}

    def write(self, folder: str | Path, *, complete: bool) -> None:
        """Write ``detections.json`` and ``images.json`` into a folder.

        Args:
            folder: Folder to write to.
            complete: Whether the prediction reached its end; ``info`` of ``images.json`` says it.
        """
        document = {
            "info": {**self._info, "complete": complete},
            "images": self.images,
            "categories": self._categories,
            "skipped": self.skipped,
        }
        write_text(Path(folder) / IMAGES, json.dumps(document, indent=1) + "\n")
        write_text(Path(folder) / DETECTIONS, json.dumps(self.results) + "\n")


def make_record(file_name: str, size: tuple[int, int], found: BaseDetections[Any], **extra: object) -> Record:
    """Return the line of the log for an image.

    Args:
        file_name: Image file, relative to the source, with ``/`` between folders.
        size: (height, width) in pixels.
        found: Detections in pixels of the image.
        extra: Further plain values for the entry of the image, e.g. the time of a video frame.
    """
    height, width = size
    boxes, scores, labels = found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()
    detections = [
        {"category_id": label + 1, "bbox": [left, top, right - left, bottom - top], "score": score}
        for (left, top, right, bottom), score, label in zip(boxes, scores, labels, strict=True)
    ]
    return {"file_name": file_name, "width": width, "height": height, **extra, "detections": detections}


def _parse(lines: Sequence[str]) -> list[Record]:
    """Parse lines up to the first that is not whole: a program that is killed may leave one."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def check_results_folder(folder: Path) -> None:
    """Check that results may be written to a folder, in which those of an earlier prediction are replaced.

    Raises:
        ResultsFolderError: It holds files of these names that no prediction wrote.
    """
    foreign = [name for name in (PICTURES, IMAGES, DETECTIONS) if (folder / name).exists()]
    if (folder / "config.yaml").exists() and not (folder / "provenance.json").exists():
        foreign.append("config.yaml")
    if foreign and not _is_ours(folder):
        raise ResultsFolderError(
            f"output={folder}: this folder holds {', '.join(foreign)}, which no prediction wrote and which "
            "would be replaced; give another folder"
        )


def remove_results(folder: Path) -> None:
    """Remove the results of an earlier prediction from a folder."""
    if not _is_ours(folder):
        return
    info = _read_info(folder)
    if isinstance(video := info.get("video"), str):
        (folder / Path(video).name).unlink(missing_ok=True)
    for name in (IMAGES, DETECTIONS, LOG):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    return (folder / LOG).is_file() or bool(_read_info(folder))


def _read_info(folder: Path) -> Mapping[str, Any]:
    try:
        document = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    info = document.get("info") if isinstance(document, dict) else None
    return info if isinstance(info, dict) and "weights" in info else {}
