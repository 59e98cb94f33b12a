"""``anydepth-predict``: pictures and COCO results of images, folders and videos; errors write nothing."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from anydepth import predict, zoo
from anydepth.config.compose import compose
from anydepth.deploy.task import TorchTask
from anydepth.depth import DepthConfig
from anydepth.detections import BaseDetections
from anydepth.detector import Detector
from anydepth.pictures.reading import ImageError
from anydepth.results.predictions import remove_results
from anydepth.results.video import Frame, VideoError, VideoReader
from anydepth.training.checkpointing.sigterm import Terminated

# Low enough for untrained weights, and above some of their scores.
THRESHOLD = 0.012


@pytest.fixture
def weights(tmp_path: Path, small_detector: Detector) -> Path:
    small_detector.reset_classes(["cat", "dog"])
    return zoo.save(small_detector, tmp_path / "weights.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of different sizes and formats, and three entries that are not images."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "inner.png").mkdir(parents=True)
    for name, size in (("b.jpg", (60, 90)), ("a.png", (80, 50)), ("c.BMP", (40, 40))):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image either")
    return folder


@pytest.fixture
def config(tmp_path: Path, weights: Path) -> Iterator[Callable[..., DictConfig]]:
    def compose_job(source: Path, *overrides: str) -> DictConfig:
        settings = {
            "weights": weights,
            "source": source,
            "output": tmp_path / "out",
            "threshold": THRESHOLD,
            "device": "cpu",
            "paths.output_dir": tmp_path / "out",
        }
        return compose("predict", [*(f"{key}={value}" for key, value in settings.items()), *overrides])

    yield compose_job
    GlobalHydra.instance().clear()


def _read(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return json.loads((output / "images.json").read_text()), json.loads(
        (output / "detections.json").read_text()
    )


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_gives_pictures_and_coco_results_in_sorted_order(
    config: Callable[..., DictConfig], photos: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, objects = predict.run(config(photos, "depth=minimal", "batch_size=2"))
    described, rows = _read(objects["output"])
    assert [image["file_name"] for image in described["images"]] == ["a.png", "b.jpg", "c.BMP"]
    assert [image["id"] for image in described["images"]] == [1, 2, 3]
    assert [(image["height"], image["width"]) for image in described["images"]] == [
        (80, 50),
        (60, 90),
        (40, 40),
    ]
    assert described["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert described["info"]["depth"] == "minimal"
    # Detections of a Python call on the same files, one by one.
    detector = zoo.load(weights)
    expected = []
    for image in described["images"]:
        found = detector.predict(photos / image["file_name"], depth="minimal", threshold=THRESHOLD)[0]
        for box, score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True):
            left, top, right, bottom = box.tolist()
            expected.append(
                (image["id"], int(label) + 1, float(score), left, top, right - left, bottom - top)
            )
    written = [(row["image_id"], row["category_id"], row["score"], *row["bbox"]) for row in rows]
    assert len(expected) > 3, "the threshold must keep something to compare"
    assert np.array(written) == pytest.approx(np.array(expected), abs=1e-3)
    assert metrics == {"images": 3, "detections": len(expected), "skipped": 0, "other_files": 1}
    assert "1 other files were left out" in capsys.readouterr().out
    pictures = [image["picture"] for image in described["images"]]
    assert pictures == ["pictures/a.png", "pictures/b.jpg", "pictures/c.BMP.png"]
    assert _files(objects["output"] / "pictures") == ["a.png", "b.jpg", "c.BMP.png"]
    for image in described["images"]:
        with Image.open(objects["output"] / image["picture"]) as picture:
            assert picture.size == (image["width"], image["height"])
    assert described["info"]["complete"] is True
    assert not (objects["output"] / "predictions.jsonl").exists()


def test_many_images_run_in_a_specialised_network_with_the_same_results(
    config: Callable[..., DictConfig], photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths: list[str] = []
    original = Detector.specialise

    def specialise(detector: Detector, depth: DepthConfig) -> Detector:
        depths.append(str(depth))
        return original(detector, depth)

    monkeypatch.setattr(Detector, "specialise", specialise)
    for number in range(5):
        Image.open(photos / "a.png").rotate(20 * number).save(photos / f"more{number}.png")
    _, objects = predict.run(config(photos, "depth=minimal", "threshold=0"))
    assert depths == ["minimal"], "eight images are many"
    detector = zoo.load(weights)
    described, rows = _read(objects["output"])
    for image in described["images"]:
        wanted = detector.predict(photos / image["file_name"], depth="minimal", threshold=0)[0]
        scores = [row["score"] for row in rows if row["image_id"] == image["id"]]
        assert sorted(scores, reverse=True) == pytest.approx(wanted.scores.tolist(), abs=1e-4)
    predict.run(config(photos / "a.png"))
    assert depths == ["minimal"], "one image is few"


def test_the_depth_and_the_threshold_decide_the_detections(
    config: Callable[..., DictConfig], photos: Path
) -> None:
    results = [
        predict.run(config(photos / "a.png", f"depth={depth}", f"threshold={threshold}"))[1][
            "predictions"
        ].results
        for depth, threshold in (("full", 0), ("minimal", 0), ("full", 1))
    ]
    assert len(results[0]) == len(results[1]) > 0
    assert results[0] != results[1]
    assert results[2] == []


def test_a_second_run_replaces_the_results_of_the_first(
    config: Callable[..., DictConfig], photos: Path
) -> None:
    predict.run(config(photos))
    _, objects = predict.run(config(photos / "b.jpg"))
    assert [path.name for path in (objects["output"] / "pictures").iterdir()] == ["b.jpg"]
    assert len(_read(objects["output"])[0]["images"]) == 1


def test_a_video_gives_an_annotated_video_and_results_per_frame(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    clip = tmp_path / "clip.avi"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (50, 100, 150):
            frame = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    metrics, objects = predict.run(config(clip, "threshold=0", "batch_size=2"))
    described, rows = _read(objects["output"])
    assert metrics["images"] == 3
    assert [(image["frame"], image["seconds"]) for image in described["images"]] == [
        (0, 0.0),
        (1, 0.2),
        (2, 0.4),
    ]
    assert {row["image_id"] for row in rows} == {1, 2, 3}
    with av.open(str(objects["output"] / "clip.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 48)
        assert sum(1 for _ in container.decode(video=0)) == 3
    assert not (objects["output"] / "pictures").exists()


def test_a_video_that_is_damaged_keeps_the_frames_before(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.mkv"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in (0, 40, 700):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = VideoReader.frames

    def damaged(reader: VideoReader) -> Iterator[Frame]:
        yield from frames(reader)
        raise VideoError("clip.mkv: damaged after frame 3")

    monkeypatch.setattr(VideoReader, "frames", damaged)
    metrics, objects = predict.run(config(clip, "batch_size=2"))
    described, _ = _read(objects["output"])
    assert (metrics["images"], metrics["skipped"]) == (3, 1)
    # The times of the file: its average rate would give 0, 0.04 and 0.08.
    assert [image["seconds"] for image in described["images"]] == [0, 0.04, 0.7]
    assert described["skipped"][0]["error"] == "clip.mkv: damaged after frame 3"
    with pytest.raises(VideoError, match="damaged after frame 3"):
        predict.run(config(clip, "on_bad_image=raise"))
    with av.open(str(objects["output"] / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def _truncate(photos: Path) -> str:
    picture = photos / "b.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    return "b.jpg"


def _empty(photos: Path) -> str:
    for path in photos.iterdir():
        if path.suffix != ".txt" and path.is_file():
            path.unlink()
    return "no image in this folder"


def _truncate_all(photos: Path) -> str:
    for path in photos.iterdir():
        if path.is_file():
            path.write_bytes(path.read_bytes()[:40])
    return r"none of the images can be read: .*a\.png.*b\.jpg.*c\.BMP"


@pytest.mark.parametrize("spoil", [_truncate_all, _empty])
def test_a_folder_without_any_readable_image_is_refused_and_nothing_is_written(
    config: Callable[..., DictConfig], photos: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    message = spoil(photos)
    with pytest.raises(ValueError, match=message):
        predict.run(config(photos, "batch_size=1"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# -- one bad image, interruptions, resuming ---------------------------------------------------------------


def test_an_image_that_cannot_be_read_is_listed_and_costs_no_other(
    config: Callable[..., DictConfig], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, whole = predict.run(config(photos, "batch_size=1"))
    expected = [row for row in _read(whole["output"])[1] if row["image_id"] != 2]
    _truncate(photos)
    metrics, objects = predict.run(config(photos, "batch_size=1"))
    described, rows = _read(objects["output"])
    assert (metrics["images"], metrics["skipped"]) == (2, 1)
    assert rows == expected, "ids are those of the place in the folder"
    assert [image["id"] for image in described["images"]] == [1, 3]
    assert [(entry["id"], entry["file_name"]) for entry in described["skipped"]] == [(2, "b.jpg")]
    assert "not a readable image" in described["skipped"][0]["error"]
    printed = capsys.readouterr().out
    assert "1 could not be read, see images.json" in printed
    assert "b.jpg: not a readable image" in printed
    assert _files(objects["output"] / "pictures") == ["a.png", "c.BMP.png"]


def test_a_link_that_leads_nowhere_is_listed(
    config: Callable[..., DictConfig], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "d.png").symlink_to(photos / "gone.png")
    predict.run(config(photos))
    printed = capsys.readouterr().out
    assert "1 could not be read, see images.json" in printed
    assert "d.png: a broken link, or not a regular file" in printed


def test_on_bad_image_raise_ends_the_prediction_and_keeps_what_was_done(
    config: Callable[..., DictConfig], photos: Path, tmp_path: Path
) -> None:
    _truncate(photos)
    with pytest.raises(ImageError, match=r"b\.jpg: not a readable.*set on_bad_image=skip"):
        predict.run(config(photos, "on_bad_image=raise"))
    described, rows = _read(tmp_path / "out")
    assert [image["file_name"] for image in described["images"]] == ["a.png"]
    assert described["info"]["complete"] is False
    assert {row["image_id"] for row in rows} == {1}


def test_a_source_that_looks_like_markup_is_printed_as_it_is(
    config: Callable[..., DictConfig], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photos / "a[" / "b]:cat:[red].png"
    bad.parent.mkdir()
    bad.write_text("no image")
    predict.run(config(photos))
    assert f"  {bad}: not a readable image" in capsys.readouterr().out


def _stop_after(images: int, monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Send a signal to this process in place of further detections; return the numbers of images detected."""
    detect, detected = TorchTask.detect, [0]

    def detect_or_stop(
        task: TorchTask, pictures: Sequence[Tensor], threshold: float, batch_size: int
    ) -> Sequence[BaseDetections[Any]]:
        if images and detected[0] >= images:
            os.kill(os.getpid(), number)
        detected[0] += len(pictures)
        return detect(task, pictures, threshold, batch_size)

    monkeypatch.setattr(TorchTask, "detect", detect_or_stop)
    return detected


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Ctrl+C is ignored in programs that a shell started in the background, as the tests may be."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_prediction_keeps_what_it_did_and_the_same_command_resumes_it(
    config: Callable[..., DictConfig],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    _, whole = predict.run(config(photos, "batch_size=1"))
    expected = _read(whole["output"])
    remove_results(tmp_path / "out")
    with monkeypatch.context() as patch:
        _stop_after(2, patch, number)
        with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
            predict.run(config(photos, "batch_size=1"))
    assert "stopped   after 2 of 3 images" in capsys.readouterr().out
    described, rows = _read(tmp_path / "out")
    assert [image["id"] for image in described["images"]] == [1, 2]
    assert described["info"]["complete"] is False
    assert rows == [row for row in expected[1] if row["image_id"] < 3]
    assert not [name for name in _files(tmp_path / "out") if "partial" in name]
    # As a killed process leaves it: a line that is cut short.
    with (tmp_path / "out" / "predictions.jsonl").open("a") as log:
        log.write('{"file_name": "c.BMP", "wid')
    detected = _stop_after(0, monkeypatch, number)
    predict.run(config(photos, "batch_size=1"))
    assert detected == [1]
    assert "resumes   2 of 3 images are done" in capsys.readouterr().out
    assert _read(tmp_path / "out") == expected
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["depth=minimal"], "depth: full there, minimal here", marks=pytest.mark.slow),
        pytest.param(["resume=false"], "", marks=pytest.mark.slow),
        (["threshold=0.011"], "threshold: 0.012 there, 0.011 here"),
    ],
)
def test_a_prediction_of_other_settings_is_not_resumed(
    config: Callable[..., DictConfig],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    with monkeypatch.context() as patch:
        _stop_after(2, patch, signal.SIGTERM)
        with pytest.raises(Terminated):
            predict.run(config(photos, "batch_size=1"))
    detected = _stop_after(0, monkeypatch, signal.SIGTERM)
    predict.run(config(photos, *overrides))
    assert detected == [3]
    assert message in capsys.readouterr().out


def test_images_that_changed_are_detected_again(
    config: Callable[..., DictConfig], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = photos / _truncate(photos)
    predict.run(config(photos))
    # An image is repaired, another one replaced, a third one loses its picture; nothing else is repeated.
    Image.effect_noise((50, 60), 60).convert("RGB").save(bad)
    Image.effect_noise((51, 60), 60).convert("RGB").save(photos / "a.png")
    detected = _stop_after(0, monkeypatch, signal.SIGTERM)
    metrics, objects = predict.run(config(photos))
    assert detected == [2]
    assert (metrics["images"], metrics["skipped"]) == (3, 0)
    assert _read(objects["output"])[0]["images"][0]["width"] == 51


# -- which files ---------------------------------------------------------------------------------------------


def _save(*paths: Path) -> None:
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + index, 30), (200, 10 * index, 0)).save(path)


