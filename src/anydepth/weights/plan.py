"""Map the weights of a file to those of a detector, for both detector families.

A layout is a way of naming weights; a plan pairs the weights of a detector with those of one file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from anydepth.utils.class_names import spell_alike
from anydepth.utils.messages import join_few, short_repr
from anydepth.weights.files import StateDict, WeightsError

# At most six digits of an index: no stage has a million blocks, and int() refuses thousands of digits.
_SPLIT = re.compile(r"(?P<stage>.+)\.(?P<path>essential|refinement)\.(?P<index>[0-9]{1,6})\.(?P<rest>.+)")
# Name parts of weights that only skipping stages use, and of the full-state weights that initialise them:
# norms, and kernels over fewer input channels, which are the first ones of the full kernel.
_SKIP_SOURCES = {".skip.": ".full.", ".skip_conv.": ".fuse.conv."}


class UnknownLayoutError(WeightsError):
    """Weights that are named as in no known layout of a family."""


# A pattern and its replacement; the rules of a layout are applied one after the other.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Layout:
    """One way of naming the weights.

    Attributes:
        name: Name for reports and messages.
        markers: Alternatives of (keys that must all be present, prefix that the keys of such a file lack).
        rules: Rules that translate plain names to foreign names.
        norm_name: Function that writes the norm set into a plain name; None for a set that the layout lacks.
        fused_attention: Whether query, key and value projections are one tensor, as ours are.
        tied: Prefixes of names under which a file may repeat the tensors of ``tied_to`` + prefix, or hold
            them instead.
        tied_to: Prefix of the tied names, see ``tied``.
        note: Advice to users about weights of this origin.
    """

    name: str
    markers: Sequence[tuple[Collection[str], str]]
    rules: Sequence[Rule]
    norm_name: Callable[[str], str | None]
    fused_attention: bool = True
    tied: tuple[str, ...] = ()
    tied_to: str = ""
    note: str = ""

    def find_prefix(self, keys: Collection[str]) -> str | None:
        """Return the prefix that a file's keys lack; None if the file is of another layout."""
        for needed, prefix in self.markers:
            if all(key in keys for key in needed):
                return prefix
        return None

    def foreign_keys(self, plain: str) -> tuple[str, ...]:
        """Return the foreign keys whose tensors, joined along the first axis, are ours; empty if none are."""
        if plain not in self._translated:
            self._translated[plain] = self._translate(plain)
        return self._translated[plain]

    @cached_property
    def _translated(self) -> dict[str, tuple[str, ...]]:
        """Names translated so far: loading asks for each several times, and rules take most of its time."""
        return {}

    def _translate(self, plain: str) -> tuple[str, ...]:
        name = self.norm_name(plain) or ""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        if not name:
            return ()
        if self.fused_attention or "in_proj_" not in name:
            return (name,)
        return tuple(name.replace("in_proj_", f"{part}_proj.") for part in "qkv")


def detect_layout(state: StateDict, names: Iterable[str], layouts: Sequence[Layout]) -> tuple[Layout, str]:
    """Return the layout of a state dict, and the prefix that its names lack.

    Args:
        state: State dict, for the message.
        names: Plain names of the state dict.
        layouts: Known layouts, the most specific first.

    Raises:
        UnknownLayoutError: None of the layouts matches; the message lists them.
    """
    found = set(names)
    for layout in layouts:
        prefix = layout.find_prefix(found)
        if prefix is not None:
            return layout, prefix
    raise UnknownLayoutError(
        f"{state.origin}: unknown layout, its keys begin with {join_few(state.tensors, 3)}; known are "
        f"{', '.join(layout.name for layout in layouts)}"
    )


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Map our keys to plain names, which do not depend on how stages are split into paths.

    With two essential blocks, ``backbone.stages.0.refinement.0.conv2.norm.full.weight`` has the plain name
    ``backbone.stages.0.2.conv2.norm.full.weight``; a stage inside a block is joined in the same way. Other
    keys do not change.

    Args:
        keys: All keys of a state dict, from which the number of essential blocks follows.
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


def skip_source(plain: str) -> str | None:
    """Return the name of the weight that initialises a skip-only weight; None for every other name.

    A skip norm starts from the full norm, and a skip fusion kernel from the full fusion kernel.
    """
    for skip, full in _SKIP_SOURCES.items():
        if skip in plain:
            return plain.replace(skip, full)
    return None


@dataclass(frozen=True)
class Kinds:
    """Patterns for the names of special weights of a family.

    Attributes:
        class_heads: Matches plain names of weights that depend on the number of classes.
        class_rows: Matches those of them that have one row per class, perhaps followed by other rows.
        derived: Found in names of tensors that were not learnt: step counters, and tables computed from
            sizes.
    """

    class_heads: re.Pattern[str]
    class_rows: re.Pattern[str]
    derived: re.Pattern[str]

    def is_derived(self, name: str) -> bool:
        """Return whether a tensor of this name, ours or a foreign one, was not learnt."""
        return self.derived.search(name) is not None


