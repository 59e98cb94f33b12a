"""Read pickled networks of foreign classes without importing or calling anything that the file names.

Files of ``torch.save`` are zip archives of one pickle (``data.pkl``) and one record per storage. A pickle is
a program that reaches code only through the objects that ``find_class`` returns, which it can call and
change. Here these are plain containers and numbers, stubs of torch's storages and tensors, and for every
other name one class that accepts everything and does nothing. The archive is read here and not by
``torch.load``, which without ``weights_only`` passes some archives (TorchScript) to other readers.
"""

import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Modules of Python's library that were renamed since Python 2, whose names old pickle protocols use.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Types of Python's library that checkpoints hold beside weights; stubs replace them, too.
_HARMLESS = {
    *(("builtins", name) for name in ("bytearray", "bytes", "object", "range", "slice")),
    *(("collections", name) for name in ("Counter", "defaultdict", "deque")),
    *(("datetime", name) for name in ("date", "datetime", "timedelta", "timezone")),
    *(("pathlib", f"{kind}Path") for kind in ("", "Posix", "Pure", "PurePosix", "PureWindows", "Windows")),
    *(("pathlib._local", f"{kind}Path") for kind in ("", "Posix", "Windows")),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("copyreg", "_reconstructor"),
    ("functools", "partial"),
    ("types", "SimpleNamespace"),
}
# Nested dictionaries whose values are converted: the checkpoint and its entries.
_LEVELS = 2


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle that requests something that could run code.

    Attributes:
        wanted: Full name of the requested object.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(f"the pickle requests {wanted}")
        self.wanted = wanted


class ForeignPickleError(ValueError):
    """A file that is damaged or has an unsupported layout; the message is the reason."""


def load_foreign(path: Path) -> object:
    """Load a file of ``torch.save``, with foreign objects reduced to the tensors in them.

    Networks (stubs that have the attributes of an ``nn.Module``) become state dicts under their own names;
    other foreign objects that are entries of a checkpoint become mappings of their attributes.

    Args:
        path: Zip archive written by ``torch.save``.

    Returns:
        A mapping for dictionaries and foreign objects, a tensor for tensors; anything else as the pickle
        holds it.

    Raises:
        UnsafePickleError: The pickle requests a part of Python's library that is not known to be harmless.
        ForeignPickleError: The file is damaged, compressed, big-endian, or not written by ``torch.save``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _Records(archive)
            contents = _Unpickler(records.read("data.pkl")).load()
            return _simplify(contents, records, levels=_LEVELS)
    except (UnsafePickleError, ForeignPickleError):
        raise
    except Exception as error:
        # A damaged or malicious pickle may raise anything.
        raise ForeignPickleError(str(error) or type(error).__name__) from error


# -- objects that a pickle can reach ---------------------------------------------------------------------


class _Immutable:
    """Base of objects that a pickle may hold but must not change."""

    def __setstate__(self, state: object) -> NoReturn:
        raise ForeignPickleError(f"the pickle changes a {type(self).__name__.strip('_').lower()}")


class _StorageType(_Immutable):
    """Stub of ``torch.FloatStorage`` and its siblings."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Storage(_Immutable):
    """Stub of a storage: the record that holds its bytes."""

    def __init__(self, record: str, dtype: torch.dtype, length: int) -> None:
        self.record, self.dtype, self.length = record, dtype, length


class _View(_Immutable):
    """Stub of a tensor: its storage and the elements it covers."""

    def __init__(
        self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class _Function(_Immutable):
    """A function that a pickle may call but, unlike the function itself, not change."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)


class _Dict(OrderedDict[object, object]):
    """Replacement of ``OrderedDict``, whose methods a pickle could replace."""

    def __setstate__(self, state: object) -> None:
        """Drop the attributes that a state dict has beside its entries (versions of modules)."""


class _Foreign:
    """Stub of every unknown class and function: accepts anything and only keeps its attributes."""

    attributes: dict[object, object]

    def __new__(cls, *_: object, **__: object) -> "_Foreign":
        # Not in the constructor, which a pickle may leave out.
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Accept any arguments."""

    def __setstate__(self, state: object) -> None:
        """Keep the attributes; classes with slots pass them as a second dictionary."""
        parts = state if isinstance(state, tuple) else (state,)
        self.attributes = {
            name: value for part in parts if isinstance(part, dict) for name, value in part.items()
        }

    def __setitem__(self, key: object, value: object) -> None:
        """Drop the entries of foreign dictionaries."""

    def append(self, item: object) -> None:
        """Drop the items of foreign lists."""

    def extend(self, items: object) -> None:
        """Drop the items of foreign lists."""


def _view(storage: object, offset: object, size: object, stride: object, *_: object) -> _View:
    if not isinstance(storage, _Storage) or not isinstance(offset, int):
        raise ForeignPickleError("a tensor without a storage")
    return _View(storage, offset, _numbers(size), _numbers(stride))


def _numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(isinstance(value, int) for value in values):
        raise ForeignPickleError("a tensor without a size")
    return values


def _return_first(value: object, *_: object) -> object:
    return value


_ALLOWED: dict[tuple[str, str], object] = {
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, bool, int, float, complex, str)},
    **{("builtins", kind.__name__): kind for kind in (tuple, list, dict)},
    ("collections", "OrderedDict"): _Dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _Function(_view),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_view),
    ("torch._utils", "_rebuild_parameter"): _Function(_return_first),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_return_first),
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
    ("torch.storage", "UntypedStorage"): _StorageType(torch.uint8),
}


