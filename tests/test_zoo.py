"""Detectors by name, and weights files that say what they belong to."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import anydepth
from anydepth import zoo
from anydepth.detector import Detector
from anydepth.weights.files import WeightsError


def _logits(detector: Detector, depth: str) -> torch.Tensor:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    detector.eval()
    with torch.no_grad():
        logits: torch.Tensor = detector(images, depth=depth).logits
    return logits


def _rewrite(path: Path, **changes: str | None) -> Path:
    """The same weights file with other metadata; None removes a key."""
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in {**file.metadata(), **changes}.items() if value is not None}
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    changed = path.with_name("changed.safetensors")
    save_file(weights, changed, metadata)
    return changed


def test_names_are_those_that_others_call() -> None:
    wanted = {f"{kind}_{net}" for kind in ("detr", "rtdetr") for net in ("r18", "r34", "r50", "r101")}
    assert wanted | {"detr_tiny"} <= set(zoo.names())
    assert not any(name.startswith("_") for name in zoo.names())


def test_what_is_done_to_a_detectors_configuration_leaves_the_next_one_alone() -> None:
    first = anydepth.build("detr_tiny", 1)
    expected = list(first.config["widths"])
    first.config["widths"].append(7)
    assert anydepth.build("detr_tiny", 1).config["widths"] == expected


def test_the_configuration_of_a_detector_builds_an_equal_one(small_detector: Detector) -> None:
    again = anydepth.build(**small_detector.config)
    assert again.config == small_detector.config
    assert again.config["name"] == "detr_tiny"
    shapes = {key: value.shape for key, value in small_detector.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


def test_loaded_detector_equals_the_saved_one(small_detector: Detector, tmp_path: Path) -> None:
    small_detector.reset_classes(["cat", "dog"])
    path = anydepth.save(small_detector, tmp_path / "new" / "weights.safetensors")
    loaded = anydepth.load(path)
    assert not loaded.training
    assert loaded.class_names == ("cat", "dog")
    assert loaded.config == small_detector.config
    for depth in ("full", "minimal", "neck@2"):
        assert torch.equal(_logits(loaded, depth), _logits(small_detector, depth))


def test_classes_that_were_changed_after_building_are_saved(small_detector: Detector, tmp_path: Path) -> None:
    small_detector.reset_classes(["a", "b", "c"])
    loaded = anydepth.load(anydepth.save(small_detector, tmp_path / "weights.safetensors"))
    assert loaded.class_names == ("a", "b", "c")
    assert torch.equal(_logits(loaded, "full"), _logits(small_detector, "full"))


def test_whoever_may_read_other_files_of_a_run_may_read_its_weights(
    small_detector: Detector, tmp_path: Path
) -> None:
    saved = zoo.save(small_detector, tmp_path / "weights.safetensors")
    other = tmp_path / "other"
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(zoo.ZooError, match=r"'detr_r5'.*detr_r50"):
        anydepth.build("detr_r5")


def test_unknown_override_lists_the_settings() -> None:
    with pytest.raises(zoo.ZooError, match=r"no setting stemm: allowed are .*stem"):
        anydepth.build("detr_tiny", stemm="deep")


def test_a_detector_built_by_hand_is_not_saved(small_detector: Detector, tmp_path: Path) -> None:
    small_detector.config = {}
    with pytest.raises(zoo.ZooError, match=r"anydepth\.build"):
        anydepth.save(small_detector, tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        anydepth.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(small_detector: Detector, tmp_path: Path, share: float) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(zoo.ZooError, match="cut short, copy it again"):
        anydepth.load(path)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(zoo.ZooError, match="load_weights"):
        anydepth.load(tmp_path / "other.safetensors")


def test_weights_of_another_architecture_are_refused(small_detector: Detector, tmp_path: Path) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    config = {**small_detector.config, "decoder_layers": 3, "num_queries": 12}
    with pytest.raises(zoo.ZooError, match=r"do not fit.*\d+ missing \(e\.g\. decoder\."):
        anydepth.load(_rewrite(path, config=json.dumps(config)))


def test_a_detector_of_ones_own_preset_is_loaded_without_the_preset(
    small_detector: Detector, tmp_path: Path
) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    renamed = json.dumps({**small_detector.config, "name": "mine"})
    loaded = anydepth.load(_rewrite(path, config=renamed))
    assert loaded.config["name"] == "mine"
    assert torch.equal(_logits(loaded, "minimal"), _logits(small_detector.eval(), "minimal"))
    # A file of before builders were written has nothing but the name.
    with pytest.raises(zoo.ZooError, match="unknown detector 'mine'"):
        anydepth.load(_rewrite(path, config=renamed, builder=None))
    older = _rewrite(path, builder=None)
    assert torch.equal(_logits(anydepth.load(older), "minimal"), _logits(loaded, "minimal"))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("os.system", "not among what a configuration may build"),
        ("anydepth.data.fetch.public_sets.dataset_root", "does not return a Detector"),
        ("anydepth.training.callbacks.progress.ConsoleProgress", "does not return a Detector"),
        ("anydepth.detr.build.gone", "check the spelling"),
        ("", "_target_ ''"),
    ],
)
def test_a_file_builds_nothing_but_detectors(
    small_detector: Detector, tmp_path: Path, builder: str, message: str
) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    with pytest.raises(zoo.ZooError, match=message):
        anydepth.load(_rewrite(path, builder=builder))


def test_a_newer_layout_is_refused(small_detector: Detector, tmp_path: Path) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    with pytest.raises(zoo.ZooError, match="layout version 2"):
        anydepth.load(_rewrite(path, format_version="2"))


def test_damaged_metadata_is_refused(small_detector: Detector, tmp_path: Path) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    with pytest.raises(zoo.ZooError, match="description of the detector is damaged"):
        anydepth.load(_rewrite(path, config="{"))


def test_load_weights_goes_to_the_wing_of_the_detector(build_small: Callable[..., Detector]) -> None:
    source, small_detector = build_small(seed=5), build_small(seed=6)
    anydepth.load_weights(small_detector, source.state_dict())
    assert torch.equal(_logits(source, "minimal"), _logits(small_detector, "minimal"))


def test_a_file_with_a_number_that_is_none_is_refused(small_detector: Detector, tmp_path: Path) -> None:
    path = anydepth.save(small_detector, tmp_path / "weights.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = next(iter(weights))
    weights[key].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "spoilt.safetensors", metadata)
    with pytest.raises(zoo.ZooError, match=r"1 of .* tensors hold NaN or infinity"):
        anydepth.load(tmp_path / "spoilt.safetensors")
    with torch.no_grad():
        small_detector.state_dict()[key].view(-1)[0] = float("inf")
    with pytest.raises(WeightsError, match=r"the detector: 1 of .* tensors hold NaN or infinity"):
        anydepth.save(small_detector, path)
    anydepth.load(path)  # the file of before


def test_a_compiled_detector_is_saved_like_itself(small_detector: Detector, tmp_path: Path) -> None:
    loaded = anydepth.load(anydepth.save(torch.compile(small_detector), tmp_path / "weights.safetensors"))
    expected = small_detector.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
