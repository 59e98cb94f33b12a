"""Names of classes that differ in spelling only."""

import re
from collections.abc import Sequence

_SEPARATORS = re.compile(r"[\s_-]+")
# Names in COCO of classes that Pascal VOC (Everingham et al., 2010) calls otherwise, apart from spaces.
_COCO_NAMES = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


def spell_alike(first: Sequence[str], second: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return two lists of class names in one spelling, so that equal names are the same class.

    Capitals, spaces, hyphens and underscores do not count, nor whether a class that COCO took over from
    Pascal VOC has its older name, as in RT-DETR's published networks for transformers. If that makes two
    names of a list the same, both lists are returned as they are.

    Example:
        >>> spell_alike(("Potted plant", "sofa"), ("couch", "cat"))
        (('pottedplant', 'couch'), ('couch', 'cat'))
        >>> spell_alike(("Dog", "dog"), ("dog",))
        (('Dog', 'dog'), ('dog',))
    """
    alike = [tuple(map(_plain, names)) for names in (first, second)]
    if any(len(set(names)) < len(names) for names in alike):
        return tuple(first), tuple(second)
    return alike[0], alike[1]


def _plain(name: str) -> str:
    plain = _SEPARATORS.sub("", name.casefold()) or name
    return _COCO_NAMES.get(plain, plain)
