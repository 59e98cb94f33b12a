"""Specialised detectors: the same results at every depth, from the parameters of that depth alone."""

import copy
import gc
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import anydepth
from anydepth.depth import DepthConfig, DepthError
from anydepth.detector import Detector
from anydepth.detr.neck import RepVGGBlock
from anydepth.evaluation.cost import count_depth
from anydepth.layers.norm import SwitchableNorm
from anydepth.layers.sync_norm import synchronize_norms
from anydepth.structures import DetectorOutput
from anydepth.yolo.blocks import FusionConv
from anydepth.yolo.stages import ElanStage
from anydepth.zoo import ZooError
from small_networks import SMALL_DETECTOR

SWIN: dict[str, object] = {
    "block": "swin",
    "stem": "patch",
    "stochastic_depth": 0.1,
    "widths": [32, 32, 64, 64],
}
# Four units in stage 3, so that one fusion has a kernel of its own; C3k units, so that both splits differ.
YOLO: dict[str, object] = {
    "widths": [8, 8, 32, 64, 64],
    "backbone_units": [1, 3, 4, 1],
    "neck_units": [2, 1, 1, 2],
    "backbone_c3k2_unit": "c3k",
    "input_size": [64, 64],
}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "basic": ("detr_tiny", {"neck_expansion": 0.5}),
    "bottleneck": ("detr_tiny", {"block": "bottleneck", "stem": "deep", "image_mean": [0.4, 0.5, 0.6]}),
    "frozen": ("detr_tiny", {"block": "bottleneck", "freeze_backbone_norms": True}),
    "swin": ("detr_tiny", SWIN),
    "one set": ("detr_tiny", {"switchable_norms": False}),
    "fixed depth": ("detr_tiny", {"any_depth": False}),
    "yolo unit": ("yolo_tiny", {"c3k2_split": "unit", "residual_scale": False}),
    "yolo bottleneck": ("yolo_tiny", {"c3k2_split": "bottleneck", "residual_scale": True}),
    "yolo one set": ("yolo_tiny", {"switchable_norms": False}),
    "yolo fixed depth": ("yolo_tiny", {"any_depth": False}),
}
# The last two have each stage in both states, beside stages in the other state.
SOME_DEPTHS = {
    "detr_tiny": ("full", "minimal", "stage1+stage3+neck@1", "stage2+stage4@2"),
    "yolo_tiny": ("full", "minimal", "stage1+stage3+neck1+neck3", "stage2+stage4+neck2+neck4"),
}
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(case: str) -> Detector:
    """Build a small detector in eval mode whose norms, kernels and scales all differ.

    A YOLO is in float64, where folding may only differ by rounding; a DETR has parts that are always float32.
    """
    name, settings = CASES[case]
    torch.manual_seed(0)
    small = YOLO if name == "yolo_tiny" else SMALL_DETECTOR
    detector = anydepth.build(name, 3, **{**small, **settings}).eval()
    randomise(detector)
    return detector.double() if name == "yolo_tiny" else detector


