"""Compatibility of features: the measures against independent formulations, the stages, the files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anydepth import zoo
from anydepth.data.sample import sample_root
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.evaluation.compatibility import MEASURES, Compatibility, measure_compatibility
from anydepth.evaluation.similarity import CovarianceCka, SampleCka, Similarity, SimilarityError
from anydepth.evaluation.stage_features import FirstImages, capture_stage_features
from anydepth.results.compatibility import print_compatibility, write_compatibility
from anydepth.structures import Batch, Targets

Features = NDArray[np.float64]
FORMS = {"products of features": CovarianceCka, "all samples": SampleCka}


def _gram_cka(x: Features, y: Features) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix, as the paper defines it."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741 (the paper's names)
    return float(np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l)))


def _library_cka(x: Features, y: Features) -> float:
    """Repsim (C++, MIT licence), with the biased estimator that the paper uses.

    CKA is invariant to scale, but repsim treats very small products as zero.
    """
    repsim = pytest.importorskip("repsim", reason="pip install repsim: the independent linear CKA")
    return float(repsim.cka([x / x.std(axis=0).max(), y / y.std(axis=0).max()], "linear", "gretton")[0, 1])


def _random(samples: int, channels: tuple[int, int], seed: int = 0) -> tuple[Features, Features]:
    """Return features far from zero that are partly linear functions of each other."""
    random = np.random.default_rng(seed)
    x = random.normal(3, 1, (samples, channels[0]))
    shared = x @ random.normal(0, 1, channels)
    return x, shared + 5 * random.normal(0, 1, shared.shape) - 40


def _in_batches(cka: CovarianceCka | SampleCka, x: Features, y: Features) -> float:
    for start in range(0, len(x), 37):
        cka.add(torch.from_numpy(x[start : start + 37]), torch.from_numpy(y[start : start + 37]))
    return cka.value()


@pytest.mark.parametrize("reference", [_gram_cka, _library_cka], ids=["Gram matrices", "repsim"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("samples", "channels"), [(200, (32, 20)), (40, (64, 96))], ids=["n>C", "n<C"])
def test_linear_cka_of_random_features_equals_independent_implementations(
    samples: int,
    channels: tuple[int, int],
    form: str,
    reference: Callable[[Features, Features], float],
) -> None:
    x, y = _random(samples, channels)
    found = _in_batches(FORMS[form](), x, y)
    assert found == pytest.approx(reference(x, y), abs=1e-9)
    assert 0.1 < found < 0.99, "features must be neither equal nor unrelated for a meaningful test"


def test_linear_cka_equals_the_value_recorded_from_repsim() -> None:
    """Value of repsim 0.1.5 for features that every version of numpy computes equally."""
    x = np.sin(np.arange(600.0) ** 1.3).reshape(60, 10)
    y = np.exp(x[:, :7]) + np.cos(np.arange(420.0) ** 1.1).reshape(60, 7)
    assert _in_batches(CovarianceCka(), x, y) == pytest.approx(0.45356289551604917, abs=1e-9)


def test_cka_of_all_samples_is_independent_of_the_batches() -> None:
    """An average of the values of the batches would differ and depend on their size."""
    x, y = (torch.from_numpy(features) for features in _random(300, (16, 16)))
    values = []
    for size in (300, 100, 7, 1):
        cka = CovarianceCka()
        for start in range(0, 300, size):
            cka.add(x[start : start + size], y[start : start + size])
        values.append(cka.value())
    assert values == pytest.approx([values[0]] * 4, abs=1e-12)


def test_cka_ignores_rotation_scale_and_offset_which_cosine_and_l2_do_not() -> None:
    x = torch.from_numpy(_random(100, (16, 16))[0])
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    measures = Similarity()
    measures.add(x, 5 * x @ rotation + 100)
    values = measures.values()
    assert values["cka"] == pytest.approx(1, abs=1e-12)
    assert values["cosine"] < 0.99
    assert values["l2"] > 1


def test_cosine_and_relative_l2_equal_torch_and_their_definition() -> None:
    x, y = (torch.from_numpy(features) for features in _random(50, (8, 8)))
    measures = Similarity()
    measures.add(x[:20], y[:20])
    measures.add(x[20:], y[20:])
    values = measures.values()
    assert values["cosine"] == pytest.approx(float(F.cosine_similarity(x, y).mean()), abs=1e-12)
    assert values["l2"] == pytest.approx(float((x - y).norm() / x.norm()), abs=1e-12)


def _values(x: Tensor, y: Tensor, **settings: bool) -> dict[str, float]:
    measures = Similarity(**settings)
    measures.add(x, y)
    return measures.values()


@pytest.mark.parametrize("keep_samples", [False, True])
def test_degenerate_features_have_defined_values_or_a_clear_error(keep_samples: bool) -> None:
    varied, zero = torch.randn(6, 4, dtype=torch.float64), torch.zeros(6, 4)
    constant = torch.full((6, 4), 0.1) + torch.tensor([0.0, 1.0, 2.0, 3.0])
    measure = {"keep_samples": keep_samples}
    assert _values(constant, constant, **measure) == pytest.approx({"cka": 1, "cosine": 1, "l2": 0})
    assert _values(zero, zero, **measure) == {"cka": 1, "cosine": 1, "l2": 0}
    assert _values(constant, varied, **measure)["cka"] == 0
    assert _values(varied, constant, **measure)["cka"] == 0
    assert _values(varied, zero, **measure) == {"cka": 0, "cosine": 0, "l2": 1}
    with pytest.raises(SimilarityError, match="zero everywhere"):
        _values(zero, varied, **measure)
    with pytest.raises(SimilarityError, match="NaN or infinite"):
        _values(varied, varied / 0, **measure)
    with pytest.raises(SimilarityError, match="expected at least 2"):
        _values(varied[:1], varied[:1], **measure)
    with pytest.raises(SimilarityError, match="expected equal shapes"):
        _values(varied, varied[:, :3], **measure)


# -- detectors -------------------------------------------------------------------------------------------


def _batches(side: int, images: int = 6) -> list[Batch]:
    """Return the validation images of the embedded sample, in batches of 4."""
    paths = sorted(Path(sample_root()).rglob("*val*/*.jpg"))[:images]
    assert len(paths) == images
    pictures = [Image.open(path).convert("RGB").resize((side, side)) for path in paths]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    none = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return [
        Batch(part, (none,) * len(part), tuple(range(len(part))), ((side, side),) * len(part))
        for part in pixels.split(4)
    ]


def _perturbed(detector: Detector) -> Detector:
    """Perturb the weights, so that refinement paths are no longer the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return detector


