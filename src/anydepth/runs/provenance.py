"""Provenance of the results in a run folder: command, settings, versions and code to repeat them."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig

from anydepth.config import compose
from anydepth.config.compose import config_places
from anydepth.runs.identity import is_resumed, result_hash
from anydepth.utils.files import atomic_path, write_text

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
PATCH = "uncommitted.patch"

_LARGEST_PATCH = 2_000_000
"""Largest patch in bytes. A larger difference is generated files, not work in progress."""

_VERSIONS_OF = (
    "anydepth",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "hydra-submitit-launcher",
    "submitit",
    "hydra-optuna-sweeper",
    "optuna",
    "numpy",
    "scipy",
    "pillow",
    "av",
    "pycocotools",
    "hotcoco",
    "litdata",
    "safetensors",
    "wandb",
    "plotly",
    "matplotlib",
)


def describe(
    *, command: str, overrides: Sequence[str], seed: int | None, config_hash: str, repository: Path
) -> dict[str, Any]:
    """Describe a run when it starts: time, command, versions, platform, and the commit of a clone.

    Args:
        command: Shell command that repeats the run in ``directory``.
        overrides: Settings from the command line.
        seed: Seed of the run; None for a run without random numbers.
        config_hash: Fingerprint of the settings that decide the result.
        repository: Clone that this package runs from, if it is one.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "directory": str(Path.cwd()),
        "overrides": list(overrides),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_state(repository),
        "seed": seed,
        "config_hash": config_hash,
    }


def versions() -> dict[str, str]:
    """Return the versions of installed packages that results may depend on, those of the first call."""
    return dict(_versions())


@cache  # Python reads the whole description of a package for its version.
def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(
    folder: Path,
    config: Mapping[str, Any],
    description: Mapping[str, Any],
    repository: Path,
    *,
    resumed: bool = False,
) -> None:
    """Write ``config.yaml``, ``provenance.json``, and ``uncommitted.patch`` if the clone is modified.

    Args:
        folder: Folder of the run; created if needed.
        config: Resolved settings as plain containers.
        description: Description that :func:`describe` returned.
        repository: Clone that this package runs from, if it is one.
        resumed: Whether the run in the folder is resumed. If so, ``history`` of the record lists the earlier
            parts, oldest first, and their patches are kept as ``uncommitted.N.patch``.
    """
    former = read(folder) if resumed else None
    if former is not None:
        description = {**description, "history": _history(folder, former, description)}
    write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    git = description["git"]
    patch = uncommitted(repository) if git and (git["changed"] or git["new_files"]) else None
    if patch is None:
        (folder / PATCH).unlink(missing_ok=True)
    else:
        with atomic_path(folder / PATCH) as partial:
            partial.write_bytes(patch)
    write_text(folder / PROVENANCE, json.dumps(description, indent=2) + "\n")


def _history(folder: Path, former: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the earlier parts of a run: time, commit, device, and the versions that changed since."""
    parts = list(former.get("history", []))
    git, versions_now = former.get("git") or {}, now["versions"]
    part = {
        "time": former.get("time"),
        "commit": git.get("commit"),
        "changed": git.get("changed"),
        "device": former.get("device"),
        "versions": {
            name: version
            for name, version in former.get("versions", {}).items()
            if version != versions_now.get(name)
        },
    }
    if (folder / PATCH).is_file():
        name = f"uncommitted.{len(parts) + 1}.patch"
        (folder / PATCH).replace(folder / name)
        part["patch"] = name
    return [*parts, part]


def complete(folder: Path, **parts: object) -> None:
    """Add entries that are known only later, e.g. ``data`` and ``device``, to ``provenance.json``."""
    path = folder / PROVENANCE
    written = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**written, **parts}, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any] | None:
    """Read ``provenance.json`` of a run folder; return None if it is missing or incomplete."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def git_state(repository: Path) -> dict[str, Any] | None:
    """Return the commit, whether tracked files differ from it, and new files of code or configuration.

    Returns:
        None outside a clone or without git.
    """
    if not (repository / ".git").exists():
        return None
    try:
        commit = _git(repository, "rev-parse", "HEAD").decode().strip()
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no")
        new = _git(repository, "ls-files", "--others", "--exclude-standard", "--", "src", "conf")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed), "new_files": new.decode().splitlines()[:100]}


