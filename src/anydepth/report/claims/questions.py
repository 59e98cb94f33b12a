"""Findings of runs on the claims of the method (Kang et al. 2026), and the runs that a question still needs.

The claims: (1) full depth of one any-depth network matches or beats the fixed-depth network; (2) its minimal
depth is much cheaper at a small loss; (3) training the two extremes with distillation of predictions and of
features makes every point between them work. Verdicts follow the rule of
:mod:`anydepth.report.claims.evidence`, which decides nothing with one seed, and the limits below, which every
text states.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from anydepth.report.claims.arms import Arm, DetectorArms, find_arms
from anydepth.report.claims.evidence import Contrast, format_percent, format_points, format_spread
from anydepth.report.claims.ladders import depths_between, inner_mean_ap, largest_mean_drop, lower_end_ap
from anydepth.report.claims.verdicts import (
    METHOD,
    Answer,
    Figure,
    Verdict,
    answer_missing_arms,
    answer_missing_depth,
    combine_answers,
    compare_with_arm,
    explain_agreement,
    why_undecided,
)
from anydepth.report.runs import Run
from anydepth.report.settings import Setting, ap_of, select_runs
from anydepth.utils.messages import join_few

__all__ = ["Finding", "Verdict", "answer_questions"]

TOLERANCE = 0.005
"""AP by which one network may lie below another and still match it: half a point, about 1 % of the AP of
published detectors."""

SMALL_LOSS = 0.06
"""Share of full's AP that minimal depth may lose: the largest published loss is 2.7 of 47.7 points."""

MUCH_CHEAPER = 1.3
"""Ratio of full's GFLOPs to minimal's from which minimal is much cheaper: the smallest published is 1.37."""

PUBLISHED = frozenset(
    {"detr_r18", "detr_r34", "detr_r50", "detr_r101", "detr_swin_t", "yolo_n", "yolo_s", "yolo_l", "yolo_x"}
)
"""Detectors with published figures; the saving of others says nothing about the method."""

_DISTILLATION_ARMS: tuple[Arm, ...] = ("without distillation", "prediction only", "feature only")
# Depths named in one sentence: enough for a hint, few enough to read.
_MAX_DEPTHS = 3


@dataclass(frozen=True)
class Finding:
    """Finding of the runs on one question.

    Attributes:
        claim: ``1``, ``2`` or ``3`` as numbered in the paper, or ``distillation``. Several findings may
            belong to one claim.
        title: Question in one line, with the detector if a comparison has several.
        text: Plain sentences with the figures in AP points (100 x AP), the justification of the verdict, and
            how often it occurs by chance.
        verdict: Verdict; ``undecided`` if seeds are too few or disagree, ``not tested`` if a run is missing.
        figures: Figures by name; AP in [0, 1].
    """

    claim: str
    title: str
    text: str
    verdict: Verdict
    figures: Mapping[str, float]

    @property
    def printed_figures(self) -> dict[str, str]:
        """The figures as text, in the units of :attr:`text`."""
        return {name: _format_figure(name, value) for name, value in self.figures.items()}


def answer_questions(settings: Sequence[Setting]) -> tuple[Finding, ...]:
    """Answer each question from settings of the same data, detector by detector.

    Args:
        settings: Settings of one comparison.
    """
    detectors = find_arms(settings)
    return tuple(
        _make_finding(question, arms, f" ({arms.detector})" if len(detectors) > 1 else "")
        for arms in detectors
        for question in _QUESTIONS
    )


@dataclass(frozen=True)
class _Question:
    claim: str
    title: str
    answer: Callable[[DetectorArms], Answer]


def _make_finding(question: _Question, arms: DetectorArms, suffix: str) -> Finding:
    answer = question.answer(arms)
    text = " ".join(answer.sentences)
    return Finding(question.claim, question.title + suffix, text, answer.verdict, answer.figures)


# -- the questions ---------------------------------------------------------------------------------------


