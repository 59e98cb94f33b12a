"""Loading weights: class heads, kinds of files, refusals, reports."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detr_reference import assert_equal_weights, build, build_again, written_as
from safetensors.torch import save_file
from torch import Tensor, nn

import anydepth
from anydepth.detr.detector import DetrDetector
from anydepth.detr.weights import layouts as layouts
from anydepth.detr.weights.load import load_weights
from anydepth.weights.files import WeightsError


def snapshot(detector: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in detector.state_dict().items()}


# -- class heads -----------------------------------------------------------------------------------------


def test_class_heads_of_another_data_set_stay_as_initialised_and_are_reported(deep: DetrDetector) -> None:
    target = build_again(deep, num_classes=7)
    before = snapshot(target)
    report = load_weights(target, written_as(deep, layouts.RTDETR_V1))
    # One embedding, and weight and bias of the encoder's head and of three decoder heads.
    assert len(report.reinitialised) == 1 + 2 * (1 + 3)
    after, source = target.state_dict(), deep.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in report.reinitialised)
    assert {*report.loaded, *report.copied_to_skip, *report.reinitialised} == after.keys()
    assert all(torch.equal(after[key], source[key]) for key in report.loaded)
    assert "class heads kept as initialised: 9 (decoder.denoising_class_embed.weight" in str(report)


# -- files -----------------------------------------------------------------------------------------------


def test_averaged_weights_are_preferred(deep: DetrDetector, tmp_path: Path) -> None:
    averaged = written_as(deep, layouts.RTDETR_V1)
    other = {key: value + 1 for key, value in averaged.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"model": other, "date": "2024", "last_epoch": 71, "ema": {"module": averaged, "updates": 5}}, path
    )
    target = build_again(deep)
    report = load_weights(target, path)
    assert_equal_weights(target, deep, skip_is_full=True)
    assert report.origin == f"{path} (ema.module)"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"ema": state, "model": {"nothing": 1}},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"detector.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {
            "module": {key.replace("backbone.", "backbone._orig_mod."): v for key, v in state.items()}
        },
    ],
    ids=["ema", "model", "lightning", "ddp", "compiled", "compiled_part"],
)
def test_weights_are_found_inside_common_checkpoints(
    deep: DetrDetector, wrap: Callable[[dict[str, Tensor]], dict[str, object]], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.ckpt"
    torch.save(wrap(deep.state_dict()), path)
    target = build_again(deep)
    report = load_weights(target, path)
    assert (report.layout, report.missing, report.unused) == ("anydepth", (), ())
    assert_equal_weights(target, deep)


def test_safetensors_files_and_folders_are_read(deep: DetrDetector, tmp_path: Path) -> None:
    file = {key: value.contiguous() for key, value in written_as(deep, layouts.TRANSFORMERS).items()}
    save_file(file, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        target = build_again(deep)
        load_weights(target, source)
        assert_equal_weights(target, deep, skip_is_full=True)


def test_files_saved_by_the_package_are_read(small_detector: DetrDetector, tmp_path: Path) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    target = build_again(small_detector)
    report = anydepth.load_weights(target, path)
    assert_equal_weights(target, small_detector)
    assert str(report).startswith(f"{path}: weights of anydepth\n  loaded: ")


def test_half_precision_files_load_into_single_precision_detectors(deep: DetrDetector) -> None:
    file = {
        key: value.half() if value.is_floating_point() else value for key, value in deep.state_dict().items()
    }
    target = build_again(deep)
    load_weights(target, file)
    weight = target.decoder.enc_score_head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, deep.decoder.enc_score_head.weight.half().float())


class _Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pickle.loads, ("never",)


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"cannot be read as a checkpoint .*copy it again"),
        (_saved({"model": {"a": torch.ones(99)}})[:300], r"cannot be read as a checkpoint .*copy it again"),
        (b"<html>404</html>", r"not a file of torch\.save"),
        (_saved([1, 2]), "got a list, expected a state dict"),
        (_saved({"epoch": 3, "note": "x"}), "holds no state dict; got the entries 'epoch', 'note'"),
        (
            _saved({"model": {"a": torch.ones(1)}, "x": _Harmful()}),
            r"refused.*requests _?pickle\.loads.*save_file",
        ),
        (
            _saved({"conv.weight": torch.ones(1)}),
            r"unknown layout.*conv\.weight; known are anydepth, AnyDepth-DETR",
        ),
    ],
    ids=["empty", "truncated", "web_page", "list", "no_weights", "code", "unknown"],
)
def test_a_file_without_known_weights_is_refused(
    contents: bytes, message: str, deep: DetrDetector, tmp_path: Path
) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(deep, path)
    assert str(caught.value).startswith(str(path))


def test_missing_files_and_folders_without_weights_are_named(deep: DetrDetector, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such weights file"):
        load_weights(deep, tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        load_weights(deep, tmp_path)


def test_a_truncated_safetensors_file_is_refused(deep: DetrDetector, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: not a complete safetensors file .*copy it again"
    ):
        load_weights(deep, path)


# -- weights that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "plain"}, r"has a deep stem, the detector's is plain: build it with stem=deep"),
        ({"blocks": [2, 3, 5, 2]}, r"has \[2, 3, 4, 2\] basic blocks, the detector's \[2, 3, 5, 2\] basic"),
        ({"blocks": [2, 3, 3, 2]}, r"has \[2, 3, 4, 2\] basic blocks, the detector's \[2, 3, 3, 2\] basic"),
        ({"block": "bottleneck"}, r"has .* basic blocks, the detector's .* bottleneck blocks"),
        (
            {"hidden_dim": 32},
            r"another shape .*: neck\.input_proj\.0\.conv\.weight has shape \[16, 12, 1, 1\] in the file and "
            r"\[32, 12, 1, 1\] in the detector.*Nothing was loaded.*hidden_dim",
        ),
    ],
    ids=["stem", "deeper", "shallower", "block", "width"],
)
def test_weights_of_another_architecture_are_refused_and_nothing_is_loaded(
    changes: dict[str, object], message: str, deep: DetrDetector
) -> None:
    target = build_again(deep, **changes)
    before = snapshot(target)
    with pytest.raises(WeightsError, match=message):
        load_weights(target, written_as(deep, layouts.RTDETR_V1))
    after = target.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_detector_to_build_is_named_if_it_is_known() -> None:
    with torch.device("meta"):
        source, target = build("rtdetr_r50"), build("rtdetr_r101")
    with pytest.raises(WeightsError, match=r"\(ResNet-50\).*\(ResNet-101\): build detr_r50 or rtdetr_r50"):
        load_weights(target, written_as(source, layouts.RTDETR_V1))


def test_the_stem_to_build_is_named_for_weights_with_a_plain_stem(
    deep: DetrDetector, plain: DetrDetector
) -> None:
    with pytest.raises(WeightsError, match="build it with stem=plain"):
        load_weights(build_again(deep), written_as(plain, layouts.ANYDEPTH))


def test_frozen_norms_refuse_weights_of_one_norm_set_and_accept_those_of_two(plain: DetrDetector) -> None:
    frozen = build_again(plain, freeze_backbone_norms=True)
    before = snapshot(frozen)
    both = written_as(plain, layouts.ANYDEPTH)
    one = {key: value for key, value in both.items() if "_skip." not in key}
    with pytest.raises(WeightsError, match="freeze_backbone_norms=false"):
        load_weights(frozen, one)
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())
    report = load_weights(frozen, both)
    assert report.copied_to_skip == report.missing == ()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for depth in ("full", "minimal"):
            torch.testing.assert_close(
                frozen(images, depth).logits, plain(images, depth).logits, atol=1e-4, rtol=0
            )


def test_fewer_decoder_layers_load_the_first_ones_and_report_the_rest(deep: DetrDetector) -> None:
    shorter = build_again(deep, decoder_layers=2, minimal_decoder_layers=1)
    report = load_weights(shorter, written_as(deep, layouts.RTDETR_V1))
    assert report.missing == ()
    # Of the third layer: 22 tensors, and 2 and 6 of its class and box heads.
    assert len(report.unused) == 22 + 2 + 6
    assert all(re.match(r"decoder\.(decoder\.layers|dec_\w+_head)\.2\.", key) for key in report.unused)
    assert torch.equal(shorter.decoder.layers[1].linear1.weight, deep.decoder.layers[1].linear1.weight)


# -- report ----------------------------------------------------------------------------------------------


def test_the_report_prints_counts_first_names_and_advice(deep: DetrDetector) -> None:
    file = written_as(deep, layouts.RTDETR_V1)
    del file["decoder.enc_output.0.bias"]
    file |= {f"extra.{index}": torch.ones(1) for index in range(4)}
    text = str(load_weights(build_again(deep), file))
    assert text.splitlines()[0] == "the given dictionary: weights of RT-DETR v1"
    assert "not in the file, kept as initialised: 1 (decoder.enc_output.0.bias)" in text
    assert "unused in the file: 4 (extra.0, extra.1, extra.2 and 1 more)" in text
    assert "note: skip norms have the statistics of the full state" in text


def test_loaded_tensors_share_no_memory_with_the_source(deep: DetrDetector) -> None:
    file = copy.deepcopy(deep.state_dict())
    target = build_again(deep)
    load_weights(target, file)
    with torch.no_grad():
        target.decoder.enc_score_head.weight.zero_()
    assert torch.equal(file["decoder.enc_score_head.weight"], deep.decoder.enc_score_head.weight)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_of_a_diverged_run_are_refused_and_nothing_is_loaded(
    deep: DetrDetector, number: float
) -> None:
    state = {key: value.clone() for key, value in deep.state_dict().items()}
    state["decoder.layers.0.cross_attn.value_proj.weight"][0, 0] = number
    target = build_again(deep)
    before = snapshot(target)
    with pytest.raises(
        WeightsError, match=r"1 of \d+ tensors hold NaN or infinity .decoder.layers.0.cross_attn"
    ):
        load_weights(target, state)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
