"""Options and help of the sub-commands of ``anydepth-data``, free of slow imports."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from anydepth.commands.download_coco import ARCHIVES, TERMS
from anydepth.data.coco.layout import SPLIT_NAMES


def parse_import(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``anydepth-data import``.

    Raises:
        SystemExit: Wrong options, or ``--help``.
    """
    parser = _parser(
        "import",
        """\
Import a data set of Pascal VOC xmls or YOLO text files, so that `data=custom` trains on it.

The result is images/SPLIT/ and annotations/instances_SPLIT.json in COCO format. The images keep their bytes:
they are hard-linked, or copied if the file system has no hard links. Nothing is written if anything is wrong.

Pascal VOC: Annotations/ and JPEGImages/ with lists ImageSets/Main/{train,val,test}.txt; or folders train, val
(or valid) and test; or images and xmls of the same names in any folders, also one level down. Pixels count
from 1 unless --zero-based is given; the summary shows what the boxes say about it. Objects marked difficult
become crowd regions: not learnt, and detections on them are ignored in evaluation.

YOLO: data.yaml with names, train, val and test; Darknet's obj.data or obj.names with train.txt and valid.txt;
or classes.txt and folders images/SPLIT with labels/SPLIT, or SPLIT/images with SPLIT/labels. Images without a
label file have no objects and are kept. Polygons become the boxes around them. Paths that lead out of the
folder of data.yaml are followed only with --anywhere.

Splits are recognised in any case, as val, valid or validation, and with a year. Lists and folders that are
not used are named in the summary, or refused if no split would be left.""",
        """\
examples:
  anydepth-data import VOCdevkit/VOC2007 datasets/voc2007
  anydepth-data import bees/data.yaml datasets/bees
  anydepth-train data=custom data.root=datasets/bees""",
    )
    parser.add_argument("source", type=Path, help="folder of the data set, or a YOLO data.yaml")
    parser.add_argument("out", type=Path, help="new folder for the result")
    parser.add_argument(
        "--format",
        choices=("auto", "voc", "yolo"),
        default="auto",
        help="default: auto, which takes a folder with xmls for voc and anything else for yolo",
    )
    parser.add_argument(
        "--link", action="store_true", help="link to the images symbolically; they must stay where they are"
    )
    parser.add_argument(
        "--val-share",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="share of the training images for validation, if the data set has no such split; default: 0.1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice; default: 0")
    parser.add_argument(
        "--anywhere",
        action="store_true",
        help="follow paths of a YOLO data.yaml that leave its folder; only for files that you trust",
    )
    voc = parser.add_argument_group("Pascal VOC")
    voc.add_argument(
        "--images", type=Path, metavar="DIR", help="images, relative to source, if not found by their names"
    )
    voc.add_argument("--annotations", type=Path, metavar="DIR", help="xmls, relative to the source")
    voc.add_argument(
        "--zero-based", action="store_true", help="pixels count from 0, and xmax is the right edge"
    )
    voc.add_argument(
        "--empty-without-xml", action="store_true", help="keep images without an xml: they have no objects"
    )
    voc.add_argument("--keep-difficult", action="store_true", help="learn difficult objects like all others")
    return parser.parse_args(argv)


def parse_download(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``anydepth-data download``.

    Raises:
        SystemExit: Wrong options, or ``--help``.
    """
    parser = _parser(
        "download",
        """\
Download COCO 2017 and unpack it into the layout that `data=coco` reads.

An interrupted download is resumed by the same command, and complete files are kept. Checksums and the number
of images are verified.""",
        f"""\
examples:
  anydepth-data download                       # training and validation, 20.4 GB to download
  anydepth-data download --splits val --folder /data/coco

{TERMS}""",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=sorted(ARCHIVES),
        default=["train", "val"],
        metavar="SPLIT",
        help="train (19.3 GB), val (0.8 GB), test (6.6 GB, without ground truth); default: train val",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("datasets/coco"),
        help="folder to write to; default: datasets/coco",
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="keep the zip files in the folder after unpacking"
    )
    return parser.parse_args(argv)


def parse_check(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``anydepth-data check``.

    Raises:
        SystemExit: Wrong options or combinations of them, or ``--help``.
    """
    parser = _parser(
        "check",
        """\
Read every picture and annotation of a data set in COCO format, in any layout that training knows, and write a
page: counts, sizes and classes, pictures that cannot be used, duplicates, and doubtful boxes.

Problems end training or evaluation, or lose data: pictures that are missing, damaged or of another size than
in the json, a json that cannot be read, and missing splits. Doubts may be right: boxes that are dropped or
clipped, tiny, as large as their image or there twice, and pictures that are in several splits.

The exit status is 0 without problems, 1 with problems, and 2 for wrong options.""",
        """\
examples:
  anydepth-data check datasets/bees
  anydepth-data check --json bees/train.json --images bees/photos --out bees.html""",
    )
    parser.add_argument("root", type=Path, nargs="?", help="folder of the data set; not with --json")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLIT_NAMES,
        help="default: all that are there",
    )
    parser.add_argument("--json", type=Path, help="COCO json of one split, instead of a root")
    parser.add_argument("--images", type=Path, help="folder that the file names in --json are relative to")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/check_data.html"),
        help="page to write; default: outputs/check_data.html",
    )
    parser.add_argument(
        "--workers", type=_workers, default=os.cpu_count() or 1, help="threads; default: one per core"
    )
    options = parser.parse_args(argv)
    if (options.json is None) != (options.images is None):
        parser.error("--json and --images belong together")
    if (options.json is None) == (options.root is None):
        parser.error("give either the data set's folder, or --json and --images")
    if options.json is not None and options.splits is not None:
        parser.error("--splits needs the data set's folder; --json is one split")
    return options


