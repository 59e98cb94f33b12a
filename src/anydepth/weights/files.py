"""Reading checkpoint files of any origin into one flat state dict, without running code from them."""

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

from anydepth.utils.messages import short_repr
from anydepth.weights.pickles import ForeignPickleError, UnsafePickleError, load_foreign

# Where checkpoints keep their weights, best first: averaged weights are what their authors evaluated.
_CONTAINERS = (("ema", "module"), ("ema",), ("model",), ("state_dict",), ("module",))
# Files that a folder of weights may hold, best first.
_FOLDER_FILES = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
# What wrappers put in front of every key: DistributedDataParallel, torch.compile, our Lightning module.
_WRAPPERS = ("module.", "_orig_mod.", "detector.")
_LONGEST_KEY = 1000  # characters; the networks known here take a hundred
# Of a tensor that shows parts of its numbers many times: more, and a copy of it may fill any memory.
_MOST_REPEATED_BYTES = 1 << 28


class UnsafeArchiveError(ValueError):
    """An archive that would be unpacked on disk or to more than its own size; the message is the reason."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names them and says what to change."""


@dataclass(frozen=True)
class StateDict:
    """Tensors of a checkpoint under their own names.

    Attributes:
        tensors: By key, without the prefixes of wrappers.
        origin: File and entry they came from, for messages.
        class_names: Of the detector that they are of; empty where the file does not say.
    """

    tensors: Mapping[str, Tensor]
    origin: str
    class_names: tuple[str, ...] = ()


def read_state_dict(source: str | Path | Mapping[str, object]) -> StateDict:
    """The weights inside a file, a folder or a dictionary.

    Args:
        source: A ``.safetensors`` file, a file of ``torch.save``, a folder that holds
            ``model.safetensors``, or what ``torch.load`` gave: a state dict, or a checkpoint that keeps one
            under ``ema.module``, ``ema``, ``model``, ``state_dict`` or ``module``. In a file of
            ``torch.save`` whole networks may stand there: their classes need not be installed, and nothing
            of them is imported or run, see :mod:`anydepth.weights.pickles`.

    Raises:
        WeightsError: There is no such file, it is cut short or of another kind, it is a pickle that could run
            code or an archive that unfolds to more than its size, or it holds no state dict of plain tensors.
    """
    if isinstance(source, Mapping):
        return _named(_unwrap(source, "the given dictionary"), source.get("class_names"))
    path = Path(source)
    if path.is_dir():
        path = _file_of(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give a checkpoint file or a folder that holds one")
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        contents, metadata = _load_safetensors(path)
    else:
        contents = _load_pickle(path)
    if not isinstance(contents, Mapping):
        raise WeightsError(f"{path}: holds a {type(contents).__name__}, not a state dict; save one there")
    found = _unwrap(contents, str(path))
    for key, tensor in found.tensors.items():
        # In a dictionary that a program gives it has its uses; a file is there for the numbers.
        if tensor.device.type == "meta":
            raise WeightsError(_not_plain(str(path), key, "has a shape and no numbers"))
    return _named(found, _parsed(metadata.get("class_names")) or contents.get("class_names"))


def refuse_archive(path: Path) -> None:
    """Refuse an archive that ``torch.save`` cannot have written, and that may unfold to any size or place.

    Raises:
        UnsafeArchiveError: Records are compressed, or share bytes of the file, or it is a tar archive.
        zipfile.BadZipFile: The archive is damaged.
    """
    # What has a zip archive's end may still begin as a tar archive, which torch looks at first.
    _refuse_tar(path)
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UnsafeArchiveError(
            f"its record {short_repr(packed[0])} is compressed, which torch.save never does"
        )
    unfolded = sum(record.file_size for record in records)
    if unfolded > path.stat().st_size:
        raise UnsafeArchiveError(
            f"its records hold {unfolded:,} bytes, but the file {path.stat().st_size:,}: they share them"
        )


def _refuse_tar(path: Path) -> None:
    """Torch makes a folder to unpack it into before it looks at what may be loaded."""
    try:
        # Opened as torch does: uncompressed alone, up to the first record.
        tarfile.open(path, mode="r:").close()
    except tarfile.TarError:
        return
    raise UnsafeArchiveError(
        "it is a tar archive, as the first versions of torch wrote, or filled with zeros"
    )


def _file_of(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder}: this folder holds none of {', '.join(_FOLDER_FILES)}; give the file itself"
    )


