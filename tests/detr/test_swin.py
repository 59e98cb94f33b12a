"""The any-depth Swin Transformer against torchvision's, of which one is built for each depth.

Sizes and rules are those of the specification (1.2 and 1.7).
"""

from functools import cache

import pytest
import torch
import torchvision
from detr_reference import SMALL, SMALL_SWIN, build, build_again
from torch import Tensor, nn

from anydepth.detr.backbones.swin import SwinBlock, SwinTransformer
from anydepth.detr.detector import DetrDetector
from anydepth.detr.weights.load import load_weights
from anydepth.layers.macs import count_macs
from anydepth.layers.norm import switchable_norms

FULL, MINIMAL = (True,) * 4, (False,) * 4
BLOCKS, ESSENTIAL = (2, 2, 6, 2), (1, 1, 3, 1)
# Without padding, with padding inside attention, and with odd maps before all patch mergings but one.
SIZES = [(224, 224), (256, 320), (236, 300)]


@cache
def named(name: str = "detr_swin_t", frozen: bool = False) -> DetrDetector:
    """Build a detector without memory for its weights: only their shapes matter here."""
    with torch.device("meta"):
        return build(name, freeze_backbone_norms=frozen)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def scatter(module: nn.Module, seed: int = 0) -> None:
    """Randomise every parameter whose initial values are equal or too small to differ visibly."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_((1 + 0.3 * noise) if "norm" in name and "weight" in name else 0.2 * noise)
        elif "bias_table" in name:
            parameter.copy_(noise)
        elif parameter.ndim == 2:
            parameter.copy_(noise * parameter.shape[1] ** -0.5)


def reference(blocks: tuple[int, ...]) -> torchvision.models.SwinTransformer:
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=96, depths=list(blocks), num_heads=[3, 6, 12, 24], window_size=[7, 7]
    ).eval()


@torch.no_grad()
def reference_maps(model: torchvision.models.SwinTransformer, images: Tensor) -> list[Tensor]:
    """Return maps [B, C, H, W] of stages 2, 3 and 4; stages and mergings alternate after the embedding."""
    features, maps = images, []
    for index, part in enumerate(model.features):
        features = part(features)
        if index in (3, 5, 7):
            maps.append(features.permute(0, 3, 1, 2))
    return maps


@torch.no_grad()
def maps_of(backbone: SwinTransformer, images: Tensor, refine: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return backbone(backbone.stem(images), refine)


def as_torchvision(backbone: SwinTransformer, refine: tuple[bool, ...]) -> dict[str, Tensor]:
    """Return the weights of one depth under torchvision's names, without using the adapter."""
    state = backbone.state_dict()
    weights: dict[str, Tensor] = {}

    def take(source: str, target: str, part: str, flag: bool) -> None:
        for name in ("weight", "bias"):
            both = f"{source}.{part}.{'full' if flag else 'skip'}.{name}"
            weights[f"{target}.{part}.{name}"] = state.get(both, state.get(f"{source}.{part}.full.{name}"))

    for name in ("weight", "bias"):
        weights[f"features.0.0.{name}"] = state[f"stem.projection.{name}"]
        weights[f"features.0.2.{name}"] = state[f"stem.norm.full.{name}"]
    for stage, flag in enumerate(refine):
        paths = [f"essential.{index}" for index in range(ESSENTIAL[stage])]
        paths += [f"refinement.{index}" for index in range(BLOCKS[stage] - ESSENTIAL[stage]) if flag]
        for block, path in enumerate(paths):
            source, target = f"stages.{stage}.{path}", f"features.{2 * stage + 1}.{block}"
            take(source, target, "norm1", flag)
            take(source, target, "norm2", flag)
            weights |= {
                key.replace(source, target): value
                for key, value in state.items()
                if key.startswith((f"{source}.attn", f"{source}.mlp"))
            }
        if stage:
            source, target = f"merges.{stage - 1}", f"features.{2 * stage}"
            weights[f"{target}.reduction.weight"] = state[f"{source}.reduction.weight"]
            take(source, target, "norm", flag)
    return weights


# -- against torchvision ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> dict[tuple[int, int], Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {size: torch.rand(1, 3, *size, generator=generator) for size in SIZES}


@pytest.fixture(scope="module")
def backbone() -> SwinTransformer:
    """Swin-T whose norm sets all differ."""
    torch.manual_seed(0)
    backbone = SwinTransformer(blocks=BLOCKS, widths=(96, 192, 384, 768)).eval()
    scatter(backbone)
    return backbone


