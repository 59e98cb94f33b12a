"""Every configuration that ships composes, and the parts that need no data or device can be built from it."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from anydepth.config.compose import compose, config_dir, instantiate, option_names, resolve_config
from anydepth.detector import Objective
from anydepth.runs.job import RunFolderError, check_output
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.recipes import Recipe
from config_checks import check_targets, composed, targets

GROUPS = (
    "ablation",
    "augmentation",
    "callbacks",
    "data",
    "debug",
    "depth_schedule",
    "detector",
    "experiment",
    "hydra",
    "hydra/launcher",
    "hydra/sweeper",
    "logger",
    "losses",
    "paths",
    "recipe",
    "recipe/study",
    "trainer",
)
# Chosen by the detector and the data set, never by hand.
CHOSEN = ("family", "dataset_kind")
# Options by family and kind of data set that point to those of the group; what a study varies by family.
POINTERS = ("augmentation/default", "experiment/space", "recipe/convert", "recipe/default")
# They set what is in other groups; options of all the others compose together.
OVERRIDING = ("ablation", "debug", "experiment", "recipe/study")
OPTIONS = {
    group: [f"{group}={name}" for name in option_names(group) if not name.startswith("_")] for group in GROUPS
}
COMPOSITIONS = [
    *([option] for group in OVERRIDING for option in OPTIONS[group]),
    *zip_longest(*(options for group, options in OPTIONS.items() if group not in OVERRIDING)),
]
# What only the user can know.
NEEDED = ("data.root=somewhere", "weights=somewhere")


def test_every_group_is_tested() -> None:
    folders = {path.parent.relative_to(config_dir()) for path in config_dir().rglob("*.yaml")}
    assert {folder.as_posix() for folder in folders} - {"."} == {*GROUPS, *CHOSEN, *POINTERS}
    assert all(OPTIONS.values())


@pytest.mark.parametrize("options", COMPOSITIONS, ids=lambda options: " ".join(filter(None, options)))
def test_every_option_composes_and_fits_the_code(options: Sequence[str | None]) -> None:
    """On top of the defaults; with the family's detector where the name says that it is one family's."""
    given = [option for option in options if option]
    needed = NEEDED if any(option.startswith(("experiment=", "data=")) for option in given) else ()
    settings = resolve_config(composed(*given, *needed))
    assert settings["detector_name"] in option_names("detector")
    assert check_targets(settings) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", option_names("ablation"))
@pytest.mark.parametrize("detector", ["detr_tiny", "yolo_tiny"])
def test_ablations_fit_both_families(name: str, detector: str) -> None:
    config = composed(f"ablation={name}", f"detector={detector}")
    assert config.losses._target_.startswith(f"anydepth.{detector.partition('_')[0]}.")
    assert check_targets(resolve_config(config)) > 10


def _included(path: Path) -> set[str]:
    """Files of the same group that an option includes by name."""
    defaults = yaml.safe_load(path.read_text()).get("defaults", [])
    return {entry for entry in defaults if isinstance(entry, str)}


def test_parts_of_options_belong_to_options() -> None:
    parts = list(config_dir().rglob("_*.yaml"))
    assert parts
    for path in parts:
        users = [
            other for other in path.parent.glob("*.yaml") if other != path and path.stem in _included(other)
        ]
        assert users, f"{path} is part of nothing"


def test_pointers_lead_to_options_of_their_group() -> None:
    """Every family has one for every kind of data set, and its name says nothing about what it holds."""
    for group in ("recipe", "augmentation"):
        pointers = {path.stem: path for path in (config_dir() / group / "default").glob("*.yaml")}
        families, kinds = option_names("family"), option_names("dataset_kind")
        assert set(pointers) == {f"{family}_{kind}" for family in families for kind in kinds}
        for path in pointers.values():
            document = yaml.safe_load(path.read_text())
            assert document.keys() == {"defaults"}
            (target,) = document["defaults"]
            assert target.removeprefix(f"/{group}/") in option_names(group)


@pytest.mark.parametrize("group", CHOSEN)
def test_what_is_chosen_by_others_is_chosen_by_one_of_them(group: str) -> None:
    lines = {
        line.strip()
        for path in config_dir().rglob("*.yaml")
        if path.parent != config_dir() / group
        for line in path.read_text().splitlines()
    }
    names = option_names(group)
    assert names
    assert [name for name in names if f"- /{group}@_global_.{group}: {name}" not in lines] == []


@pytest.mark.parametrize(
    ("name", "built"),
    # Prediction reads a folder and export none, so they build no data module.
    [
        ("analyze", {"data", "data.root"}),
        ("evaluate", {"data", "data.root"}),
        ("predict", set()),
        ("export", set()),
        ("route", {"data", "data.root"}),
    ],
)
def test_other_entry_points_compose(name: str, built: set[str]) -> None:
    settings = resolve_config(compose(name, ["paths.output_dir=out"], hydra_config=True))
    assert {key for key, _ in targets(settings)} == built
    check_targets(settings)


@pytest.mark.parametrize("name", ["analyze", "evaluate", "predict", "export", "route"])
def test_results_follow_output_and_in_a_sweep_the_job(name: str, tmp_path: Path) -> None:
    """Hydra's own files lie beside the results, and jobs of a sweep do not share a folder."""
    config = compose(name, ["output=mine"], hydra_config=True)
    assert (config.output, config.hydra.run.dir) == ("mine", "mine")
    config = compose(name, hydra_config=True)
    assert config.output == config.hydra.run.dir
    assert config.output.startswith(f"outputs/{name}/20")
    for number in range(2):
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.mode = RunMode.MULTIRUN
        config.hydra.runtime.output_dir = str(tmp_path / str(number))
        HydraConfig.instance().set_config(config)
        assert config.output == str(tmp_path / str(number))
        check_output(config.output)
    with pytest.raises(RunFolderError, match=r"all jobs .* give hydra\.sweep\.dir=mine instead"):
        check_output("mine")


