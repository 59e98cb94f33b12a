"""Training from shards: the same images as from files, in the same number of steps, on one process or two."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from coco_files import MakeCoco
from recorder import Interruption, recorded_epochs
from shard_files import flip

from anydepth.config.compose import compose, instantiate
from anydepth.data.coco.index import CocoIndex
from anydepth.data.datamodule import CocoDataModule, DetectionDataModule
from anydepth.data.errors import DataError
from anydepth.data.sampling import EpochSampler
from anydepth.data.shards.writer import write_shards
from anydepth.data.streaming import StreamingDataModule
from failing_server import FailingServer, serve

COUNT = 26
BOX = {"image_id": 100, "category_id": 7, "bbox": [1, 1, 5, 5]}


@pytest.fixture
def root(make_coco: MakeCoco, tmp_path: Path) -> Path:
    """A data set in files, and under ``shards`` in shards."""
    for split, count in (("train", COUNT), ("val", 3)):
        boxes = [BOX | {"image_id": 100 - 10 * number} for number in range(0, count, 2)]
        files = make_coco(sizes=[(20, 30)] * count, annotations=boxes, folder=split)
        index = CocoIndex.load(files.json_path, files.images)
        write_shards(index, tmp_path / "shards" / split, shard_mb=0.006)
    assert len(list((tmp_path / "shards" / "train").glob("shard-*.bin"))) > 5
    return tmp_path


@contextlib.contextmanager
def served(root: Path) -> Iterator[FailingServer]:
    folder = root / "shards"
    contents = {
        f"/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    with serve(contents) as server:
        yield server


def from_files(root: Path, workers: int = 0) -> CocoDataModule:
    return CocoDataModule(root=root, input_size=(16, 24), batch_size=2, num_workers=workers, seed=1)


def from_shards(address: str, cache: Path, workers: int = 0) -> StreamingDataModule:
    return StreamingDataModule(
        root=address,
        cache_dir=cache,
        cache_gb=0.1,
        input_size=(16, 24),
        batch_size=2,
        num_workers=workers,
        seed=1,
    )


def epoch_of(module: DetectionDataModule, processes: int, rank: int, epoch: int) -> list[int]:
    """Image ids that one process trains on."""
    loader = module.train_dataloader()
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    own = EpochSampler(source=module.source("train"), seed=1, batch_size=2, num_replicas=processes, rank=rank)
    own.set_epoch(epoch)
    keys = list(own)
    dataset = loader.dataset
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, sampler=keys, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )
    return [image_id for batch in loader for image_id in batch.image_ids]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_shards_and_files_give_the_same_images_in_every_epoch(
    root: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    with served(root) as server:
        files, shards = from_files(root, workers), from_shards(server.url(""), tmp_path / "cache", workers)
        shards.setup("fit")
        for epoch in range(2):
            shares = [
                [epoch_of(module, processes, rank, epoch) for rank in range(processes)]
                for module in (files, shards)
            ]
            for share in shares:
                drawn = [image_id for ids in share for image_id in ids]
                assert len(set(drawn)) == len(drawn) == COUNT // (2 * processes) * 2 * processes
            (one, other) = ({image_id for ids in share for image_id in ids} for share in shares)
            assert one == other


@pytest.mark.parametrize("workers", [0, 2])
def test_before_and_after_an_interruption_a_stream_gives_each_image_of_the_epoch_once(
    root: Path, tmp_path: Path, workers: int
) -> None:
    with served(root) as server:

        def module() -> StreamingDataModule:
            return from_shards(server.url(""), tmp_path / "cache", workers)

        whole = recorded_epochs(module(), tmp_path / "whole")
        before = recorded_epochs(module(), tmp_path / "run", Interruption(1, 5))
        last = tmp_path / "run" / "last.ckpt"
        after = recorded_epochs(module(), tmp_path / "run", ckpt_path=last)
    assert before + after == whole
    epoch = [image_id for number, image_id in whole if number == 1]
    assert len(set(epoch)) == len(epoch) == COUNT


def test_a_store_that_stops_ends_the_run_and_nothing_is_lost_when_it_resumes(
    root: Path, tmp_path: Path
) -> None:
    with served(root) as server:
        whole = recorded_epochs(from_shards(server.url(""), tmp_path / "other"), tmp_path / "whole")
    with served(root) as server:
        module = from_shards(server.url(""), tmp_path / "cache")
        module.setup("fit")
        before: list[tuple[int, int]] = []
        server.files = {
            path: body for path, body in server.files.items() if not path.endswith("train/shard-00002.bin")
        }
        with pytest.raises(DataError, match=r"shard-00002\.bin.*404"):
            recorded_epochs(module, tmp_path / "run", seen=before)
    with served(root) as server:
        last = tmp_path / "run" / "last.ckpt"
        after = recorded_epochs(
            from_shards(server.url(""), tmp_path / "cache2"), tmp_path / "run", ckpt_path=last
        )
    assert 0 < len(before) < len(whole)
    assert before + after == whole


def test_a_stream_knows_classes_ground_truth_and_sizes_without_a_json(root: Path, tmp_path: Path) -> None:
    files, shards = from_files(root), from_shards(str(root / "shards"), tmp_path / "cache")
    assert shards.class_names == files.class_names == ("cat", "dog")
    assert shards.category_ids == files.category_ids
    assert shards.val_index.to_coco_dict() == files.val_index.to_coco_dict()
    one, other = (next(iter(module.val_dataloader())) for module in (files, shards))
    assert torch.equal(one.images, other.images)
    assert one.image_ids == other.image_ids


def test_an_altered_shard_is_an_error_even_if_bad_images_are_skipped(root: Path, tmp_path: Path) -> None:
    shard = root / "shards" / "train" / "shard-00000.bin"
    flip(shard, shard.stat().st_size // 2)
    module = StreamingDataModule(
        root=str(root / "shards"), input_size=(16, 24), batch_size=2, num_workers=0, on_bad_image="skip"
    )
    with pytest.raises(DataError, match=r"shard-00000\.bin: this shard cannot be read.*altered"):
        list(module.train_dataloader())


def test_a_validation_split_alone_is_enough_to_evaluate(root: Path, tmp_path: Path) -> None:
    (root / "shards" / "train" / "manifest.json").unlink()
    module = from_shards(str(root / "shards"), tmp_path / "cache")
    assert module.class_names == ("cat", "dog")
    assert len(module.val_index) == 3
    with pytest.raises(DataError, match=r"train/manifest\.json: no such file"):
        module.setup("fit")


def test_splits_with_other_categories_are_refused(make_coco: MakeCoco, root: Path, tmp_path: Path) -> None:
    files = make_coco(annotations=[BOX], categories=[(7, "dog")], folder="test")
    write_shards(CocoIndex.load(files.json_path, files.images), root / "shards" / "test")
    module = from_shards(str(root / "shards"), tmp_path / "cache")
    with pytest.raises(
        DataError, match=r"got 1 categories, expected the 2 of .*; prepare all splits with the same"
    ):
        module.index("test")


def test_streaming_is_chosen_on_the_command_line(root: Path) -> None:
    settings = ["data=coco_streaming", f"data.root={root / 'shards'}", "data.num_workers=0"]
    config = compose("train", [*settings, "detector=yolo_n", "paths.output_dir=out"], hydra_config=True)
    module = instantiate(config.data)
    assert isinstance(module, StreamingDataModule)
    module.setup("fit")
    assert config.recipe._target_ == "anydepth.training.recipes.SGDRecipe"
