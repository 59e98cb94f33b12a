"""The COCO script, from a server on this machine to the layout that ``data=coco`` reads."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
def tables(script: ModuleType, server: FailingServer) -> dict[str, Any]:
    counts = {"train2017": 3, "val2017": 2, "test2017": 2}
    return {
        "archives": {
            split: tuple(small(archive, server, counts) for archive in archives)
            for split, archives in script.ARCHIVES.items()
        },
        "annotations": small(script.ANNOTATIONS, server, counts),
    }


def test_result_is_what_the_data_module_reads(
    script: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "coco"
    assert script.main(["--folder", str(folder)], **tables) == 0

    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=folder)
    assert (len(data.index("train")), len(data.val_index)) == (3, 2)
    assert data.category_ids == (1, 90)
    assert len(list(data.val_dataloader())) == 2
    visible = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    assert visible == {"annotations", "train2017", "val2017"}


def test_terms_are_shown_before_anything_is_fetched(
    script: ModuleType, tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(["--folder", str(tmp_path), "--splits", "val"], **tables)

    shown = capsys.readouterr().out
    assert "Creative Commons Attribution 4.0" in shown
    assert "Flickr" in shown
    assert shown.index("Flickr") < shown.index("val2017.zip")


def test_splits_fetch_only_their_archives(
    script: ModuleType, tables: dict[str, Any], server: FailingServer, tmp_path: Path
) -> None:
    assert script.main(["--folder", str(tmp_path), "--splits", "test", "--keep-archives"], **tables) == 0

    assert len(server.ranges) == 2
    assert (tmp_path / "annotations" / "image_info_test-dev2017.json").exists()
    assert len(list((tmp_path / "test2017").iterdir())) == 2
    assert (tmp_path / "test2017.zip").exists()


def test_failure_is_one_line_and_the_next_run_goes_on(
    script: ModuleType,
    tables: dict[str, Any],
    server: FailingServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = [{}, {"status": 403}]
    assert script.main(["--folder", str(tmp_path)], **tables) == 1
    assert "error: " in capsys.readouterr().out
    assert (tmp_path / "annotations" / "instances_train2017.json").exists()

    assert script.main(["--folder", str(tmp_path)], **tables) == 0
    assert len(server.ranges) == 4  # Annotations once, the refused one, and each image archive.


def test_published_table_names_each_split_and_the_numbers_of_images(script: ModuleType) -> None:
    """https://cocodataset.org/#download: 118K, 5K and 41K images; exact numbers from the papers' splits."""
    counts = {
        path: count
        for archives in script.ARCHIVES.values()
        for archive in archives
        for path, count in archive.contents.items()
        if not path.endswith(".json")
    }
    assert counts == {"train2017": 118_287, "val2017": 5_000, "test2017": 40_670}
