"""``--help`` of the commands that Hydra composes, without what only a run needs."""

import string

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from anydepth.config import presets
from anydepth.config.compose import VERSION_BASE, config_dir, ended_by_closed_pipe
from anydepth.config.errors import readable_errors


def print_help(config_name: str) -> None:
    """Print the help of a command, as Hydra prints it for ``--help`` alone.

    Hydra would list all groups with all options for a placeholder that the text does not have, and the
    command would import PyTorch to check values that nobody changed: ten times the work.

    Args:
        config_name: File of :func:`~anydepth.config.compose.config_dir` without its suffix.

    Raises:
        SystemExit: A preset of an installed package is broken.
    """
    with ended_by_closed_pipe(), readable_errors():
        presets.preset_folders()
        print(_help_of(config_name))


def _help_of(config_name: str) -> str:
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE, job_name=config_name):
            config = hydra.compose(config_name, return_hydra_config=True)
            # The lists of options and settings are interpolations, which look it up.
            HydraConfig.instance().set_config(config)
            template = string.Template(config.hydra.help.template)
            return template.substitute(CONFIG=_values_of(config) if "$CONFIG" in template.template else "")
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def _values_of(config: DictConfig) -> str:
    with open_dict(config):
        own = config.copy()
        del own["hydra"]
    return str(OmegaConf.to_yaml(own))
