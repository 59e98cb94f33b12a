"""The objective as a whole: what is assigned how often, what is mixed, and what the shipped files select."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir

from anydepth.detector import PassLosses
from anydepth.structures import DetectorOutput, Targets
from anydepth.yolo.assigner import GroundTruth
from anydepth.yolo.finite import NonFinitePredictionError
from anydepth.yolo.objective import YoloObjective, build_objective
from anydepth.yolo.output import YoloOutput
from yolo.cases import HEIGHT, WIDTH, leaves_of, make_output, make_targets

CONF = Path(__file__).parents[2] / "conf"
GROUND_TRUTH = {"box", "class", "dfl"}
PREDICTIONS = {"kd_box", "kd_class", "kd_dfl"}


def both_paths(
    objective: YoloObjective, counts: tuple[int, ...] = (3, 0, 2), classes: int = 4
) -> tuple[PassLosses, PassLosses]:
    targets = make_targets(counts, classes)
    teacher, student = (make_output(len(counts), classes, seed) for seed in (1, 2))
    supervised = objective.supervised(teacher, targets)
    return supervised, objective.distilled(student, teacher, targets, supervised)


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("yolo", GROUND_TRUTH | PREDICTIONS | {"kd_feature"}),
        ("yolo_prediction_only", GROUND_TRUTH | PREDICTIONS),
        ("yolo_feature_only", GROUND_TRUTH | {"kd_feature"}),
        ("yolo_none", GROUND_TRUTH),
    ],
)
def test_the_shipped_configurations_select_the_terms_of_the_shallower_path(
    name: str, selected: set[str]
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(f"distillation/{name}").distillation
    objective = hydra.utils.instantiate(config, _convert_="all")
    assert isinstance(objective, YoloObjective)
    supervised, distilled = both_paths(objective)
    assert supervised.terms.keys() == GROUND_TRUTH
    assert distilled.terms.keys() == selected


def test_the_default_configuration_lists_every_value_and_equals_the_defaults_of_the_code() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("distillation/yolo").distillation
    defaults = build_objective.__kwdefaults__
    assert {key: value for key, value in config.items() if key != "_target_"} == defaults


def test_every_option_reaches_the_part_it_is_named_after() -> None:
    numbers: dict[str, float] = {
        key: 0.01 * (place + 1)
        for place, (key, value) in enumerate(build_objective.__kwdefaults__.items())
        if not isinstance(value, str)
    }
    numbers["assign_top_k"] = 3
    objective = build_objective(**numbers, class_loss="bernoulli_kl")
    criterion, distillation = objective.criterion, objective.distillation
    assert distillation.class_loss == "bernoulli_kl"
    found = {
        "assign_top_k": criterion.assigner.top_k,
        "assign_alpha": criterion.assigner.alpha,
        "assign_beta": criterion.assigner.beta,
        "box_gain": criterion.box_gain,
        "class_gain": criterion.class_gain,
        "dfl_gain": criterion.dfl_gain,
        "alpha": objective.alpha,
        "kd_box_gain": distillation.box_gain,
        "kd_class_gain": distillation.class_gain,
        "kd_dfl_gain": distillation.dfl_gain,
        "kd_feature_gain": distillation.feature_gain,
        "kd_class_temperature": distillation.class_temperature,
        "kd_dfl_temperature": distillation.dfl_temperature,
    }
    assert found == numbers


def test_each_path_is_assigned_once() -> None:
    objective = build_objective()
    with patch.object(objective.criterion, "assigner", wraps=objective.criterion.assigner) as assign:
        both_paths(objective)
    assert assign.call_count == 2


def test_the_shallower_path_mixes_ground_truth_and_distillation_by_alpha() -> None:
    _, mixed = both_paths(build_objective(alpha=0.3))
    _, truth = both_paths(build_objective(alpha=1))
    _, teacher = both_paths(build_objective(alpha=0))
    assert truth.terms.keys() == GROUND_TRUTH
    assert teacher.terms.keys() == PREDICTIONS | {"kd_feature"}
    assert mixed.terms.keys() == truth.terms.keys() | teacher.terms.keys()
    for name, value in mixed.terms.items():
        expected = 0.3 * truth.terms[name] if name in GROUND_TRUTH else 0.7 * teacher.terms[name]
        torch.testing.assert_close(value, expected, msg=name)


def test_with_ground_truth_alone_the_shallower_path_is_taught_as_the_deeper_one() -> None:
    objective, targets = build_objective(alpha=1), make_targets((3, 2), 4)
    teacher, student = make_output(2, 4, 1), make_output(2, 4, 2)
    distilled = objective.distilled(student, teacher, targets, objective.supervised(teacher, targets))
    expected = objective.supervised(student, targets)
    assert distilled.terms.keys() == expected.terms.keys()
    for name, value in distilled.terms.items():
        assert torch.equal(value, expected.terms[name])


def test_boxes_are_taken_in_pixels_of_the_image() -> None:
    # In 64 x 96 pixels: centre (48, 48), 24 wide and 16 high.
    target = Targets(torch.tensor([[0.5, 0.75, 0.25, 0.25]]), torch.tensor([1]))
    losses = build_objective().supervised(make_output(1, 2, 0), [target])
    truth = losses.assignment.truth
    assert isinstance(truth, GroundTruth)
    assert truth.boxes_xyxy.tolist() == [[[36.0, 40.0, 60.0, 56.0]]]


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("counts", [(0, 0), (0,), (30, 0, 1)])
def test_batches_with_and_without_boxes_train_both_paths(counts: tuple[int, ...], classes: int) -> None:
    targets = make_targets(counts, classes)
    teacher, student = (make_output(len(counts), classes, seed) for seed in (1, 2))
    objective = build_objective()
    supervised = objective.supervised(teacher, targets)
    distilled = objective.distilled(student, teacher, targets, supervised)
    for path, output in ((supervised, teacher), (distilled, student)):
        assert path.total.isfinite()
        path.total.backward()
        assert all(level.grad is not None and level.grad.isfinite().all() for level in output.maps)


@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_both_paths_report_the_same_names_with_and_without_boxes(counts: tuple[int, ...]) -> None:
    # Processes of one run average their logged losses, which hangs where the names differ.
    names = [path.terms.keys() for path in both_paths(build_objective(), counts)]
    expected = [path.terms.keys() for path in both_paths(build_objective(), (1, 2))]
    assert names == expected


def test_the_deeper_path_gets_no_gradient_from_the_shallower_one() -> None:
    objective, targets = build_objective(), make_targets((3, 2), 4)
    teacher, student = make_output(2, 4, 1), make_output(2, 4, 2)
    supervised = objective.supervised(teacher, targets)
    objective.distilled(student, teacher, targets, supervised).total.backward()
    assert all(leaf.grad is None for leaf in leaves_of(teacher))


def test_losses_are_float32_under_autocast() -> None:
    objective = build_objective()
    exact = both_paths(objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = both_paths(objective)
    for path, expected in zip(cast, exact, strict=True):
        for name, value in path.terms.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected.terms[name]), name


def test_half_precision_outputs_give_the_losses_of_their_float32_values() -> None:
    objective, targets = build_objective(), make_targets((3, 2), 4)

    def cast(output: YoloOutput, *types: torch.dtype) -> YoloOutput:
        groups = []
        for maps in (output.backbone_features, output.neck_features, output.maps):
            for kind in types:
                maps = tuple(level.detach().to(kind) for level in maps)
            groups.append(maps)
        return YoloOutput(*groups)

    results = []
    for types in ((torch.bfloat16,), (torch.bfloat16, torch.float32)):
        teacher, student = (cast(make_output(2, 4, seed), *types) for seed in (1, 2))
        losses = objective.supervised(teacher, targets)
        results.append({**losses.terms, **objective.distilled(student, teacher, targets, losses).terms})
    for name, value in results[0].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, results[1][name], msg=name)


def test_a_taught_path_can_teach_the_next_one() -> None:
    objective, targets = build_objective(), make_targets((3, 2), 4)
    first, second, third = (make_output(2, 4, seed) for seed in (1, 2, 3))
    middle = objective.distilled(second, first, targets, objective.supervised(first, targets))
    last = objective.distilled(third, second, targets, middle)
    again = objective.distilled(third, second, targets, objective.supervised(second, targets))
    torch.testing.assert_close(last.total, again.total)


def test_only_the_guard_makes_the_host_wait_for_the_device() -> None:
    # A tensor on `meta` has no values: whatever reads one back, or needs one to know a shape, raises.
    objective, targets = build_objective(), [target.to("meta") for target in make_targets((3, 0), 4)]
    output = make_output(2, 4)
    groups = (output.backbone_features, output.neck_features, output.maps)
    output = YoloOutput(*(tuple(level.to("meta") for level in maps) for maps in groups))
    with patch("anydepth.yolo.objective.find_non_finite") as guard:
        losses = objective.supervised(output, targets)
        taught = objective.distilled(output, output, targets, losses)
    assert guard.call_count == 2
    assert taught.total.device.type == "meta"


@pytest.mark.parametrize("path", ["supervised", "distilled"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("class", "the class logits of images"),
        ("box", "the box logits of images"),
        ("targets", "the ground-truth boxes of images"),
    ],
)
def test_values_that_are_not_finite_are_named_and_end_no_step(
    path: str, value: float, where: str, named: str
) -> None:
    objective, targets = build_objective(), make_targets((2, 3), 4)
    teacher, student = make_output(2, 4, 1), make_output(2, 4, 2)
    losses = objective.supervised(teacher, targets)
    if where == "targets":
        targets[1].boxes_cxcywh[0, 2] = value
        losses = replace(
            losses,
            assignment=replace(losses.assignment, truth=GroundTruth.collect(targets, (HEIGHT, WIDTH))),
        )
    else:
        with torch.no_grad():
            student.maps[1][1, 65 if where == "class" else 3, 0, 0] = value
    taught = {
        "supervised": lambda: objective.supervised(student, targets),
        "distilled": lambda: objective.distilled(student, teacher, targets, losses),
    }
    fault = taught[path]().fault
    assert isinstance(fault, NonFinitePredictionError)
    assert fault.images == (1,)
    assert named in str(fault)
    assert "images [1]" in str(fault)
    advice = "check the annotations" if where == "targets" else "lower the learning rate"
    assert advice in str(fault)


def test_every_culprit_is_named() -> None:
    output, targets = make_output(3, 4, 1), make_targets((1, 1, 1), 4)
    with torch.no_grad():
        output.maps[0][0] = torch.nan
    targets[2].boxes_cxcywh[0, 0] = torch.nan
    expected = "class logits and the box logits and the ground-truth boxes of images [0, 2]"
    assert expected in str(build_objective().supervised(output, targets).fault)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha=.*allowed are 0"):
        build_objective(alpha=alpha)


def test_a_path_that_would_learn_nothing_is_refused() -> None:
    off = {f"kd_{name}_gain": 0.0 for name in ("box", "class", "dfl", "feature")}
    with pytest.raises(ValueError, match="alpha=0 leaves the shallower path to the distillation"):
        build_objective(alpha=0, **off)
    assert both_paths(build_objective(alpha=0.5, **off))[1].terms.keys() == GROUND_TRUTH


def test_outputs_and_losses_of_another_wing_are_refused() -> None:
    objective, targets = build_objective(), make_targets((1,), 4)
    output = make_output(1, 4, 1)
    with pytest.raises(ValueError, match="DetectorOutput came to the YOLO objective"):
        objective.supervised(DetectorOutput((), ()), targets)
    with pytest.raises(ValueError, match="teacher's assignment is a NoneType"):
        objective.distilled(output, output, targets, PassLosses({"loss": torch.zeros(())}))
