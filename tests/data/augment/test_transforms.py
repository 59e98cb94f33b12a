"""Augmentations. In most tests a pixel holds its own column and row, which identify its origin."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from anydepth.data.augment.crop import IoUCrop, ZoomOut
from anydepth.data.augment.photometric import PhotometricDistort
from anydepth.data.augment.rtdetr import RTDETRAugmentation
from anydepth.data.augment.view import Turn, View, drop_small_boxes, multi_scale_size

HEIGHT, WIDTH = 120, 200


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinate_view(boxes: list[list[float]], height: int = HEIGHT, width: int = WIDTH) -> View:
    """Red is the column, green the row, blue 255; labels count the boxes."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([columns, rows, torch.full_like(rows, 255)]).to(torch.uint8)
    return View.of(image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)))


def plain(view: View) -> tuple[Tensor, Tensor]:
    return view.image.as_subclass(Tensor), view.boxes_xyxy.as_subclass(Tensor)


def source_box(view: View, position: int) -> list[int]:
    """Where the pixels inside a box were in the original image (x0, y0, x1, y1, ends outside)."""
    image, boxes = plain(view)
    x0, y0, x1, y1 = boxes[position].int().tolist()
    part = image[:, y0:y1, x0:x1]
    assert part[2].eq(255).all()
    low, high = part[:2].flatten(1).amin(1).tolist(), part[:2].flatten(1).amax(1).tolist()
    return [low[0], low[1], high[0] + 1, high[1] + 1]


# -- colours ----------------------------------------------------------------------------------------------


def test_photometric_changes_are_those_of_torchvision_in_its_order() -> None:
    image = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8, generator=generator())
    distort = PhotometricDistort(
        p=1.0,
        brightness=(1.1, 1.1),
        contrast=None,
        saturation=(1.4, 1.4),
        hue=(0.1, 0.1),
        permute_channels=False,
    )
    found, _ = plain(distort(View.of(image, torch.zeros(0, 4), torch.zeros(0)), generator()))
    expected = F.adjust_hue(F.adjust_saturation(F.adjust_brightness(image, 1.1), 1.4), 0.1)
    # Pillow rounds hue and saturation to 8 bits, torchvision computes them in float.
    difference = (found.int() - expected.int()).abs().float()
    assert difference.mean() < 2
    assert (found.int() - image.int()).abs().float().mean() > 20


def test_contrast_comes_first_in_half_of_the_cases() -> None:
    image = torch.randint(0, 256, (3, 30, 30), dtype=torch.uint8, generator=generator())
    view = View.of(image, torch.zeros(0, 4), torch.zeros(0))
    distort = PhotometricDistort(
        p=1.0, contrast=(0.5, 0.5), brightness=(1.6, 1.6), saturation=None, hue=None, permute_channels=False
    )
    first = F.adjust_brightness(F.adjust_contrast(image, 0.5), 1.6).int()
    last = F.adjust_contrast(F.adjust_brightness(image, 1.6), 0.5).int()
    count = 0
    for seed in range(100):
        found = plain(distort(view, generator(seed)))[0].int()
        # The mean grey level that contrast pivots on is rounded differently; brightness magnifies that.
        is_first = (found - first).abs().max() <= 3
        assert is_first or (found - last).abs().max() <= 3
        count += int(is_first)
    # Binomial(100, 0.5): 35..65 holds 99.8 % of the probability.
    assert 35 <= count <= 65


def test_channels_are_permuted_only_if_wanted() -> None:
    view = View.of(
        torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1), torch.zeros(0, 4), torch.zeros(0)
    )
    off = {"brightness": None, "contrast": None, "saturation": None, "hue": None}
    seen = {
        tuple(plain(PhotometricDistort(p=1.0, **off)(view, generator(seed)))[0].flatten().tolist())
        for seed in range(60)
    }
    assert len(seen) == 6
    assert all(sorted(colour) == [10, 20, 30] for colour in seen)
    kept = PhotometricDistort(p=1.0, permute_channels=False, **off)
    assert all(torch.equal(plain(kept(view, generator(seed)))[0], plain(view)[0]) for seed in range(20))


# -- geometry ---------------------------------------------------------------------------------------------