@torch.no_grad()
def randomise(detector: Detector) -> None:
    """Randomise what is the identity, zero or a copy in a fresh detector, and would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for part in detector.modules():
        if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d | nn.LayerNorm):
            part.weight.uniform_(0.6, 1.2, generator=generator)
            part.bias.normal_(0, 0.2, generator=generator)
        if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d):
            part.running_var.uniform_(0.6, 1.2, generator=generator)
            part.running_mean.normal_(0, 0.2, generator=generator)
        if isinstance(part, nn.Linear):
            part.weight.normal_(0, 0.5 * part.in_features**-0.5, generator=generator)
        if isinstance(part, ElanStage) and part.gamma is not None:
            part.gamma.uniform_(0.5, 1.0, generator=generator)
        if isinstance(part, FusionConv) and part.skip_conv is not None:
            part.skip_conv.weight.normal_(0, 0.2, generator=generator)


def run(detector: Detector, depth: str | DepthConfig) -> DetectorOutput:
    with torch.inference_mode():
        return detector(IMAGES.to(next(detector.parameters()).dtype), depth=depth)


def assert_close(found: DetectorOutput, wanted: DetectorOutput) -> None:
    """Compare every tensor of two outputs: 1e-9 in float64; in float32, rounding through forty layers."""
    for entry in fields(wanted):
        ours, reference = getattr(found, entry.name), getattr(wanted, entry.name)
        for one, other in zip(as_list(ours), as_list(reference), strict=True):
            close = 1e-9 if other.dtype == torch.float64 else 2e-5
            torch.testing.assert_close(one, other, rtol=close, atol=close * float(other.abs().max()))


def as_list(value: Tensor | tuple[Tensor, ...] | None) -> list[Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, Tensor) else list(value)


class Case:
    """A detector, and the networks that tests specialise it to, each made once."""

    def __init__(self, name: str) -> None:
        self.detector = build(name)
        some = SOME_DEPTHS[str(self.detector.config["name"])]
        self.depths = some if self.detector.depth_space.stages else some[:2]
        self._made: dict[tuple[str, bool], Detector] = {}

    def network(self, depth: str, *, share_weights: bool = False) -> Detector:
        key = depth, share_weights
        if key not in self._made:
            self._made[key] = self.detector.specialise(depth, share_weights=share_weights)
        return self._made[key]


# Those that differ most; the others in the slow tests.
QUICK = ("frozen", "yolo unit")


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in CASES.keys() - QUICK)],
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Each of the detectors; at the end of its tests, none has changed it."""
    made = Case(request.param)
    before = {name: tensor.clone() for name, tensor in made.detector.state_dict().items()}
    yield made
    after = made.detector.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- results ---------------------------------------------------------------------------------------------


def test_results_equal_the_originals(case: Case) -> None:
    for depth in case.depths[1:]:
        assert_close(run(case.network(depth), depth), run(case.detector, depth))


def test_results_with_shared_weights_equal_the_originals(case: Case) -> None:
    for depth in case.depths[-2:]:
        assert_close(run(case.network(depth, share_weights=True), depth), run(case.detector, depth))


@pytest.mark.slow
def test_results_equal_the_originals_at_every_depth(case: Case) -> None:
    for index, depth in enumerate(case.detector.depth_space.all()):
        wanted = run(case.detector, depth)
        assert_close(run(case.detector.specialise(depth), depth), wanted)
        # Which weights are shared follows from each stage alone, so that some depths are enough.
        if index % 5 == 0:
            assert_close(run(case.detector.specialise(depth, share_weights=True), depth), wanted)


@pytest.mark.parametrize("name", ["basic", "yolo unit"])
def test_detections_and_what_a_user_reads_are_those_of_the_original(name: str) -> None:
    detector = build(name).float()
    fast = detector.specialise("minimal")
    picture = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(3))
    ours, wanted = (one.predict(picture, "minimal", 0.001)[0] for one in (fast, detector))
    assert len(wanted) > 0
    torch.testing.assert_close(ours.scores, wanted.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.boxes_xyxy, wanted.boxes_xyxy, rtol=1e-4, atol=1e-2)
    for name in ("class_names", "input_size", "config", "builder", "stage_modules", "fit", "num_classes"):
        assert getattr(fast, name) == getattr(detector, name)
    for name in fast.stage_modules:
        fast.get_submodule(name)
    assert type(fast) is type(detector)


def test_a_stem_computed_apart_gives_the_same_results() -> None:
    detector = build("basic")
    fast = detector.specialise("minimal")
    with torch.inference_mode():
        apart = fast(IMAGES, depth="minimal", stem=fast.stem_features(IMAGES))
    assert torch.equal(apart.logits, run(fast, "minimal").logits)  # type: ignore[attr-defined]