def _full_depth(arms: DetectorArms) -> Answer:
    if missing := answer_missing_arms(arms, METHOD, "full only"):
        return missing
    answer = compare_with_arm(arms, "full only", "At full depth", "full", _ap_at("full"), -TOLERANCE)
    method, fixed = (arms.settings[arm].runs[0].curve.parameters for arm in (METHOD, "full only"))
    overhead = (
        f"Parameters differ by {100 * (method / fixed - 1):+.2f} % ({method / 1e6:.2f} M against "
        f"{fixed / 1e6:.2f} M; published: +0.03 % to +3.2 %)."
    )
    figures = {**answer.figures, "parameters_ratio": method / fixed}
    return Answer((*answer.sentences, overhead), answer.verdict, figures)


def _cheap_at_small_loss(arms: DetectorArms) -> Answer:
    if missing := answer_missing_arms(arms, METHOD):
        return missing
    setting = _select_complete_runs(arms.settings[METHOD])
    if setting is None:
        return answer_missing_depth(arms.settings[METHOD], "full and minimal depth")
    full, minimal = setting.by_seed(_ap_at("full")), setting.by_seed(_ap_at("minimal"))
    losses = [full[seed] - minimal[seed] for seed in full]
    # The maximum avoids 0/0 for a network that detects nothing, which stays undecided anyway.
    shares = [loss / max(ap, 1e-9) for loss, ap in zip(losses, full.values(), strict=True)]
    mean, saving = fmean(full.values()), setting.mean["saving"]
    share = fmean(losses) / max(mean, 1e-9)
    verdict, reason = _judge_loss(arms.detector, saving, mean, shares)
    text = (
        f'From full to minimal depth, "{setting.label}" needs {saving:.2f} x fewer GFLOPs and goes from '
        f"{format_spread([*full.values()])} to {format_spread([*minimal.values()])} AP points: a loss of "
        f"{format_spread(losses)}, {100 * share:.1f} % of full's AP. The limits are a saving of at least "
        f"{MUCH_CHEAPER} x and a loss of at most {format_percent(SMALL_LOSS)} of full's AP in every "
        f"seed (published: 1.37 to 1.83 x at a loss of up to 5.7 %). {reason}"
    )
    figures = {"full": mean, "minimal": fmean(minimal.values()), "loss": fmean(losses), "loss_share": share}
    incomplete = _incomplete_runs_sentences(arms.settings[METHOD], setting)
    return Answer((text, *incomplete), verdict, {**figures, "saving": saving})


def _judge_loss(detector: str, saving: float, mean: float, shares: Sequence[float]) -> tuple[Verdict, str]:
    if saving < MUCH_CHEAPER and detector in PUBLISHED:
        return "contradicted", "The saving follows from the architecture, whatever the seed."
    if saving < MUCH_CHEAPER:
        return "not tested", (
            f"This detector's minimal depth saves only {saving:.2f} x; published detectors save 1.37 x and "
            "more, so this detector cannot test the claim."
        )
    if reason := why_undecided(mean, len(shares)):
        return "undecided", reason
    small = {share <= SMALL_LOSS for share in shares}
    if len(small) > 1:
        return "undecided", "The loss is small in some seeds only."
    if small == {True}:
        return "supported", f"It is small in every seed. {explain_agreement(len(shares))}"
    return "contradicted", f"It is larger in every seed. {explain_agreement(len(shares))}"


def _minimal_alone(arms: DetectorArms) -> Answer:
    missing = answer_missing_arms(arms, METHOD, "minimal only")
    return missing or compare_with_arm(
        arms, "minimal only", "At minimal depth", "minimal", _ap_at("minimal"), -TOLERANCE
    )


def _naive_skipping(arms: DetectorArms) -> Answer:
    if missing := answer_missing_arms(arms, METHOD, "full only"):
        return missing
    minimal = compare_with_arm(arms, "full only", "At minimal depth", "minimal", _ap_at("minimal"), 0.0)
    between = compare_with_arm(
        arms, "full only", "In the mean of the inner rungs", "between", inner_mean_ap, 0.0
    )
    # A curve without the ladder can still be compared at minimal depth.
    tested = [answer for answer in (minimal, between) if answer.verdict != "not tested"]
    return combine_answers(tested) if tested else minimal


