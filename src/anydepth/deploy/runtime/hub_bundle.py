"""Bundles of the Hugging Face hub: downloaded once, and laid out as a folder of ordinary files.

And what a command means that takes a bundle as well as weights.
"""

import os
import shutil
import threading
from pathlib import Path
from typing import Final

from anydepth import hub
from anydepth.deploy.runtime.bundle import CARD, DESCRIPTION, GRAPH_SUFFIXES, Bundle, read_bundle
from anydepth.utils.files import atomic_path

# Engines that run weights.
_PYTORCH: Final = ("torch", "eager", "compile")
# What engines read; anything else in a repository stays there.
_SUFFIXES: Final = (*GRAPH_SUFFIXES.values(), ".bin")
# Threads of a process share the hidden names of unfinished files.
_LAYING_OUT: Final = threading.Lock()


def find_bundle(
    path: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Return the folder of a bundle, which is downloaded if it lies in a repository.

    The description is read and checked before anything that it names is downloaded. The folder holds hard
    links to the downloads, or copies where there are none: OpenVINO refuses weights behind a symbolic link,
    as the cache of ``huggingface_hub`` has them. What ``anydepth-benchmark`` writes into it stays.

    Args:
        path: A local folder, which wins, or the name of a repository.
        revision: Branch, tag or commit; None: the main branch.
        cache_dir: Folder for downloads; None: that of ``huggingface_hub``.

    Raises:
        ValueError: A revision or folder for downloads of a local path.
        HubError: The repository cannot be read, or holds no bundle.
        BundleError: Its description is damaged, of another version or not allowed.
    """
    if not hub.is_repository(path):
        hub.check_local(path, revision, cache_dir)
        return Path(path)
    name = str(path)
    described = hub.find_file(name, DESCRIPTION, revision=revision, cache_dir=cache_dir)
    files = _needed(read_bundle(described.parent))
    # In the cache, files of a commit lie in a folder of its name: later ones cannot come from a newer commit.
    commit = described.parent.name
    downloads = hub.download(name, files, commit=commit, cache_dir=cache_dir)
    folder = hub.own_folder(name, commit, cache_dir)
    with _LAYING_OUT:
        for file in (*files, DESCRIPTION):
            _lay_out(downloads / file, folder / file)
    return folder


def find_weights_or_bundle(given: str | Path, engine: str) -> Path:
    """Return the file of weights or the folder of a bundle that a command got, of which each will do.

    A folder or repository may hold both, as ``anydepth-export hub=...`` publishes them.

    Args:
        given: File of weights, folder of a training run or of a bundle, which win; or the name of a
            repository.
        engine: Engine that was asked for; one of PyTorch prefers weights, any other the bundle.

    Raises:
        FileNotFoundError: A folder that holds neither.
        HubError: The repository cannot be read, or holds neither.
        BundleError: The description of a bundle in it is damaged, of another version or not allowed.
    """
    names = (hub.WEIGHTS, DESCRIPTION) if engine in _PYTORCH else (DESCRIPTION, hub.WEIGHTS)
    if not hub.is_repository(given):
        inside = [Path(given) / name for name in names]
        found = next((path for path in inside if path.is_file()), Path(given))
        if found.is_dir():
            raise FileNotFoundError(
                f"{given}: a folder with neither {DESCRIPTION}, as anydepth-export writes it, nor "
                f"{hub.WEIGHTS}, which a training writes when it ends; give one with either, or a file of "
                "weights"
            )
        return found.parent if found.name == DESCRIPTION else found
    for name in names:
        try:
            return find_bundle(given) if name == DESCRIPTION else hub.find_file(given, name)
        except hub.MissingFileError:
            continue
    raise hub.MissingFileError(
        f"{given}: no such local path, and the repository of the Hugging Face hub holds neither "
        f"{hub.WEIGHTS} nor {DESCRIPTION}; give another one"
    )


def _needed(bundle: Bundle) -> list[str]:
    return [name for name in bundle.files if name.endswith(_SUFFIXES) or name == CARD]


def _lay_out(source: Path, target: Path) -> None:
    """Put an ordinary file in place, unless it is there; one that the repository lacks is left out."""
    if target.exists() or not source.exists():
        return
    with atomic_path(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), partial)
        except OSError:  # Another disk, or a file system without links.
            shutil.copyfile(source, partial)
