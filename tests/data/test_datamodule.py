"""The data module: layouts, loaders, and the choices of data=..."""

import os
import signal
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from coco_files import MakeCoco
from lightning import Trainer
from recorder import Interruption, Recorder, recorded_epochs
from torch import Tensor

from anydepth.config.compose import compose, instantiate
from anydepth.config.errors import readable_errors
from anydepth.data.augment.crop import IoUCrop, ZoomOut
from anydepth.data.augment.photometric import PhotometricDistort
from anydepth.data.augment.rtdetr import RTDETRAugmentation
from anydepth.data.augment.view import Turn
from anydepth.data.augment.yolo import YOLOAugmentation
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.errors import DataError, DataWarning
from anydepth.data.sample import sample_root
from anydepth.data.sampling import EpochSampler
from anydepth.data.source import AnnotatedImage, FileSource
from anydepth.structures import Batch

BOX = {"image_id": 100, "category_id": 7, "bbox": [1, 1, 5, 5]}
AUGMENTATION = RTDETRAugmentation(photometric=PhotometricDistort(), crop=IoUCrop(), turn=Turn())


def make_module(root: Path, **options: Any) -> CocoDataModule:
    return CocoDataModule(
        **({"root": root, "input_size": (16, 24), "batch_size": 2, "num_workers": 0} | options)
    )


@pytest.fixture
def root(make_coco: MakeCoco, tmp_path: Path) -> Path:
    """Five training images and three for validation, of which one each has a box."""
    make_coco(sizes=[(10, 12)] * 5, annotations=[BOX])
    make_coco(annotations=[BOX], folder="val")
    return tmp_path


def train_ids(module: CocoDataModule, epoch: int) -> list[tuple[int, ...]]:
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return [batch.image_ids for batch in batches(loader)]


def batches(loader: Iterable[Any]) -> list[Batch]:
    return list(loader)


# -- layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("json_pattern", "image_pattern", "names"),
    [
        ("annotations/instances_{}.json", "images/{}", ("train", "val")),
        ("annotations/instances_{}.json", "{}", ("train2017", "val2017")),
        ("annotations/instances_{}.json", "images/{}", ("train2017", "val2017")),
        ("{}/_annotations.coco.json", "{}", ("train", "valid")),
    ],
)
def test_known_layouts_are_found(
    root: Path, tmp_path: Path, json_pattern: str, image_pattern: str, names: tuple[str, str]
) -> None:
    other = tmp_path / "other"
    for name, source in zip(names, ("train", "val"), strict=True):
        images, json_path = other / image_pattern.format(name), other / json_pattern.format(name)
        images.parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / source).rename(images)
        json_path.parent.mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{source}.json").rename(json_path)
    module = make_module(other)
    module.setup("fit")
    assert (len(module.source("train")), len(module.val_index)) == (5, 3)


def test_explicit_paths_win_over_the_root(root: Path) -> None:
    module = make_module(
        root, val_json=root / "annotations" / "instances_train.json", val_images=root / "images" / "train"
    )
    assert len(module.val_index) == 5
    assert module.split("val").json_path == root / "annotations" / "instances_train.json"


def test_a_json_without_its_images_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.val_json=a\.json and data\.val_images=None; give both"):
        make_module(root, val_json="a.json")


