"""Independent references for the DETR family: fixed-depth networks that hold one depth of a detector.

The rule for norms is implemented here a second time, from the specification and not from the tested code: a
stage uses the norm set of its own flag, and so does the patch merging before it; the stem, the shortcuts and
the decoder have one set.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

import anydepth
from anydepth.depth import DepthConfig
from anydepth.detector import Detector
from anydepth.detr.build import build_detr
from anydepth.detr.detector import DetrDetector
from anydepth.detr.weights.layouts import TRANSFORMERS_5
from anydepth.weights.plan import Layout, plain_names

# Small enough to build by the hundred; stages of different depths, so that no two of them can be confused.
SMALL: dict[str, Any] = {
    "blocks": [2, 3, 4, 2],
    "widths": [8, 12, 16, 20],
    "hidden_dim": 16,
    "neck_ffn_dim": 24,
    "decoder_dim": 32,
    "decoder_ffn_dim": 40,
    "heads": 2,
    "decoder_layers": 3,
    "minimal_decoder_layers": 2,
    "num_queries": 12,
    "denoising_queries": 6,
    "input_size": [96, 96],
}
SMALL_SWIN = {
    **SMALL,
    "block": "swin",
    "blocks": [2, 3, 4, 2],
    "widths": [32, 64, 128, 256],
    "stem": "patch",
    "stochastic_depth": 0.1,
}
SMALL_DEEP = {**SMALL, "stem": "deep"}
SMALL_PLAIN = {**SMALL, "stem": "plain"}


def build(name: str, num_classes: int = 80, seed: int = 0, **overrides: Any) -> DetrDetector:
    """Build a detector in eval mode, with equal weights for equal seeds."""
    torch.manual_seed(seed)
    detector = anydepth.build(name, num_classes, **overrides)
    assert isinstance(detector, DetrDetector)
    return detector.eval()


def build_again(detector: Detector, **changes: Any) -> DetrDetector:
    """Build a detector of the same configuration except ``changes``, with new weights, in eval mode."""
    config: dict[str, Any] = {key: value for key, value in detector.config.items() if key != "name"}
    return build_detr(**{**config, **changes}).eval()


@torch.no_grad()
def randomise(detector: Detector, seed: int = 0) -> None:
    """Randomise weights, statistics and affine parameters, with sizes that keep features near 1.

    Statistics are first measured on random images, for both norm sets, and then disturbed: otherwise the
    features of a deep random network grow until a comparison only measures rounding. Weights that move boxes
    and sampling points stay small for the same reason: random features make the decoder chaotic otherwise.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, scale: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) * scale

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(tensor.shape, generator=generator) * (high - low) + low

    for name, module in detector.named_modules():
        if isinstance(module, nn.Linear):
            moves = name.endswith("sampling_offsets") or re.search(r"bbox_head.*layers\.2$", name)
            module.weight.copy_(normal(module.weight, (0.1 if moves else 1.0) * module.in_features**-0.5))
            if module.bias is not None:
                module.bias += normal(module.bias, 0.1)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.copy_(uniform(module.weight, 0.5, 1.5))
            module.bias.copy_(normal(module.bias, 0.2))
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    _measure_statistics(detector, norms, torch.rand(2, 3, 128, 128, generator=generator))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += normal(norm.running_mean, 0.1) * norm.running_var.sqrt()
        norm.running_var *= uniform(norm.running_var, 0.7, 1.4)


def _measure_statistics(detector: Detector, norms: list[nn.BatchNorm2d], images: Tensor) -> None:
    for norm in norms:
        norm.momentum = 1.0
    detector.train()
    for depth in ("minimal", "full"):
        detector(images, depth)
    detector.eval()
    for norm in norms:
        norm.momentum = 0.1


def weights_at(detector: Detector, depth: DepthConfig) -> dict[str, Tensor]:
    """Return the weights of one depth by plain name, those of a network of fewer blocks and one norm set."""
    refine = dict(zip(("stages.0", "stages.1", "stages.2", "stages.3", "neck"), depth.refine, strict=True))
    refine |= {f"merges.{index}": depth.refine[index + 1] for index in range(3)}
    assert depth.decoder_layers is not None
    found = {}
    state = detector.state_dict()
    for key, plain in plain_names(state).items():
        flag = next((on for name, on in refine.items() if re.match(rf"(backbone\.)?{name}\.", plain)), True)
        wanted = "full" if flag else "skip"
        layer = re.match(r"decoder\.(?:layers|dec_\w+_head)\.(\d+)\.", plain)
        if ".refinement." in key and not flag:
            continue
        if layer and int(layer[1]) >= depth.decoder_layers:
            continue
        has_both = key.replace(".full.", ".skip.") in state
        if has_both and ".full." in plain and wanted == "skip":
            continue
        if ".skip." in plain and wanted == "full":
            continue
        found[plain.replace(".skip.", ".full.")] = state[key]
    return found


