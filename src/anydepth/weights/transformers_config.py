"""``config.json``, the description that transformers writes beside the weights of a network."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from anydepth.utils.messages import short_repr

CONFIG: Final = "config.json"
_MAX_BYTES: Final = 1 << 20  # That of a published network has about five kilobytes.
# What transformers calls the classes of a network whose classes nobody named.
_UNNAMED: Final = re.compile(r"LABEL_\d+")


class ConfigError(ValueError):
    """A damaged description in a folder of weights; the message names it."""


def read_config(path: Path) -> dict[str, Any]:
    """Return the description of an RT-DETR of transformers.

    Args:
        path: Folder of weights, or a file in it.

    Returns:
        The description; empty if there is none, or it is of something else.

    Raises:
        ConfigError: ``path`` is a folder whose description cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / CONFIG
    try:
        if file.stat().st_size > _MAX_BYTES:
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        if not path.is_dir():
            return {}  # A file of something else may lie beside the weights.
        raise ConfigError(f"{file}: cannot be read ({short_repr(str(error))}); copy it again") from error
    known = isinstance(found, dict) and str(found.get("model_type", "")).startswith("rt_detr")
    return found if known else {}


def read_class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in a description, in the order of the network's outputs; empty if unknown."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        return ()
    names = tuple(str(labels.get(str(index), "")) for index in range(len(labels)))
    # A gap in the numbers leaves a class without a name, and one behind the last.
    unnamed = "" in names or all(_UNNAMED.fullmatch(name) for name in names)
    return () if unnamed or len(set(names)) != len(names) else names
