"""Depth configurations: which refinement paths of a detector run, and how they are written as text.

Pure Python: nothing here knows about tensors. A :class:`DepthSpace` belongs to one detector and is the only
place that parses, prints and enumerates its configurations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import Literal

LadderOrder = Literal["stage", "cost"]

# Digits of a decoder depth: more than any decoder needs, and far below the thousands that int() refuses.
_MAX_DIGITS = 9

FRACTIONS: Mapping[str, Fraction] = {"3/4": Fraction(3, 4), "1/2": Fraction(1, 2), "1/4": Fraction(1, 4)}


class DepthError(ValueError):
    """A depth that does not exist in a detector's space; the message prints the space."""


@dataclass(frozen=True)
class DepthConfig:
    """One point of a :class:`DepthSpace`; built by the space, never by hand.

    Attributes:
        refine: One flag per stage in the order of the space; true where the refinement path runs.
        decoder_layers: Number of decoder layers that run, or None for a detector without decoder layers.
        text: Printed form; parses back to an equal configuration. Not compared.
    """

    refine: tuple[bool, ...]
    decoder_layers: int | None = None
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class DepthCosts:
    """Cost of each removable part of a detector, in MACs at the space's reference input size.

    Attributes:
        refinements: MACs of the refinement path of each stage, in the order of the space.
        decoder_layer: MACs of one decoder layer; 0 for a detector without decoder layers.
    """

    refinements: tuple[int, ...]
    decoder_layer: int = 0


