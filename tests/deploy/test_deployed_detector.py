"""The detector that runs a bundle, on networks of two matrix products."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import BOXES, CLASSES, DEPTHS, NAMES, SIDE, outputs_of, write_bundle
from PIL import Image

from anydepth.deploy import load
from anydepth.deploy.runtime import engines
from anydepth.deploy.runtime.bundle import BundleError
from anydepth.deploy.runtime.engines.base import EngineError
from anydepth.deploy.runtime.outputs import NonFiniteOutputError
from anydepth.depth import DepthError
from anydepth.pictures.reading import ImageError

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("deploy") / "bundle")


def _pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (20 + 7 * i, 31 + 5 * i, 3), np.uint8) for i in range(count)]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_network_of_every_depth_is_that_of_the_bundle(engine: str, folder: Path):
    detector = load(folder, engine=engine, threads=1)
    images = np.random.default_rng(1).random((5, 3, SIDE, SIDE), np.float32)
    for depth in DEPTHS:
        for batch in (1, 2, 5):
            boxes, scores = detector.run(images[:batch], depth)
            expected = outputs_of(images[:batch], depth)
            np.testing.assert_allclose(boxes, expected[0], atol=1e-6)
            np.testing.assert_allclose(scores, expected[1], atol=1e-6)


def test_predictions_are_pairs_of_the_best_scores_in_pixels_of_the_picture(folder: Path):
    detector = load(folder, threads=1)
    # One grey level: resizing keeps it, so that the mean of each channel is known.
    picture = np.full((50, 80, 3), 51, np.uint8)
    (found,) = detector.predict(picture, "full", threshold=0.3)
    boxes, scores = outputs_of(np.full((1, 3, 4, 4), 0.2, np.float32), "full")
    order = np.argsort(-scores.reshape(-1))[:BOXES]
    order = order[scores.reshape(-1)[order] >= 0.3]
    assert len(found) == len(order) > 1
    np.testing.assert_allclose(found.scores, scores.reshape(-1)[order], atol=1e-6)
    np.testing.assert_allclose(found.boxes_xyxy, boxes[0, order // CLASSES] * [80, 50, 80, 50], atol=1e-4)
    assert found.labels.tolist() == (order % CLASSES).tolist()
    assert found.class_names == NAMES
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )


def test_pictures_of_all_forms_are_taken(folder: Path, tmp_path: Path):
    detector = load(folder, threads=1)
    array = _pictures(1)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    forms = [array, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array)]
    forms.append((tmp_path / "a.png").read_bytes())
    found = detector.predict(forms, threshold=0.0, batch_size=2)
    assert len(found) == len(forms)
    for one in found[1:]:
        assert one.boxes_xyxy.tolist() == found[0].boxes_xyxy.tolist()
    with pytest.raises(ImageError, match="no such file"):
        detector.predict(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        detector.predict(array[..., 0])


def test_a_batch_does_not_change_what_is_found(folder: Path):
    detector = load(folder, threads=1)
    pictures = _pictures(5)
    together = detector.predict(pictures, threshold=0.0, batch_size=5)
    for picture, found in zip(pictures, together, strict=True):
        (alone,) = detector.predict(picture, threshold=0.0)
        np.testing.assert_allclose(alone.boxes_xyxy, found.boxes_xyxy, atol=1e-4)


def test_a_bundle_of_a_fixed_number_of_images_takes_any(folder: Path, tmp_path: Path):
    fixed = load(write_bundle(tmp_path / "bundle", batch=2), threads=1)
    pictures = _pictures(3)
    free = load(folder, threads=1).predict(pictures, threshold=0.0)
    for mine, theirs in zip(fixed.predict(pictures, threshold=0.0), free, strict=True):
        np.testing.assert_allclose(mine.boxes_xyxy, theirs.boxes_xyxy, atol=1e-4)
    with pytest.raises(ValueError, match="got batch_size=0, expected a whole number from 1"):
        fixed.predict(pictures, batch_size=0)
    with pytest.raises(ValueError, match="got 1 images, but the bundle was exported for 2"):
        fixed.run(np.zeros((1, 3, SIDE, SIDE), np.float32))


def test_depths_are_opened_when_they_are_used(folder: Path):
    detector = load(folder, threads=1)
    assert detector.open_depths == ()
    detector.predict(_pictures(1), "minimal")
    detector.open("full")
    assert detector.open_depths == ("minimal", "full")
    detector.predict(_pictures(1), "none@1")  # the minimal depth by another name
    assert detector.open_depths == ("full", "minimal")
    detector.close("full")
    assert detector.open_depths == ("minimal",)
    detector.close()
    assert detector.open_depths == ()


def test_the_memory_limit_closes_the_depths_that_were_not_used_for_longest(folder: Path, tmp_path: Path):
    # Each depth reads 432 bytes of weights.
    detector = load(folder, threads=1, memory_limit=900 / 2**20)
    for depth, still_open in (
        ("full", ("full",)),
        ("a@1", ("full", "a@1")),
        ("full", ("a@1", "full")),
        ("minimal", ("full", "minimal")),
    ):
        detector.predict(_pictures(1), depth)
        assert detector.open_depths == still_open
    with pytest.raises(BundleError, match="depth full has 0 MiB of weights, the memory limit is 0; raise"):
        load(folder, memory_limit=1e-6).open("full")
    with pytest.raises(ValueError, match="got memory_limit=0, expected MiB above 0"):
        load(folder, memory_limit=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_a_detector_at_different_depths(engine: str, folder: Path):
    detector = load(folder, engine=engine, threads=1)
    images = np.random.default_rng(2).random((24, 1, 3, SIDE, SIDE), np.float32)
    start = threading.Barrier(4)

    def run(thread: int) -> list[float]:
        start.wait()
        differences = []
        for index in range(thread, len(images), 4):
            depth = DEPTHS[(index + thread) % 3]
            boxes, _ = detector.run(images[index], depth)
            differences.append(float(np.abs(boxes - outputs_of(images[index], depth)[0]).max()))
        return differences

    with ThreadPoolExecutor(4) as pool:
        assert max(value for found in pool.map(run, range(4)) for value in found) < 1e-6


def test_a_depth_that_was_not_exported_is_refused_before_pictures_are_read(folder: Path):
    with pytest.raises(DepthError, match="it holds full, a@1, minimal"):
        load(folder).predict("missing.png", "b@2")


def test_altered_weights_are_found_when_a_depth_is_opened(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    content = bytearray((folder / "weights.bin").read_bytes())
    content[3] ^= 64
    (folder / "weights.bin").write_bytes(bytes(content))
    with pytest.raises(BundleError, match="altered since the export"):
        load(folder).open("full")
    load(folder, verify=False).open("full")


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_are_taken_by_their_names(engine: str, tmp_path: Path):
    detector = load(write_bundle(tmp_path / "bundle", swap=True), engine=engine, threads=1)
    images = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)
    for found, expected in zip(detector.run(images), outputs_of(images, "full"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_outputs_that_do_not_fit_the_description_are_refused(tmp_path: Path):
    def one_class(description: dict[str, Any]) -> None:
        description |= {"class_names": ["cat"], "category_ids": [1]}

    detector = load(write_bundle(tmp_path / "bundle", edit=one_class), threads=1)
    with pytest.raises(BundleError, match=r"returned boxes \(1, 6, 4\) .*expected .*\[1, N, 1\] float32"):
        detector.predict(_pictures(1))


def test_a_picture_that_cannot_be_used_is_counted(folder: Path):
    good = _pictures(1)[0]
    with pytest.raises(ValueError, match=r"image 1 of 2 \(counted from 0\): got an array image"):
        load(folder).predict([good, good[..., 0]])


def test_category_ids_of_the_bundle_go_into_coco_entries(folder: Path):
    detector = load(folder, threads=1)
    (found,) = detector.predict(_pictures(1), threshold=0.0)
    entries = found.to_coco(5, detector.category_ids)
    assert [entry["category_id"] for entry in entries] == [(7, 3)[label] for label in found.labels]


def test_weights_that_give_nan_are_an_error(tmp_path: Path):
    detector = load(write_bundle(tmp_path / "bundle", fill=float("nan")), threads=1)
    with pytest.raises(NonFiniteOutputError, match="output at depth full holds NaN"):
        detector.predict(_pictures(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "torch"}, "got engine='torch', expected onnxruntime or openvino"),
        ({"device": "tpu"}, "got device='tpu', expected cpu, cuda, tensorrt, coreml for onnxruntime"),
        ({"engine": "openvino", "device": "cuda"}, "got device='cuda', expected cpu, gpu, npu for openvino"),
        (
            {"device": "cuda"},
            "needs ONNX Runtime's CUDAExecutionProvider, but the installed package has only",
        ),
        ({"threads": 2.5}, r"got threads=2\.5, expected a whole number from 1"),
        ({"threads": 0}, "got threads=0, expected a whole number from 1"),
        ({"precision": "int8"}, "got precision='int8', expected fp32 or auto"),
    ],
)
def test_options_that_do_not_exist_are_refused(arguments: dict[str, object], message: str, folder: Path):
    with pytest.raises(EngineError, match=message):
        load(folder, **arguments)  # type: ignore[arg-type]


def test_an_engine_that_is_not_installed_names_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "anydepth.deploy.runtime.engines.openvino_engine", raising=False)
    with pytest.raises(EngineError, match=r"needs the package openvino, .*`pip install openvino`"):
        load(folder, engine="openvino").open()
    assert set(engines.ENGINES) == {*ENGINES, "aotinductor"}


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", None])
def test_thresholds_that_are_no_share_are_refused(threshold: object, folder: Path):
    with pytest.raises(ValueError, match=r"got threshold=.*expected a number from 0 to 1"):
        load(folder).predict(_pictures(1), threshold=threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, SIDE, SIDE), np.float32),
        np.zeros((1, 3, SIDE, SIDE), np.float64),
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((1, 3, SIDE, 2 * SIDE), np.float32),
    ],
)
def test_inputs_of_another_form_are_refused(images: np.ndarray, folder: Path):
    with pytest.raises(ValueError, match=r"expected \[B, 3, 32, 32\] float32"):
        load(folder).run(images)


def test_a_bundle_runs_without_torch(folder: Path):
    code = (
        "import sys; from anydepth.deploy import load; import numpy as np\n"
        f"found = load({str(folder)!r}).predict(np.zeros((9, 9, 3), np.uint8), 'minimal', 0.0)\n"
        f"assert len(found[0]) == {BOXES}\n"
        "bad = {'torch', 'torchvision', 'lightning', 'hydra', 'omegaconf', 'onnx', 'matplotlib', 'pandas'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
