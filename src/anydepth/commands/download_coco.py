"""``anydepth-data download``: fetch COCO 2017 and unpack it into the layout that ``data=coco`` reads.

Imports nothing slow: :mod:`anydepth.commands.data_options` takes the splits and the terms from here.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from anydepth.data.fetch.archives import Archive, check_space_for, install
from anydepth.data.fetch.console import download_bar
from anydepth.utils.command_line import setting
from anydepth.utils.console import print_lines

_HOST = (
    "http://images.cocodataset.org"  # Its https certificate names another host; checksums protect instead.
)

TERMS = """\
COCO 2017 (https://cocodataset.org/#termsofuse)
  annotations: Creative Commons Attribution 4.0
  images: property of their Flickr authors, each under its own terms (the json names the licence of each one);
  the COCO consortium does not own them and asks you to abide by Flickr's terms of use"""

# Sizes and SHA-256 as recorded by TensorFlow Datasets; what unpacks from an image archive is about its size.
ARCHIVES: Mapping[str, tuple[Archive, ...]] = {
    "val": (
        Archive(
            f"{_HOST}/zips/val2017.zip",
            815_585_330,
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            830_000_000,
            {"val2017": 5_000},
        ),
    ),
    "train": (
        Archive(
            f"{_HOST}/zips/train2017.zip",
            19_336_861_798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            19_700_000_000,
            {"train2017": 118_287},
        ),
    ),
    "test": (
        Archive(
            f"{_HOST}/annotations/image_info_test2017.zip",
            1_144_034,
            "e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8",
            15_000_000,
            {"annotations/image_info_test-dev2017.json": 1, "annotations/image_info_test2017.json": 1},
        ),
        Archive(
            f"{_HOST}/zips/test2017.zip",
            6_646_970_404,
            "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba",
            6_800_000_000,
            {"test2017": 40_670},
        ),
    ),
}
ANNOTATIONS = Archive(
    f"{_HOST}/annotations/annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    500_000_000,
    {"annotations/instances_train2017.json": 1, "annotations/instances_val2017.json": 1},
)


def run(options: argparse.Namespace) -> int:
    """Print the terms of use, then download and unpack the splits.

    Args:
        options: See :func:`anydepth.commands.data_options.parse_download`.

    Returns:
        The exit status, 0.

    Raises:
        DataError: There is too little space, or an archive cannot be downloaded or unpacked; the archives
            before it are installed.
    """
    chosen = [archive for split, parts in ARCHIVES.items() if split in options.splits for archive in parts]
    if {"train", "val"} & set(options.splits):
        chosen.insert(0, ANNOTATIONS)
    console = Console(highlight=False, soft_wrap=True)
    print_lines(TERMS, console=console)
    check_space_for(chosen, options.folder, keep_archives=options.keep_archives)
    for archive in chosen:
        _install(archive, options.folder, options.keep_archives, console)
    print_lines(
        f"{options.folder} is complete: anydepth-train data=coco {setting('data.root', options.folder)}",
        console=console,
    )
    return 0


def _install(archive: Archive, folder: Path, keep_archive: bool, console: Console) -> None:
    if archive.is_installed(folder):
        print_lines(f"{archive.name}: already there", console=console)
        return
    with download_bar(archive.name, console) as show:
        install(archive, folder, keep_archive=keep_archive, progress=show)