@pytest.mark.parametrize("name", ["analyze", "evaluate", "route"])
@pytest.mark.parametrize("override", ["recipe=detr", "+recipe.lr=3", "losses=detr", "augmentation=none"])
def test_commands_that_do_not_train_take_no_settings_of_training(name: str, override: str) -> None:
    """They have the groups only because data presets may override them; a value would change nothing."""
    with pytest.raises(ConfigCompositionException, match=rf"anydepth-{name} does not train, so leave out"):
        compose(name, ["paths.output_dir=out", override])


def _keys(node: object, prefix: str = "") -> set[str]:
    """Keys of plain containers, written with dots; what ``_target_`` takes is checked elsewhere."""
    if not isinstance(node, Mapping) or (prefix and "_target_" in node):
        return set()
    return {f"{prefix}{name}" for name in node}.union(
        *(_keys(value, f"{prefix}{name}.") for name, value in node.items())
    )


def _added_keys(changed: Mapping[str, Any], base: Mapping[str, Any]) -> set[str]:
    """Keys that a configuration has and its base has not."""
    return _keys(changed) - _keys(base)


@pytest.mark.parametrize("name", option_names("experiment"))
def test_experiments_set_only_what_is_there(name: str) -> None:
    """A misspelled key in a file of ours is no error to Hydra: it would be added, and change nothing."""
    config = resolve_config(composed(f"experiment={name}", *NEEDED))
    assert _added_keys(config, resolve_config(composed())) == set()


@pytest.mark.parametrize("group", ["ablation", "debug", "recipe/study"])
def test_groups_of_settings_set_only_what_is_there(group: str) -> None:
    base = resolve_config(composed())
    for name in [name for name in option_names(group) if not name.startswith("_")]:
        assert _added_keys(resolve_config(composed(f"{group}={name}")), base) == set(), name


