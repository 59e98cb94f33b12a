"""The passes of a step: the published pair, the ablations, and agreement between processes."""

from collections import Counter

import pytest

from anydepth.depth import DepthError, DepthSpace
from anydepth.training.depth_schedule import DepthSchedule

SPACE = DepthSpace(stages=("stage1", "stage2", "neck"), decoder_layers=6, minimal_decoder_layers=4)
FIXED = DepthSpace(stages=(), decoder_layers=6, minimal_decoder_layers=4)


def test_extremes_teach_minimal_with_full() -> None:
    full, minimal = DepthSchedule(depths=("full", "minimal")).sample(SPACE, seed=0, step=3)
    assert (full.name, full.depth, full.teacher, full.weight) == ("full", SPACE.full, None, 1.0)
    assert (minimal.name, minimal.depth, minimal.teacher, minimal.weight) == (
        "minimal",
        SPACE.minimal,
        0,
        1.0,
    )


def test_without_distillation_every_pass_learns_from_ground_truth() -> None:
    passes = DepthSchedule(depths=("full", "minimal"), distill=False).sample(SPACE, seed=0, step=0)
    assert [planned.teacher for planned in passes] == [None, None]


def test_weights_belong_to_their_passes() -> None:
    schedule = DepthSchedule(depths=("full", "minimal"), random_points=2, weights=(1.0, 0.5, 0.25))
    assert [planned.weight for planned in schedule.sample(SPACE, seed=0, step=0)] == [1.0, 0.5, 0.25, 0.25]


def test_sandwich_draws_distinct_points_between_the_extremes() -> None:
    schedule = DepthSchedule(depths=("full", "minimal"), random_points=2)
    for step in range(50):
        passes = schedule.sample(SPACE, seed=1, step=step)
        assert [planned.name for planned in passes] == ["full", "minimal", "random1", "random2"]
        assert len({planned.depth.refine for planned in passes}) == 4
        assert all(planned.depth.decoder_layers == 6 for planned in passes[2:])


def test_random_points_cover_all_configurations_evenly() -> None:
    """2^3 - 1 points remain besides full; 700 draws of 7 points: 100 each, 5 standard deviations are 46."""
    schedule = DepthSchedule(depths=("full",), random_points=1)
    drawn = Counter(schedule.sample(SPACE, seed=0, step=step)[1].depth.refine for step in range(700))
    assert len(drawn) == 7
    assert SPACE.minimal.refine in drawn
    assert all(54 <= count <= 146 for count in drawn.values())


def test_passes_are_a_function_of_seed_and_step_alone() -> None:
    def sequence(seed: int, steps: range) -> list[str]:
        schedule = DepthSchedule(depths=("full",), random_points=1)
        return [str(schedule.sample(SPACE, seed, step)[1].depth) for step in steps]

    assert sequence(0, range(20)) == sequence(0, range(20))
    assert sequence(0, range(20))[12:] == sequence(0, range(12, 20))
    assert sequence(0, range(20)) != sequence(1, range(20))


def test_a_detector_of_fixed_depth_has_nothing_to_distil() -> None:
    with pytest.raises(ValueError, match="depth_schedule=full_only"):
        DepthSchedule(depths=("full", "minimal")).sample(FIXED, seed=0, step=0)
    assert len(DepthSchedule(depths=("full",)).sample(FIXED, seed=0, step=0)) == 1


def test_more_random_points_than_there_are() -> None:
    with pytest.raises(ValueError, match="has only 6 points besides"):
        DepthSchedule(depths=("full", "minimal"), random_points=7).sample(SPACE, seed=0, step=0)


def test_unknown_depth_prints_the_space() -> None:
    with pytest.raises(DepthError, match="stage1, stage2, neck"):
        DepthSchedule(depths=("full", "stage9")).sample(SPACE, seed=0, step=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": []}, "at least one depth"),
        ({"depths": ["full", "full"]}, "each once"),
        ({"depths": ["full"], "random_points": -1}, "0 and above"),
        ({"depths": ["full", "minimal"], "weights": [1.0]}, "2 positive factors"),
        ({"depths": ["full", "minimal"], "weights": [1.0, 0.0]}, "positive"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthSchedule(**settings)


def test_schedules_know_whether_they_train_every_parameter() -> None:
    def covers(*depths: str, random_points: int = 0) -> bool:
        schedule = DepthSchedule(depths=depths, random_points=random_points)
        return schedule.trains_every_parameter(SPACE)

    assert covers("full", "minimal")
    assert covers("stage1+stage2", "neck")
    assert not covers("full")
    assert not covers("full", random_points=1)
    assert not covers("full", "stage1")
