"""What runs say about the claims of the method."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "contradicted", "undecided", "not tested"]


@dataclass(frozen=True)
class Finding:
    """What the runs say about one question.

    Attributes:
        claim: ``1``, ``2`` or ``3`` as the paper counts them, or ``distillation``. Several findings may
            belong to one claim.
        title: The question in a line, with the detector where a comparison has several.
        text: Plain sentences with the figures in AP points (100 x AP), what the verdict rests on, and how
            easily it comes about by chance.
        verdict: ``undecided`` where seeds are too few or disagree, ``not tested`` where a run is missing.
        figures: By name; AP as shares in [0, 1].
    """

    claim: str
    title: str
    text: str
    verdict: Verdict
    figures: Mapping[str, float]
