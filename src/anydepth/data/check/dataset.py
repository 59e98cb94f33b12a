"""The check of a data set in COCO format: all its splits, and what they share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anydepth.data.check.boxes import check_boxes
from anydepth.data.check.findings import Finding
from anydepth.data.check.pictures import CheckedPicture, check_pictures, find_duplicates
from anydepth.data.check.statistics import Statistics, measure
from anydepth.data.coco.categories import Categories
from anydepth.data.coco.layout import Split
from anydepth.data.coco.packing import read_tables
from anydepth.data.coco.tables import CocoTables
from anydepth.data.convert.folders import pictures_below
from anydepth.data.errors import DataError
from anydepth.utils.wide_pixels import BITS_VARIABLE


@dataclass(frozen=True)
class CheckedSplit:
    """Findings and numbers of a split.

    Attributes:
        name: Name of the split.
        json_path: Its json.
        image_root: Folder of its pictures.
        statistics: Its numbers; None if its json cannot be read.
        findings: Problems and doubts.
        pictures: Its pictures; empty if its json cannot be read.
    """

    name: str
    json_path: Path
    image_root: Path
    statistics: Statistics | None
    findings: tuple[Finding, ...]
    pictures: tuple[CheckedPicture, ...] = ()


@dataclass(frozen=True)
class CheckedDataset:
    """Findings and numbers of a data set.

    Attributes:
        splits: Its splits.
        findings: Problems and doubts that concern several splits.
    """

    splits: tuple[CheckedSplit, ...]
    findings: tuple[Finding, ...]

    @property
    def all_findings(self) -> list[Finding]:
        """Findings of the data set and of all its splits."""
        return [*self.findings, *(finding for split in self.splits for finding in split.findings)]

    @property
    def problems(self) -> int:
        """Number of entries that would end training or lose data."""
        return sum(finding.count for finding in self.all_findings if finding.severity == "problem")

    @property
    def doubts(self) -> int:
        """Number of entries that someone should look at."""
        return sum(finding.count for finding in self.all_findings if finding.severity == "doubt")


Progress = Callable[[str, int], Callable[[], None]]
"""Function of a split's name and number of pictures; its result is called after each picture."""


def check_dataset(
    splits: Mapping[str, Split], *, missing: Sequence[str] = (), workers: int, progress: Progress
) -> CheckedDataset:
    """Read every picture and annotation; whatever is wrong with one does not keep the others from it.

    Args:
        splits: Splits by name; the first one defines the categories.
        missing: Messages about splits that were not found.
        workers: Number of threads.
        progress: See :data:`Progress`.
    """
    checked: list[CheckedSplit] = []
    reference: Categories | None = None
    for name, split in splits.items():
        # COCO's test images have no annotations.
        read = _read_tables(split, reference, annotated=name != "test")
        if isinstance(read, str):
            problem = Finding.of("json that cannot be read", "problem", [read])
            checked.append(CheckedSplit(name, split.json_path, split.image_root, None, tuple(problem)))
            continue
        reference = reference or read.categories
        checked.append(_check_split(name, split, read, workers, progress(name, len(read.names))))
    findings = [*Finding.of("splits that were not found", "problem", missing), *_shared_findings(checked)]
    return CheckedDataset(_without_strangers(checked), tuple(findings))


def _read_tables(split: Split, reference: Categories | None, *, annotated: bool) -> CocoTables | str:
    """Return the tables of a split, or why they cannot be read."""
    try:
        return read_tables(
            split.json_path, reference, outlines=False, annotated=annotated, image_root=split.image_root
        )
    except DataError as error:
        return str(error)


def _check_split(
    name: str, split: Split, tables: CocoTables, workers: int, advance: Callable[[], None]
) -> CheckedSplit:
    pictures = check_pictures(tables, split.json_path, split.image_root, workers=workers, advance=advance)
    statistics = measure(tables)
    unreadable = [picture.problem for picture in pictures if picture.problem is not None]
    named_twice = _repeated([picture.path for picture in pictures])
    boxes = sum(count.boxes for count in statistics.classes)
    unused = [count.name for count in statistics.classes if boxes and count.boxes == 0]
    without_boxes = [str(split.json_path)] if boxes == 0 else []
    findings = [
        *Finding.of("pictures that cannot be used", "problem", unreadable),
        *(
            Finding.of("training splits without a box to learn from", "problem", without_boxes)
            if name == "train"
            else Finding.of("splits without a box, on which no AP can be measured", "problem", without_boxes)
        ),
        *Finding.of("files that several entries of the json name", "doubt", map(str, named_twice)),
        *Finding.of(
            f"16-bit pictures that are read with different scales; {BITS_VARIABLE} makes them alike",
            "doubt",
            _different_bits(pictures),
        ),
        *check_boxes(tables),
        *Finding.of("classes without a box", "doubt", unused),
        *Finding.of("remarks on the json", "doubt", tables.remarks),
    ]
    return CheckedSplit(name, split.json_path, split.image_root, statistics, tuple(findings), tuple(pictures))


def _repeated(paths: Sequence[Path]) -> list[Path]:
    return [path for path, count in Counter(paths).items() if count > 1]


def _different_bits(pictures: Sequence[CheckedPicture]) -> list[str]:
    """Describe the pictures of each number of bits, fewest bits first, if there are several numbers."""
    by_bits: dict[int, list[Path]] = {}
    for picture in pictures:
        if picture.bits is not None:
            by_bits.setdefault(picture.bits, []).append(picture.path)
    if len(by_bits) < 2:
        return []
    return [
        f"{len(paths)} taken to use {bits} bits, e.g. {paths[0]}" for bits, paths in sorted(by_bits.items())
    ]


def _shared_findings(checked: Sequence[CheckedSplit]) -> list[Finding]:
    groups = find_duplicates([(split.name, split.pictures) for split in checked])
    described = [(len({split for split, _ in group}), _describe(group)) for group in groups]
    return [
        *Finding.of("pictures that are in several splits", "doubt", (text for n, text in described if n > 1)),
        *Finding.of("pictures that a split has twice", "doubt", (text for n, text in described if n == 1)),
    ]


def _describe(group: Sequence[tuple[str, str]]) -> str:
    return " = ".join(f"{split}: {name}" for split, name in group)


def _without_strangers(checked: Sequence[CheckedSplit]) -> tuple[CheckedSplit, ...]:
    """Add the pictures of each folder that no json names; splits may share a folder."""
    known = {picture.path for split in checked for picture in split.pictures}
    result: list[CheckedSplit] = []
    for split in checked:
        strangers = (
            [path for path in pictures_below(split.image_root) if path not in known]
            if split.pictures and split.image_root.is_dir()
            else []
        )
        known.update(strangers)
        found = Finding.of("pictures that no json names", "doubt", map(str, strangers))
        result.append(replace(split, findings=(*split.findings, *found)))
    return tuple(result)
