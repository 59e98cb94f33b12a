"""Ablations, studies and launchers as configuration: every job of every study composes to what it says."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from anydepth.config.compose import compose, instantiate, option_names, resolve_config
from anydepth.report.flat_config import differing_keys, flatten
from anydepth.runs.identity import result_hash
from anydepth.train import run
from config_checks import check_targets, composed
from small_networks import SMALL_YOLO

FAMILIES = {"detr": "detr_tiny", "yolo": "yolo_tiny"}
STUDIES = [name for name in option_names("experiment") if not name.startswith(("_", "anydepth_"))]
# YOLO has no decoder.
CASES = [
    (study, family)
    for study in STUDIES
    for family in FAMILIES
    if (study, family) != ("ablation_decoder_depth", "yolo")
]


def _jobs(params: DictConfig) -> Iterator[list[str]]:
    """The settings of every job of a grid; of a search, those at both ends of all intervals."""
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    if any(isinstance(override.value(), IntervalSweep) for override in parsed):
        for end in ("start", "end"):
            yield [f"{override.key_or_group}={_end(override, end)}" for override in parsed]
        return
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    yield from jobs


def _end(override: Override, end: str) -> float:
    return float(getattr(override.value(), end))


@pytest.mark.parametrize(
    ("study", "family", "chosen"),
    [
        pytest.param(
            *case,
            chosen,
            marks=()
            if chosen != "every" and (case[1] == "detr" or case[0] == "ablation")
            else pytest.mark.slow,
        )
        for case in CASES
        for chosen in ("first and last", "every")
    ],
)
def test_jobs_of_a_study_compose_to_runs_that_differ(study: str, family: str, chosen: str) -> None:
    detector = f"detector={FAMILIES[family]}"
    jobs = list(_jobs(composed(f"experiment={study}", detector).hydra.sweeper.params))
    assert len(jobs) > 1
    jobs = jobs if chosen == "every" else [jobs[0], jobs[-1]]
    hashes = set()
    for job in jobs:
        settings = resolve_config(composed(f"experiment={study}", detector, *job))
        check_targets(settings)
        for key in ("recipe", "depth_schedule", "losses"):
            instantiate(settings[key])
        hashes.add(result_hash(settings))
    assert len(hashes) == len(jobs)


@pytest.mark.parametrize(("experiment", "family"), CASES)
def test_experiments_are_studies_of_fixed_length_for_both_families(experiment: str, family: str) -> None:
    """Epochs, not minutes: what a run reaches must not depend on the load of the machine."""
    config = composed(f"experiment={experiment}", f"detector={FAMILIES[family]}")
    assert config.hydra.sweeper.params
    assert config.hydra.sweep.dir.startswith(f"outputs/sweeps/{experiment}/")
    assert (config.recipe.minutes, config.recipe.epochs) == (None, 32)
    check_targets(resolve_config(config))


@pytest.mark.parametrize(
    ("detector", "epochs"), [("detr_r50", 72), ("yolo_l", 600)], ids=["detr_r50", "yolo_l"]
)
@pytest.mark.parametrize("experiment", ["ablation", "ablation_loss_weights", "search"])
def test_a_study_on_coco_keeps_the_published_length(experiment: str, detector: str, epochs: int) -> None:
    config = composed(f"experiment={experiment}", f"detector={detector}", "data=coco", "data.root=x")
    assert (config.recipe.minutes, config.recipe.epochs) == (None, epochs)
    config = composed(
        f"experiment={experiment}", f"detector={detector}", "data=coco", "data.root=x", "recipe.epochs=3"
    )
    assert config.recipe.epochs == 3


@pytest.mark.parametrize("family", ["detr", pytest.param("yolo", marks=pytest.mark.slow)])
def test_arms_differ_from_the_method_in_one_thing(family: str) -> None:
    """What spec and claims call the ablation; the keys of each family's distillation are its own."""
    arms: dict[str, dict[str, Any]] = {
        name: resolve_config(composed(f"ablation={name}", f"detector={FAMILIES[family]}"))
        for name in option_names("ablation")
    }
    changed = {
        name: {
            key
            for key in differing_keys([flatten(settings), flatten(arms["both"])])
            if key.startswith(("depth_schedule.", "losses.", "detector.", "recipe.", "data."))
        }
        for name, settings in arms.items()
    }
    predictions = {
        "detr": {"class_targets", "box_targets"},
        "yolo": {"class_weight", "box_weight", "dfl_weight"},
    }
    features = {"detr": {"backbone_weight", "neck_weight"}, "yolo": {"feature_weight"}}
    fixed = {"depth_schedule.depths", "detector.switchable_norms"}
    assert changed == {
        "both": set(),
        "feature_only": {f"losses.distillation.{key}" for key in predictions[family]},
        "prediction_only": {f"losses.distillation.{key}" for key in features[family]},
        "no_distillation": {"depth_schedule.distill"},
        "full_only": fixed,
        "minimal_only": fixed,
        "sandwich": {"depth_schedule.random_points"},
        "random": {"depth_schedule.depths", "depth_schedule.random_points"},
        "shared_norms": {"detector.switchable_norms"},
    }


@pytest.mark.parametrize(("name", "plugin"), [("slurm", "SlurmQueueConf"), ("local_jobs", "LocalQueueConf")])
def test_launchers_name_settings_that_the_plugin_takes(name: str, plugin: str) -> None:
    """The plugin's launcher takes any keyword and leaves it to sbatch to complain."""
    from hydra_plugins.hydra_submitit_launcher import config as declared

    launcher = composed(f"hydra/launcher={name}").hydra.launcher
    fields = {field.name for field in dataclasses.fields(getattr(declared, plugin))}
    assert set(launcher) <= fields
    assert launcher._target_ == getattr(declared, plugin)._target_


def test_the_search_is_seeded_and_maximises_the_validation_score() -> None:
    pytest.importorskip("optuna")
    sweeper = composed("experiment=search").hydra.sweeper
    assert sweeper.direction == "maximize"
    sampler = instantiate(sweeper.sampler)
    assert type(sampler).__name__ == "TPESampler"
    assert check_targets(OmegaConf.to_container(sweeper)) == 2


@pytest.mark.parametrize("family", ["detr", pytest.param("yolo", marks=pytest.mark.slow)])
def test_joint_training_is_distillation_without_its_losses(
    family: str, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    """Said by the schedule or by the losses, the weights are the same; the method trains others."""
    yolo = ("detector=yolo_tiny", *(f"detector.{key}={value}" for key, value in SMALL_YOLO.items()))
    small = [text for text in small_run if family == "detr" or not text.startswith("detector.")]
    detector = [*small, "recipe.epochs=1", *(yolo if family == "yolo" else ())]
    arms = {
        "schedule": ["ablation=no_distillation"],
        "losses": [f"losses={family}_none"],
        "method": ["ablation=both"],
    }
    weights = {}
    for name, arm in arms.items():
        folder = f"paths.output_dir={tmp_path / name}"
        run(compose("train", [*detector, *arm, folder], hydra_config=True))
        weights[name] = load_file(tmp_path / name / "weights.safetensors")
    HydraConfig.instance().cfg = None
    one, two, method = weights["schedule"], weights["losses"], weights["method"]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], method[key]) for key in one)
