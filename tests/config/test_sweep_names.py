"""Folders of sweeps and their jobs: stable, readable, usable as a file path on the command line."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from anydepth.config import resolvers
from anydepth.config.compose import compose
from anydepth.config.resolvers import job_name, record_sweep, study_name

CHOICES = {"experiment": "ablation_losses", "detector": "detr_tiny", "data": "sample"}


def _sweep(*task: str, params: dict[str, str] | None = None) -> DictConfig:
    """Return the node ``hydra`` of a sweep, as far as names depend on it."""
    return OmegaConf.create(
        {
            "hydra": {
                "overrides": {"task": list(task)},
                "runtime": {"choices": CHOICES},
                "sweeper": {"params": params},
            },
            "folder": "${study:}",
            "job": "${job:}",
        }
    )


def test_a_study_is_named_by_experiment_detector_and_data() -> None:
    assert study_name(_sweep("experiment=ablation_losses")) == "ablation_losses/detr_tiny_sample"
    assert study_name(_sweep("detector=yolo_tiny")) == "ablation_losses/yolo_tiny_sample"


def test_swept_keys_do_not_name_the_study_so_that_it_can_grow() -> None:
    params = {"ablation": "both,feature_only"}
    names = {
        study_name(_sweep(*task, params=params))
        for task in ((), ("seed=0,1",), ("seed=3",), ("ablation=sandwich",), ("recipe.lr=0.1,0.2",))
    }
    assert names == {"ablation_losses/detr_tiny_sample"}


def test_other_common_settings_give_another_folder() -> None:
    names = [study_name(_sweep(*task)) for task in ((), ("recipe.epochs=3",), ("recipe.epochs=4",))]
    assert len(set(names)) == 3
    assert all(name.startswith("ablation_losses/detr_tiny_sample") for name in names)
    assert study_name(_sweep("a=1", "b=2")) == study_name(_sweep("b=2", "a=1"))


def test_each_start_of_a_sweep_has_its_own_id() -> None:
    master, job = _sweep("seed=0,1"), _sweep("seed=1")
    assert resolvers.sweep_id(master) is None
    assert resolvers.recorded_keys(master) == []
    record_sweep(master)
    first = resolvers.sweep_id(master)
    OmegaConf.copy_cache(from_config=master, to_config=job)
    assert resolvers.sweep_id(job) == first
    assert resolvers.recorded_keys(job) == ["seed"]
    record_sweep(master)
    assert resolvers.sweep_id(master) not in (None, first)


def test_a_sweep_over_detectors_lies_in_one_folder() -> None:
    assert study_name(_sweep("detector=detr_tiny,yolo_tiny")) == "ablation_losses/detr_tiny+yolo_tiny_sample"


def test_jobs_know_the_swept_keys() -> None:
    """Hydra composes each job again and passes on the cache; a job's own settings show no sweep."""
    master = _sweep("seed=0,1", "recipe.lr=0.1", "detector=detr_tiny,yolo_tiny", params={"ablation": "both"})
    record_sweep(master)
    job = _sweep("ablation=both", "seed=1", "recipe.lr=0.1", "detector=yolo_tiny")
    OmegaConf.copy_cache(from_config=master, to_config=job)
    assert job.job.startswith("ablation_both-seed_1-detector_yolo_tiny-")
    assert job.folder == master.folder == "ablation_losses/detr_tiny+yolo_tiny_sample_" + master.folder[-6:]
    assert _sweep("seed=1").job.startswith("seed_1-")


def test_names_of_jobs_are_short_unique_and_need_no_quotes() -> None:
    long = ["data.root=/somewhere/" + "x" * 300, "recipe.milestones=[0.5,0.9]", "a/b@c=d e"]
    names = [job_name([*long, f"seed={seed}"], ()) for seed in (0, 1)]
    assert len(set(names)) == 2
    setup_globals()
    for name in names:
        assert len(name.encode()) <= 130
        assert "/" not in name
        (parsed,) = OverridesParser.create().parse_overrides([f"weights={name}/weights.safetensors"])
        assert parsed.value() == f"{name}/weights.safetensors"
    assert job_name(["b=1", "a=2"], ["a"]) == job_name(["a=2", "b=1"], ["a"])


def test_every_configuration_with_hydra_names_its_job() -> None:
    config = compose("train", ["paths.output_root=out", "experiment=ablation_losses"], hydra_config=True)
    assert (
        config.hydra.sweep.dir == "out/sweeps/ablation_losses/detr_tiny_sample_" + config.hydra.sweep.dir[-6:]
    )
    assert config.hydra.sweep.subdir == resolvers.job_name(config.hydra.overrides.task, ["ablation"])
    assert "/sweep_" in compose("train", hydra_config=True).hydra.sweep.dir