def test_full_depth_with_torchvisions_weights_computes_torchvisions_maps(
    images: dict[tuple[int, int], Tensor],
) -> None:
    source = torchvision.models.swin_t(weights=None).eval()
    scatter(source, seed=1)
    detector = build("detr_swin_t", 3)
    load_weights(detector, source.state_dict())
    for size, batch in images.items():
        found = maps_of(detector.backbone, batch, FULL)
        for ours, theirs in zip(found, reference_maps(source, batch), strict=True):
            assert ours.shape == theirs.shape, size
            assert theirs.std() > 0.1
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "refine",
    [
        pytest.param(FULL, id="full", marks=pytest.mark.slow),
        pytest.param(MINIMAL, id="minimal"),
        pytest.param((False, True, False, True), id="stages_2_and_4"),
        pytest.param((True, False, True, False), id="stages_1_and_3", marks=pytest.mark.slow),
    ],
)
def test_every_depth_equals_torchvisions_network_of_just_its_blocks(
    backbone: SwinTransformer, images: dict[tuple[int, int], Tensor], refine: tuple[bool, ...]
) -> None:
    blocks = tuple(n if flag else e for n, e, flag in zip(BLOCKS, ESSENTIAL, refine, strict=True))
    model = reference(blocks)
    weights = as_torchvision(backbone, refine)
    refused = model.load_state_dict(weights, strict=False)
    assert refused.unexpected_keys == []
    assert refused.missing_keys == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    for batch in images.values():
        found = maps_of(backbone, batch, refine)
        for ours, theirs in zip(found, reference_maps(model, batch), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_maps_have_strides_8_16_and_32(backbone: SwinTransformer) -> None:
    for refine in (FULL, MINIMAL):
        stem = backbone.stem(torch.rand(2, 3, 64, 96))
        assert stem.shape == (2, 96, 16, 24)
        shapes = [tuple(features.shape) for features in backbone(stem, refine)]
        assert shapes == [(2, 192, 8, 12), (2, 384, 4, 6), (2, 768, 2, 3)]
    assert backbone.out_channels == (192, 384, 768)


# -- sizes and cost --------------------------------------------------------------------------------------


def test_parameter_counts_are_those_of_the_authors_without_their_dead_ones() -> None:
    detector = named()
    # 28.303 M and 47.159 M less 770,536 of an unused norm and classifier.
    assert round(parameters(detector.backbone) / 1e6, 3) == 27.532
    assert round(parameters(detector) / 1e6, 3) == 46.389
    assert parameters(detector) == 46_388_742
    skip = sum(norm.skip.weight.numel() * 2 for _, norm in switchable_norms(detector.backbone))
    assert skip == 14_208
    torchvisions = torchvision.models.swin_t(weights=None)
    dead = parameters(torchvisions.norm) + parameters(torchvisions.head)
    assert dead == 770_536
    assert parameters(detector.backbone) == parameters(torchvisions) - dead + skip
    assert parameters(named("rtdetr_swin_t").backbone) == parameters(torchvisions) - dead


@pytest.mark.parametrize(("depth", "gmacs"), [("full", 70.6), ("minimal", 37.4)])
def test_multiply_accumulates_are_near_the_predicted_ones(depth: str, gmacs: float) -> None:
    # Specification 2; computed there by hand, not measured.
    images = torch.empty(1, 3, 640, 640, device="meta")
    assert count_macs(named(), images, depth=depth) / 1e9 == pytest.approx(gmacs, rel=0.005)


def test_essential_blocks_and_shifts() -> None:
    stages = named().backbone.stages
    assert [len(stage.essential) for stage in stages] == [1, 1, 3, 1]
    assert [len(stage.refinement) for stage in stages] == [1, 1, 3, 1]
    shifts = [[b.attn.shift_size[0] for b in (*s.essential, *s.refinement)] for s in stages]
    assert shifts == [[0, 3], [0, 3], [0, 3, 0, 3, 0, 3], [0, 3]]


# -- stochastic depth ------------------------------------------------------------------------------------


def test_stochastic_depth_grows_linearly_over_all_blocks() -> None:
    drops = [part.stochastic_depth.p for part in named().backbone.modules() if isinstance(part, SwinBlock)]
    assert drops == pytest.approx([0.1 * index / 11 for index in range(12)])


def test_branches_are_dropped_only_in_training_and_only_while_refining() -> None:
    torch.manual_seed(0)
    block = SwinBlock(width=32, shifted=False, drop=0.5, switchable=False)
    features = torch.rand(64, 7, 7, 32)

    def dropped(refine: bool) -> int:
        out = block(features, refine)
        return int((out == features).flatten(1).all(dim=1).sum())

    with torch.no_grad():
        evaluated = block.eval()(features, True)
        block.train()
        assert torch.equal(block(features, False), evaluated)
        # Images for which both branches are dropped: a quarter of 64.
        assert 6 <= dropped(True) <= 28
        assert dropped(False) == 0
        assert not torch.equal(block(features, True), block(features, True))


def test_a_detector_in_training_drops_branches_at_full_depth_only() -> None:
    detector = build("detr_tiny", 2, **{**SMALL_SWIN, "stochastic_depth": 0.9})
    scatter(detector.backbone)
    backbone = detector.backbone.train()
    batch = torch.rand(2, 3, 64, 64)
    first, second = maps_of(backbone, batch, FULL), maps_of(backbone, batch, FULL)
    assert not torch.equal(first[-1], second[-1])
    first, second = maps_of(backbone, batch, MINIMAL), maps_of(backbone, batch, MINIMAL)
    assert torch.equal(first[-1], second[-1])


# -- training --------------------------------------------------------------------------------------------


def test_full_and_minimal_pass_together_reach_every_parameter() -> None:
    backbone = build("detr_tiny", 2, **SMALL_SWIN).backbone
    scatter(backbone)
    for refine in (FULL, MINIMAL):
        maps = backbone(backbone.stem(torch.rand(2, 3, 96, 96)), refine)
        sum(features.square().sum() for features in maps).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fresh_refinement_blocks_start_as_the_identity_and_learn() -> None:
    backbone = build("detr_tiny", 5, **{**SMALL_SWIN, "switchable_norms": False}).backbone.eval()
    features = backbone.stem(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        refined, skipped = backbone(features, FULL), backbone(features, MINIMAL)
    for one, other in zip(refined, skipped, strict=True):
        assert torch.equal(one, other)
    sum(one.square().sum() for one in backbone(features, FULL)).backward()
    for stage in backbone.stages:
        for layer in (stage.refinement[-1].attn.proj, stage.refinement[-1].mlp[3]):
            assert layer.weight.grad.abs().sum() > 0


def test_a_frozen_backbone_trains_layer_norms_but_not_the_stem() -> None:
    frozen = {name for name, p in named(frozen=True).named_parameters() if not p.requires_grad}
    stem = {f"projection.{name}" for name in ("weight", "bias")}
    stem |= {f"norm.full.{name}" for name in ("weight", "bias")}
    assert frozen == {f"backbone.stem.{name}" for name in stem}
    assert all(parameter.requires_grad for parameter in named().parameters())


def test_a_fixed_depth_network_has_one_norm_set_and_no_refinement() -> None:
    backbone = named("rtdetr_swin_t").backbone
    assert not list(switchable_norms(backbone))
    assert [len(stage.essential) for stage in backbone.stages] == list(BLOCKS)


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "wrong", "message"),
    [
        (
            SMALL_SWIN,
            {"stem": "deep"},
            r"stem='deep': a Swin Transformer \(block=swin\) has the stem 'patch'",
        ),
        (SMALL_SWIN, {"widths": [32, 64, 100, 128]}, r"widths=\[32, 64, 100, 128\]: give multiples of 32"),
        (SMALL_SWIN, {"widths": [32, 64, 128]}, "give four numbers each"),
        (SMALL_SWIN, {"blocks": [2, 1, 2, 2]}, "an any-depth stage needs 2 blocks"),
        (SMALL_SWIN, {"stochastic_depth": 1.0}, r"stochastic_depth=1\.0: allowed are 0 <= "),
        (SMALL, {"stochastic_depth": 0.1}, r"stochastic_depth=0\.1: a ResNet \(block=basic\)"),
        (
            SMALL,
            {"stem": "patch"},
            r"stem='patch': a ResNet \(block=basic\) has the stem 'deep' or 'plain'",
        ),
    ],
)
def test_settings_that_do_not_fit_the_backbone_are_refused(
    settings: dict[str, object], wrong: dict[str, object], message: str
) -> None:
    small = build("detr_tiny", 5, **settings)
    with pytest.raises(ValueError, match=message):
        build_again(small, **wrong)
