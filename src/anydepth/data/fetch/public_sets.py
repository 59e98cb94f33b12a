"""Public data sets by name: fetched at first use, verified, and converted to COCO format.

Each is small enough to wait for its download, and stays under its own licence, which is printed.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich import get_console
from rich.console import Console

from anydepth.data.coco.layout import find_split
from anydepth.data.convert.dataset import (
    ForeignDataset,
    check_empty_folder,
    split_off_val,
    write_coco,
)
from anydepth.data.convert.folders import files_below
from anydepth.data.convert.voc import read_voc
from anydepth.data.errors import DataError
from anydepth.data.fetch.archives import Archive, check_space_for, unpack
from anydepth.data.fetch.archives import fetch as fetch_archive
from anydepth.data.fetch.console import download_bar, print_summary
from anydepth.data.fetch.download import DownloadError, download
from anydepth.utils.console import print_lines
from anydepth.utils.files import scratch_folder


@dataclass(frozen=True)
class PublicSet:
    """A published data set.

    Attributes:
        title: Short description.
        home: Address of its home page.
        licence: Licence of the data.
        archives: Archives that hold it.
        read: Function that reads it from the folder of the unpacked archives.
        only: Files and folders to unpack; empty means everything.
        val_share: Share of the training images that becomes the validation split if none is published.
        images_sha256: Checksum of the images inside, for archives that are repacked now and then, which
            changes the checksum of the archive; see :func:`images_digest`.
    """

    title: str
    home: str
    licence: str
    archives: tuple[Archive, ...]
    read: Callable[[Path], ForeignDataset]
    only: tuple[str, ...] = ()
    val_share: float = 0.1
    images_sha256: str | None = None


def _read_bccd(folder: Path) -> ForeignDataset:
    return read_voc(folder / "BCCD_Dataset-1.0" / "BCCD")


def _read_voc2007(folder: Path) -> ForeignDataset:
    return read_voc(folder / "VOCdevkit" / "VOC2007")


def _read_pets(folder: Path) -> ForeignDataset:
    return read_voc(folder, images=folder / "images", annotations=folder / "annotations" / "xmls")


_VOC2007 = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"
_PETS = "https://thor.robots.ox.ac.uk/~vgg/data/pets"

# Sizes and SHA-256 as recorded by TensorFlow Datasets, MD5 by torchvision.
PUBLIC_SETS: dict[str, PublicSet] = {
    "bccd": PublicSet(
        title="BCCD: 364 microscope images of blood cells, 640x480; RBC, WBC and platelets",
        home="https://github.com/Shenggan/BCCD_Dataset",
        licence="MIT",
        archives=(
            Archive(
                "https://github.com/Shenggan/BCCD_Dataset/archive/v1.0.zip",
                7_875_205,
                "97af5cc16d14d293fcb3c82a8f66e49b0339a8d0abd8e9508e0feeb4911caa1f",
                20_000_000,
            ),
        ),
        read=_read_bccd,
        only=tuple(f"BCCD_Dataset-1.0/BCCD/{part}" for part in ("Annotations", "ImageSets", "JPEGImages")),
        images_sha256="58f59eca9fe369a904626882599860a52d0ed426a5363d2bcbb1ad7d980c28ce",
    ),
    "voc": PublicSet(
        title="Pascal VOC 2007: 9,963 photographs, 20 classes; difficult objects are ignored",
        home="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        licence="photographs from Flickr under its terms of use; citation asked for",
        archives=(
            Archive(
                f"{_VOC2007}/VOCtrainval_06-Nov-2007.tar",
                460_032_000,
                None,
                460_000_000,
                md5="c52e279531787c972589f7e41ab4ae64",
            ),
            Archive(
                f"{_VOC2007}/VOCtest_06-Nov-2007.tar",
                451_020_800,
                None,
                451_000_000,
                md5="b6e924de25625d8de591ea690078ad9f",
            ),
        ),
        read=_read_voc2007,
        only=tuple(f"VOCdevkit/VOC2007/{part}" for part in ("Annotations", "ImageSets/Main", "JPEGImages")),
    ),
    "pets": PublicSet(
        title="Oxford-IIIT Pet: heads of cats and dogs, in the images whose boxes are published",
        home="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        licence="Creative Commons Attribution-ShareAlike 4.0; the images belong to their owners",
        archives=(
            Archive(
                f"{_PETS}/annotations.tar.gz",
                19_173_078,
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                40_000_000,
            ),
            Archive(
                f"{_PETS}/images.tar.gz",
                791_918_971,
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                820_000_000,
            ),
        ),
        read=_read_pets,
        only=("images", "annotations/xmls"),
        val_share=0.2,
    ),
}


def dataset_root(name: str, folder: str | Path) -> Path:
    """Return the folder of a public data set in COCO format, after fetching the data set if necessary.

    Several processes may ask at once: one fetches, the others wait. An installed data set needs no network.

    Args:
        name: Name in :data:`PUBLIC_SETS`.
        folder: Folder of the data set.

    Raises:
        DataError: The name is unknown, the folder holds something else, or the data set cannot be fetched.
    """
    if name not in PUBLIC_SETS:
        raise DataError(f"got name={name}, expected one of {', '.join(sorted(PUBLIC_SETS))}")
    folder = Path(folder)
    return folder if _is_installed(folder) else fetch(name, folder)


def fetch(name: str, folder: Path) -> Path:
    """Fetch a public data set; see :func:`dataset_root`."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.absolute().with_name(f".{folder.name}.lock")):
        if not _is_installed(folder):
            _fetch(name, PUBLIC_SETS[name], folder, get_console())
    return folder


