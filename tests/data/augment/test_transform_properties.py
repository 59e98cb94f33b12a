"""What must hold of every transform, whatever the image, its boxes and the seed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_pictures import colour_of, generator, loaders, painted, plain

from anydepth.data.augment.affine import RandomAffine
from anydepth.data.augment.copy_paste import CopyPaste
from anydepth.data.augment.crop import IoUCrop, ZoomOut
from anydepth.data.augment.hsv import HSVJitter
from anydepth.data.augment.mosaic import MixUp, Mosaic
from anydepth.data.augment.photometric import PhotometricDistort
from anydepth.data.augment.rtdetr import RTDETRAugmentation
from anydepth.data.augment.view import Augmentation, Turn, View
from anydepth.data.augment.yolo import YOLOAugmentation

SIZE = (48, 64)
FLIPS = Turn(horizontal=0.5, vertical=0.5)
RTDETR = RTDETRAugmentation(
    photometric=PhotometricDistort(),
    zoom_out=ZoomOut(),
    crop=IoUCrop(),
    turn=Turn(vertical=0.5, transpose=0.5),
)
YOLO = YOLOAugmentation(
    mosaic=Mosaic(),
    copy_paste=CopyPaste(share=0.6),
    affine=RandomAffine(scale=0.9),
    mixup=MixUp(p=0.3),
    hsv=HSVJitter(),
    turn=FLIPS,
)
WITHOUT_COLOURS: dict[str, Augmentation] = {
    "RT-DETR": RTDETRAugmentation(zoom_out=ZoomOut(), crop=IoUCrop(), turn=Turn(vertical=0.5, transpose=0.5)),
    "YOLO": YOLOAugmentation(mosaic=Mosaic(), affine=RandomAffine(scale=0.9), turn=FLIPS),
    "YOLO, half of the time": YOLOAugmentation(mosaic=Mosaic(p=0.5), affine=RandomAffine(), turn=FLIPS),
    "YOLO without the affine map": YOLOAugmentation(mosaic=Mosaic()),
}
PARTS: dict[str, Callable[[View, torch.Generator], View]] = {
    "colours": PhotometricDistort(p=0.8),
    "zoom-out": ZoomOut(p=0.8),
    "crop": IoUCrop(p=0.9),
    "turn": Turn(horizontal=0.5, vertical=0.5, transpose=0.5),
    "HSV": HSVJitter(),
}


@st.composite
def pictures(draw: st.DrawFn, first_label: int = 0, outlined: bool | None = None) -> View:
    """Images of 1 to 50 pixels a side with up to four boxes that do not overlap, one in each quarter."""
    height, width = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    if outlined is None:
        outlined = draw(st.booleans())
    boxes = []
    for top, bottom in ((0, height // 2), (height // 2, height)):
        for left, right in ((0, width // 2), (width // 2, width)):
            if right > left and bottom > top and draw(st.booleans()):
                x0, y0 = draw(st.integers(left, right - 1)), draw(st.integers(top, bottom - 1))
                boxes.append((x0, y0, draw(st.integers(x0 + 1, right)), draw(st.integers(y0 + 1, bottom))))
    return painted(height, width, boxes, first_label=first_label, outlined=outlined)


Seeds = st.integers(0, 2**31)
Fours = st.tuples(*(pictures(first_label=4 * number) for number in range(4)))


def check(view: View) -> None:
    image, boxes = plain(view)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert boxes.shape == (len(view.labels), 4)
    assert boxes.dtype == torch.float32
    assert view.labels.dtype == torch.int64
    height, width = image.shape[1:]
    assert tuple(view.boxes_xyxy.canvas_size) == (height, width)
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def check_colours(view: View, sources: tuple[View, ...]) -> None:
    """In the middle of each box that is wide enough not to be blurred is the colour of its label."""
    image, boxes = plain(view)
    for (x0, y0, x1, y1), label in zip(boxes.tolist(), view.labels.tolist(), strict=True):
        height, width = sources[label // 4].image.shape[-2:]
        pixel = 1.9 * min(SIZE[0] / height, SIZE[1] / width)  # Of the source, at its largest.
        if min(x1 - x0, y1 - y0) >= 8 + 3 * pixel:
            found = image[:, int((y0 + y1) / 2), int((x0 + x1) / 2)].int()
            assert (found - torch.tensor(colour_of(label))).abs().max() <= 2


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=40, deadline=None)
@given(view=pictures(), seed=Seeds)
def test_every_part_keeps_boxes_in_the_image_and_its_input_as_it_was(
    name: str, view: View, seed: int
) -> None:
    image, boxes = (tensor.clone() for tensor in plain(view))
    changed = PARTS[name](view, generator(seed))
    check(changed)
    again = PARTS[name](view, generator(seed))
    assert torch.equal(plain(changed)[0], plain(again)[0])
    assert torch.equal(plain(view)[0], image)
    assert torch.equal(plain(view)[1], boxes)


@pytest.mark.parametrize("augmentation", [RTDETR, YOLO], ids=["RT-DETR", "YOLO"])
@settings(max_examples=40, deadline=None)
@given(views=Fours, others=Fours, seed=Seeds, closing=st.booleans())
def test_every_augmentation_is_a_function_of_its_generator(
    augmentation: Augmentation,
    views: tuple[View, ...],
    others: tuple[View, ...],
    seed: int,
    closing: bool,
) -> None:
    partners = [] if closing else loaders([*views[1:], *others])[: augmentation.partners]
    images = [view.image.clone() for view in views]
    state = torch.get_rng_state()
    first, again = (augmentation(views[0], partners, generator(seed), SIZE) for _ in range(2))
    check(first)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first[:3], again[:3], strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(view.image, image) for view, image in zip(views, images, strict=True))
    if augmentation is YOLO:
        assert plain(first)[0].shape == (3, *SIZE)
        sides = plain(first)[1][:, 2:] - plain(first)[1][:, :2]
        # The limit of 2 holds before flips, which round.
        assert (sides > 1.999).all()


@pytest.mark.parametrize("name", WITHOUT_COLOURS)
@settings(max_examples=60, deadline=None)
@given(views=Fours, seed=Seeds, closing=st.booleans())
def test_every_box_stays_with_its_pixels_and_its_label(
    name: str, views: tuple[View, ...], seed: int, closing: bool
) -> None:
    partners = [] if closing else loaders(views[1:])
    view = WITHOUT_COLOURS[name](views[0], partners, generator(seed), SIZE)
    check(view)
    check_colours(view, views)
    assert len(set(view.labels.tolist())) == len(view.labels)


@settings(max_examples=40, deadline=None)
@given(view=pictures(), seed=Seeds)
def test_recolouring_only_the_visible_part_equals_one_transform_after_another(view: View, seed: int) -> None:
    noise = torch.randint(0, 256, view.image.shape, generator=generator(seed), dtype=torch.uint8)
    view = View.of((view.image // 2 + noise // 2), view.boxes_xyxy, view.labels)
    together = RTDETR(view, (), generator(seed), SIZE)
    random = generator(seed)
    for part in (RTDETR.photometric, RTDETR.zoom_out, RTDETR.crop, RTDETR.turn):
        assert part is not None
        view = part(view, random)
    assert torch.equal(plain(view)[0], plain(together)[0])
    assert torch.equal(plain(view)[1], plain(together)[1])
    assert torch.equal(view.labels, together.labels)


@pytest.mark.parametrize("way", ["horizontal", "vertical", "transpose"])
@settings(max_examples=20, deadline=None)
@given(view=pictures())
def test_a_flip_twice_is_the_identity(way: str, view: View) -> None:
    turn = Turn(**{"horizontal": 0.0, way: 1.0})
    twice = turn(turn(view, generator()), generator())
    assert torch.equal(plain(twice)[0], plain(view)[0])
    assert torch.equal(plain(twice)[1], plain(view)[1])
    assert torch.equal(twice.labels, view.labels)


@settings(max_examples=60, deadline=None)
@given(views=Fours, seed=Seeds)
def test_the_mosaic_shows_every_box_that_its_canvas_holds(views: tuple[View, ...], seed: int) -> None:
    height, width = SIZE
    scene = Mosaic()(views[0], loaders(views[1:]), generator(seed), SIZE)
    assert scene.size == (2 * height, 2 * width)
    # The first picture ends where the four meet.
    x, y = scene.tiles[0].window[2:]
    assert width / 2 <= x <= 1.5 * width
    assert height / 2 <= y <= 1.5 * height
    expected = {}
    for view, (right, below) in zip(views, ((0, 0), (1, 0), (1, 1), (0, 1)), strict=True):
        image, boxes = plain(view)
        factor = min(height / image.shape[1], width / image.shape[2])
        rows, columns = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor))
        left, top = x - columns * (1 - right), y - rows * (1 - below)
        for box, label in zip(boxes.numpy().astype(float), view.labels.tolist(), strict=True):
            sides = np.tile([columns / image.shape[2], rows / image.shape[1]], 2)
            placed = box * sides + [left, top, left, top]
            placed = placed.clip(0, [2 * width, 2 * height, 2 * width, 2 * height])
            if (placed[2:] - placed[:2] > 1e-3).all():
                expected[label] = placed
    found = dict(zip(scene.labels.tolist(), scene.boxes_xyxy, strict=True))
    assert found.keys() >= expected.keys()
    assert all(np.abs(found[label] - box).max() < 1e-3 for label, box in expected.items())
