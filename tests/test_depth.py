"""Depth configurations as text, points of a space, and ladders."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anydepth.depth import DepthConfig, DepthCosts, DepthError, DepthSpace, LadderOrder

# GMACs that each part of AnyDepth-DETR-R50 saves: specification of the network, section 2.
R50_COSTS = DepthCosts((1783, 3565, 5348, 1783, 13128), decoder_layer=959)
STAGES = ("stage1", "stage2", "stage3", "stage4", "neck")


def detr_space(layers: int = 6, minimal: int = 4) -> DepthSpace:
    return DepthSpace(
        stages=STAGES, decoder_layers=layers, minimal_decoder_layers=minimal, costs=lambda: R50_COSTS
    )


DETR = detr_space()
# Eight stages and no decoder layers, as in AnyDepth-YOLO.
YOLO = DepthSpace(
    stages=("b1", "b2", "b3", "b4", "n1", "n2", "n3", "n4"),
    costs=lambda: DepthCosts((5, 4, 3, 2, 1, 6, 7, 8)),
)
FIXED = DepthSpace(stages=(), decoder_layers=6, minimal_decoder_layers=6, costs=lambda: DepthCosts((), 10))
SINGLE = DepthSpace(stages=(), costs=lambda: DepthCosts(()))
SPACES = pytest.mark.parametrize(
    "space", [DETR, YOLO, FIXED, SINGLE], ids=["detr", "yolo", "fixed", "single"]
)


# -- text ------------------------------------------------------------------------------------------------


@SPACES
def test_every_configuration_is_printed_and_parsed_back_unchanged(space: DepthSpace) -> None:
    everything = list(space.all())
    # 2^stages times the decoder depths.
    assert len(everything) == len(set(everything)) == 2 ** len(space.stages) * (space.decoder_layers or 1)
    assert len({str(config) for config in everything}) == len(everything)
    for config in everything:
        again = space.parse(str(config))
        assert again == config
        assert str(again) == str(config)


@pytest.mark.parametrize(
    "text", ["full", "minimal", "3/4", "1/2", "1/4", "stage2+neck@5", "none@1", "stage1@6"]
)
def test_a_text_is_printed_as_it_was_written(text: str) -> None:
    assert str(DETR.parse(text)) == text
    assert str(DETR.parse(f"  {text} ")) == text
    assert str(DETR.parse(DETR.parse(text))) == text


@pytest.mark.parametrize(
    ("text", "refine", "layers"),
    [
        ("full", (True,) * 5, 6),
        ("minimal", (False,) * 5, 4),
        ("none@6", (False,) * 5, 6),
        ("stage2+neck@5", (False, True, False, False, True), 5),
        ("neck+stage2@5", (False, True, False, False, True), 5),
        ("stage4", (False, False, False, True, False), 6),
    ],
)
def test_a_text_is_parsed_to_flags_and_decoder_layers(
    text: str, refine: tuple[bool, ...], layers: int
) -> None:
    config = DETR.parse(text)
    assert (config.refine, config.decoder_layers) == (refine, layers)


def test_texts_of_the_same_point_are_equal_and_hash_alike() -> None:
    named, written = DETR.parse("minimal"), DETR.parse("none@4")
    assert named == written
    assert hash(named) == hash(written)
    assert str(written) == "minimal"
    assert DETR.parse("full") == DETR.parse("stage1+stage2+stage3+stage4+neck@6") == DETR.config([True] * 5)


def test_configurations_cannot_be_changed() -> None:
    config: Any = DETR.full
    with pytest.raises(AttributeError):
        config.decoder_layers = 3


@SPACES
@given(text=st.text(max_size=20))
def test_any_text_is_a_configuration_or_an_error_that_prints_the_space(space: DepthSpace, text: str) -> None:
    error = None
    try:
        config = space.parse(text)
    except DepthError as caught:
        error = caught
    if error is None:
        assert config in set(space.all())
    else:
        assert space.describe() in str(error)


@given(
    names=st.lists(st.sampled_from([*STAGES, "stage5", "none", ""]), min_size=1, max_size=4),
    layers=st.one_of(st.none(), st.integers(-1, 8), st.sampled_from(["", "+3", "six", "²", "٣", "1.0"])),
)
def test_almost_right_texts_are_never_guessed(names: list[str], layers: int | str | None) -> None:
    text = "+".join(names) + ("" if layers is None else f"@{layers}")
    named = names if names != ["none"] else []
    right = set(named) <= set(STAGES) and len(set(named)) == len(named) and layers in (None, *range(1, 7))
    assume(text not in ("full", "minimal"))
    if right:
        config = DETR.parse(text)
        assert [name for name, on in zip(STAGES, config.refine, strict=True) if on] == sorted(
            named, key=STAGES.index
        )
        assert config.decoder_layers == (6 if layers is None else layers)
    else:
        with pytest.raises(DepthError):
            DETR.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stage5@4", "unknown stage 'stage5'"),
        ("neck+neck", "a stage is named twice"),
        ("neck@0", r"decoder depth 0: allowed are 1\.\.6"),
        ("neck@7", r"decoder depth 7: allowed are 1\.\.6"),
        ("neck@six", "got 'six' after '@', expected a number"),
        ("", "unknown stage ''"),
        ("2/3", "unknown stage '2/3'"),
    ],
)
def test_errors_name_the_mistake_and_print_the_space(text: str, reason: str) -> None:
    with pytest.raises(DepthError, match=reason) as caught:
        DETR.parse(text)
    assert "full, minimal, 3/4, 1/2, 1/4" in str(caught.value)
    assert "[stage1, stage2, stage3, stage4, neck] or 'none', then '@' and 1..6" in str(caught.value)


def test_decoder_layers_are_refused_without_a_decoder() -> None:
    with pytest.raises(DepthError, match="decoder depth 3: this detector has no decoder layers"):
        YOLO.parse("b1@3")
    assert YOLO.parse("b1").decoder_layers is None


@pytest.mark.parametrize("flags", [[True] * 4, [True] * 6, []])
def test_a_wrong_number_of_flags_is_refused(flags: list[bool]) -> None:
    with pytest.raises(DepthError, match=f"got {len(flags)} refine flags, expected 5"):
        DETR.config(flags)


def test_a_configuration_of_another_space_is_refused() -> None:
    with pytest.raises(DepthError, match="got 8 refine flags, expected 5"):
        DETR.parse(YOLO.full)
    with pytest.raises(DepthError, match="decoder depth 6"):
        detr_space(layers=3, minimal=2).parse(DETR.full)


def test_a_configuration_without_a_text_gets_its_own() -> None:
    assert str(DETR.parse(DepthConfig((False,) * 5, 4))) == "minimal"


@SPACES
def test_the_example_in_the_description_is_a_depth(space: DepthSpace) -> None:
    example = space.describe().rpartition("e.g. '")[2].removesuffix("'.")
    assert space.parse(example) in set(space.all())


# -- lists -----------------------------------------------------------------------------------------------


def test_lists_keep_their_order_and_drop_repeated_points() -> None:
    found = DETR.parse_list(["minimal", "full", "none@4", "neck@5", "full"])
    assert [str(config) for config in found] == ["minimal", "full", "neck@5"]
    assert DETR.parse_list("neck@5") == [DETR.parse("neck@5")]
    assert DETR.parse_list("ladder") == DETR.ladder()
    assert DETR.parse_list(["all"]) == list(DETR.all())


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(DepthError, match="got an empty list of depths"):
        DETR.parse_list([])


# -- ladders ---------------------------------------------------------------------------------------------


def assert_ladder(space: DepthSpace, chain: list[DepthConfig]) -> None:
    """Check that a chain leads from full to minimal and each step removes one refinement path or layer."""
    assert chain[0] == space.full
    assert chain[-1] == space.minimal
    for deeper, shallower in pairwise(chain):
        lost = sum(a and not b for a, b in zip(deeper.refine, shallower.refine, strict=True))
        gained = sum(b and not a for a, b in zip(deeper.refine, shallower.refine, strict=True))
        layers = (deeper.decoder_layers or 0) - (shallower.decoder_layers or 0)
        assert (gained, lost + layers) == (0, 1)
        assert layers in (0, 1)


@SPACES
@pytest.mark.parametrize("order", ["stage", "cost"])
def test_ladders_remove_one_part_at_a_time(space: DepthSpace, order: LadderOrder) -> None:
    chain = space.ladder(order)
    assert_ladder(space, chain)
    assert [space.saving(config) for config in chain] == sorted(space.saving(config) for config in chain)


def test_the_order_by_stage_removes_early_stages_first_and_decoder_layers_last() -> None:
    # The order of adaptive depth networks: TFFF, TTFF, TTTF, TTTT (specification of the network, section 2).
    assert [str(config) for config in DETR.ladder()] == [
        "full",
        "stage2+stage3+stage4+neck@6",
        "stage3+stage4+neck@6",
        "stage4+neck@6",
        "neck@6",
        "none@6",
        "none@5",
        "minimal",
    ]


def test_the_order_by_cost_removes_the_most_expensive_part_first() -> None:
    saved = [DETR.saving(config) for config in DETR.ladder("cost")]
    steps = [after - before for before, after in pairwise(saved)]
    assert steps == [13128, 5348, 3565, 1783, 1783, 959, 959]


def test_an_unknown_order_is_refused() -> None:
    order: Any = "random"
    with pytest.raises(DepthError, match="ladder order 'random': allowed are 'stage' and 'cost'"):
        DETR.ladder(order)


@given(values=st.lists(st.floats(0, 1), min_size=32 * 6, max_size=32 * 6))
def test_a_measured_ladder_is_a_ladder_and_each_step_loses_least_per_mac(values: list[float]) -> None:
    measured = dict(zip(DETR.all(), values, strict=True))
    chain = DETR.ladder(measured_ap=measured)
    assert_ladder(DETR, chain)
    for deeper, shallower in pairwise(chain):

        def loss_per_mac(config: DepthConfig, deeper: DepthConfig = deeper) -> float:
            return (measured[deeper] - measured[config]) / (DETR.saving(config) - DETR.saving(deeper))

        assert loss_per_mac(shallower) == min(map(loss_per_mac, neighbours(deeper)))


def neighbours(config: DepthConfig) -> Iterator[DepthConfig]:
    """Yield the configurations that one step may lead to."""
    for stage, on in enumerate(config.refine):
        if on:
            yield DETR.config(
                [flag and index != stage for index, flag in enumerate(config.refine)], config.decoder_layers
            )
    if config.decoder_layers is not None and config.decoder_layers > 4:
        yield DETR.config(config.refine, config.decoder_layers - 1)


def test_a_measured_ladder_names_the_missing_measurements() -> None:
    with pytest.raises(DepthError, match=r"measured_ap lacks \['stage2\+stage3.*depths=all"):
        DETR.ladder(measured_ap={DETR.full: 0.5})


# -- fractions and costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "point"),
    # Remaining shares of the refinement compute, 27525 in all, down the ladder by stage:
    # 1, 0.935, 0.806, 0.611, 0.547, 0.070, 0.035, 0.
    [("3/4", "stage3+stage4+neck@6"), ("1/2", "neck@6"), ("1/4", "none@6")],
)
def test_a_fraction_is_the_rung_nearest_to_that_share_of_the_compute(text: str, point: str) -> None:
    assert DETR.parse(text) == DETR.parse(point)


def test_a_tie_goes_to_the_deeper_rung() -> None:
    space = DepthSpace(stages=("one", "two"), costs=lambda: DepthCosts((50, 50)))
    # 3/4 lies between all and half of the compute.
    assert space.parse("3/4") == space.full
    assert space.parse("1/4") == space.parse("two")


@pytest.mark.parametrize("text", ["3/4", "1/2", "1/4"])
def test_fractions_of_a_single_point_are_that_point(text: str) -> None:
    assert SINGLE.parse(text) == SINGLE.full == SINGLE.minimal


def test_savings_add_up() -> None:
    assert DETR.saving(DETR.full) == 0
    assert DETR.saving(DETR.parse("stage1+stage3+stage4@5")) == 3565 + 13128 + 959
    assert DETR.saving(DETR.minimal) == sum(R50_COSTS.refinements) + 2 * 959


def test_costs_are_measured_once_and_only_when_needed() -> None:
    calls: list[int] = []

    def measure() -> DepthCosts:
        calls.append(1)
        return DepthCosts((1, 2))

    space = DepthSpace(stages=("one", "two"), costs=measure)
    assert space.parse("two") in space.ladder()
    assert calls == []
    assert space.parse("1/2") in space.ladder()
    assert len(space.ladder("cost")) == 3
    assert calls == [1]


def test_fractions_without_costs_are_refused() -> None:
    space = DepthSpace(stages=("one", "two"))
    assert len(space.ladder()) == 3
    with pytest.raises(DepthError, match="no costs"):
        space.parse("1/2")


# -- building a space ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ("a", "a")}, "names must be unique"),
        ({"stages": ("full",)}, "none of"),
        ({"stages": ("1/2",)}, "none of"),
        (
            {"stages": ("a",), "decoder_layers": 3},
            "give both decoder_layers and minimal_decoder_layers, or neither",
        ),
        ({"stages": ("a",), "minimal_decoder_layers": 3}, "give both"),
        (
            {"stages": ("a",), "decoder_layers": 3, "minimal_decoder_layers": 4},
            r"minimal_decoder_layers=4: allowed are 1\.\.3",
        ),
        (
            {"stages": ("a",), "decoder_layers": 3, "minimal_decoder_layers": 0},
            r"minimal_decoder_layers=0: allowed are 1\.\.3",
        ),
    ],
)
def test_invalid_spaces_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthSpace(**arguments)
