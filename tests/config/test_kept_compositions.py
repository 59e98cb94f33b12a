"""Configurations composed of what the tests keep are those of Hydra, and share nothing."""

from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from anydepth.config.compose import compose
from kept_compositions import hydra_alone, kept_compositions

CHOICES = (
    ("train", ()),
    ("train", ("detector=yolo_tiny", "recipe.lr=0.5", "+remark=a", "callbacks.averaging=null")),
    ("train", ("experiment=ablation", "hydra/launcher=local_jobs", "~logger.csv")),
    ("predict", ("weights=a", "source=b")),
)


def _composed(command: str, overrides: tuple[str, ...]) -> DictConfig:
    return compose(command, ["paths.output_dir=out", *overrides], hydra_config=True)


def _written(config: DictConfig) -> str:
    # hydra.callbacks is merged from Hydra's schema of dataclasses: their types are part of a configuration.
    types = [str(OmegaConf.get_type(config, "hydra")), str(OmegaConf.get_type(config.hydra, "job"))]
    flags = [str(OmegaConf.is_struct(config)), str(OmegaConf.is_readonly(config.hydra))]
    return "\n".join([OmegaConf.to_yaml(config), *types, *flags])


@pytest.mark.parametrize(("command", "overrides"), CHOICES)
def test_what_is_kept_composes_to_what_hydra_composes(command: str, overrides: tuple[str, ...]) -> None:
    with hydra_alone():
        expected = _written(_composed(command, overrides))
    with kept_compositions():
        first, second = (_composed(command, overrides) for _ in range(2))
        assert _written(first) == _written(second) == expected
        OmegaConf.set_readonly(first.hydra, False)
        first.hydra.job.name = "changed"
        assert _written(second) == _written(_composed(command, overrides)) == expected


def test_values_and_options_are_those_of_each_command_line() -> None:
    with kept_compositions():
        assert _composed("train", ("recipe.lr=0.5",)).recipe.lr == 0.5
        assert _composed("train", ("recipe.lr=0.25",)).recipe.lr == 0.25
        assert _composed("train", ("recipe.lr=0.25", "detector=yolo_tiny")).detector_name == "yolo_tiny"
        assert _composed("train", ("recipe.lr=0.25",)).detector_name == "detr_tiny"


def test_files_of_others_are_read_each_time(tmp_path: Path) -> None:
    preset = tmp_path / "detector" / "mine.yaml"
    preset.parent.mkdir()
    overrides = (f"hydra.searchpath=[file://{tmp_path}]", "detector=mine")
    with kept_compositions():
        for hidden in (64, 32):
            preset.write_text(f"defaults: [detr_tiny, _self_]\n\nhidden_dim: {hidden}\n")
            assert _composed("train", overrides).detector.hidden_dim == hidden
        preset.unlink()
        with pytest.raises(MissingConfigException, match="mine"):
            _composed("train", overrides)
