"""Sizes and costs of the named networks, their depth spaces, and the checks of their settings.

Expected counts are those of the specification (1.1, 1.3, 1.7, 2, 5.1, 5.2), which takes them from
the logs and the released files of the authors.
"""

from functools import cache

import pytest
import torch
from detr_reference import SMALL, build, build_again

from anydepth.detr.backbones.resnet import ResNet
from anydepth.detr.decoder import make_anchors
from anydepth.detr.detector import DetrDetector
from anydepth.layers.macs import count_macs
from anydepth.layers.norm import switchable_norms
from anydepth.layers.stage import essential_count


@cache
def named(name: str, frozen: bool = False) -> DetrDetector:
    """Build a detector without memory for its weights: only their shapes matter here."""
    with torch.device("meta"):
        return build(name, freeze_backbone_norms=frozen)


@pytest.fixture
def small() -> DetrDetector:
    return build("detr_tiny", 5, **SMALL)


@cache
def macs(name: str, depth: str) -> int:
    return count_macs(named(name), torch.empty(1, 3, 640, 640, device="meta"), depth=depth)


# -- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frozen", "parameters"),
    [
        ("detr_r50", True, 42_885_068),
        ("detr_r101", True, 76_556_364),
        ("rtdetr_r50", True, 42_891_372),
        ("rtdetr_r101", True, 76_556_268),
    ],
)
def test_parameter_counts_equal_the_released_networks(name: str, frozen: bool, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in named(name, frozen).parameters()) == parameters


@pytest.mark.parametrize(("name", "millions"), [("rtdetr_r18", 20.184), ("rtdetr_r34", 31.442)])
def test_parameter_counts_of_small_networks_equal_the_released_ones(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in named(name).parameters())
    assert round(count / 1e6, 3) == millions


def test_trained_parameters_of_the_released_rtdetr_exclude_the_stem() -> None:
    trained = sum(p.numel() for p in named("rtdetr_r50", True).parameters() if p.requires_grad)
    assert trained == 42_862_860


@pytest.mark.parametrize(
    ("name", "frozen", "backbone", "neck", "decoder"),
    [
        ("detr_r50", True, 373, 365, 215),
        ("detr_r101", True, 736, 365, 215),
        ("rtdetr_r50", True, 275, 246, 215),
        ("rtdetr_r101", True, 530, 246, 215),
        # 533 and 659 in total, and decoders of 3 and 4 layers; the neck has conv3 in four CSP blocks.
        ("rtdetr_r18", False, 533 - 270 - 125, 246 + 4 * 6, 125),
        ("rtdetr_r34", False, 659 - 270 - 155, 246 + 4 * 6, 155),
    ],
)
def test_key_counts_equal_the_released_files(
    name: str, frozen: bool, backbone: int, neck: int, decoder: int
) -> None:
    keys = list(named(name, frozen).state_dict())
    counts = [sum(key.startswith(part) for key in keys) for part in ("backbone.", "neck.", "decoder.")]
    assert counts == [backbone, neck, decoder]
    assert sum(counts) == len(keys)


@pytest.mark.parametrize(
    ("name", "essential"),
    [
        ("detr_r18", [1, 1, 1, 1]),
        ("detr_r34", [2, 2, 3, 2]),
        ("detr_r50", [2, 2, 3, 2]),
        ("detr_r101", [2, 2, 12, 2]),
    ],
)
def test_essential_blocks_per_stage(name: str, essential: list[int]) -> None:
    backbone = named(name).backbone
    assert [len(stage.essential) for stage in backbone.stages] == essential
    for stage, count in zip(backbone.stages, named(name).config["blocks"], strict=True):
        assert len(stage.essential) + len(stage.refinement) == count
        assert essential_count(count) == len(stage.essential)


@pytest.mark.parametrize(("name", "channels"), [("detr_r50", 13_056), ("detr_r101", 26_880)])
def test_channels_of_the_backbone_with_two_norm_sets(name: str, channels: int) -> None:
    found = [norm.skip.weight.numel() for _, norm in switchable_norms(named(name).backbone)]
    assert sum(found) == channels


@pytest.mark.parametrize(("name", "parameters"), [("detr_r50", 12_800), ("detr_r101", 19_200)])
def test_the_neck_has_25_switchable_norms(name: str, parameters: int) -> None:
    norms = [norm for _, norm in switchable_norms(named(name).neck)]
    assert len(norms) == 25
    assert sum(p.numel() for norm in norms for p in norm.skip.parameters()) == parameters


def test_the_third_convolution_of_narrow_csp_blocks_is_switchable_too() -> None:
    names = [name for name, _ in switchable_norms(named("detr_r18").neck)]
    assert sum("conv3" in name for name in names) == 4


# -- cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "gmacs"),
    [
        ("detr_r50", "full", 67.03),
        ("detr_r50", "minimal", 39.50),
        ("detr_r101", "full", 128.45),
        ("detr_r101", "minimal", 70.27),
        ("rtdetr_r50", "full", 68.984),
    ],
)
def test_multiply_accumulates_are_those_of_the_authors_logs(name: str, depth: str, gmacs: float) -> None:
    assert macs(name, depth) / 1e9 == pytest.approx(gmacs, rel=0.005)