@pytest.fixture
def detector(small_detector: Detector) -> Detector:
    return _perturbed(small_detector)


@pytest.fixture(scope="module")
def measured(build_small: Callable[..., Detector]) -> Compatibility:
    """What is measured on a detector like ``detector``; it cannot be changed, so all tests share it."""
    return measure_compatibility(_perturbed(build_small()), _batches(64), images=6)


def test_full_against_itself_is_equal_and_shallower_depths_are_not(measured: Compatibility) -> None:
    assert measured.images == 6
    assert measured.stages == (*(f"stage{n}" for n in (1, 2, 3, 4)), "neck P3", "neck P4", "neck P5")
    for stage in measured.stages:
        for kind in ("pooled", "spatial"):
            assert measured.value(stage, "full", f"{kind}_cka") == pytest.approx(1, abs=1e-12)
            assert measured.value(stage, "full", f"{kind}_cosine") == pytest.approx(1, abs=1e-12)
            assert measured.value(stage, "full", f"{kind}_l2") == 0
        assert 0 < measured.value(stage, "minimal", "spatial_cka") < 1
        assert measured.value(stage, "minimal", "spatial_l2") > 0


def test_a_stage_before_the_first_one_that_skips_is_equal_to_full(detector: Detector) -> None:
    found = measure_compatibility(detector, _batches(64), ["stage1+stage2"], images=6)
    for stage in ("stage1", "stage2"):
        assert found.value(stage, "stage1+stage2@2", "spatial_l2") == 0
    assert found.value("stage3", "stage1+stage2@2", "spatial_l2") > 0