def _points_between(arms: DetectorArms) -> Answer:
    if missing := answer_missing_arms(arms, METHOD):
        return missing
    setting = _select_complete_runs(arms.settings[METHOD])
    depths = depths_between(setting) if setting else []
    if setting is None or not depths:
        return answer_missing_depth(
            arms.settings[METHOD], "depths between full and minimal (curve.depths=ladder)"
        )
    floors = setting.by_seed(lower_end_ap)
    deficits = {
        depth: [floors[seed] - ap for seed, ap in setting.by_seed(_ap_at(depth)).items()] for depth in depths
    }
    worst = max(deficits, key=lambda depth: fmean(deficits[depth]))
    below = [depth for depth, seeds in deficits.items() if min(seeds) > TOLERANCE]
    at_worst = [*setting.by_seed(_ap_at(worst)).values()]
    figures = {
        "points_between": float(len(depths)),
        "points_below": float(len(below)),
        "worst_point": fmean(at_worst),
        "worst_deficit": fmean(deficits[worst]),
    }
    verdict, reason = _judge_deficits(setting.mean["full"], [*deficits.values()])
    text = [
        f"Between {format_points(setting.mean['full'])} AP points at full and "
        f"{format_points(setting.mean['minimal'])} at minimal depth, "
        f'"{setting.label}" was evaluated at {_format_count(len(depths), "further depth")}. '
        f"The worst, {worst}, reaches {format_spread(at_worst)}.",
        *_incomplete_runs_sentences(arms.settings[METHOD], setting),
        *_drop_sentences(setting, arms.settings.get("full only"), figures),
        f"A depth works if it lies at most {format_points(TOLERANCE)} points below the lower end of the same "
        f"network; {_format_count(len(below), 'depth')} fail{'' if len(below) > 1 else 's'}"
        f"{' in every seed' if len(at_worst) > 1 else ''}"
        f"{f' ({join_few(below, _MAX_DEPTHS)})' if below else ''}. {reason}",
    ]
    return Answer(tuple(text), verdict, figures)


def _judge_deficits(mean: float, deficits: Sequence[Sequence[float]]) -> tuple[Verdict, str]:
    """Return verdict and reason from full's AP and, by depth, the deficit of each seed to its lower end."""
    seeds = len(deficits[0])
    if reason := why_undecided(mean, seeds):
        return "undecided", reason
    rule = explain_agreement(seeds)
    if len(deficits) > 1:
        rule += (
            f" This holds for a single depth; any of the {len(deficits)} can contradict, and they are not "
            "independent, as they share one network."
        )
    if any(min(depth) > TOLERANCE for depth in deficits):
        return "contradicted", rule
    if all(max(depth) <= TOLERANCE for depth in deficits):
        return "supported", f"All depths work in all seeds. {rule}"
    return "undecided", "Some depths work in some seeds only."


def _against_random_depths(arms: DetectorArms) -> Answer:
    schedules: tuple[Arm, ...] = ("random", "sandwich")
    present = [arm for arm in schedules if arm in arms.settings]
    if missing := answer_missing_arms(arms, METHOD, *(() if present else schedules)):
        return missing
    return combine_answers(
        [compare_with_arm(arms, arm, *_ladder_figure(arms, arm), -TOLERANCE) for arm in present]
    )


def _distillation(arms: DetectorArms) -> Answer:
    present = [arm for arm in _DISTILLATION_ARMS if arm in arms.settings]
    if missing := answer_missing_arms(arms, METHOD, *(() if present else _DISTILLATION_ARMS)):
        return missing
    answer = combine_answers(
        [compare_with_arm(arms, arm, *_ladder_figure(arms, arm), 0.0) for arm in present]
    )
    parts = [*answer.sentences, *(sentence for arm in present for sentence in _end_sentences(arms, arm))]
    verdict = answer.verdict
    if untested := answer_missing_arms(arms, *_DISTILLATION_ARMS):
        parts += ["Not all kinds of distillation are tested.", *untested.sentences]
        verdict = "undecided" if verdict == "supported" else verdict
    return Answer(tuple(parts), verdict, answer.figures)


