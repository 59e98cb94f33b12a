"""Read checkpoint files of any origin into one flat state dict, without running code from them."""

import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from anydepth import hub
from anydepth.utils.messages import short_repr
from anydepth.weights.pickles import ForeignPickleError, UnsafePickleError, load_foreign
from anydepth.weights.transformers_config import CONFIG, ConfigError, read_class_names, read_config

# Entries of a checkpoint that may hold its weights, best first: averaged weights are what authors evaluated.
_CONTAINERS = (("ema", "module"), ("ema",), ("model",), ("state_dict",), ("module",))
# Files that a folder of weights may hold, best first.
_FOLDER_FILES = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
# Those of them that transformers writes, which a description lies beside.
_TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
# Prefixes that wrappers add to every key: DistributedDataParallel, torch.compile, our Lightning module.
_WRAPPERS = ("module.", "_orig_mod.", "detector.")
# Characters; keys of the networks known here are about a hundred long.
_MAX_KEY_LENGTH = 1000
# Size of a tensor whose strides repeat its numbers (256 MiB): a copy of a larger one could fill any memory.
_MAX_EXPANDED_BYTES = 1 << 28
# Characters of another library's error that a message quotes: enough for its first sentence.
_MAX_REASON_LENGTH = 300


class UnsafeArchiveError(ValueError):
    """An archive that would be unpacked on disk or to more than its own size; the message is the reason."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names them and says what to change."""


@dataclass(frozen=True)
class StateDict:
    """Tensors of a checkpoint under their own names.

    Attributes:
        tensors: Tensors by key, without the prefixes of wrappers.
        origin: File and entry they came from, for messages.
        class_names: Class names of the detector they belong to; empty if the file does not name them.
    """

    tensors: Mapping[str, Tensor]
    origin: str
    class_names: tuple[str, ...] = ()


def locate(source: str | Path) -> Path:
    """Return the local path of weights, which are downloaded if they lie in a repository of the hub.

    Args:
        source: A local file or folder, which wins; or as a text the name ``OWNER/NAME`` of a repository of
            the Hugging Face hub (extra ``hub``).

    Returns:
        The local path; of a repository the folder that holds its file of weights, with the description of
        transformers if it has one.

    Raises:
        HubError: The repository cannot be read, or holds no weights under a known name.
    """
    if not hub.is_repository(source):
        return Path(source)
    return hub.find_first(str(source), _FOLDER_FILES, beside=(CONFIG,)).parent


def read_state_dict(source: str | Path | Mapping[str, object]) -> StateDict:
    """Read the weights from a file, a folder, a repository of the hub or a dictionary.

    Args:
        source: A ``.safetensors`` file, a file of ``torch.save``, a folder that holds
            ``model.safetensors``, the name of a repository that does (see :func:`locate`), or the result of
            ``torch.load``: a state dict, or a checkpoint that keeps one under ``ema.module``, ``ema``,
            ``model``, ``state_dict`` or ``module``. A file of ``torch.save`` may hold whole networks there:
            their classes need not be installed, and none of their code is imported or run, see
            :mod:`anydepth.weights.pickles`.

    Raises:
        HubError: A repository that cannot be read, or holds no weights.
        WeightsError: The file does not exist, is truncated or of another format, is a pickle that could run
            code or an archive that unpacks to more than its size, or holds no state dict of plain tensors.
    """
    if isinstance(source, Mapping):
        return _add_class_names(_unwrap(source, "the given dictionary"), source.get("class_names"))
    path = locate(source)
    description = _read_description(path)
    if path.is_dir():
        path = _find_file(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give a checkpoint file or a folder that holds one")
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        contents, metadata = _load_safetensors(path)
    else:
        contents = _load_pickle(path)
    if not isinstance(contents, Mapping):
        raise WeightsError(
            f"{path}: got a {type(contents).__name__}, expected a state dict; save one to this file"
        )
    found = _unwrap(contents, str(path))
    for key, tensor in found.tensors.items():
        # Meta tensors are useful in a dictionary that a program passes, but a file without numbers is not.
        if tensor.device.type == "meta":
            raise WeightsError(_not_plain_message(str(path), key, "has a shape but no numbers"))
    names = _parse_json(metadata.get("class_names")) or contents.get("class_names")
    if names is None and path.name in _TRANSFORMERS_FILES:
        names = read_class_names(description)
    return _add_class_names(found, names)


def check_archive(path: Path) -> None:
    """Check that an archive may come from ``torch.save`` and cannot unpack to any size or place.

    Raises:
        UnsafeArchiveError: Records are compressed, or share bytes of the file, or it is a tar archive.
        zipfile.BadZipFile: The archive is damaged.
    """
    # A file that ends as a zip archive may still begin as a tar archive, which torch tries first.
    _check_not_tar(path)
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UnsafeArchiveError(
            f"its record {short_repr(packed[0])} is compressed, which torch.save never does"
        )
    unpacked = sum(record.file_size for record in records)
    if unpacked > path.stat().st_size:
        raise UnsafeArchiveError(
            f"its records hold {unpacked:,} bytes, but the file only {path.stat().st_size:,}: records overlap"
        )


def _check_not_tar(path: Path) -> None:
    """Check the format, because torch unpacks tar archives to disk before it checks what may be loaded."""
    try:
        # Opened as torch does: uncompressed only, up to the first record.
        tarfile.open(path, mode="r:").close()
    except tarfile.TarError:
        return
    raise UnsafeArchiveError(
        "it is a tar archive, as the first versions of torch wrote, or filled with zeros"
    )


def _find_file(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder}: this folder holds none of {', '.join(_FOLDER_FILES)}; give the file itself"
    )