@pytest.mark.parametrize("kind", ["pooled", "spatial"])
@pytest.mark.parametrize("reference", [_gram_cka, _library_cka], ids=["Gram matrices", "repsim"])
def test_measures_of_real_features_equal_independent_implementations(
    detector: Detector,
    measured: Compatibility,
    reference: Callable[[Features, Features], float],
    kind: str,
) -> None:
    """The features are the outputs of the network itself, for all images at once."""
    full, minimal = _neck_maps(detector, "full"), _neck_maps(detector, "minimal")
    for stage, x, y in zip(("neck P3", "neck P4", "neck P5"), full, minimal, strict=True):
        pairs = [
            features.mean(dim=(2, 3)) if kind == "pooled" else features.permute(0, 2, 3, 1).flatten(0, 2)
            for features in (x.double(), y.double())
        ]
        a, b = (pair.numpy() for pair in pairs)
        assert measured.value(stage, "minimal", f"{kind}_cka") == pytest.approx(reference(a, b), abs=1e-6)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert measured.value(stage, "minimal", f"{kind}_cosine") == pytest.approx(cosine.mean(), abs=1e-6)
        relative = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert measured.value(stage, "minimal", f"{kind}_l2") == pytest.approx(relative, abs=1e-6)


def _neck_maps(detector: Detector, depth: str) -> Sequence[Tensor]:
    with evaluating(detector) as network:
        found = [network(batch.images / 255, depth).neck_features for batch in _batches(64)]
    return [torch.cat(levels).clone() for levels in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("name", "side", "stages"),
    [
        ("yolo_tiny", 64, [f"{part}{n}" for part in ("stage", "neck") for n in (1, 2, 3, 4)]),
        ("detr_swin_t", 160, [*(f"stage{n}" for n in (1, 2, 3, 4)), "neck P3", "neck P4", "neck P5"]),
    ],
)
def test_stages_of_other_detectors_are_found_with_their_channels_first(
    name: str, side: int, stages: list[str]
) -> None:
    detector = _perturbed(zoo.build(name, 2, input_size=[side, side]))
    images = _batches(side, 2)[0].images / 255
    with evaluating(detector) as network, capture_stage_features(network) as maps:
        output = network(images)
        assert list(maps) == stages
        for index in (2, 3, 4):
            torch.testing.assert_close(maps[f"stage{index}"], output.backbone_features[index - 2])
        assert maps["stage1"].shape[-2:] == (side // 4, side // 4)
        last = {"yolo_tiny": "neck4", "detr_swin_t": "neck P5"}[name]
        torch.testing.assert_close(maps[last], output.neck_features[-1])
    assert not any(module._forward_hooks for module in detector.modules())


def test_an_error_inside_the_block_leaves_no_hook(detector: Detector) -> None:
    hooked = []

    def fail_inside() -> None:
        with capture_stage_features(detector):
            hooked.extend(module for module in detector.modules() if module._forward_hooks)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail_inside()
    assert hooked
    assert not any(module._forward_hooks for module in detector.modules())


def test_large_maps_are_sampled_on_the_same_even_grid(detector: Detector) -> None:
    found = measure_compatibility(detector, _batches(64), ["full", "minimal"], images=6, positions=20)
    # Maps of 16, 8, 4 and 2 cells per side: 4 x 5 of them, or all if there are at most 20.
    assert dict(found.positions) == {
        "stage1": 20,
        "stage2": 20,
        "stage3": 16,
        "stage4": 4,
        "neck P3": 20,
        "neck P4": 16,
        "neck P5": 4,
    }
    assert found.value("stage1", "full", "spatial_l2") == 0
    with evaluating(detector) as network, capture_stage_features(network) as maps:
        network(_batches(64, 2)[0].images / 255, "full")
    assert maps["stage1"].shape[-2:] == (16, 16)


def test_depths_that_differ_in_decoder_layers_alone_run_once(detector: Detector) -> None:
    calls = []
    handle = detector.register_forward_hook(lambda *_: calls.append(1))
    found = measure_compatibility(detector, _batches(64, 4), ["full", "none@2", "minimal"], images=4)
    handle.remove()
    assert len(calls) == 2
    assert [row.values for row in found.rows if row.depth == "none@2"] == [
        row.values for row in found.rows if row.depth == "minimal"
    ]


def test_only_the_first_images_count() -> None:
    sizes = [len(batch) for batch in FirstImages(_batches(64), 5)]
    assert sizes == [4, 1]
    assert [len(batch) for batch in FirstImages(_batches(64), None)] == [4, 2]
    assert [len(batch) for batch in FirstImages(_batches(64), 4)] == [4]
    with pytest.raises(ValueError, match="expected at least 1"):
        FirstImages([], 0)


def test_incomparable_features_are_refused(detector: Detector, build_small: Callable[..., Detector]) -> None:
    fixed = build_small(any_depth=False)
    with pytest.raises(EvaluationError, match="fixed depth"):
        measure_compatibility(fixed, _batches(64), ["full"], images=4)
    with pytest.raises(EvaluationError, match="expected at least 2 and 1"):
        measure_compatibility(detector, _batches(64), images=1)
    with pytest.raises(EvaluationError, match="got 0 images"):
        measure_compatibility(detector, [], images=4)
    with torch.no_grad():
        detector.get_submodule("backbone.stages.2.refinement.0").get_parameter("conv1.conv.weight").fill_(
            float("nan")
        )
    with pytest.raises(EvaluationError, match=r"stage3 at full: .*NaN or infinite"):
        measure_compatibility(detector, _batches(64), images=4)


# -- files -----------------------------------------------------------------------------------------------


def test_compatibility_is_written_as_three_files_and_reads_back_equal(
    measured: Compatibility, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_compatibility(measured, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"compatibility.{kind}" for kind in ("csv", "json", "png")
    }
    assert Compatibility.from_json(paths["json"].read_text()) == measured
    lines = paths["csv"].read_text().splitlines()
    assert lines[0].split(",") == ["stage", "depth", *MEASURES]
    assert len(lines) == 1 + len(measured.stages) * len(measured.depths)
    pixels = np.array(Image.open(paths["png"]).convert("L"))
    assert pixels.min() < 60 < 200 < pixels.max(), "an empty picture"

    print_compatibility(measured)
    printed = capsys.readouterr().out
    assert "spatial linear CKA" in printed
    assert f"{measured.value('neck P4', 'minimal', 'spatial_cka'):.3f}" in printed
    assert "…" not in "".join(line for line in printed.splitlines() if "stage1 " in line)
    assert "biased towards 1" in printed, "6 images are fewer than the channels"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("stages"),
        lambda data: data["rows"].pop(),
        lambda data: data["rows"][0]["values"].pop("pooled_cka"),
        lambda data: data["rows"][0]["values"].update(pooled_cka=float("nan")),
        lambda data: data.update(colour="blue"),
        lambda data: data.update(rows=3),
    ],
    ids=["no stages", "a row less", "a measure less", "not finite", "an unknown key", "no rows"],
)
def test_a_damaged_file_is_refused(measured: Compatibility, damage: Callable[[Any], Any]) -> None:
    data = json.loads(measured.to_json())
    damage(data)
    with pytest.raises(EvaluationError, match="not a compatibility file as written by anydepth"):
        Compatibility.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "depth,AP"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(EvaluationError, match="not a compatibility file"):
        Compatibility.from_json(text)


def test_an_unknown_stage_lists_the_known_ones(measured: Compatibility) -> None:
    with pytest.raises(EvaluationError, match=r"expected stages \['stage1'"):
        measured.value("stage9", "full", "pooled_cka")