# -- parameters ------------------------------------------------------------------------------------------


def test_only_the_parameters_that_run_are_left(case: Case) -> None:
    single = copy.deepcopy(case.detector).float()
    for depth in case.depths[-2:]:
        found = sum(parameter.numel() for parameter in case.network(depth).parameters())
        assert found == count_depth(single, depth).parameters_run - merged(single, depth)


def merged(detector: Detector, depth: str) -> int:
    """Count the parameters that run and that folding merges into others, from what a pass calls."""
    count = 0

    def leave(part: nn.Module, args: tuple[Any, ...], _: object) -> None:
        nonlocal count
        if isinstance(part, nn.BatchNorm2d):
            count += part.num_features  # weight and bias become a bias
        elif isinstance(part, FrozenBatchNorm2d):
            count -= len(part.weight)  # buffers become a bias
        elif isinstance(part, RepVGGBlock):
            # The kernel and the bias of the 1x1 branch become part of the other's.
            count += part.conv2.conv.weight.numel() + part.conv2.conv.out_channels
        elif isinstance(part, FusionConv) and not (part.skip_conv is not None and not args[1]):
            # The kernel is read as a whole, and cut.
            cut = part.fuse.conv.in_channels - sum(features.shape[1] for features in args[0])
            count += cut * part.fuse.conv.out_channels

    hooks = [part.register_forward_hook(leave) for part in detector.modules()]
    run(detector, depth)
    for hook in hooks:
        hook.remove()
    return count


def test_nothing_of_the_original_is_held() -> None:
    owner = build("basic")
    storages = {tensor.untyped_storage().data_ptr() for tensor in owner.state_dict().values()}
    fast = owner.specialise("minimal", share_weights=True)
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in fast.state_dict().values()}
    released = weakref.ref(owner)
    del owner
    gc.collect()
    assert released() is None
    run(fast, "minimal")


# -- weights that depths share ---------------------------------------------------------------------------


def test_kernels_of_two_norm_sets_keep_their_bytes(case: Case) -> None:
    original = case.detector.state_dict()
    kernels = {
        f"{name.removesuffix('norm')}conv.weight"
        for name, part in case.detector.named_modules()
        if isinstance(part, SwitchableNorm) and part.skip is not None
    }
    # The kernel of a fusion has another name in its specialised form; layer norms have none.
    kernels = {name for name in kernels if name in original and ".fuse." not in name}
    assert len(kernels) >= 30
    for depth in case.depths[-2:]:
        state = case.network(depth, share_weights=True).state_dict()
        assert all(torch.equal(state[name], original[name]) for name in kernels)


def test_everything_but_switchable_norms_agrees_between_depths(case: Case) -> None:
    shared: dict[str, Tensor] = {}
    times: Counter[str] = Counter()
    for depth in case.depths[-2:]:
        network = case.network(depth, share_weights=True)
        of_norms = {
            name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm)
        }
        for name, tensor in network.state_dict().items():
            # A fusion with a kernel for each state has two kernels of one name.
            if name.rpartition(".")[0] not in of_norms and ".fusion." not in name:
                times[name] += 1
                assert torch.equal(shared.setdefault(name, tensor), tensor), name
    assert any(".conv.bias" in name and count == 2 for name, count in times.items())


def test_a_fusion_cuts_the_shared_kernel_when_it_runs_and_folds_a_kernel_of_one_state() -> None:
    detector = build("yolo unit")
    for depth in ("full", "minimal"):
        fast = detector.specialise(depth, share_weights=True)
        for path, original in detector.named_modules():
            if isinstance(original, FusionConv):
                conv = fast.get_submodule(path).conv
                if original.skip_conv is None:
                    assert torch.equal(conv.weight, original.fuse.conv.weight)
                    assert conv.bias is None
                else:
                    assert conv.bias is not None
                    assert (
                        conv.in_channels
                        == (original.fuse.conv if depth == "full" else original.skip_conv).in_channels
                    )


