"""Decides which value each weight of a detector gets from a file: what the weights of both wings share.

A layout is a way of naming weights; a plan pairs the weights of a detector with those of one file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from anydepth.utils.messages import join_few, short_repr
from anydepth.weights.files import StateDict, WeightsError

_SPLIT = re.compile(r"(?P<stage>.+)\.(?P<path>essential|refinement)\.(?P<index>[0-9]{1,6})\.(?P<rest>.+)")
# What belongs to stages that skip only, and which part of the full path starts it: norms, and kernels over
# fewer inputs, which are the first ones of the full kernel.
_SKIP_TWINS = {".skip.": ".full.", ".skip_conv.": ".fuse.conv."}

# A pattern, and what replaces it; the rules of a layout are applied one after the other.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Layout:
    """One way of naming the weights.

    Attributes:
        name: For reports and messages.
        markers: Alternatives of (keys that must all be there, prefix that such a file leaves out).
        rules: Plain names to foreign names.
        norm_name: Spells which set a norm belongs to; None for a set that the layout does not have.
        fused_attention: Whether query, key and value projections are one tensor, as ours are.
        tied: Prefixes under which a file may repeat, or keep instead, what it has under ``tied_to`` + prefix.
        tied_to: See ``tied``.
        note: What a user should know about weights of this origin.
    """

    name: str
    markers: Sequence[tuple[Collection[str], str]]
    rules: Sequence[Rule]
    norm_name: Callable[[str], str | None]
    fused_attention: bool = True
    tied: tuple[str, ...] = ()
    tied_to: str = ""
    note: str = ""

    def prefix_in(self, keys: Collection[str]) -> str | None:
        """What to put in front of the keys of a file of this layout; None if it is of another layout."""
        for needed, prefix in self.markers:
            if all(key in keys for key in needed):
                return prefix
        return None

    def foreign_keys(self, plain: str) -> tuple[str, ...]:
        """Foreign keys whose tensors, joined along the first axis, are ours; none without a counterpart."""
        name = self.norm_name(plain) or ""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        if not name:
            return ()
        if self.fused_attention or "in_proj_" not in name:
            return (name,)
        return tuple(name.replace("in_proj_", f"{part}_proj.") for part in "qkv")


def recognise(state: StateDict, names: Iterable[str], layouts: Sequence[Layout]) -> tuple[Layout, str]:
    """The layout of a state dict, and the prefix that its names lack.

    Args:
        state: For the message.
        names: Its plain names.
        layouts: Known ones, the most special first.

    Raises:
        WeightsError: None of the layouts fits; the message lists them.
    """
    found = set(names)
    for layout in layouts:
        prefix = layout.prefix_in(found)
        if prefix is not None:
            return layout, prefix
    raise WeightsError(
        f"{state.origin}: unknown layout, its keys begin with {join_few(state.tensors, 3)}; known are "
        f"{', '.join(layout.name for layout in layouts)}"
    )


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Our keys to plain names, in which the split of stages into paths is undone.

    ``backbone.stages.0.refinement.0.conv2.norm.full.weight`` is plainly
    ``backbone.stages.0.2.conv2.norm.full.weight`` where two blocks are essential; a stage inside a block is
    joined likewise. Other keys stay as they are.

    Args:
        keys: All keys of a state dict: they tell how many blocks are essential.
    """
    names = {key: key for key in keys}
    while any(_SPLIT.fullmatch(name) for name in names.values()):
        joined = _join_paths(names.values())
        names = {key: joined[name] for key, name in names.items()}
    return names


def _join_paths(names: Iterable[str]) -> dict[str, str]:
    """Undo the innermost split of each name."""
    matches = {name: _SPLIT.fullmatch(name) for name in names}
    essential: dict[str, int] = {}
    for match in matches.values():
        if match and match["path"] == "essential":
            essential[match["stage"]] = max(essential.get(match["stage"], 0), int(match["index"]) + 1)
    joined = {}
    for name, match in matches.items():
        if match is None:
            joined[name] = name
            continue
        offset = essential.get(match["stage"], 0) if match["path"] == "refinement" else 0
        joined[name] = f"{match['stage']}.{int(match['index']) + offset}.{match['rest']}"
    return joined


def twin_of(plain: str) -> str | None:
    """The name of what starts a weight that only skipping stages use; None for every other name.

    For a norm of the skip state that is the full norm, for a fusion kernel of the skip state the full kernel.
    """
    for skip, full in _SKIP_TWINS.items():
        if skip in plain:
            return plain.replace(skip, full)
    return None


@dataclass(frozen=True)
class Kinds:
    """Which weights of a wing are special.

    Attributes:
        class_heads: Matches what depends on the number of classes, from the start of a plain name.
        class_rows: Of these, what has a row for each class, and perhaps more behind them.
        derived: Found in names of what was not learnt: step counters, and tables computed from sizes.
    """

    class_heads: re.Pattern[str]
    class_rows: re.Pattern[str]
    derived: re.Pattern[str]

    def is_derived(self, name: str) -> bool:
        """Whether nothing was learnt that has this name, ours or a foreign one."""
        return self.derived.search(name) is not None


