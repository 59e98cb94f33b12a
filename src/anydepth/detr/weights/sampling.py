"""Refuse weights whose network samples its maps in another way, which no shape of a tensor shows.

RT-DETRv2 (Lv et al., 2024, section 3) may sample the nearest cell instead of interpolating (*discrete
sampling*), scale the offsets otherwise, and give levels different numbers of points. Its default is the
sampling of RT-DETR.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anydepth.layers.deformable import DeformableAttention
from anydepth.utils.messages import short_repr
from anydepth.weights.files import WeightsError
from anydepth.weights.transformers_config import CONFIG, ConfigError, read_config

# How the authors name files of networks with discrete sampling, e.g. rtdetrv2_r50vd_dsp.
_DISCRETE_NAME = re.compile(r"(?:^|[\W_])dsp(?:[\W_]|$)", re.IGNORECASE)
# Buffers with 1 / (number of points of the level) for each point.
_POINT_SCALES = re.compile(r"n(?:um)?_points_scale$")
# Settings that change the output, not the shapes; absent ones have these values.
_EXPECTED: Mapping[str, object] = {
    "decoder_method": "default",
    "decoder_offset_scale": 0.5,
    "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu",
    "activation_function": "silu",
}
_HEADS = ("decoder_attention_heads", "encoder_attention_heads")


def check_sampling(
    detector: nn.Module, source: object, tensors: Mapping[str, Tensor], origin: str
) -> tuple[str, ...]:
    """Refuse weights of a network that computes something else than the detector with the same tensors.

    Args:
        detector: Detector that the weights are for.
        source: File, folder or dictionary that they come from; a ``config.json`` beside them is read.
        tensors: Tensors of the source.
        origin: Origin of the weights, for messages.

    Returns:
        Remarks on what the source does not say.

    Raises:
        WeightsError: The folder, the file or its name says that the network differs.
    """
    attention = next((part for part in detector.modules() if isinstance(part, DeformableAttention)), None)
    if attention is None:
        return ()
    scales = {key: value for key, value in tensors.items() if _POINT_SCALES.search(key)}
    _check_points(scales, attention, origin)
    path = Path(source) if isinstance(source, str | Path) else None
    try:
        config = {} if path is None else read_config(path)
    except ConfigError as error:
        raise WeightsError(str(error)) from error
    _check_config(config, attention, origin)
    if path is not None and "decoder_method" not in config:
        _check_name(path)
    if scales and "decoder_method" not in config:
        return (
            "a file of RT-DETRv2 does not say how it samples: outputs agree only for its default, not for "
            "discrete sampling or another offset scale, which the config.json beside it or its authors' "
            "configuration names",
        )
    return ()


def _check_points(scales: Mapping[str, Tensor], attention: DeformableAttention, origin: str) -> None:
    for key, value in scales.items():
        # 1 / 4 is exact in all types; others are rounded by at most 2^-8 of their value in bfloat16.
        if not bool(((value.float() * attention.points - 1).abs() < 0.01).all()):
            counts = [round(1 / scale) for scale in value.flatten().tolist() if scale > 0]
            levels = sorted(set(counts))
            raise WeightsError(
                f"{origin}: its decoder samples {levels} points on its levels ({short_repr(key)}), the "
                f"detector {attention.points} on each; only equal numbers are supported (decoder_points)"
            )


def _check_config(config: Mapping[str, Any], attention: DeformableAttention, origin: str) -> None:
    expected: dict[str, object] = {**_EXPECTED, **dict.fromkeys(_HEADS, attention.heads)}
    if config.get("model_type") == "rt_detr_v2":
        config = {"decoder_method": "default", **config}
    for key, value in expected.items():
        if key in config and config[key] != value:
            raise WeightsError(
                f"{origin}: its {CONFIG} says {key}={short_repr(config[key])}, the detector computes "
                f"{key}={short_repr(value)}: the same weights would give other outputs"
                + ("; build the detector with heads as in the file" if key in _HEADS else "")
            )
    points = config.get("decoder_n_points", attention.points)
    counts = points if isinstance(points, list) else [points]
    if any(count != attention.points for count in counts):
        raise WeightsError(
            f"{origin}: its {CONFIG} says decoder_n_points={short_repr(points)}, the detector samples "
            f"{attention.points} points on each level; build it with decoder_points as in the file"
        )


def _check_name(path: Path) -> None:
    # In the cache of the hub, the repository's name stands above the folder of a commit.
    cached = [part for part in path.parts if part.startswith("models--")]
    for name in (path.name, *([] if path.is_dir() else [path.resolve().parent.name]), *cached):
        if _DISCRETE_NAME.search(name):
            raise WeightsError(
                f"{path}: {short_repr(name)} names RT-DETRv2 with discrete sampling (dsp), which the "
                "detector does not compute: the same weights would give other outputs. Use the weights "
                "before that fine-tuning; if the name means something else, rename it"
            )