# -- depths and misuse -----------------------------------------------------------------------------------


def test_another_depth_is_refused_by_name() -> None:
    fast = build("basic").specialise("full")
    with pytest.raises(
        DepthError, match=r"got depth 'minimal', but this detector was specialised for 'full'"
    ):
        run(fast, "minimal")
    with pytest.raises(DepthError, match=r"depth='full', or specialise the original again"):
        fast.predict(IMAGES, "none@1")
    for wrong in ("1/2", "stage9", 3):
        with pytest.raises(DepthError, match=rf"depth '{wrong}': this detector was specialised for 'full'"):
            fast.depth_space.parse(wrong)  # type: ignore[arg-type]
    assert [str(depth) for depth in fast.depth_space.parse_list("all")] == ["full"]
    assert [str(depth) for depth in fast.depth_space.parse_list("ladder")] == ["full"]


def test_a_depth_can_be_named_as_in_the_original() -> None:
    detector = build("basic")
    half = detector.depth_space.parse("1/2")
    fast = detector.specialise("1/2")
    assert str(fast.depth_space) == "1/2"
    explicit = detector.depth_space._explicit_text(half)
    for text in ("1/2", explicit, half):
        assert fast.depth_space.parse(text) == half
    with pytest.raises(DepthError, match="specialised for '1/2'"):
        fast.depth_space.parse("full")


def test_a_detector_in_training_mode_is_specialised_in_eval_mode_and_stays_in_training_mode() -> None:
    detector = build("yolo unit")
    wanted = run(detector, "minimal")
    detector.train()
    assert_close(run(detector.specialise("minimal"), "minimal"), wanted)
    assert all(part.training for part in detector.modules())


def test_synchronised_norms_are_folded_like_others() -> None:
    detector = build("yolo unit")
    wanted = run(detector, "full")
    fast = synchronize_norms(detector).specialise("full")  # type: ignore[operator]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
    assert_close(run(fast, "full"), wanted)


def test_a_detector_of_another_type_and_device_gives_one_of_the_same() -> None:
    half = build("basic").bfloat16().specialise("minimal")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    sketch = build("basic").to("meta").specialise("minimal")
    assert {parameter.device.type for parameter in sketch.parameters()} == {"meta"}


def test_it_works_within_autocast() -> None:
    detector = build("basic")
    with torch.autocast("cpu", torch.bfloat16):
        ours, wanted = (run(one, "full") for one in (detector.specialise("full"), detector))
    # Eight bits of precision, through forty layers.
    torch.testing.assert_close(
        ours.backbone_features[0].float(), wanted.backbone_features[0].float(), rtol=0.1, atol=0.1
    )


def test_a_specialised_detector_is_not_specialised_for_anything_else() -> None:
    fast = build("basic").specialise("full")
    assert fast.specialise("full") is fast
    with pytest.raises(DepthError, match="specialised for 'full'"):
        fast.specialise("minimal")
    with pytest.raises(ValueError, match="specialised for 'full' already: specialise the original"):
        fast.specialise("full", share_weights=True)


def test_a_specialised_detector_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    fast = build("basic").specialise("minimal")
    assert not fast.eval().training
    with pytest.raises(ValueError, match=re.escape("specialised for 'minimal', which cannot be trained")):
        fast.train()
    with pytest.raises(ZooError, match=r"specialised for 'minimal': save the original"):
        anydepth.save(fast, tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())


def test_copies_and_state_dicts_of_a_specialised_detector_work() -> None:
    fast = build("basic").specialise("minimal")
    other = copy.deepcopy(fast)
    other.load_state_dict({name: torch.zeros_like(value) for name, value in fast.state_dict().items()})
    other.load_state_dict(fast.state_dict())
    assert torch.equal(run(other, "minimal").logits, run(fast, "minimal").logits)  # type: ignore[attr-defined]