def test_missing_data_is_reported_with_the_remedy(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test split; looked for .*data\.test_json and data\.test_images"):
        make_module(root).setup("test")
    with pytest.raises(DataError, match=r"nowhere: no such folder; give .*data\.root"):
        make_module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(DataError, match=r"no train data; give data\.root, or data\.train_json"):
        CocoDataModule(input_size=(8, 8), batch_size=1).setup("fit")


# -- classes ----------------------------------------------------------------------------------------------


def test_classes_are_known_before_the_data_is_loaded(root: Path) -> None:
    (root / "images" / "train" / "0.png").unlink()
    module = make_module(root)
    assert module.num_classes == 2
    assert module.class_names == ("cat", "dog")
    assert module.category_ids == (3, 7)
    with pytest.raises(DataError, match="1 of 5 images"):
        module.setup("fit")


def test_training_categories_define_the_labels_of_validation(make_coco: MakeCoco, tmp_path: Path) -> None:
    make_coco(annotations=[BOX])
    make_coco(annotations=[BOX], categories=[(7, "dog")], folder="val")
    module = make_module(tmp_path)
    module.setup("validate")
    assert module.val_index.labels.tolist() == [1]
    assert module.num_classes == 2


def test_a_validation_split_alone_brings_its_own_categories(make_coco: MakeCoco, tmp_path: Path) -> None:
    make_coco(annotations=[BOX], categories=[(7, "dog")], folder="val")
    module = make_module(tmp_path)
    module.setup("validate")
    assert module.class_names == ("dog",)


def test_a_malformed_training_json_is_not_ignored(root: Path) -> None:
    (root / "annotations" / "instances_train.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"instances_train\.json: not a json file"):
        make_module(root).num_classes  # noqa: B018


# -- loaders ----------------------------------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_epoch(root: Path) -> None:
    orders = [train_ids(make_module(root, seed=1), epoch) for epoch in range(6)]
    assert orders == [train_ids(make_module(root, seed=1), epoch) for epoch in range(6)]
    assert len({str(order) for order in orders}) > 3
    assert orders != [train_ids(make_module(root, seed=2), epoch) for epoch in range(6)]
    # Five images in batches of two: the last one is dropped.
    assert [len(ids) for ids in orders[0]] == [2, 2]


def test_worker_processes_give_the_same_batches_as_none_in_every_epoch(root: Path) -> None:
    results: list[list[Tensor]] = []
    for workers in (0, 2):
        module = make_module(root, num_workers=workers, augmentation=AUGMENTATION, seed=5)
        loader = module.train_dataloader()
        assert loader.persistent_workers == (workers > 0)
        assert isinstance(loader.sampler, EpochSampler)
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            torch.rand(workers + 1)  # the global generator must not matter
            for batch in batches(loader):
                found += [batch.images, *(targets.boxes_cxcywh for targets in batch.targets)]
        results.append(found)
    # Two epochs of two batches, each its images and the boxes of two of them.
    assert len(results[0]) == len(results[1]) == 2 * 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_evaluation_gives_every_image_once_in_order(root: Path) -> None:
    module = make_module(root, eval_batch_size=2, augmentation=AUGMENTATION)
    found = batches(module.val_dataloader())
    assert [batch.image_ids for batch in found] == [(100, 90), (80,)]
    again = batches(module.val_dataloader())
    assert torch.equal(found[0].images, again[0].images)


def test_starting_a_loader_does_not_touch_the_global_random_numbers(root: Path) -> None:
    module = make_module(root, augmentation=AUGMENTATION)
    before = torch.get_rng_state()
    batches(module.train_dataloader())
    batches(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, expected a whole number from 1"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"input_size": [640]}, r"input_size=\[640\], expected \[height, width\]"),
        ({"input_size": [640, 0]}, "input_size="),
    ],
)
def test_impossible_settings_are_refused(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(root, **options)


def test_a_batch_larger_than_the_data_is_refused_before_training(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"got 5 training images on 1 processes, .* set data\.batch_size to 5 or less"
    ):
        make_module(root, batch_size=6).setup("fit")
    make_module(root, batch_size=5).setup("fit")


@pytest.mark.parametrize(
    ("processes", "remedy"), [(2, r"data\.batch_size to 2"), (6, r"trainer\.devices to 5")]
)
def test_processes_that_get_no_batch_are_refused_before_training(
    root: Path, processes: int, remedy: str
) -> None:
    module = make_module(root, batch_size=3)
    module.trainer = SimpleNamespace(world_size=processes, global_rank=0)
    with pytest.raises(DataError, match=rf"5 training images .*{processes} processes.* set {remedy} or less"):
        module.setup("fit")


def test_each_process_draws_its_own_share(root: Path) -> None:
    shares = []
    for rank in range(2):
        module = make_module(root)
        epochs = SimpleNamespace(state_dict=lambda: {"current": {"processed": 0}})
        module.trainer = SimpleNamespace(
            world_size=2, global_rank=rank, fit_loop=SimpleNamespace(epoch_progress=epochs)
        )
        shares.append(train_ids(module, epoch=0))
    assert [len(share) for share in shares] == [1, 1]
    assert len({*shares[0][0], *shares[1][0]}) == 4


def test_repaired_boxes_are_reported_once(make_coco: MakeCoco, tmp_path: Path) -> None:
    make_coco(annotations=[BOX, BOX | {"bbox": [0, 0, 0, 0]}])
    make_coco(annotations=[BOX], folder="val")
    module = make_module(tmp_path)
    with pytest.warns(DataWarning, match="1 without a positive size") as caught:
        module.setup("fit")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        module.setup("fit")


def test_lightning_keeps_the_sampler_and_sets_its_epoch(root: Path, tmp_path: Path) -> None:
    module, recorder = make_module(root, seed=1), Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, datamodule=module)
    assert recorder.seen == [
        (epoch, image_id)
        for epoch in range(3)
        for ids in train_ids(make_module(root, seed=1), epoch)
        for image_id in ids
    ]
    assert recorder.validated == [100, 90, 80] * 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "stop", [(1, 1), (2, 0), *(pytest.param(stop, marks=pytest.mark.slow) for stop in [(0, 2), (1, 3)])]
)
def test_before_and_after_an_interruption_the_images_are_exactly_those_of_the_epochs(
    make_coco: MakeCoco, tmp_path: Path, workers: int, stop: tuple[int, int]
) -> None:
    make_coco(sizes=[(8, 8)] * 9, annotations=[BOX])
    make_coco(annotations=[BOX], folder="val")

    def module() -> CocoDataModule:
        return make_module(tmp_path, seed=1, num_workers=workers)

    whole = recorded_epochs(module(), tmp_path / "whole")
    assert Counter(epoch for epoch, _ in whole) == {0: 8, 1: 8, 2: 8}
    before = recorded_epochs(module(), tmp_path / "run", Interruption(*stop))
    assert before == whole[: 8 * stop[0] + 2 * stop[1]]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        after = recorded_epochs(module(), tmp_path / "run", ckpt_path=tmp_path / "run" / "last.ckpt")
    assert before + after == whole