def test_each_removable_part_saves_what_the_specification_lists() -> None:
    space = named("detr_r50").depth_space
    saved = [cost / 1e9 for cost in space.costs.refinements]
    assert saved == pytest.approx([1.783, 3.565, 5.348, 1.783, 13.128], rel=0.005)
    assert space.costs.decoder_layer / 1e9 == pytest.approx(0.959, rel=0.01)
    difference = macs("detr_r50", "full") - macs("detr_r50", "minimal")
    assert difference == sum(space.costs.refinements) + 2 * space.costs.decoder_layer


# -- depth spaces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "minimal"),
    [("detr_r18", 3, 2), ("detr_r34", 4, 3), ("detr_r50", 6, 4), ("detr_r101", 6, 4)],
)
def test_decoder_layers_of_full_and_minimal(name: str, layers: int, minimal: int) -> None:
    space = named(name).depth_space
    assert space.stages == ("stage1", "stage2", "stage3", "stage4", "neck")
    assert (space.full.decoder_layers, space.minimal.decoder_layers) == (layers, minimal)


def test_a_fixed_depth_network_may_still_vary_its_decoder() -> None:
    space = named("rtdetr_r50").depth_space
    assert space.full == space.minimal
    assert [str(depth) for depth in space.all()] == ["full", *(f"none@{count}" for count in (5, 4, 3, 2, 1))]
    assert not list(switchable_norms(named("rtdetr_r50")))


def test_norms_may_be_shared_between_all_depths() -> None:
    detector = build("detr_tiny", 5, **SMALL, switchable_norms=False)
    assert not list(switchable_norms(detector))
    assert len(detector.depth_space.stages) == 5


# -- parts -----------------------------------------------------------------------------------------------


def test_anchors_are_cell_centres_with_sides_that_double_per_level() -> None:
    logits, valid = make_anchors([(2, 4), (1, 2)], torch.device("cpu"))
    assert valid.all()
    boxes = logits.sigmoid()[0]
    torch.testing.assert_close(boxes[1], torch.tensor([0.375, 0.25, 0.05, 0.05]))
    torch.testing.assert_close(boxes[4], torch.tensor([0.125, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(boxes[9], torch.tensor([0.75, 0.5, 0.1, 0.1]))


def test_anchors_at_the_border_of_fine_maps_are_invalid() -> None:
    # Centres of the outer cells of 100 lie at 0.005, closer to the border than 0.01.
    logits, valid = make_anchors([(3, 100)], torch.device("cpu"))
    assert valid.view(3, 100).sum(dim=1).tolist() == [98, 98, 98]
    assert torch.isinf(logits[~valid[..., 0]]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stem": "wide"}, r"stem='wide': a ResNet \(block=\w+\) has the stem 'deep' or 'plain'"),
        ({"block": "wide"}, "block='wide': allowed are 'basic', 'bottleneck', 'swin'"),
        ({"blocks": [2, 2, 2]}, "give four numbers each"),
        ({"blocks": [2, 1, 2, 2]}, "an any-depth stage needs 2 blocks"),
        ({"neck_blocks": 2}, "blocks=2: an any-depth neck needs at least 3"),
        ({"heads": 3}, "is not a multiple of heads=3"),
        ({"input_size": [64, 65]}, "image size 64x65.*multiples of 32"),
        ({"input_size": [64]}, r"expected \[height, width\]"),
        ({"minimal_decoder_layers": 4}, r"minimal_decoder_layers=4: allowed are 1\.\.3"),
        ({"minimal_decoder_layers": 0}, r"minimal_decoder_layers=0: allowed are 1\.\.3"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"class_names": ["a"]}, "got 1 class names, expected num_classes=5"),
        ({"image_mean": [0.5]}, r"got \[0\.5\]; give three values, one for each of R, G and B"),
    ],
)
def test_invalid_settings_are_refused(small: DetrDetector, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_again(small, **wrong)


def test_frozen_backbones_train_convolutions_but_neither_norms_nor_stem() -> None:
    backbone = build("detr_tiny", 5, **{**SMALL, "stem": "plain"}, freeze_backbone_norms=True).backbone
    assert isinstance(backbone, ResNet)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    maps = backbone(backbone.stem(torch.rand(2, 3, 64, 64)), (True,) * 4)
    sum(features.sum() for features in maps).backward()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("conv" in name and "norm" not in name and "stem" not in name for name in trained)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_fresh_refinement_blocks_start_as_the_identity_and_learn(block: str) -> None:
    backbone = build("detr_tiny", 5, **{**SMALL, "block": block, "switchable_norms": False}).backbone.eval()
    features = backbone.stem(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        refined, skipped = backbone(features, (True,) * 4), backbone(features, (False,) * 4)
    for one, other in zip(refined, skipped, strict=True):
        assert torch.equal(one, other)
    sum(one.square().sum() for one in backbone(features, (True,) * 4)).backward()
    for stage in backbone.stages:
        assert stage.refinement[-1].last_norm.full.weight.grad.abs().sum() > 0
