"""YOLO's augmentation against a mosaic that is painted as a whole, and its parts one by one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from painted_pictures import (
    BACKGROUND,
    colour_of,
    generator,
    loaders,
    mapped,
    painted,
    plain,
    rectangles,
    resized,
)
from PIL import Image
from torch import Tensor

from anydepth.data.augment.affine import AxisMap, RandomAffine, scale_about_centre
from anydepth.data.augment.copy_paste import CopyPaste
from anydepth.data.augment.hsv import HSVJitter
from anydepth.data.augment.mosaic import MixUp, Mosaic
from anydepth.data.augment.scene import Scene, letter_box_scene, resample
from anydepth.data.augment.view import Turn, View
from anydepth.data.augment.yolo import YOLOAugmentation
from anydepth.images import letter_box_image
from anydepth.pictures.fitting import letter_box_frame

S = 96
NOWHERE = AxisMap((1.0, 1.0), (0.0, 0.0))


def smooth(height: int, width: int, seed: int) -> View:
    """A picture of soft blobs with two boxes."""
    blobs = 255 * torch.rand(3, 5, 5, generator=generator(seed))
    image = resized(blobs, (height, width)).clamp(0, 255).to(torch.uint8)
    boxes = torch.tensor(
        [[0.1 * width, 0.2 * height, 0.5 * width, 0.6 * height], [0.3 * width, 0.5 * height, width, height]]
    )
    return View.of(image, boxes, torch.tensor([2 * seed, 2 * seed + 1]), rectangles(boxes.tolist()))


VIEWS = [smooth(80, 120, 0), smooth(200, 90, 1), smooth(64, 64, 2), smooth(150, 201, 3)]


def painted_mosaic(x: int, y: int) -> tuple[Tensor, Tensor]:
    """The whole canvas in float, and its boxes, as the publication makes it."""
    canvas, boxes = torch.full((3, 3 * 2 * S, 3 * 2 * S), 114.0), []
    for view, (right, below) in zip(VIEWS, ((0, 0), (1, 0), (1, 1), (0, 1)), strict=True):
        height, width = view.image.shape[1:]
        factor = S / max(height, width)
        rows, columns = round(height * factor), round(width * factor)
        left, top = x - (0 if right else columns), y - (0 if below else rows)
        # On a canvas that is larger on all sides, so that nothing has to be cut.
        canvas[:, 2 * S + top : 2 * S + top + rows, 2 * S + left : 2 * S + left + columns] = resized(
            plain(view)[0], (rows, columns)
        )
        sides = torch.tensor([columns / width, rows / height] * 2)
        boxes.append(plain(view)[1] * sides + torch.tensor([left, top, left, top]))
    return canvas[:, 2 * S : 4 * S, 2 * S : 4 * S], torch.cat(boxes).clamp(0, 2 * S)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("scale", "centre"), [(1.0, (48, 48)), (1.0, (43, 55)), (1.37, (50.3, 41.9)), (0.8, (40.2, 51))]
)
def test_pixels_and_boxes_are_those_of_a_mosaic_painted_as_a_whole(
    seed: int, scale: float, centre: tuple[float, float]
) -> None:
    scene = Mosaic()(VIEWS[0], loaders(VIEWS[1:]), generator(seed), (S, S))
    x, y = (int(edge) for edge in scene.tiles[0].window[2:])
    canvas, boxes = painted_mosaic(x, y)
    view = scene.render(scale_about_centre(scene.size, scale, centre), (S, S), fill=114)
    shift = (centre[0] - scale * S, centre[1] - scale * S)
    expected = mapped(canvas, scale, shift, (S, S))
    image, found = plain(view)
    difference = (image.float() - expected).abs()
    if scale == 1.0:
        # Both resize once, the reference without rounding to whole grey levels.
        assert difference.max() <= 2
    # The reference interpolates twice, and softens the edges where pictures meet by up to a pixel.
    assert difference.mean() < 1.5
    assert difference.median() < 1

    moved = boxes * scale + torch.tensor(shift * 2)
    clipped = moved.clamp(0, S)
    sides, before = clipped[:, 2:] - clipped[:, :2], moved[:, 2:] - moved[:, :2]
    keep = (
        (sides > 2).all(1) & (sides.prod(1) > 0.01 * before.prod(1)) & (sides.amax(1) < 100 * sides.amin(1))
    )
    assert view.labels.tolist() == torch.arange(8)[keep].tolist()
    assert torch.allclose(found, clipped[keep], atol=1e-3)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    # Columns of black and white: a filter without antialiasing would give stripes.
    stripes = (255 * (torch.arange(400) % 2)).to(torch.uint8).expand(3, 400, 400)
    view = View.of(stripes, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    image, _ = plain(
        letter_box_scene(view, (S, S)).render(scale_about_centre((S, S), 0.5, (48, 48)), (S, S), 114)
    )
    assert (image[:, 30:60, 30:60].float() - 127.5).abs().max() < 20


@settings(max_examples=60, deadline=None)
@given(
    step=st.floats(0.1, 6),
    start=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_cutting_a_part_out_first_changes_pixels_by_rounding_at_most(
    step: float, start: tuple[float, float], size: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (240, 250, 3), dtype=torch.uint8, generator=generator())
    left, top = start[0] * (250 - step * size[1]), start[1] * (240 - step * size[0])
    part = (left, top, left + step * size[1], top + step * size[0])
    expected = Image.fromarray(image.numpy()).resize(size[::-1], Image.Resampling.BILINEAR, box=part)
    found = resample(image.permute(2, 0, 1), part, size)
    # Pillow places parts in single precision, and rounds twice: once for each axis.
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 2


def test_affine_draws_from_the_published_ranges() -> None:
    affine = RandomAffine(scale=0.5, translate=0.1)
    random = generator()
    maps = [affine((200, 200), (100, 100), random) for _ in range(500)]
    scales = torch.tensor([each.scale[0] for each in maps])
    centres = torch.tensor([[100 * each.scale[0] + shift for shift in each.shift] for each in maps])
    assert 0.5 <= scales.min() < 0.52
    assert 1.48 < scales.max() <= 1.5
    assert 40 <= centres.min() < 40.5
    assert 59.5 < centres.max() <= 60
    assert all(each.scale[0] == each.scale[1] for each in maps)


def test_closing_epochs_letter_box_before_the_affine_map() -> None:
    view = painted(40, 80, [(10, 10, 30, 30), (60, 20, 80, 40)])
    yolo = YOLOAugmentation(mosaic=Mosaic(), copy_paste=CopyPaste(), mixup=MixUp(p=1.0))
    image, boxes = plain(yolo(view, (), generator(), (S, S)))
    # 1.2 times as large, with 24 rows of grey above and below.
    assert boxes.tolist() == [[12, 36, 36, 60], [72, 48, 96, 72]]
    assert (image[:, :24] == 114).all()
    assert (image[:, 72:] == 114).all()
    assert torch.equal(image, letter_box_image(plain(view)[0], (S, S))) or (
        (image.int() - letter_box_image(plain(view)[0], (S, S)).int()).abs().max() <= 1
    )


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [
        ((480, 640), (640, 640), (1.0, 0, 80, (480, 640))),
        ((100, 50), (640, 640), (6.4, 160, 0, (640, 320))),
        ((375, 500), (320, 640), (320 / 375, 106, 0, (320, 427))),
        ((1, 5000), (64, 64), (64 / 5000, 0, 31, (1, 64))),
    ],
)
def test_letter_box_frames_known_by_hand(
    original: tuple[int, int], size: tuple[int, int], expected: tuple[float, int, int, tuple[int, int]]
) -> None:
    assert letter_box_frame(original, size) == expected
    image = torch.full((3, *original), 200, dtype=torch.uint8)
    framed = letter_box_image(image, size, fill=9)
    (_, left, top, (height, width)) = expected
    assert framed.shape == (3, *size)
    assert (framed[:, top : top + height, left : left + width] == 200).all()
    assert int((framed == 200).sum()) == 3 * height * width
    assert int((framed == 9).sum()) == framed.numel() - 3 * height * width


# -- copy-paste -------------------------------------------------------------------------------------------


def scene_with(boxes: list[tuple[int, int, int, int]], outlined: bool = True) -> Scene:
    return letter_box_scene(painted(S, S, boxes, outlined=outlined), (S, S))


def test_mirror_images_of_objects_are_pasted_with_box_and_label() -> None:
    scene = CopyPaste(share=1.0)(scene_with([(5, 10, 25, 40), (60, 60, 90, 80)]))
    image, boxes = plain(scene.render(NOWHERE, (S, S), 114))
    assert boxes.tolist() == [[5, 10, 25, 40], [60, 60, 90, 80], [71, 10, 91, 40], [6, 60, 36, 80]]
    assert scene.labels.tolist() == [0, 1, 0, 1]
    before, _ = plain(scene_with([(5, 10, 25, 40), (60, 60, 90, 80)]).render(NOWHERE, (S, S), 114))
    changed = (image != before).any(dim=0)
    # Pillow's polygons include their border.
    assert changed[10:40, 71:91].all()
    assert changed[60:80, 6:36].all()
    changed[9:41, 70:92] = False
    changed[59:81, 5:37] = False
    assert not changed.any()
    for label, (x, y) in enumerate([(81, 25), (21, 70)]):
        assert image[:, y, x].tolist() == list(colour_of(label))


def test_only_the_inside_of_a_polygon_is_pasted() -> None:
    view = painted(S, S, [(10, 10, 40, 40)])
    triangle = rectangles([(10, 10, 40, 40)]).take(np.array([0]))
    triangle.points[:] = [(10, 10), (40, 10), (10, 40), (10, 40)]
    scene = CopyPaste(share=1.0)(letter_box_scene(view._replace(outlines=triangle), (S, S)))
    image, _ = plain(scene.render(NOWHERE, (S, S), 114))
    assert image[:, 13, 83].tolist() == list(colour_of(0))
    assert image[:, 37, 59].tolist() == [BACKGROUND] * 3


def test_objects_that_would_hide_others_stay_away() -> None:
    # The mirror image of the first, x from 46 to 86, would cover half of the second; that of the second, x
    # from 20 to 30, would cover a fifteenth of the first.
    boxes = [(10, 10, 50, 40), (66, 25, 76, 55)]
    scene = CopyPaste(share=1.0)(scene_with(boxes))
    assert scene.labels.tolist() == [0, 1, 1]
    # 0.5 of the second and, at x 46 to 50, 0.1 of the first itself.
    assert CopyPaste(share=1.0, max_cover=0.51)(scene_with(boxes)).labels.tolist() == [0, 1, 1, 0]


def test_the_share_that_is_pasted_begins_with_those_that_cover_least() -> None:
    boxes = [(0, 0, 20, 20), (80, 10, 90, 30), (0, 60, 20, 90), (30, 40, 40, 50)]
    covers = []
    for x0, y0, x1, y1 in boxes:
        left, right = S - x1, S - x0
        covers.append(
            max(
                max(0, min(right, b[2]) - max(left, b[0]))
                * max(0, min(y1, b[3]) - max(y0, b[1]))
                / ((b[2] - b[0]) * (b[3] - b[1]))
                for b in boxes
            )
        )
    free = [number for number in np.argsort(covers, kind="stable") if covers[number] < 0.3]
    for share, count in ((0.1, 0), (0.5, round(0.5 * len(free))), (1.0, len(free))):
        assert CopyPaste(share=share)(scene_with(boxes)).labels.tolist() == [0, 1, 2, 3, *free[:count]]


def test_objects_without_polygons_are_never_pasted() -> None:
    scene = scene_with([(5, 10, 25, 40)], outlined=False)
    assert CopyPaste(share=1.0)(scene) is scene


# -- mixup and partners -----------------------------------------------------------------------------------


def test_mixup_weighs_two_views_about_evenly_and_keeps_the_objects_of_both() -> None:
    first, second = painted(8, 8, [(0, 0, 4, 4)]), painted(8, 8, [(4, 4, 8, 8)], first_label=1)
    first = View.of(torch.full((3, 8, 8), 200, dtype=torch.uint8), first.boxes_xyxy, first.labels)
    second = View.of(torch.zeros(3, 8, 8, dtype=torch.uint8), second.boxes_xyxy, second.labels)
    mixed = [MixUp()(first, second, generator(seed)) for seed in range(300)]
    assert all(view.labels.tolist() == [0, 1] for view in mixed)
    assert plain(mixed[0])[1].tolist() == [[0, 0, 4, 4], [4, 4, 8, 8]]
    shares = torch.tensor([float(plain(view)[0][0, 0, 0]) / 200 for view in mixed])
    # Beta(32, 32): mean 0.5, deviation 1 / (2 sqrt(65)) = 0.062; of 300 the two vary by 0.0036 and 0.0025.
    assert abs(shares.mean() - 0.5) < 0.015
    assert abs(shares.std() - 0.062) < 0.01


@pytest.mark.parametrize(
    ("parts", "partners", "loaded"),
    [
        ({"mosaic": Mosaic(), "mixup": MixUp(p=1.0)}, 7, 7),
        ({"mosaic": Mosaic(), "mixup": MixUp(p=1e-9)}, 7, 3),
        ({"mosaic": Mosaic(), "mixup": MixUp(p=0)}, 3, 3),
        ({"mosaic": Mosaic(p=1e-9)}, 3, 0),
        ({"mixup": MixUp(p=1.0)}, 1, 1),
        ({"affine": RandomAffine()}, 0, 0),
    ],
)
def test_partners_are_loaded_only_if_needed(parts: dict[str, object], partners: int, loaded: int) -> None:
    yolo = YOLOAugmentation(**parts)  # type: ignore[arg-type]
    assert yolo.partners == partners
    calls = []

    def loader(number: int) -> Callable[[], View]:
        return lambda: calls.append(number) or VIEWS[number % 4]

    yolo(VIEWS[0], [loader(number) for number in range(partners)], generator(), (S, S))
    assert calls == list(range(loaded))
    yolo(VIEWS[0], [], generator(), (S, S))
    assert len(calls) == loaded


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mosaic(p=1.5), "p=1.5, expected a probability"),
        (lambda: CopyPaste(share=-0.1), "share=-0.1, expected a probability"),
        (lambda: CopyPaste(max_cover=2), "max_cover=2, expected 0 to 1"),
        (lambda: RandomAffine(scale=1.0), "scale=1.0, expected 0 to below 1"),
        (lambda: RandomAffine(translate=0.6), "translate=0.6, expected 0 to 0.5"),
        (lambda: MixUp(alpha=0), "alpha=0, expected a whole number from 1"),
        (lambda: YOLOAugmentation(fill=256), "fill=256, expected 0 to 255"),
        (
            lambda: YOLOAugmentation(mosaic=Mosaic())(VIEWS[0], loaders(VIEWS[:2]), generator(), (S, S)),
            "2 partners, expected 3; give none at all",
        ),
        (
            lambda: YOLOAugmentation(turn=Turn(transpose=0.5))(VIEWS[0], (), generator(), (S, 2 * S)),
            "transpose=0.5 with a size of 96 x 192; .* requires a square size: set transpose to 0",
        ),
        (lambda: letter_box_frame((0, 5), (S, S)), r"\(0, 5\) in a frame of \(96, 96\).*sides from 1"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_configured_augmentation_is_the_published_one_of_scale_l() -> None:
    path = Path(__file__).parents[3] / "conf" / "augmentation" / "yolo.yaml"
    configured = instantiate(OmegaConf.load(path))
    assert isinstance(configured, YOLOAugmentation)
    assert configured.partners == 7
    assert vars(configured.mosaic) == {"p": 1.0}
    assert vars(configured.copy_paste) == {"share": 0.5, "max_cover": 0.3}
    assert vars(configured.affine) == {"scale": 0.9, "translate": 0.1}
    assert vars(configured.mixup) == {"p": 0.15, "alpha": 32}
    assert vars(configured.hsv) == vars(HSVJitter()) == {"hue": 0.015, "saturation": 0.7, "value": 0.4}
    assert vars(configured.turn) == {"horizontal": 0.5, "vertical": 0.0, "transpose": 0.0}
    assert configured.fill == 114
