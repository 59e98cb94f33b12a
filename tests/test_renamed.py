"""Old names of groups and keys end with the new name, wherever they are given; the new names exist."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from anydepth.config.compose import compose, config_dir
from anydepth.config.renamed import RENAMED, RenamedKeyError, check_groups, check_overrides, new_name
from config_checks import composed


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lr=3", "give recipe.lr=3"),
        ("++optim.lr=3", r"give \+\+recipe.lr=3"),
        ("optim=detr", "give recipe=detr"),
        ("distillation=detr_none", "give losses=detr_none"),
        ("distillation.kd_neck_weight=0", "give losses.distillation.neck_weight=0"),
        ("distillation.l1_weight=0", "give losses.criterion.l1_weight=0"),
        ("callbacks.budget=null", "give callbacks.time_limit=null"),
        ("sweep=losses", "sweep is called experiment now"),
        ("length=bccd", "give recipe/study=bccd"),
        ("recipe=bccd", "dataset_kind"),
        ("recipe=detr_bccd", "give recipe=default/detr_bccd"),
        ("augmentation=yolo_custom", "give augmentation=default/yolo_custom"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(override: str, told: str) -> None:
    with pytest.raises(ConfigCompositionException, match=told):
        compose("train", [override, "paths.output_dir=out"])


@pytest.mark.parametrize(
    "override", ["recipe.lr=3", "recipe=detr", "augmentation=yolo_n", "~callbacks.last", "x="]
)
def test_other_overrides_are_left_alone(override: str) -> None:
    check_overrides([override])


def test_every_new_name_exists() -> None:
    """In the configuration of one of the families, or as a group."""
    settings = [composed(f"detector={family}_tiny") for family in ("detr", "yolo")]
    assert len(RENAMED) > 30
    for new in RENAMED.values():
        is_group = (config_dir() / new).is_dir()
        assert is_group or any(OmegaConf.select(config, new) is not None for config in settings), new


def test_keys_are_renamed_as_a_whole_only() -> None:
    assert new_name("optimizer.lr") is None
    assert new_name("optim") == "recipe"
    assert new_name("distillation.alpha") == "losses.alpha"


def test_a_file_with_old_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    header = "# @package _global_\n"
    (tmp_path / "experiment" / "group.yaml").write_text(header + "defaults: [{override /optim: detr}]\n")
    (tmp_path / "experiment" / "node.yaml").write_text(header + "optim: {lr: 3}\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    with pytest.raises(ConfigCompositionException, match="optim is called recipe now"):
        compose("train", [search, "experiment=group", "paths.output_dir=out"])
    with pytest.raises(ConfigCompositionException, match="has a group optim, which is called recipe now"):
        compose("train", [search, "experiment=node", "paths.output_dir=out"])
    with pytest.raises(RenamedKeyError, match="distillation, which is called losses"):
        check_groups({"seed": 0, "distillation": {}})