def test_a_misspelled_key_of_an_experiment_is_found() -> None:
    """The check itself; keys of nodes are checked where they are composed."""
    assert _added_keys(resolve_config(composed("+depthss=1")), resolve_config(composed())) == {"depthss"}
    for node in ("curve", "validation", "multi_scale", "paths", "data", "trainer", "recipe", "detector"):
        with pytest.raises(ConfigCompositionException, match=rf"{node}\.depthss: this setting is unknown"):
            composed(f"+{node}.depthss=1")
    with pytest.raises(ConfigCompositionException, match=r"got callbacks\.depthss=1, expected settings"):
        composed("+callbacks.depthss=1")


def test_a_setting_that_the_code_does_not_take_is_found() -> None:
    """The check itself: a misspelled key in a file, also where a target takes keywords, and a target gone."""
    data = resolve_config(composed())["data"]
    check_targets(data)
    with pytest.raises(AssertionError, match="batch_sice"):
        check_targets({**data, "batch_sice": 3})
    with pytest.raises(AssertionError, match="decai"):
        check_targets(
            {"_target_": "anydepth.training.callbacks.ema.WeightAveraging", "decai": 0.9, "warmup_steps": 1}
        )
    with pytest.raises(Exception, match="gone"):
        check_targets({"_target_": "anydepth.training.callbacks.ema.gone"})


@pytest.mark.parametrize("name", option_names("depth_schedule"))
def test_depth_schedules_can_be_built(name: str) -> None:
    config = composed(f"depth_schedule={name}")
    schedule = instantiate(config.depth_schedule)
    assert isinstance(schedule, DepthSchedule)
    # A network of one trained depth is skipped with the norms that it trained.
    assert config.detector.switchable_norms == (len(schedule.depths) + schedule.random_points > 1)


@pytest.mark.parametrize("name", option_names("recipe"))
def test_recipes_can_be_built(name: str) -> None:
    config = composed(f"recipe={name}")
    recipe = instantiate(config.recipe)
    assert isinstance(recipe, Recipe)
    assert config.trainer.gradient_clip_val == recipe.clip_norm
    assert config.callbacks.averaging.decay == recipe.ema_decay


@pytest.mark.parametrize("name", option_names("losses"))
def test_objectives_can_be_built(name: str) -> None:
    assert isinstance(instantiate(composed(f"losses={name}").losses), Objective)


def test_coco_on_eight_gpus_takes_the_published_recipe() -> None:
    """Spec 3.4: AdamW 1e-4, backbone 1e-5, decay 1e-4, constant, 72 epochs, clip 0.1, EMA 0.9999, SyncBN."""
    config = composed("data=coco", "data.root=x", "detector=detr_r50", "trainer=ddp", "trainer.devices=8")
    assert (config.recipe.lr, config.recipe.backbone_lr, config.recipe.weight_decay) == (1e-4, 1e-5, 1e-4)
    assert (config.recipe.schedule, config.recipe.warmup_steps) == ("constant", 0)
    assert (config.trainer.max_epochs, config.trainer.gradient_clip_val) == (72, 0.1)
    assert (config.recipe.ema_decay, config.recipe.ema_warmup_steps) == (0.9999, 2000)
    assert (config.trainer.devices, config.trainer.strategy, config.trainer.sync_batchnorm) == (
        8,
        "ddp",
        True,
    )
    assert config.data.batch_size * config.trainer.devices == 16
    # Spec 3.5: 640 three times.
    assert sorted(config.recipe.multi_scale_sizes) == sorted([*range(480, 801, 32), 640, 640])
    assert config.data.input_size == [640, 640]
    assert config.recipe.minutes is None


def test_the_recipe_follows_the_data_unless_one_is_chosen() -> None:
    # The published recipe trains at a constant learning rate, the small one with a cosine.
    assert composed("data=custom", "data.root=x").recipe.schedule == "cosine"
    assert composed("data=custom", "data.root=x", "recipe=detr").recipe.schedule == "constant"
    assert composed("data=coco", "data.root=x").recipe.schedule == "constant"
    assert composed("data=coco", "data.root=x", "recipe.lr=3e-4").recipe.lr == 3e-4