def fixed_depth(detector: Detector, depth: DepthConfig) -> DetrDetector:
    """Build the fixed-depth detector of this package that holds just the units of one depth."""
    weights = weights_at(detector, depth)
    fixed = build_again(
        detector,
        any_depth=False,
        blocks=_blocks(weights),
        neck_blocks=_count(weights, "neck.fpn_blocks.0.bottlenecks.{}.conv1.conv.weight"),
        decoder_layers=depth.decoder_layers,
        minimal_decoder_layers=depth.decoder_layers,
    )
    names = plain_names(fixed.state_dict())
    fixed.load_state_dict({key: weights[plain] for key, plain in names.items()})
    assert set(names.values()) == set(weights)
    return fixed


def reference(detector: Detector, depth: DepthConfig, **options: Any) -> RTDetrForObjectDetection:
    """Build the network of ``transformers`` that holds just the units of one depth, strictly loaded."""
    weights = weights_at(detector, depth)
    # Weights are assigned below, so none are drawn here, which would take most of the time.
    with torch.device("meta"):
        model = reference_network(detector, _blocks(weights), depth.decoder_layers, **options)
    repvgg = _count(weights, "neck.fpn_blocks.0.bottlenecks.{}.conv1.conv.weight")
    for block in [*model.model.encoder.fpn_blocks, *model.model.encoder.pan_blocks]:
        block.bottlenecks = block.bottlenecks[:repvgg]
    model.load_state_dict(to_transformers(weights), strict=True, assign=True)
    return model.eval()


def reference_network(
    detector: Detector, blocks: list[int], decoder_layers: int | None, **options: Any
) -> RTDetrForObjectDetection:
    """Build ``transformers``' RT-DETR with the sizes of a detector and random weights."""
    config: dict[str, Any] = dict(detector.config)
    widths = [width * (4 if config["block"] == "bottleneck" else 1) for width in config["widths"]]
    backbone = RTDetrResNetConfig(
        layer_type=config["block"],
        depths=blocks,
        hidden_sizes=widths,
        embedding_size=config["widths"][0],
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrForObjectDetection(
        RTDetrConfig(
            **{
                "backbone_config": backbone,
                "freeze_backbone_batch_norms": False,
                "encoder_in_channels": widths[1:],
                "encoder_hidden_dim": config["hidden_dim"],
                "encoder_ffn_dim": config["neck_ffn_dim"],
                "encoder_attention_heads": config["heads"],
                "hidden_expansion": config["neck_expansion"],
                "decoder_in_channels": [config["hidden_dim"]] * 3,
                "d_model": config["decoder_dim"],
                "decoder_ffn_dim": config["decoder_ffn_dim"],
                "decoder_attention_heads": config["heads"],
                "decoder_layers": decoder_layers,
                "num_queries": config["num_queries"],
                "num_denoising": config["denoising_queries"],
                "num_labels": detector.num_classes,
                **options,
            }
        )
    )


def to_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename plain names to those inside ``transformers``; joint attention projections are split."""
    found = {}
    for plain, value in weights.items():
        keys = TRANSFORMERS_5.foreign_keys(plain)
        found |= dict(zip(keys, value.chunk(len(keys)), strict=True)) if len(keys) > 1 else {keys[0]: value}
    return found


def _blocks(weights: dict[str, Tensor]) -> list[int]:
    weight = "attn.qkv" if "backbone.stages.0.0.attn.qkv.weight" in weights else "conv1.conv"
    return [_count(weights, f"backbone.stages.{stage}.{{}}.{weight}.weight") for stage in range(4)]


def _count(weights: dict[str, Tensor], name: str) -> int:
    count = 0
    while name.format(count) in weights:
        count += 1
    return count


def count_calls(module: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Count the calls of each submodule during ``run``."""
    calls = dict.fromkeys(dict(module.named_modules()), 0)

    def make_hook(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    handles = [part.register_forward_hook(make_hook(name)) for name, part in module.named_modules()]
    run()
    for handle in handles:
        handle.remove()
    return calls


def written_as(detector: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Return a detector's state dict under a layout's names, without tensors that the layout cannot name."""
    state = detector.state_dict()
    written: dict[str, Tensor] = {}
    for key, plain_name in plain_names(state).items():
        names = layout.foreign_keys(plain_name)
        if names:
            written |= dict(
                zip(names, state[key].chunk(len(names)) if len(names) > 1 else [state[key]], strict=True)
            )
    return written


def assert_equal_weights(found: nn.Module, wanted: nn.Module, *, skip_is_full: bool = False) -> None:
    expected = wanted.state_dict()
    for key, value in found.state_dict().items():
        source = key.replace(".skip.", ".full.") if skip_is_full else key
        assert torch.equal(value, expected[source]), key
