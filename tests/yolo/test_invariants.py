"""The five invariants of an any-depth detector, on a small AnyDepth-YOLO, for all 256 configurations."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anydepth
from anydepth.depth import DepthConfig
from anydepth.layers.macs import count_forward
from anydepth.layers.norm import SwitchableNorm, copy_full_norms_to_skip
from anydepth.layers.stage import DepthStage
from anydepth.yolo.blocks import FusionConv, copy_prefix
from anydepth.yolo.detector import YoloDetector
from anydepth.yolo.output import YoloOutput
from anydepth.yolo.stages import ElanStage

# Four units in stage 3, so that one fusion has a kernel of its own; C3k units, so that both splits differ.
SMALL: dict[str, Any] = {
    "widths": [8, 8, 32, 64, 64],
    "backbone_units": [2, 3, 4, 2],
    "neck_units": [2, 3, 2, 2],
    "backbone_c3k2_unit": "c3k",
    "input_size": [64, 64],
}
SOME_DEPTHS = ["full", "minimal", "stage1", "stage3+neck1", "stage2+stage4+neck2+neck4", "none"]
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def randomise(module: nn.Module) -> None:
    """Randomise norms, residual scales and skip kernels, so that the sets of a switchable norm differ."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low in ((part.weight, 0.7), (part.running_var, 0.7), (part.bias, -0.3)):
                tensor.data.uniform_(low, low + 0.6, generator=generator)
            part.running_mean.normal_(0, 0.2, generator=generator)
        elif isinstance(part, ElanStage) and part.gamma is not None:
            part.gamma.data.uniform_(0.5, 1.0, generator=generator)
        elif isinstance(part, FusionConv) and part.skip_conv is not None:
            part.skip_conv.weight.data.normal_(0, 0.2, generator=generator)


def build(**overrides: Any) -> YoloDetector:
    torch.manual_seed(0)
    detector = anydepth.build("yolo_tiny", 3, **{**SMALL, **overrides})
    assert isinstance(detector, YoloDetector)
    return detector.eval()


@pytest.fixture(scope="module", params=["unit", pytest.param("bottleneck", marks=pytest.mark.slow)])
def detector(request: pytest.FixtureRequest) -> YoloDetector:
    detector = build(c3k2_split=request.param)
    randomise(detector)
    return detector


def run(detector: YoloDetector, depth: str | DepthConfig) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        output: YoloOutput = detector(IMAGES, depth)
    return (*output.maps, *output.backbone_features, *output.neck_features)


