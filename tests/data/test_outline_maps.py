"""Flat polygons, and their visible part in a window."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_pictures import rectangles

from anydepth.data.augment.affine import AxisMap, clip_objects, select_visible_objects
from anydepth.data.outlines import Outlines

WINDOW = (0.0, 0.0, 10.0, 8.0)


def outlines_of(objects: list[list[list[tuple[float, float]]]]) -> Outlines:
    rings = [ring for rings in objects for ring in rings]
    points = [point for ring in rings for point in ring]
    return Outlines(
        np.array(points, np.float32).reshape(-1, 2),
        np.cumsum([0, *map(len, rings)]).astype(np.int64),
        np.cumsum([0, *map(len, objects)]).astype(np.int64),
    )


def objects_of(outlines: Outlines) -> list[list[list[tuple[float, float]]]]:
    rings = [[(float(x), float(y)) for x, y in ring] for ring in outlines.rings()]
    starts = outlines.object_starts.tolist()
    return [rings[start:end] for start, end in pairwise(starts)]


Ring = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=5)
Objects = st.lists(
    st.lists(Ring.map(lambda ring: [(float(x), float(y)) for x, y in ring]), max_size=3), max_size=5
)


@given(Objects, st.data())
def test_taking_objects_is_indexing_a_list_of_them(
    objects: list[list[list[tuple[float, float]]]], data: st.DataObject
) -> None:
    outlines = outlines_of(objects)
    assert len(outlines) == len(objects)
    assert outlines.outlined.tolist() == [bool(rings) for rings in objects]
    places = st.lists(st.integers(0, max(len(objects) - 1, 0)), max_size=6 if objects else 0)
    picked = data.draw(places)
    taken = outlines.take(np.array(picked, np.int64))
    assert objects_of(taken) == [objects[number] for number in picked]


@given(Objects, Objects)
def test_joining_is_adding_lists(
    first: list[list[list[tuple[float, float]]]], second: list[list[list[tuple[float, float]]]]
) -> None:
    joined = Outlines.concatenate([outlines_of(first), Outlines.empty(2), outlines_of(second)])
    assert objects_of(joined) == [*first, [], [], *second]


@given(Objects)
def test_mirroring_twice_is_no_change(objects: list[list[list[tuple[float, float]]]]) -> None:
    mirror = AxisMap((-1.0, 1.0), (20.0, 0.0))
    assert objects_of(mirror.map_outlines(mirror.map_outlines(outlines_of(objects)))) == objects


def test_maps_compose_and_invert() -> None:
    first, second = AxisMap((2.0, -0.5), (3.0, 1.0)), AxisMap((-1.5, 4.0), (0.5, 7.0))
    boxes = np.array([[1, 2, 5, 9], [0, 0, 1, 1]], np.float32)
    assert np.allclose(first.then(second).map_boxes(boxes), second.map_boxes(first.map_boxes(boxes)))
    assert np.allclose(first.inverse().map_boxes(first.map_boxes(boxes)), boxes)
    assert first.map_rectangle((1, 2, 5, 9)) == tuple(first.map_boxes(boxes)[0].tolist())


def shown_by_painting(ring: list[tuple[float, float]]) -> list[float]:
    """The box around the sample points, 1/20 px apart, that lie in window and polygon (even-odd rule)."""
    xs, ys = np.meshgrid(np.arange(0.025, 10, 0.05), np.arange(0.025, 8, 0.05))
    inside = np.zeros(xs.shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if y0 != y1:
            inside ^= ((y0 > ys) != (y1 > ys)) & (x0 + (ys - y0) / (y1 - y0) * (x1 - x0) > xs)
    if not inside.any():
        return [0, 0, 0, 0]
    return [xs[inside].min(), ys[inside].min(), xs[inside].max(), ys[inside].max()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-8, 18), st.integers(-8, 16)), min_size=3, max_size=3, unique=True))
def test_the_box_of_a_clipped_triangle_surrounds_what_the_window_shows_of_it(
    ring: list[tuple[int, int]],
) -> None:
    (x0, y0), (x1, y1), (x2, y2) = ring
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2
    points = [(float(x), float(y)) for x, y in ring]
    box = np.array([[*np.min(points, axis=0), *np.max(points, axis=0)]], np.float32)
    found = clip_objects(box, outlines_of([[points]]), WINDOW)[0]
    shown = shown_by_painting(points)
    if area >= 20 and shown[2] - shown[0] > 2 and shown[3] - shown[1] > 2:
        # Sharp corners reach further than the samples do.
        assert np.abs(found - shown).max() < 1.5
        assert (found[:2] <= np.array(shown[:2]) + 1e-4).all()
        assert (found[2:] >= np.array(shown[2:]) - 1e-4).all()


@pytest.mark.parametrize(
    ("ring", "expected"),
    [
        # Around the whole window: no edge and no corner of it is inside.
        ([(-50, -50), (50, -50), (50, 50), (-50, 50)], (0, 0, 10, 8)),
        # A band through the corner; only the part to the right of x = 6 is shown.
        ([(6, -5), (20, 9), (6, 9)], (6, 0, 10, 8)),
        # Two prongs that reach in from the left, the lower one cut off by the bottom: their connection, which
        # is outside, does not count.
        ([(-9, 1), (4, 1), (4, 2), (-5, 2), (-5, 20), (-9, 20)], (0, 1, 4, 2)),
        # Beside the window, though its box is not.
        ([(-9, 4), (4, -9), (-9, -9)], (0, 0, 0, 0)),
    ],
)
def test_clipped_polygons_known_by_hand(
    ring: list[tuple[float, float]], expected: tuple[float, float, float, float]
) -> None:
    box = np.array([[*np.min(ring, axis=0), *np.max(ring, axis=0)]], np.float32)
    assert clip_objects(box, outlines_of([[ring]]), WINDOW)[0].tolist() == list(expected)


def test_objects_without_a_polygon_are_clipped_as_boxes_and_whole_ones_keep_their_box() -> None:
    boxes = np.array([[-4, 2, 5, 6], [1, 1, 4, 4], [1, 1, 4, 4]], np.float32)
    # The polygon of the last object is smaller than its box; a box inside the window is kept.
    outlines = outlines_of([[], [], [[(2, 2), (3, 2), (3, 3)]]])
    assert clip_objects(boxes, outlines, WINDOW).tolist() == [[0, 2, 5, 6], [1, 1, 4, 4], [1, 1, 4, 4]]
    assert clip_objects(boxes, None, WINDOW)[0].tolist() == [0, 2, 5, 6]


def test_small_hidden_and_thin_objects_are_dropped() -> None:
    before = np.array([[0, 0, 100, 100]] * 8, np.float32)
    after = np.array(
        [
            [0, 0, 2, 50],  # 2 px wide
            [0, 0, 2.1, 200],  # thinner than 1:90, but 1:100 is the limit
            [0, 0, 2.1, 211],  # thinner than 1:100
            [0, 0, 9.9, 100],  # below a tenth of the area
            [0, 0, 10.1, 100],
            [0, 0, 9.9, 10],  # below a hundredth
            [0, 0, 10.1, 10],
            [0, 0, 10.1, 10],
        ],
        np.float32,
    )
    outlined = np.array([True] * 3 + [False, False, True, True, False])
    kept = select_visible_objects(before, after, outlined)
    assert kept.tolist() == [False, True, False, False, True, False, True, False]


def test_rectangles_are_clipped_like_boxes() -> None:
    boxes = np.array([[-4, 2, 5, 6], [1, 1, 30, 4], [-1, -1, 3, 3], [5, 5, 50, 50]], np.float32)
    with_polygons = clip_objects(boxes, rectangles(boxes.tolist()), WINDOW)
    assert np.allclose(with_polygons, clip_objects(boxes, None, WINDOW))
