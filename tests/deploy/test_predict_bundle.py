"""``anydepth-predict`` with a bundle writes what it writes with weights."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hand_made import NAMES, write_bundle
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from anydepth import predict
from anydepth.config.compose import compose
from anydepth.deploy import load
from anydepth.deploy.runtime.benchmark import record_measurements
from anydepth.deploy.runtime.bundle import read_bundle
from anydepth.deploy.runtime.engines import engine_version
from anydepth.measurement import Measurement, machine_name


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("b.jpg", (60, 90)), ("a.png", (80, 50)), ("c.bmp", (40, 40))):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def config(tmp_path: Path, bundle: Path) -> Iterator[Callable[..., DictConfig]]:
    def compose_job(source: Path, *overrides: str) -> DictConfig:
        folder = tmp_path / "out"
        settings = [f"weights={bundle}", f"source={source}", f"output={folder}", f"paths.output_dir={folder}"]
        return compose("predict", [*settings, "threshold=0", *overrides])

    yield compose_job
    GlobalHydra.instance().clear()


def _rows(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((output / "detections.json").read_text())
    return rows


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_images_are_detected_as_by_the_bundle_itself(
    config: Callable[..., DictConfig], photos: Path, bundle: Path, engine: str
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    metrics, objects = predict.run(config(photos, "depth=a@1", f"engine={engine}", "threads=1"))
    detector = load(bundle, engine="onnxruntime" if engine == "auto" else engine)
    described = json.loads((objects["output"] / "images.json").read_text())
    assert metrics["images"] == 3
    assert metrics["skipped"] == 1
    assert [entry["name"] for entry in described["categories"]] == list(NAMES)
    assert described["info"]["depth"] == "a@1"
    for image in described["images"]:
        (wanted,) = detector.predict(photos / image["file_name"], "a@1", 0.0)
        found = [row for row in _rows(objects["output"]) if row["image_id"] == image["id"]]
        assert len(found) == len(wanted) > 0
        assert [row["score"] for row in found] == pytest.approx(wanted.scores.tolist(), abs=1e-6)
        assert [row["category_id"] - 1 for row in found] == wanted.labels.tolist()
        corners = [
            [left, top, left + width, top + height]
            for left, top, width, height in (row["bbox"] for row in found)
        ]
        assert np.allclose(corners, wanted.boxes_xyxy, atol=1e-3)
        with Image.open(objects["output"] / image["picture"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_a_video_is_detected_frame_by_frame(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (50, 100, 150):
            frame = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    metrics, objects = predict.run(config(clip, "batch_size=2"))
    assert metrics["images"] == 3
    assert {row["image_id"] for row in _rows(objects["output"])} == {1, 2, 3}
    assert (objects["output"] / "clip.mp4").is_file()


def test_an_interrupted_prediction_resumes_unless_the_network_or_the_engine_is_another(
    config: Callable[..., DictConfig], photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "d.png").write_bytes(b"no image")  # so that the log is kept
    predict.run(config(photos))
    (entry,) = read_bundle(bundle).depths[:1]
    record_measurements(read_bundle(bundle), {str(entry.config): _measurement(5.0)})
    predict.run(config(photos))
    assert "resumes   3 of 4 images are done" in capsys.readouterr().out
    predict.run(config(photos, "engine=openvino"))
    assert "holds other settings (engine: onnxruntime there, openvino here)" in capsys.readouterr().out


def _measurement(milliseconds: float) -> Measurement:
    return Measurement(
        engine="onnxruntime",
        engine_version=engine_version("onnxruntime"),
        device="cpu",
        machine=machine_name(),
        threads=1,
        precision="fp32",
        batch=1,
        repetitions=20,
        median_ms=milliseconds,
        p90_ms=milliseconds,
        images_per_second=1.0,
        memory_mb=None,
        spread=0.0,
        date="2026-01-01",
    )


def test_a_budget_chooses_the_depth_and_is_printed(
    config: Callable[..., DictConfig], photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        ValueError, match=r"measure it with `anydepth-benchmark .*bundle engine=onnxruntime threads=1`"
    ):
        predict.run(config(photos, "depth=<=6ms", "threads=1"))
    found = {"full": _measurement(9.0), "a@1": _measurement(5.0), "minimal": _measurement(2.0)}
    record_measurements(read_bundle(bundle), found)
    _, objects = predict.run(config(photos, "depth=<=6ms", "threads=1"))
    assert "depth     a@1 for <=6ms" in capsys.readouterr().out
    assert json.loads((objects["output"] / "images.json").read_text())["info"]["depth"] == "a@1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["depth=1/2"], "is not in the bundle"),
        (["engine=torch"], r"engine=torch: .*bundle is a bundle; allowed are onnxruntime, openvino"),
        (["engine=tflite"], "got engine='tflite', expected onnxruntime or openvino"),
        (["device=tpu"], "got device='tpu', expected cpu, cuda"),
        (["precision=bf16"], "got precision='bf16', expected fp32 or auto"),
        (["threads=0"], "got threads=0, expected a whole number from 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    config: Callable[..., DictConfig], photos: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict.run(config(photos, *overrides))
    assert not (tmp_path / "out").exists()


def test_the_bundle_may_be_the_first_argument_and_a_budget_needs_no_further_quotes(
    tmp_path: Path, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle.rename(tmp_path / "my, bundle=1")
    # As a shell passes on: anydepth-predict "my, bundle=1" source=photos depth="<=2gflops" output=found
    arguments = ["my, bundle=1", "source=photos", "depth=<=2gflops", "output=found"]
    monkeypatch.setattr(sys, "argv", ["anydepth-predict", *arguments])
    predict.main()
    assert json.loads((tmp_path / "found" / "images.json").read_text())["info"] == {
        "weights": "my, bundle=1",
        "depth": "full",  # 2 GFLOPs at each depth, so the one of the best AP
        "threshold": 0.5,
        "source": "photos",
        "complete": True,
    }
