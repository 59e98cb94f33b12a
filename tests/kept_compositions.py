"""Compositions that the tests keep: Hydra reads and merges the shipped files once for each choice of options.

It would do so again for every configuration, which takes most of its time, and the tests compose some
thousand configurations of a few hundred choices. What is kept is a pickle, so that no two configurations
share a node. Values on the command line and all checks of the package are applied each time, and a
configuration with files of a test or of another package is composed by Hydra alone.
"""

import dataclasses
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra._internal.config_loader_impl as loader
import hydra._internal.defaults_list as defaults_list
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from anydepth.config.compose import config_dir

# What takes the time, as Hydra has it.
_READ = FileConfigSource.load_config
_CHOOSE = loader.create_defaults_list
_CHOSEN_SO_FAR = defaults_list._create_interpolation_map
_PLACE = loader.ConfigLoaderImpl._load_single_config
_MERGE = loader.ConfigLoaderImpl._compose_config_from_defaults_list


@contextmanager
def kept_compositions() -> Iterator[None]:
    """Within the block, what Hydra made of the shipped files is used again."""
    kept: dict[object, bytes] = {}

    def read(source: FileConfigSource, config_path: str) -> ConfigResult:
        if source.path != str(config_dir()):
            return _READ(source, config_path)
        if config_path not in kept:
            kept[config_path] = pickle.dumps(_READ(source, config_path))
        result: ConfigResult = pickle.loads(kept[config_path])
        return dataclasses.replace(result, provider=source.provider)

    def choose(
        repo: Any, config_name: str | None, overrides_list: list[Override], **settings: bool
    ) -> DefaultsList:
        places = _shipped_places(repo)
        if places is None:
            return _CHOOSE(repo, config_name, overrides_list, **settings)
        overrides = Overrides(repo=repo, overrides_list=overrides_list)
        values = {id(override) for override in overrides.config_overrides}
        options = [override.input_line for override in overrides_list if id(override) not in values]
        key = (places, config_name, *options, *settings.items())
        if key not in kept:
            made = _CHOOSE(repo, config_name, overrides_list, **settings)
            kept[key] = pickle.dumps((made.defaults, made.defaults_tree, made.overrides.known_choices))
        defaults, tree, overrides.known_choices = pickle.loads(kept[key])
        return DefaultsList(defaults, tree, overrides.config_overrides, overrides)

    def chosen_so_far(overrides: Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig:
        # Read by interpolations alone, of which the shipped files have few.
        if any(default.is_interpolation() for default in defaults):
            return _CHOSEN_SO_FAR(overrides, defaults, self_added)
        return OmegaConf.create()

    def place(config_loader: Any, default: ResultDefault, repo: Any) -> ConfigResult:
        places = _shipped_places(repo)
        if places is None:
            return _PLACE(config_loader, default, repo)
        key = (places, "one", repr(default))
        if key not in kept:
            kept[key] = pickle.dumps(_PLACE(config_loader, default, repo))
        result: ConfigResult = pickle.loads(kept[key])
        return result

    def merge(config_loader: Any, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        places = _shipped_places(repo)
        if places is None:
            return _MERGE(config_loader, defaults, repo)
        key = (places, repr(defaults))
        if key not in kept:
            kept[key] = pickle.dumps(_MERGE(config_loader, defaults, repo))
        config: DictConfig = pickle.loads(kept[key])
        return config

    with _installed(read, choose, chosen_so_far, place, merge):
        yield


@contextmanager
def hydra_alone() -> Iterator[None]:
    """Within the block, nothing is kept and nothing that was is used."""
    with _installed(_READ, _CHOOSE, _CHOSEN_SO_FAR, _PLACE, _MERGE):
        yield


@contextmanager
def _installed(*functions: Any) -> Iterator[None]:
    places: tuple[tuple[Any, str], ...] = (
        (FileConfigSource, "load_config"),
        (loader, "create_defaults_list"),
        (defaults_list, "_create_interpolation_map"),
        (loader.ConfigLoaderImpl, "_load_single_config"),
        (loader.ConfigLoaderImpl, "_compose_config_from_defaults_list"),
    )
    former = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, functions, strict=True):
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name), function in zip(places, former, strict=True):
            setattr(owner, name, function)


def _shipped_places(repo: Any) -> tuple[str, ...] | None:
    """Return where Hydra looks for options; None if files that are not shipped are among them."""
    places = tuple(f"{source.scheme()}://{source.path}" for source in repo.get_sources())
    files = [place for place in places if place.startswith("file://")]
    return places if files == [f"file://{config_dir()}"] else None
