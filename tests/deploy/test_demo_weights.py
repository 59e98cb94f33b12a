"""The bundle that the package carries: complete, quick to unpack, and what it claims to be."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hand_made import write_bundle

from anydepth.deploy import load
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.serve import demo_weights
from anydepth.deploy.serve.demo_weights import ARCHIVE, demo_bundle, pack
from anydepth.deploy.serve.page import EXAMPLES

DATA = Path(__file__).parents[2] / "src/anydepth/data/sample"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("cache"))


def test_it_holds_five_depths_in_less_than_four_megabytes(folder: Path):
    assert ARCHIVE.stat().st_size < 4e6
    bundle = read_bundle(folder)
    bundle.check_files(*bundle.files)
    assert [str(entry.config) for entry in bundle.depths] == ["full", "3/4", "1/2", "1/4", "minimal"]
    assert bundle.class_names == ("tree",)


def test_it_finds_trees_at_every_depth(folder: Path):
    detector = load(folder, threads=1)
    for depth in ("full", "minimal"):
        truth = json.loads((DATA / "annotations/instances_val.json").read_text())
        image = next(one for one in truth["images"] if one["file_name"] == EXAMPLES[0])
        boxes = [one["bbox"] for one in truth["annotations"] if one["image_id"] == image["id"]]
        (found,) = detector.predict(DATA / "images/val" / image["file_name"], depth, threshold=0.25)
        # Seen when it was made: 24 detections at both depths of 25 crowns, 96 % of them centred on one.
        centres = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
        inside = [any(x <= cx <= x + w and y <= cy <= y + h for x, y, w, h in boxes) for cx, cy in centres]
        assert 18 <= len(found) <= 30
        assert np.mean(inside) > 0.9


def test_it_is_unpacked_once_and_again_if_something_is_damaged(folder: Path):
    cache, weights = folder.parent, folder / "weights.bin"
    before = weights.stat().st_mtime_ns
    assert demo_bundle(cache) == folder
    assert weights.stat().st_mtime_ns == before
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    assert demo_bundle(cache) == folder
    assert weights.read_bytes() == content
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = demo_bundle()
    assert found.is_relative_to(tmp_path)
    read_bundle(found).check_files("weights.bin")


def test_what_is_packed_is_what_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = read_bundle(write_bundle(tmp_path / "bundle", fill=0.25))
    archives = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for archive in archives:
        pack(bundle, archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    monkeypatch.setattr(demo_weights, "ARCHIVE", archives[0])
    found = demo_bundle(tmp_path / "cache")
    for path in bundle.folder.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        half = archive.getinfo("weights.f16").file_size
    assert half == (bundle.folder / "weights.bin").stat().st_size / 2


def test_weights_that_rounding_would_change_are_refused(tmp_path: Path):
    # A tenth is no sum of a few powers of two.
    bundle = read_bundle(write_bundle(tmp_path / "bundle", fill=0.1))
    with pytest.raises(BundleError, match="not values of float16"):
        pack(bundle, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