def images_digest(folder: Path) -> str:
    """Return the SHA-256 of the lines ``NAME SHA256`` of all JPEGs below a folder, sorted by name."""
    jpegs = sorted(
        (path for path in files_below(folder) if path.suffix == ".jpg"), key=lambda path: path.name
    )
    lines = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in jpegs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_installed(folder: Path) -> bool:
    try:
        find_split(folder, "train")
    except DataError:
        return False
    return True


def _fetch(name: str, public: PublicSet, folder: Path, console: Console) -> None:
    check_empty_folder(folder)
    print_lines(public.title, f"  {public.home}", f"  licence: {public.licence}", console=console)
    work = folder.absolute().with_name(f".{folder.name}.fetching")
    work.mkdir(exist_ok=True)
    check_space_for(public.archives, work, keep_archives=True)
    with scratch_folder(work / "unpacked") as unpacked:
        packed = [_download(public, archive, work, console) for archive in public.archives]
        for path, archive in zip(packed, public.archives, strict=True):
            unpack(path, unpacked, limit_bytes=2 * archive.unpacked_bytes, only=public.only)
        _check_content(public, packed, unpacked)
        dataset = public.read(unpacked)
        split_off_val(dataset, public.val_share, seed=0)
        write_coco(dataset, folder)
        print_summary(dataset, console)
    shutil.rmtree(work)
    print_lines(f"{name} is in {folder}", console=console)


def _download(public: PublicSet, archive: Archive, work: Path, console: Console) -> Path:
    path = work / archive.name
    with download_bar(archive.name, console) as show:
        if public.images_sha256 is None:
            fetch_archive(archive, path, progress=show)
        else:
            download(archive.url, path, progress=show)
    return path


def _check_content(public: PublicSet, packed: list[Path], unpacked: Path) -> None:
    """Check an archive that may be repacked: its own checksum or that of its images must match."""
    if public.images_sha256 is None:
        return
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in packed]
    images = images_digest(unpacked)
    if found != [archive.sha256 for archive in public.archives] and images != public.images_sha256:
        for path in packed:
            path.unlink()
        raise DownloadError(
            f"{public.archives[0].url}: neither the archive (sha256 {found[0]}, expected "
            f"{public.archives[0].sha256}) nor the images in it ({images}, expected {public.images_sha256}) "
            "are the published ones; it was removed: try again"
        )
