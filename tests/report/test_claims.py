"""Findings on the claims: arms come from configurations, verdicts from orders of seeds made by hand."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import LADDER, Places, config_of, ladder, levels_of, make_curve

from anydepth.evaluation.curve_summary import summarize
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.report.claims.arms import arm_of, find_arms
from anydepth.report.claims.ladders import inner_mean_ap, largest_mean_drop
from anydepth.report.claims.questions import Finding, answer_questions
from anydepth.report.runs import Run
from anydepth.report.settings import group_settings

BOTH: tuple[str, ...] = ()
FULL_ONLY = ("depth_schedule=full_only",)
MINIMAL_ONLY = ("depth_schedule=minimal_only",)
PREDICTION = ("losses=detr_prediction_only",)
FEATURE = ("losses=detr_feature_only",)
NONE = ("depth_schedule=extremes_no_distillation",)
RANDOM = ("depth_schedule=random",)
SANDWICH = ("depth_schedule=sandwich",)

GOOD = ladder(30, 29.5, 29, 28.5)
Runs = Mapping[tuple[str, ...], Sequence[Mapping[str, float]]]


@cache
def _config(overrides: tuple[str, ...]) -> dict[str, object]:
    return config_of(overrides)


def _run(
    config: Mapping[str, object],
    curve: DepthCurve | None = None,
    overrides: Sequence[str] = (),
    name: str = "x",
    levels: object = "stated",
) -> Run:
    drawn = curve or make_curve(GOOD)
    return Run(
        folder=Path("x"),
        name=name,
        config=config,
        provenance={
            **({"overrides": list(overrides)} if overrides else {}),
            "distilled_levels": levels_of(config) if levels == "stated" else levels,
        },
        result={},
        curve=drawn,
        summary=summarize(drawn),
        log={},
        compatibility=None,
        gallery=None,
        notes=(),
    )


def _findings(runs: Runs, *, places: Places | None = None, **curve: object) -> dict[str, Finding]:
    """Return findings by title, with one run per curve and seeds 0, 1, ...

    Args:
        runs: AP by depth of each seed, by overrides.
        places: Further depths, see :func:`make_curve`.
        curve: Changes to the curves of ``full_only``.
    """
    created = []
    for overrides, seeds in runs.items():
        for seed, aps in enumerate(seeds):
            changes = curve if overrides == FULL_ONLY else {}
            drawn = make_curve(aps, places=places, **changes)
            name = f"{'-'.join(overrides)}/{seed}"
            created.append(_run({**_config(overrides), "seed": seed}, drawn, overrides, name))
    return {finding.title: finding for finding in answer_questions(group_settings(created))}


def _verdicts(runs: Runs) -> dict[str, str]:
    return {title: finding.verdict for title, finding in _findings(runs).items()}


FULL = "Full depth matches or beats the fixed-depth full network"
CHEAP = "Minimal depth is much cheaper at a small loss"
ALONE = "Minimal depth matches or beats the minimal network trained alone"
NAIVE = "Shallow depths beat the full network skipped naively"
BETWEEN = "Every point between full and minimal depth works"
SCHEDULES = "Training the extremes alone is as good as random depths"
DISTILLATION = "Distilling predictions and features beats distilling less"


def _lower(aps: Mapping[str, float], points: float) -> dict[str, float]:
    return {depth: ap - points / 100 for depth, ap in aps.items()}


# -- arms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "arm"),
    [
        (BOTH, "any-depth"),
        (FULL_ONLY, "full only"),
        (MINIMAL_ONLY, "minimal only"),
        pytest.param(PREDICTION, "prediction only", marks=pytest.mark.slow),
        (FEATURE, "feature only"),
        (NONE, "without distillation"),
        pytest.param(("losses=detr_none",), "without distillation", marks=pytest.mark.slow),
        (RANDOM, "random"),
        pytest.param(SANDWICH, "sandwich", marks=pytest.mark.slow),
        (("detector.switchable_norms=false",), "any-depth"),
        pytest.param(("losses.distillation.backbone_weight=4.0",), "any-depth", marks=pytest.mark.slow),
        (("depth_schedule.depths=[full,1/2,minimal]",), None),
        pytest.param((*RANDOM, *PREDICTION), None, marks=pytest.mark.slow),
        (("detector=yolo_tiny",), "any-depth"),
        pytest.param(
            ("detector=yolo_tiny", "losses=yolo_prediction_only"), "prediction only", marks=pytest.mark.slow
        ),
        (("detector=yolo_tiny", "losses=yolo_feature_only"), "feature only"),
        pytest.param(
            ("detector=yolo_tiny", "losses=yolo_none"), "without distillation", marks=pytest.mark.slow
        ),
        pytest.param(("detector=yolo_tiny", "depth_schedule=full_only"), "full only", marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_arms_are_recognised_by_schedule_and_objective(overrides: tuple[str, ...], arm: str | None):
    assert arm_of(_run(_config(overrides))) == arm


@pytest.mark.parametrize(
    "change", [{"depth_schedule": None}, {"depth_schedule": {"depths": 3}}], ids=["no schedule", "odd depths"]
)
def test_other_configurations_belong_to_no_arm(change: Mapping[str, object]):
    assert arm_of(_run({**_config(BOTH), **change})) is None


@pytest.mark.parametrize(
    ("levels", "arm"),
    [
        (["features", "predictions"], "any-depth"),
        ([], "without distillation"),
        (["attention", "features"], None),
        (None, None),
        ("features", None),
        ([1], None),
    ],
)
def test_distilled_levels_are_read_from_the_run_and_never_guessed(levels: object, arm: str | None):
    """An objective of another package, or a new term, does not count as training without distillation."""
    foreign = {**_config(BOTH), "losses": {"_target_": "somebody.elses.losses"}}
    assert arm_of(_run(foreign, levels=levels)) == arm


def test_weights_of_zero_count_as_no_distillation():
    classes_off = [f"losses.distillation.{name}_kl_weight=0" for name in ("softmax", "bernoulli")]
    nothing = [*classes_off, *(f"losses.distillation.{name}_weight=0" for name in ("l1", "giou"))]
    assert arm_of(_run(_config(tuple(classes_off)))) == "any-depth"
    assert arm_of(_run(_config(tuple(nothing)))) == "feature only"


def test_the_reference_is_the_setting_closest_to_the_others():
    made = _settings(
        BOTH, ("losses.distillation.backbone_weight=4.0",), ("losses.distillation.neck_weight=4.0",)
    )
    (arms,) = find_arms(made)
    assert arms.settings["any-depth"].config["losses.distillation.backbone_weight"] == 1.0
    assert arms.settings["any-depth"].config["losses.distillation.neck_weight"] == 1.0
    assert len(arms.others["any-depth"]) == 2


def test_the_reference_has_switchable_norms():
    # It differs from full_only in two keys, shared norms only in one.
    (arms,) = find_arms(_settings(("detector.switchable_norms=false",), FULL_ONLY, MINIMAL_ONLY, BOTH))
    assert arms.settings["any-depth"].config["detector.switchable_norms"] is True


def test_other_architectures_are_not_compared():
    runs = {BOTH: [GOOD] * 2, (*FULL_ONLY, "detector.decoder_layers=4"): [GOOD] * 2}
    finding = _findings(runs)[FULL]
    assert finding.verdict == "not tested"
    assert "have another architecture" in finding.text


def _settings(*overrides: tuple[str, ...]):
    return group_settings([_run(_config(given), name=str(place)) for place, given in enumerate(overrides)])


# -- claim 1 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "verdict"),
    [
        # Half a point less counts as equal: both seeds of the method (30.0, 30.2) against both of the fixed.
        ([29.0, 29.5], "supported"),
        ([30.3, 30.4], "supported"),
        ([30.3, 30.6], "undecided"),
        ([30.8, 31.0], "contradicted"),
    ],
)
def test_full_depth_is_compared_with_a_tolerance(fixed: Sequence[float], verdict: str):
    runs = {
        BOTH: [GOOD, _lower(GOOD, -0.2)],
        FULL_ONLY: [{**GOOD, "full": full / 100} for full in fixed],
    }
    assert _verdicts(runs)[FULL] == verdict


def test_the_text_of_claim_1_states_all_figures():
    finding = _findings(
        {BOTH: [GOOD, _lower(GOOD, -0.2)], FULL_ONLY: [_lower(GOOD, 1), _lower(GOOD, 0.6)]},
        parameters=996_000,
    )[FULL]
    assert finding.claim == "1"
    assert finding.text == (
        'At full depth, "defaults" reaches 30.1 (30.0 to 30.2 over 2 seeds) AP points, '
        '"depth_schedule=full_only" (full only) 29.2 (29.0 to 29.4 over 2 seeds): +0.9 (+0.8 to +1.0 by '
        "seed), as good or better whichever seeds are compared. Up to 0.5 points less count as equal. "
        "With 2 and 2 seeds, a clear separation occurs by chance in 33 % of cases between settings that "
        "differ by exactly 0.5 points. Parameters differ by +0.40 % "
        "(1.00 M against 1.00 M; published: +0.03 % to +3.2 %)."
    )
    assert finding.figures["full/full_only/difference"] == pytest.approx(0.009)
    assert finding.figures["full/full_only/chance"] == pytest.approx(1 / 3)
    assert finding.figures["parameters_ratio"] == pytest.approx(1_000_000 / 996_000)
    assert finding.printed_figures == {
        "full/any-depth": "30.1",
        "full/full_only": "29.2",
        "full/full_only/difference": "+0.9",
        "full/full_only/chance": "33 %",
        "parameters_ratio": "1.004 x",
    }


def test_a_baseline_selected_by_its_own_depth_needs_no_caveat():
    finding = _findings({BOTH: [GOOD] * 2, FULL_ONLY: [_lower(GOOD, 1)] * 2})[FULL]
    assert finding.verdict == "supported"
    assert "fairer" not in finding.text
    unfair = (*FULL_ONLY, "validation.score=mean")
    finding = _findings({BOTH: [GOOD] * 2, unfair: [_lower(GOOD, 1)] * 2})[FULL]
    assert finding.text.endswith(
        "was selected by validation.score=mean, which includes depths that it does not train: "
        "validation.score=full would be fairer. Parameters differ by +0.00 % (1.00 M against 1.00 M; "
        "published: +0.03 % to +3.2 %)."
    )


def test_one_seed_decides_nothing():
    runs = {
        BOTH: [GOOD],
        FULL_ONLY: [_lower(GOOD, 20)],
        NONE: [_lower(GOOD, 9)],
        MINIMAL_ONLY: [_lower(GOOD, 9)],
    }
    findings = _findings(runs)
    assert {finding.verdict for finding in findings.values()} == {"undecided", "not tested"}
    assert "One seed is not enough for a verdict" in findings[FULL].text
    assert "(one seed)" in findings[BETWEEN].text


def test_networks_that_learnt_nothing_decide_nothing():
    runs = {BOTH: [ladder(4, 4, 4, 4)] * 2, FULL_ONLY: [ladder(1, 1, 1, 1)] * 2}
    findings = _findings(runs)
    assert {findings[title].verdict for title in (FULL, CHEAP, NAIVE, BETWEEN)} == {"undecided"}
    assert "learnt too little" in findings[FULL].text


def test_the_published_fixed_depth_network_is_the_full_only_arm_and_is_named():
    fixed = ("detector=rtdetr_r18", *FULL_ONLY)
    method = ("detector=detr_r18",)
    findings = _findings({method: [GOOD] * 2, fixed: [{"full": 0.29}] * 2})
    assert findings[FULL].verdict == "supported"
    assert (
        "is the fixed-depth rtdetr_r18, which also differs in detector.minimal_decoder_layers."
        in findings[FULL].text
    )
    # A fixed-depth network has no shallower depth.
    assert findings[NAIVE].verdict == "not tested"


def test_the_same_network_at_full_depth_only_comes_before_the_published_one():
    yolo = ("detector=yolo_n",)
    made = _settings(yolo, (*yolo, *FULL_ONLY), ("detector=yolov12_n", *FULL_ONLY))
    (arms,) = find_arms(made)
    assert arms.detector == "yolo_n"
    assert arms.settings["full only"].runs[0].config["detector_name"] == "yolo_n"
    assert len(arms.others["full only"]) == 1
    (arms,) = find_arms(_settings(yolo, ("detector=yolov12_n", *FULL_ONLY)))
    assert arms.settings["full only"].runs[0].config["detector_name"] == "yolov12_n"


def test_other_differences_of_a_fixed_depth_network_are_another_architecture():
    odd = ("detector=rtdetr_r18", *FULL_ONLY, "detector.num_queries=50")
    (arms,) = find_arms(_settings(("detector=detr_r18",), odd))
    assert arms.settings.keys() == {"any-depth"}


@pytest.mark.parametrize("name", ["rtdetr_r18", "yolov12_m"])
def test_a_fixed_depth_network_is_never_any_depth(name: str):
    # Training refuses this schedule for it, but an edited folder may hold it.
    assert arm_of(_run(_config((f"detector={name}",)))) is None


def test_a_fixed_depth_network_without_a_counterpart_is_ignored():
    assert find_arms(_settings(("detector=yolov12_m", *FULL_ONLY))) == ()


def test_further_differences_are_named_and_decide_nothing():
    runs = {BOTH: [GOOD] * 2, (*FULL_ONLY, "recipe.lr=0.5", "recipe.epochs=9"): [_lower(GOOD, 5)] * 2}
    finding = _findings(runs)[FULL]
    assert finding.verdict == "undecided"
    assert "also differ in recipe.epochs, recipe.lr, which may explain" in finding.text


# -- claim 2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minimal", "verdict"),
    # 6 % of 30 points are 1.8: minimal may reach 28.2.
    [([28.3, 28.5], "supported"), ([28.1, 28.3], "undecided"), ([28.1, 28.0], "contradicted")],
)
def test_a_small_loss_is_a_share_of_full(minimal: Sequence[float], verdict: str):
    runs = {BOTH: [{**GOOD, "minimal": ap / 100} for ap in minimal]}
    assert _verdicts(runs)[CHEAP] == verdict


def test_figures_of_claim_2_are_those_computed_by_hand():
    finding = _findings({BOTH: [ladder(30, 29, 29, 28.5), ladder(32, 29, 29, 31.5)]})[CHEAP]
    expected = {"full": 0.31, "minimal": 0.30, "loss": 0.01, "loss_share": 0.01 / 0.31, "saving": 2.0}
    assert finding.figures == pytest.approx(expected)
    assert finding.printed_figures == {
        "full": "31.0",
        "minimal": "30.0",
        "loss": "1.0",
        "loss_share": "3.2 %",
        "saving": "2 x",
    }
    assert "2.00 x fewer GFLOPs" in finding.text
    assert "a loss of 1.0 (0.5 to 1.5 over 2 seeds), 3.2 % of full's AP" in finding.text
    assert "in 50 % of cases" in finding.text


def test_a_small_saving_of_an_unpublished_detector_tests_nothing_but_is_reported(
    monkeypatch: pytest.MonkeyPatch,
):
    # Curves of this module save 2.0 x.
    monkeypatch.setattr("anydepth.report.claims.questions.MUCH_CHEAPER", 2.1)
    finding = _findings({BOTH: [GOOD] * 2})[CHEAP]
    assert finding.verdict == "not tested"
    assert "minimal depth saves only 2.00 x; published detectors save" in finding.text
    assert "a loss of 1.5" in finding.text
    assert finding.figures["loss"] == pytest.approx(0.015)


def test_a_small_saving_of_a_published_detector_contradicts_whatever_the_seeds(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("anydepth.report.claims.questions.MUCH_CHEAPER", 2.1)
    assert _verdicts({("detector=detr_r18",): [GOOD]})[CHEAP] == "contradicted"


def test_seeds_without_an_end_are_ignored_with_a_sentence():
    """Seeds may have been evaluated at other depths, or on images without objects (AP -1)."""
    whole = [GOOD, _lower(GOOD, -0.2)]
    for odd in ({"full": 0.9}, {"minimal": 0.9}, {**GOOD, "minimal": -1.0}, {**GOOD, "full": -1.0}):
        findings = _findings({BOTH: [*whole, odd]})
        for title in (CHEAP, BETWEEN):
            alone = _findings({BOTH: whole})[title]
            assert (findings[title].verdict, findings[title].figures) == (alone.verdict, alone.figures)
            assert (
                "1 of its 3 runs has no AP for full or minimal depth and is ignored" in findings[title].text
            )


def test_without_any_seed_that_has_both_ends_nothing_is_tested():
    findings = _findings({BOTH: [{"full": 0.3}, {"minimal": 0.2}]})
    assert {finding.verdict for finding in findings.values()} == {"not tested"}


CURVES = st.dictionaries(
    st.sampled_from([*LADDER, "stage1@3", "none@1"]), st.sampled_from([-1.0, 0.2, 0.3]), min_size=1
)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.lists(CURVES, min_size=1, max_size=3), st.lists(CURVES, max_size=2))
def test_whatever_depths_seeds_have_there_are_findings(
    method: list[Mapping[str, float]], baseline: list[Mapping[str, float]]
):
    runs = {BOTH: method, FULL_ONLY: baseline, RANDOM: baseline, NONE: baseline, FEATURE: baseline}
    assert len(_findings(runs)) == 7


def test_minimal_depth_is_compared_with_the_network_trained_alone():
    better = {BOTH: [GOOD] * 2, MINIMAL_ONLY: [ladder(1, 5, 9, 28)] * 2}
    worse = {BOTH: [GOOD] * 2, MINIMAL_ONLY: [ladder(1, 5, 9, 30)] * 2}
    assert (_verdicts(better)[ALONE], _verdicts(worse)[ALONE]) == ("supported", "contradicted")


def test_naive_skipping_is_compared_at_minimal_depth_and_between():
    runs = {BOTH: [GOOD] * 2, FULL_ONLY: [ladder(31, 20, 9, 2)] * 2}
    finding = _findings(runs)[NAIVE]
    assert finding.verdict == "supported"
    # (29.5 + 29) / 2 against (20 + 9) / 2.
    assert finding.figures["between/full_only/difference"] == pytest.approx(0.2925 - 0.145)
    assert finding.figures["minimal/full_only/difference"] == pytest.approx(0.285 - 0.02)
    assert finding.text.count("by chance in 33 % of cases") == 1
    mixed = {BOTH: [GOOD] * 2, FULL_ONLY: [ladder(31, 31, 31, 2)] * 2}
    assert _verdicts(mixed)[NAIVE] == "contradicted"


@pytest.mark.parametrize(
    ("better", "verdict"),
    # Differences that print as +0.0 decide nothing; the last seed differs by the tenth that is printed.
    [(0.04, "undecided"), (-0.04, "undecided"), (0.1, "supported"), (-0.1, "contradicted")],
)
def test_a_difference_below_the_printed_precision_decides_nothing(better: float, verdict: str):
    runs = {BOTH: [GOOD] * 2, FULL_ONLY: [_lower(GOOD, better)] * 2}
    finding = _findings(runs)[NAIVE]
    assert finding.verdict == verdict
    assert ("no difference at the printed precision" in finding.text) == (verdict == "undecided")


def test_equal_figures_are_no_difference():
    assert (
        "no difference at the printed precision"
        in _findings({BOTH: [GOOD] * 2, FULL_ONLY: [GOOD] * 2})[NAIVE].text
    )


def test_several_comparisons_state_their_joint_chance():
    """Bounded by the sum: 2 x 1/3 with two seeds each, 3 x 1/3, and 2 x 1/10 with three."""
    bad = _lower(GOOD, 5)
    naive = _findings({BOTH: [GOOD] * 2, FULL_ONLY: [bad] * 2})[NAIVE]
    assert "Any of these 2 comparisons can contradict" in naive.text
    assert "by chance in up to 67 % of cases" in naive.text
    arms = {NONE: [bad] * 2, PREDICTION: [bad] * 2, FEATURE: [bad] * 2}
    assert "up to 100 % of cases" in _findings({BOTH: [GOOD] * 2, **arms})[DISTILLATION].text
    three = {BOTH: [GOOD] * 3, RANDOM: [bad] * 3, SANDWICH: [bad] * 3}
    assert "up to 20 % of cases" in _findings(three)[SCHEDULES].text
    for single in ({BOTH: [GOOD] * 2, RANDOM: [bad] * 2}, {BOTH: [GOOD], RANDOM: [bad], SANDWICH: [bad]}):
        assert "can contradict" not in _findings(single)[SCHEDULES].text


def test_without_a_ladder_naive_skipping_is_compared_at_minimal_depth():
    ends = {"full": 0.3, "minimal": 0.28}
    finding = _findings({BOTH: [ends] * 2, FULL_ONLY: [{"full": 0.3, "minimal": 0.1}] * 2})[NAIVE]
    assert finding.verdict == "supported"
    assert "minimal/full_only/difference" in finding.figures
    assert not any(name.startswith("between") for name in finding.figures)


def test_a_baseline_without_shallow_depths_cannot_be_skipped():
    finding = _findings({BOTH: [GOOD] * 2, FULL_ONLY: [{"full": 0.3}] * 2})[NAIVE]
    assert finding.verdict == "not tested"
    assert "no AP for minimal depth" in finding.text


# -- claim 3 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("none", "verdict"),
    # Minimal reaches 28.5: a rung may lie at 28.0.
    [([28.1, 29.0], "supported"), ([27.9, 29.0], "undecided"), ([27.9, 27.0], "contradicted")],
)
def test_a_point_between_works_if_it_is_not_below_the_ends(none: Sequence[float], verdict: str):
    runs = {BOTH: [{**GOOD, "none@3": ap / 100} for ap in none]}
    assert _verdicts(runs)[BETWEEN] == verdict


def test_depths_below_minimal_contradict_nothing():
    """curve.depths=all evaluates them, but they were not trained."""
    below = {"none@1": ((False, False), 1, 4.0), "full@1": ((True, True), 1, 7.0)}
    seeds = [{**GOOD, "stage1@3": 0.29, "none@1": 0.02, "full@1": 0.05}] * 2
    finding = _findings({BOTH: seeds}, places=below)[BETWEEN]
    assert (finding.verdict, finding.figures["points_between"]) == ("supported", 3.0)
    # stage1@3 does lie between.
    worse = [{**seed, "stage1@3": 0.2} for seed in seeds]
    assert _findings({BOTH: worse}, places=below)[BETWEEN].verdict == "contradicted"


def test_a_different_point_that_fails_in_every_seed_is_no_contradiction():
    finding = _findings({BOTH: [{**GOOD, "none@3": 0.2}, {**GOOD, "neck@3": 0.2}]})[BETWEEN]
    assert (finding.verdict, finding.figures["points_below"]) == ("undecided", 0.0)


def test_the_text_of_claim_3_names_the_largest_drop_and_that_of_naive_skipping():
    finding = _findings({BOTH: [ladder(30, 29, 27, 28)] * 2, FULL_ONLY: [ladder(31, 28, 12, 2)] * 2})[BETWEEN]
    assert finding.text == (
        'Between 30.0 AP points at full and 28.0 at minimal depth, "defaults" was evaluated at 2 further '
        "depths. The worst, none@3, reaches 27.0 (27.0 to 27.0 over 2 seeds). Its largest drop between "
        "neighbouring rungs of the ladder, from neck@3 to none@3, is 2.0 points, 100 % of the difference "
        'between the ends; skipped naively, "depth_schedule=full_only" drops by 16.0. A depth works if it '
        "lies at most 0.5 points below the lower end of the same network; 1 depth fails in every seed "
        "(none@3). If the true value lay at the limit, 2 seeds would fall on one side of it by chance "
        "in 50 % of cases. This holds for a single depth; any of the 2 can contradict, and they are not "
        "independent, as they share one network."
    )
    assert finding.figures == pytest.approx(
        {
            "points_between": 2.0,
            "points_below": 1.0,
            "worst_point": 0.27,
            "worst_deficit": 0.01,
            "largest_drop": 0.02,
            "largest_drop_share": 1.0,
            "largest_drop/full_only": 0.16,
        }
    )
    assert finding.printed_figures == {
        "points_between": "2",
        "points_below": "1",
        "worst_point": "27.0",
        "worst_deficit": "1.0",
        "largest_drop": "2.0",
        "largest_drop_share": "100.0 %",
        "largest_drop/full_only": "16.0",
    }


def test_ends_that_lie_close_give_no_share():
    finding = _findings({BOTH: [ladder(30, 29, 29, 29.8)] * 2})[BETWEEN]
    assert "largest_drop_share" not in finding.figures


def test_a_curve_of_the_ends_alone_tests_no_point_between():
    finding = _findings({BOTH: [{"full": 0.3, "minimal": 0.29}] * 2})[BETWEEN]
    assert finding.verdict == "not tested"
    assert "curve.depths=ladder" in finding.text


def test_schedules_are_compared_in_the_mean_of_the_ladder():
    runs = {BOTH: [GOOD] * 2, RANDOM: [_lower(GOOD, 1)] * 2, SANDWICH: [_lower(GOOD, -0.4)] * 2}
    assert _verdicts(runs)[SCHEDULES] == "supported"
    assert _verdicts({**runs, SANDWICH: [_lower(GOOD, -1)] * 2})[SCHEDULES] == "contradicted"


def test_the_largest_mean_drop_is_that_of_the_mean_curve():
    # Drops of 4, 0, 1 and of 0, 4, 1: on average 2, 2, 1, although each seed has one of 4.
    (setting,) = group_settings([_run_of(0, ladder(30, 26, 26, 25)), _run_of(1, ladder(30, 30, 26, 25))])
    drop = largest_mean_drop(setting)
    assert drop is not None
    assert drop.loss == pytest.approx(0.02)
    assert setting.mean["largest_drop"] == pytest.approx(0.04)


def test_a_ladder_of_two_rungs_has_nothing_between():
    assert inner_mean_ap(_run_of(0, {"full": 0.3, "minimal": 0.2})) is None
    assert inner_mean_ap(_run_of(0, GOOD)) == pytest.approx(0.2925)


def _run_of(seed: int, aps: Mapping[str, float]) -> Run:
    curve = make_curve(aps)
    return Run(Path("x"), str(seed), {"seed": seed}, {}, {}, curve, summarize(curve), {}, None, None, ())


# -- distillation ----------------------------------------------------------------------------------------


def test_distillation_is_compared_with_every_arm():
    runs = {
        BOTH: [GOOD] * 2,
        NONE: [_lower(GOOD, 5)] * 2,
        PREDICTION: [_lower(GOOD, 1)] * 2,
        FEATURE: [_lower(GOOD, 2)] * 2,
    }
    finding = _findings(runs)[DISTILLATION]
    assert (finding.claim, finding.verdict) == ("distillation", "supported")
    assert finding.figures["ladder_mean/feature_only/difference"] == pytest.approx(0.02)
    assert "is +5.0 at full and +5.0 at minimal depth" in finding.text
    assert _verdicts({**runs, PREDICTION: [_lower(GOOD, -1)] * 2})[DISTILLATION] == "contradicted"
    assert _verdicts({**runs, PREDICTION: [GOOD, _lower(GOOD, 1)]})[DISTILLATION] == "undecided"


def test_feature_distillation_of_yolo_states_its_lower_weight_of_ground_truth():
    # alpha x ground truth + (1 - alpha) x teacher, and no teacher of predictions.
    yolo = ("detector=yolo_tiny",)
    feature, prediction = ((*yolo, f"losses=yolo_{kind}_only") for kind in ("feature", "prediction"))
    text = _findings({yolo: [GOOD] * 2, feature: [_lower(GOOD, 5)] * 2})[DISTILLATION].text
    assert "the shallower pass keeps 0.2 of its losses against ground truth" in text
    others = {yolo: [GOOD] * 2, prediction: [_lower(GOOD, 5)] * 2}
    assert "0.2 of its losses" not in _findings(others)[DISTILLATION].text
    assert "0.2 of its losses" not in _findings({BOTH: [GOOD] * 2, FEATURE: [GOOD] * 2})[DISTILLATION].text


def test_a_missing_arm_leaves_distillation_undecided_and_is_named():
    finding = _findings({BOTH: [GOOD] * 2, NONE: [_lower(GOOD, 5)] * 2})[DISTILLATION]
    assert finding.verdict == "undecided"
    assert (
        "ablation=prediction_only (prediction only) and ablation=feature_only (feature only)" in finding.text
    )


# -- missing runs ----------------------------------------------------------------------------------------


def test_missing_runs_are_named():
    findings = _findings({BOTH: [GOOD] * 2})
    tested = {title for title, finding in findings.items() if finding.verdict != "not tested"}
    assert tested == {CHEAP, BETWEEN}
    assert findings[FULL].text == (
        "Needs runs of detr_tiny on the same data with depth_schedule=full_only (full only)."
    )
    assert findings[FULL].figures == {}


def test_baselines_alone_test_nothing_and_name_the_missing_runs():
    findings = _findings({FULL_ONLY: [GOOD] * 2, MINIMAL_ONLY: [GOOD] * 2})
    assert {finding.verdict for finding in findings.values()} == {"not tested"}
    assert "with ablation=both (any-depth)" in findings[BETWEEN].text
    assert "full only" not in findings[FULL].text
    assert "full only" not in findings[NAIVE].text


def test_several_detectors_are_judged_separately():
    yolo = ("detector=yolo_tiny",)
    runs = {BOTH: [GOOD] * 2, yolo: [GOOD] * 2, (*yolo, *FULL_ONLY): [_lower(GOOD, 2)] * 2}
    findings = _findings(runs)
    assert len(findings) == 14
    assert findings[f"{FULL} (yolo_tiny)"].verdict == "supported"
    assert findings[f"{FULL} (detr_tiny)"].verdict == "not tested"
