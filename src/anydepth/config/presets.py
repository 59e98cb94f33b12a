"""Configuration of other packages: presets that an installed package adds to the groups of ``conf/``.

A package names the folder of its presets with an entry point of the group ``anydepth.presets``, whose value
is the module that holds it, e.g. ``mypackage.conf`` with ``mypackage/conf/detector/mine.yaml`` in it.
"""

from importlib.resources import files
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from anydepth.utils.entry_points import entry_points_of

ENTRY_POINTS = "anydepth.presets"


class PresetError(ValueError):
    """An entry point for presets that leads to no folder."""


def preset_folders() -> tuple[Path, ...]:
    """Return the folders of presets of all installed packages.

    Raises:
        PresetError: An entry point does not lead to a folder with presets.
    """
    folders = []
    for found in entry_points_of(ENTRY_POINTS):
        try:
            folder = Path(str(files(found.value)))
        except (ImportError, TypeError) as error:
            raise PresetError(
                f"entry point {found.name} = {found.value} of {ENTRY_POINTS}: {error}; expected a module in "
                "whose folder the presets lie"
            ) from error
        if not folder.is_dir():
            raise PresetError(
                f"entry point {found.name} = {found.value} of {ENTRY_POINTS}: {folder} is not a folder; "
                "put an empty __init__.py beside the presets, and install the package with its yaml files"
            )
        if not any(folder.rglob("*.yaml")):
            raise PresetError(
                f"entry point {found.name} = {found.value} of {ENTRY_POINTS}: got no yaml file below "
                f"{folder}; install the package with its yaml files (package data)"
            )
        folders.append(folder)
    return tuple(folders)


class PresetSearchPath(SearchPathPlugin):
    """Makes Hydra look for options in the presets of other packages, after those of this one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders of presets."""
        for folder in preset_folders():
            search_path.append("anydepth-presets", f"file://{folder}")


def register() -> None:
    """Make the presets known to Hydra; again changes nothing."""
    Plugins.instance().register(PresetSearchPath)
