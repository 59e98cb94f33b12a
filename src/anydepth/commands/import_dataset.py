"""Import a data set of Pascal VOC xmls or YOLO text files, so that ``data=custom`` trains on it.

    python scripts/import_dataset.py VOCdevkit/VOC2007 datasets/voc2007
    python scripts/import_dataset.py bees/data.yaml datasets/bees
    anydepth-train data=custom data.root=datasets/bees

What is written: images/SPLIT/ and annotations/instances_SPLIT.json in COCO format. The images keep their
bytes: they are hard-linked, or copied where the file system cannot. Nothing is written if anything is wrong.

Pascal VOC: Annotations/ and JPEGImages/ with lists ImageSets/Main/{train,val,test}.txt; or folders train, val
(or valid) and test with the xmls beside the images; or one folder of both. Pixels count from 1. Objects
marked as difficult become crowd regions: not learnt from, and detections on them count neither way.

YOLO: data.yaml with names, train, val and test; or classes.txt and folders images/SPLIT with labels/SPLIT, or
SPLIT/images with SPLIT/labels. Images without a label file have no objects and are kept. Polygons become the
boxes around them. Paths that lead out of the folder of data.yaml are followed with --anywhere alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anydepth.data.convert.dataset import (
    ForeignDataset,
    files_below,
    refuse_filled,
    split_off_val,
    write_coco,
)
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError
from anydepth.data.fetch.console import print_summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: The command line without the program; None: that of the process.

    Returns:
        0, or 1 after an error, which is printed.
    """
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        refuse_filled(arguments.out)
        dataset = _read(arguments)
        split_off_val(dataset, arguments.val_share, arguments.seed)
        write_coco(dataset, arguments.out, link="symbolic" if arguments.link else "hard")
    except DataError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    print_summary(dataset, console)
    console.print(f"anydepth-train data=custom data.root={arguments.out}", markup=False)
    return 0


def _read(arguments: argparse.Namespace) -> ForeignDataset:
    kind = arguments.format if arguments.format != "auto" else _kind_of(arguments.source)
    of_voc = {
        "images": arguments.images,
        "annotations": arguments.annotations,
        "zero_based": arguments.zero_based,
        "keep_difficult": arguments.keep_difficult,
    }
    if kind == "voc" or arguments.images is not None:
        return read_voc(arguments.source, **of_voc)
    if any(of_voc.values()):
        raise DataError(
            "--images, --annotations, --zero-based and --keep-difficult are for Pascal VOC, but this is a "
            "YOLO data set; leave them out, or give --format voc"
        )
    return read_yolo(arguments.source, anywhere=arguments.anywhere)


def _kind_of(source: Path) -> str:
    if source.is_dir() and any(path.suffix.lower() == ".xml" for path in files_below(source)):
        return "voc"
    return "yolo"


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number between 0 and 1")
    return share


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of the data set, or a YOLO data.yaml")
    parser.add_argument("out", type=Path, help="new folder for the result")
    parser.add_argument(
        "--format", choices=("auto", "voc", "yolo"), default="auto", help="default: voc where there are xmls"
    )
    parser.add_argument(
        "--link", action="store_true", help="link to the images symbolically; they must stay where they are"
    )
    parser.add_argument(
        "--val-share",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="of the training images, for validation where no split is there; default 0.1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of their choice; default 0")
    parser.add_argument(
        "--anywhere",
        action="store_true",
        help="follow paths of a YOLO data.yaml that leave its folder; only for files of your own",
    )
    voc = parser.add_argument_group("Pascal VOC")
    voc.add_argument("--images", type=Path, metavar="DIR", help="images, if not in JPEGImages/")
    voc.add_argument("--annotations", type=Path, metavar="DIR", help="xmls, if not in Annotations/")
    voc.add_argument(
        "--zero-based", action="store_true", help="pixels count from 0, and xmax is the right edge"
    )
    voc.add_argument(
        "--keep-difficult", action="store_true", help="learn from difficult objects as from others"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
