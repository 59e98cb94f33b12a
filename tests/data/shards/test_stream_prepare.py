"""Preparing shards: in parallel, interrupted at any time, on a full disk, from changed images."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coco_files import MakeCoco
from shard_files import Shards, assert_same_samples, files_of_at_most, flip

from anydepth.commands.data import main
from anydepth.data.coco.index import CocoIndex
from anydepth.data.errors import DataError
from anydepth.data.shards.plan import plan_shards
from anydepth.data.shards.source import open_stream
from anydepth.data.shards.writer import Progress, write_shards

SHARD_MB = 0.016


def prepare(shards: Shards, **options: object) -> list[Progress]:
    """Write the shards again, and return the progress reports."""
    seen: list[Progress] = []
    settings = {"shard_mb": SHARD_MB, "report": seen.append, **options}
    write_shards(shards.index, shards.folder, **settings)  # type: ignore[arg-type]
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_manifest_counts_and_checks_everything(shards: Shards) -> None:
    document = json.loads((shards.folder / "manifest.json").read_text())
    assert (document["images"], document["boxes"]) == (10, 24)
    assert [entry["rows"] for entry in document["shards"]] == [2] * 5
    for entry in [*document["shards"], document["annotations"]]:
        data = (shards.folder / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_preparing_again_keeps_every_byte(shards: Shards) -> None:
    before = contents(shards.folder)
    seen = prepare(shards)
    assert seen[-1] == Progress(images=10, total=10, kept=5)
    assert contents(shards.folder) == before


def test_parallel_processes_write_the_same_bytes(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked here, which saves imports of several seconds; the command below spawns them."""
    monkeypatch.setattr("anydepth.data.shards.writer._START_METHOD", "fork")
    seen: list[Progress] = []
    write_shards(shards.index, tmp_path / "other", shard_mb=SHARD_MB, workers=2, report=seen.append)
    assert contents(tmp_path / "other") == contents(shards.folder)
    assert [progress.images for progress in seen] == [2, 4, 6, 8, 10]


