"""Verdicts on one figure of two settings, and the sentences that say what they rest on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from anydepth.report.evidence import (
    FEWEST_SEEDS,
    Contrast,
    agreement_chance,
    difference_of,
    listed,
    percent,
    points,
    spread_of,
)
from anydepth.report.roles import HOW_TO_TRAIN, Cast, Role, further_differences
from anydepth.report.runs import Run
from anydepth.report.settings import Setting

Verdict = Literal["supported", "contradicted", "undecided", "not tested"]
Figure = Callable[[Run], float | None]

METHOD: Role = "any-depth"

LOWEST_AP = 0.05
"""Where all networks of a question stay below it, they have learnt too little for a verdict."""

# Configuration keys named in one sentence.
_MOST_KEYS = 3


@dataclass(frozen=True)
class Answer:
    """What runs say to one question; see :class:`anydepth.report.claims.Finding`."""

    text: str
    verdict: Verdict
    figures: Mapping[str, float] = field(default_factory=dict)


def versus(cast: Cast, role: Role, where: str, name: str, figure: Figure, margin: float) -> Answer:
    """The method against the setting of a role in one figure.

    Args:
        cast: Plays both roles.
        role: The other one.
        where: Begins the sentence, e.g. ``At full depth``.
        name: Of the figure, for :attr:`Answer.figures`.
        figure: Of a run.
        margin: By which all seeds of the method have to lie above those of the other; negative where being
            as good is enough.
    """
    method, other = cast.settings[METHOD], cast.settings[role]
    contrast = Contrast(method.by_seed(figure), other.by_seed(figure))
    for setting, values in ((method, contrast.first), (other, contrast.second)):
        if not values:
            return uncurved(setting, "the ladder" if name in ("between", "ladder_mean") else f"{name} depth")
    key = f"{name}/{role.replace(' ', '_')}"
    figures = {
        f"{name}/any-depth": fmean(contrast.first.values()),
        key: fmean(contrast.second.values()),
        f"{key}/difference": contrast.difference,
        f"{key}/chance": contrast.chance,
    }
    text = (
        f"{where}, {method.label} reaches {spread_of([*contrast.first.values()])} AP points, {other.label} "
        f"({role}) {spread_of([*contrast.second.values()])}: {difference_of(contrast)}."
    )
    verdict, reason = _judge(contrast, margin, further_differences(method, other))
    return Answer(" ".join([text, reason, *_cautions(cast, role)]), verdict, figures)


def combined(answers: Sequence[Answer]) -> Answer:
    """One answer of several: supported by all, contradicted by any."""
    verdicts = {answer.verdict for answer in answers}
    verdict: Verdict = "undecided"
    if "contradicted" in verdicts:
        verdict = "contradicted"
    elif len(verdicts) == 1:
        (verdict,) = verdicts
    figures = {name: value for answer in answers for name, value in answer.figures.items()}
    return Answer(" ".join(answer.text for answer in answers), verdict, figures)


def lacking(cast: Cast, *roles: Role) -> Answer | None:
    """The answer where a role is not played."""
    absent = [role for role in roles if role not in cast.settings]
    if not absent:
        return None
    wanted = listed([f"{HOW_TO_TRAIN[role]} ({role})" for role in absent])
    text = f"Needs runs of {cast.detector} on the same data with {wanted}."
    odd = [label for role in absent for label in cast.others.get(role, ())]
    if odd:
        text += f" Those of {listed(odd)} are of another architecture."
    return Answer(text, "not tested")


def uncurved(setting: Setting, what: str) -> Answer:
    """The answer where a curve lacks a depth."""
    return Answer(f"The depth curve of {setting.label} has no AP for {what}.", "not tested")


def reservation(mean: float, seeds: int) -> str | None:
    """Why figures decide nothing, whatever they are: networks that learnt too little, or a single seed.

    Args:
        mean: The best mean AP among those compared.
        seeds: The fewest of a setting.
    """
    if mean < LOWEST_AP:
        return f"Below {points(LOWEST_AP)} AP points the networks have learnt too little for a verdict."
    if seeds < FEWEST_SEEDS:
        return f"One seed decides nothing: at least {FEWEST_SEEDS} of each setting are needed."
    return None


def by_agreement(seeds: int) -> str:
    """How easily all seeds of one setting fall on one side of a limit."""
    chance = percent(agreement_chance(seeds))
    return (
        f"Were the truth at the limit, {seeds} seeds would fall on one side of it by chance in {chance} of "
        "cases."
    )


def _judge(contrast: Contrast, margin: float, confounders: Sequence[str]) -> tuple[Verdict, str]:
    """The verdict, and the sentence that says what it rests on."""
    means = [fmean(contrast.first.values()), fmean(contrast.second.values())]
    reserved = reservation(max(means), min(len(contrast.first), len(contrast.second)))
    if reserved:
        return "undecided", reserved
    if confounders:
        more = f" and {len(confounders) - _MOST_KEYS} more keys" if len(confounders) > _MOST_KEYS else ""
        named = ", ".join(confounders[:_MOST_KEYS])
        return "undecided", f"The two also differ in {named}{more}, from which the difference may come."
    direction = contrast.direction(margin)
    limit = f"a difference of {points(margin, sign=True)} points" if margin else "no difference"
    if not direction:
        return "undecided", f"Their seeds do not lie apart (compared with {limit})."
    apart = "above" if direction > 0 else "below"
    return (
        "supported" if direction > 0 else "contradicted",
        f"All seeds of the first lie {apart} all of the second, compared with {limit}; were that the truth, "
        f"{len(contrast.first)} and {len(contrast.second)} seeds would lie apart, one way or the other, by "
        f"chance in {percent(contrast.chance)} of cases.",
    )


def _cautions(cast: Cast, role: Role) -> Iterator[str]:
    validation = cast.settings[role].runs[0].config.get("validation")
    trained = {"full only": "full", "minimal only": "minimal"}.get(role)
    if trained and isinstance(validation, Mapping):
        foreign = [depth for depth in validation.get("depths") or () if depth != trained]
        if foreign and validation.get("score") != trained:
            yield (
                f"The checkpoint of {cast.settings[role].label} was chosen by "
                f"validation.score={validation.get('score')}, which counts depths that it does not train: "
                f"validation.score={trained} would be fairer."
            )
    for each in (METHOD, role):
        others = cast.others.get(each, ())
        if others:
            yield f"Also {each}, but only in the table: {listed(others)}."
