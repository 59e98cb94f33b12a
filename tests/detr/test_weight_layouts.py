"""Names of other projects by the specification (5.1 to 5.4), and round trips of weights under them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from detr_reference import (
    SMALL,
    assert_equal_weights,
    build,
    build_again,
    reference_network,
    written_as,
)
from torch import nn

from anydepth.detr.detector import DetrDetector
from anydepth.detr.weights import layouts as layouts
from anydepth.detr.weights.layouts import LAYOUTS
from anydepth.detr.weights.load import load_weights
from anydepth.weights.files import WeightsError
from anydepth.weights.plan import Layout
from anydepth.zoo import names

# -- names -----------------------------------------------------------------------------------------------


def bn(prefix: str, tracked: bool = True) -> set[str]:
    names = {"weight", "bias", "running_mean", "running_var"} | (
        {"num_batches_tracked"} if tracked else set()
    )
    return {f"{prefix}.{name}" for name in names}


def linear(*prefixes: str) -> set[str]:
    return {f"{prefix}.{name}" for prefix in prefixes for name in ("weight", "bias")}


def rtdetr_neck_and_decoder() -> set[str]:
    """Names of RT-DETR v1 with three levels, no conv3 and six decoder layers, specification 5.1."""
    keys: set[str] = set()
    for level in range(3):
        keys |= {f"encoder.input_proj.{level}.0.weight"} | bn(f"encoder.input_proj.{level}.1")
        keys |= {f"decoder.input_proj.{level}.conv.weight"} | bn(f"decoder.input_proj.{level}.norm")
    layer = "encoder.encoder.0.layers.0"
    keys |= {f"{layer}.self_attn.in_proj_weight", f"{layer}.self_attn.in_proj_bias"}
    keys |= linear(
        *(f"{layer}.{name}" for name in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2"))
    )
    convs = [f"encoder.{kind}.{j}" for kind in ("lateral_convs", "downsample_convs") for j in range(2)]
    for block in (f"encoder.{kind}.{j}" for kind in ("fpn_blocks", "pan_blocks") for j in range(2)):
        convs += [f"{block}.conv1", f"{block}.conv2"]
        convs += [f"{block}.bottlenecks.{r}.conv{c}" for r in range(3) for c in (1, 2)]
    for conv in convs:
        keys |= {f"{conv}.conv.weight"} | bn(f"{conv}.norm")
    for index in range(6):
        layer = f"decoder.decoder.layers.{index}"
        keys |= {f"{layer}.self_attn.in_proj_weight", f"{layer}.self_attn.in_proj_bias"}
        keys |= linear(*(f"{layer}.{name}" for name in ("self_attn.out_proj", "linear1", "linear2")))
        keys |= linear(*(f"{layer}.norm{number}" for number in (1, 2, 3)))
        parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        keys |= linear(*(f"{layer}.cross_attn.{part}" for part in parts))
        keys |= linear(f"decoder.dec_score_head.{index}")
        keys |= linear(*(f"decoder.dec_bbox_head.{index}.layers.{number}" for number in range(3)))
    keys |= {"decoder.denoising_class_embed.weight"} | linear("decoder.enc_score_head")
    keys |= linear("decoder.enc_output.0", "decoder.enc_output.1")
    keys |= linear(*(f"decoder.query_pos_head.layers.{number}" for number in range(2)))
    return keys | linear(*(f"decoder.enc_bbox_head.layers.{number}" for number in range(3)))


def rtdetr_r50() -> set[str]:
    """Names of rtdetr_r50vd_6x_coco_from_paddle.pth, specification 5.1."""
    keys = rtdetr_neck_and_decoder()
    convs = [f"conv1.conv1_{number}" for number in (1, 2, 3)] + ["res_layers.0.blocks.0.short"]
    convs += [f"res_layers.{stage}.blocks.0.short.conv" for stage in (1, 2, 3)]
    for stage, count in enumerate((3, 4, 6, 3)):
        convs += [
            f"res_layers.{stage}.blocks.{block}.branch2{part}" for block in range(count) for part in "abc"
        ]
    for conv in convs:
        keys |= {f"backbone.{conv}.conv.weight"} | bn(f"backbone.{conv}.norm", tracked=False)
    return keys


def anydepth_r50() -> set[str]:
    """Names of checkpoint0067_resnet50vd_AP_53.1.pth of AnyDepth-DETR's authors, specification 5.2."""
    keys = set()
    for key in rtdetr_neck_and_decoder():
        key = re.sub(r"^(encoder\.input_proj\.\d)\.0\.", r"\1.conv.", key)
        keys.add(re.sub(r"^(encoder\.input_proj\.\d)\.1\.", r"\1.norm.", key))
    for key in set(keys):
        if key.startswith("encoder.") and not re.search(r"bottlenecks\.[12]", key):
            keys.add(re.sub(r"\.(norm\d?)\.", r".\1_skippable.", key))
    keys |= {"backbone.conv1.weight"} | bn("backbone.bn1", tracked=False)
    for stage, (count, essential) in enumerate(zip((3, 4, 6, 3), (2, 2, 3, 2), strict=True), start=1):
        for block in range(count):
            for conv in (1, 2, 3):
                name = f"backbone.layer{stage}.{block}"
                keys |= {f"{name}.conv{conv}.weight"} | bn(f"{name}.bn{conv}", tracked=False)
                if block < essential:
                    keys |= bn(f"{name}.bn{conv}_skip", tracked=False)
        first = 0 if stage == 1 else 1
        keys |= {f"backbone.layer{stage}.0.downsample.{first}.weight"}
        keys |= bn(f"backbone.layer{stage}.0.downsample.{first + 1}", tracked=False)
    return keys


