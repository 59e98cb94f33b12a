"""Layouts of Pascal VOC data sets: where images and xmls lie, and which split they belong to."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anydepth.data.coco.layout import SplitName
from anydepth.data.convert.dataset import ForeignDataset
from anydepth.data.convert.folders import (
    IMAGE_SUFFIXES,
    UNLISTED_IMAGES,
    UNNAMED_FOLDERS,
    UNNAMED_LISTS,
    files_below,
    find_data_set,
    folders_in,
    named_folder,
    read_lines,
    split_folders,
    split_lists,
    split_of,
)
from anydepth.data.convert.pairing import Pairs, end_of
from anydepth.data.errors import DataError
from anydepth.utils.messages import join_few

_LIST_FOLDERS = ("ImageSets/Main", "ImageSets", ".")
_SUFFIXES = IMAGE_SUFFIXES | {".xml"}


@dataclass(frozen=True)
class Part:
    """The folders of a data set, or of one of its splits.

    Attributes:
        root: Folder of its lists.
        images: Folder of the images.
        annotations: Folder of the xmls.
        split: The split; None if lists or subfolders divide the images.
    """

    root: Path
    images: Path
    annotations: Path
    split: SplitName | None = None


def find_parts(
    root: Path, images: Path | None, annotations: Path | None, dataset: ForeignDataset
) -> list[Part]:
    """Find the folders of images and xmls; see :func:`anydepth.data.convert.voc.read_voc`.

    Args:
        root: Folder of the data set, or one above it.
        images: Folder of the images, if it is known.
        annotations: Folder of the xmls, if it is known.
        dataset: Takes note of where the data set was found.

    Raises:
        DataError: A folder is missing, only one of ``images`` and ``annotations`` is given, or there are
            several data sets.
    """
    if (images is None) != (annotations is None):
        raise DataError(f"got images={images} and annotations={annotations}; give both, or neither")
    if images is not None and annotations is not None:
        return [Part(root, images, annotations)]
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of the data set")
    found = root if _holds_files(root) else find_data_set(root, _is_data_set)
    if found != root:
        dataset.remarks.append(f"the data set was found in {found}")
    folders = split_folders(found)
    if folders and named_folder(found, "Annotations") is None:
        return [_locate(path, split) for split, path in folders.items()]
    return [_locate(found)]


def _holds_files(folder: Path) -> bool:
    return any(path.suffix.lower() in _SUFFIXES for path in folder.iterdir() if path.is_file())


def _is_data_set(folder: Path) -> bool:
    names = {path.name.lower() for path in folders_in(folder)}
    if names & {"annotations", "imagesets", "images", "jpegimages"}:
        return True
    # Folders of splits that hold only images have their xmls elsewhere.
    return any(
        any(path.suffix.lower() == ".xml" for path in files_below(split))
        and any(path.suffix.lower() in IMAGE_SUFFIXES for path in files_below(split))
        for split in split_folders(folder).values()
    )


def split_pairs(
    part: Part, names: Pairs, pictures: Mapping[str, Path], dataset: ForeignDataset
) -> dict[SplitName, list[str]]:
    """Divide the images of a part among the splits: by lists, or else by folders in that of the images.

    Args:
        part: Folders of the data set.
        names: Names of its images and xmls.
        pictures: Image file of each name.
        dataset: Takes note of the lists and folders that are not used.

    Returns:
        Names of the images of each split.

    Raises:
        DataError: Lists are malformed, name images that are not there, or cannot be told apart.
    """
    lists = _find_lists(part.root, dataset)
    if lists:
        splits = _names_of_lists(lists, names)
        if lists.get("train", Path()).stem.lower() == "trainval" and "val" in splits:
            validated = set(splits["val"])
            rest = [name for name in splits["train"] if name not in validated]
            if rest:
                splits["train"] = rest
            else:  # val is all of trainval
                del splits["val"]
        for name in sorted(set(names.label_of).difference(*splits.values())):
            dataset.skip(UNLISTED_IMAGES, pictures[name])
        return splits
    split_folders(part.images)  # Refuses two folders of one split.
    by_folder: dict[SplitName, list[str]] = defaultdict(list)
    others: list[str] = []
    for name in sorted(names.label_of):
        found = (split_of(folder) for folder in name.split("/")[:-1])
        split = next((split for split in found if split is not None), None)
        (others if split is None else by_folder[split]).append(name)
    if "train" not in by_folder:
        return {"train": others, **by_folder}
    for folder in dict.fromkeys(pictures[name].parent for name in others):
        dataset.skip(UNNAMED_FOLDERS, folder)
    return dict(by_folder)


def _locate(folder: Path, split: SplitName | None = None) -> Part:
    annotations = named_folder(folder, "Annotations") or folder
    images = named_folder(folder, "JPEGImages", "images") or folder
    return Part(folder, images, annotations, split)


def _find_lists(root: Path, dataset: ForeignDataset) -> dict[SplitName, Path]:
    for folder in (root / name for name in _LIST_FOLDERS):
        named, others = split_lists(folder)
        both = next((path for path in others if path.stem.lower() == "trainval"), None)
        if both is not None and "train" not in named:
            named["train"] = both
        of_class = [path for path in others if _is_of_class(path.stem)]
        unknown = [path for path in others if path != both and path not in of_class]
        if folder == root:
            return named  # Other texts in the root are no lists.
        if named:
            for path in unknown:
                dataset.skip(UNNAMED_LISTS, path)
            return named
        if len(others) == 1 and unknown:
            return {"train": unknown[0]}  # Tools write default.txt for images without a split.
        if others:
            raise DataError(
                f"{folder}: {join_few([path.name for path in others])} are not named after a split; rename "
                "them to train.txt, val.txt or test.txt, or move them away to train on all images"
            )
    return {}


def _is_of_class(stem: str) -> bool:
    """Return whether a list is that of one class, such as cat_train, as the challenge has them."""
    end = stem.rsplit("_", 1)[-1]
    return end != stem and (split_of(end) is not None or end == "trainval")


def _names_of_lists(lists: Mapping[SplitName, Path], names: Pairs) -> dict[SplitName, list[str]]:
    known = _Ends([*names.label_of, *names.lone_pictures])
    # Xmls that only their <filename> pairs have other names, which lists may give, too.
    of_label = {label: name for name, label in names.label_of.items() if label is not None}
    labels = _Ends(of_label)
    splits: dict[SplitName, list[str]] = {}
    missing: list[str] = []
    without_xml = False
    for split, path in lists.items():
        chosen = []
        for where, entry in _read_list(path):
            name = known.find(entry) or of_label.get(labels.find(entry) or "")
            if name is None or name not in names.label_of:
                without_xml = without_xml or name is not None
                missing.append(f"{where}: {entry[0]}")
            else:
                chosen.append(name)
        splits[split] = list(dict.fromkeys(chosen))
    if missing:
        hint = ", or, if images without an xml have no objects, import with --empty-without-xml"
        raise DataError(
            f"{len(missing)} listed names have no image or no xml: {join_few(missing)}; restore them"
            f"{hint if without_xml else ''}"
        )
    return splits


def _read_list(path: Path) -> Iterable[tuple[str, Sequence[str]]]:
    """Read the entries of a list: where each is, and the names that it may mean, the likeliest first."""
    for number, line in enumerate(read_lines(path), start=1):
        words = line.strip().removeprefix("./").split()
        if not words:
            continue
        readings = [" ".join(words)]
        if len(words) > 1 and words[-1] in ("-1", "0", "1"):
            readings.insert(0, " ".join(words[:-1]))  # The second column of lists of one class.
        if len(words) == 2 and all(Path(word).suffix.lower() in _SUFFIXES for word in words):
            readings.append(words[0])  # PaddleX: the image and its xml.
        yield f"{path}, line {number}", [_without_known_suffix(reading) for reading in readings]


def _without_known_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in _SUFFIXES else name


class _Ends:
    """Names by their ends, because lists may leave out folders or add some."""

    def __init__(self, names: Collection[str]) -> None:
        self._exact = set(names)
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for name in names:
            for parts in range(1, name.count("/") + 2):
                self._by_end[end_of(name, parts)].append(name)

    def find(self, readings: Sequence[str]) -> str | None:
        """Return the only name that one of the readings means; None if there is none."""
        for reading in readings:
            if reading in self._exact:
                return reading
        for reading in readings:
            for parts in range(reading.count("/") + 1, 0, -1):
                found = self._by_end.get(end_of(reading, parts), [])
                if len(found) == 1:
                    return found[0]
        return None
