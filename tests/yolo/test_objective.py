"""The objective as a whole: what is assigned how often, what is mixed, and what the shipped files select."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from anydepth import zoo
from anydepth.detector import PassLosses
from anydepth.structures import DetectorOutput, Targets
from anydepth.yolo.assigner import GroundTruth, TaskAlignedAssigner
from anydepth.yolo.criterion import YoloCriterion
from anydepth.yolo.distillation import YoloDistillation
from anydepth.yolo.finite import NonFinitePredictionError
from anydepth.yolo.objective import YoloObjective
from anydepth.yolo.output import YoloOutput
from losses import yolo_losses
from yolo.cases import HEIGHT, WIDTH, leaves_of, make_output, make_targets

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
def test_the_shipped_configurations_select_the_terms_of_the_shallower_pass(
    name: str, selected: set[str]
) -> None:
    objective = zoo.build_losses(name)
    supervised, distilled = both_paths(objective)
    assert supervised.terms.keys() == GROUND_TRUTH
    assert distilled.terms.keys() == selected


def test_every_option_reaches_the_part_it_is_named_after() -> None:
    """Each value has one name from the configuration to the part; no part has a default of its own."""
    numbers: dict[str, float] = {
        "criterion__assigner__top_k": 3,
        "criterion__assigner__alpha": 0.01,
        "criterion__assigner__beta": 0.02,
        **{f"criterion__{name}_weight": 0.03 + number for number, name in enumerate(("box", "class", "dfl"))},
        "alpha": 0.07,
        **{
            f"distillation__{name}": 0.08 + number
            for number, name in enumerate(
                (
                    *("box_weight", "class_weight", "dfl_weight", "feature_weight"),
                    *("class_temperature", "dfl_temperature"),
                )
            )
        },
    }
    objective = yolo_losses(**numbers, distillation__class_loss="bernoulli_kl")
    assert objective.distillation.class_loss == "bernoulli_kl"
    for key, value in numbers.items():
        part: object = objective
        for name in key.split("__"):
            part = getattr(part, name)
        assert part == value, key
    for builder in (TaskAlignedAssigner, YoloCriterion, YoloDistillation, YoloObjective):
        assert not builder.__init__.__kwdefaults__


def test_each_path_is_assigned_once() -> None:
    objective = yolo_losses()
    with patch.object(objective.criterion, "assigner", wraps=objective.criterion.assigner) as assign:
        both_paths(objective)
    assert assign.call_count == 2


def test_the_shallower_path_mixes_ground_truth_and_distillation_by_alpha() -> None:
    _, mixed = both_paths(yolo_losses(alpha=0.3))
    _, truth = both_paths(yolo_losses(alpha=1))
    _, teacher = both_paths(yolo_losses(alpha=0))
    assert truth.terms.keys() == GROUND_TRUTH
    assert teacher.terms.keys() == PREDICTIONS | {"kd_feature"}
    assert mixed.terms.keys() == truth.terms.keys() | teacher.terms.keys()
    for name, value in mixed.terms.items():
        expected = 0.3 * truth.terms[name] if name in GROUND_TRUTH else 0.7 * teacher.terms[name]
        torch.testing.assert_close(value, expected, msg=name)


def test_with_ground_truth_alone_the_shallower_path_is_taught_as_the_deeper_one() -> None:
    objective, targets = yolo_losses(alpha=1), make_targets((3, 2), 4)
    teacher, student = make_output(2, 4, 1), make_output(2, 4, 2)
    distilled = objective.distilled(student, teacher, targets, objective.supervised(teacher, targets))
    expected = objective.supervised(student, targets)
    assert distilled.terms.keys() == expected.terms.keys()
    for name, value in distilled.terms.items():
        assert torch.equal(value, expected.terms[name])


def test_boxes_are_taken_in_pixels_of_the_image() -> None:
    # In 64 x 96 pixels: centre (48, 48), 24 wide and 16 high.
    target = Targets(torch.tensor([[0.5, 0.75, 0.25, 0.25]]), torch.tensor([1]))
    losses = yolo_losses().supervised(make_output(1, 2, 0), [target])
    truth = losses.assignment.truth
    assert isinstance(truth, GroundTruth)
    assert truth.boxes_xyxy.tolist() == [[[36.0, 40.0, 60.0, 56.0]]]


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("counts", [(0, 0), (0,), (30, 0, 1)])
def test_batches_with_and_without_boxes_train_both_paths(counts: tuple[int, ...], classes: int) -> None:
    targets = make_targets(counts, classes)
    teacher, student = (make_output(len(counts), classes, seed) for seed in (1, 2))
    objective = yolo_losses()
    supervised = objective.supervised(teacher, targets)
    distilled = objective.distilled(student, teacher, targets, supervised)
    for path, output in ((supervised, teacher), (distilled, student)):
        assert path.total.isfinite()
        path.total.backward()
        assert all(level.grad is not None and level.grad.isfinite().all() for level in output.maps)


@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_both_paths_report_the_same_names_with_and_without_boxes(counts: tuple[int, ...]) -> None:
    # Processes of one run average their logged losses, which hangs where the names differ.
    names = [path.terms.keys() for path in both_paths(yolo_losses(), counts)]
    expected = [path.terms.keys() for path in both_paths(yolo_losses(), (1, 2))]
    assert names == expected


def test_the_deeper_path_gets_no_gradient_from_the_shallower_one() -> None:
    objective, targets = yolo_losses(), make_targets((3, 2), 4)
    teacher, student = make_output(2, 4, 1), make_output(2, 4, 2)
    supervised = objective.supervised(teacher, targets)
    objective.distilled(student, teacher, targets, supervised).total.backward()
    assert all(leaf.grad is None for leaf in leaves_of(teacher))


def test_losses_are_float32_under_autocast() -> None:
    objective = yolo_losses()
    exact = both_paths(objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = both_paths(objective)
    for path, expected in zip(cast, exact, strict=True):
        assert path.terms.keys() == expected.terms.keys()
        for name, value in path.terms.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected.terms[name]), name


def test_half_precision_outputs_give_the_losses_of_their_float32_values() -> None:
    objective, targets = yolo_losses(), make_targets((3, 2), 4)

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
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, results[1][name], msg=name)


def test_a_taught_path_can_teach_the_next_one() -> None:
    objective, targets = yolo_losses(), make_targets((3, 2), 4)
    first, second, third = (make_output(2, 4, seed) for seed in (1, 2, 3))
    middle = objective.distilled(second, first, targets, objective.supervised(first, targets))
    last = objective.distilled(third, second, targets, middle)
    again = objective.distilled(third, second, targets, objective.supervised(second, targets))
    torch.testing.assert_close(last.total, again.total)


def test_only_the_guard_makes_the_host_wait_for_the_device() -> None:
    # A tensor on `meta` has no values: whatever reads one back, or needs one to know a shape, raises.
    objective, targets = yolo_losses(), [target.to("meta") for target in make_targets((3, 0), 4)]
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
    objective, targets = yolo_losses(), make_targets((2, 3), 4)
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
    assert expected in str(yolo_losses().supervised(output, targets).fault)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha=.*allowed are 0"):
        yolo_losses(alpha=alpha)


def test_a_path_that_would_learn_nothing_is_refused() -> None:
    off = {f"distillation__{name}_weight": 0.0 for name in ("box", "class", "dfl", "feature")}
    with pytest.raises(ValueError, match="alpha=0 leaves the shallower pass to the distillation"):
        yolo_losses(alpha=0, **off)
    assert both_paths(yolo_losses(alpha=0.5, **off))[1].terms.keys() == GROUND_TRUTH


def test_outputs_and_losses_of_another_wing_are_refused() -> None:
    objective, targets = yolo_losses(), make_targets((1,), 4)
    output = make_output(1, 4, 1)
    with pytest.raises(ValueError, match="got a DetectorOutput, expected a YoloOutput"):
        objective.supervised(DetectorOutput((), ()), targets)
    with pytest.raises(ValueError, match="got a NoneType as the teacher's assignment"):
        objective.distilled(output, output, targets, PassLosses({"loss": torch.zeros(())}))