_QUESTIONS = (
    _Question("1", "Full depth matches or beats the fixed-depth full network", _full_depth),
    _Question("2", "Minimal depth is much cheaper at a small loss", _cheap_at_small_loss),
    _Question("2", "Minimal depth matches or beats the minimal network trained alone", _minimal_alone),
    _Question("2", "Shallow depths beat the full network skipped naively", _naive_skipping),
    _Question("3", "Every point between full and minimal depth works", _points_between),
    _Question("3", "Training the extremes alone is as good as random depths", _against_random_depths),
    _Question("distillation", "Distilling predictions and features beats distilling less", _distillation),
)


# -- two settings ----------------------------------------------------------------------------------------


def _ladder_figure(arms: DetectorArms, arm: Arm) -> tuple[str, str, Figure]:
    """Return where two settings are compared: in the mean of the ladder, or else at minimal depth."""
    if all("ladder_mean" in arms.settings[each].mean for each in (METHOD, arm)):
        return "In the mean of the ladder", "ladder_mean", _ladder_mean
    return "At minimal depth", "minimal", _ap_at("minimal")


def _end_sentences(arms: DetectorArms, arm: Arm) -> Iterator[str]:
    """Yield a sentence with the differences at both ends, without a verdict."""
    method, other = arms.settings[METHOD], arms.settings[arm]
    ends = [Contrast(method.by_seed(_ap_at(end)), other.by_seed(_ap_at(end))) for end in ("full", "minimal")]
    if all(contrast.first and contrast.second for contrast in ends):
        full, minimal = (format_points(contrast.difference, sign=True) for contrast in ends)
        yield f'The difference to "{other.label}" is {full} at full and {minimal} at minimal depth.'


def _drop_sentences(setting: Setting, naive: Setting | None, figures: dict[str, float]) -> Iterator[str]:
    """Yield a sentence on the largest drop of the method and of naive skipping; adds both to ``figures``."""
    drop = largest_mean_drop(setting)
    if drop is None:
        return
    gap = setting.mean["full"] - setting.mean["minimal"]
    figures["largest_drop"] = drop.loss
    text = (
        f"Its largest drop between neighbouring rungs of the ladder, from {drop.deeper} to {drop.shallower}, "
    )
    text += f"is {format_points(drop.loss)} points"
    if gap > TOLERANCE:
        figures["largest_drop_share"] = drop.loss / gap
        text += f", {format_percent(drop.loss / gap)} of the difference between the ends"
    naive_drop = largest_mean_drop(naive) if naive else None
    if naive and naive_drop:
        figures["largest_drop/full_only"] = naive_drop.loss
        text += f'; skipped naively, "{naive.label}" drops by {format_points(naive_drop.loss)}'
    yield text + "."


# -- runs with both ends ---------------------------------------------------------------------------------


def _select_complete_runs(setting: Setting) -> Setting | None:
    """Return the setting of only the runs that have AP at full and minimal depth; None without such runs."""
    complete = [run for run in setting.runs if lower_end_ap(run) is not None]
    return select_runs(setting, complete) if complete else None


def _incomplete_runs_sentences(setting: Setting, complete: Setting) -> Iterator[str]:
    missing = len(setting.runs) - len(complete.runs)
    if missing:
        yield (
            f"{missing} of its {len(setting.runs)} runs {'have' if missing > 1 else 'has'} no AP for full or "
            f"minimal depth and {'are' if missing > 1 else 'is'} ignored here."
        )


# -- figures and sentences -------------------------------------------------------------------------------


def _ap_at(depth: str) -> Figure:
    return lambda run: ap_of(run, depth)


def _ladder_mean(run: Run) -> float | None:
    return run.summary.ladder_mean


def _format_figure(name: str, value: float) -> str:
    """Format a figure by its name: AP and its differences in points, as all that is not listed here."""
    kind = name.rpartition("/")[2]
    if kind == "chance":
        return format_percent(value)
    if kind in ("loss_share", "largest_drop_share"):
        return f"{100 * value:.1f} %"
    if kind in ("points_between", "points_below"):
        return f"{value:.0f}"
    if kind in ("parameters_ratio", "saving"):
        return f"{value:.4g} x"
    return format_points(value, sign=kind == "difference")


def _format_count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"