def anydepth_swin_t() -> set[str]:
    """Names of an AnyDepth-DETR with Swin-T, specification 5.2."""
    keys = {key for key in anydepth_r50() if not key.startswith("backbone.")}
    keys |= linear("backbone.pre.0", "backbone.pre.2")
    for stage, (count, essential) in enumerate(zip((2, 2, 6, 2), (1, 1, 3, 1), strict=True)):
        for block in range(count):
            name = f"backbone.features.{2 * stage}.{block}"
            parts = ["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.0", "mlp.3"]
            parts += ["norm1_skip", "norm2_skip"] if block < essential else []
            keys |= linear(*(f"{name}.{part}" for part in parts))
            keys |= {f"{name}.attn.relative_position_{kind}" for kind in ("bias_table", "index")}
    for merge in (1, 3, 5):
        name = f"backbone.features.{merge}"
        keys |= {f"{name}.reduction.weight"} | linear(f"{name}.norm", f"{name}.norm_skip")
    return keys


@pytest.mark.parametrize(
    ("name", "layout", "keys", "count"),
    [
        ("rtdetr_r50", layouts.RTDETR_V1, rtdetr_r50(), 736),
        ("detr_r50", layouts.ANYDEPTH, anydepth_r50(), 953),
        # 4 of the stem, 14 per block, 4 more in each of 6 essential ones, 5 per patch merging; neck and
        # decoder as above.
        ("detr_swin_t", layouts.ANYDEPTH_SWIN, anydepth_swin_t(), 4 + 12 * 14 + 6 * 4 + 3 * 5 + 365 + 215),
    ],
    ids=["rtdetr_v1", "anydepth_authors", "anydepth_authors_swin"],
)
def test_written_names_are_those_of_the_released_files(
    name: str, layout: Layout, keys: set[str], count: int
) -> None:
    # Counts: specification 5.1 and 5.2.
    assert len(keys) == count
    with torch.device("meta"):
        detector = build(name, freeze_backbone_norms=True)
    assert set(written_as(detector, layout)) == keys


def test_both_spellings_of_transformers_are_written() -> None:
    # The names inside transformers 5 are checked by the strict loading of test_parity.py; hub files keep the
    # old ones (specification 5.4).
    with torch.device("meta"):
        detector = build("rtdetr_r18")
    old = written_as(detector, layouts.TRANSFORMERS)
    assert {
        "model.encoder.encoder.0.layers.0.self_attn.q_proj.weight",
        "model.encoder.encoder.0.layers.0.self_attn.out_proj.bias",
        "model.encoder.encoder.0.layers.0.fc1.weight",
        "model.encoder.encoder.0.layers.0.final_layer_norm.bias",
        "model.decoder.layers.2.encoder_attn.sampling_offsets.weight",
        "model.decoder.layers.2.encoder_attn_layer_norm.weight",
        "model.decoder.layers.2.fc2.weight",
        "model.backbone.model.encoder.stages.1.layers.0.shortcut.1.normalization.running_var",
    } <= set(old)
    inside = set(reference_network(detector, [2, 2, 2, 2], 3).state_dict())
    renamed = {
        key.replace(".out_proj.", ".o_proj.").replace("encoder.encoder.0", "encoder.aifi.0") for key in old
    }
    assert {re.sub(r"\.fc([12])\.", r".mlp.fc\1.", key) for key in renamed} == inside


def outside_backbone(detector: DetrDetector) -> set[str]:
    """Return the names of the tensors that weights of a backbone alone lack."""
    keys = {key for key in detector.state_dict() if key.startswith(("neck.", "decoder."))}
    return {key for key in keys if "num_batches" not in key}


