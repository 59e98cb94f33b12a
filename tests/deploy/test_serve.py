"""The HTTP API: what is detected, what is refused and in which words, batches, and counters."""

import asyncio
import json
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import BOXES, DEPTHS, write_bundle
from served import get, png, post, post_form

from anydepth.deploy import load
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.serve.api import DetectionApi, DetectorSource, Picture, Refusal, TimedDetector
from anydepth.deploy.serve.measured import measure_missing, read_measured_bundle
from anydepth.deploy.serve.metrics import CountingMiddleware, Metrics, answer_headers
from anydepth.deploy.serve.requests import Job
from anydepth.deploy.serve.server import ServerError, ServerOptions
from anydepth.measurement import Measurement
from anydepth.pictures.reading import decode_picture

JPEG = next((Path(__file__).parents[2] / "src/anydepth/data/sample/images/val").glob("*.jpg")).read_bytes()


# Twice the billions of multiply-accumulates that conftest.py writes into the bundle.
GFLOPS = {"full": 3.0, "a@1": 2.4, "minimal": 2.0}


def expected(folder: Path, data: bytes, depth: str, threshold: float) -> list[dict[str, Any]]:
    """Detections of the loader, in the API's words."""
    (found,) = load(folder, threads=1).predict(data, depth, threshold)
    return [
        {
            "label": label,
            "class_name": found.class_names[label],
            "score": score,
            "box_xyxy": pytest.approx(box, abs=0.006),
        }
        for label, score, box in zip(
            found.labels.tolist(),
            [pytest.approx(score, abs=1e-4) for score in found.scores.tolist()],
            found.boxes_xyxy.tolist(),
            strict=True,
        )
    ]


# Detections.


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_answers_with_what_the_loader_detects(server_address: str, served_bundle: Path, depth: str):
    wanted = expected(served_bundle, JPEG, depth, 0.3)
    assert wanted
    for status, body in (
        post_form(server_address, image=JPEG, depth=depth.encode(), threshold=b"0.3"),
        post(server_address, JPEG, f"?depth={depth}&threshold=0.3"),
    ):
        assert status == 200
        assert body["depth"] == depth
        assert body["detections"] == wanted
        assert (body["width"], body["height"], body["batch"], body["gflops"]) == (320, 320, 1, GFLOPS[depth])
        assert body["latency_ms"] > 0


def test_without_fields_depth_is_full_and_the_lowest_score_a_half(server_address: str, served_bundle: Path):
    status, body = post(server_address, JPEG)
    assert (status, body["depth"]) == (200, "full")
    assert body["detections"] == expected(served_bundle, JPEG, "full", 0.5)


def test_a_budget_chooses_the_depth(server_address: str):
    # The hand-made depths have an AP of 25, 20 and 10: 80 % of the best is 20.
    for query in ("?depth=>=80%25ap", "?depth=%3E%3D80%25ap"):
        status, body = post(server_address, JPEG, query)
        assert (status, body["depth"]) == (200, "a@1")
    assert post_form(server_address, image=JPEG, depth=b"<=2.9gflops")[1]["depth"] == "a@1"


def test_it_describes_its_depths_and_says_that_it_is_ready(server_address: str, served_bundle: Path):
    assert get(server_address, "/health") == (200, b"ok")
    model = json.loads(get(server_address, "/info")[1])["model"]
    assert model["class_names"][0] == "cat"
    assert [(one["depth"], one["gflops"], one["ap"]) for one in model["depths"]] == [
        ("full", 3.0, 0.25),
        ("a@1", 2.4, 0.2),
        ("minimal", 2.0, 0.1),
    ]
    # Where the bundle lies is nobody's business.
    assert str(served_bundle) not in json.dumps(model)


# Refusals.

CUT = JPEG[: len(JPEG) // 2]


def _chunk(kind: bytes, content: bytes) -> bytes:
    length, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return length + kind + content + check


# A file of 100 bytes with a header of 3.6 billion pixels, more than Pillow opens at all.
BOMB = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(bytes(100))),
    )
)