def parse_shards(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``anydepth-data shards``.

    Raises:
        SystemExit: Wrong options or combinations of them, or ``--help``.
    """
    parser = _parser(
        "shards",
        """\
Pack a data set in COCO format into shards that can be streamed from a folder, a web server or S3.

Takes the splits of a data set in any layout that training knows, and writes a folder for each; or, with
--json, one split. Train on the result with `data=coco_streaming data.root=shards/coco`, or copy it to a
bucket as it is and give its address: `data.root=s3://bucket/coco` or `data.root=https://host/coco`.

An interrupted run is resumed by the same command: finished shards are verified and kept. A split is complete
when its manifest.json is there, which holds the sizes and checksums of everything beside it.""",
        """\
examples:
  anydepth-data shards datasets/coco shards/coco --workers 8
  anydepth-data shards --json bees/train.json --images bees/photos shards/bees/train""",
    )
    parser.add_argument("root", type=Path, nargs="?", help="folder of the data set; not with --json")
    parser.add_argument("output", type=Path, help="folder for the splits; with --json: for this split")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLIT_NAMES, default=["train", "val"], help="default: train val"
    )
    parser.add_argument("--json", type=Path, help="COCO json of one split, instead of a root")
    parser.add_argument("--images", type=Path, help="folder that the file names in --json are relative to")
    parser.add_argument(
        "--categories",
        type=Path,
        help="json whose categories define the labels: the training json, if --json is another split's",
    )
    parser.add_argument("--shard-mb", type=float, default=64.0, help="megabytes per shard; default: 64")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; default: one per core"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace complete splits of other images or annotations"
    )
    options = parser.parse_args(argv)
    if (options.json is None) != (options.images is None):
        parser.error("--json and --images belong together")
    if (options.json is None) == (options.root is None):
        parser.error("give either the data set's folder and the output, or --json, --images and the output")
    if options.json is None and options.categories is not None:
        parser.error("--categories needs --json; with a root, the training split defines the categories")
    return options


def parse_look(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of ``anydepth-data look``, which may be mixed with overrides.

    Raises:
        SystemExit: Wrong options, or ``--help``.
    """
    parser = _parser(
        "look",
        """\
Draw training batches with their boxes, as the network gets them: look before you train.

Each picture is one batch. The console shows how many boxes there are and how small they get, in pixels of the
network's input. Overrides are those of anydepth-train.""",
        """\
examples:
  anydepth-data look data=custom data.root=datasets/bees augmentation=yolo
  anydepth-data look data=coco detector=yolo_n augmentation=yolo_n --epochs 0 590""",
    )
    parser.add_argument(
        "--config-dir", type=Path, help="folder with presets of your own, as for anydepth-train"
    )
    parser.add_argument("--batches", type=int, default=2, help="batches of each epoch; default: 2")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs="+",
        default=[0],
        help="epochs to draw; default: 0. Augmentation may depend on them: YOLO's last epochs mix no images",
    )
    parser.add_argument("--columns", type=int, default=4, help="images side by side; default: 4")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/look_at_data"),
        help="folder to write to; default: outputs/look_at_data",
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="e.g. data=coco")
    return parser.parse_intermixed_args(argv)


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"anydepth-data {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10_000):
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number from 1")
    return int(text)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number between 0 and 1")
    return share
