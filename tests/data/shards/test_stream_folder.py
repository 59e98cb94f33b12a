"""Shards in a folder: equal to the files they were made from, and refused if anything is wrong with them."""

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import MakeCoco
from PIL import Image
from shard_files import Shards, assert_same_samples, flip

from anydepth.data.coco.index import CocoIndex
from anydepth.data.errors import DataError
from anydepth.data.shards.engine import import_engine
from anydepth.data.shards.manifest import StoredFile
from anydepth.data.shards.record import unpack_record
from anydepth.data.shards.source import ShardSource, open_stream
from anydepth.data.shards.writer import write_shards


def test_samples_are_those_of_the_files(shards: Shards) -> None:
    stream = open_stream(shards.folder)
    assert_same_samples(stream.source, shards.index)
    assert stream.source.shard_starts.tolist() == [0, 2, 4, 6, 8, 10]


def test_ground_truth_is_that_of_the_json(shards: Shards) -> None:
    stream = open_stream(shards.folder)
    assert stream.index.to_coco_dict() == shards.index.to_coco_dict()
    assert (stream.categories.ids, stream.categories.names) == ((3, 7), ("cat", "dog"))
    assert [stream.index.file_name(row) for row in range(10)] == [f"{row}.png" for row in range(10)]


def test_pictures_are_turned_as_from_files(make_coco: MakeCoco, tmp_path: Path) -> None:
    files = make_coco(sizes=[(40, 60), (60, 40)])
    for name in ("0.png", "1.png"):
        exif = Image.Exif()
        exif[0x0112] = 6  # Turned by 90 degrees: stored as 40 x 60, meant as 60 x 40.
        with Image.open(files.images / "0.png") as picture:
            picture.copy().save(files.images / f"turned_{name}", exif=exif)
    for entry in files.document["images"]:
        entry["file_name"] = "turned_" + entry["file_name"]
    index = CocoIndex.load(files.rewrite().json_path, files.images)
    write_shards(index, tmp_path / "shards")
    source = open_stream(tmp_path / "shards").source
    assert [tuple(source.read(row).image.shape) for row in (0, 1)] == [(3, 40, 60), (3, 60, 40)]
    assert_same_samples(source, index)


def test_outlines_are_those_of_the_json(make_coco: MakeCoco, tmp_path: Path) -> None:
    """Two rings, none, a crowd region between, and a ring that leaves the picture."""
    box = {"image_id": 100, "category_id": 3, "bbox": [1, 1, 30, 30]}
    rings = [[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30, 20, 30]]
    files = make_coco(
        annotations=[
            box | {"segmentation": rings},
            box | {"segmentation": {"counts": [5], "size": [40, 60]}, "iscrowd": 1},
            box | {"segmentation": []},
            box | {"segmentation": [[1, 1, 500, 1, 9, 9.5]]},
        ]
    )
    index = CocoIndex.load(files.json_path, files.images, outlines=True)
    write_shards(index, tmp_path / "shards")
    source = open_stream(tmp_path / "shards").source
    assert_same_samples(source, index)
    found = source.read(0).outlines
    assert found is not None
    assert found.object_starts.tolist() == [0, 2, 2, 3]
    assert found.points[:3].ravel().tolist() == rings[0]
    assert found.points[-2].tolist() == [60, 1]