@dataclass(frozen=True)
class Classes:
    """Correspondence between the classes of a detector and those of a file, by name.

    Attributes:
        own: Class names of the detector.
        file: Class names of the file; empty if unknown.
    """

    own: tuple[str, ...]
    file: tuple[str, ...]

    @cached_property
    def pairs(self) -> dict[int, int]:
        """Index in the file of each shared class, by its index in the detector; empty if none is shared.

        Names are the same if they differ in spelling only, see
        :func:`~anydepth.utils.class_names.spell_alike`.
        """
        own, file = spell_alike(self.own, self.file)
        indices = {name: index for index, name in enumerate(file)}
        return {index: indices[name] for index, name in enumerate(own) if name in indices}

    def merge_rows(self, own: Tensor, value: Tensor) -> Tensor:
        """Return the detector's rows, replaced by the file's for all classes that the file has.

        Args:
            own: [K + R, ...] of the detector: one row for each of its K classes, then R other rows.
            value: [K' + R, ...] of the file, with K' classes.

        Returns:
            [K + R, ...]; ``value`` itself if the classes cannot be matched by name.
        """
        rest = len(own) - len(self.own)
        own_names, file_names = spell_alike(self.own, self.file)
        known = bool(self.pairs) and own_names != file_names
        if not known or rest < 0 or value.shape != (len(self.file) + rest, *own.shape[1:]):
            return value
        merged = own.clone()
        merged[list(self.pairs)] = value[list(self.pairs.values())].to(own)
        merged[len(self.own) :] = value[len(self.file) :].to(own)
        return merged

    @property
    def note(self) -> str:
        """Remark on the class heads for the report; empty if there is nothing to say."""
        if self.own == self.file or not self.file or _are_numbers(self.own) or _are_numbers(self.file):
            return ""
        if self.pairs:
            spelt = [index for index, other in self.pairs.items() if self.own[index] != self.file[other]]
            examples = [f"{self.own[index]} = {self.file[self.pairs[index]]}" for index in spelt]
            note = f"classes are matched by name: {len(self.pairs)} of {len(self.own)} are in the file"
            return f"{note} ({join_few(examples, 3)})" if examples else note
        if len(self.own) != len(self.file):
            return ""
        names = join_few([short_repr(name) for name in self.file], 3)
        return f"the file has other classes ({names}), matched by their order"


def _are_numbers(names: tuple[str, ...]) -> bool:
    """Return whether these are the default names "0", "1", ... of classes without a data set."""
    return names == tuple(map(str, range(len(names))))


class Plan:
    """Values for the keys of a detector; nothing is copied before :meth:`apply`.

    Args:
        own: State dict of the detector.
        layout: Layout of the file.
        tensors: Tensors of the file.
        kinds: Patterns for the names of special weights.
        classes: Class names of the detector and of the file.

    Attributes:
        values: Values to copy, by key of the detector.
        copied: Keys of ``values`` that only skipping stages use and that get the value of the full state.
        class_heads: Keys whose shape differs only because of the number of classes.
        misfits: Other keys whose shape differs, with the shape in the file.
        missing: Keys that the file has no value for.
        has_classes: Whether ``values`` holds tensors with one row per class.
        file_classes: Number of classes of the file; None if it has no tensor with one row per class.
        unused: Keys of the file that match no key of the detector.
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
        self.file_classes: int | None = None
        used: set[str] = set()
        for key, plain in plain_names(own).items():
            fallback = skip_source(plain)
            source = plain if self.find(plain) is not None or fallback is None else fallback
            value = self.find(source)
            used.update(layout.foreign_keys(source))
            if value is None:
                if not kinds.is_derived(key):
                    self.missing.append(key)
                continue
            if source != plain and ".skip_conv." in plain and value.ndim > 1:
                value = value[:, : own[key].shape[1]]
            if kinds.class_rows.match(key) and value.ndim and own[key].ndim:
                self.file_classes = len(value) - (len(own[key]) - len(classes.own))
                value = classes.merge_rows(own[key], value)
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
        """Return the file's value for a plain name; None if it has none, or parts that cannot be joined."""
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
        """Copy the values into the detector, converted to its precision."""
        for key, value in self.values.items():
            self.own[key].copy_(value)


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights of a run that diverged: one number that is none spoils every output.

    Args:
        tensors: The weights that would be copied, by key.
        origin: Origin of the file, for the message.

    Raises:
        WeightsError: NaN or infinity among them.
    """
    wrong = [
        key
        for key, value in tensors.items()
        if value.is_floating_point() and value.device.type != "meta" and not bool(value.isfinite().all())
    ]
    if wrong:
        raise WeightsError(
            f"{origin}: {len(wrong)} of {len(tensors)} tensors hold NaN or infinity ({join_few(wrong, 3)}), "
            "as after training that diverged; give weights of an earlier step"
        )


def check_shapes(plan: Plan, origin: str, sizes: str) -> None:
    """Check that the shapes agree; only the number of classes may differ.

    Args:
        plan: Plan with the misfits.
        origin: Origin of the file, for the message.
        sizes: Settings of the family that change shapes, for the message.

    Raises:
        WeightsError: Shapes differ.
    """
    if not plan.misfits:
        return
    shown = "; ".join(
        f"{key} has shape {list(shape)} in the file and {list(plan.own[key].shape)} in the detector"
        for key, shape in list(plan.misfits.items())[:3]
    )
    raise WeightsError(
        f"{origin}: {len(plan.misfits)} tensors have another shape than the detector's: {shown}. Nothing was "
        f"loaded; build the detector with the sizes of the file ({sizes}, ...)"
    )