def test_zoom_out_moves_the_boxes_with_their_pixels_and_fills_the_rest() -> None:
    view = coordinate_view([[10, 20, 60, 50], [0, 0, WIDTH, HEIGHT]])
    factors = []
    for seed in range(30):
        zoomed = ZoomOut(p=1.0, side_range=(1.5, 3.0), fill=7)(view, generator(seed))
        image, boxes = plain(zoomed)
        assert source_box(zoomed, 0) == [10, 20, 60, 50]
        assert boxes[0, 2:].sub(boxes[0, :2]).tolist() == [50, 30]
        x0, y0, x1, y1 = boxes[1].int().tolist()
        outside = torch.ones(image.shape[-2:], dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        assert image[:, outside].eq(7).all()
        factors.append(image.shape[2] / WIDTH)
    assert 1.5 <= min(factors) < 1.7
    assert 2.8 < max(factors) <= 3.0


def test_crop_keeps_boxes_by_their_centre_and_clips_them() -> None:
    boxes = [[10.0 * i, 8.0 * i, 10.0 * i + 30, 8.0 * i + 20] for i in range(12)]
    view = coordinate_view(boxes)
    crop = IoUCrop(p=1.0, scale=(0.3, 0.7), aspect=(1.2, 2.0), min_iou=(0.0,))
    dropped = 0
    for seed in range(40):
        cropped = crop(view, generator(seed))
        image, _ = plain(cropped)
        height, width = image.shape[-2:]
        assert 0.3 * WIDTH - 1 <= width <= 0.7 * WIDTH
        assert 0.3 * HEIGHT - 1 <= height <= 0.7 * HEIGHT
        assert 1.2 <= width / height <= 2.0
        left, top = image[0, 0, 0].item(), image[1, 0, 0].item()
        inside = [
            number
            for number, (x0, y0, x1, y1) in enumerate(boxes)
            if left < (x0 + x1) / 2 < left + width and top < (y0 + y1) / 2 < top + height
        ]
        assert cropped.labels.tolist() == inside
        assert inside
        dropped += len(boxes) - len(inside)
        for position, number in enumerate(inside):
            x0, y0, x1, y1 = boxes[number]
            expected = [max(x0, left), max(y0, top), min(x1, left + width), min(y1, top + height)]
            assert source_box(cropped, position) == expected
    assert dropped > 100


def test_crop_reaches_the_overlap_that_was_drawn() -> None:
    view = coordinate_view([[60, 30, 160, 100]])
    changed = 0
    for seed in range(30):
        image, boxes = plain(IoUCrop(p=1.0, min_iou=(0.7,), trials=200)(view, generator(seed)))
        height, width = image.shape[-2:]
        if (height, width) == (HEIGHT, WIDTH):
            continue
        changed += 1
        left, top = image[0, 0, 0].item(), image[1, 0, 0].item()
        crop = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
        assert box_iou(crop, torch.tensor([[60.0, 30, 160, 100]])).item() >= 0.7
        assert len(boxes) == 1
    assert changed >= 25


def test_crops_are_as_large_as_those_of_torchvision() -> None:
    view = coordinate_view([[20, 10, 150, 100], [100, 50, 190, 110]])
    ours, theirs = IoUCrop(p=1.0), v2.RandomIoUCrop()
    sample = {"image": view.image, "boxes": view.boxes_xyxy}
    areas: list[list[float]] = [[], []]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for seed in range(150):
            image = plain(ours(view, generator(seed)))[0]
            areas[0].append(image.shape[1] * image.shape[2] / (HEIGHT * WIDTH))
            areas[1].append(theirs(sample)["image"][0].numel() / (HEIGHT * WIDTH))
    mine, reference = torch.tensor(areas)
    # The deviation of one area is about 0.25, so that of the difference of two means of 150 is 0.03.
    assert abs(mine.mean() - reference.mean()) < 0.08
    assert abs(mine.std() - reference.std()) < 0.06
    assert abs((mine == 1).float().mean() - (reference == 1).float().mean()) < 0.12


@pytest.mark.parametrize("boxes", [[], [[5, 5, 8, 8]]])
def test_crop_ends_if_no_crop_can_satisfy_it(boxes: list[list[float]]) -> None:
    # torchvision never stops drawing here: a box of 9 px² never covers half of a crop.
    view = coordinate_view(boxes)
    image, _ = plain(IoUCrop(p=1.0, min_iou=(0.5,))(view, generator()))
    assert image.shape == (3, HEIGHT, WIDTH)


def test_turn_lays_pictures_down_in_eight_equally_likely_ways() -> None:
    view = coordinate_view([[10, 20, 60, 50]], height=100, width=90)
    turn = Turn(horizontal=0.5, vertical=0.5, transpose=0.5)
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(400):
        turned = turn(view, generator(seed))
        assert source_box(turned, 0) == [10, 20, 60, 50]
        image, boxes = plain(turned)
        assert boxes.shape == (1, 4)
        key = (image[0, 0, 0].item(), image[1, 0, 0].item(), image.shape[1])
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 8
    # Binomial(400, 1/8): mean 50, deviation 6.6.
    assert all(25 <= count <= 75 for count in seen.values())


def test_turn_by_default_only_mirrors() -> None:
    view = coordinate_view([[10, 20, 60, 50]])
    results = {tuple(plain(Turn()(view, generator(seed)))[1][0].tolist()) for seed in range(30)}
    assert results == {(10, 20, 60, 50), (WIDTH - 60, 20, WIDTH - 10, 50)}


def test_boxes_below_a_pixel_before_or_after_resizing_are_dropped() -> None:
    view = coordinate_view([[0, 0, 10, 10], [0, 0, 0.9, 50], [0, 0, 50, 1.5], [0, 0, 3, 3]])
    # Half the width and a third of the height: the third box would be 0.5 px high, the fourth 1.5 x 1.
    kept = drop_small_boxes(view, (HEIGHT // 3, WIDTH // 2))
    assert kept.labels.tolist() == [0, 3]
    assert drop_small_boxes(view, (HEIGHT * 2, WIDTH * 2)).labels.tolist() == [0, 2, 3]


# -- randomness -------------------------------------------------------------------------------------------

ALL = RTDETRAugmentation(
    photometric=PhotometricDistort(),
    zoom_out=ZoomOut(),
    crop=IoUCrop(),
    turn=Turn(vertical=0.5, transpose=0.5),
)


def augmented(view: View, seed: int) -> View:
    return ALL(view, (), generator(seed), (64, 64))


def test_augmentation_is_a_function_of_its_generator_and_leaves_the_global_one_alone() -> None:
    view = coordinate_view([[10, 20, 60, 50]])
    before = torch.get_rng_state()
    first, again, other = (plain(augmented(view, seed)) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_original_is_not_changed() -> None:
    view = coordinate_view([[10, 20, 60, 50]])
    image, boxes = (tensor.clone() for tensor in plain(view))
    for seed in range(10):
        augmented(view, seed)
    assert torch.equal(plain(view)[0], image)
    assert torch.equal(plain(view)[1], boxes)


@pytest.mark.parametrize("part", [PhotometricDistort(p=0), ZoomOut(p=0), IoUCrop(p=0), Turn(horizontal=0)])
def test_a_part_of_probability_zero_does_nothing(part: Callable[[View, torch.Generator], View]) -> None:
    view = coordinate_view([[10, 20, 60, 50]])
    for seed in range(5):
        image, boxes = plain(part(view, generator(seed)))
        assert torch.equal(image, plain(view)[0])
        assert torch.equal(boxes, plain(view)[1])


def test_multi_scale_size_is_a_function_of_seed_and_step_and_draws_as_often_as_given() -> None:
    sizes = [480, 640, 640, 640, 800]
    drawn = [multi_scale_size(1, step, sizes) for step in range(3000)]
    assert drawn == [multi_scale_size(1, step, sizes) for step in range(3000)]
    assert drawn != [multi_scale_size(2, step, sizes) for step in range(3000)]
    # Three of five: 1800 of 3000, deviation 27.
    assert abs(drawn.count(640) - 1800) < 110
    assert set(drawn) == set(sizes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhotometricDistort(p=1.5), "p=1.5, expected a probability"),
        (
            lambda: PhotometricDistort(hue=(-0.6, 0)),
            "hue=.*expected two ascending numbers between -0.5 and 0.5",
        ),
        (lambda: PhotometricDistort(contrast=(1.5, 0.5)), "contrast=.*two ascending numbers"),
        (lambda: ZoomOut(side_range=(0.5, 2)), "side_range=.*between 1.0"),
        (lambda: ZoomOut(fill=300), "fill=300, expected 0 to 255"),
        (lambda: IoUCrop(scale=(0.3, 1.2)), "scale=.*between 0.0 and 1.0"),
        (lambda: IoUCrop(min_iou=()), "give at least one threshold"),
        (lambda: IoUCrop(trials=0), "trials=0"),
        (lambda: Turn(vertical=-1), "vertical=-1"),
        (lambda: multi_scale_size(0, 0, []), "sizes is empty"),
        (lambda: multi_scale_size(0, -1, [640]), "neither may be negative"),
    ],
)
def test_impossible_strengths_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_views_hold_tv_tensors_of_the_right_canvas() -> None:
    view = augmented(coordinate_view([[10, 20, 60, 50]]), 3)
    assert isinstance(view.boxes_xyxy, tv_tensors.BoundingBoxes)
    assert tuple(view.boxes_xyxy.canvas_size) == tuple(view.image.shape[-2:])


def test_under_a_letter_box_small_boxes_are_dropped_by_its_scale() -> None:
    # 3 px wide: stretching to a tenth of the height and the full width would keep its width; the letter box
    # scales both sides by a tenth, which leaves 0.3 px.
    view = coordinate_view([[0, 0, 3, 60], [0, 0, 40, 60]])
    size = (HEIGHT // 10, WIDTH)
    assert drop_small_boxes(view, size).labels.tolist() == [0, 1]
    assert drop_small_boxes(view, size, fit="letter_box").labels.tolist() == [1]
