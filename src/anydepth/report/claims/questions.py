"""What runs say about the claims of the method (Kang et al. 2026), and what would have to be run to ask.

The claims: (1) full depth of one any-depth network matches or beats the fixed-depth network; (2) its minimal
depth is much cheaper at a small loss; (3) training the two extremes with distillation of predictions and of
features makes every point between work. Verdicts follow the rule of :mod:`anydepth.report.claims.evidence`,
which decides nothing with one seed, and the limits below, which every text states.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from anydepth.report.claims.arms import Cast, Role, casts
from anydepth.report.claims.evidence import Contrast, listed, percent, points, spread_of
from anydepth.report.claims.ladders import between_mean, depths_between, floor_of, largest_mean_drop
from anydepth.report.claims.verdicts import (
    METHOD,
    Answer,
    Figure,
    Verdict,
    by_agreement,
    combined,
    lacking,
    reservation,
    uncurved,
    versus,
)
from anydepth.report.runs import Run
from anydepth.report.settings import Setting, ap_of, with_runs

__all__ = ["Finding", "Verdict", "findings_of"]

TOLERANCE = 0.005
"""AP by which one network may lie below another and still match it: half a point, about 1 % of the published
figures."""

SMALL_LOSS = 0.06
"""Share of full's AP that minimal depth may lose: the largest published is 2.7 of 47.7 points."""

MUCH_CHEAPER = 1.3
"""GFLOPs of full over those of minimal from which minimal is much cheaper: the smallest published is 1.37."""

PUBLISHED = frozenset(
    {"detr_r18", "detr_r34", "detr_r50", "detr_r101", "detr_swin_t", "yolo_n", "yolo_s", "yolo_l", "yolo_x"}
)
"""Detectors of the published figures; how much others save says nothing about the method."""

_ARMS: tuple[Role, ...] = ("without distillation", "prediction only", "feature only")
# Depths named in one sentence.
_MOST_DEPTHS = 3


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


def findings_of(settings: Sequence[Setting]) -> tuple[Finding, ...]:
    """What settings of the same data say about each question, detector by detector.

    Args:
        settings: Of one comparison.
    """
    actors = casts(settings)
    return tuple(
        _ask(question, cast, f" ({cast.detector})" if len(actors) > 1 else "")
        for cast in actors
        for question in _QUESTIONS
    )


@dataclass(frozen=True)
class _Question:
    claim: str
    title: str
    answer: Callable[[Cast], Answer]


def _ask(question: _Question, cast: Cast, where: str) -> Finding:
    answer = question.answer(cast)
    text = " ".join(answer.sentences)
    return Finding(question.claim, question.title + where, text, answer.verdict, answer.figures)


# -- the questions ---------------------------------------------------------------------------------------


def _full_depth(cast: Cast) -> Answer:
    if missing := lacking(cast, METHOD, "full only"):
        return missing
    answer = versus(cast, "full only", "At full depth", "full", _at("full"), -TOLERANCE)
    method, fixed = (cast.settings[role].runs[0].curve.parameters for role in (METHOD, "full only"))
    overhead = (
        f"Any depth costs {100 * (method / fixed - 1):+.2f} % parameters ({method / 1e6:.2f} M against "
        f"{fixed / 1e6:.2f} M; published are +0.03 % to +3.2 %)."
    )
    figures = {**answer.figures, "parameters_ratio": method / fixed}
    return Answer((*answer.sentences, overhead), answer.verdict, figures)


def _cheap_at_small_loss(cast: Cast) -> Answer:
    if missing := lacking(cast, METHOD):
        return missing
    setting = _with_both_ends(cast.settings[METHOD])
    if setting is None:
        return uncurved(cast.settings[METHOD], "full and minimal depth")
    full, minimal = setting.by_seed(_at("full")), setting.by_seed(_at("minimal"))
    losses = [full[seed] - minimal[seed] for seed in full]
    # A network that detects nothing loses nothing; its verdict is reserved.
    shares = [loss / max(ap, 1e-9) for loss, ap in zip(losses, full.values(), strict=True)]
    mean, saving = fmean(full.values()), setting.mean["saving"]
    share = fmean(losses) / max(mean, 1e-9)
    verdict, reason = _judge_loss(cast.detector, saving, mean, shares)
    text = (
        f'From full to minimal depth, "{setting.label}" takes {saving:.2f} x fewer GFLOPs and goes from '
        f"{spread_of([*full.values()])} to {spread_of([*minimal.values()])} AP points: a loss of "
        f"{spread_of(losses)}, {100 * share:.1f} % of full's AP. Much cheaper is {MUCH_CHEAPER} x and above, "
        f"a small loss {percent(SMALL_LOSS)} of full's AP and below, in every seed (published are 1.37 to "
        f"1.83 x at a loss of up to 5.7 %). {reason}"
    )
    figures = {"full": mean, "minimal": fmean(minimal.values()), "loss": fmean(losses), "loss_share": share}
    left_out = _left_out(cast.settings[METHOD], setting)
    return Answer((text, *left_out), verdict, {**figures, "saving": saving})