# -- round trips in every layout -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_weights_written_in_a_layout_are_loaded_back(
    layout: Layout, deep: DetrDetector, plain: DetrDetector, swin: DetrDetector
) -> None:
    has_plain_stem = layout in (layouts.ANYDEPTH, layouts.ADAPTIVE_DEPTH_RESNET, layouts.TORCHVISION_RESNET)
    detector = swin if "Swin" in layout.name else plain if has_plain_stem else deep
    backbone_only = "backbone" in layout.name
    source = detector.backbone if backbone_only else detector
    file = written_as(detector, layout)
    if backbone_only:
        file = {
            key.removeprefix("backbone."): value for key, value in file.items() if key.startswith("backbone.")
        }
    target = build_again(detector)
    report = load_weights(target, file)
    assert report.layout == layout.name
    assert report.unused == report.reinitialised == ()
    assert set(report.missing) == (outside_backbone(target) if backbone_only else set())
    # Only our own layout, the authors' and adaptive depth networks' have both norm sets.
    one_set = "skip" not in "".join(file)
    assert bool(report.copied_to_skip) == one_set
    found = target.backbone if backbone_only else target
    assert_equal_weights(found, source, skip_is_full=one_set)
    keys = set(report.loaded) | set(report.copied_to_skip) | set(report.missing)
    assert {key for key in target.state_dict() if "num_batches" not in key} <= keys


def test_our_own_weights_of_a_swin_transformer_are_loaded_back(swin: DetrDetector) -> None:
    target = build_again(swin)
    report = load_weights(target, swin.state_dict())
    assert (report.layout, report.missing, report.unused) == ("anydepth", (), ())
    assert_equal_weights(target, swin)
    backbone = build_again(swin)
    report = load_weights(backbone, swin.backbone.state_dict())
    assert report.layout == "anydepth"
    assert set(report.missing) == outside_backbone(backbone)
    assert_equal_weights(backbone.backbone, swin.backbone)


def test_weights_without_step_counters_are_complete(deep: DetrDetector) -> None:
    # Frozen norms and transformers' files have none.
    file = {
        key: value for key, value in written_as(deep, layouts.RTDETR_V1).items() if "num_batches" not in key
    }
    report = load_weights(build_again(deep), file)
    assert report.missing == ()


def test_tables_that_version_two_stores_are_not_reported_as_unused(deep: DetrDetector) -> None:
    # Specification 5.1: buffers of RT-DETR v2 that v1 does not store.
    extra = {
        "decoder.anchors": torch.ones(1, 10, 4),
        "decoder.valid_mask": torch.ones(1, 10, 1),
        # 1 / points, for each of the 4 points on 3 levels.
        "decoder.decoder.layers.0.cross_attn.num_points_scale": torch.full((12,), 0.25),
    }
    report = load_weights(build_again(deep), written_as(deep, layouts.RTDETR_V2) | extra)
    assert (report.layout, report.unused) == ("RT-DETR v2", ())


@pytest.mark.parametrize("keep_first", [True, False])
def test_heads_that_transformers_stores_twice_are_accepted_under_either_name(
    deep: DetrDetector, keep_first: bool
) -> None:
    file = written_as(deep, layouts.TRANSFORMERS)
    for key in list(file):
        for head in ("class_embed.", "bbox_embed."):
            if key.startswith(f"model.decoder.{head}"):
                file[key.removeprefix("model.decoder.")] = file[key]
                if not keep_first:
                    del file[key]
    target = build_again(deep)
    report = load_weights(target, file)
    assert report.missing == report.unused == ()
    assert_equal_weights(target, deep, skip_is_full=True)


def test_a_second_copy_of_the_heads_that_differs_is_reported(deep: DetrDetector) -> None:
    file = written_as(deep, layouts.TRANSFORMERS)
    file["class_embed.0.bias"] = file["model.decoder.class_embed.0.bias"] + 1
    assert load_weights(build_again(deep), file).unused == ("class_embed.0.bias",)


