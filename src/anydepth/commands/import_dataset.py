"""``anydepth-data import``: convert a data set of Pascal VOC xmls or YOLO text files to COCO format."""

import argparse
from pathlib import Path

from rich.console import Console

from anydepth.data.convert.dataset import (
    ForeignDataset,
    check_empty_folder,
    split_off_val,
    write_coco,
)
from anydepth.data.convert.folders import files_below
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError
from anydepth.data.fetch.console import print_summary
from anydepth.utils.command_line import setting
from anydepth.utils.console import print_lines


def run(options: argparse.Namespace) -> int:
    """Import a data set and print its summary.

    Args:
        options: See :func:`anydepth.commands.data_options.parse_import`.

    Returns:
        The exit status, 0.

    Raises:
        DataError: The data set cannot be read or written; nothing was written.
    """
    console = Console(highlight=False, soft_wrap=True)
    check_empty_folder(options.out)
    dataset = _read(options)
    split_off_val(dataset, options.val_share, options.seed)
    write_coco(dataset, options.out, link="symbolic" if options.link else "hard")
    print_summary(dataset, console)
    print_lines(f"anydepth-train data=custom {setting('data.root', options.out)}", console=console)
    return 0


def _read(options: argparse.Namespace) -> ForeignDataset:
    kind = options.format if options.format != "auto" else _detect_format(options.source)
    voc_settings = {
        "images": _folder_of(options.source, options.images, "--images"),
        "annotations": _folder_of(options.source, options.annotations, "--annotations"),
        "zero_based": options.zero_based,
        "keep_difficult": options.keep_difficult,
        "empty_without_xml": options.empty_without_xml,
    }
    if kind == "voc" or options.images is not None:
        return read_voc(options.source, **voc_settings)
    if any(voc_settings.values()):
        raise DataError(
            "--images, --annotations, --zero-based, --keep-difficult and --empty-without-xml are for Pascal "
            "VOC, but this is a YOLO data set; leave them out, or give --format voc"
        )
    return read_yolo(options.source, anywhere=options.anywhere)


def _folder_of(source: Path, given: Path | None, option: str) -> Path | None:
    """Return a folder that was given relative to the data set, or else to the working directory."""
    if given is None:
        return None
    inside = source / given
    if inside.is_dir() and given.is_dir() and not inside.samefile(given):
        raise DataError(
            f"{option}={given}: both {inside} and {given.absolute()} exist; give the absolute path of one"
        )
    for folder in (inside, given):
        if folder.is_dir():
            return folder
    raise DataError(f"{option}={given}: neither {inside} nor {given} is a folder; give an existing one")


def _detect_format(source: Path) -> str:
    if source.is_dir() and any(path.suffix.lower() == ".xml" for path in files_below(source)):
        return "voc"
    return "yolo"