def test_images_in_subfolders_are_found_and_results_of_runs_are_not(
    config: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    _save(root / "b" / "x.png", root / "a.png", root / "b" / "c" / "x.png", root / ".cache" / "n.png")
    _save(root / "old" / "pictures" / "n.png")
    (root / "old" / "provenance.json").write_text("{}")
    (root / "b" / "c" / "loop").symlink_to(root)
    _, objects = predict.run(config(root, f"output={root / 'out'}"))
    expected = ["a.png", "b/c/x.png", "b/x.png"]
    for _ in range(2):
        described = _read(objects["output"])[0]
        assert [image["file_name"] for image in described["images"]] == expected
        assert _files(objects["output"] / "pictures") == expected
        # The second time, pictures of the first one lie below the source.
        _, objects = predict.run(config(root, f"output={root / 'out'}"))
    capsys.readouterr()
    _, objects = predict.run(config(root, "subfolders=false"))
    assert [image["file_name"] for image in objects["predictions"].images] == ["a.png"]
    assert "2 images in subfolders were left out (subfolders=true)" in capsys.readouterr().out


def test_pictures_of_images_with_similar_names_are_kept_apart(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    names = ["a.bmp", "a.bmp.png", "a.bmp.2.png", "a.tif", f"{'x' * 240}.png", f"{'x' * 240}y.png"]
    _save(*(tmp_path / "set" / name for name in names))
    _, objects = predict.run(config(tmp_path / "set", "threshold=1"))
    images = objects["predictions"].images
    assert len({image["picture"] for image in images}) == len(names)
    for image in images:
        with Image.open(objects["output"] / str(image["picture"])) as picture:
            # The widths tell the images apart.
            assert picture.size == (image["width"], 30)


def test_the_source_and_files_of_others_are_never_replaced(
    config: Callable[..., DictConfig], tmp_path: Path, photos: Path
) -> None:
    _save(tmp_path / "out" / "pictures" / "mine.png")
    with pytest.raises(ValueError, match="holds pictures, which no prediction wrote"):
        predict.run(config(photos))
    assert (tmp_path / "out" / "pictures" / "mine.png").is_file()
    (tmp_path / "out" / "images.json").write_text('{"info": {"weights": "w"}}')
    with pytest.raises(predict.SourceError, match="would replace it"):
        predict.run(config(tmp_path / "out" / "pictures"))
    clip = tmp_path / "clips" / "clip.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"a video")
    with pytest.raises(predict.SourceError, match=r"clip\.mp4: the results in output=.* would replace it"):
        predict.run(config(clip, f"output={clip.parent}"))
    assert clip.read_bytes() == b"a video"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("my: own")
    with pytest.raises(ValueError, match=r"this folder holds config\.yaml, which no prediction wrote"):
        predict.run(config(photos, f"output={tmp_path / 'project'}"))
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weights=null"], "no weights"),
        (["depth=deepest"], "Allowed: full, minimal"),
        (["threshold=2"], "threshold=2"),
        (["batch_size=0"], "batch_size=0"),
        (["on_bad_image=ignore"], "on_bad_image=ignore: allowed are skip, raise"),
        (["precision=int8"], "precision=int8"),
        (["device=tpu"], "device=tpu"),
        (["source=absent.jpg"], "absent.jpg: no such file or folder"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    config: Callable[..., DictConfig], photos: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict.run(config(photos, *overrides))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_files_that_are_neither_image_nor_video_are_refused(photos: Path) -> None:
    with pytest.raises(predict.SourceError, match=r"notes\.txt: unknown suffix; give an image"):
        predict.find_images(photos / "notes.txt")
    (photos / "FILM.MP4").touch()
    assert predict.find_images(photos / "FILM.MP4").names == ()


def test_reduced_precision_runs(config: Callable[..., DictConfig], photos: Path) -> None:
    metrics, _ = predict.run(config(photos / "a.png", "precision=bf16", "threshold=0"))
    assert metrics["detections"] > 0


# -- the command line ----------------------------------------------------------------------------------


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["anydepth-predict", *arguments])
    predict.main()


def test_the_command_works_from_any_directory_with_relative_paths(
    tmp_path: Path, weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _main(
        monkeypatch,
        "weights=weights.safetensors",
        "source=photos",
        "output=found",
        "device=cpu",
        "depth=neck@1",
    )
    assert {path.name for path in (tmp_path / "found").iterdir()} >= {
        "pictures",
        "detections.json",
        "images.json",
    }
    assert not (tmp_path / "outputs").exists(), "everything of a run lies in its output folder"


def test_jobs_of_a_sweep_lie_in_one_folder_and_a_failing_one_costs_no_other(
    tmp_path: Path,
    weights: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo._settings.cache_clear()  # as in a new process, so that the first job composes the detector
    monkeypatch.chdir(tmp_path)
    settings = ("-m", "weights=weights.safetensors", "source=photos", "device=cpu")
    with pytest.raises(SystemExit) as ended:
        _main(monkeypatch, *settings, "depth=full,9/7,minimal")
    assert ended.value.code == 1
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["predict"]
    (sweep,) = (tmp_path / "outputs" / "predict").iterdir()
    jobs = [path.parent for path in sweep.glob("*/detections.json")]
    assert len(jobs) == 2
    for job in jobs:
        command = json.loads((job / "provenance.json").read_text())["command"]
        assert command.startswith("anydepth-predict ")
    shown = capsys.readouterr()
    assert shown.err.count("Error in depth_9.7-") == 1
    states = {line.split("-")[0]: line.split()[1] for line in shown.out.splitlines() if "depth_" in line[:6]}
    assert states == {"depth_full": "finished", "depth_9.7": "failed", "depth_minimal": "finished"}
    assert shown.out.count("detections, 3 images") == 2
    # In the same folder again, without the job that failed.
    _main(monkeypatch, *settings, "depth=full,minimal", f"hydra.sweep.dir={sweep}")
    assert "failed" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        _main(monkeypatch, *settings, "depth=9/7", "hydra.sweep.dir=deep", "hydra.sweep.subdir=a/${job:}")
    assert ended.value.code == 1
    assert "failed" in capsys.readouterr().out


def test_a_mistake_ends_with_one_message_and_an_exit_code(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        _main(monkeypatch, "weights=weights.safetensors", "source=absent", "output=found")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "absent: no such file or folder" in error
    assert "Traceback" not in error


def test_an_unknown_key_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        _main(monkeypatch, "treshold=0.3")
    assert ended.value.code == 1
    assert "treshold" in capsys.readouterr().err
