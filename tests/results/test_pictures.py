"""Pictures show every box where it is, in the colour of its class, and leave the image itself alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anydepth.results import pictures
from anydepth.results.pictures import (
    CROWDED,
    MIN_SIDE,
    Panel,
    class_colour,
    draw_detections,
    grid,
    save_picture,
    side_by_side,
)
from anydepth.structures import Detections

NAMES = ("cat", "dog")


def _boxes(*boxes: tuple[float, float, float, float], label: int = 0, score: float = 0.8) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.full((count,), score),
        torch.full((count,), label, dtype=torch.int64),
    )


def _has_colour(picture: Image.Image, region: tuple[int, int, int, int], label: int) -> bool:
    pixels = np.asarray(picture.crop(region)).reshape(-1, 3)
    return bool((pixels == class_colour(label)).all(axis=1).any())


def test_a_box_is_drawn_on_its_borders_in_the_colour_of_its_class() -> None:
    picture = draw_detections(
        torch.zeros(3, 800, 1000, dtype=torch.uint8), _boxes((200, 300, 500, 600), label=1), NAMES
    )
    assert picture.size == (1000, 800)
    for border in ((195, 400, 206, 410), (494, 400, 506, 410), (350, 594, 360, 606)):
        assert _has_colour(picture, border, 1)
        assert not _has_colour(picture, border, 0)
    assert np.asarray(picture.crop((210, 330, 490, 590))).max() == 0, "nothing is drawn inside"


def test_small_images_keep_their_size_unless_they_are_to_be_enlarged_with_their_boxes() -> None:
    image, box = torch.zeros(3, 100, 200, dtype=torch.uint8), _boxes((50, 20, 150, 80))
    assert draw_detections(image, box, NAMES).size == (200, 100)
    picture = draw_detections(image, box, NAMES, min_side=MIN_SIDE)
    assert picture.size == (MIN_SIDE, MIN_SIDE // 2)
    assert side_by_side(image, [Panel("full", box)], NAMES).width == MIN_SIDE
    scale = MIN_SIDE / 200
    right = round(150 * scale)
    assert _has_colour(picture, (right - 4, round(50 * scale), right + 4, round(55 * scale)), 0)


def test_colours_differ_between_classes_and_never_change() -> None:
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    assert colours == [class_colour(label) for label in range(80)]
    distances = [np.abs(np.subtract(one, two)).sum() for one, two in pairwise(colours)]
    assert min(distances) > 100, "neighbouring classes must be distinguishable"


def test_labels_are_written_and_in_a_crowd_only_if_they_fit() -> None:
    image = torch.zeros(3, 720, 720, dtype=torch.uint8)
    one = draw_detections(image, _boxes((100, 100, 108, 200)), NAMES)
    above = (100, 80, 140, 99)
    assert _has_colour(one, above, 0), "a label stands above its box"
    narrow = [(100.0, 100.0, 108.0, 200.0)] * CROWDED
    assert not _has_colour(draw_detections(image, _boxes(*narrow), NAMES), above, 0)
    wide = [(100.0, 100.0, 300.0, 200.0)] * CROWDED
    assert _has_colour(draw_detections(image, _boxes(*wide), NAMES), above, 0)


def test_labels_name_class_and_score_and_ground_truth_has_no_scores() -> None:
    image, box = torch.zeros(3, 720, 720, dtype=torch.uint8), _boxes((100, 100, 400, 200))

    def label_width(names: tuple[str, ...], show_scores: bool) -> int:
        strip = np.asarray(draw_detections(image, box, names, show_scores=show_scores).crop((0, 90, 720, 91)))
        return int((strip.reshape(-1, 3) == class_colour(0)).all(axis=1).sum())

    both, name_only = label_width(NAMES, True), label_width(NAMES, False)
    lone, neither = label_width(NAMES[:1], True), label_width(NAMES[:1], False)
    assert both > name_only > 0
    assert lone == both  # a bare number would not say what it is
    assert neither == 0


def test_scores_are_written_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []
    monkeypatch.setattr(pictures, "_write_label", lambda draw, box, texts, *_: written.append(texts))
    image = torch.zeros(3, 90, 90, dtype=torch.uint8)
    draw_detections(image, _boxes((1, 1, 50, 50), label=1, score=0.804), NAMES)
    assert written == [["dog 80 %", "80 %"]]


@pytest.mark.parametrize(
    "box", [(-50.0, -50.0, 9.0, 9.0), (90.0, 90.0, 500.0, 500.0), (60.0, 60.0, 20.0, 20.0)]
)
def test_boxes_beyond_the_border_or_inside_out_do_not_break_a_picture(
    box: tuple[float, float, float, float],
) -> None:
    draw_detections(torch.zeros(3, 100, 100, dtype=torch.uint8), _boxes(box), NAMES)


def test_a_row_holds_one_titled_panel_per_entry_and_a_grid_all_rows(tmp_path: Path) -> None:
    image = torch.full((3, 720, 720), 200, dtype=torch.uint8)
    panels = [Panel("ground truth", _boxes((10, 10, 50, 50)), show_scores=False), Panel("full", _boxes())]
    row = side_by_side(image, panels, NAMES)
    assert row.width > 2 * 720
    title = np.asarray(row.crop((0, 0, 720, row.height - 720)))
    assert title.max() > 200, "the title is bright on a dark strip"
    assert title.mean() < 100
    sheet = grid([row, row], width=500)
    assert sheet.size == (500, 2 * round(row.height * 500 / row.width))
    save_picture(sheet, tmp_path / "new" / "grid.jpg")
    with Image.open(tmp_path / "new" / "grid.jpg") as written:
        assert written.size == sheet.size
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.jpg"]


def test_missing_panels_and_images_of_another_shape_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        side_by_side(torch.zeros(3, 9, 9, dtype=torch.uint8), [], NAMES)
    with pytest.raises(ValueError, match="at least one picture"):
        grid([])
    with pytest.raises(ValueError, match=r"\[3, H, W\] uint8"):
        draw_detections(torch.zeros(3, 9, 9), _boxes(), NAMES)