def _check_memory(data: bytes) -> None:
    """Check that a pickle cannot make the unpickler itself fill memory; truncated data raises here, too."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ForeignPickleError(f"it gives an object the number {argument}, more than it can hold")


class _Unpickler(pickle.Unpickler):
    """Unpickler that resolves every name through :meth:`find_class`, without imports."""

    def __init__(self, data: bytes) -> None:
        _check_memory(data)
        super().__init__(BytesIO(data), encoding="utf-8")

    def find_class(self, module: str, name: str) -> object:
        """Return the replacement of ``module.name``; nothing is imported."""
        module = _RENAMED.get(module, module)
        allowed = _ALLOWED.get((module, name))
        if allowed is not None:
            return allowed
        if module.partition(".")[0] in sys.stdlib_module_names and (module, name) not in _HARMLESS:
            raise UnsafePickleError(f"{module}.{name}")
        return _Foreign

    def persistent_load(self, identity: object) -> _Storage:
        """Return the storage that a tensor refers to: ("storage", type, record, device, elements)."""
        match identity:
            case ("storage", _StorageType() as kind, str(record), _, int(length)):
                return _Storage(record, kind.dtype, length)
            case _:
                raise ForeignPickleError("a reference to something other than a storage")


# -- from stubs to tensors -------------------------------------------------------------------------------


class _Records:
    """The records of one archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ForeignPickleError(f"got {len(pickles)} pickles named data.pkl, expected one")
        self._archive = archive
        self._folder = pickles[0].removesuffix("data.pkl")
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}
        ordered = f"{self._folder}byteorder" in archive.namelist()
        if ordered and self.read("byteorder") != sys.byteorder.encode():
            raise ForeignPickleError("its numbers have another byte order than this machine")

    def read(self, name: str) -> bytes:
        """Read the bytes of a record, which ``torch.save`` never compresses."""
        record = self._archive.getinfo(self._folder + name)
        if record.compress_type != zipfile.ZIP_STORED:
            raise ForeignPickleError(f"its record {name} is compressed")
        return self._archive.read(record)

    def tensor(self, view: _View) -> Tensor:
        """Build a tensor from its record; tensors that share a storage share memory."""
        storage = view.storage
        key = (storage.record, storage.dtype)
        if key not in self._storages:
            data = bytearray(self.read(f"data/{storage.record}"))
            self._storages[key] = (
                torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            )
        whole = self._storages[key]
        if len(whole) < storage.length:
            raise ForeignPickleError(f"its record data/{storage.record} is too short")
        # Raises if the view exceeds the storage.
        return whole.as_strided(view.size, view.stride, view.offset)


def _simplify(value: object, records: _Records, levels: int) -> object:
    """Convert tensors, networks and foreign objects to plain data, in ``levels`` nested dictionaries."""
    if isinstance(value, _View):
        return records.tensor(value)
    if isinstance(value, _Foreign):
        if "_modules" in value.attributes:
            return {name: records.tensor(view) for name, view in _weights(value)}
        value = value.attributes
    if isinstance(value, Mapping) and levels:
        return {key: _simplify(part, records, levels - 1) for key, part in value.items()}
    return value


def _weights(network: _Foreign) -> Iterator[tuple[str, _View]]:
    """Yield parameters and buffers under the names that ``network.state_dict()`` would give them.

    A submodule that is used twice is named once, so that networks which contain each other end.
    """
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        transient = module.attributes.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(module, kind):
                if isinstance(value, _View) and not (isinstance(transient, set) and name in transient):
                    yield prefix + name, value
        parts = [(f"{prefix}{name}.", part) for name, part in _entries(module, "_modules")]
        waiting += [(name, part) for name, part in reversed(parts) if isinstance(part, _Foreign)]


def _entries(module: _Foreign, kind: str) -> list[tuple[str, object]]:
    entries = module.attributes.get(kind)
    return [(str(key), value) for key, value in entries.items()] if isinstance(entries, dict) else []
