"""Bundles of the hub: what is downloaded, that both engines read it, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hand_made import SIDE, outputs_of, write_bundle

from anydepth.deploy import load
from anydepth.deploy.runtime import hub_bundle
from anydepth.deploy.runtime.bundle import BundleError
from anydepth.deploy.runtime.hub_bundle import find_bundle
from anydepth.hub import HubError
from hub_server import HubServer, serve_hub

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with a bundle ``ann/boats``, and a file in its repository that is not of the bundle."""
    monkeypatch.chdir(tmp_path)
    bundle = write_bundle(tmp_path / "local")
    files = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with serve_hub(monkeypatch, tmp_path / "home") as running:
        running.repositories["ann/boats"] = [{**files, "modeling.py": b"raise SystemExit"}]
        yield running


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_both_engines_detect_with_a_download(engine: str, server: HubServer, tmp_path: Path):
    pytest.importorskip(engine)
    detector = load("ann/boats", engine=engine, threads=1, cache_dir=tmp_path / "cache")
    images = np.random.default_rng(0).random((2, 3, SIDE, SIDE), np.float32)
    for depth in detector.depths:
        boxes, scores = detector.run(images, depth)
        # The two matrix products of the graph, computed with numpy.
        np.testing.assert_allclose(boxes, outputs_of(images, depth)[0], atol=1e-5)
        np.testing.assert_allclose(scores, outputs_of(images, depth)[1], atol=1e-5)
    files = sorted(path.name for path in detector.bundle.folder.iterdir())
    assert files == ["a@1.onnx", "bundle.json", "full.onnx", "minimal.onnx", "weights.bin"]
    assert sorted(server.downloaded) == files
    assert not any(path.is_symlink() for path in detector.bundle.folder.iterdir())


def test_a_download_takes_its_space_once_and_keeps_what_is_written_into_it(server: HubServer, tmp_path: Path):
    folder = find_bundle("ann/boats", cache_dir=tmp_path / "cache")
    assert (folder / "weights.bin").stat().st_nlink == 2
    described = json.loads((folder / "bundle.json").read_text())
    described["class_names"] = ["ship", "boat"]
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps(described))
    again = load("ann/boats", cache_dir=tmp_path / "cache")
    assert again.class_names == ("ship", "boat")
    assert len(server.downloaded) == 5


def test_without_hard_links_files_are_copied(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(source: Path, target: Path) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(hub_bundle.os, "link", refuse)
    folder = find_bundle("ann/boats", cache_dir=tmp_path / "cache")
    assert not (folder / "weights.bin").is_symlink()
    assert (folder / "weights.bin").read_bytes() == (tmp_path / "local" / "weights.bin").read_bytes()


def test_a_connection_is_needed_once(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = find_bundle("ann/boats", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_bundle("ann/boats", cache_dir=tmp_path / "cache") == folder
    with pytest.raises(HubError, match=r"runs/boats: no such local path, .* not in the cache"):
        find_bundle("runs/boats", cache_dir=tmp_path / "cache")


def test_local_folders_win(server: HubServer, tmp_path: Path):
    write_bundle(tmp_path / "mine", depths=["full"])
    (tmp_path / "ann").mkdir()
    (tmp_path / "mine").rename(tmp_path / "ann" / "boats")
    assert load("ann/boats").depths == ("full",)
    assert server.downloaded == []
    with pytest.raises(ValueError, match="got revision='v1' for ann/boats, which is read as a local path"):
        load("ann/boats", revision="v1")
    with pytest.raises(BundleError, match="cats: no such folder"):
        load(Path("ann/cats"))


def test_a_description_that_is_not_allowed_stops_the_download(server: HubServer, tmp_path: Path):
    files = server.repositories["ann/boats"][0]
    described = json.loads(files["bundle.json"])
    described["files"]["../escape.bin"] = described["files"]["weights.bin"]
    files["bundle.json"] = json.dumps(described).encode()
    with pytest.raises(BundleError, match=r"got a file '\.\./escape\.bin', expected the name of a file"):
        load("ann/boats", cache_dir=tmp_path / "cache")
    assert server.downloaded == ["bundle.json"]


def test_files_of_another_content_or_that_are_missing_are_refused(server: HubServer, tmp_path: Path):
    files = server.repositories["ann/boats"][0]
    files["weights.bin"] = files["weights.bin"][::-1]
    del files["minimal.onnx"]
    detector = load("ann/boats", cache_dir=tmp_path / "cache")
    with pytest.raises(BundleError, match=r"minimal\.onnx: missing; the bundle is incomplete"):
        detector.open("minimal")
    with pytest.raises(BundleError, match=r"weights\.bin: altered since the export"):
        detector.open("full")


def test_a_repository_without_a_bundle_is_named(server: HubServer):
    server.repositories["ann/text"] = [{"model.bin": b""}]
    with pytest.raises(HubError, match=r"it holds no bundle\.json, so that anydepth-export did not write it"):
        load("ann/text")
