"""The small bundle that the package carries, so that the demonstration needs no training and no export.

It is stored at half size: ``demo_bundle.zip`` holds its weights as float16, of which the float32 file that
graphs read is made when it is first used. The description has the hashes of the files that result.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from anydepth.deploy.runtime.bundle import DESCRIPTION, WEIGHTS, Bundle, BundleError, read_bundle

ARCHIVE: Final = Path(__file__).with_name("demo_bundle.zip")
_HALF_WEIGHTS: Final = "weights.f16"
# Archives have the date of each file; without one, equal bundles give equal archives.
_DATE: Final = (1980, 1, 1, 0, 0, 0)


def demo_bundle(cache: Path | None = None) -> Path:
    """Return the folder of the packaged bundle, which is unpacked when it is first used.

    Args:
        cache: Folder below which it is unpacked; None: the user's cache, or a temporary folder if that cannot
            be written.

    Raises:
        BundleError: The packaged file is damaged.
    """
    if cache is not None:
        return _unpacked(cache)
    try:
        return _unpacked(_user_cache())
    except OSError:
        # A new folder: what others may have put at a name that is known would be trusted.
        return _unpacked(Path(tempfile.mkdtemp(prefix="anydepth-")))


def pack(bundle: Bundle, path: Path) -> None:
    """Write a bundle to an archive with weights of float16, which must lose nothing.

    Args:
        bundle: Bundle whose weights are values of float16.
        path: File to write.

    Raises:
        BundleError: A weight is not a value of float16.
    """
    weights = np.fromfile(bundle.folder / WEIGHTS, "<f4")
    half = weights.astype("<f2")
    if half.astype("<f4").tobytes() != weights.tobytes():
        raise BundleError(f"{bundle.folder}: its weights are not values of float16; round them first")
    contents = {name: (bundle.folder / name).read_bytes() for name in (DESCRIPTION, *bundle.files)}
    del contents[WEIGHTS]
    write_archive(path, {**contents, _HALF_WEIGHTS: half.tobytes()})


def write_archive(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write files to an archive that depends on nothing but their names and contents."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, contents[name], compresslevel=9)


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "anydepth" / "demo"


def _unpacked(cache: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        # Another version of the package has another bundle.
        folder = cache / f"{archive.getinfo(DESCRIPTION).CRC:08x}"
        if not _is_whole(folder, archive.read(DESCRIPTION)):
            _unpack(archive, folder)
    return folder


def _is_whole(folder: Path, description: bytes) -> bool:
    try:
        bundle = read_bundle(folder)
        bundle.check_files(*bundle.files)
        return (folder / DESCRIPTION).read_bytes() == description
    except (BundleError, OSError):
        return False


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Unpack beside the folder and put it in place when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name in archive.namelist():
            data = archive.read(name)
            if name == _HALF_WEIGHTS:
                name, data = WEIGHTS, np.frombuffer(data, "<f2").astype("<f4").tobytes()
            (partial / name).write_bytes(data)
        bundle = read_bundle(partial)
        bundle.check_files(*bundle.files)
        # What is there is damaged, or another process was faster, whose folder is as good.
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError:
        if not _is_whole(folder, archive.read(DESCRIPTION)):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