class LethalSource(FileSource):
    """Kills the process that reads the image of this row."""

    def read(self, row: int) -> AnnotatedImage:
        if row == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(row)


def test_a_killed_worker_ends_the_run_with_one_message(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make_module(root, num_workers=1)
    source = LethalSource(module.index("train"))
    module.source = lambda name: source  # type: ignore[method-assign, return-value]
    with pytest.raises(SystemExit), readable_errors():
        recorded_epochs(module, tmp_path / "run")
    message = capsys.readouterr().err
    assert "Error: a data loader worker died: DataLoader worker (pid" in message
    assert "ckpt_path=RUN/checkpoints/last.ckpt" in message


def test_resuming_an_epoch_with_other_batches_warns(root: Path, tmp_path: Path) -> None:
    recorded_epochs(make_module(root), tmp_path / "run", Interruption(0, 1))
    with pytest.warns(UserWarning, match="by 1 processes with data.batch_size=2, and this run differs"):
        recorded_epochs(
            make_module(root, batch_size=1), tmp_path / "run", ckpt_path=tmp_path / "run" / "last.ckpt"
        )


# -- configuration ----------------------------------------------------------------------------------------


def from_config(data: str, *overrides: str) -> CocoDataModule:
    config = compose("train", [f"data={data}", "paths.output_dir=out", *overrides], hydra_config=True)
    module = instantiate(config.data)
    assert isinstance(module, CocoDataModule)
    return module


def test_the_sample_is_ready_to_train_on() -> None:
    module = from_config("sample", "data.num_workers=0", "seed=4", "detector.input_size=[32,48]")
    module.setup("fit")
    assert module.class_names == ("tree",)
    assert module.seed == 4
    batch = next(iter(batches(module.train_dataloader())))
    assert batch.images.shape == (4, 3, 32, 48)
    assert len(batch.targets) == 4
    assert all(len(targets) for targets in batch.targets)


@pytest.mark.parametrize("data", ["coco", "custom"])
def test_data_sets_of_the_user_compose_with_the_published_augmentation(root: Path, data: str) -> None:
    module = from_config(
        data, f"data.root={root}", "data.augmentation.crop.trials=3", "data.augmentation.zoom_out=null"
    )
    module.setup("fit" if data == "coco" else "validate")
    assert module.num_classes == 2
    augmentation = module.augmentation
    assert isinstance(augmentation, RTDETRAugmentation)
    assert augmentation.zoom_out is None
    assert augmentation.crop is not None
    assert augmentation.crop.trials == 3


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(Exception, match="batchsize"):
        from_config("sample", "data.batchsize=3")
    with pytest.raises(Exception, match="batchsize"):
        from_config("sample", "+data.batchsize=3")


def test_configured_augmentation_is_that_of_the_classes() -> None:
    """The yaml repeats the defaults to show them; the two must not drift apart."""
    configured = from_config("custom", f"data.root={sample_root()}").augmentation
    assert isinstance(configured, RTDETRAugmentation)
    parts = (PhotometricDistort(), ZoomOut(), IoUCrop(), Turn())
    found = (configured.photometric, configured.zoom_out, configured.crop, configured.turn)
    for part, default in zip(found, parts, strict=True):
        assert vars(part) == vars(default)


@pytest.mark.parametrize(
    ("detector", "data", "expected"),
    [
        ("detr_tiny", "coco", RTDETRAugmentation),
        ("yolo_n", "coco", YOLOAugmentation),
        ("yolo_tiny", "custom", RTDETRAugmentation),
        ("yolo_tiny", "sample", RTDETRAugmentation),
    ],
)
def test_the_augmentation_follows_family_and_data(
    root: Path, detector: str, data: str, expected: type
) -> None:
    where = [] if data == "sample" else [f"data.root={root}"]
    assert isinstance(from_config(data, f"detector={detector}", *where).augmentation, expected)


@pytest.mark.parametrize(
    ("name", "scale", "mixup", "share"),
    [
        ("yolo_n", 0.5, 0.0, 0.1),
        ("yolo_s", 0.9, 0.05, 0.15),
        ("yolo_m", 0.9, 0.15, 0.4),
        ("yolo", 0.9, 0.15, 0.5),
        ("yolo_x", 0.9, 0.2, 0.6),
    ],
)
def test_the_strengths_of_yolo_are_the_published_ones(
    root: Path, name: str, scale: float, mixup: float, share: float
) -> None:
    """Specification 3.5 and 3.6; mixing ends ten epochs before the 600th."""
    module = from_config("coco", f"data.root={root}", "detector=yolo_l", f"augmentation={name}")
    found = module.augmentation
    assert isinstance(found, YOLOAugmentation)
    assert found.affine is not None
    assert (found.affine.scale, found.affine.translate) == (scale, 0.1)
    assert (found.mixup.p if found.mixup else 0.0) == mixup
    assert found.copy_paste is not None
    assert found.copy_paste.share == share
    assert found.hsv is not None
    assert (found.hsv.hue, found.hsv.saturation, found.hsv.value) == (0.015, 0.7, 0.4)
    assert (module.epochs, module.unmixed_epochs) == (600, 10)


def test_the_last_epochs_are_not_mixed_wherever_training_was_resumed(root: Path) -> None:
    options = ("data.batch_size=2", "recipe.epochs=4", "data.unmixed_epochs=1", "data.num_workers=0")
    module = from_config(
        "custom", f"data.root={root}", "augmentation=yolo", "detector.input_size=[32,32]", *options
    )
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    for epoch, partners in ((2, 7), (3, 0)):
        loader.sampler.set_epoch(epoch)
        assert {len(key.partners) for key in loader.sampler} == {partners}
        # Five images: the last one is dropped.
        assert [batch.images.shape for batch in batches(loader)] == [(2, 3, 32, 32)] * 2


def test_no_augmentation_can_be_chosen(root: Path) -> None:
    module = from_config("custom", f"data.root={root}", "augmentation=none", "detector.input_size=[32,32]")
    dataset = module.train_dataloader().dataset
    plain = module.eval_dataloader("train").dataset
    assert torch.equal(dataset[0].image, plain[0].image)
