"""Denoising queries against the implementation in transformers, and in edge cases."""

import pytest
import torch
from torch import Tensor
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from anydepth.detr import denoising
from anydepth.detr.denoising import make_denoising_queries
from anydepth.structures import Targets

CLASSES, QUERIES = 7, 5


def make_targets(*counts: int, seed: int = 0) -> list[Targets]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        centre = torch.rand(count, 2, generator=generator)
        size = 0.02 + 0.4 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append(Targets(torch.cat([centre, size], dim=1), labels))
    return targets


def reference(targets: list[Targets], **options: float) -> tuple[Tensor, Tensor, Tensor, dict[str, object]]:
    rows = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh} for t in targets]
    return get_contrastive_denoising_training_group(rows, CLASSES, QUERIES, lambda labels: labels, **options)


@pytest.mark.parametrize("counts", [(3,), (2, 0, 5), (1, 1), (120, 7), (0, 33)])
def test_queries_equal_those_of_transformers_under_the_same_seed(counts: tuple[int, ...]) -> None:
    targets = make_targets(*counts)
    torch.manual_seed(11)
    labels, boxes, mask, meta = reference(targets)
    torch.manual_seed(11)
    queries = make_denoising_queries(targets, num_classes=CLASSES, num_queries=QUERIES)
    assert queries is not None
    torch.testing.assert_close(queries.labels, labels.long())
    torch.testing.assert_close(queries.boxes_logits, boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(queries.attention_mask, mask == -torch.inf)
    assert queries.groups == meta["dn_num_group"]
    for ours, theirs in zip(queries.positives, meta["dn_positive_idx"], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_noise_every_positive_is_the_box_it_reconstructs() -> None:
    targets = make_targets(4, 1, 0)
    queries = make_denoising_queries(
        targets, num_classes=CLASSES, num_queries=QUERIES, label_noise=0, box_noise=0
    )
    assert queries is not None
    # 100 queries in groups of the 4 boxes of the fullest image.
    assert queries.groups == 25
    boxes = queries.boxes_logits.sigmoid()
    for image, target in enumerate(targets):
        positive, source = queries.positives[image], queries.positive_targets[image]
        assert len(positive) == queries.groups * len(target)
        torch.testing.assert_close(queries.labels[image, positive], target.labels[source])
        # Boxes are clipped to the image, so compare the clipped ground truth.
        centre, size = target.boxes_cxcywh.split(2, dim=1)
        low, high = (centre - size / 2).clamp(0, 1), (centre + size / 2).clamp(0, 1)
        expected = torch.cat([(low + high) / 2, high - low], dim=1)
        torch.testing.assert_close(boxes[image, positive], expected[source], atol=2e-5, rtol=0)


def test_an_image_with_more_boxes_than_the_budget_gets_each_box_once() -> None:
    targets = make_targets(30, 2)
    queries = make_denoising_queries(targets, num_classes=CLASSES, num_queries=QUERIES, budget=10)
    assert queries is not None
    assert queries.groups == 1
    assert queries.labels.shape == (2, 60)
    assert [len(p) for p in queries.positives] == [30, 2]
    assert queries.positive_targets[0].tolist() == list(range(30))


def test_positives_move_by_less_than_half_the_box_and_negatives_by_more() -> None:
    box = torch.tensor([[0.5, 0.5, 0.2, 0.1]])
    queries = make_denoising_queries(
        [Targets(box, torch.tensor([3]))], num_classes=CLASSES, num_queries=QUERIES, budget=200
    )
    assert queries is not None
    cx, w = queries.boxes_logits[0].sigmoid()[:, [0, 2]].unbind(-1)
    # |corner - true corner| < half the side; checked on the left side, as all sides are noised alike.
    shift = ((cx - w / 2) - 0.4).abs() / 0.1
    positive = torch.zeros(len(cx), dtype=torch.bool)
    positive[queries.positives[0]] = True
    assert shift[positive].max() <= 1 + 1e-3
    crossed = w < 1e-4
    assert shift[~positive & ~crossed].min() >= 1 - 1e-3


def test_half_of_the_label_noise_is_the_share_of_replaced_labels() -> None:
    images = [Targets(torch.full((50, 4), 0.5), torch.full((50,), 2)) for _ in range(200)]
    queries = make_denoising_queries(
        images, num_classes=CLASSES, num_queries=1, generator=torch.Generator().manual_seed(3)
    )
    assert queries is not None
    # 0.5 x 0.5 are replaced, 1 in 7 of them by the old class; standard deviation of 40,000 labels: 0.002.
    changed = (queries.labels != 2).float().mean().item()
    assert changed == pytest.approx(0.25 * 6 / 7, abs=0.01)


def test_a_generator_makes_the_noise_repeatable_and_does_not_use_the_default_one() -> None:
    targets = make_targets(3, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    runs = [
        make_denoising_queries(
            targets, num_classes=CLASSES, num_queries=QUERIES, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (5, 5, 6)
    ]
    assert torch.equal(before, torch.get_rng_state())
    boxes = [run.boxes_logits for run in runs if run is not None]
    assert torch.equal(boxes[0], boxes[1])
    assert not torch.equal(boxes[0], boxes[2])


@pytest.mark.parametrize(("counts", "budget"), [((0, 0), 100), ((), 100), ((3, 1), 0)])
def test_no_boxes_or_no_budget_returns_none(counts: tuple[int, ...], budget: int) -> None:
    targets = make_targets(*counts)
    made = make_denoising_queries(targets, num_classes=CLASSES, num_queries=QUERIES, budget=budget)
    assert made is None


@pytest.mark.parametrize(
    "wrong",
    [{"num_classes": 0}, {"num_queries": 0}, {"budget": -1}, {"label_noise": 1.5}, {"box_noise": -0.1}],
)
def test_a_number_outside_its_range_is_named(wrong: dict[str, float]) -> None:
    numbers = {"num_classes": CLASSES, "num_queries": QUERIES, **wrong}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*allowed"):
        make_denoising_queries(make_targets(1), **numbers)


def test_a_crowd_is_drawn_from_so_that_memory_has_a_limit() -> None:
    denoising._warn_of_many_boxes.cache_clear()
    targets = make_targets(2000, 2)
    with pytest.warns(UserWarning, match="more than 36 boxes: 36 of them"):
        queries = make_denoising_queries(
            targets, num_classes=CLASSES, num_queries=QUERIES, budget=12, label_noise=0, box_noise=0
        )
    assert queries is not None
    # Three times the budget of 12, each as a positive and a negative.
    assert queries.labels.shape == (2, 72)
    assert [len(positive) for positive in queries.positives] == [36, 2]
    sources = queries.positive_targets[0]
    assert len(set(sources.tolist())) == 36
    assert int(sources.max()) > 36  # not simply the first ones
    torch.testing.assert_close(queries.labels[0, queries.positives[0]], targets[0].labels[sources])
    assert queries.positive_targets[1].tolist() == [0, 1]
    again = make_denoising_queries(targets, num_classes=CLASSES, num_queries=QUERIES, budget=12)
    assert again is not None
    assert again.positive_targets[0].tolist() != sources.tolist()
