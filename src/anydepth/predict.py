"""``anydepth-predict``: detect in images or a video; draw, and write COCO's results format."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from anydepth import zoo
from anydepth.budget import parse_budget
from anydepth.config.compose import check_config, entry_point, resolve_config
from anydepth.deploy.runtime.hub_bundle import find_weights_or_bundle
from anydepth.deploy.task import (
    BundleTask,
    Task,
    TorchTask,
    check_weights_engine,
    limited_threads,
    open_bundle,
)
from anydepth.depth import DepthConfig
from anydepth.detections import BaseDetections
from anydepth.evaluation.device import resolve_device
from anydepth.images import read_image
from anydepth.pictures.reading import ImageError
from anydepth.results.pictures import draw_detections, save_picture
from anydepth.results.predictions import (
    IMAGES,
    LOG,
    PICTURES,
    PredictionLog,
    Predictions,
    Record,
    check_results_folder,
    make_record,
)
from anydepth.results.sources import FoundImages, SourceError, find_images, name_pictures
from anydepth.results.video import Frame, VideoError, VideoReader, VideoWriter
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job
from anydepth.runs.prediction import PredictionOutput
from anydepth.runs.provenance import PROVENANCE
from anydepth.training.checkpointing.sigterm import terminate_on_sigterm
from anydepth.utils.command_line import setting
from anydepth.utils.console import print_lines
from anydepth.utils.messages import join_few
from anydepth.weights.figures import COMPILED

ON_BAD_IMAGE: Final = ("skip", "raise")
_INTERRUPTED: Final = 130
"""Exit code of a program that Ctrl+C ended, by convention of Unix shells."""

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How a task is applied to images.

    Attributes:
        threshold: Lowest score that is kept.
        batch_size: Images per forward pass.
        on_bad_image: Action on an image that cannot be read: ``skip`` or ``raise``.
    """

    threshold: float
    batch_size: int
    on_bad_image: str

    def __post_init__(self) -> None:
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image={self.on_bad_image}: allowed are {', '.join(ON_BAD_IMAGE)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: allowed are 1 and above")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"got threshold={self.threshold}, expected 0 to 1")


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Detect objects in an image, a folder of images or a video.

    The results of an image are in the output folder as soon as it is done: a picture below ``pictures/`` and
    a line of ``predictions.jsonl``. At the end, also after an error or a signal, ``detections.json`` and
    ``images.json`` are written, see :mod:`anydepth.results.predictions`.

    Args:
        cfg: Configuration composed from ``conf/predict.yaml``.

    Returns:
        Numbers of ``images`` or frames, of ``detections``, of ``skipped`` images that could not be read and
        of ``other_files``, and the objects of the run by name: ``detector``, ``predictions`` and ``output``
        (the folder).

    Raises:
        ValueError: A setting or a file that cannot be used; the message says what to change.
        ImageError: No image can be read, or one cannot and ``on_bad_image`` is ``raise``.
    """
    check_config(cfg, "predict")
    for name in ("weights", "source"):
        if not cfg[name]:
            raise ValueError(f"no {name}: give {name}=PATH")
    source, folder = Path(cfg.source), Path(cfg.output)
    check_output(folder)
    check_results_folder(folder)
    found = find_images(source, subfolders=cfg.subfolders, exclude=lambda path: _is_output(path, folder))
    _check_source(source, folder)
    settings = Settings(cfg.threshold, cfg.batch_size, cfg.on_bad_image)
    with limited_threads(cfg.threads):
        return _predict(cfg, settings, found, folder)


def _predict(
    cfg: DictConfig, settings: Settings, found: FoundImages, folder: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    source = Path(cfg.source)
    task = _open_task(
        find_weights_or_bundle(cfg.weights, cfg.engine),
        str(cfg.depth),
        **{name: cfg[name] for name in ("engine", "device", "precision", "threads", "trust_code")},
    )
    if parse_budget(cfg.depth):
        print_lines(f"depth     {task.depth} for {cfg.depth}")
    output = _make_output(cfg, task, found, folder)
    resumed, complete = len(output.predictions), False
    if resumed:
        print_lines(f"resumes   {resumed} of {len(found.names)} images are done")
    try:
        with terminate_on_sigterm():
            prepared = task.prepare(len(found.names) - resumed if found.names else None)
            if found.names:
                _predict_images(prepared, settings, found, output)
            else:
                _predict_video(prepared, settings, source, output)
        _check_any(output.predictions, source)
        complete = True
    finally:
        output.end(complete=complete)
        if not complete and len(output.predictions):
            _print_interrupted(output, found)
    _print_end(output.predictions, task.depth, found, folder)
    predictions = output.predictions
    metrics = {
        "images": len(predictions),
        "detections": len(predictions.results),
        "skipped": len(predictions.skipped),
        "other_files": found.other_files,
    }
    objects = {"detector": task.detector, "predictions": predictions, "output": folder}
    return {name: float(value) for name, value in metrics.items()}, objects


def _open_task(
    path: Path,
    depth: str,
    *,
    engine: str,
    device: str,
    precision: str,
    threads: int | None,
    trust_code: bool,
) -> Task:
    """Load what detects: a bundle if the path is a folder, or a file of weights.

    Args:
        path: Folder of a bundle, or a file that :func:`anydepth.save` wrote.
        depth: Depth or budget.
        engine: ``auto``; one of the bundle's, ``torch`` or ``compile`` for weights.
        device: ``auto``, or a device of the engine.
        precision: Precision of the engine.
        threads: Threads of one pass on a CPU, of a bundle; for weights, :func:`limited_threads` sets them.
        trust_code: Whether machine code in a bundle may run.

    Raises:
        ValueError: An engine that does not run what lies there, or anything else that cannot be used.
    """
    if path.is_dir():
        detector = open_bundle(
            path, engine=engine, device=device, precision=precision, threads=threads, trust_code=trust_code
        )
        return BundleTask(detector, depth, device=device, precision=precision)
    check_weights_engine(path, engine)
    network = zoo.load(path).to(resolve_device(device))
    return TorchTask(network, depth, precision, compiled=engine == COMPILED)


def _make_output(cfg: DictConfig, task: Task, found: FoundImages, folder: Path) -> PredictionOutput:
    """Return the output, with the images of an interrupted prediction that it resumes."""
    info: dict[str, object] = {
        "weights": str(cfg.weights),
        "depth": str(task.depth),
        "threshold": cfg.threshold,
        "source": str(cfg.source),
    }
    settings = {**info, **task.identity(), "source": str(Path(cfg.source).resolve())}
    if not found.names:
        info["video"] = _video_name(Path(cfg.source))
    predictions = Predictions(class_names=task.class_names, info=info)
    log = PredictionLog(folder / LOG, settings)
    resumed: list[Record] = []
    if cfg.resume and found.names:
        records, different = log.read()
        if different:
            print_lines(f"starts    again: {folder} holds other settings ({'; '.join(different)})")
        ids = {name: image_id for image_id, name in enumerate(found.names, start=1)}
        for record in records:
            if _is_done(record, ids, found.root, folder):
                predictions.add(ids[record["file_name"]], record)
                resumed.append(record)
    return PredictionOutput(folder, resolve_config(cfg), predictions, log, resumed)


def _is_done(record: Record, ids: dict[str, int], root: Path, folder: Path) -> bool:
    """Return whether a line of the log is about an image as it is now, and its picture is there."""
    name = record.get("file_name")
    if name not in ids or not (root / name).is_file() or not isinstance(record.get("detections"), list):
        return False
    picture = record.get("picture")
    return record.get("stamp") == _stamp(root / name) and (not picture or (folder / picture).is_file())


def _stamp(path: Path) -> list[int]:
    """Return size and time of a file, which differ once it was replaced."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _predict_images(task: Task, settings: Settings, found: FoundImages, output: PredictionOutput) -> None:
    pictures = name_pictures(found.names)
    missing = [
        (image_id, name)
        for image_id, name in enumerate(found.names, start=1)
        if image_id not in output.predictions
    ]
    batches = list(_batches(missing, settings.batch_size))
    for batch in track(batches, description="detecting", disable=len(batches) < 2):
        failure: ImageError | None = None
        images: list[tuple[int, str, list[int], Tensor]] = []
        for image_id, name in batch:
            try:
                image = read_image(found.root / name)
                images.append((image_id, name, _stamp(found.root / name), image))
            except (ImageError, OSError) as error:
                output.predictions.skip(image_id, name, str(error))
                if settings.on_bad_image == "raise":
                    failure = ImageError(f"{error}. Or set on_bad_image=skip to leave such images out")
                    break
        if images:
            detected = _detect(task, settings, [image for *_, image in images])
            output.begin()
            for (image_id, name, stamp, image), detections in zip(images, detected, strict=True):
                picture = f"{PICTURES}/{pictures[name]}"
                save_picture(draw_detections(image, detections, task.class_names), output.folder / picture)
                size = (image.shape[-2], image.shape[-1])
                output.add(image_id, make_record(name, size, detections, picture=picture, stamp=stamp))
        if failure is not None:
            raise failure


def _predict_video(task: Task, settings: Settings, path: Path, output: PredictionOutput) -> None:
    reader = VideoReader(path)
    total = None if reader.length is None else -(-reader.length // settings.batch_size)
    predictions = output.predictions
    frames = _readable_frames(reader, path, settings, predictions)
    with VideoWriter(output.folder / _video_name(path), reader) as writer:
        for batch in track(_batches(frames, settings.batch_size), description="detecting", total=total):
            detected = _detect(task, settings, [frame.image for frame in batch])
            output.begin()
            for frame, found in zip(batch, detected, strict=True):
                index = len(predictions)
                size = (frame.image.shape[-2], frame.image.shape[-1])
                writer.add(draw_detections(frame.image, found, task.class_names), frame)
                record = make_record(path.name, size, found, frame=index, seconds=float(frame.seconds))
                output.add(index + 1, record)


def _readable_frames(
    reader: VideoReader, path: Path, settings: Settings, predictions: Predictions
) -> Iterator[Frame]:
    """Yield the frames up to the end of a video, or up to where it is damaged."""
    count = 0
    try:
        for frame in reader.frames():
            count += 1
            yield frame
    except VideoError as error:
        if settings.on_bad_image == "raise" or not count:
            raise
        predictions.skip(count + 1, path.name, str(error))


def _detect(task: Task, settings: Settings, images: list[Tensor]) -> Sequence[BaseDetections[Any]]:
    return task.detect(images, settings.threshold, settings.batch_size)


def _video_name(source: Path) -> str:
    return f"{source.stem}.mp4"


def _is_output(path: Path, folder: Path) -> bool:
    """Return whether a subfolder of the source holds results, this prediction's or those of another run."""
    places = (folder.resolve(), (folder / PICTURES).resolve())
    return path.resolve() in places or (path / PROVENANCE).is_file()


def _check_source(source: Path, folder: Path) -> None:
    """Refuse a source that the results would replace."""
    place, pictures = source.resolve(), (folder / PICTURES).resolve()
    if place.is_relative_to(pictures) or place == (folder / _video_name(source)).resolve():
        raise SourceError(f"{source}: the results in output={folder} would replace it; give another output")


def _check_any(predictions: Predictions, source: Path) -> None:
    if not len(predictions):
        errors = join_few([entry["error"] for entry in predictions.skipped], limit=3)
        raise ImageError(f"{source}: none of the images can be read: {errors}")


def _print_interrupted(output: PredictionOutput, found: FoundImages) -> None:
    predictions = output.predictions
    if found.names:
        print_lines(
            f"stopped   after {len(predictions)} of {len(found.names)} images, whose results are in "
            f"{output.folder}; the same command with {setting('output', output.folder)} does the others"
        )
    else:
        print_lines(f"stopped   after {len(predictions)} frames, whose results are in {output.folder}")


def _print_end(predictions: Predictions, depth: DepthConfig, found: FoundImages, folder: Path) -> None:
    what = f"{len(predictions)} {'images' if found.names else 'frames'}"
    notes = [f"{len(predictions.results)} detections in {what} at depth {depth}"]
    if found.other_files:
        notes.append(f"{found.other_files} other files were left out")
    if found.left_out:
        notes.append(f"{found.left_out} images in subfolders were left out (subfolders=true)")
    problems = [*found.problems, *(str(entry["error"]) for entry in predictions.skipped)]
    listed = [f"  {problem}" for problem in problems[:5]]
    if problems:
        notes.append(f"{len(problems)} could not be read, see {IMAGES}")
        listed += [f"  and {len(problems) - 5} more"] if len(problems) > 5 else []
    print_lines("; ".join(notes), *listed, folder)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def summarize(figures: Mapping[str, float]) -> str:
    """Return the figures of a prediction in one line."""
    names = ("detections", "images", "skipped")
    return ", ".join(f"{figures[name]:.0f} {name}" for name in names if figures[name] or name != "skipped")


@entry_point("predict", positional="weights")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-predict``."""
    try:
        return run_job(cfg, run, summarize)
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


if __name__ == "__main__":
    main()
