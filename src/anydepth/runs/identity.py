"""Identity of runs: fingerprints of the settings that decide a result."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anydepth.config.key_effects import effect_of


def config_hash(config: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> str:
    """Return a fingerprint of a plain configuration, equal in every process that trains the same thing.

    Args:
        config: Configuration that :func:`anydepth.config.compose.resolve_config` returned.
        ignore: Top-level keys that may differ, e.g. the output folder.
    """
    kept = {key: value for key, value in config.items() if key not in ignore}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def result_hash(config: Mapping[str, Any]) -> str:
    """Return a fingerprint of the settings that decide the result of a run, wherever it is written.

    Args:
        config: Configuration that :func:`anydepth.config.compose.resolve_config` returned.
    """
    folder = (config.get("paths") or {}).get("output_dir")
    return config_hash(_relevant_settings(config, folder))


def _relevant_settings(value: Any, folder: str | None, key: str = "") -> Any:
    """Remove settings without effect on the result, and the run's own folder from file paths."""
    if isinstance(value, Mapping):
        inner = {name: f"{key}.{name}" if key else str(name) for name in value}
        return {
            name: _relevant_settings(item, folder, inner[name])
            for name, item in value.items()
            if effect_of(inner[name]) != "nothing"
        }
    if isinstance(value, list):
        return [_relevant_settings(item, folder, key) for item in value]
    return value.replace(folder, "RUN") if folder and isinstance(value, str) else value


def is_resumed(config: Mapping[str, Any]) -> bool:
    """Return whether a run resumes from a checkpoint in its own folder.

    Args:
        config: Configuration that :func:`anydepth.config.compose.resolve_config` returned.
    """
    checkpoint, folder = config.get("ckpt_path"), (config.get("paths") or {}).get("output_dir")
    if not checkpoint or not folder:
        return False
    return Path(checkpoint).resolve().is_relative_to(Path(folder).resolve())
