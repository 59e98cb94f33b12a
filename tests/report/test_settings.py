"""Runs become settings by their configuration alone; labels are unique; means are computed by hand."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_files import config_of, ladder, make_curve, write_run

from anydepth.config.key_effects import MIRRORS
from anydepth.evaluation.curve_summary import summarize
from anydepth.report.flat_config import differing_keys, flatten, training_config
from anydepth.report.runs import Run, find_runs
from anydepth.report.settings import CurvePoint, Setting, group_settings

APS = ladder(30, 28, 27, 26)


def _run(
    name: str, config: Mapping[str, object], aps: Mapping[str, float] = APS, overrides: Sequence[str] = ()
) -> Run:
    """A run without files."""
    curve = make_curve(aps)
    return Run(
        folder=Path(name),
        name=name,
        config=config,
        provenance={"overrides": list(overrides)},
        result={},
        curve=curve,
        summary=summarize(curve),
        log={},
        compatibility=None,
        gallery=None,
        notes=(),
    )


def _labels(*runs: Run) -> list[str]:
    return [setting.label for setting in group_settings(runs)]


# -- what is one setting ---------------------------------------------------------------------------------


def _changed(change: str) -> dict[str, Any]:
    """Return the default configuration with a value or a group changed; only groups are composed."""
    key, value = change.split("=")
    *path, last = key.split(".")
    if not path and key not in ("seed", "ckpt_path", "weights", "compile"):
        return config_of([change], "a")
    config = config_of([], "a")
    reduce(dict.__getitem__, path, config)[last] = yaml.safe_load(value)
    return config


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "paths.output_dir=elsewhere",
        "callbacks.best.dirpath=elsewhere",
        "data.num_workers=0",
        "data.root=another_place",
        "trainer=cpu",
        "trainer.devices=[1]",
        "trainer.log_every_n_steps=1",
        "logger=none",
        "callbacks.progress=null",
        "callbacks.gradient_conflict.every_n_steps=10",
        "non_finite.action=skip",
        "curve.depths=[full,minimal]",
        "compile=true",
        "ckpt_path=last.ckpt",
        "validation.backend=pycocotools",
    ],
)
def test_what_does_not_change_training_makes_no_other_setting(change: str):
    first, second = config_of([], "a"), _changed(change)
    assert first != second
    assert training_config(first) == training_config(second)


@pytest.mark.parametrize(
    "change",
    [
        "recipe.lr=0.5",
        "recipe.epochs=7",
        "trainer.devices=2",
        "trainer.precision=bf16-mixed",
        "data.batch_size=8",
        "weights=other.safetensors",
        "callbacks.averaging=null",
        "validation.score=full",
        "depth_schedule=random",
        "losses=detr_none",
        "detector.switchable_norms=false",
        "data.augmentation.turn=null",
    ],
)
def test_what_changes_training_makes_another_setting(change: str):
    assert training_config(config_of([], "a")) != training_config(_changed(change))


def test_a_missing_key_equals_a_null_key():
    # Configurations of earlier versions lack later keys.
    assert flatten({"a": {"b": None, "c": [1]}, "d": {}}) == flatten({"a": {"c": [1]}})


@pytest.mark.parametrize("detector", ["detr_tiny", "yolo_tiny"])
def test_mirrors_take_the_value_of_their_source(detector: str):
    flat = flatten(config_of([f"detector={detector}", "recipe.minutes=7"]))
    assert {key: flat[key] for key in MIRRORS} == {key: flat[source] for key, source in MIRRORS.items()}


def test_mirrored_keys_are_listed_once():
    longer = training_config(
        config_of(["recipe.epochs=7", "recipe.ema_decay=0.5", "detector.fit=letter_box"])
    )
    assert differing_keys([training_config(config_of([])), longer]) == (
        "detector.fit",
        "recipe.ema_decay",
        "recipe.epochs",
    )
    # If it was set explicitly, it is listed.
    own = training_config(config_of(["trainer.max_epochs=7"]))
    assert differing_keys([training_config(config_of([])), own]) == ("trainer.max_epochs",)


def test_differing_keys_are_those_of_unequal_values():
    configs = [{"a": 1, "b": [1], "c": 1.0}, {"a": 1, "b": [2]}, {"a": True, "b": [1]}]
    assert differing_keys(configs) == ("a", "b", "c")
    assert differing_keys(configs[:1]) == ()


def test_seeds_of_one_setting_are_one_and_sorted(tmp_path: Path):
    for seed in (10, 2):
        write_run(tmp_path / f"x{seed}", APS, seed=seed)
    write_run(tmp_path / "other", APS, ["depth_schedule=random"])
    base, random = group_settings(find_runs([tmp_path])[0])
    assert [run.seed for run in base.runs] == [2, 10]
    assert (base.label, random.label) == ("defaults", "depth_schedule=random")
    assert base.differing == {"depth_schedule.depths": ["full", "minimal"], "depth_schedule.random_points": 0}
    assert random.differing == {"depth_schedule.depths": ["full"], "depth_schedule.random_points": 1}


# -- labels ----------------------------------------------------------------------------------------------


def test_arms_of_an_ablation_are_labelled_by_their_names():
    runs = [
        _run("1", {"x": 1}, overrides=["ablation=both", "seed=0", "data.root=/somewhere"]),
        _run("2", {"x": 2}, overrides=["ablation=none", "recipe.lr=2"]),
    ]
    assert _labels(*runs) == ["both", "none"]
    assert _labels(runs[0]) == ["both"]


def test_arms_of_several_detectors_name_the_detector_even_if_it_is_the_default():
    runs = [
        _run(
            f"{arm}{detector}", {"arm": arm, "detector_name": detector}, overrides=[f"ablation={arm}", *extra]
        )
        for arm in ("both", "none")
        for detector, extra in (("detr_tiny", []), ("yolo_tiny", ["detector=yolo_tiny"]))
    ]
    assert _labels(*runs) == [
        "both, detector=detr_tiny",
        "both, detector=yolo_tiny",
        "none, detector=detr_tiny",
        "none, detector=yolo_tiny",
    ]


def test_equal_overrides_are_distinguished_by_the_configuration():
    runs = [_run(str(lr), {"recipe": {"lr": lr}, "z": lr}, overrides=["ablation=both"]) for lr in (1, 2)]
    assert _labels(*runs) == ["recipe.lr=1, z=1", "recipe.lr=2, z=2"]


def test_many_differing_keys_are_counted():
    runs = [_run(str(value), dict.fromkeys("abcdef", value)) for value in (1, 2)]
    assert _labels(*runs)[0] == "a=1, b=1, c=1 and 3 more"


def test_how_a_run_was_launched_is_not_in_its_label():
    launched = ["hydra.job.num=3", "hydra/launcher=joblib", "+hydra.launcher.n_jobs=2", "recipe.lr=1"]
    assert _labels(_run("1", {"x": 1}, overrides=launched)) == ["recipe.lr=1"]


VALUES = st.sampled_from([1, 2, "a", "b", None, [1], "a (1)", "defaults"])
CONFIGS = st.dictionaries(st.sampled_from(["a", "b", "c", "detector_name"]), VALUES)
OVERRIDES = st.lists(st.sampled_from(["ablation=x", "ablation=defaults", "b=1", "b=2", "+b=", "~c", "d"]))


@given(st.lists(st.tuples(CONFIGS, OVERRIDES), min_size=1, max_size=8), st.randoms())
def test_labels_are_unique_and_do_not_depend_on_the_order(drawn, shuffler):
    runs = [
        _run(str(place), config, overrides=given_overrides)
        for place, (config, given_overrides) in enumerate(drawn)
    ]
    labels = _labels(*runs)
    assert 1 <= len(set(labels)) == len(labels)
    assert all(labels)
    shuffled = list(runs)
    shuffler.shuffle(shuffled)
    assert group_settings(shuffled) == group_settings(runs)


# -- seeds -----------------------------------------------------------------------------------------------


def _setting(*curves: Mapping[str, float], seeds: Sequence[int | None] = (0, 1, 2)) -> Setting:
    runs = [
        _run(str(place), {} if seed is None else {"seed": seed}, aps)
        for place, (aps, seed) in enumerate(zip(curves, seeds, strict=False))
    ]
    (setting,) = group_settings(runs)
    return setting


def test_means_and_spreads_are_over_seeds():
    setting = _setting(ladder(30, 28, 27, 26), ladder(33, 25, 24, 22), ladder(30, 28, 27, 24))
    assert setting.seeds == 3
    assert setting.mean["full"] == pytest.approx(0.31)
    assert setting.spread["full"] == pytest.approx(0.015)
    assert setting.mean["minimal"] == pytest.approx(0.24)
    assert setting.spread["minimal"] == pytest.approx(0.02)
    # Drops of 2, 8 and 3 points.
    assert setting.mean["largest_drop"] == pytest.approx(0.13 / 3)
    assert setting.curve_mean[0] == CurvePoint(
        "full", 10.0, None, pytest.approx(0.31), pytest.approx(0.30), pytest.approx(0.33)
    )
    assert [point.depth for point in setting.curve_mean] == ["full", "neck@3", "none@3", "minimal"]
    assert (setting.curve_mean[-1].low, setting.curve_mean[-1].high) == (0.22, 0.26)


def test_one_seed_has_no_spread():
    setting = _setting(APS)
    assert (setting.seeds, setting.spread["full"]) == (1, 0.0)


def test_runs_of_one_seed_count_once():
    # Mean over seeds 0 (30 and 32) and 1 (37): 34; counted as three runs it would be 33.
    setting = _setting(
        ladder(30, 28, 27, 26), ladder(32, 28, 27, 26), ladder(37, 28, 27, 26), seeds=(0, 0, 1)
    )
    assert setting.seeds == 2
    assert setting.mean["full"] == pytest.approx(0.34)
    assert (setting.curve_mean[0].low, setting.curve_mean[0].high) == (
        pytest.approx(0.31),
        pytest.approx(0.37),
    )


def test_runs_without_a_seed_count_each():
    assert _setting(APS, APS, seeds=(None, None)).seeds == 2


def test_only_figures_of_every_run_are_averaged():
    setting = _setting(APS, {"full": 0.3, "minimal": 0.2})
    assert setting.mean.keys() == {"full", "minimal", "hypervolume", "saving"}
    assert [point.depth for point in setting.curve_mean] == ["full", "minimal"]


def test_depths_without_ground_truth_are_not_points():
    setting = _setting({**APS, "full": -1.0})
    assert "full" not in setting.mean
    assert [point.depth for point in setting.curve_mean] == ["neck@3", "none@3", "minimal"]


def test_latency_is_the_mean_and_missing_if_one_run_lacks_it(tmp_path: Path):
    for seed, latency in ((0, 4.0), (1, 6.0)):
        write_run(tmp_path / str(seed), APS, seed=seed, curve={"latency_ms": latency})
    (setting,) = group_settings(find_runs([tmp_path])[0])
    assert setting.curve_mean[0].latency_ms == 5.0
    write_run(tmp_path / "2", APS, seed=2)
    (setting,) = group_settings(find_runs([tmp_path])[0])
    assert setting.curve_mean[0].latency_ms is None