def test_our_own_fixed_depth_weights_load_into_an_any_depth_detector_and_back(deep: DetrDetector) -> None:
    fixed = build_again(deep, any_depth=False)
    load_weights(fixed, deep.state_dict())
    again = build_again(deep)
    report = load_weights(again, fixed.state_dict())
    assert len(report.copied_to_skip) > 0
    assert report.missing == report.unused == ()
    assert_equal_weights(again, deep, skip_is_full=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(fixed(images).logits, deep(images).logits)


def test_a_torchvision_resnet_loads_except_for_the_shortcut_that_it_lacks() -> None:
    source = torchvision.models.resnet18(weights=None)
    sizes: dict[str, Any] = {"blocks": [2, 2, 2, 2], "widths": [64, 128, 256, 512], "stem": "plain"}
    detector = build("detr_tiny", 5, **{**SMALL, **sizes})
    report = load_weights(detector, source.state_dict())
    assert torch.equal(detector.backbone.stem[0].conv.weight, source.conv1.weight)
    refinement = detector.backbone.stages[2].refinement[0]
    assert torch.equal(refinement.conv2.norm.full.running_var, source.layer3[1].bn2.running_var)
    assert torch.equal(
        detector.backbone.stages[1].essential[0].shortcut.project.conv.weight,
        source.layer2[0].downsample[0].weight,
    )
    missing = [key for key in report.missing if key.startswith("backbone.")]
    assert missing
    assert all(key.startswith("backbone.stages.0.essential.0.shortcut.") for key in missing)
    assert report.unused == ("fc.weight", "fc.bias")
    assert "image_mean" in str(report)
    assert "backbone only" in str(report)


def test_a_torchvision_swin_transformer_loads_except_for_its_classifier(swin: DetrDetector) -> None:
    source = small_torchvision_swin()
    detector = build_again(swin)
    report = load_weights(detector, source.state_dict())
    assert report.layout == "torchvision Swin Transformer (backbone)"
    assert report.unused == ("norm.weight", "norm.bias", "head.weight", "head.bias")
    assert set(report.missing) == outside_backbone(detector)
    # 2 norms in each of 6 essential blocks, 1 in each of 3 patch mergings; weight and bias.
    assert len(report.copied_to_skip) == 2 * (2 * 6 + 3)
    merge = detector.backbone.merges[1].norm
    assert torch.equal(merge.full.weight, source.features[4].norm.weight)
    assert torch.equal(merge.skip.weight, source.features[4].norm.weight)
    refinement = detector.backbone.stages[2].refinement[0]
    assert torch.equal(refinement.mlp[3].weight, source.features[5][2].mlp[3].weight)
    assert "image_mean=[0.485" in str(report)
    assert "backbone only" in str(report)


def test_an_unused_classifier_in_a_whole_swin_detector_is_reported(swin: DetrDetector) -> None:
    # Specification 1.2: the authors' checkpoints hold a norm and a head that nothing uses.
    dead = ("backbone.norm.weight", "backbone.norm.bias", "backbone.head.weight", "backbone.head.bias")
    file = written_as(swin, layouts.ANYDEPTH_SWIN) | {key: torch.ones(3) for key in dead}
    target = build_again(swin)
    report = load_weights(target, file)
    assert (report.layout, report.unused) == (layouts.ANYDEPTH_SWIN.name, dead)
    assert report.missing == report.copied_to_skip == ()
    assert_equal_weights(target, swin)


def test_swin_transformers_with_frozen_stems_load_weights_of_one_norm_set(swin: DetrDetector) -> None:
    # Unlike frozen batch norms: these skip norms stay trainable.
    report = load_weights(
        build_again(swin, freeze_backbone_norms=True), small_torchvision_swin().state_dict()
    )
    assert report.copied_to_skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torchvision.models.swin_s(weights=None),
            r"has \[2, 2, 18, 2\] swin blocks, the detector's \[2, 2, 6, 2\] swin blocks \(Swin-T\): build a",
        ),
        (
            lambda: torchvision.models.resnet50(weights=None),
            r"bottleneck blocks \(ResNet-50\), the detector's .* \(Swin-T\): build detr_r50 or rtdetr_r50",
        ),
        (lambda: torchvision.models.swin_v2_t(weights=None), "unknown layout"),
    ],
    ids=["swin_s", "resnet50", "swin_v2_t"],
)
def test_a_swin_detector_refuses_weights_of_other_backbones(
    make: Callable[[], nn.Module], message: str
) -> None:
    with torch.device("meta"):
        detector, weights = build("detr_swin_t"), make().state_dict()
    with pytest.raises(WeightsError, match=message):
        load_weights(detector, weights)


def test_a_resnet_detector_refuses_swin_weights_and_names_the_detector_to_build() -> None:
    with torch.device("meta"):
        detector = build("detr_r50")
        weights = torchvision.models.swin_t(weights=None).state_dict()
    with pytest.raises(WeightsError, match=r"\(Swin-T\).*\(ResNet-50\): build detr_swin_t or rtdetr_swin_t"):
        load_weights(detector, weights)
    assert {"detr_swin_t", "rtdetr_swin_t"} <= set(names())


def small_torchvision_swin() -> torchvision.models.SwinTransformer:
    """Build torchvision's network with the blocks of ``SMALL_SWIN``; its widths always double."""
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=32, depths=[2, 3, 4, 2], num_heads=[1, 2, 4, 8], window_size=[7, 7]
    )