class DepthSpace:
    """All depths of one detector: named stages that may refine or skip, and decoder layers 1..L.

    Args:
        stages: Names of the stages with a refinement path, earliest first. Empty for a fixed-depth detector.
        decoder_layers: L, the number of decoder layers, or None if the depth does not include them.
        minimal_decoder_layers: Number of decoder layers of the minimal configuration.
        costs: Function that measures the costs; called once, when a cost is first needed (fractions, order
            by cost).

    Raises:
        ValueError: A stage name that is repeated or reserved, only one of the two numbers of decoder layers,
            or ``minimal_decoder_layers`` outside 1..L.

    Example:
        >>> space = DepthSpace(stages=("stage1", "neck"), decoder_layers=6, minimal_decoder_layers=4)
        >>> space.parse("neck@5").refine
        (False, True)
        >>> str(space.parse("none@4")), [str(d) for d in space.ladder()]
        ('minimal', ['full', 'neck@6', 'none@6', 'none@5', 'minimal'])
        >>> print(DepthSpace(stages=("a", "b"), costs=lambda: DepthCosts((10**9, 3 * 10**9))))
        depth    refines  GFLOPs saved  share kept
        full     a+b              0.00        100%
        b        b                2.00         75%
        minimal  none             8.00          0%
        3/4      b                2.00         75%
        1/2      b                2.00         75%
        1/4      none             8.00          0%
    """

    def __init__(
        self,
        *,
        stages: Sequence[str],
        decoder_layers: int | None = None,
        minimal_decoder_layers: int | None = None,
        costs: Callable[[], DepthCosts] | None = None,
    ) -> None:
        reserved = {"full", "minimal", "none", "all", "ladder", *FRACTIONS}
        if len(set(stages)) != len(stages) or reserved & set(stages):
            raise ValueError(f"stages={tuple(stages)}: names must be unique and none of {sorted(reserved)}")
        if (decoder_layers is None) != (minimal_decoder_layers is None):
            raise ValueError(
                f"got decoder_layers={decoder_layers} and minimal_decoder_layers={minimal_decoder_layers}; "
                "give both decoder_layers and minimal_decoder_layers, or neither"
            )
        if (
            decoder_layers is not None
            and minimal_decoder_layers is not None
            and not 1 <= minimal_decoder_layers <= decoder_layers
        ):
            raise ValueError(
                f"minimal_decoder_layers={minimal_decoder_layers}: allowed are 1..{decoder_layers} "
                "(decoder_layers)"
            )
        self.stages = tuple(stages)
        self.decoder_layers = decoder_layers
        self.minimal_decoder_layers = minimal_decoder_layers
        self._measure_costs = costs
        self._costs: DepthCosts | None = None

    # -- single configurations ---------------------------------------------------------------------------

    @property
    def full(self) -> DepthConfig:
        """The deepest configuration, in which every refinement path and every decoder layer runs."""
        return DepthConfig((True,) * len(self.stages), self.decoder_layers, "full")

    @property
    def minimal(self) -> DepthConfig:
        """The configuration without refinement paths and with ``minimal_decoder_layers`` decoder layers."""
        return DepthConfig((False,) * len(self.stages), self.minimal_decoder_layers, "minimal")

    def config(self, refine: Sequence[bool], decoder_layers: int | None = None) -> DepthConfig:
        """Return the configuration with these flags, named in its canonical form.

        Args:
            refine: One flag per stage, in the order of :attr:`stages`.
            decoder_layers: Number of decoder layers in 1..L; None means all of them.

        Raises:
            DepthError: A wrong number of flags, or a decoder depth outside 1..L.
        """
        if len(refine) != len(self.stages):
            raise DepthError(
                f"got {len(refine)} refine flags, expected {len(self.stages)}, one per stage. "
                f"{self.describe()}"
            )
        if decoder_layers is None:
            decoder_layers = self.decoder_layers
        elif self.decoder_layers is None:
            raise DepthError(
                f"decoder depth {decoder_layers}: this detector has no decoder layers to skip. "
                f"{self.describe()}"
            )
        elif not 1 <= decoder_layers <= self.decoder_layers:
            raise DepthError(
                f"decoder depth {decoder_layers}: allowed are 1..{self.decoder_layers}. {self.describe()}"
            )
        config = DepthConfig(tuple(bool(flag) for flag in refine), decoder_layers)
        for named in (self.full, self.minimal):
            if config == named:
                return named
        return DepthConfig(config.refine, config.decoder_layers, self._explicit_text(config))

    def parse(self, text: "str | DepthConfig") -> DepthConfig:
        """Return the configuration that a text names.

        Args:
            text: ``full``, ``minimal``, ``3/4``, ``1/2``, ``1/4``, or the explicit form: the stages that
                refine, joined by ``+`` (``none`` for no stage), and the decoder layers after ``@``
                (left out: all), e.g. ``stage3+neck@5``. A configuration of this space passes through.

        Raises:
            DepthError: Anything else; the message prints the space.
        """
        if isinstance(text, DepthConfig):
            checked = self.config(text.refine, text.decoder_layers)
            return text if text.text else checked
        given: object = text  # a configuration file may hold anything
        if not isinstance(given, str):
            raise DepthError(
                f"depth {given!r}: got a {type(given).__name__}, expected a string. {self.describe()}"
            )
        text = text.strip()
        if text.startswith(("<", ">")):
            raise DepthError(
                f"depth {text!r}: a budget, which is allowed where a detector predicts, is specialised or is "
                f"evaluated (Detector.resolve), but not here, e.g. not in training. {self.describe()}"
            )
        if text in ("full", "minimal"):
            return self.full if text == "full" else self.minimal
        if text in FRACTIONS:
            point = self._find_nearest(FRACTIONS[text])
            return DepthConfig(point.refine, point.decoder_layers, text)
        return self._parse_explicit(text)

    def parse_list(self, depths: "str | DepthConfig | Sequence[str | DepthConfig]") -> list[DepthConfig]:
        """Parse several configurations: a list of texts, or ``ladder`` or ``all``; duplicates are dropped.

        Raises:
            DepthError: An unknown text, or an empty list.
        """
        if isinstance(depths, str | DepthConfig):
            depths = [depths]
        given: object = depths
        if not isinstance(given, Sequence):
            raise DepthError(
                f"depths {given!r}: got a {type(given).__name__}, expected a string or a list of strings. "
                f"{self.describe()}"
            )
        found: dict[DepthConfig, DepthConfig] = {}
        for depth in depths:
            for config in self._expand(depth):
                found.setdefault(config, config)
        if not found:
            raise DepthError(f"got an empty list of depths; give at least one. {self.describe()}")
        return list(found.values())

    def describe(self) -> str:
        """Describe the space in one line, for error messages and help."""
        stages = ", ".join(self.stages) or "no stage (fixed depth)"
        named = ", ".join(["full", "minimal", *FRACTIONS])
        text = f"Allowed: {named}, or stages joined by '+' out of [{stages}] or 'none'"
        if self.decoder_layers is not None:
            text += f", then '@' and 1..{self.decoder_layers} decoder layers"
            example = f"{self.stages[-1] if self.stages else 'none'}@{self.minimal_decoder_layers}"
        else:
            example = "+".join(self.stages[-2:]) or "none"
        return f"{text}, e.g. '{example}'."

    def __str__(self) -> str:
        """Return a table: the ladder and the fractions, with what each saves if the costs are known."""
        points = [*self.ladder(), *(self.parse(text) for text in FRACTIONS if self._has_costs)]
        rows = [self._heading(), *map(self._row, points)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        # Names to the left, numbers to the right.
        aligned = [
            f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in aligned)

    # -- sets of configurations --------------------------------------------------------------------------

    def all(self) -> Iterator[DepthConfig]:
        """Enumerate the configurations: 2^stages times the decoder depths 1..L, from full downwards."""
        layers: Sequence[int | None] = [None]
        if self.decoder_layers is not None:
            layers = range(self.decoder_layers, 0, -1)
        for count in layers:
            for refine in product((True, False), repeat=len(self.stages)):
                yield self.config(refine, count)

    def ladder(
        self, order: LadderOrder = "stage", *, measured_ap: Mapping[DepthConfig, float] | None = None
    ) -> list[DepthConfig]:
        """Return a monotone chain from full to minimal; each step removes one refinement path or layer.

        Args:
            order: ``stage`` removes the earliest stage first and decoder layers last (the order of adaptive
                depth networks); ``cost`` removes the most expensive part first.
            measured_ap: AP of configurations from a depth curve. If given, it replaces ``order``: each step
                takes the removal that loses the least AP per MAC saved.

        Raises:
            DepthError: An unknown order, or ``measured_ap`` lacks a configuration that a step compares.
        """
        if measured_ap is not None:
            return self._measured_ladder(measured_ap)
        parts = [*range(len(self.stages)), *[-1] * self._removable_layers()]
        if order == "cost":
            parts.sort(key=lambda part: -self._part_cost(part))
        elif order != "stage":
            raise DepthError(f"ladder order {order!r}: allowed are 'stage' and 'cost'")
        chain = [self.full]
        for part in parts:
            chain.append(self._remove_part(chain[-1], part))
        return chain

    # -- cost --------------------------------------------------------------------------------------------

    @property
    def costs(self) -> DepthCosts:
        """MACs of the removable parts, measured on first access.

        Raises:
            DepthError: The space was built without a function that measures them.
        """
        if self._costs is None:
            if self._measure_costs is None:
                raise DepthError(
                    "this depth space has no costs, but fractions and the order by cost need them; build it "
                    "with DepthSpace(costs=...)"
                )
            self._costs = self._measure_costs()
        return self._costs

    def saving(self, config: DepthConfig) -> int:
        """Return the MACs that a configuration saves relative to full, at the reference input size."""
        costs = self.costs
        saved = sum(cost for cost, runs in zip(costs.refinements, config.refine, strict=True) if not runs)
        if self.decoder_layers is not None and config.decoder_layers is not None:
            saved += (self.decoder_layers - config.decoder_layers) * costs.decoder_layer
        return saved

    # -- internals ---------------------------------------------------------------------------------------

    @property
    def _has_costs(self) -> bool:
        return self._costs is not None or self._measure_costs is not None

    def _heading(self) -> list[str]:
        layers = [] if self.decoder_layers is None else ["decoder layers"]
        return ["depth", "refines", *layers, *(["GFLOPs saved", "share kept"] if self._has_costs else [])]

    def _row(self, config: DepthConfig) -> list[str]:
        names = [name for name, runs in zip(self.stages, config.refine, strict=True) if runs]
        layers = [] if self.decoder_layers is None else [str(config.decoder_layers)]
        row = [str(config), "+".join(names) or "none", *layers]
        if not self._has_costs:
            return row
        saved, whole = self.saving(config), self.saving(self.minimal)
        # GFLOPs count two operations per MAC; the share is that of all that can be left out.
        return [*row, f"{2e-9 * saved:.2f}", f"{1 - saved / whole:.0%}" if whole else "100%"]

    def _explicit_text(self, config: DepthConfig) -> str:
        names = [name for name, runs in zip(self.stages, config.refine, strict=True) if runs]
        text = "+".join(names) or "none"
        return text if config.decoder_layers is None else f"{text}@{config.decoder_layers}"

    def _parse_explicit(self, text: str) -> DepthConfig:
        names_text, at, layers_text = text.partition("@")
        names = [] if names_text == "none" else names_text.split("+")
        unknown = [name for name in names if name not in self.stages]
        if unknown or len(set(names)) != len(names):
            what = f"unknown stage {unknown[0]!r}" if unknown else "a stage is named twice"
            raise DepthError(f"depth {text!r}: {what}. {self.describe()}")
        layers = None
        if at:
            if not (layers_text.isascii() and layers_text.isdecimal() and len(layers_text) <= _MAX_DIGITS):
                raise DepthError(
                    f"depth {text!r}: got {layers_text!r} after '@', expected a number. {self.describe()}"
                )
            layers = int(layers_text)
        return self.config([name in names for name in self.stages], layers)

    def _expand(self, depth: "str | DepthConfig") -> list[DepthConfig]:
        if depth == "ladder":
            return self.ladder()
        if depth == "all":
            return list(self.all())
        return [self.parse(depth)]

    def _removable_layers(self) -> int:
        return (self.decoder_layers or 0) - (self.minimal_decoder_layers or 0)

    def _part_cost(self, part: int) -> int:
        return self.costs.decoder_layer if part < 0 else self.costs.refinements[part]

    def _remove_part(self, config: DepthConfig, part: int) -> DepthConfig:
        """Remove the refinement path of stage ``part``, or one decoder layer (-1)."""
        if part < 0:
            return self.config(config.refine, (config.decoder_layers or 0) - 1)
        refine = [runs and stage != part for stage, runs in enumerate(config.refine)]
        return self.config(refine, config.decoder_layers)

    def _find_nearest(self, share: Fraction) -> DepthConfig:
        """Return the ladder point that keeps about this share of all removable MACs."""
        ladder = self.ladder()
        whole = self.saving(self.minimal)
        # Ties go to the deeper point, so that a fraction never promises less compute than it names.
        return min(ladder, key=lambda point: abs(whole - self.saving(point) - share * whole))

    def _measured_ladder(self, measured_ap: Mapping[DepthConfig, float]) -> list[DepthConfig]:
        chain = [self.full]
        while chain[-1] != self.minimal:
            here = chain[-1]
            parts = [stage for stage, runs in enumerate(here.refine) if runs]
            if here.decoder_layers is not None and here.decoder_layers > (self.minimal_decoder_layers or 0):
                parts.append(-1)
            options = {part: self._remove_part(here, part) for part in parts}
            missing = [str(point) for point in (here, *options.values()) if point not in measured_ap]
            if missing:
                raise DepthError(f"measured_ap lacks {missing}; evaluate depths=all for a measured ladder")
            chain.append(
                min(
                    options.items(),
                    key=lambda item: (
                        (measured_ap[here] - measured_ap[item[1]]) / max(self._part_cost(item[0]), 1)
                    ),
                )[1]
            )
        return chain
