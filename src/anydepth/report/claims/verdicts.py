"""Verdicts on one figure of two settings, and the sentences that say what they rest on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from anydepth.report.claims.arms import (
    HOW_TO_TRAIN,
    Cast,
    Role,
    detector_of,
    fixed_depth_differences,
    further_differences,
)
from anydepth.report.claims.evidence import (
    FEWEST_SEEDS,
    RESOLUTION,
    Contrast,
    agreement_chance,
    difference_of,
    listed,
    percent,
    points,
    spread_of,
)
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
    """What runs say to one question; see :class:`anydepth.report.claims.questions.Finding`.

    Attributes:
        sentences: In order; one that several answers share is said once when they are combined.
        verdict: As of a finding.
        figures: As of a finding.
        chance: How often a clear order comes up by chance; None where nothing was judged by it.
    """

    sentences: tuple[str, ...]
    verdict: Verdict
    figures: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None


def versus(cast: Cast, role: Role, where: str, name: str, figure: Figure, margin: float) -> Answer:
    """The method against the setting of a role in one figure.

    Args:
        cast: Plays both roles.
        role: The other one.
        where: Begins the sentence, e.g. ``At full depth``.
        name: Of the figure, for :attr:`Answer.figures`.
        figure: Of a run.
        margin: By which all seeds of the method have to lie above those of the other; negative where being
            as good is enough. With 0, they have to differ by what the text prints.
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
    confounders = further_differences(method, other)
    verdict, outcome, reason = _judge(contrast, margin, confounders)
    statement = (
        f'{where}, "{method.label}" reaches {spread_of([*contrast.first.values()])} AP points, '
        f'"{other.label}" ({role}) {spread_of([*contrast.second.values()])}: {difference_of(contrast)}'
        f"{outcome}."
    )
    chance = None if confounders or _reserved(contrast) else contrast.chance
    return Answer((statement, reason, *_cautions(cast, role)), verdict, figures, chance)


def combined(answers: Sequence[Answer]) -> Answer:
    """One answer of several: supported by all, contradicted by any."""
    verdicts = {answer.verdict for answer in answers}
    verdict: Verdict = "undecided"
    if "contradicted" in verdicts:
        verdict = "contradicted"
    elif len(verdicts) == 1:
        (verdict,) = verdicts
    figures = {name: value for answer in answers for name, value in answer.figures.items()}
    sentences = dict.fromkeys(sentence for answer in answers for sentence in answer.sentences)
    # Statements come before what they rest on.
    order = [answer.sentences[0] for answer in answers]
    order += [sentence for sentence in sentences if sentence not in order]
    chances = [answer.chance for answer in answers if answer.chance is not None]
    if len(chances) > 1:
        order.append(
            f"Any of these {len(answers)} comparisons can contradict; that at least one shows a clear order "
            f"although no settings differ happens by chance in up to {percent(min(1.0, sum(chances)))} of "
            "cases."
        )
    return Answer(tuple(order), verdict, figures)


def lacking(cast: Cast, *roles: Role) -> Answer | None:
    """The answer where a role is not played."""
    absent = [role for role in roles if role not in cast.settings]
    if not absent:
        return None
    wanted = listed([f"{HOW_TO_TRAIN[role]} ({role})" for role in absent])
    text = f"Needs runs of {cast.detector} on the same data with {wanted}."
    odd = [label for role in absent for label in cast.others.get(role, ())]
    if odd:
        text += f" Those of {quoted(odd)} are of another architecture."
    return Answer((text,), "not tested")


def uncurved(setting: Setting, what: str) -> Answer:
    """The answer where a curve lacks a depth."""
    return Answer((f'The depth curve of "{setting.label}" has no AP for {what}.',), "not tested")


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


def quoted(labels: Sequence[str]) -> str:
    """Labels of settings in a sentence."""
    return listed([f'"{label}"' for label in labels])


def _judge(contrast: Contrast, margin: float, confounders: Sequence[str]) -> tuple[Verdict, str, str]:
    """The verdict, how the seeds lie (ends a sentence), and what the verdict rests on (a sentence)."""
    if reserved := _reserved(contrast):
        return "undecided", "", reserved
    if confounders:
        more = f" and {len(confounders) - _MOST_KEYS} more keys" if len(confounders) > _MOST_KEYS else ""
        named = ", ".join(confounders[:_MOST_KEYS])
        return "undecided", "", f"The two also differ in {named}{more}, from which the difference may come."
    direction = contrast.direction(margin, 0.0 if margin else RESOLUTION)
    if not (direction or margin) and (contrast.direction() or contrast.widest < RESOLUTION):
        return "undecided", ", no difference that the figures show", _rule(contrast, margin)
    verdict: Verdict = "undecided"
    if direction:
        verdict = "supported" if direction > 0 else "contradicted"
    better = "as good or better" if margin else "better"
    outcomes = {
        1: f", {better} whichever seeds are compared",
        -1: ", worse whichever seeds are compared",
        0: ", but which is better depends on the seeds compared",
    }
    return verdict, outcomes[direction], _rule(contrast, margin)


def _reserved(contrast: Contrast) -> str | None:
    means = [fmean(contrast.first.values()), fmean(contrast.second.values())]
    return reservation(max(means), min(len(contrast.first), len(contrast.second)))


def _rule(contrast: Contrast, margin: float) -> str:
    equal = f"Up to {points(-margin)} points less count as equal. " if margin else ""
    truth = f"that lie exactly {points(-margin)} points apart" if margin else "that do not differ"
    return (
        f"{equal}With {len(contrast.first)} and {len(contrast.second)} seeds, a clear order comes up by "
        f"chance in {percent(contrast.chance)} of cases between settings {truth}."
    )


def _cautions(cast: Cast, role: Role) -> Iterator[str]:
    validation = cast.settings[role].runs[0].config.get("validation")
    trained = {"full only": "full", "minimal only": "minimal"}.get(role)
    if trained and isinstance(validation, Mapping):
        foreign = [depth for depth in validation.get("depths") or () if depth != trained]
        if foreign and validation.get("score") != trained:
            yield (
                f'The checkpoint of "{cast.settings[role].label}" was chosen by '
                f"validation.score={validation.get('score')}, which counts depths that it does not train: "
                f"validation.score={trained} would be fairer."
            )
    if role == "feature only":
        yield from _less_truth(cast.settings[role])
    if fixed := fixed_depth_differences(cast.settings[METHOD], cast.settings[role]):
        yield (
            f'"{cast.settings[role].label}" is the fixed-depth {detector_of(cast.settings[role])}, which '
            f"also differs in {listed(fixed)}."
        )
    for each in (METHOD, role):
        others = cast.others.get(each, ())
        if others:
            yield f"Also {each}, but only in the table: {quoted(others)}."


def _less_truth(setting: Setting) -> Iterator[str]:
    """What sets feature distillation of the YOLO wing apart besides the missing teacher of predictions."""
    share = setting.config.get("losses.alpha")
    if isinstance(share, int | float) and 0 < share < 1:
        yield (
            f'In "{setting.label}" the shallower path keeps {share:g} of its losses against ground truth '
            f"(losses.alpha={share:g}) and nothing stands in for the rest, so that it also learns less "
            "from ground truth than without distillation."
        )
