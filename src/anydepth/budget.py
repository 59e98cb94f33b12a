"""A depth by a budget: the best one within it, by what was measured and counted.

``<=8ms``, ``<=120mb`` and ``<=40gflops`` bound what a depth costs; the depth of the highest AP within the
bound is chosen, or of the most operations where AP is not known. ``>=95%ap`` asks for a share of the AP of
the best depth, and the cheapest that reaches it is chosen.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from anydepth.depth import DepthError

Unit = Literal["ms", "mb", "gflops", "%ap"]
_BUDGET: Final = re.compile(r"(<=|>=)\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|mb|gflops|%\s*ap)", re.IGNORECASE)
_NAMES: Final[Mapping[str, str]] = {"ms": "latency", "mb": "memory", "gflops": "operations", "%ap": "AP"}
_HEADINGS: Final = ("depth", "GFLOPs", "AP", "ms", "MB")


class BudgetError(DepthError):
    """No depth is within a budget, or what it bounds is not known; the message shows what is."""


@dataclass(frozen=True)
class DepthFigures:
    """Cost and AP of a depth, as far as they are known.

    Attributes:
        depth: Text of the depth.
        gflops: GFLOPs of one image (2 x GMACs).
        ap: AP in [0, 1]; None: not known.
        milliseconds: Median latency of one image on this device; None: not measured.
        megabytes: Memory of the process above that of the engine alone, in units of 10^6 bytes; None: not
            measured.
    """

    depth: str
    gflops: float
    ap: float | None = None
    milliseconds: float | None = None
    megabytes: float | None = None

    def cost(self, unit: Unit) -> float | None:
        """Return what a budget in this unit bounds."""
        return {
            "ms": self.milliseconds,
            "mb": self.megabytes,
            "gflops": self.gflops,
            "%ap": self.ap,
        }[unit]


@dataclass(frozen=True)
class Budget:
    """A bound on one figure of a depth.

    Attributes:
        limit: The bound.
        unit: ``ms``, ``mb`` or ``gflops``, from above; ``%ap``, from below, in percent of the best AP.
    """

    limit: float
    unit: Unit

    @property
    def is_lower(self) -> bool:
        """Whether the bound is from below."""
        return self.unit == "%ap"

    def __str__(self) -> str:
        return f"{'>=' if self.is_lower else '<='}{self.limit:g}{self.unit}"


def parse_budget(text: object) -> Budget | None:
    """Return the budget that a text names, or None if it names none, as ``full`` does.

    Args:
        text: ``<=8ms``, ``<=120mb``, ``<=40gflops`` or ``>=95%ap``, with any number; ``≤`` and ``≥`` will do.

    Raises:
        BudgetError: A comparison that is none of these.

    Example:
        >>> parse_budget("<= 8 ms"), parse_budget("minimal")
        (Budget(limit=8.0, unit='ms'), None)
    """
    if not isinstance(text, str) or not text.strip().startswith(("<", ">", "≤", "≥")):
        return None
    match = _BUDGET.fullmatch(text.strip().replace("≤", "<=").replace("≥", ">="))
    unit = match[3].lower().replace(" ", "") if match else ""
    if match is None or (match[1] == ">=") != (unit == "%ap"):
        raise BudgetError(
            f"got the budget {text!r}, expected one of <=8ms, <=120mb, <=40gflops or >=95%ap, with any number"
        )
    return Budget(float(match[2]), next(name for name in ("ms", "mb", "gflops", "%ap") if name == unit))


def choose_depth(budget: Budget, rows: Sequence[DepthFigures], *, remedy: str = "") -> str:
    """Return the text of the best depth within a budget.

    Args:
        budget: The budget.
        rows: What is known of each depth, at least one.
        remedy: What to do if the figure was not measured, for the message.

    Raises:
        BudgetError: No depth is within it, or the figure is not known of any depth.
    """
    known = [row for row in rows if row.cost(budget.unit) is not None]
    if not known:
        raise BudgetError(f"budget {budget}: the {_NAMES[budget.unit]} of the depths is not known; {remedy}")
    if budget.is_lower:
        # 0.9 x 0.40 is more than 0.36 by a rounding error.
        limit = budget.limit / 100 * max(row.ap or 0.0 for row in known) - 1e-9
        fitting = [row for row in known if (row.ap or 0.0) >= limit]
    else:
        fitting = [row for row in known if (row.cost(budget.unit) or 0.0) <= budget.limit]
    if not fitting:
        raise BudgetError(f"no depth is within the budget {budget}. The depths are\n{figures_table(rows)}")
    return (_cheapest if budget.is_lower else _best)(fitting).depth


def _best(rows: Sequence[DepthFigures]) -> DepthFigures:
    """Return the row of the highest AP, or of the most operations if any AP is unknown; then the cheapest."""
    if all(row.ap is not None for row in rows):
        return min(rows, key=lambda row: (-(row.ap or 0.0), row.milliseconds or 0.0, row.gflops))
    return max(rows, key=lambda row: row.gflops)


def _cheapest(rows: Sequence[DepthFigures]) -> DepthFigures:
    """Return the row of the lowest latency, or of the fewest operations if any latency is unknown."""
    if all(row.milliseconds is not None for row in rows):
        return min(rows, key=lambda row: (row.milliseconds or 0.0, row.gflops))
    return min(rows, key=lambda row: row.gflops)


def figures_table(rows: Sequence[DepthFigures]) -> str:
    """Return a table of what is known of each depth."""
    cells = [
        _HEADINGS,
        *(
            (
                row.depth,
                f"{row.gflops:.2f}",
                _format(None if row.ap is None else 100 * row.ap),
                _format(row.milliseconds),
                _format(row.megabytes),
            )
            for row in rows
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells
    )


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