def uncommitted(repository: Path) -> bytes | None:
    """Return the patch for ``git apply`` from the commit to the current files, or None if git fails.

    It includes new files below ``src`` and ``conf``, but no others.
    """
    try:
        patch = _patch(repository)
    except (OSError, subprocess.SubprocessError):
        return None
    if len(patch) <= _LARGEST_PATCH:
        return patch
    note = f"\n[cut: these are {_LARGEST_PATCH} of {len(patch)} bytes, which git cannot apply]\n"
    return patch[:_LARGEST_PATCH] + note.encode()


def _patch(repository: Path) -> bytes:
    # Options that override the user's settings, which may colour a patch or remove its prefixes.
    plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    new = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", "--", "src", "conf")
    if not new:
        return _git(repository, "diff", "HEAD", *plain)
    with tempfile.TemporaryDirectory() as folder:
        # Git compares new files only once an index lists them; a copy leaves the clone's own index unchanged.
        index = Path(folder) / "index"
        own = repository / _git(repository, "rev-parse", "--git-path", "index").decode().strip()
        shutil.copyfile(own, index)
        names = [name.decode("utf-8", "surrogateescape") for name in new.split(b"\0") if name]
        for first in range(0, len(names), 500):
            _git(repository, "add", "-N", "--", *names[first : first + 500], index=index)
        return _git(repository, "diff", "HEAD", *plain, index=index)


def _git(repository: Path, *arguments: str, index: Path | None = None) -> bytes:
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "GIT_INDEX_FILE": str(index)} if index else None,
    )
    return done.stdout


def write_provenance(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Write the provenance of this run into its folder, creating it if needed.

    The record of a resumed run keeps a history of its earlier parts.
    """
    repository = compose.PACKAGE_DIR.parent.parent
    command, overrides = _command()
    description = describe(
        command=command,
        overrides=overrides,
        seed=config.get("seed"),
        config_hash=result_hash(config),
        repository=repository,
    )
    write(Path(folder), config, description, repository, resumed=is_resumed(config))


def _command() -> tuple[str, list[str]]:
    """Return the command line that repeats this run, or this job of a sweep alone, and its settings."""
    if not HydraConfig.initialized():
        return shlex.join(sys.argv), []
    hydra_config = HydraConfig.get()
    overrides = [str(text) for text in hydra_config.overrides.task]
    program = f"anydepth-{hydra_config.job.name}"
    hydra_overrides = _relevant_hydra_overrides(hydra_config)
    return shlex.join([program, *_flags(hydra_config), *overrides, *hydra_overrides]), overrides


def _flags(hydra_config: Any) -> list[str]:
    """Return the options that selected other configuration files than those of the entry point."""
    places = {source.provider: str(source.path) for source in hydra_config.runtime.config_sources}
    flags = []
    if places.get("main", "") not in ("", *map(str, config_places())):
        flags.append(f"--config-path={places['main']}")
    if "command-line" in places:
        flags.append(f"--config-dir={places['command-line']}")
    name = hydra_config.job.config_name
    return flags if name in (None, hydra_config.job.name) else [*flags, f"--config-name={name}"]


def _relevant_hydra_overrides(hydra_config: Any) -> list[str]:
    """Return Hydra's overrides that a run depends on: neither its folder nor how it was launched."""
    ignored = ("run", "sweep", "launcher", "sweeper", "mode")
    return [
        str(text)
        for text in hydra_config.overrides.hydra
        if re.split(r"[./@=]", str(text).lstrip("+~"))[1] not in ignored
    ]