def _judge_loss(detector: str, saving: float, mean: float, shares: Sequence[float]) -> tuple[Verdict, str]:
    if saving < MUCH_CHEAPER and detector in PUBLISHED:
        return "contradicted", "The saving follows from the architecture, whatever the seed."
    if saving < MUCH_CHEAPER:
        return "not tested", (
            f"This detector's minimal depth saves only {saving:.2f} x; published detectors save 1.37 x and "
            "more: it cannot show this."
        )
    if reserved := reservation(mean, len(shares)):
        return "undecided", reserved
    small = {share <= SMALL_LOSS for share in shares}
    if len(small) > 1:
        return "undecided", "The loss is small in some seeds only."
    if small == {True}:
        return "supported", f"It is small in every seed. {by_agreement(len(shares))}"
    return "contradicted", f"It is larger in every seed. {by_agreement(len(shares))}"


def _minimal_alone(cast: Cast) -> Answer:
    missing = lacking(cast, METHOD, "minimal only")
    return missing or versus(cast, "minimal only", "At minimal depth", "minimal", _at("minimal"), -TOLERANCE)


def _naive_skipping(cast: Cast) -> Answer:
    if missing := lacking(cast, METHOD, "full only"):
        return missing
    minimal = versus(cast, "full only", "At minimal depth", "minimal", _at("minimal"), 0.0)
    between = versus(cast, "full only", "In the mean of the rungs between", "between", between_mean, 0.0)
    # Of a curve without the ladder, the minimal depth still tells.
    tested = [answer for answer in (minimal, between) if answer.verdict != "not tested"]
    return combined(tested) if tested else minimal


def _points_between(cast: Cast) -> Answer:
    if missing := lacking(cast, METHOD):
        return missing
    setting = _with_both_ends(cast.settings[METHOD])
    depths = depths_between(setting) if setting else []
    if setting is None or not depths:
        return uncurved(cast.settings[METHOD], "depths between full and minimal (curve.depths=ladder)")
    floors = setting.by_seed(floor_of)
    deficits = {
        depth: [floors[seed] - ap for seed, ap in setting.by_seed(_at(depth)).items()] for depth in depths
    }
    worst = max(deficits, key=lambda depth: fmean(deficits[depth]))
    below = [depth for depth, seeds in deficits.items() if min(seeds) > TOLERANCE]
    at_worst = [*setting.by_seed(_at(worst)).values()]
    figures = {
        "points_between": float(len(depths)),
        "points_below": float(len(below)),
        "worst_point": fmean(at_worst),
        "worst_deficit": fmean(deficits[worst]),
    }
    verdict, reason = _judge_deficits(setting.mean["full"], [*deficits.values()])
    named = f" ({listed(below[:_MOST_DEPTHS])}{' and others' if len(below) > _MOST_DEPTHS else ''})"
    text = [
        f"Between {points(setting.mean['full'])} AP points at full and {points(setting.mean['minimal'])} at "
        f'minimal depth, "{setting.label}" was evaluated at {_counted(len(depths), "further depth")}. The '
        f"worst, {worst}, reaches {spread_of(at_worst)}.",
        *_left_out(cast.settings[METHOD], setting),
        *_drop_sentences(setting, cast.settings.get("full only"), figures),
        f"A depth works if it lies at most {points(TOLERANCE)} points below the lower end of the same "
        f"network; {_counted(len(below), 'depth')} fail{'' if len(below) > 1 else 's'} in every seed"
        f"{named if below else ''}. {reason}",
    ]
    return Answer(tuple(text), verdict, figures)


def _judge_deficits(mean: float, deficits: Sequence[Sequence[float]]) -> tuple[Verdict, str]:
    """Args: AP of full, and by depth how far each seed lies below its lower end."""
    seeds = len(deficits[0])
    if reserved := reservation(mean, seeds):
        return "undecided", reserved
    rule = by_agreement(seeds)
    if len(deficits) > 1:
        rule += (
            f" That is the chance of one depth; any of the {len(deficits)} can contradict, and as they share "
            "one network they are not independent."
        )
    if any(min(depth) > TOLERANCE for depth in deficits):
        return "contradicted", rule
    if all(max(depth) <= TOLERANCE for depth in deficits):
        return "supported", f"All work in all seeds. {rule}"
    return "undecided", "Some work in some seeds only."


