"""The five invariants of an any-depth detector, on small networks of either kind of backbone."""

import random
from itertools import product
from typing import Any

import pytest
import torch
from detr_reference import (
    SMALL,
    SMALL_SWIN,
    build,
    build_again,
    count_calls,
    fixed_depth,
    randomise,
    weights_at,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anydepth.depth import DepthConfig
from anydepth.detr.detector import DetrDetector
from anydepth.detr.output import DetrOutput
from anydepth.layers.macs import count_forward, count_macs
from anydepth.layers.norm import copy_full_norms_to_skip
from anydepth.layers.stage import DepthStage

# One of each kind, for checks that need not cover all 96.
SOME_DEPTHS = ["full", "minimal", "none@1", "stage1@3", "stage2+neck@2", "stage1+stage3+stage4@1"]
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
# Switchable norms, by the specification. ResNet (1.1): 2 in each of the 1 + 2 + 2 + 1 essential basic blocks.
# Swin Transformer (1.2): the same, and 1 in each of 3 patch mergings. Neck (1.3): 25, and since its expansion
# is not 1, one more in each of its 4 CSP blocks (7.7).
SWITCHABLE = {"resnet": 2 * 6 + 25 + 4, "swin": 2 * 6 + 3 + 25 + 4}


@pytest.fixture(scope="module", params=["resnet", pytest.param("swin", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sizes(kind: str) -> dict[str, Any]:
    return SMALL if kind == "resnet" else SMALL_SWIN


@pytest.fixture(scope="module")
def detector(sizes: dict[str, Any]) -> DetrDetector:
    detector = build("detr_tiny", 5, **sizes)
    randomise(detector)
    return detector


def run(detector: DetrDetector, depth: str | DepthConfig) -> DetrOutput:
    with torch.inference_mode():
        output = detector(IMAGES, depth)
    assert isinstance(output, DetrOutput)
    return output


def tensors(output: DetrOutput) -> list[Tensor]:
    return [output.logits, output.boxes_cxcywh, *output.backbone_features, *output.neck_features]


def assert_equal_bits(found: DetrOutput, wanted: DetrOutput) -> None:
    for ours, reference in zip(tensors(found), tensors(wanted), strict=True):
        assert torch.equal(ours, reference)


# -- 1: switching ----------------------------------------------------------------------------------------


def test_switching_depths_in_any_order_equals_a_freshly_built_detector(detector: DetrDetector) -> None:
    wanted = {}
    for depth in SOME_DEPTHS:
        fresh = build_again(detector)
        fresh.load_state_dict(detector.state_dict())
        wanted[depth] = run(fresh, depth)
    order = SOME_DEPTHS * 3
    random.Random(1).shuffle(order)
    for depth in order:
        assert_equal_bits(run(detector, depth), wanted[depth])


def test_a_forward_pass_changes_nothing_in_an_evaluated_detector(detector: DetrDetector) -> None:
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    for depth in SOME_DEPTHS:
        run(detector, depth)
    after = detector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


# -- 2: skipped parts do not run -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", SOME_DEPTHS)
def test_only_units_of_the_depth_are_called(detector: DetrDetector, depth: str) -> None:
    config = detector.depth_space.parse(depth)
    calls = count_calls(detector, lambda: run(detector, config))
    flags = {f"backbone.stages.{stage}": config.refine[stage] for stage in range(4)}
    flags |= {
        f"neck.{kind}.{index}": config.refine[4] for kind in ("fpn_blocks", "pan_blocks") for index in (0, 1)
    }
    for stage, flag in flags.items():
        paths = {name: count for name, count in calls.items() if name.startswith(f"{stage}.")}
        blocks = {
            name: count for name, count in paths.items() if name.split(".")[-2] in ("essential", "refinement")
        }
        assert {name.split(".")[-2] for name in blocks} == {"essential", "refinement"}
        for name, count in blocks.items():
            assert count == ("essential" in name or flag), name
        skipped = {name: count for name, count in paths.items() if ".refinement." in name and not flag}
        assert not any(skipped.values())
    for index in range(3):
        assert calls[f"decoder.layers.{index}"] == (index < config.decoder_layers)


@pytest.mark.parametrize("depth", SOME_DEPTHS)
def test_each_stage_uses_only_the_norm_set_of_its_own_flag(
    detector: DetrDetector, kind: str, depth: str
) -> None:
    config = detector.depth_space.parse(depth)
    calls = count_calls(detector, lambda: run(detector, config))
    switched = 0
    for name, count in calls.items():
        if not name.endswith((".full", ".skip")) or ".refinement." in name:
            continue
        if f"{name.rpartition('.')[0]}.skip" not in calls:
            continue
        switched += 1
        stage = 4 if name.startswith("neck.") else int(name.split(".")[2])
        # Patch merging belongs to the stage that it precedes.
        stage += name.startswith("backbone.merges.")
        assert count == (name.endswith(".full") == config.refine[stage]), name
    assert switched == 2 * SWITCHABLE[kind]


class _OperationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operations(detector: DetrDetector, depth: str | DepthConfig) -> int:
    with torch.no_grad(), _OperationCounter() as counter:
        detector(IMAGES, depth)
    return counter.count


@pytest.mark.parametrize("depth", SOME_DEPTHS)
def test_the_number_of_operations_is_that_of_the_fixed_depth_network(
    detector: DetrDetector, depth: str
) -> None:
    config = detector.depth_space.parse(depth)
    fixed = fixed_depth(detector, config)
    assert count_operations(detector, config) == count_operations(fixed, "full")


@pytest.mark.parametrize("depth", ["minimal", "stage2+neck@2"])
def test_cost_is_that_of_the_fixed_depth_network(detector: DetrDetector, depth: str) -> None:
    config = detector.depth_space.parse(depth)
    last = (config.decoder_layers or 0) - 1
    parameters = sum(
        value.numel()
        for name, value in weights_at(detector, config).items()
        if not name.endswith(
            ("running_mean", "running_var", "num_batches_tracked", "relative_position_index")
        )
        # Used in training only: the embedding of noised labels, and the class heads of earlier layers.
        and not name.startswith("decoder.denoising_class_embed")
        and not (name.startswith("decoder.dec_score_head.") and int(name.split(".")[2]) < last)
    )
    cost = count_forward(detector, IMAGES, depth=config)
    assert cost.parameters == parameters
    assert cost.macs == count_macs(fixed_depth(detector, config), IMAGES)


def test_savings_are_additive_over_flags_and_decoder_layers(detector: DetrDetector) -> None:
    space = detector.depth_space
    images = torch.empty(1, 3, *detector.input_size)
    whole = count_macs(detector, images)
    assert min(space.costs.refinements) > 0
    for depth in ("minimal", "stage2+neck@1"):
        config = space.parse(depth)
        assert whole - count_macs(detector, images, depth=config) == space.saving(config)


# -- 3: shapes -------------------------------------------------------------------------------------------


def test_output_shapes_do_not_depend_on_the_depth(detector: DetrDetector) -> None:
    wanted = [tuple(tensor.shape) for tensor in tensors(run(detector, "full"))]
    assert wanted[:2] == [(1, 12, 5), (1, 12, 4)]
    # Strides 8, 16 and 32 of 64 x 96 pixels.
    assert [shape[2:] for shape in wanted[2:]] == [(8, 12), (4, 6), (2, 3)] * 2
    for depth in SOME_DEPTHS:
        assert [tuple(tensor.shape) for tensor in tensors(run(detector, depth))] == wanted


def test_training_returns_all_decoder_layers_at_every_depth(detector: DetrDetector) -> None:
    detector.train()
    try:
        for depth in ("full", "minimal", "none@1"):
            with torch.no_grad():
                output = detector(IMAGES, depth)
            assert output.auxiliary_logits.shape == (3, 1, 12, 5)
    finally:
        detector.eval()


# -- 4: equal norms, no refinement -----------------------------------------------------------------------


def test_equal_norm_sets_without_refinement_units_make_full_and_minimal_coincide(
    sizes: dict[str, Any], kind: str
) -> None:
    detector = build("detr_tiny", 5, **{**sizes, "minimal_decoder_layers": 3})
    randomise(detector)
    assert not torch.equal(run(detector, "full").logits, run(detector, "minimal").logits)
    assert copy_full_norms_to_skip(detector) == SWITCHABLE[kind]
    for stage in detector.modules():
        if isinstance(stage, DepthStage):
            stage.refinement = nn.ModuleList()
    assert_equal_bits(run(detector, "minimal"), run(detector, "full"))


# -- 5: fixed-depth networks -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(detector: DetrDetector) -> dict[DepthConfig, DetrOutput]:
    return {depth: run(detector, depth) for depth in detector.depth_space.all()}


def test_every_depth_equals_the_fixed_depth_network_of_just_its_units(
    detector: DetrDetector, outputs: dict[DepthConfig, DetrOutput]
) -> None:
    # All 96 networks are assembled from 16 backbones, 2 necks and 3 decoders of fixed depth.
    space = detector.depth_space
    backbones = {
        flags: fixed_depth(detector, space.config((*flags, True))).backbone
        for flags in product((True, False), repeat=4)
    }
    necks = {flag: fixed_depth(detector, space.config((True,) * 4 + (flag,))).neck for flag in (True, False)}
    decoders = {
        count: fixed_depth(detector, space.config(space.full.refine, count)).decoder for count in (1, 2, 3)
    }
    assert len(outputs) == 96
    for depth, output in outputs.items():
        assert depth.decoder_layers is not None
        fixed = DetrDetector(
            fit="stretch",
            backbone=backbones[depth.refine[:4]],
            neck=necks[depth.refine[4]],
            decoder=decoders[depth.decoder_layers],
            minimal_decoder_layers=depth.decoder_layers,
            any_depth=False,
            input_size=detector.input_size,
            class_names=detector.class_names,
            denoising=detector.denoising,
        ).eval()
        assert_equal_bits(output, run(fixed, "full"))


def test_no_two_depths_predict_the_same(outputs: dict[DepthConfig, DetrOutput]) -> None:
    # Without this the test above could pass on a network that ignores its depth.
    assert len({tuple(output.logits.flatten().tolist()) for output in outputs.values()}) == 96