@pytest.mark.parametrize(
    ("body", "query", "status", "message"),
    [
        (b"/etc/passwd", "", 415, "11 bytes that are not an image .* Paths and addresses are not opened"),
        (b"http://127.0.0.1/a.png", "", 415, "not an image"),
        (b'{"image": "/etc/passwd"}', "", 415, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "", 415, "not an image"),
        (b"", "", 400, "got no image; send the content"),
        (bytes(100_001), "", 413, "got 100,001 bytes, expected at most 100,000"),
        # 400 x 501 is more than the limit of 200,000 pixels, and a file of 2 kB.
        (png(501, 400), "", 413, "400 x 501 pixels, expected at most 200,000"),
        (BOMB, "", 413, "pixels, expected at most .*, because it may be a decompression bomb"),
        (CUT, "", 422, "truncated"),
        (JPEG, "?depth=1/5", 422, "got depth='1/5', expected one of full, a@1, minimal, or a budget such as"),
        (JPEG, "?depth=../../etc", 422, "expected one of full, a@1, minimal"),
        (JPEG, f"?depth={'a' * 201}", 422, "got depth of 201 characters, expected at most 200"),
        (JPEG, "?depth=<=8apples", 422, "expected one of <=8ms, <=120mb, <=40gflops or >=95%ap"),
        (JPEG, "?depth=<=1gflops", 422, r"no depth is within the budget <=1gflops.*\nfull +3.00"),
        (JPEG, "?depth=<=8ms", 422, "anydepth-benchmark BUNDLE engine=onnxruntime"),
        (JPEG, "?threshold=2", 422, "got threshold='2', expected a number from 0 to 1"),
        (JPEG, "?threshold=nan", 422, "from 0 to 1"),
        (JPEG, "?threshold=many", 422, "got threshold='many'"),
        (JPEG, "?dept=full", 422, "got the field 'dept', expected image, depth, threshold"),
        (JPEG, "?image=/etc/passwd", 400, "got an image in the address"),
        (JPEG, "?depth=full&depth=minimal", 400, "got a field twice"),
    ],
)
def test_bad_requests_are_told_what_came_and_what_is_allowed(
    server_address: str, served_bundle: Path, body: bytes, query: str, status: int, message: str
):
    found, answer = post(server_address, body, query)
    assert found == status
    assert re.search(message, answer["detail"], re.DOTALL)
    assert str(served_bundle) not in answer["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"image": b"/etc/passwd"}, 415, "Paths and addresses are not opened"),
        ({"depth": b"full"}, 400, "got no image"),
        ({"image": JPEG, "path": b"/etc/passwd"}, 422, "got the field 'path', expected image"),
        ({"image": JPEG, "depth": b"\xff"}, 422, "expected one of full"),
    ],
)
def test_bad_forms_are_refused(server_address: str, fields: dict[str, bytes], status: int, message: str):
    found, answer = post_form(server_address, **fields)
    assert (found, message in answer["detail"]) == (status, True)


def test_broken_forms_are_refused(server_address: str):
    for boundary in ("", "; boundary=other", f"; boundary={'b' * 71}"):
        status, answer = post(server_address, JPEG, Content_Type=f"multipart/form-data{boundary}")
        assert status == 400
        assert "curl -F image=@photo.jpg" in answer["detail"]


def test_a_body_of_unknown_length_is_cut_at_the_limit(server_address: str):
    def chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield bytes(10_000)

    status, answer = post(server_address, chunks(), Content_Type="image/png")  # type: ignore[arg-type]
    assert (status, "got more, expected at most 100,000 bytes" in answer["detail"]) == (413, True)


def test_on_the_loopback_it_answers_to_no_foreign_name(server_address: str):
    # A page of somebody else whose name leads to this machine would read the answers otherwise.
    assert get(server_address, "/info", Host="evil.example")[0] == 400
    port = server_address.rpartition(":")[2]
    assert get(server_address, "/info", Host=f"localhost:{port}")[0] == 200


# Batches.


@pytest.fixture
def api(served_bundle: Path) -> DetectionApi:
    api = DetectionApi(DetectorSource(served_bundle, options=EngineOptions(threads=1)))
    api.setup("cpu")
    return api


