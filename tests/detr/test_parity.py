"""AnyDepth-DETR against ``RTDetrForObjectDetection`` of transformers, with weights moved by the adapter.

At a depth below full the reference is the same class with fewer blocks and decoder layers, whose norms come
from the set that the local rule selects.
"""

import pytest
import torch
from detr_reference import SMALL, build, randomise, reference, reference_network
from torch import Tensor, nn
from transformers import RTDetrForObjectDetection

from anydepth.depth import DepthConfig
from anydepth.detr.detector import DetrDetector
from anydepth.detr.weights.load import load_weights
from anydepth.structures import Targets
from losses import detr_losses

TOLERANCE = 1e-4


def predict(
    network: nn.Module, score_head: nn.Module, images: Tensor, *depth: DepthConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, boxes and selected tokens, sorted by token.

    The order of queries whose class scores are equal up to rounding has no meaning; sorting removes it. The
    selection itself must not depend on rounding, which is asserted.
    """
    seen: list[Tensor] = []
    handle = score_head.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        output = network(images, *depth)
    handle.remove()
    boxes = output.pred_boxes if hasattr(output, "pred_boxes") else output.boxes_cxcywh
    count = boxes.shape[1]
    scores, tokens = seen[0].amax(dim=-1).sort(dim=1, descending=True)
    gap = (scores[:, count - 1] - scores[:, count]).min()
    assert gap > 1e-4, f"the selection of the last query is a near tie ({gap:.1e}): use another seed"
    selected, order = tokens[:, :count].sort(dim=1)
    order = order[..., None]
    return (
        output.logits.gather(1, order.expand_as(output.logits)),
        boxes.gather(1, order.expand_as(boxes)),
        selected,
    )


def assert_same_predictions(
    ours: DetrDetector, theirs: RTDetrForObjectDetection, size: tuple[int, int], depth: str
) -> None:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(6))
    wanted = predict(theirs, theirs.model.enc_score_head, images)
    found = predict(ours, ours.decoder.enc_score_head, images, ours.depth_space.parse(depth))
    assert torch.equal(found[2], wanted[2])
    assert (found[0] - wanted[0]).abs().max() <= TOLERANCE
    assert (found[1] - wanted[1]).abs().max() <= TOLERANCE
    # The comparison would show little for outputs that hardly vary.
    assert wanted[0].std() > 0.3
    assert wanted[1].std(dim=1).max() > 0.1


@pytest.fixture(scope="module")
def detector(network: str) -> DetrDetector:
    detector = build(f"detr_{network}", stem="deep")
    randomise(detector, seed=1)
    return detector


@pytest.fixture(scope="module")
def full_reference(detector: DetrDetector) -> RTDetrForObjectDetection:
    return reference(detector, detector.depth_space.full)


@pytest.mark.parametrize("network", ["r18", pytest.param("r50", marks=pytest.mark.slow)], scope="module")
class TestFullSize:
    def test_any_depth_at_full_depth(
        self, detector: DetrDetector, full_reference: RTDetrForObjectDetection, network: str
    ) -> None:
        loaded = build(f"detr_{network}", stem="deep", seed=9)
        report = load_weights(loaded, full_reference.state_dict())
        assert (report.missing, report.unused, report.reinitialised) == ((), (), ())
        assert_same_predictions(loaded, full_reference, (640, 640), "full")

    def test_fixed_depth_on_a_non_square_image(
        self, full_reference: RTDetrForObjectDetection, network: str
    ) -> None:
        loaded = build(f"rtdetr_{network}", seed=9)
        report = load_weights(loaded, full_reference.state_dict())
        assert (report.missing, report.unused, report.copied_to_skip) == ((), (), ())
        assert_same_predictions(loaded, full_reference, (320, 448), "full")

    def test_minimal_depth(self, detector: DetrDetector, network: str) -> None:
        theirs = reference(detector, detector.depth_space.minimal)
        assert_same_predictions(detector, theirs, (640, 640), "minimal")

    def test_mixed_depth_on_a_non_square_image(self, detector: DetrDetector, network: str) -> None:
        depth = {"r18": "stage2+neck@2", "r50": "stage2+neck@5"}[network]
        theirs = reference(detector, detector.depth_space.parse(depth))
        assert_same_predictions(detector, theirs, (320, 448), depth)


@pytest.mark.parametrize("depth", ["full", "minimal", "stage1@1", "stage2+neck@3", "stage1+stage4+neck@2"])
def test_every_kind_of_depth_on_a_small_network(depth: str) -> None:
    detector = build("detr_tiny", 5, **SMALL)
    randomise(detector)
    assert_same_predictions(
        detector, reference(detector, detector.depth_space.parse(depth)), (96, 160), depth
    )


def test_frozen_backbone_norms_equal_those_of_the_released_networks() -> None:
    # Released RT-DETR-R50/101 freeze the backbone's norms; transformers has a class of its own for that.
    frozen = build("rtdetr_r18", 5, **{**SMALL, "blocks": [1, 1, 2, 1]}, freeze_backbone_norms=True)
    theirs = reference_network(frozen, [1, 1, 2, 1], 3, freeze_backbone_batch_norms=True).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if "normalization.running_var" in key or "normalization.weight" in key:
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif "normalization" in key or "embed" in key:
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
    load_weights(frozen, theirs.state_dict())
    images = torch.rand(2, 3, 64, 96, generator=generator)
    with torch.inference_mode():
        wanted = theirs.model.backbone.model(images).feature_maps
        found = frozen(images).backbone_features
    for ours, reference_map in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, reference_map, atol=TOLERANCE, rtol=1e-5)


@pytest.fixture(scope="module")
def losses() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    detector = build("detr_tiny", 5, **SMALL)
    randomise(detector)
    theirs = reference(detector, detector.depth_space.full)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 3, 96, 128, generator=generator)
    targets = [random_targets(count, generator) for count in (3, 0, 2)]
    labels = [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets]
    detector.train()
    theirs.train()
    # Equal seeds give equal denoising noise, see test_denoising.py.
    torch.manual_seed(4)
    wanted = theirs(images, labels=labels).loss_dict
    torch.manual_seed(4)
    found = detr_losses().supervised(detector(images, "full", targets), targets).terms
    return dict(found), wanted


class TestTrainingLosses:
    """The whole network in training mode: matching, all output sets, denoising."""

    def test_total(self, losses: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        found, wanted = losses
        torch.testing.assert_close(sum(found.values()), sum(wanted.values()), rtol=TOLERANCE, atol=0)

    @pytest.mark.parametrize("kind", ["", "aux_", "dn_"])
    @pytest.mark.parametrize(
        ("ours", "theirs"), [("vfl", "loss_vfl"), ("l1", "loss_bbox"), ("giou", "loss_giou")]
    )
    def test_term(
        self, losses: tuple[dict[str, Tensor], dict[str, Tensor]], kind: str, ours: str, theirs: str
    ) -> None:
        found, wanted = losses
        # transformers lists every output set on its own: 3 auxiliary sets, 3 of denoising.
        sets = [f"{theirs}_{kind}{index}" for index in range(3)] if kind else [theirs]
        torch.testing.assert_close(
            found[f"{kind}{ours}"], sum(wanted[key] for key in sets), rtol=1e-4, atol=0
        )
        assert found[f"{kind}{ours}"] > 0


def random_targets(count: int, generator: torch.Generator) -> Targets:
    centre = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
    size = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return Targets(torch.cat([centre, size], dim=1), labels)