def _named(found: StateDict, names: object) -> StateDict:
    """With the class names that a checkpoint gives, where it does."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return replace(found, class_names=tuple(names))
    return found


def _parsed(text: str | None) -> object:
    try:
        return json.loads(text or "null")
    # Too deeply nested, or no JSON: what another program may keep under this name.
    except (ValueError, RecursionError):
        return None


def _load_safetensors(path: Path) -> tuple[object, Mapping[str, str]]:
    """The tensors and the texts of a file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    # Safetensors' own error, or what numbers in its header lead to.
    except Exception as error:
        raise WeightsError(
            f"{path}: no complete safetensors file ({error}); if it was cut short, copy it again"
        ) from error


def _load_pickle(path: Path) -> object:
    try:
        refuse_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if zipfile.is_zipfile(path):
            return _load_foreign(path)
        if refused is None:
            raise WeightsError(f"{path}: no file of torch.save; give a checkpoint or safetensors") from error
        raise WeightsError(
            f"{_refusal(path, refused[1])}. Networks are read from files of torch 1.6 and newer, which are "
            "zip archives; this one is older"
        ) from error
    # Bytes that are no pickle of torch's raise whatever the instructions that they happen to be lead to.
    except Exception as error:
        reason = str(error).partition(". ")[0][:300] or f"it ends too early: {type(error).__name__}"
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({reason}); if it was cut short, copy it again"
        ) from error


def _load_foreign(path: Path) -> object:
    """A checkpoint with more than tensors and plain containers in it, such as whole networks."""
    try:
        return load_foreign(path)
    except UnsafePickleError as error:
        raise WeightsError(_refusal(path, error.wanted)) from error
    except ForeignPickleError as error:
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({error}); if it was cut short, copy it again"
        ) from error


def _refusal(path: Path, wanted: str) -> str:
    return (
        f"{path}: refused, because this pickle wants {wanted} and could run any code. If you trust where it "
        "came from, open it once with torch.load(path, weights_only=False) and save only its state dict with "
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
            f"{origin}: holds no state dict; its entries are {keys}, searched were "
            f"{', '.join('.'.join(names) for names in _CONTAINERS)} and the top level"
        )
    return _state_dict(contents, origin)


def _state_dict(contents: Mapping[str, object], origin: str) -> StateDict:
    tensors = _strip_wrappers(contents)
    for key, tensor in tensors.items():
        problem = _problem_of(key, tensor)
        if problem is not None:
            raise WeightsError(_not_plain(origin, key, problem))
    return StateDict(tensors, origin)


def _not_plain(origin: str, key: str, problem: str) -> str:
    return f"{origin}: its tensor {short_repr(key)} {problem}; save plain weights there"


def _problem_of(key: str, tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight; None: it can."""
    if len(key) > _LONGEST_KEY:
        return f"has a name of {len(key):,} characters"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "is sparse, quantised or nested"
    if tensor.is_complex():
        return "holds complex numbers"
    size = tensor.numel() * tensor.element_size()
    if size > max(_MOST_REPEATED_BYTES, tensor.untyped_storage().nbytes()):
        return f"has the shape {list(tensor.shape)}, which repeats few numbers {size:,} bytes long"
    return None


def _strip_wrappers(contents: Mapping[str, object]) -> dict[str, Tensor]:
    """Only the tensors; where a wrapper's prefix is in use, only those behind it."""
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
