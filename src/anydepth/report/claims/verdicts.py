"""Verdicts on one figure of two settings, and the sentences that justify them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from anydepth.report.claims.arms import (
    ARM_OVERRIDES,
    Arm,
    DetectorArms,
    detector_of,
    fixed_depth_differences,
    further_differences,
)
from anydepth.report.claims.evidence import (
    MIN_SEEDS,
    RESOLUTION,
    Contrast,
    agreement_chance,
    format_difference,
    format_percent,
    format_points,
    format_spread,
    join_names,
)
from anydepth.report.runs import Run
from anydepth.report.settings import Setting
from anydepth.utils.messages import join_few

Verdict = Literal["supported", "contradicted", "undecided", "not tested"]
Figure = Callable[[Run], float | None]

METHOD: Arm = "any-depth"
"""Arm of the method itself, with which the others are compared."""

MIN_AP = 0.05
"""AP that one network must reach for a verdict: below it, all have learnt too little to be ranked."""

# Configuration keys named in one sentence: enough for a hint, few enough to read.
_MAX_KEYS = 3


@dataclass(frozen=True)
class Answer:
    """Answer of the runs to one question; see :class:`anydepth.report.claims.questions.Finding`.

    Attributes:
        sentences: Sentences in order; combined answers keep a shared sentence once.
        verdict: Verdict of the finding.
        figures: Figures of the finding.
        chance: Probability that seeds are separated by chance; None if the verdict does not rest on it.
    """

    sentences: tuple[str, ...]
    verdict: Verdict
    figures: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None


def compare_with_arm(
    arms: DetectorArms, arm: Arm, where: str, name: str, figure: Figure, margin: float
) -> Answer:
    """Compare the method with the setting of an arm in one figure.

    Args:
        arms: Arms of a detector, with a setting for the method and for ``arm``.
        arm: Arm to compare with.
        where: Start of the sentence, e.g. ``At full depth``.
        name: Name of the figure in :attr:`Answer.figures`.
        figure: Function that returns the figure of a run.
        margin: Margin by which all seeds of the method must lie above those of the other; negative if being
            as good is enough. With 0, they must differ at the printed precision.
    """
    method, other = arms.settings[METHOD], arms.settings[arm]
    contrast = Contrast(method.by_seed(figure), other.by_seed(figure))
    for setting, values in ((method, contrast.first), (other, contrast.second)):
        if not values:
            return answer_missing_depth(
                setting, "the ladder" if name in ("between", "ladder_mean") else f"{name} depth"
            )
    key = f"{name}/{arm.replace(' ', '_')}"
    figures = {
        f"{name}/any-depth": fmean(contrast.first.values()),
        key: fmean(contrast.second.values()),
        f"{key}/difference": contrast.difference,
        f"{key}/chance": contrast.chance,
    }
    confounders = further_differences(method, other)
    verdict, outcome, reason = _judge(contrast, margin, confounders)
    statement = (
        f'{where}, "{method.label}" reaches {format_spread([*contrast.first.values()])} AP points, '
        f'"{other.label}" ({arm}) {format_spread([*contrast.second.values()])}: {format_difference(contrast)}'
        f"{outcome}."
    )
    chance = None if confounders or _undecided_reason(contrast) else contrast.chance
    return Answer((statement, reason, *_caveats(arms, arm)), verdict, figures, chance)


def combine_answers(answers: Sequence[Answer]) -> Answer:
    """Combine answers into one: supported if all support, contradicted if any contradicts."""
    verdicts = {answer.verdict for answer in answers}
    verdict: Verdict = "undecided"
    if "contradicted" in verdicts:
        verdict = "contradicted"
    elif len(verdicts) == 1:
        (verdict,) = verdicts
    figures = {name: value for answer in answers for name, value in answer.figures.items()}
    sentences = dict.fromkeys(sentence for answer in answers for sentence in answer.sentences)
    # Statements precede their justification.
    order = [answer.sentences[0] for answer in answers]
    order += [sentence for sentence in sentences if sentence not in order]
    chances = [answer.chance for answer in answers if answer.chance is not None]
    if len(chances) > 1:
        order.append(
            f"Any of these {len(answers)} comparisons can contradict; if no settings differed, at least one "
            "would show a clear separation by chance in up to "
            f"{format_percent(min(1.0, sum(chances)))} of cases."
        )
    return Answer(tuple(order), verdict, figures)


def answer_missing_arms(arms: DetectorArms, *required: Arm) -> Answer | None:
    """Return the answer if a required arm has no setting, or None if all have one."""
    missing = [arm for arm in required if arm not in arms.settings]
    if not missing:
        return None
    overrides = join_names([f"{ARM_OVERRIDES[arm]} ({arm})" for arm in missing])
    text = f"Needs runs of {arms.detector} on the same data with {overrides}."
    mismatched = [label for arm in missing for label in arms.others.get(arm, ())]
    if mismatched:
        text += f" The runs of {quote_labels(mismatched)} have another architecture."
    return Answer((text,), "not tested")


def answer_missing_depth(setting: Setting, what: str) -> Answer:
    """Return the answer for a curve that lacks a depth."""
    return Answer((f'The depth curve of "{setting.label}" has no AP for {what}.',), "not tested")


def why_undecided(mean: float, seeds: int) -> str | None:
    """Return why no figures could decide: networks that learnt too little, or a single seed; else None.

    Args:
        mean: Best mean AP of the compared settings.
        seeds: Smallest number of seeds of a setting.
    """
    if mean < MIN_AP:
        return f"Below {format_points(MIN_AP)} AP points, the networks have learnt too little for a verdict."
    if seeds < MIN_SEEDS:
        return f"One seed is not enough for a verdict: at least {MIN_SEEDS} per setting are needed."
    return None


def explain_agreement(seeds: int) -> str:
    """Return a sentence on how often all seeds of one setting lie on one side of a limit by chance."""
    chance = format_percent(agreement_chance(seeds))
    return (
        f"If the true value lay at the limit, {seeds} seeds would fall on one side of it by chance in "
        f"{chance} of cases."
    )


def quote_labels(labels: Sequence[str]) -> str:
    """Join the labels of settings for a sentence, each in quotation marks."""
    return join_names([f'"{label}"' for label in labels])


def _judge(contrast: Contrast, margin: float, confounders: Sequence[str]) -> tuple[Verdict, str, str]:
    """Return the verdict, the outcome (end of a sentence), and the justification (a sentence)."""
    if reason := _undecided_reason(contrast):
        return "undecided", "", reason
    if confounders:
        keys = join_few(confounders, _MAX_KEYS)
        return "undecided", "", f"The two also differ in {keys}, which may explain the difference."
    direction = contrast.direction(margin, 0.0 if margin else RESOLUTION)
    if not (direction or margin) and (contrast.direction() or contrast.widest < RESOLUTION):
        return "undecided", ", no difference at the printed precision", _explain_rule(contrast, margin)
    verdict: Verdict = "undecided"
    if direction:
        verdict = "supported" if direction > 0 else "contradicted"
    better = "as good or better" if margin else "better"
    outcomes = {
        1: f", {better} whichever seeds are compared",
        -1: ", worse whichever seeds are compared",
        0: ", but which is better depends on the seeds compared",
    }
    return verdict, outcomes[direction], _explain_rule(contrast, margin)


def _undecided_reason(contrast: Contrast) -> str | None:
    means = [fmean(contrast.first.values()), fmean(contrast.second.values())]
    return why_undecided(max(means), min(len(contrast.first), len(contrast.second)))


def _explain_rule(contrast: Contrast, margin: float) -> str:
    equal = f"Up to {format_points(-margin)} points less count as equal. " if margin else ""
    truth = f"that differ by exactly {format_points(-margin)} points" if margin else "that do not differ"
    return (
        f"{equal}With {len(contrast.first)} and {len(contrast.second)} seeds, a clear separation occurs by "
        f"chance in {format_percent(contrast.chance)} of cases between settings {truth}."
    )


def _caveats(arms: DetectorArms, arm: Arm) -> Iterator[str]:
    """Yield sentences on what else distinguishes the setting of an arm from the method."""
    setting = arms.settings[arm]
    validation = setting.runs[0].config.get("validation")
    trained = {"full only": "full", "minimal only": "minimal"}.get(arm)
    if trained and isinstance(validation, Mapping):
        untrained = [depth for depth in validation.get("depths") or () if depth != trained]
        if untrained and validation.get("score") != trained:
            yield (
                f'The checkpoint of "{setting.label}" was selected by '
                f"validation.score={validation.get('score')}, which includes depths that it does not train: "
                f"validation.score={trained} would be fairer."
            )
    if arm == "feature only":
        yield from _ground_truth_caveat(setting)
    if keys := fixed_depth_differences(arms.settings[METHOD], setting):
        yield (
            f'"{setting.label}" is the fixed-depth {detector_of(setting)}, which '
            f"also differs in {join_names(keys)}."
        )
    for each in (METHOD, arm):
        others = arms.others.get(each, ())
        if others:
            yield f"Further settings of the arm {each}, shown in the table only: {quote_labels(others)}."


def _ground_truth_caveat(setting: Setting) -> Iterator[str]:
    """Yield a sentence if feature distillation also reduces the weight of ground truth (YOLO family)."""
    share = setting.config.get("losses.alpha")
    if isinstance(share, int | float) and 0 < share < 1:
        yield (
            f'In "{setting.label}", the shallower pass keeps {share:g} of its losses against ground truth '
            f"(losses.alpha={share:g}) and no distillation of predictions replaces the rest, so it also "
            "learns less from ground truth than without distillation."
        )
