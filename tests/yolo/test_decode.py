"""Decoding of head maps against cells, bins and boxes computed by hand."""

import pytest
import torch

from anydepth.yolo.decode import Predictions, anchor_points, decode_boxes, flatten_maps, image_size
from anydepth.yolo.output import BINS, STRIDES
from yolo.cases import ANCHORS, HEIGHT, WIDTH, make_maps


def test_anchors_are_ordered_from_fine_to_coarse_maps_and_row_by_row() -> None:
    centres, strides = anchor_points([torch.zeros(1, 65, 32 // s, 64 // s) for s in STRIDES])
    expected = [
        (float(x), float(y), float(s))
        for s in STRIDES
        for y in range(s // 2, 32, s)
        for x in range(s // 2, 64, s)
    ]
    assert torch.cat([centres, strides[:, None]], dim=1).tolist() == [list(row) for row in expected]


def test_every_anchor_keeps_the_channels_of_its_cell() -> None:
    maps = make_maps(2, 3)
    box_logits, class_logits = flatten_maps(maps)
    assert box_logits.shape == (2, ANCHORS, 4, BINS)
    assert class_logits.shape == (2, ANCHORS, 3)
    anchor = 0
    for level in maps:
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                cell = level[:, :, row, column]
                # Side-major: the first 16 channels are those of the left side.
                for side in range(4):
                    assert torch.equal(box_logits[:, anchor, side], cell[:, 16 * side : 16 * side + 16])
                assert torch.equal(class_logits[:, anchor], cell[:, 64:])
                anchor += 1


def test_sides_lie_at_the_expected_distance_from_the_anchor() -> None:
    logits = torch.full((1, 2, 4, BINS), -1e4)
    # First anchor: certain of 1, 2, 3 and 0 strides. Second: halves between bins 4 and 7, 5.5 strides.
    logits[0, 0, range(4), [1, 2, 3, 0]] = 0
    logits[0, 1, :, [4, 7]] = 0
    centres, strides = torch.tensor([[100.0, 60.0], [200.0, 300.0]]), torch.tensor([8.0, 32.0])
    expected = [[[92.0, 44.0, 124.0, 60.0], [24.0, 124.0, 376.0, 476.0]]]
    assert decode_boxes(logits, centres, strides).tolist() == expected


def test_half_precision_maps_are_decoded_in_float32_also_under_autocast() -> None:
    maps = [level.detach().bfloat16() for level in make_maps(2, 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Predictions.decode(maps)
    expected = Predictions.decode([level.float() for level in maps])
    for name in ("box_logits", "class_logits", "boxes_xyxy", "centres", "strides"):
        assert getattr(found, name).dtype == torch.float32
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_the_image_size_follows_from_the_maps() -> None:
    assert image_size(make_maps(1, 1)) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("wrong", ["two maps", "no classes"])
def test_a_wrong_number_of_maps_or_channels_is_refused(wrong: str) -> None:
    maps = make_maps(1, 2)
    maps = maps[:2] if wrong == "two maps" else tuple(level[:, :64] for level in maps)
    with pytest.raises(ValueError, match=r"give \[B, 64 \+ K, H/s, W/s\] for each of the strides"):
        flatten_maps(maps)
