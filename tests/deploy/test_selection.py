"""Selection of detections with numpy, as the families select with torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from anydepth.deploy.runtime.selection import nms_indices, select
from anydepth.selection import NmsConfig, TopScores, parse_selection, selection_to_dict


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corners = random.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + random.uniform(0, 40, (count, 2))], axis=1).astype(np.float32)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_suppression_keeps_what_torchvision_keeps(seed: int, count: int, iou: float):
    random = np.random.default_rng(seed)
    boxes = _boxes(random, count)
    boxes[: count // 4] = boxes[count // 4 : 2 * (count // 4)]  # equal boxes
    boxes[:2, 2:] = boxes[:2, :2]  # boxes without an area
    labels = random.integers(0, 3, count)
    kept = nms_indices(boxes, labels, iou, count)
    # Class by class, so that no offset between classes rounds the boxes.
    theirs = []
    for label in range(3):
        places = np.flatnonzero(labels == label)
        order = torch.arange(len(places), 0, -1).float()
        theirs += places[nms(torch.from_numpy(boxes[places]), order, iou).numpy()].tolist()
    assert list(kept) == sorted(theirs)
    assert list(nms_indices(boxes, labels, iou, 3)) == sorted(theirs)[:3]


def test_suppression_takes_candidates_above_its_score_and_the_threshold():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], np.float32)
    scores = np.array([[0.9, 0.001], [0.8, 0.3], [0.2, 0.0]], np.float32)
    found = select(boxes, scores, NmsConfig(score=0.001, iou=0.7), 0.0)
    # The second box overlaps the first by 0.9: it is left only where its class is another one.
    assert found.scores.tolist() == pytest.approx([0.9, 0.3, 0.2])
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes_xyxy.tolist() == boxes[[0, 1, 2]].tolist()
    assert len(select(boxes, scores, NmsConfig(score=0.001, iou=0.7), 0.3).scores) == 2
    assert len(select(boxes, scores, NmsConfig(detections=1), 0.0).scores) == 1
    # The best two pairs are both of class 0, of which the second is suppressed.
    assert select(boxes, scores, NmsConfig(candidates=2), 0.0).scores.tolist() == pytest.approx([0.9])


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 4), st.integers(1, 40))
def test_the_best_pairs_are_those_of_topk(seed: int, boxes: int, classes: int, count: int):
    random = np.random.default_rng(seed)
    own = _boxes(random, boxes)
    # Different scores, because topk orders equal ones as it likes.
    scores = random.permutation(boxes * classes).reshape(boxes, classes).astype(np.float32) / 1000
    found = select(own, scores, TopScores(count), 0.0)
    best, places = torch.from_numpy(scores).flatten().topk(min(count, scores.size))
    assert found.scores.tolist() == best.tolist()
    assert found.labels.tolist() == (places % classes).tolist()
    assert found.boxes_xyxy.tolist() == own[(places // classes).numpy()].tolist()
    above = select(own, scores, TopScores(count), 0.01)
    assert above.scores.tolist() == [score for score in best.tolist() if score >= np.float32(0.01)]


def test_equal_scores_keep_their_order():
    boxes = _boxes(np.random.default_rng(0), 5)
    scores = np.full((5, 1), 0.5, np.float32)
    assert select(boxes, scores, TopScores(3), 0.5).boxes_xyxy.tolist() == boxes[:3].tolist()


@pytest.mark.parametrize("selection", [TopScores(5), NmsConfig(), NmsConfig(0.5, 0.1, 3, 2)])
def test_selections_read_back_from_plain_values(selection: TopScores | NmsConfig):
    assert parse_selection(selection_to_dict(selection)) == selection


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"kind": "other"},
        {"kind": "top_scores"},
        {"kind": "top_scores", "detections": "5"},
        {"kind": "top_scores", "detections": 5.0},
        {"kind": "top_scores", "detections": True},
        {"kind": "top_scores", "detections": 5, "more": 1},
        {"kind": "top_scores", "detections": 0},
        {"kind": "nms", "score": 2.0, "iou": 0.7, "candidates": 1, "detections": 1},
        {"kind": ["nms"]},
    ],
)
def test_plain_values_that_are_no_selection_are_refused(values: object):
    with pytest.raises(ValueError, match=r"got|allowed"):
        parse_selection(values)