def test_the_folder_is_an_ordinary_data_set_of_the_engine(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_engine("streaming")
    monkeypatch.setattr("litdata.helpers._LITDATA_DISABLE_VERSION_CHECK", 1)
    items = list(import_engine("streaming").StreamingDataset(str(shards.folder)))
    assert [unpack_record(bytes(item), row).image_id for row, item in enumerate(items)] == list(
        range(100, 0, -10)
    )


def test_a_source_is_small_when_sent_to_a_process_and_reads_there(shards: Shards) -> None:
    source = open_stream(shards.folder).source
    source.read(0)
    sent = pickle.dumps(source)
    assert len(sent) < 3000
    assert_same_samples(pickle.loads(sent), shards.index)


def test_forked_processes_do_not_disturb_each_other(shards: Shards) -> None:
    source = open_stream(shards.folder).source
    source.read(0)
    loader: torch.utils.data.DataLoader[int] = torch.utils.data.DataLoader(
        _Ids(source),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        sampler=[0, 1, 3, 2] * 20,
    )
    found = [(int(image_id), source.read(1).image_id) for image_id in loader]
    assert found == [(100, 90), (90, 90), (70, 90), (80, 90)] * 20


class _Ids:
    def __init__(self, source: ShardSource) -> None:
        self.source = source

    def __getitem__(self, row: int) -> int:
        return self.source.read(row).image_id

    def __len__(self) -> int:
        return len(self.source)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_reading_keeps_no_shard_open_or_mapped(shards: Shards) -> None:
    source = open_stream(shards.folder).source
    source.read(0)
    before = len([*Path("/proc/self/fd").iterdir()])
    for row in [*range(10)] * 5:
        source.read(row)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert str(shards.folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("row", [-1, 10])
def test_rows_outside_are_refused(shards: Shards, row: int) -> None:
    with pytest.raises(IndexError, match="expected 0 to 9"):
        open_stream(shards.folder).source.read(row)


# -- damaged shards ------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named(shards: Shards) -> None:
    source = open_stream(shards.folder).source
    shards.shard(1).unlink()
    assert source.read(0).image_id == 100
    with pytest.raises(DataError, match=r"shard-00001\.bin: this shard cannot be read .*copy or prepare"):
        source.read(2)


@pytest.mark.parametrize("opened", [False, True])
def test_a_truncated_shard_is_named(shards: Shards, opened: bool) -> None:
    source = open_stream(shards.folder).source
    if opened:
        source.read(2)
    os.truncate(shards.shard(1), shards.shard(1).stat().st_size - 100)
    with pytest.raises(DataError, match=r"shard-00001\.bin: this shard holds .* by the manifest"):
        source.read(3)


def test_no_altered_byte_of_a_shard_gives_a_sample(shards: Shards) -> None:
    """The table of offsets (20 bytes for two records) at every byte, the rest in steps."""
    path, whole = shards.shard(0), shards.shard(0).read_bytes()
    expected = [open_stream(shards.folder).source.read(row).image for row in (0, 1)]
    for place in [*range(20), *range(20, len(whole), 997)]:
        flip(path, place)
        source = open_stream(shards.folder).source
        errors = [error for row in (0, 1) if (error := _error_or_sample(source, row, expected[row]))]
        assert all("shard-00000.bin: this shard cannot be read" in error for error in errors)
        # The count of items is not read, and an end beyond the end of the file changes nothing.
        assert errors or place < 20
        path.write_bytes(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes read in /proc")
def test_reading_an_image_does_not_read_its_whole_shard(make_coco: MakeCoco, tmp_path: Path) -> None:
    files = make_coco(sizes=[(100, 100)] * 40)
    write_shards(CocoIndex.load(files.json_path, files.images), tmp_path / "shards")
    source = open_stream(tmp_path / "shards").source
    source.read(0)
    before = _bytes_read()
    source.read(7)
    assert _bytes_read() - before < 3 * (files.images / "7.png").stat().st_size


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _error_or_sample(source: ShardSource, row: int, expected: torch.Tensor) -> str:
    try:
        image = source.read(row).image
    except DataError as error:
        return str(error)
    assert torch.equal(image, expected)
    return ""


def test_shards_in_each_others_place_are_noticed(shards: Shards) -> None:
    first, second = shards.shard(0).read_bytes(), shards.shard(1).read_bytes()
    assert len(first) == len(second)
    shards.shard(0).write_bytes(second)
    with pytest.raises(DataError, match="got row 2, expected row 0"):
        open_stream(shards.folder).source.read(0)


def test_a_broken_picture_is_named_by_shard_and_id(make_coco: MakeCoco, tmp_path: Path) -> None:
    files = make_coco(sizes=[(40, 60)])
    os.truncate(files.images / "0.png", 200)
    write_shards(CocoIndex.load(files.json_path, files.images), tmp_path / "shards")
    source = open_stream(tmp_path / "shards").source
    with pytest.raises(
        DataError, match=r"shard-00000\.bin: row 0, image id 100: 0\.png: not a readable image"
    ):
        source.read(0)


# -- damaged or hostile lists --------------------------------------------------------------------------------


def test_without_a_manifest_a_folder_is_not_read(shards: Shards) -> None:
    (shards.folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: no such file; give the folder of one split"):
        open_stream(shards.folder)


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", value="webdataset"), "not a manifest of shards"),
        (_set("version", value=2), "in version 1"),
        (_set("images", value=11), "hold 10 images, expected 11 by its count"),
        (_set("images", value=True), "'images' is True"),
        (_set("boxes", value=23), "expected 10 and 23 from manifest.json"),
        (_set("shards", value=[]), "at least one shard"),
        (_set("shards", 0, value=3), "'file' is None"),
        (_set("shards", 1, "file", value="../../etc/passwd"), "shard 1: 'file' is '../../etc/passwd'"),
        (_set("shards", 1, "file", value="shard-00000.bin"), "expected 'shard-00001.bin'"),
        (_set("shards", 1, "bytes", value=2**40), "'bytes' is 1099511627776"),
        (_set("shards", 1, "bytes", value=-1), "'bytes' is -1"),
        (_set("shards", 1, "rows", value=1.5), "'rows' is 1.5"),
        (_set("shards", 1, "sha256", value="0" * 63), "64 hexadecimal digits"),
        (_set("annotations", value=None), "'annotations' is None"),
        (_set("annotations", "file", value="/x.npz"), "expected 'annotations.npz'"),
        (_set("annotations", "sha256", value="0" * 64), "its sha256 is"),
        (_set("categories", value=[]), "'categories' is empty"),
        (_set("categories", 0, "id", value=7), "category ids must be unique"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(
    shards: Shards, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = shards.folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        open_stream(shards.folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\0"])
def test_a_manifest_that_is_not_a_json_is_refused(shards: Shards, text: str) -> None:
    (shards.folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_stream(shards.folder)


@pytest.mark.parametrize(
    "change",
    [
        _set("config", "data_format", value=["pickle"]),
        _set("config", "item_loader", value="ParquetLoader"),
        _set("config", "compression", value="zstd"),
        _set("chunks", 0, "filename", value="../shard-00000.bin"),
    ],
)
def test_an_engine_list_that_requests_anything_else_is_refused(
    shards: Shards, change: Callable[[dict[str, Any]], None]
) -> None:
    path = shards.folder / "index.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"index\.json: does not describe .*pickled items are never read"):
        open_stream(shards.folder)


def _replace_annotations(shards: Shards, **changes: np.ndarray[Any, Any]) -> None:
    """Adapt the manifest, too: an attacker who can alter one file can alter both."""
    path = shards.folder / "annotations.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]
    _fit_manifest(shards)


def _fit_manifest(shards: Shards) -> None:
    found = StoredFile.of(shards.folder / "annotations.npz")
    path = shards.folder / "manifest.json"
    document = json.loads(path.read_text())
    document["annotations"] |= {"bytes": found.size, "sha256": found.sha256}
    path.write_text(json.dumps(document))


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_annotations_are_not_unpickled(shards: Shards, tmp_path: Path) -> None:
    trap = np.empty(24, dtype=object)
    trap[:] = _Trap(tmp_path / "executed")
    _replace_annotations(shards, labels=trap)
    with pytest.raises(DataError, match="its packed annotations cannot be used"):
        open_stream(shards.folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.full(24, 2, np.int16)},
        {"labels": np.full(24, -1, np.int16)},
        {"labels": np.zeros(24, np.int64)},
        {"starts": np.arange(11, dtype=np.int32)},
        {"starts": np.array([0, 9, 3, 4, 5, 6, 7, 8, 9, 10, 24], np.int32)},
        {"starts": np.array([0, 2**31 - 1, -5, 4, 5, 6, 7, 8, 9, 10, 24], np.int32)},
        {"boxes_xywh": np.full((24, 4), np.nan)},
        {"boxes_xywh": np.zeros((24, 4))},
        {"sizes": np.zeros((10, 2), np.int32)},
        {"image_ids": np.zeros(10, np.int64)},
        {"areas": np.zeros((24, 1))},
        {"name_starts": np.full(11, 4, np.int32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_annotations_that_contradict_each_other_are_refused(
    shards: Shards, changes: dict[str, np.ndarray[Any, Any]]
) -> None:
    _replace_annotations(shards, **changes)
    with pytest.raises(DataError, match="its packed annotations cannot be used"):
        open_stream(shards.folder)


def test_file_names_that_lead_out_of_the_folder_are_refused(shards: Shards) -> None:
    names = np.frombuffer(b"../.." + b"x" * 45, dtype=np.uint8)
    _replace_annotations(shards, names=names)
    with pytest.raises(DataError, match="leaves the image folder"):
        open_stream(shards.folder)


def test_compressed_annotations_are_refused(shards: Shards) -> None:
    """They could expand to any size."""
    path = shards.folder / "annotations.npz"
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    path.write_bytes(packed.getvalue())
    _fit_manifest(shards)
    with pytest.raises(DataError, match="it is compressed"):
        open_stream(shards.folder)


def test_labels_of_no_class_inside_a_record_are_refused(shards: Shards) -> None:
    """The manifest may be exchanged for one with fewer classes."""
    path = shards.folder / "manifest.json"
    document = json.loads(path.read_text())
    del document["categories"][1]
    path.write_text(json.dumps(document))
    _replace_annotations(shards, labels=np.zeros(24, np.int16))
    source = open_stream(shards.folder).source
    with pytest.raises(DataError, match="labels that are not classes"):
        [source.read(row) for row in range(10)]


def test_without_the_engine_the_extra_is_named(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_stream(shards.folder).source
    for name in [name for name in sys.modules if name.split(".")[0] == "litdata"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(DataError, match=r'pip install "\.\[stream\]"'):
        source.read(0)


def test_real_photographs_are_read_as_from_files(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "coco128"
    index = CocoIndex.load(root / "annotations" / "instances_val2017.json", root / "images" / "val2017")
    write_shards(index, tmp_path / "shards", shard_mb=4)
    stream = open_stream(tmp_path / "shards")
    assert_same_samples(stream.source, index)
    assert stream.index.to_coco_dict() == index.to_coco_dict()
    shutil.rmtree(tmp_path / "shards")