def _against_random_depths(cast: Cast) -> Answer:
    roles: tuple[Role, ...] = ("random", "sandwich")
    present = [role for role in roles if role in cast.settings]
    if missing := lacking(cast, METHOD, *(() if present else roles)):
        return missing
    return combined([versus(cast, role, *_ladder(cast, role), -TOLERANCE) for role in present])


def _distillation(cast: Cast) -> Answer:
    present = [role for role in _ARMS if role in cast.settings]
    if missing := lacking(cast, METHOD, *(() if present else _ARMS)):
        return missing
    answer = combined([versus(cast, role, *_ladder(cast, role), 0.0) for role in present])
    parts = [*answer.sentences, *(sentence for role in present for sentence in _end_sentences(cast, role))]
    verdict = answer.verdict
    if untested := lacking(cast, *_ARMS):
        parts += ["Not all kinds are tested.", *untested.sentences]
        verdict = "undecided" if verdict == "supported" else verdict
    return Answer(tuple(parts), verdict, answer.figures)


_QUESTIONS = (
    _Question("1", "Full depth matches or beats the fixed-depth full network", _full_depth),
    _Question("2", "Minimal depth is much cheaper at a small loss", _cheap_at_small_loss),
    _Question("2", "Minimal depth matches or beats the minimal network trained alone", _minimal_alone),
    _Question("2", "Shallow depths beat the full network skipped naively", _naive_skipping),
    _Question("3", "Every point between full and minimal depth works", _points_between),
    _Question("3", "Training the extremes alone is as good as random depths", _against_random_depths),
    _Question("distillation", "Both kinds of distillation beat fewer of them", _distillation),
)


# -- two settings ----------------------------------------------------------------------------------------


def _ladder(cast: Cast, role: Role) -> tuple[str, str, Figure]:
    """Where two settings are compared: in the mean of the ladder, or at minimal depth where there is none."""
    if all("ladder_mean" in cast.settings[each].mean for each in (METHOD, role)):
        return "In the mean of the ladder", "ladder_mean", _ladder_mean
    return "At minimal depth", "minimal", _at("minimal")


def _end_sentences(cast: Cast, role: Role) -> Iterator[str]:
    """The differences at both ends, without a verdict."""
    method, other = cast.settings[METHOD], cast.settings[role]
    ends = [Contrast(method.by_seed(_at(end)), other.by_seed(_at(end))) for end in ("full", "minimal")]
    if all(contrast.first and contrast.second for contrast in ends):
        full, minimal = (points(contrast.difference, sign=True) for contrast in ends)
        yield f'Against "{other.label}", it is {full} at full and {minimal} at minimal depth.'


def _drop_sentences(setting: Setting, naive: Setting | None, figures: dict[str, float]) -> Iterator[str]:
    """The largest drop of the method's ladder and of the naively skipped network's; adds their figures."""
    drop = largest_mean_drop(setting)
    if drop is None:
        return
    gap = setting.mean["full"] - setting.mean["minimal"]
    figures["largest_drop"] = drop.loss
    text = (
        f"Its largest drop between neighbouring rungs of the ladder, from {drop.deeper} to {drop.shallower}, "
    )
    text += f"is {points(drop.loss)} points"
    if gap > TOLERANCE:
        figures["largest_drop_share"] = drop.loss / gap
        text += f", {percent(drop.loss / gap)} of what lies between the ends"
    naive_drop = largest_mean_drop(naive) if naive else None
    if naive and naive_drop:
        figures["largest_drop/full_only"] = naive_drop.loss
        text += f'; skipped naively, "{naive.label}" has one of {points(naive_drop.loss)}'
    yield text + "."


# -- runs with both ends ---------------------------------------------------------------------------------


def _with_both_ends(setting: Setting) -> Setting | None:
    """The runs of a setting with an AP at full and at minimal depth; None where there is none."""
    whole = [run for run in setting.runs if floor_of(run) is not None]
    return with_runs(setting, whole) if whole else None


def _left_out(setting: Setting, whole: Setting) -> Iterator[str]:
    missing = len(setting.runs) - len(whole.runs)
    if missing:
        yield (
            f"{missing} of its {len(setting.runs)} runs {'have' if missing > 1 else 'has'} no AP for full or "
            "minimal depth and count"
            f"{'' if missing > 1 else 's'} nowhere here."
        )


# -- figures and sentences -------------------------------------------------------------------------------


def _at(depth: str) -> Figure:
    return lambda run: ap_of(run, depth)


def _ladder_mean(run: Run) -> float | None:
    return run.summary.ladder_mean


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"
