"""Selection of an image's detections among the boxes that a network proposes, as plain values.

A detector states its selection, so that an exported bundle can record it and a runtime without torch repeat
it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from anydepth.utils.messages import short_repr


@dataclass(frozen=True)
class TopScores:
    """The best (box, class) pairs of an image, without suppression, as in the DETR family.

    Attributes:
        detections: Number of pairs that are kept.

    Raises:
        ValueError: A number below 1.
    """

    kind: ClassVar[str] = "top_scores"

    detections: int

    def __post_init__(self) -> None:
        if self.detections < 1:
            raise ValueError(f"detections={self.detections}: allowed are 1 or more")


@dataclass(frozen=True)
class NmsConfig:
    """Settings of class-wise non-maximum suppression; the defaults are those of YOLOv12's published figures.

    Attributes:
        score: Score that (box, class) pairs must exceed to be kept.
        iou: IoU above which the box with the lower score of two boxes of a class is suppressed.
        candidates: Maximum number of pairs per image that go into suppression, best first.
        detections: Maximum number of detections per image.

    Raises:
        ValueError: A value outside its range.
    """

    kind: ClassVar[str] = "nms"

    score: float = 0.001
    iou: float = 0.7
    candidates: int = 30_000
    detections: int = 300

    def __post_init__(self) -> None:
        for name in ("score", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"nms_{name}={getattr(self, name)}: allowed are 0 to 1")
        for name in ("candidates", "detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"nms_{name}={getattr(self, name)}: allowed are 1 or more")


Selection = TopScores | NmsConfig
_KINDS: dict[str, type[TopScores] | type[NmsConfig]] = {kind.kind: kind for kind in (TopScores, NmsConfig)}


def selection_to_dict(selection: Selection) -> dict[str, object]:
    """Return a selection as plain values, which :func:`parse_selection` reads back.

    Example:
        >>> selection_to_dict(TopScores(300))
        {'kind': 'top_scores', 'detections': 300}
    """
    return {"kind": selection.kind, **asdict(selection)}


def parse_selection(values: object) -> Selection:
    """Read a selection back from untrusted plain values.

    Raises:
        ValueError: Another kind, or a setting that is missing, unknown, of another type or out of range.
    """
    kind = _KINDS.get(str(values.get("kind"))) if isinstance(values, Mapping) else None
    if kind is None:
        raise ValueError(f"got the selection {short_repr(values)}, expected a kind of {', '.join(_KINDS)}")
    assert isinstance(values, Mapping)
    settings = {name: value for name, value in values.items() if name != "kind"}
    types = {field.name: field.type for field in fields(kind)}
    for name in settings.keys() | types.keys():
        value = settings.get(name)
        allowed = (int, float) if types.get(name) is float else int
        if name not in types or isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(
                f"got {name}={short_repr(value)} of the selection {kind.kind}, expected numbers for "
                f"{', '.join(types)}"
            )
    return kind(**settings)
