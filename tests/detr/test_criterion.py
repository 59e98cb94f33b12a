"""The criterion against RTDetrLoss in transformers, and its behaviour without boxes and across processes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import RTDetrConfig
from transformers.loss.loss_rt_detr import RTDetrLoss

from anydepth.detr.criterion import GroundTruth
from anydepth.detr.denoising import make_denoising_queries
from anydepth.detr.output import DetrOutput
from anydepth.structures import Targets
from losses import detr_criterion


def make_case(
    counts: tuple[int, ...], *, layers: int = 3, queries: int = 12, classes: int = 6, seed: int = 0
) -> tuple[DetrOutput, list[Targets]]:
    """Make a random training-mode output, whose tensors require gradients, and random targets."""
    torch.manual_seed(seed)
    targets = [
        Targets(0.1 + 0.5 * torch.rand(count, 4), torch.randint(0, classes, (count,))) for count in counts
    ]
    denoising = make_denoising_queries(targets, num_classes=classes, num_queries=queries, budget=20)

    def predictions(*shape: int) -> tuple[Tensor, Tensor]:
        logits = 2 * torch.randn(*shape, classes)
        return logits.requires_grad_(), (0.1 + 0.5 * torch.rand(*shape, 4)).requires_grad_()

    output = DetrOutput((), (), *predictions(len(counts), queries))
    logits, boxes = predictions(layers, len(counts), queries)
    output = replace(output, auxiliary_logits=logits, auxiliary_boxes=boxes)
    if denoising is None:
        return output, targets
    logits, boxes = predictions(layers, len(counts), denoising.labels.shape[1])
    return replace(output, denoising=denoising, denoising_logits=logits, denoising_boxes=boxes), targets


def losses_of(output: DetrOutput, targets: list[Targets], **weights: float) -> dict[str, Tensor]:
    criterion = detr_criterion(**weights)
    return criterion.terms(output, GroundTruth.collect(targets), criterion.match(output, targets)[0])


def reference_losses(output: DetrOutput, targets: list[Targets], classes: int) -> dict[str, Tensor]:
    """Compute RTDetrLoss, with its per-layer terms summed by kind under our names."""
    assert output.auxiliary_logits is not None
    assert output.auxiliary_boxes is not None

    def listed(logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        return [{"logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]

    outputs: dict[str, object] = {"logits": output.logits, "pred_boxes": output.boxes_cxcywh}
    outputs["auxiliary_outputs"] = listed(output.auxiliary_logits, output.auxiliary_boxes)
    if output.denoising is not None:
        assert output.denoising_logits is not None
        assert output.denoising_boxes is not None
        outputs["dn_auxiliary_outputs"] = listed(output.denoising_logits, output.denoising_boxes)
        outputs["denoising_meta_values"] = {
            "dn_positive_idx": output.denoising.positives,
            "dn_num_group": output.denoising.groups,
        }
    rows = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh} for t in targets]
    found = RTDetrLoss(RTDetrConfig(num_labels=classes))(outputs, rows)
    sums: dict[str, Tensor] = {}
    for name, value in found.items():
        _, term, *kind = name.split("_")
        key = "_".join([*kind[:1], "l1" if term == "bbox" else term])
        sums[key] = sums.get(key, torch.zeros(())) + value
    return sums


@pytest.mark.parametrize("counts", [(3, 5), (0, 4, 1), (30, 2), (25,)])
@pytest.mark.parametrize("classes", [1, 6])
def test_all_terms_and_their_gradients_equal_those_of_transformers(
    counts: tuple[int, ...], classes: int
) -> None:
    output, targets = make_case(counts, classes=classes)
    ours = losses_of(output, targets)
    theirs = reference_losses(output, targets, classes)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5, msg=name)
    leaves = [output.logits, output.boxes_cxcywh, output.auxiliary_logits, output.auxiliary_boxes]
    leaves += [output.denoising_logits, output.denoising_boxes]
    gradients = torch.autograd.grad(torch.stack(list(ours.values())).sum(), leaves)
    expected = torch.autograd.grad(torch.stack(list(theirs.values())).sum(), leaves)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)


def test_all_boxes_of_an_image_with_more_boxes_than_the_denoising_budget_are_supervised() -> None:
    # Budget 20, 30 boxes; the case above compares the values, this one counts the supervised positives.
    output, targets = make_case((30, 2))
    assert output.denoising is not None
    assert output.denoising.groups == 1
    assert output.denoising_boxes is not None
    (gradient,) = torch.autograd.grad(losses_of(output, targets)["dn_l1"], [output.denoising_boxes])
    assert (gradient != 0).any(-1).sum().item() == 3 * (30 + 2)


@pytest.mark.filterwarnings("ignore:an image has more than 60 boxes")
def test_boxes_that_are_not_noised_do_not_dilute_the_denoising_losses() -> None:
    # Budget 20, so at most 60 boxes: the losses are those of a batch with the boxes that were drawn alone.
    output, targets = make_case((70, 2))
    assert output.denoising is not None
    drawn = [
        Targets(target.boxes_cxcywh[rows.unique()], target.labels[rows.unique()])
        for target, rows in zip(targets, output.denoising.positive_targets, strict=True)
    ]
    assert [len(target) for target in drawn] == [60, 2]
    ours, theirs = losses_of(output, targets), reference_losses(output, drawn, 6)
    for name in ("dn_vfl", "dn_l1", "dn_giou"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5, msg=name)


def test_without_boxes_only_negatives_have_losses_and_every_term_keeps_its_name() -> None:
    output, targets = make_case((0, 0))
    terms = losses_of(output, targets)
    assert terms.keys() == losses_of(*make_case((1, 2))).keys()
    # All labels are 0, so VFL = 0.75 sum p^2 softplus(z), divided by 1 (the minimum number of boxes).
    expected = (0.75 * output.logits.sigmoid() ** 2 * torch.nn.functional.softplus(output.logits)).sum()
    torch.testing.assert_close(terms["vfl"], expected)
    for name, value in terms.items():
        assert name.endswith("vfl") or value == 0
    torch.stack(list(terms.values())).sum().backward()
    for leaf in (output.logits, output.boxes_cxcywh, output.auxiliary_logits, output.auxiliary_boxes):
        assert leaf is not None
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_the_last_layer_has_only_the_requested_terms() -> None:
    output, targets = make_case((3, 2))
    criterion = detr_criterion()
    truth, (assignment, _) = GroundTruth.collect(targets), criterion.match(output, targets)
    whole = criterion.terms(output, truth, assignment)
    part = criterion.terms(output, truth, assignment, last_layer={"vfl"})
    assert whole.keys() - part.keys() == {"l1", "giou"}
    # The other layers keep all of theirs.
    assert {"vfl", "aux_vfl", "aux_l1", "aux_giou", "dn_vfl", "dn_l1", "dn_giou"} == part.keys()
    assert all(torch.equal(part[name], whole[name]) for name in part)


def test_a_weight_scales_its_terms_and_zero_skips_them() -> None:
    output, targets = make_case((3, 2))
    plain, other = losses_of(output, targets), losses_of(output, targets, l1_weight=10, giou_weight=0)
    assert plain.keys() - other.keys() == {"giou", "aux_giou", "dn_giou"}
    for name, value in other.items():
        torch.testing.assert_close(value, plain[name] * (2 if name.endswith("l1") else 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_give_float32_losses(dtype: torch.dtype) -> None:
    output, targets = make_case((3, 2))
    fields = ["logits", "boxes_cxcywh", "auxiliary_logits", "auxiliary_boxes"]
    fields += ["denoising_logits", "denoising_boxes"]
    half = replace(output, **{name: getattr(output, name).to(dtype) for name in fields})
    widened = replace(output, **{name: getattr(half, name).float() for name in fields})
    found, expected = losses_of(half, targets), losses_of(widened, targets)
    assert len(found) == 9, "three terms each of the last layer, the other layers and denoising"
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])


def test_an_eval_mode_output_is_refused_with_the_remedy() -> None:
    output, targets = make_case((1,))
    with pytest.raises(ValueError, match=r"detector\.train\(\)"):
        losses_of(replace(output, auxiliary_logits=None, auxiliary_boxes=None), targets)


@pytest.mark.parametrize(
    "wrong", [{"vfl_weight": -1.0}, {"vfl_weight": 0, "l1_weight": 0, "giou_weight": 0}, {"vfl_alpha": -1}]
)
def test_weights_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        detr_criterion(**wrong)


def _losses_of_one_process(rank: int, store: Path, results: Path) -> None:
    torch.set_num_threads(1)  # a forked process must not touch the thread pool of its parent
    # Made before the processes join, because noise would then be drawn for the images of both.
    output, targets = make_case((6,) if rank == 0 else (0,))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = losses_of(output, targets)
    torch.save({name: value.detach() for name, value in found.items()}, results / f"{rank}.pt")
    dist.destroy_process_group()


def test_losses_are_divided_by_the_boxes_of_all_processes(tmp_path: Path) -> None:
    # Processes with 6 and 0 boxes: both divide by 3, while single processes would divide by 6 and by 1.
    # Forked, because starting two interpreters that import torch takes most of a minute on a slow machine.
    mp.start_processes(
        _losses_of_one_process, args=(tmp_path / "store", tmp_path), nprocs=2, start_method="fork"
    )
    for rank, counts, factor in ((0, (6,), 6 / 3), (1, (0,), 1 / 3)):
        alone = losses_of(*make_case(counts))
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for name, value in together.items():
            torch.testing.assert_close(value, alone[name].detach() * factor)
