"""Settings in messages mean the same when they are copied to a command line."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from anydepth.utils.command_line import name_positional, quote_comparisons, setting


@pytest.mark.parametrize(
    "value",
    [
        *("runs/a-1_b.c", "a b", "x [1]", "{y}", "it's", 'a"b', "a,b", "k=v", "a#b", "é", "$HOME", "${seed}"),
        *("C:\\runs", "ends\\", 'odd\\"', "~", "(1)", "a\tb", "null", "True", "1_0", "1e3", "-inf", "*"),
    ],
)
def test_a_setting_survives_the_shell_and_hydra(value: str) -> None:
    (word,) = shlex.split(setting("output", value))
    override = OverridesParser.create().parse_override(word)
    assert override.key_or_group == "output"
    # Interpolations are escaped for OmegaConf.
    assert OmegaConf.create({"output": override.value()}).output == value


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("depth=<=8ms", "<=8ms"),
        ("depth= <= 8.5 ms", "<= 8.5 ms"),
        ("depth=>=95%ap", ">=95%ap"),
        ("depths=[full,<=8ms, >=95%ap]", ["full", "<=8ms", ">=95%ap"]),
        ("depths=['<=8ms',1/2]", ["<=8ms", "1/2"]),
        ("depth=1/2", "1/2"),
    ],
)
def test_comparisons_reach_hydra_as_texts(typed: str, value: object) -> None:
    assert OverridesParser.create().parse_override(quote_comparisons(typed)).value() == value


def test_a_sweep_over_budgets_has_one_job_each() -> None:
    override = OverridesParser.create().parse_override(quote_comparisons("depth=<=8ms,full,<=16ms"))
    assert override.is_sweep_override()
    assert list(override.sweep_string_iterator()) == ['"<=8ms"', "full", '"<=16ms"']


def test_only_a_first_argument_that_sets_nothing_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b, c").mkdir()
    for given in (["a=b"], ["--help"], ["~weights"], ["-m", "bundle"], ["source=x", "bundle"], []):
        assert name_positional(given, "weights") == given
    (named, rest) = name_positional(["a=b, c", "depth=full"], "weights")
    assert OverridesParser.create().parse_override(named).value() == "a=b, c"
    assert rest == "depth=full"
