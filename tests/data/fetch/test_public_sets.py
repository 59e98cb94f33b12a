"""Public data sets by name, fetched from a server on this machine."""

import hashlib
import io
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anydepth.config.compose import compose, instantiate
from anydepth.data.coco.layout import find_split
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.errors import DataError
from anydepth.data.fetch import public_sets
from anydepth.data.fetch.archives import Archive
from anydepth.data.fetch.download import DownloadError
from anydepth.data.fetch.public_sets import PUBLIC_SETS, dataset_root, images_digest
from failing_server import FailingServer, serve

BCCD = "BCCD_Dataset-1.0/BCCD"
XML = (
    "<annotation><object><name>RBC</name><bndbox><xmin>2</xmin><ymin>3</ymin>"
    "<xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"
)


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(seeds: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, seed in seeds.items():
            archive.writestr(f"{BCCD}/JPEGImages/{name}.jpg", jpeg(seed))
            archive.writestr(f"{BCCD}/Annotations/{name}.xml", XML)
        for split, name in zip(("train", "val", "test"), seeds, strict=True):
            archive.writestr(f"{BCCD}/ImageSets/Main/{split}.txt", f"{name}\n")
        archive.writestr("BCCD_Dataset-1.0/readme.md", "not unpacked")
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with serve({"/v1.0.zip": packed({"a": 1, "b": 2, "c": 3})}) as running:
        yield running


@pytest.fixture(autouse=True)
def _small_bccd(server: FailingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry of BCCD with the address, size and checksum of a small archive."""
    body = server.files["/v1.0.zip"]
    archive = Archive(server.url("/v1.0.zip"), len(body), hashlib.sha256(body).hexdigest(), 100_000)
    monkeypatch.setitem(PUBLIC_SETS, "bccd", replace(PUBLIC_SETS["bccd"], archives=(archive,)))


def test_set_is_fetched_once_and_then_used_without_a_network(server: FailingServer, tmp_path: Path) -> None:
    root = dataset_root("bccd", tmp_path / "sets" / "bccd")
    assert len(server.ranges) == 1
    assert dataset_root("bccd", str(root)) == root

    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=root)
    assert data.class_names == ("RBC",)
    assert {split: len(data.index(split)) for split in ("train", "val", "test")} == {
        "train": 1,
        "val": 1,
        "test": 1,
    }
    boxes, _ = data.index("train").training_boxes(0)
    assert boxes.tolist() == [[1, 2, 9, 8]]
    assert len(server.ranges) == 1
    visible = {path.name for path in root.parent.iterdir() if not path.name.endswith(".lock")}
    assert visible == {"bccd"}


def test_set_that_is_there_needs_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = dataset_root("bccd", tmp_path / "bccd")
    monkeypatch.setattr(public_sets, "fetch", None)

    assert dataset_root("bccd", root) == root


def test_licence_and_home_are_shown_before_the_set_is_fetched(
    server: FailingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [{"status": 404}]

    with pytest.raises(DownloadError, match="answered 404"):
        dataset_root("bccd", tmp_path / "bccd")
    shown = capsys.readouterr().out
    assert "licence: MIT" in shown
    assert "https://github.com/Shenggan/BCCD_Dataset" in shown


def test_processes_that_ask_at_once_fetch_once(server: FailingServer, tmp_path: Path) -> None:
    roots: list[Path] = []
    threads = [
        threading.Thread(target=lambda: roots.append(dataset_root("bccd", tmp_path / "bccd")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(roots) == 3
    assert len(server.ranges) == 1


def test_repacked_archive_is_accepted_for_its_images(
    server: FailingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = dataset_root("bccd", tmp_path / "reference")
    folder = tmp_path / "images"
    for split in ("train", "val", "test"):
        shutil.copytree(find_split(reference, split).image_root, folder, dirs_exist_ok=True)
    recorded = replace(PUBLIC_SETS["bccd"], images_sha256=images_digest(folder))
    monkeypatch.setitem(PUBLIC_SETS, "bccd", recorded)
    buffer = io.BytesIO(server.files["/v1.0.zip"])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"packed anew"
    server.files["/v1.0.zip"] = buffer.getvalue()

    assert dataset_root("bccd", tmp_path / "bccd") == tmp_path / "bccd"


def test_other_images_are_refused_and_nothing_is_left_but_the_next_try(
    server: FailingServer, tmp_path: Path
) -> None:
    right = server.files["/v1.0.zip"]
    server.files["/v1.0.zip"] = packed({"a": 1, "b": 2, "c": 4})

    with pytest.raises(DownloadError, match=r"neither the archive .* nor the images in it .* try again"):
        dataset_root("bccd", tmp_path / "bccd")
    assert not (tmp_path / "bccd").exists()

    server.files["/v1.0.zip"] = right
    assert dataset_root("bccd", tmp_path / "bccd").is_dir()


def test_folder_with_something_else_is_refused(server: FailingServer, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")

    with pytest.raises(DataError, match="not an empty folder"):
        dataset_root("bccd", tmp_path)
    assert server.ranges == []


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name=bcd, expected one of bccd, pets, voc"):
        dataset_root("bcd", tmp_path)


@pytest.mark.parametrize("name", sorted(PUBLIC_SETS))
def test_every_set_has_a_configuration_that_fetches_it_or_reads_a_given_root(name: str) -> None:
    fetched = compose("evaluate", [f"data={name}"])
    given = compose("evaluate", [f"data={name}", "data.root=/given"])

    assert dict(fetched.data.root) == {
        "_target_": "anydepth.data.fetch.public_sets.dataset_root",
        "name": name,
        "folder": f"datasets/{name}",
    }
    assert given.data.root == "/given"


def test_configuration_fetches_when_it_is_built(
    server: FailingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose("train", ["data=bccd", "data.num_workers=0"])

    data: CocoDataModule = instantiate(config.data)

    assert data.class_names == ("RBC",)
    assert (tmp_path / "datasets" / "bccd" / "images" / "train" / "a.jpg").is_file()


def test_images_of_bccd_have_the_recorded_digest(shared_data: Path) -> None:
    assert images_digest(shared_data / "bccd" / "images") == PUBLIC_SETS["bccd"].images_sha256