@pytest.mark.parametrize("detector", ["detr_tiny", "yolo_tiny"])
@pytest.mark.parametrize("data", ["sample", "bccd", "coco", "custom"])
def test_default_recipes_count_epochs(detector: str, data: str) -> None:
    """The same command gives the same result on a slow machine and on a fast one."""
    root = () if data in ("sample", "bccd") else ("data.root=x",)
    recipe = composed(f"detector={detector}", f"data={data}", *root).recipe
    assert recipe.minutes is None
    assert recipe.epochs >= 48


@pytest.mark.parametrize("suffix", ["", "_small"])
def test_the_recipe_of_a_conversion_follows_the_family(suffix: str) -> None:
    for detector, family in (("detr_tiny", "detr"), ("yolo_tiny", "yolo")):
        chosen = composed(f"detector={detector}", f"recipe=convert{suffix}")
        assert (chosen.convert, chosen.recipe.minutes) == (True, None)
        assert chosen.recipe == composed(f"detector={detector}", f"recipe=convert/{family}{suffix}").recipe
        assert chosen.recipe.skip_lr > chosen.recipe.lr
    assert composed().convert is False


@pytest.mark.parametrize(
    "override",
    [
        "nothing=1",
        *(
            f"{node}.nothing=1"
            for node in (
                *(
                    "callbacks.best",
                    "curve",
                    "data",
                    "data.augmentation",
                    "data.root",
                    "depth_schedule",
                    "detector",
                ),
                *("losses", "logger.csv", "multi_scale", "recipe", "paths", "trainer", "validation"),
            )
        ),
        "detector.stemm=deep",
        "ablation.nothing=1",
        "experiment.nothing=1",
    ],
)
def test_an_unknown_key_is_an_error(override: str) -> None:
    with pytest.raises(ConfigCompositionException, match=f"Could not override '{override.split('=')[0]}'"):
        composed(override)


def test_an_unknown_option_lists_the_options() -> None:
    with pytest.raises(Exception, match=re.compile("detr_r5'.*detr_r50", re.DOTALL)):
        composed("detector=detr_r5")


def test_a_callback_can_be_left_out(compose_run: Callable[..., DictConfig], tmp_path: Path) -> None:
    assert compose_run(tmp_path, "callbacks.averaging=null").callbacks.averaging is None


@pytest.mark.parametrize(
    ("detector", "data"),
    [
        *((name, "coco") for name in option_names("detector") if not name.startswith("_")),
        *((name, data) for name in ("detr_tiny", "yolo_tiny") for data in ("sample", "custom")),
    ],
)
def test_losses_and_recipe_are_those_of_the_detectors_family(detector: str, data: str) -> None:
    config = composed(f"detector={detector}", f"data={data}")
    family = "yolo" if detector.startswith("yolo") else "detr"
    assert config.detector._target_.startswith(f"anydepth.{family}.")
    assert config.losses._target_ == f"anydepth.{family}.objective.{family.capitalize()}Objective"
    published = {"detr": "AdamWRecipe", "yolo": "SGDRecipe"}[family]
    recipe = published if data == "coco" else "AdamWRecipe"
    assert config.recipe._target_ == f"anydepth.training.recipes.{recipe}"


def test_the_losses_of_a_family_can_be_chosen() -> None:
    config = composed("detector=yolo_tiny", "losses=yolo_none", "recipe=yolo")
    assert config.losses.alpha == 1
    # Specification 3.5: SGD 0.01 to 0.0001, momentum 0.937, decay 5e-4, 600 epochs, 256 images, clip 10.
    assert (config.recipe.lr, config.recipe.final_lr, config.recipe.momentum) == (0.01, 0.01, 0.937)
    assert (config.recipe.weight_decay, config.recipe.nominal_batch) == (5e-4, 256)
    assert (config.recipe.epochs, config.recipe.clip_norm, config.recipe.schedule) == (600, 10, "linear")
