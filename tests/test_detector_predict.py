"""Prediction of every detector: it changes nothing, and takes images in the forms that people have."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile, SpooledTemporaryFile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anydepth import zoo
from anydepth.detector import Detector
from anydepth.image_sources import to_image
from anydepth.images import read_image
from anydepth.pictures.reading import ImageError
from anydepth.structures import Detections
from small_networks import SMALL_DETECTOR, SMALL_YOLO

DEPTHS = ("full", "minimal", "1/2", "3/4")


@pytest.fixture(params=["detr_tiny", "yolo_tiny"])
def detector(request: pytest.FixtureRequest) -> Detector:
    """A detector as ``build`` returns it: in training mode."""
    torch.manual_seed(0)
    settings = SMALL_DETECTOR if request.param == "detr_tiny" else SMALL_YOLO
    return zoo.build(request.param, 2, **settings)


def _pictures(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (40 + 8 * index, 60, 3), dtype=np.uint8) for index in range(count)]


def _equal(first: Detections, second: Detections) -> bool:
    return torch.equal(first.boxes_xyxy, second.boxes_xyxy) and torch.equal(first.scores, second.scores)


# -- prediction changes nothing --------------------------------------------------------------------------


def test_threads_get_what_one_call_gets_and_the_detector_stays_as_it_was(detector: Detector) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    pictures = _pictures(4)

    def predict(turn: int) -> Detections:
        return detector.predict(pictures[turn % 4], DEPTHS[turn % 4], threshold=0)[0]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predict, range(12)))
    assert all(part.training for part in detector.modules())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    detector.eval()
    expected = [predict(turn) for turn in range(4)]
    assert all(len(one) for one in expected)
    assert all(_equal(one, expected[turn % 4]) for turn, one in enumerate(found))


def test_prediction_sees_training_mode_at_no_moment(detector: Detector) -> None:
    modes: list[tuple[bool, bool]] = []
    detector.register_forward_hook(lambda module, *_: modes.append((module.training, detector.training)))
    detector.predict(_pictures(1), threshold=0)
    assert modes == [(False, True)], "the pass runs in eval mode while the detector stays in training mode"


def test_training_after_prediction_is_bit_equal(build_small: Callable[..., Detector]) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses = []
    for predicts in (False, True):
        detector = build_small()
        if predicts:
            detector.predict(_pictures(2), "1/2", threshold=0)
        torch.manual_seed(1)
        output = detector(images)
        sum(features.sum() for features in output.neck_features).backward()
        gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
        losses.append([*gradients, *detector.state_dict().values()])
    assert len(losses[0]) == len(losses[1]) > 20
    assert all(torch.equal(one, two) for one, two in zip(*losses, strict=True))


# -- forms of images -------------------------------------------------------------------------------------


def _encoded(picture: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture
def small_eval(build_small: Callable[..., Detector]) -> Detector:
    return build_small().eval()


def test_every_form_of_one_image_gives_the_same_detections(small_eval: Detector, tmp_path: Path) -> None:
    array = _pictures(1)[0]
    picture, tensor = Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)
    picture.save(tmp_path / "a.png")
    expected = small_eval.predict(array, threshold=0)[0]
    assert len(expected) == 10
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), _encoded(picture), picture, array[::1], tensor]
    found = small_eval.predict(forms, threshold=0, batch_size=np.int64(1))
    found += small_eval.predict(iter(forms), threshold=0, batch_size=1)
    for batch in (array[None], tensor[None], tensor[None].float() / 255):
        found += small_eval.predict(batch, threshold=0)
    assert len(found) == 2 * len(forms) + 3
    for one in found[:-1]:
        assert _equal(one, expected)
    torch.testing.assert_close(found[-1].scores, expected.scores, atol=1e-4, rtol=0)
    assert small_eval.predict([]) == []
    with (tmp_path / "a.png").open("rb") as opened:
        assert _equal(small_eval.predict(opened, threshold=0)[0], expected)
    with NamedTemporaryFile() as uploaded, SpooledTemporaryFile() as spooled:
        for file in (uploaded, spooled):
            file.write(_encoded(picture))
            file.seek(0)
            assert _equal(small_eval.predict(file, threshold=0)[0], expected)
    assert _equal(small_eval.predict([BytesIO(_encoded(picture))], threshold=0)[0], expected)


def test_pillow_pictures_are_converted_and_turned_as_their_files_are(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = grey.getexif()
    exif[274] = 6  # turned by 90 degrees
    grey.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        found = to_image(opened)
    assert tuple(found.shape) == (3, 4, 3)
    assert torch.equal(found, read_image(tmp_path / "a.png"))
    sixteen = Image.fromarray(np.array([[0, 40000, 65535]], dtype=np.uint16))
    assert to_image(sixteen)[0].tolist() == [[0, 156, 255]]  # 40000 / 257 = 155.6


def test_half_precision_and_rounding_beyond_one_are_taken() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 1.0005]).half().repeat(3, 1, 1)
    assert to_image(values).dtype == torch.float32


IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
REFUSED = [
    (255 * IMAGE, r"values from .* expected \[0, 1\]; divide it by 255, or give it as uint8"),
    ((IMAGE - 0.45) / 0.22, r"expected \[0, 1\]; undo its normalization"),
    (IMAGE * 1.1, r"expected \[0, 1\]; clamp what interpolation left outside"),
    (torch.full((3, 8, 8), float("nan")), r"values from nan to nan, expected \[0, 1\]"),
    (torch.rand(8, 9, 3), r"expected \[3, H, W\]; move the channels to the front with image.permute"),
    (np.zeros((8, 8), np.uint8), "repeat a grey image with np.stack"),
    (np.zeros((8, 8, 4), np.uint8), r"drop the transparency with image\[\.\.\., :3\]"),
    (np.zeros((8, 8, 3)), r"convert values in \[0, 1\] with"),
    (b"not an image", "the image in memory: not a readable image"),
    (None, "got None as an image; give a path, an image file opened as binary or its bytes"),
    ({"image": 1}, "got an object of type dict as an image"),
    (7, "got an object of type int"),
    ([None], "got None as an image"),
    ("https://localhost/a.png", r"https://localhost/a\.png: the address of an image; allow .* urls=True"),
]


@pytest.mark.parametrize(("image", "message"), REFUSED)
def test_other_images_are_refused_with_the_remedy(small_eval: Detector, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_eval.predict(image)


def test_a_bad_image_of_several_is_named_by_its_place(small_eval: Detector) -> None:
    with pytest.raises(ValueError, match=r"image 2 of 3 \(counted from 0\): got a float tensor image"):
        small_eval.predict([IMAGE, IMAGE, 255 * IMAGE])


@pytest.mark.parametrize("batch_size", [-1, 0, 2.5])
def test_a_batch_size_below_one_is_refused(small_eval: Detector, batch_size: Any) -> None:
    with pytest.raises(ValueError, match=rf"got batch_size={batch_size}, expected a whole number from 1"):
        small_eval.predict(IMAGE, batch_size=batch_size)


@pytest.mark.parametrize("threshold", ["0.5", None, [0.5], 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(small_eval: Detector, threshold: Any) -> None:
    message = f"got threshold={threshold!r}, expected a number from 0 to 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        small_eval.predict(IMAGE, threshold=threshold)


def test_a_threshold_may_be_a_tensor_without_axes(small_eval: Detector) -> None:
    shares = (0.25, torch.tensor(0.25), np.array(0.25))
    found = [small_eval.predict(IMAGE, threshold=share)[0] for share in shares]
    assert _equal(found[0], found[1])
    assert _equal(found[0], found[2])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_refused_with_the_remedy(
    small_eval: Detector, kind: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=rf'weights are {kind}, .* within torch\.autocast\("cpu", {kind}\)'):
        deepcopy(small_eval).to(kind).predict(IMAGE)
    with torch.autocast("cpu", torch.bfloat16):
        small_eval.predict(IMAGE)


def test_addresses_are_fetched_on_request() -> None:
    picture = Image.fromarray(_pictures(1)[0])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/a.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(_encoded(picture) if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert torch.equal(to_image(f"{address}/a.png", urls=True), to_image(picture))
        with pytest.raises(ImageError, match=r"/gone\.png: cannot be fetched \(HTTP Error 404"):
            to_image(f"{address}/gone.png", urls=True)
        server.shutdown()
