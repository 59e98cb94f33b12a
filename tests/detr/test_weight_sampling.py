"""Weights of networks that sample in another way than the detector: no shape shows it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from detr_reference import build_again, written_as
from safetensors.torch import save_file
from torch import Tensor
from transformers import RTDetrConfig, RTDetrV2Config

from anydepth.detr.detector import DetrDetector
from anydepth.detr.weights import layouts
from anydepth.detr.weights.load import load_weights
from anydepth.weights.files import WeightsError

# 2 heads and 4 points as in the small detectors; the names are those of transformers.
FITTING = {"decoder_attention_heads": 2, "encoder_attention_heads": 2}


def saved(detector: DetrDetector, folder: Path, **buffers: Tensor) -> Path:
    """A folder of weights under transformers' names."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**written_as(detector, layouts.TRANSFORMERS), **buffers}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"decoder_method": "discrete"},
            "decoder_method='discrete', the detector computes decoder_method='default'",
        ),
        (
            {"decoder_offset_scale": 1.0},
            "decoder_offset_scale=1.0, the detector computes decoder_offset_scale=0.5",
        ),
        ({"decoder_n_points": 3}, "decoder_n_points=3, the detector samples 4 points"),
        ({"decoder_n_points": [3, 6, 3]}, r"decoder_n_points=\[3, 6, 3\], the detector samples 4 points"),
        ({"decoder_attention_heads": 8}, "decoder_attention_heads=8, .* with heads as in the file"),
        ({"decoder_activation_function": "gelu"}, "decoder_activation_function='gelu'"),
    ],
)
def test_a_folder_of_another_network_is_refused_and_nothing_is_loaded(
    deep: DetrDetector, tmp_path: Path, settings: Mapping[str, object], said: str
) -> None:
    folder = saved(deep, tmp_path)
    RTDetrV2Config(**FITTING).save_pretrained(folder)
    # Not through the class, which has no lists of points.
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **settings}))
    target = build_again(deep)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(WeightsError, match=said):
            load_weights(target, source)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("kind", [RTDetrConfig, RTDetrV2Config])
def test_a_folder_of_the_same_network_loads_without_a_remark(
    deep: DetrDetector, tmp_path: Path, kind: type[RTDetrConfig] | type[RTDetrV2Config]
) -> None:
    folder = saved(deep, tmp_path)
    kind(**FITTING).save_pretrained(folder)
    report = load_weights(build_again(deep), folder)
    assert not [note for note in report.notes if "samples" in note]


def test_uneven_points_show_in_a_buffer_of_the_file(deep: DetrDetector, tmp_path: Path) -> None:
    # 3, 6 and 3 points on three levels: 12 in all, as for 4 on each, so that all shapes agree.
    scales = torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3)
    even = torch.full((12,), 1 / 4)
    state = written_as(deep, layouts.RTDETR_V2)
    key = "decoder.decoder.layers.0.cross_attn.num_points_scale"
    with pytest.raises(WeightsError, match=r"samples \[3, 6\] points on its levels"):
        load_weights(build_again(deep), {**state, key: scales})
    report = load_weights(build_again(deep), {**state, key: even})
    assert "does not say how it samples" in "\n".join(report.notes)


@pytest.mark.parametrize("name", ["rtdetrv2_r50vd_dsp.safetensors", "dsp/best.safetensors"])
def test_names_of_discrete_sampling_are_refused(deep: DetrDetector, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save_file(written_as(deep, layouts.RTDETR_V2), path)
    with pytest.raises(WeightsError, match="discrete sampling"):
        load_weights(build_again(deep), path)


def test_a_config_of_something_else_beside_a_file_does_no_harm(deep: DetrDetector, tmp_path: Path) -> None:
    folder = saved(deep, tmp_path)
    for text in ("{", "[]", '{"model_type": "bert", "decoder_method": "discrete"}'):
        (folder / "config.json").write_text(text, encoding="utf-8")
        load_weights(build_again(deep), folder / "model.safetensors")
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        load_weights(build_again(deep), folder)
