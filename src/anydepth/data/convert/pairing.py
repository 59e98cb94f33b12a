"""Pairing of pictures with their label files by name."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anydepth.data.spelling import match_key


@dataclass(frozen=True)
class Pairs:
    """Names that belong together; each is relative to its folder, with slashes and without suffix.

    Attributes:
        label_of: Name of the label file of each picture that has one; None means that it has no objects.
        elsewhere: Images whose label file lies in another subfolder.
        lone_pictures: Sorted names of the pictures without a label file.
        lone_labels: Sorted names of the label files without a picture.
    """

    label_of: Mapping[str, str | None]
    elsewhere: tuple[str, ...]
    lone_pictures: tuple[str, ...]
    lone_labels: tuple[str, ...]

    def with_pairs(self, label_of: Mapping[str, str]) -> "Pairs":
        """Return the same pairs, and others of the pictures and label files that are alone."""
        return Pairs(
            {**self.label_of, **label_of},
            self.elsewhere,
            tuple(name for name in self.lone_pictures if name not in label_of),
            tuple(name for name in self.lone_labels if name not in set(label_of.values())),
        )

    def with_empty_pictures(self) -> "Pairs":
        """Return the same pairs, and pictures without a label file as pictures without objects."""
        empty: dict[str, str | None] = dict.fromkeys(self.lone_pictures)
        return Pairs({**self.label_of, **empty}, self.elsewhere, (), self.lone_labels)


def pair_names(pictures: Iterable[str], labels: Iterable[str]) -> Pairs:
    """Pair names: equal ones; then those that differ in spelling; then those that share only their end.

    Names that could belong to several others stay alone.

    Args:
        pictures: Names of pictures, relative to their folder.
        labels: Names of label files, relative to theirs.
    """
    lone_pictures, lone_labels = set(pictures), set(labels)
    label_of: dict[str, str | None] = {name: name for name in lone_pictures & lone_labels}
    lone_pictures -= label_of.keys()
    lone_labels -= label_of.keys()
    elsewhere: list[str] = []
    deepest = max((name.count("/") + 1 for name in lone_pictures | lone_labels), default=0)
    # None compares whole names; numbers compare that many parts from the end.
    for parts in (None, *range(deepest, 0, -1)):
        ends_of_pictures, ends_of_labels = _by_end(lone_pictures, parts), _by_end(lone_labels, parts)
        for end in ends_of_pictures.keys() & ends_of_labels.keys():
            if len(ends_of_pictures[end]) == len(ends_of_labels[end]) == 1:
                (picture,), (label,) = ends_of_pictures[end], ends_of_labels[end]
                label_of[picture] = label
                lone_pictures.remove(picture)
                lone_labels.remove(label)
                elsewhere += [] if parts is None else [picture]
    return Pairs(label_of, tuple(sorted(elsewhere)), tuple(sorted(lone_pictures)), tuple(sorted(lone_labels)))


def without_suffix(path: Path, folder: Path) -> str:
    """Return the name of a file relative to a folder, with slashes and without suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def end_of(name: str, parts: int | None = None) -> str:
    """Return the key of the last parts of a name, or of the whole name."""
    key = match_key(name)
    return key if parts is None else "/".join(key.split("/")[-parts:])


def _by_end(names: Iterable[str], parts: int | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[end_of(name, parts)].append(name)
    return found
