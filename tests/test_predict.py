"""``anydepth-predict``: pictures and COCO results of images, folders and videos; errors write nothing."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from anydepth import predict, zoo
from anydepth.config.compose import compose
from anydepth.detector import Detector

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
    assert metrics == {"images": 3, "detections": len(expected), "skipped": 1}
    assert "1 other files in the folder were skipped" in capsys.readouterr().out
    pictures = sorted(path.name for path in (objects["output"] / "pictures").iterdir())
    assert pictures == ["a.png", "b.jpg", "c.BMP.png"]


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
        assert sum(1 for _ in container.decode(video=0)) == 3
    assert not (objects["output"] / "pictures").exists()


def _truncate(photos: Path) -> str:
    picture = photos / "b.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    return "b.jpg"


def _empty(photos: Path) -> str:
    for path in photos.iterdir():
        if path.suffix != ".txt" and path.is_file():
            path.unlink()
    return "no image in this folder"


@pytest.mark.parametrize("spoil", [_truncate, _empty])
def test_a_bad_folder_is_named_and_nothing_is_written(
    config: Callable[..., DictConfig], photos: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    message = spoil(photos)
    with pytest.raises(ValueError, match=message):
        predict.run(config(photos, "batch_size=1"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weights=null"], "no weights"),
        (["depth=deepest"], "Allowed: full, minimal"),
        (["threshold=2"], "threshold=2"),
        (["batch_size=0"], "batch_size=0"),
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
    assert predict.find_images(photos / "FILM.MP4") == ([], 0)


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


def test_jobs_of_a_sweep_lie_in_one_folder_of_its_command(
    tmp_path: Path, weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo._settings.cache_clear()  # as in a new process, so that the first job composes the detector
    monkeypatch.chdir(tmp_path)
    _main(
        monkeypatch, "-m", "weights=weights.safetensors", "source=photos", "device=cpu", "depth=full,minimal"
    )
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["predict"]
    (sweep,) = (tmp_path / "outputs" / "predict").iterdir()
    jobs = [path.parent for path in sweep.glob("*/detections.json")]
    assert len(jobs) == 2
    for job in jobs:
        command = json.loads((job / "provenance.json").read_text())["command"]
        assert command.startswith("anydepth-predict ")


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
