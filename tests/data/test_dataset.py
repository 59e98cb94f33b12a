"""Samples and batches of a packed index."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import CocoFiles, MakeCoco
from PIL import Image

from anydepth.data.augment.crop import IoUCrop, ZoomOut
from anydepth.data.augment.photometric import PhotometricDistort
from anydepth.data.augment.rtdetr import RTDETRAugmentation
from anydepth.data.augment.view import Turn, View
from anydepth.data.coco.index import CocoIndex
from anydepth.data.dataset import DetectionDataset, OnBadImage, collate
from anydepth.data.errors import BadImageError, DataError
from anydepth.data.sampling import SampleKey
from anydepth.data.source import AnnotatedImage, FileSource
from anydepth.images import fit_image, read_image, resize_keeping_type
from anydepth.pictures.fitting import Fit

BOXES = [
    {"image_id": 100, "category_id": 7, "bbox": [6, 10, 30, 20]},
    {"image_id": 100, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    {"image_id": 80, "category_id": 3, "bbox": [10, 10, 10.6, 5]},
]
AUGMENTATION = RTDETRAugmentation(
    photometric=PhotometricDistort(), zoom_out=ZoomOut(), crop=IoUCrop(), turn=Turn(vertical=0.5)
)


def make_dataset(
    files: CocoFiles,
    size: tuple[int, int] = (32, 48),
    augmentation: RTDETRAugmentation | None = None,
    seed: int = 0,
    on_bad_image: OnBadImage = "raise",
) -> DetectionDataset:
    source = FileSource(CocoIndex.load(files.json_path, files.images))
    return DetectionDataset(
        source=source, size=size, augmentation=augmentation, seed=seed, on_bad_image=on_bad_image
    )


def test_a_sample_holds_the_resized_image_and_normalised_boxes_without_crowd(make_coco: MakeCoco) -> None:
    sample = make_dataset(make_coco(annotations=BOXES))[0]
    assert sample.image.shape == (3, 32, 48)
    assert sample.image.dtype == torch.uint8
    assert sample.image_id == 100
    assert sample.original_size == (40, 60)
    # [6, 10, 30, 20] of 60 x 40: centre (21, 20), size (30, 20).
    torch.testing.assert_close(sample.targets.boxes_cxcywh, torch.tensor([[0.35, 0.5, 0.5, 0.5]]))
    assert sample.targets.labels.tolist() == [1]


def test_the_loader_makes_the_very_tensor_that_prediction_makes(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    dataset, index = make_dataset(files), CocoIndex.load(files.json_path, files.images)
    for row in range(3):
        alone = fit_image(read_image(index.path(row)), (32, 48), "stretch")
        assert torch.equal(dataset[row].image, alone)


def test_an_image_without_boxes_gives_empty_targets(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    for augmentation in (None, AUGMENTATION):
        sample = make_dataset(files, augmentation=augmentation)[1]
        assert sample.targets.boxes_cxcywh.shape == (0, 4)
        assert sample.targets.boxes_cxcywh.dtype == torch.float32
        assert sample.targets.labels.dtype == torch.int64


def test_a_box_that_rounding_pushed_over_the_border_is_clamped(make_coco: MakeCoco) -> None:
    # [10, 10, 10.6, 5] of a picture of 20 x 20 ends at 20.6.
    box = make_dataset(make_coco(annotations=BOXES))[2].targets.boxes_cxcywh[0]
    torch.testing.assert_close(box, torch.tensor([0.75, 0.625, 0.5, 0.25]))


@pytest.mark.parametrize(("fit", "kept"), [("stretch", 1), ("letter_box", 0)])
def test_boxes_are_too_small_by_the_scale_of_their_fit(make_coco: MakeCoco, fit: Fit, kept: int) -> None:
    """3 of 60 px: ten times as wide when stretched to 600; 0.3 px in a letter box, a tenth of the image."""
    files = make_coco(annotations=[{"image_id": 100, "category_id": 7, "bbox": [6, 10, 3, 20]}])
    dataset = DetectionDataset(
        source=FileSource(CocoIndex.load(files.json_path, files.images)),
        size=(4, 600),
        augmentation=lambda view, *_: view,
        fit=fit,
    )
    assert len(dataset[0].targets) == kept


def test_augmentation_depends_on_seed_epoch_and_image_alone(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    dataset = make_dataset(files, augmentation=AUGMENTATION)
    key = SampleKey(epoch=4, row=0)
    first = dataset[key]
    torch.rand(3)
    dataset[SampleKey(4, 2)]
    again = make_dataset(files, augmentation=AUGMENTATION)[key]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.targets.boxes_cxcywh, again.targets.boxes_cxcywh)
    assert not torch.equal(first.image, dataset[SampleKey(5, 0)].image)
    assert not torch.equal(first.image, make_dataset(files, augmentation=AUGMENTATION, seed=1)[key].image)


def test_augmented_targets_stay_inside_the_image_and_at_least_a_pixel_large(make_coco: MakeCoco) -> None:
    dataset = make_dataset(make_coco(annotations=BOXES), augmentation=AUGMENTATION)
    for epoch in range(60):
        targets = dataset[SampleKey(epoch, 0)].targets
        centre, size = targets.boxes_cxcywh[:, :2], targets.boxes_cxcywh[:, 2:]
        assert (centre - size / 2 > -1e-6).all()
        assert (centre + size / 2 < 1 + 1e-6).all()
        assert (size * torch.tensor([48, 32]) >= 1 - 1e-4).all()


@pytest.mark.parametrize("upright", [True, False])
def test_a_json_may_hold_the_upright_or_the_stored_frame_of_a_turned_picture(
    make_coco: MakeCoco, upright: bool
) -> None:
    stored = np.zeros((20, 40, 3), dtype=np.uint8)
    stored[:10, 20:] = 255  # top right; turned clockwise it is at the bottom right
    box, size, expected = (
        ([10, 20, 10, 20], (40, 20), [0.75, 0.75, 0.5, 0.5])
        if upright
        else ([20, 0, 20, 10], (20, 40), [0.75, 0.25, 0.5, 0.5])
    )
    files = make_coco(sizes=[size], annotations=[{"image_id": 100, "category_id": 3, "bbox": box}])
    picture = Image.fromarray(stored)
    exif = picture.getexif()
    exif[274] = 6  # to be turned clockwise
    picture.save(files.images / "0.png", exif=exif)
    sample = make_dataset(files, size=size)[0]
    assert sample.original_size == size
    torch.testing.assert_close(sample.targets.boxes_cxcywh[0], torch.tensor(expected))
    x, y, width, height = box
    assert sample.image[:, y : y + height, x : x + width].eq(255).all()
    assert sample.image.eq(255).float().mean() == 0.25


def test_a_size_that_contradicts_the_file_is_an_error(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    files.document["images"][0]["width"] = 80
    with pytest.raises(
        DataError, match=r"instances_train\.json: image id 100: .*0\.png is \(40, 60\).*\(40, 80\)"
    ):
        make_dataset(files.rewrite())[0]


def test_a_truncated_image_is_named_with_its_id(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    path = files.images / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    dataset = make_dataset(files)
    with pytest.raises(DataError, match=r"image id 90: .*1\.png: not a readable image .*entry in the json"):
        dataset[1]


def test_a_batch_stacks_images_and_keeps_targets_apart(make_coco: MakeCoco) -> None:
    dataset = make_dataset(make_coco(annotations=BOXES))
    batch = collate([dataset[row] for row in range(3)])
    assert batch.images.shape == (3, 3, 32, 48)
    assert batch.image_ids == (100, 90, 80)
    assert batch.original_sizes == ((40, 60), (50, 30), (20, 20))
    assert [len(targets) for targets in batch.targets] == [1, 0, 1]
    for row in range(3):
        assert torch.equal(batch.targets[row].boxes_cxcywh, dataset[row].targets.boxes_cxcywh)
        assert torch.equal(batch.targets[row].labels, dataset[row].targets.labels)


def test_boxes_of_a_batch_share_their_memory(make_coco: MakeCoco) -> None:
    # A loader sends every piece of memory as an open file: one per image runs out of them.
    dataset = make_dataset(make_coco(annotations=BOXES))
    batch = collate([dataset[0], dataset[2]])
    first, second = (targets.boxes_cxcywh.untyped_storage().data_ptr() for targets in batch.targets)
    assert first == second


def test_a_bad_image_is_skipped_if_requested(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    (files.images / "1.png").write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"1\.png: not a readable image .*data\.on_bad_image=skip"):
        make_dataset(files)[1]
    dataset = make_dataset(files, on_bad_image="skip")
    batch = collate([dataset[row] for row in range(3)])
    assert batch.image_ids == (100, 80, 80)
    assert len(batch.skipped) == 1
    assert "image id 90" in batch.skipped[0]


def test_a_folder_of_bad_images_is_not_skipped_endlessly(make_coco: MakeCoco) -> None:
    files = make_coco()
    for path in files.images.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="images in a row cannot be read"):
        make_dataset(files, on_bad_image="skip")[0]


class Pair:
    """An augmentation that puts the sample beside its first partner."""

    partners = 2
    outlines = False

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> View:
        if not partners:
            return view
        half = (size[0], size[1] // 2)
        pictures = [
            resize_keeping_type(part.image.as_subclass(torch.Tensor), half) for part in (view, partners[0]())
        ]
        return View.of(torch.cat(pictures, dim=2), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


class RecordingSource(FileSource):
    """Records which rows are decoded."""

    def __init__(self, index: CocoIndex) -> None:
        super().__init__(index)
        self.rows: list[int] = []

    def read(self, row: int) -> AnnotatedImage:
        self.rows.append(row)
        return super().read(row)


def test_partners_are_mixed_in_and_decoded_once(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    source = RecordingSource(CocoIndex.load(files.json_path, files.images))
    dataset = DetectionDataset(source=source, size=(20, 40), augmentation=Pair(), cached_images=2)
    alone = [resize_keeping_type(source.read(row).image, (20, 20)) for row in range(3)]
    source.rows.clear()
    first, second = dataset[SampleKey(0, 2, (0, 1))], dataset[SampleKey(0, 0, (2, 1))]
    assert source.rows == [2, 0]
    assert first.image_id == 80
    assert first.original_size == (20, 20)
    assert torch.equal(first.image[..., :20], alone[2])
    # Partners are cached no larger than the network input, so that they are resized twice.
    assert (first.image[..., 20:].float() - alone[0].float()).abs().mean() < 16
    assert torch.equal(first.image[..., 20:], second.image[..., :20])
    dataset[SampleKey(0, 1, (0,))]
    # Only two are cached: image 1 replaced the least recently used one.
    assert source.rows == [2, 0, 1, 0]


def test_a_partner_that_cannot_be_read_is_reported_with_the_sample(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=BOXES)
    (files.images / "1.png").write_bytes(b"no picture")
    source = FileSource(CocoIndex.load(files.json_path, files.images))
    dataset = DetectionDataset(
        source=source, size=(20, 40), augmentation=Pair(), cached_images=2, on_bad_image="skip"
    )
    sample = dataset[SampleKey(0, 0, (1, 2))]
    assert sample.image_id == 100
    assert len(sample.skipped) == 1


@pytest.mark.parametrize("name", ["bccd", "cards", "coco128", "tinycoco"])
def test_real_data_sets_are_read(shared_data: Path, name: str) -> None:
    annotations = shared_data / name / "annotations"
    path = next((p for p in sorted(annotations.glob("instances_val*.json"))), None)
    if path is None:
        pytest.skip(f"{annotations} is not there")
    index = CocoIndex.load(path, shared_data / name / "images" / path.stem.removeprefix("instances_"))
    dataset = DetectionDataset(source=FileSource(index), size=(64, 64), augmentation=AUGMENTATION)
    for row in range(6):
        assert dataset[row].image.shape == (3, 64, 64)