def answers(api: DetectionApi, jobs: list[Job]) -> list[tuple[int, dict[str, Any]]]:
    """Answers of one batch, without its times, as LitServe's loop makes them."""
    outputs = api.unbatch(api.predict(api.batch([api.decode_request(job) for job in jobs])))
    found = []
    for response in map(api.encode_response, outputs):
        body = json.loads(bytes(response.body))
        found.append(
            (response.status_code, {k: v for k, v in body.items() if k not in ("latency_ms", "batch")})
        )
    return found


@pytest.mark.parametrize(
    ("exported", "most", "expected"), [(None, 8, [1, 1, 1, 2, 2, 2]), (None, 1, [1, 1, 1]), (3, 8, [3, 3, 3])]
)
def test_a_worker_has_run_passes_of_the_sizes_that_come(
    exported: int | None, most: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    passes: list[int] = []
    original = TimedDetector._run

    def counted(self: TimedDetector, images: Any, entry: Any, threshold: float) -> Any:
        passes.append(len(images))
        return original(self, images, entry, threshold)

    monkeypatch.setattr(TimedDetector, "_run", counted)
    source = DetectorSource(
        write_bundle(tmp_path / "bundle", batch=exported), options=EngineOptions(threads=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DetectionApi(source, max_batch=most).setup("cpu")
    assert passes == expected


def test_openvino_compiles_nothing_after_the_start(served_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    engine = pytest.importorskip("anydepth.deploy.runtime.engines.openvino_engine")
    api = DetectionApi(DetectorSource(served_bundle, "openvino", EngineOptions(threads=1)))
    api.setup("cpu")

    def refuse(*_: object) -> None:
        raise AssertionError("compiled while requests wait")

    monkeypatch.setattr(engine.OpenVinoSession, "_compile", refuse)
    for count in (1, 2, 5):
        found = answers(api, [Job(png(40, 60, seed=index), "minimal", 0.0) for index in range(count)])
        assert [status for status, _ in found] == [200] * count


def test_a_batch_of_mixed_depths_gives_what_single_requests_give(
    api: DetectionApi, monkeypatch: pytest.MonkeyPatch
):
    passes: list[tuple[int, str]] = []
    original = TimedDetector._run

    def run(self: TimedDetector, images: np.ndarray, entry: Any, threshold: float) -> Any:
        passes.append((len(images), str(entry.config)))
        return original(self, images, entry, threshold)

    monkeypatch.setattr(TimedDetector, "_run", run)
    jobs = [
        Job(png(40 + number, 60, number), DEPTHS[number % 3], (0.1, 0.6)[number % 2]) for number in range(7)
    ]
    jobs.insert(3, Job(CUT, "full", 0.5))
    together = answers(api, jobs)
    # 0, 3, 6 at full; 1, 4 at a@1; 2, 5 at minimal; the damaged picture is in no pass.
    assert passes == [(3, "full"), (2, "a@1"), (2, "minimal")]
    assert together == [answers(api, [job])[0] for job in jobs]
    assert [status for status, _ in together] == [200] * 3 + [422] + [200] * 4
    assert len({json.dumps(body["detections"]) for _, body in together[:3]}) == 3
    # The thresholds differ within a pass, and each counts.
    assert {len(together[0][1]["detections"]), len(together[4][1]["detections"])} != {BOXES}


def test_requests_at_once_are_answered_each_with_its_own(server_address: str, served_bundle: Path):
    pictures = [png(50, 50, seed) for seed in range(6)]
    queries = [f"?depth={DEPTHS[index % 3]}&threshold=0" for index in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda picture, query: post(server_address, picture, query), pictures, queries))
    for index, (status, body) in enumerate(found):
        assert (status, body["depth"]) == (200, DEPTHS[index % 3])
        assert body["detections"] == expected(served_bundle, pictures[index], DEPTHS[index % 3], 0.0)
        assert 1 <= body["batch"] <= 4


def test_a_network_that_gives_no_numbers_is_an_error_of_the_server(tmp_path: Path):
    api = DetectionApi(DetectorSource(write_bundle(tmp_path / "bundle", fill=np.nan), memory_limit=1.0))
    api.setup("cpu")
    (found,) = api.predict([Picture(decode_picture(JPEG, "it"), "full", 0.5)])
    assert isinstance(found, Refusal)
    assert (found.status, "NaN" in found.message) == (500, True)


# Counters.


def counters(address: str) -> dict[str, float]:
    text = get(address, "/metrics")[1].decode()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    }


def test_requests_errors_and_latency_are_counted(server_address: str):
    post(server_address, JPEG, "?depth=minimal")
    before = counters(server_address)
    for depth in ("minimal", "minimal", "full"):
        post(server_address, JPEG, f"?depth={depth}")
    post(server_address, b"nothing")
    after = counters(server_address)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['anydepth_requests_total{status="200"}'] == 3
    assert grown['anydepth_requests_total{status="415"}'] == 1
    assert grown["anydepth_errors_total"] == 1
    assert grown['anydepth_latency_seconds_count{depth="minimal"}'] == 2
    assert grown['anydepth_latency_seconds_bucket{depth="minimal",le="+Inf"}'] == 2
    assert grown['anydepth_latency_seconds_count{depth="full"}'] == 1
    assert grown['anydepth_latency_seconds_sum{depth="minimal"}'] > 0
    assert after["anydepth_waiting_requests"] == 0


def test_a_bucket_counts_all_that_took_no_longer():
    metrics = Metrics()
    for milliseconds in (0.5, 3, 4, 400, 60_000):
        metrics.latency['a"b'].add(milliseconds / 1000)
    lines = dict(line.rpartition(" ")[::2] for line in metrics.text().splitlines() if line[0] != "#")
    name = 'anydepth_latency_seconds_bucket{depth="a\\"b",le="%s"}'
    found = [lines[name % bound] for bound in ("0.001", "0.0025", "0.005", "0.25", "0.5", "5", "+Inf")]
    assert found == ["1", "1", "3", "3", "4", "4", "5"]
    assert float(lines['anydepth_latency_seconds_sum{depth="a\\"b"}']) == pytest.approx(60.4075)


def test_more_requests_than_may_wait_are_refused():
    async def scene() -> tuple[Metrics, list[int]]:
        metrics, go, statuses = Metrics(), asyncio.Event(), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            headers = [(k.encode(), v.encode()) for k, v in answer_headers("none@ü", 2.0).items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        counting = CountingMiddleware(app, path="/predict", metrics=metrics, limit=2)
        scope = {"type": "http", "path": "/predict"}
        first = [asyncio.create_task(counting(scope, None, send)) for _ in range(2)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await counting(scope, None, send)  # type: ignore[arg-type]
        go.set()
        await asyncio.gather(*first)
        return metrics, statuses

    metrics, statuses = asyncio.run(scene())
    assert statuses == [503, 200, 200]
    assert (metrics.requests, metrics.waiting) == ({503: 1, 200: 2}, 0)
    assert metrics.latency["none@ü"].count == 2


# Settings.


def test_latency_is_measured_where_the_bundle_does_not_know_it(
    served_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("anydepth.deploy.serve.measured._SECONDS", 1e-9)
    options = EngineOptions(threads=1)
    bundle = read_measured_bundle(served_bundle, {})
    measured = measure_missing(bundle, "onnxruntime", options)
    assert list(measured) == list(DEPTHS)
    assert all(isinstance(one, Measurement) for one in measured.values())
    known = read_measured_bundle(served_bundle, measured)
    assert measure_missing(known, "onnxruntime", options) == {}
    detector = DetectorSource(served_bundle, options=options, measured=measured).load()
    assert str(detector.resolve("<=10000ms").config) == "full"
    # In memory alone.
    assert read_measured_bundle(served_bundle, {}).depths == bundle.depths


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "192.0.2.1"}, "got host=192.0.2.1, expected 127.0.0.1"),
        ({"port": 80}, "got port=80, expected 1024 to 65535"),
        ({"workers": 0}, "got workers=0, expected more than 0"),
        ({"workers": 100_000}, "got workers=100000, expected at most 128: each is a process with all depths"),
        ({"batch": 0}, "got batch=0"),
        ({"wait_ms": 30_000}, "got wait=30000, expected milliseconds from 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ServerError, match=re.escape(message)):
        ServerOptions(DetectorSource(tmp_path), **settings)
