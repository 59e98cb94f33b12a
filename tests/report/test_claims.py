"""What runs say about the claims: roles come from configurations, verdicts from orders made by hand."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from run_files import config_of, ladder, make_curve

from anydepth.evaluation.curve_summary import summarize
from anydepth.report.claims import Finding, findings_of
from anydepth.report.ladders import between_mean, largest_mean_drop
from anydepth.report.roles import casts, role_of
from anydepth.report.runs import Run
from anydepth.report.settings import group_settings

BOTH: tuple[str, ...] = ()
FULL_ONLY = ("depth_schedule=full_only",)
MINIMAL_ONLY = ("depth_schedule=minimal_only",)
PREDICTION = ("distillation=detr_prediction_only",)
FEATURE = ("distillation=detr_feature_only",)
NONE = ("depth_schedule=extremes_no_distillation",)
RANDOM = ("depth_schedule=random",)
SANDWICH = ("depth_schedule=sandwich",)

GOOD = ladder(30, 29.5, 29, 28.5)
Runs = Mapping[tuple[str, ...], Sequence[Mapping[str, float]]]


@cache
def _config(overrides: tuple[str, ...]) -> dict[str, object]:
    return config_of(overrides)


def _findings(runs: Runs, *, label: bool = True, **curve: object) -> dict[str, Finding]:
    """Findings by their title; one run per curve, with seeds 0, 1, ...

    Args:
        runs: AP by depth of each seed, by overrides.
        label: Whether to name the settings by their overrides.
        curve: Changes of the curves of ``full_only``.
    """
    made = []
    for overrides, seeds in runs.items():
        for seed, aps in enumerate(seeds):
            drawn = make_curve(aps, **(curve if overrides == FULL_ONLY else {}))
            made.append(
                Run(
                    folder=Path("x"),
                    name=f"{'-'.join(overrides)}/{seed}",
                    config={**_config(overrides), "seed": seed},
                    provenance={"overrides": list(overrides)},
                    result={},
                    curve=drawn,
                    summary=summarize(drawn),
                    log={},
                    compatibility=None,
                    gallery=None,
                    notes=(),
                )
            )
    return {finding.title: finding for finding in findings_of(group_settings(made))}


def _verdicts(runs: Runs) -> dict[str, str]:
    return {title: finding.verdict for title, finding in _findings(runs).items()}


FULL = "Full depth matches or beats the fixed-depth full network"
CHEAP = "Minimal depth is much cheaper at a small loss"
ALONE = "Minimal depth matches or beats the minimal network trained alone"
NAIVE = "Shallow depths beat the full network skipped naively"
BETWEEN = "Every point between full and minimal depth works"
SCHEDULES = "Training the extremes alone is as good as random depths"
DISTILLATION = "Both kinds of distillation beat fewer of them"


def _lower(aps: Mapping[str, float], points: float) -> dict[str, float]:
    return {depth: ap - points / 100 for depth, ap in aps.items()}


# -- roles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "role"),
    [
        (BOTH, "any-depth"),
        (FULL_ONLY, "full only"),
        (MINIMAL_ONLY, "minimal only"),
        (PREDICTION, "prediction only"),
        (FEATURE, "feature only"),
        (NONE, "without distillation"),
        (("distillation=detr_none",), "without distillation"),
        (RANDOM, "random"),
        (SANDWICH, "sandwich"),
        (("detector.switchable_norms=false",), "any-depth"),
        (("distillation.kd_backbone_weight=4.0",), "any-depth"),
        (("depth_schedule.depths=[full,1/2,minimal]",), None),
        ((*RANDOM, *PREDICTION), None),
        (("detector=yolo_tiny",), "any-depth"),
        (("detector=yolo_tiny", "distillation=yolo_prediction_only"), "prediction only"),
        (("detector=yolo_tiny", "distillation=yolo_feature_only"), "feature only"),
        (("detector=yolo_tiny", "distillation=yolo_none"), "without distillation"),
        (("detector=yolo_tiny", "depth_schedule=full_only"), "full only"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_roles_are_recognised_by_the_configuration(overrides: tuple[str, ...], role: str | None):
    assert role_of(_config(overrides)) == role


@pytest.mark.parametrize(
    "change",
    [
        {"depth_schedule": None},
        {"distillation": {}},
        {"distillation": {"_target_": "somebody.elses.losses"}},
        {"distillation": {"_target_": "anydepth.yolo.objective.build_objective", "alpha": "x"}},
        {"depth_schedule": {"depths": 3}},
    ],
    ids=["no schedule", "no losses", "foreign losses", "odd value", "odd depths"],
)
def test_other_configurations_play_no_role(change: Mapping[str, object]):
    assert role_of({**_config(BOTH), **change}) is None


def test_weights_of_zero_teach_nothing():
    boxes_only = {"kd_softmax_kl_weight": 0.0, "kd_bernoulli_kl_weight": 0.0}
    nothing = {**boxes_only, "kd_l1_weight": 0.0, "kd_giou_weight": 0.0}
    losses = _config(BOTH)["distillation"]
    assert isinstance(losses, dict)
    assert role_of({**_config(BOTH), "distillation": {**losses, **boxes_only}}) == "any-depth"
    assert role_of({**_config(BOTH), "distillation": {**losses, **nothing}}) == "feature only"


def test_the_method_is_the_setting_that_the_others_vary():
    settings = _settings(BOTH, ("distillation.kd_backbone_weight=4.0",), ("distillation.kd_neck_weight=4.0",))
    (cast,) = casts(settings)
    assert cast.settings["any-depth"].config["distillation.kd_backbone_weight"] == 1.0
    assert cast.settings["any-depth"].config["distillation.kd_neck_weight"] == 1.0
    assert len(cast.others["any-depth"]) == 2


def test_the_method_has_norms_for_each_extreme():
    # Two keys part it from full_only, but only one parts shared norms from full_only.
    (cast,) = casts(_settings(("detector.switchable_norms=false",), FULL_ONLY, MINIMAL_ONLY, BOTH))
    assert cast.settings["any-depth"].config["detector.switchable_norms"] is True


def test_other_architectures_play_no_part():
    runs = {BOTH: [GOOD] * 2, (*FULL_ONLY, "detector.decoder_layers=4"): [GOOD] * 2}
    finding = _findings(runs)[FULL]
    assert finding.verdict == "not tested"
    assert "of another architecture" in finding.text


def _settings(*overrides: tuple[str, ...]):
    made = []
    for place, given in enumerate(overrides):
        curve = make_curve(GOOD)
        made.append(
            Run(Path("x"), str(place), _config(given), {}, {}, curve, summarize(curve), {}, None, None, ())
        )
    return group_settings(made)


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


def test_the_text_of_claim_1_says_all_figures():
    finding = _findings(
        {BOTH: [GOOD, _lower(GOOD, -0.2)], FULL_ONLY: [_lower(GOOD, 1), _lower(GOOD, 0.6)]},
        parameters=996_000,
    )[FULL]
    assert finding.claim == "1"
    assert finding.text == (
        'At full depth, "defaults" reaches 30.1 (30.0 to 30.2 over 2 seeds) AP points, '
        '"depth_schedule=full_only" (full only) 29.2 (29.0 to 29.4 over 2 seeds): +0.9 (+0.8 to +1.0 by '
        "seed), as good or better whichever seeds are compared. Up to 0.5 points less count as equal. "
        "With 2 and 2 seeds, a clear order comes up by chance in 33 % of cases between settings that lie "
        'exactly 0.5 points apart. The checkpoint of "depth_schedule=full_only" was chosen by '
        "validation.score=mean, which counts depths that it does not train: validation.score=full would be "
        "fairer. Any depth costs +0.40 % "
        "parameters (1.00 M against 1.00 M; published are +0.03 % to +3.2 %)."
    )
    assert finding.figures["full/full_only/difference"] == pytest.approx(0.009)
    assert finding.figures["full/full_only/chance"] == pytest.approx(1 / 3)
    assert finding.figures["parameters_ratio"] == pytest.approx(1_000_000 / 996_000)


def test_a_baseline_chosen_by_its_own_depth_needs_no_caution():
    fair = (*FULL_ONLY, "validation.score=full")
    finding = _findings({BOTH: [GOOD] * 2, fair: [_lower(GOOD, 1)] * 2})[FULL]
    assert finding.verdict == "supported"
    assert "fairer" not in finding.text


def test_one_seed_decides_nothing():
    runs = {
        BOTH: [GOOD],
        FULL_ONLY: [_lower(GOOD, 20)],
        NONE: [_lower(GOOD, 9)],
        MINIMAL_ONLY: [_lower(GOOD, 9)],
    }
    findings = _findings(runs)
    assert {finding.verdict for finding in findings.values()} == {"undecided", "not tested"}
    assert "One seed decides nothing" in findings[FULL].text
    assert "(one seed)" in findings[BETWEEN].text


def test_networks_that_learnt_nothing_decide_nothing():
    runs = {BOTH: [ladder(4, 4, 4, 4)] * 2, FULL_ONLY: [ladder(1, 1, 1, 1)] * 2}
    findings = _findings(runs)
    assert {findings[title].verdict for title in (FULL, CHEAP, NAIVE, BETWEEN)} == {"undecided"}
    assert "learnt too little" in findings[FULL].text


def test_further_differences_are_named_and_decide_nothing():
    runs = {BOTH: [GOOD] * 2, (*FULL_ONLY, "optim.lr=0.5", "optim.epochs=9"): [_lower(GOOD, 5)] * 2}
    finding = _findings(runs)[FULL]
    assert finding.verdict == "undecided"
    assert "also differ in optim.epochs, optim.lr" in finding.text


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
    assert "2.00 x fewer GFLOPs" in finding.text
    assert "a loss of 1.0 (0.5 to 1.5 over 2 seeds), 3.2 % of full's AP" in finding.text
    assert "in 50 % of cases" in finding.text


def test_a_small_saving_contradicts_whatever_the_seeds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anydepth.report.claims.MUCH_CHEAPER", 2.1)
    assert _verdicts({BOTH: [GOOD]})[CHEAP] == "contradicted"


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


def test_without_a_ladder_naive_skipping_is_compared_at_minimal_depth():
    ends = {"full": 0.3, "minimal": 0.28}
    finding = _findings({BOTH: [ends] * 2, FULL_ONLY: [{"full": 0.3, "minimal": 0.1}] * 2})[NAIVE]
    assert finding.verdict == "supported"
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


def test_a_different_point_that_fails_in_every_seed_is_no_contradiction():
    finding = _findings({BOTH: [{**GOOD, "none@3": 0.2}, {**GOOD, "neck@3": 0.2}]})[BETWEEN]
    assert (finding.verdict, finding.figures["points_below"]) == ("undecided", 0.0)


def test_the_text_of_claim_3_names_the_cliff_and_that_of_naive_skipping():
    finding = _findings({BOTH: [ladder(30, 29, 27, 28)] * 2, FULL_ONLY: [ladder(31, 28, 12, 2)] * 2})[BETWEEN]
    assert finding.text == (
        'Between 30.0 AP points at full and 28.0 at minimal depth, "defaults" was evaluated at 2 further '
        "depths. The worst, none@3, reaches 27.0 (27.0 to 27.0 over 2 seeds). Its largest drop between "
        "neighbouring rungs of the ladder, from neck@3 to none@3, is 2.0 points, 100 % of what lies between "
        'the ends; skipped naively, "depth_schedule=full_only" has one of 16.0. A depth works if it lies at '
        "most 0.5 points below the lower end of the same network; 1 depth fails in every seed (none@3). Were "
        "the truth at the limit, 2 seeds would fall on one side of it by chance in 50 % of cases."
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
    # Drops of 4, 0, 1 and of 0, 4, 1: in the mean 2, 2, 1, though each seed has one of 4.
    settings = group_settings([_run_of(0, ladder(30, 26, 26, 25)), _run_of(1, ladder(30, 30, 26, 25))])
    drop = largest_mean_drop(settings[0])
    assert drop is not None
    assert drop.loss == pytest.approx(0.02)
    assert settings[0].mean["largest_drop"] == pytest.approx(0.04)


def test_a_ladder_of_two_rungs_has_nothing_between():
    assert between_mean(_run_of(0, {"full": 0.3, "minimal": 0.2})) is None
    assert between_mean(_run_of(0, GOOD)) == pytest.approx(0.2925)


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
    assert "it is +5.0 at full and +5.0 at minimal depth" in finding.text
    assert _verdicts({**runs, PREDICTION: [_lower(GOOD, -1)] * 2})[DISTILLATION] == "contradicted"
    assert _verdicts({**runs, PREDICTION: [GOOD, _lower(GOOD, 1)]})[DISTILLATION] == "undecided"


def test_a_missing_arm_leaves_distillation_undecided_and_is_named():
    finding = _findings({BOTH: [GOOD] * 2, NONE: [_lower(GOOD, 5)] * 2})[DISTILLATION]
    assert finding.verdict == "undecided"
    assert (
        "ablation=prediction_only (prediction only) and ablation=feature_only (feature only)" in finding.text
    )


# -- what is missing -------------------------------------------------------------------------------------


def test_what_is_missing_is_named():
    findings = _findings({BOTH: [GOOD] * 2})
    tested = {title for title, finding in findings.items() if finding.verdict != "not tested"}
    assert tested == {CHEAP, BETWEEN}
    assert findings[FULL].text == (
        "Needs runs of detr_tiny on the same data with depth_schedule=full_only (full only)."
    )
    assert findings[FULL].figures == {}


def test_baselines_alone_test_nothing_and_say_what_is_missing():
    findings = _findings({FULL_ONLY: [GOOD] * 2, MINIMAL_ONLY: [GOOD] * 2})
    assert {finding.verdict for finding in findings.values()} == {"not tested"}
    assert "with ablation=both (any-depth)" in findings[BETWEEN].text
    assert "full only" not in findings[FULL].text
    assert "full only" not in findings[NAIVE].text


def test_several_detectors_are_judged_apart():
    yolo = ("detector=yolo_tiny",)
    runs = {BOTH: [GOOD] * 2, yolo: [GOOD] * 2, (*yolo, *FULL_ONLY): [_lower(GOOD, 2)] * 2}
    findings = _findings(runs)
    assert len(findings) == 14
    assert findings[f"{FULL} (yolo_tiny)"].verdict == "supported"
    assert findings[f"{FULL} (detr_tiny)"].verdict == "not tested"