def _read_description(path: Path) -> Mapping[str, object]:
    try:
        return read_config(path)
    except ConfigError as error:
        raise WeightsError(str(error)) from error


def _add_class_names(found: StateDict, names: object) -> StateDict:
    """Add the class names of a checkpoint, if it has any."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return replace(found, class_names=tuple(names))
    return found


def _parse_json(text: str | None) -> object:
    try:
        return json.loads(text or "null")
    # Too deeply nested, or not JSON: another program may store anything under this name.
    except (ValueError, RecursionError):
        return None


def _load_safetensors(path: Path) -> tuple[object, Mapping[str, str]]:
    """Return the tensors and the metadata of a file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    # Safetensors' own error, or whatever wrong numbers in the header cause.
    except Exception as error:
        raise WeightsError(
            f"{path}: not a complete safetensors file ({error}); if it was truncated, copy it again"
        ) from error


def _load_pickle(path: Path) -> object:
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if zipfile.is_zipfile(path):
            return _load_foreign(path)
        if refused is None:
            raise WeightsError(
                f"{path}: not a file of torch.save; give a checkpoint or safetensors file"
            ) from error
        raise WeightsError(
            f"{_unsafe_message(path, refused[1])}. Networks are read from files of torch 1.6 and newer, "
            "which are zip archives; this one is older"
        ) from error
    # Bytes that are not a pickle of torch's raise anything, depending on the instructions they happen to be.
    except Exception as error:
        reason = str(error).partition(". ")[0][:_MAX_REASON_LENGTH] or f"truncated: {type(error).__name__}"
        raise WeightsError(_unreadable_message(path, reason)) from error


def _load_foreign(path: Path) -> object:
    """Load a checkpoint that holds more than tensors and plain containers, such as whole networks."""
    try:
        return load_foreign(path)
    except UnsafePickleError as error:
        raise WeightsError(_unsafe_message(path, error.wanted)) from error
    except ForeignPickleError as error:
        raise WeightsError(_unreadable_message(path, str(error))) from error


def _unreadable_message(path: Path, reason: str) -> str:
    return f"{path}: cannot be read as a checkpoint ({reason}); if it was truncated, copy it again"


def _unsafe_message(path: Path, wanted: str) -> str:
    return (
        f"{path}: refused, because this pickle requests {wanted} and could run any code. If you trust its "
        "origin, open it once with torch.load(path, weights_only=False) and save only its state dict with "
        "safetensors.torch.save_file"
    )


def _unwrap(contents: Mapping[str, object], origin: str) -> StateDict:
    """Find the state dict inside a checkpoint."""
    for names in _CONTAINERS:
        inner: object = contents
        for name in names:
            inner = inner.get(name) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return _state_dict(inner, f"{origin} ({'.'.join(names)})")
    if not any(isinstance(value, Tensor) for value in contents.values()):
        keys = ", ".join(short_repr(key) for key in list(contents)[:5]) or "none"
        raise WeightsError(
            f"{origin}: holds no state dict; got the entries {keys}, expected tensors under one of "
            f"{', '.join('.'.join(names) for names in _CONTAINERS)} or at the top level"
        )
    return _state_dict(contents, origin)


def _state_dict(contents: Mapping[str, object], origin: str) -> StateDict:
    tensors = _strip_wrappers(contents)
    for key, tensor in tensors.items():
        problem = _find_problem(key, tensor)
        if problem is not None:
            raise WeightsError(_not_plain_message(origin, key, problem))
    return StateDict(tensors, origin)


def _not_plain_message(origin: str, key: str, problem: str) -> str:
    return f"{origin}: its tensor {short_repr(key)} {problem}; save plain weights instead"


def _find_problem(key: str, tensor: Tensor) -> str | None:
    """Return why a tensor cannot be a weight, or None if it can."""
    if len(key) > _MAX_KEY_LENGTH:
        return f"has a name of {len(key):,} characters"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "is sparse, quantised or nested"
    if tensor.is_complex():
        return "holds complex numbers"
    size = tensor.numel() * tensor.element_size()
    if size > max(_MAX_EXPANDED_BYTES, tensor.untyped_storage().nbytes()):
        return f"has the shape {list(tensor.shape)}, which repeats few numbers over {size:,} bytes"
    return None


def _strip_wrappers(contents: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors; if some keys have a wrapper's prefix, only theirs, without the prefix."""
    tensors = {
        key if isinstance(key, str) else short_repr(key): value
        for key, value in contents.items()
        if isinstance(value, Tensor)
    }
    found = True
    while found:
        found = False
        for prefix in _WRAPPERS:
            behind = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            if behind:
                tensors, found = behind, True
    return {key.replace("._orig_mod.", "."): value for key, value in tensors.items()}
