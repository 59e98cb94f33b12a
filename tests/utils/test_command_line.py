"""Settings in messages mean the same when they are copied to a command line."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from anydepth.utils.command_line import setting


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