def assert_equal_bits(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for ours, reference in zip(found, wanted, strict=True):
        assert torch.equal(ours, reference)


def stages(detector: YoloDetector) -> Iterator[tuple[ElanStage, nn.Module | None]]:
    """Yield every stage and the convolution before it that uses its norm set, in the order of the flags."""
    backbone, neck = detector.backbone, detector.neck
    yield from zip(backbone.stages, [None, *backbone.downs], strict=True)  # type: ignore[misc]
    yield from zip(neck.stages, [None, None, *neck.downs], strict=True)  # type: ignore[misc]


def is_leaf(part: nn.Module) -> bool:
    """Return whether a forward pass calls the part itself, and nothing within it."""
    return not isinstance(part, nn.ModuleList) and not list(part.children())


# -- 1: switching ----------------------------------------------------------------------------------------


def test_switching_depths_in_any_order_equals_a_freshly_built_detector(detector: YoloDetector) -> None:
    wanted = {}
    for depth in SOME_DEPTHS:
        fresh = build(c3k2_split=detector.config["c3k2_split"])
        fresh.load_state_dict(detector.state_dict())
        wanted[depth] = run(fresh, depth)
    order = SOME_DEPTHS * 3
    random.Random(1).shuffle(order)
    for depth in order:
        assert_equal_bits(run(detector, depth), wanted[depth])


# -- 2, 3, 5: every configuration is the fixed-depth network of its units --------------------------------


def fixed_depth(detector: YoloDetector, depth: DepthConfig) -> YoloDetector:
    """Build a network without refinement paths and second norm sets that holds just the units of a depth."""
    plain = copy.deepcopy(detector)
    for (stage, down), refine in zip(stages(plain), depth.refine, strict=True):
        fusion = stage.fusion
        for chain in [part for part in stage.modules() if isinstance(part, DepthStage)]:
            chain.essential = nn.ModuleList(chain.active_blocks(refine))
            chain.refinement = nn.ModuleList()
        if not refine:
            dedicated = fusion.skip_conv
            kernel = fusion.fuse.conv.weight.data if dedicated is None else dedicated.weight.data
            entry = stage.entry.conv.out_channels // (2 if stage.halves else 1)
            outputs = len(stage.chain.essential) + (2 if stage.halves else 1)
            fusion.fuse.conv = nn.Conv2d(outputs * entry, kernel.shape[0], 1, bias=False)
            fusion.fuse.conv.weight.data = kernel[:, : outputs * entry].clone()
        fusion.skip_conv = None
        for part in (stage, down):
            for norm in [] if part is None else part.modules():
                if isinstance(norm, SwitchableNorm):
                    norm.full = norm.full if refine or norm.skip is None else norm.skip
                    norm.skip = None
    plain.any_depth = False  # so that it is called without flags, as a fixed-depth network is
    return plain.eval()


@pytest.mark.parametrize("chosen", ["every 15th", pytest.param("every", marks=pytest.mark.slow)])
def test_configurations_equal_the_fixed_depth_network_of_just_their_units(chosen: str) -> None:
    detector = build(c3k2_split="unit")
    randomise(detector)
    space = detector.depth_space
    # The 256 networks are assembled from the stages of two, which saves building each of them.
    parts = {True: fixed_depth(detector, space.full), False: fixed_depth(detector, space.minimal)}
    plain = fixed_depth(detector, space.full)
    configs = list(space.all())
    assert len(configs) == 256
    # 256 = 17 * 15 + 1: with both ends, and every stage with and without its refinement.
    configs = configs if chosen == "every" else configs[::15]
    shapes = [level.shape for level in run(detector, "full")]
    for config in configs:
        for index, refine in enumerate(config.refine):
            part, place = ("backbone", index) if index < 4 else ("neck", index - 4)
            target, source = getattr(plain, part), getattr(parts[refine], part)
            target.stages[place] = source.stages[place]
            down = place - (len(target.stages) - len(target.downs))
            if down >= 0:
                target.downs[down] = source.downs[down]
        found = run(detector, config)
        assert [level.shape for level in found] == shapes
        assert_equal_bits(found, run(plain, "full"))


@pytest.mark.parametrize(
    "depth",
    [*SOME_DEPTHS[:3], *(pytest.param(depth, marks=pytest.mark.slow) for depth in SOME_DEPTHS[3:])],
)
def test_the_fixed_depth_network_costs_the_same(detector: YoloDetector, depth: str) -> None:
    config = detector.depth_space.parse(depth)
    ours = count_forward(detector, IMAGES, depth=config)
    plain = count_forward(fixed_depth(detector, config), IMAGES)
    assert ours.macs == plain.macs
    assert_equal_bits(run(detector, config), run(fixed_depth(detector, config), "full"))


@pytest.mark.parametrize("depth", SOME_DEPTHS)
def test_only_units_and_norm_sets_of_the_depth_are_called(detector: YoloDetector, depth: str) -> None:
    config = detector.depth_space.parse(depth)
    calls: dict[nn.Module, int] = {}
    hooks = [
        part.register_forward_hook(lambda module, *_: calls.update({module: calls.get(module, 0) + 1}))
        for part in detector.modules()
    ]
    run(detector, config)
    for hook in hooks:
        hook.remove()
    switched = skippable = 0
    for (stage, down), refine in zip(stages(detector), config.refine, strict=True):
        for chain in [part for part in stage.modules() if isinstance(part, DepthStage)]:
            for unit in chain.refinement:
                leaves = [part for part in unit.modules() if is_leaf(part)]
                skippable += len(leaves)
                assert all(calls.get(leaf, 0) == refine for leaf in leaves)
        for part in (stage, down):
            for norm in [] if part is None else part.modules():
                if isinstance(norm, SwitchableNorm) and norm.skip is not None:
                    switched += 1
                    assert (calls.get(norm.full, 0), calls.get(norm.skip, 0)) == (refine, not refine)
    leaf_names = [name for name, part in detector.named_modules() if is_leaf(part)]
    assert skippable == sum(".refinement." in name for name in leaf_names) > 0
    assert switched == sum(isinstance(n, SwitchableNorm) and n.skip is not None for n in detector.modules())


# -- 4: equal norm sets ----------------------------------------------------------------------------------


def test_equal_norm_sets_without_refinement_units_make_full_and_minimal_coincide() -> None:
    detector = build(backbone_units=[1, 1, 1, 1], neck_units=[1, 1, 1, 1], c3k2_split="unit")
    randomise(detector)
    assert not torch.equal(run(detector, "full")[0], run(detector, "minimal")[0])
    assert copy_full_norms_to_skip(detector) > 0
    assert_equal_bits(run(detector, "minimal"), run(detector, "full"))


# -- shared kernels --------------------------------------------------------------------------------------


def test_only_long_attention_stages_have_a_fusion_kernel_of_their_own_that_starts_as_the_slice() -> None:
    detector = build()
    dedicated = [stage.fusion.skip_conv is not None for stage, _ in stages(detector)]
    assert dedicated == [False, False, True, False, False, False, False, False]
    fusion = detector.backbone.stages[2].fusion
    width = fusion.skip_conv.weight.shape[1]
    assert width == (1 + 2) * 32  # the entry and 2 of 4 units
    assert torch.equal(fusion.skip_conv.weight, fusion.fuse.conv.weight[:, :width])
    fusion.skip_conv.weight.data.zero_()
    copy_prefix(fusion.fuse.conv, fusion.skip_conv)
    assert torch.equal(fusion.skip_conv.weight, fusion.fuse.conv.weight[:, :width])


def test_a_depth_trains_just_what_it_runs() -> None:
    detector = build().train()
    sum(level.square().mean() for level in detector(IMAGES.repeat(2, 1, 1, 1), "minimal").maps).backward()
    trained = {name for name, parameter in detector.named_parameters() if parameter.grad is not None}
    assert any(".refinement." in name for name, _ in detector.named_parameters())
    assert not any(".refinement." in name for name in trained)
    assert any(".skip." in name for name in trained)
    assert "backbone.stages.2.fusion.skip_conv.weight" in trained
    assert "backbone.stages.2.fusion.fuse.conv.weight" not in trained
    sum(level.square().mean() for level in detector(IMAGES.repeat(2, 1, 1, 1), "full").maps).backward()
    missing = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    assert missing == {"head.bins"}