@dataclass(frozen=True)
class Classes:
    """Which classes of a detector are which of a file.

    Attributes:
        own: Names of the detector's classes.
        file: Names of the file's classes; empty: unknown.
    """

    own: tuple[str, ...]
    file: tuple[str, ...]

    @cached_property
    def pairs(self) -> dict[int, int]:
        """Where the file has a class of the detector, by where that has it; empty: no name is in both."""
        places = {name: place for place, name in enumerate(self.file)}
        return {place: places[name] for place, name in enumerate(self.own) if name in places}

    def taken(self, own: Tensor, value: Tensor) -> Tensor:
        """The detector's rows with those of the file in the place of all classes that it has.

        Args:
            own: [K + rest, ...]: one row for each of the detector's K classes; the rest is the same in both.
            value: [K' + rest, ...]: likewise of the file's.

        Returns:
            [K + rest, ...]; the value itself where classes cannot be told apart.
        """
        rest = len(own) - len(self.own)
        known = bool(self.pairs) and self.own != self.file
        if not known or rest < 0 or value.shape != (len(self.file) + rest, *own.shape[1:]):
            return value
        taken = own.clone()
        taken[list(self.pairs)] = value[list(self.pairs.values())].to(own)
        taken[len(self.own) :] = value[len(self.file) :].to(own)
        return taken

    @property
    def note(self) -> str:
        """What to know about the class heads; empty: nothing."""
        if self.own == self.file or not self.file or _are_numbers(self.own) or _are_numbers(self.file):
            return ""
        if self.pairs:
            return f"classes are taken by their names: {len(self.pairs)} of {len(self.own)} are in the file"
        if len(self.own) != len(self.file):
            return ""
        names = join_few([short_repr(name) for name in self.file], 3)
        return f"the file has other classes ({names}), taken in their order"


def _are_numbers(names: tuple[str, ...]) -> bool:
    """Whether classes have the names that they have until a data set names them."""
    return names == tuple(map(str, range(len(names))))


class Plan:
    """Which value each key of the detector gets; nothing is copied yet.

    Args:
        own: The detector's state dict.
        layout: How the file's tensors are named.
        tensors: The file's tensors.
        kinds: Which weights are special.
        classes: Of the detector and of the file.

    Attributes:
        values: By key of the detector, what is to be copied.
        copied: Keys of ``values`` that only skipping stages use, and that take the full path's value.
        class_heads: Keys whose shape differs with the number of classes only.
        misfits: Other keys whose shape differs, with the shape in the file.
        missing: Keys that the file has no value for.
        has_classes: Whether values of a class each are among ``values``.
        unused: Keys of the file that no key of the detector asked for.
    """

    def __init__(
        self,
        own: Mapping[str, Tensor],
        layout: Layout,
        tensors: Mapping[str, Tensor],
        kinds: Kinds,
        classes: Classes,
    ) -> None:
        self.own, self.layout, self.tensors, self.classes = own, layout, tensors, classes
        self.values: dict[str, Tensor] = {}
        self.copied: list[str] = []
        self.class_heads: list[str] = []
        self.misfits: dict[str, tuple[int, ...]] = {}
        self.missing: list[str] = []
        self.has_classes = False
        used: set[str] = set()
        for key, plain in plain_names(own).items():
            twin = twin_of(plain)
            source = plain if self.find(plain) is not None or twin is None else twin
            value = self.find(source)
            used.update(layout.foreign_keys(source))
            if value is None:
                if not kinds.is_derived(key):
                    self.missing.append(key)
                continue
            if source != plain and ".skip_conv." in plain and value.ndim > 1:
                value = value[:, : own[key].shape[1]]
            if kinds.class_rows.match(key):
                value = classes.taken(own[key], value)
            if value.shape == own[key].shape:
                self.values[key] = value
                self.has_classes |= kinds.class_rows.match(key) is not None
                if source != plain:
                    self.copied.append(key)
            elif kinds.class_heads.match(key):
                self.class_heads.append(key)
            else:
                self.misfits[key] = tuple(value.shape)
        self.unused = [key for key in tensors if key not in used and not kinds.is_derived(key)]

    def find(self, plain: str) -> Tensor | None:
        """The file's value for a plain name; None if it has none, or parts that do not fit together."""
        keys = self.layout.foreign_keys(plain)
        if not keys or any(key not in self.tensors for key in keys):
            return None
        parts = [self.tensors[key] for key in keys]
        if len(parts) == 1:
            return parts[0]
        joined = all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts)
        return torch.cat(parts) if joined else None

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the values into the detector, in its own precision."""
        for key, value in self.values.items():
            self.own[key].copy_(value)


def check_shapes(plan: Plan, origin: str, sizes: str) -> None:
    """Refuse files of other sizes; only the number of classes may differ.

    Args:
        plan: With the misfits.
        origin: Of the file.
        sizes: Settings of the wing that change shapes, for the message.

    Raises:
        WeightsError: Shapes differ.
    """
    if not plan.misfits:
        return
    shown = "; ".join(
        f"{key} is {list(shape)} in the file and {list(plan.own[key].shape)} in the detector"
        for key, shape in list(plan.misfits.items())[:3]
    )
    raise WeightsError(
        f"{origin}: {len(plan.misfits)} tensors are of another shape: {shown}. Nothing was loaded; build the "
        f"detector with the sizes of the file ({sizes}, ...)"
    )