def test_an_image_that_vanishes_stops_parallel_processes(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anydepth.data.shards.writer._START_METHOD", "fork")
    parts = plan_shards(shards.index, SHARD_MB * 1e6)
    monkeypatch.setattr("anydepth.data.shards.writer.plan_shards", lambda *_: parts)
    (shards.files.images / "3.png").unlink()
    with pytest.raises(DataError, match=r"image id 70: .*3\.png: No such file.* run the same command again"):
        write_shards(shards.index, tmp_path / "other", shard_mb=SHARD_MB, workers=2)
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_a_finished_shard_that_was_damaged_is_written_again(shards: Shards) -> None:
    before = contents(shards.folder)
    flip(shards.shard(1), 2000)
    os.truncate(shards.shard(2), 2000)
    shards.shard(3).unlink()
    assert prepare(shards)[-1].kept == 2
    assert contents(shards.folder) == before


def test_an_interrupted_run_is_resumed(shards: Shards) -> None:
    before = contents(shards.folder)
    shutil.rmtree(shards.folder)

    def interrupt(progress: Progress) -> None:
        if progress.images == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(shards, report=interrupt)
    with pytest.raises(DataError, match="no such file"):
        open_stream(shards.folder)
    assert [progress.kept for progress in prepare(shards)] == [1, 2, 3, 3, 3]
    assert contents(shards.folder) == before


def test_interrupting_again_keeps_the_finished_shards(shards: Shards) -> None:
    (shards.folder / "manifest.json").unlink()

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(shards, report=interrupt)
    assert prepare(shards)[-1].kept == 5


def test_a_changed_image_rewrites_only_its_shard(shards: Shards) -> None:
    """In an unfinished split; a finished one is not changed by default."""
    (shards.folder / "manifest.json").unlink()
    shutil.copy(shards.files.images / "0.png", shards.files.images / "5.png")
    assert prepare(shards)[-1].kept == 4
    assert_same_samples(open_stream(shards.folder).source, shards.index)


def test_changed_boxes_are_noticed(shards: Shards) -> None:
    (shards.folder / "manifest.json").unlink()
    shards.files.document["annotations"][0]["bbox"][0] += 0.5
    index = CocoIndex.load(shards.files.rewrite().json_path, shards.files.images)
    seen: list[Progress] = []
    write_shards(index, shards.folder, shard_mb=SHARD_MB, report=seen.append)
    assert seen[-1].kept == 4
    assert_same_samples(open_stream(shards.folder).source, index)


def test_a_complete_split_of_other_contents_is_not_overwritten_by_default(shards: Shards) -> None:
    before = contents(shards.folder)
    with pytest.raises(DataError, match=r"holds a complete split of other images .* --overwrite"):
        prepare(shards, shard_mb=0.032)
    assert contents(shards.folder) == before
    prepare(shards, shard_mb=0.032, overwrite=True)
    assert open_stream(shards.folder).source.shard_starts.tolist() == [0, 4, 8, 10]
    assert sorted(path.name for path in shards.folder.glob("shard-*")) == [
        "shard-00000.bin",
        "shard-00001.bin",
        "shard-00002.bin",
    ]


def test_replacing_a_complete_split_never_looks_complete_in_between(shards: Shards) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(shards, shard_mb=0.032, overwrite=True, report=interrupt)
    with pytest.raises(DataError, match="no such file"):
        open_stream(shards.folder)


def test_a_folder_of_other_files_is_left_alone(shards: Shards) -> None:
    with pytest.raises(DataError, match=r"holds other files \(0\.png, \.\.\.\); give a new or an empty"):
        write_shards(shards.index, shards.files.images)
    assert not (shards.files.images / "index.json").exists()


def test_an_image_larger_than_a_shard_gets_its_own(shards: Shards, tmp_path: Path) -> None:
    write_shards(shards.index, tmp_path / "tiny", shard_mb=0.001)
    assert open_stream(tmp_path / "tiny").source.shard_starts.tolist() == list(range(11))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shard_mb": 0}, "shard_mb=0"), ({"shard_mb": 5000}, "at most 2147"), ({"workers": 0}, "workers=0")],
)
def test_settings_out_of_range_are_refused(shards: Shards, options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(shards, **options)


def test_an_image_that_vanishes_is_named(shards: Shards, tmp_path: Path) -> None:
    (shards.files.images / "3.png").unlink()
    with pytest.raises(DataError, match=r"image id 70: .*3\.png: No such file"):
        write_shards(shards.index, tmp_path / "other", shard_mb=SHARD_MB)
    assert not (tmp_path / "other" / "manifest.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_a_full_disk_is_named_and_leaves_nothing_that_looks_complete(
    shards: Shards, tmp_path: Path, share: float
) -> None:
    folder = tmp_path / "other"
    limit = int(share * shards.shard(0).stat().st_size)
    with files_of_at_most(limit), pytest.raises(DataError) as caught:
        write_shards(shards.index, folder, shard_mb=SHARD_MB)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert "run the same command again to resume" in str(caught.value)
    assert {path.name for path in folder.iterdir()} <= {".prepare.lock", "prepared.json"}
    write_shards(shards.index, folder, shard_mb=SHARD_MB)
    assert contents(folder) == contents(shards.folder)


def test_a_disk_that_fills_up_at_the_last_moment_leaves_no_manifest(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(index: CocoIndex, path: Path) -> None:
        path.write_bytes(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("anydepth.data.shards.writer.save_packed", fail)
    with pytest.raises(DataError, match=f"{os.strerror(errno.ENOSPC)}.*run the same command again"):
        write_shards(shards.index, tmp_path / "other", shard_mb=SHARD_MB)
    names = {path.name for path in (tmp_path / "other").iterdir()}
    assert names == {*(f"shard-0000{n}.bin" for n in range(5)), "prepared.json", ".prepare.lock"}


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_prepares_splits_with_the_categories_of_training(
    make_coco: MakeCoco, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the categories of the validation json alone, the dog would be class 0."""
    make_coco(annotations=[{"image_id": 100, "category_id": 3, "bbox": [1, 1, 5, 5]}])
    make_coco(
        folder="val",
        categories=[(7, "dog")],
        annotations=[{"image_id": 90, "category_id": 7, "bbox": [1, 1, 5, 5]}],
    )
    assert main(["shards", str(tmp_path), str(tmp_path / "out"), "--workers", "1"]) == 0
    output = capsys.readouterr().err
    assert f"{tmp_path / 'out' / 'val'}: complete: 3 images, 1 boxes, 2 classes in 1 shards" in output
    val = open_stream(tmp_path / "out" / "val")
    assert val.categories.names == ("cat", "dog")
    assert val.source.read(1).labels.tolist() == [1]


@pytest.mark.slow
def test_the_command_killed_at_any_time_is_resumed(shards: Shards, tmp_path: Path) -> None:
    """Killed when its first shard is there; the result is that of an undisturbed run."""
    folder = tmp_path / "out"
    source = ["--json", shards.files.json_path, "--images", shards.files.images, folder]
    command = [
        sys.executable,
        "-m",
        "anydepth.commands.data",
        "shards",
        *source,
        "--shard-mb",
        SHARD_MB,
        "--workers",
        2,
    ]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE)
    while not list(folder.glob("shard-*.bin")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    # The pipe ends when the last process that holds it has ended: its pool must not outlive the command.
    process.communicate()
    assert not (folder / "manifest.json").exists()
    with pytest.raises(DataError, match="no such file"):
        open_stream(folder)
    # A process is rarely killed while it writes its progress: this file is the leftover of that.
    (folder / ".prepared.123.partial.json").write_text('{"shard-00000.bin": [')
    write_shards(shards.index, folder, shard_mb=SHARD_MB)
    assert contents(folder) == contents(shards.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "give either the data set's folder"),
        (["--json", "x.json", "out"], "belong together"),
        (["root", "out", "--categories", "x.json"], "--categories needs --json"),
    ],
)
def test_the_command_refuses_options_that_do_not_belong_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["shards", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_names_a_missing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shards", "nowhere", "out"]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere: no such folder")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_command_says_how_to_resume(
    tmp_path: Path, make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    make_coco(annotations=[{"image_id": 100, "category_id": 3, "bbox": [1, 1, 5, 5]}])
    monkeypatch.setattr("anydepth.commands.prepare_shards.write_shards", interrupt)
    assert main(["shards", str(tmp_path), str(tmp_path / "out"), "--splits", "train"]) == 1
    assert "interrupted; run the same command again to resume" in capsys.readouterr().err
