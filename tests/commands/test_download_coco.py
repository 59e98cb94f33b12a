"""``anydepth-data download``, from a server on this machine to the layout that ``data=coco`` reads."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anydepth.commands import download_coco
from anydepth.commands.data import main
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.fetch.archives import Archive
from failing_server import FailingServer, serve


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def annotations(ids: range) -> bytes:
    return json.dumps(
        {
            "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": 32, "width": 48} for i in ids],
            "annotations": [{"id": i, "image_id": i, "category_id": 90, "bbox": [1, 2, 9, 8]} for i in ids],
            "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        }
    ).encode()


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[FailingServer]:
    test_json = json.dumps(json.loads(annotations(range(9, 10))) | {"annotations": []}).encode()
    files = {
        "/train2017.zip": {f"train2017/{i:012}.jpg": jpeg(i) for i in range(1, 4)},
        "/val2017.zip": {f"val2017/{i:012}.jpg": jpeg(i) for i in range(5, 7)},
        "/test2017.zip": {f"test2017/{i:012}.jpg": jpeg(i) for i in range(9, 11)},
        "/annotations_trainval2017.zip": {
            "annotations/instances_train2017.json": annotations(range(1, 4)),
            "annotations/instances_val2017.json": annotations(range(5, 7)),
            "annotations/captions_val2017.json": b"{}",
        },
        "/image_info_test2017.zip": {
            "annotations/image_info_test-dev2017.json": test_json,
            "annotations/image_info_test2017.json": test_json,
        },
    }
    with serve({path: zipped(members) for path, members in files.items()}) as running:
        yield running


def small(archive: Archive, server: FailingServer, counts: Mapping[str, int]) -> Archive:
    """The published entry with the address, size and checksum of the small archive."""
    body = server.files[f"/{archive.name}"]
    contents = {path: counts.get(path, 1) for path in archive.contents}
    digest = hashlib.sha256(body).hexdigest()
    return Archive(server.url(f"/{archive.name}"), len(body), digest, 100_000, contents)


@pytest.fixture
def small_archives(server: FailingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command downloads small archives from the server instead of COCO's."""
    counts = {"train2017": 3, "val2017": 2, "test2017": 2}
    archives = {
        split: tuple(small(archive, server, counts) for archive in parts)
        for split, parts in download_coco.ARCHIVES.items()
    }
    monkeypatch.setattr(download_coco, "ARCHIVES", archives)
    monkeypatch.setattr(download_coco, "ANNOTATIONS", small(download_coco.ANNOTATIONS, server, counts))


@pytest.mark.usefixtures("small_archives")
def test_result_is_what_the_data_module_reads(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    assert main(["download", "--folder", str(folder)]) == 0

    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=folder)
    assert (len(data.index("train")), len(data.val_index)) == (3, 2)
    assert data.category_ids == (1, 90)
    assert len(list(data.val_dataloader())) == 2
    visible = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    assert visible == {"annotations", "train2017", "val2017"}


@pytest.mark.usefixtures("small_archives")
def test_terms_are_shown_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["download", "--folder", str(tmp_path), "--splits", "val"])

    shown = capsys.readouterr().out
    assert "Creative Commons Attribution 4.0" in shown
    assert "Flickr" in shown
    assert shown.index("Flickr") < shown.index("val2017.zip")


@pytest.mark.usefixtures("small_archives")
def test_splits_fetch_only_their_archives(server: FailingServer, tmp_path: Path) -> None:
    assert main(["download", "--folder", str(tmp_path), "--splits", "test", "--keep-archives"]) == 0

    assert len(server.ranges) == 2
    assert (tmp_path / "annotations" / "image_info_test-dev2017.json").exists()
    assert len(list((tmp_path / "test2017").iterdir())) == 2
    assert (tmp_path / "test2017.zip").exists()


@pytest.mark.usefixtures("small_archives")
def test_failure_is_one_line_and_the_next_run_resumes(
    server: FailingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [{}, {"status": 403}]
    assert main(["download", "--folder", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert (tmp_path / "annotations" / "instances_train2017.json").exists()

    assert main(["download", "--folder", str(tmp_path)]) == 0
    assert len(server.ranges) == 4  # Annotations once, the refused one, and each image archive.


def test_published_table_names_each_split_and_the_numbers_of_images() -> None:
    """https://cocodataset.org/#download: 118K, 5K and 41K images; exact numbers from the papers' splits."""
    counts = {
        path: count
        for archives in download_coco.ARCHIVES.values()
        for archive in archives
        for path, count in archive.contents.items()
        if not path.endswith(".json")
    }
    assert counts == {"train2017": 118_287, "val2017": 5_000, "test2017": 40_670}
