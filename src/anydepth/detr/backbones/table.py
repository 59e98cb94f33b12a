"""Backbones by name: the table that building, loading of weights and messages read.

A package adds one of its own with an entry point of the group ``anydepth.backbones``, whose name is the value
of ``block`` in a detector preset, and whose object is a :class:`~anydepth.detr.backbones.base.BackboneKind`.
"""

from collections.abc import Iterator

from anydepth.detr.backbones.base import Backbone, BackboneKind, BackboneSettings
from anydepth.detr.backbones.resnet import BASIC, BOTTLENECK
from anydepth.detr.backbones.swin import SWIN
from anydepth.utils.entry_points import entry_points_of

ENTRY_POINTS = "anydepth.backbones"

BACKBONES: dict[str, BackboneKind] = {"swin": SWIN, "bottleneck": BOTTLENECK, "basic": BASIC}
"""Kinds by the value of ``block`` in a preset. A file has the first kind whose marker it holds."""


def backbone_names() -> tuple[str, ...]:
    """Return the names of all backbones, with those of other packages last."""
    return (*BACKBONES, *(found.name for found in entry_points_of(ENTRY_POINTS)))


def find_backbone(name: str) -> BackboneKind:
    """Return a backbone by its name.

    Raises:
        ValueError: The name is unknown, or taken twice, or its entry point is not a :class:`BackboneKind`.
    """
    others = [found for found in entry_points_of(ENTRY_POINTS) if found.name == name]
    if name in BACKBONES and others:
        raise ValueError(
            f"entry point {name} of {ENTRY_POINTS}: anydepth has a backbone of this name; "
            "rename the entry point"
        )
    if name in BACKBONES:
        return BACKBONES[name]
    for found in others:
        try:
            kind = found.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"entry point {name} = {found.value} of {ENTRY_POINTS}: {error}; repair or uninstall "
                "the package that declares it"
            ) from error
        if not isinstance(kind, BackboneKind):
            raise ValueError(
                f"entry point {name} of {ENTRY_POINTS}: got a {type(kind).__name__}, expected a "
                "BackboneKind; let it name one"
            )
        return kind
    raise ValueError(f"block={name!r}: allowed are {', '.join(map(repr, sorted(backbone_names())))}")


def all_backbones() -> Iterator[tuple[str, BackboneKind]]:
    """Yield every backbone by name; other packages' first, because their markers are more specific."""
    for found in entry_points_of(ENTRY_POINTS):
        yield found.name, find_backbone(found.name)
    yield from BACKBONES.items()


def build_backbone(block: str, settings: BackboneSettings) -> Backbone:
    """Build the backbone that ``block`` names; settings that it does not support are refused, not ignored.

    Args:
        block: One of :func:`backbone_names`.
        settings: Settings of the backbone.

    Raises:
        ValueError: A value that the backbone does not support; the message says what is allowed.
    """
    kind = find_backbone(block)
    if settings.stem not in kind.stems:
        allowed = " or ".join(map(repr, kind.stems))
        raise ValueError(
            f"stem={settings.stem!r}: {kind.label} (block={block}) has the stem {allowed}; give that one"
        )
    if settings.stochastic_depth and not kind.has_stochastic_depth:
        others = ", ".join(f"block={name}" for name, found in all_backbones() if found.has_stochastic_depth)
        raise ValueError(
            f"stochastic_depth={settings.stochastic_depth}: {kind.label} (block={block}) drops no residual "
            f"branches; give 0, or {others}"
        )
    return kind.build(settings)
