"""Types of keys and values are checked once, where a configuration is composed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

import anydepth
from anydepth.config.annotations import accepts, describe
from anydepth.config.compose import check_config, compose, config_dir, instantiate, resolve_config
from anydepth.config.plain_keys import COMMANDS
from anydepth.config.value_types import ValueTypeError, check_types, keep_texts


def composed(command: str, *overrides: str) -> DictConfig:
    return compose(command, ["paths.output_dir=out", *overrides], hydra_config=True)


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "recipe.lr=abc", "got recipe.lr='abc', expected a number"),
        # The value arrives at trainer.max_epochs and data.epochs, too: named is the key that was given.
        ("train", "recipe.epochs=abc", "got recipe.epochs='abc', expected a whole number or null"),
        ("train", "detector.input_size=640", "got detector.input_size=640, expected a list of whole numbers"),
        ("train", "detector.input_size=[640,a]", "got detector.input_size=[640, 'a'], expected a list"),
        (
            "train",
            "curve=null",
            "got curve=null, expected settings (KEY: VALUE); its settings are curve.depths, ",
        ),
        ("train", "data.batch_size=2.5", "got data.batch_size=2.5, expected a whole number"),
        ("train", "data.batch_size=true", "got data.batch_size=true, expected a whole number"),
        ("train", "recipe.lr=null", "got recipe.lr=null, expected a number"),
        (
            "train",
            "losses.criterion.matcher.alpha=x",
            "got losses.criterion.matcher.alpha='x', expected a number",
        ),
        ("train", "losses.criterion=3", "got losses.criterion=3, expected settings with a _target_"),
        ("train", "compile=3", "got compile=3, expected true or false"),
        ("train", "float32_matmul=hihg", "got float32_matmul='hihg', expected highest, high or medium"),
        ("train", "trainer.devices=1.5", "got trainer.devices=1.5, expected "),
        ("train", "callbacks.last.every_minutes=soon", "got callbacks.last.every_minutes='soon', expected"),
        ("evaluate", "batch_size=2.5", "got batch_size=2.5, expected a whole number"),
        ("evaluate", "latency=null", "got latency=null, expected settings"),
        ("analyze", "chunk=many", "got chunk='many', expected a whole number"),
        ("predict", "threshold=high", "got threshold='high', expected a number"),
        ("predict", "batch_size=[8]", "got batch_size=[8], expected a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_key(command: str, override: str, message: str) -> None:
    with pytest.raises(ConfigCompositionException, match=f"(?m)^{re.escape(message)}"):
        composed(command, override)


def test_all_wrong_values_are_named_at_once_and_each_once() -> None:
    with pytest.raises(ConfigCompositionException) as raised:
        composed("train", "recipe.epochs=abc", "recipe.lr=abc")
    assert sorted(line.split("=")[0] for line in str(raised.value).splitlines()) == [
        "got recipe.epochs",
        "got recipe.lr",
    ]


@pytest.mark.parametrize(
    ("command", "override", "key", "text"),
    [
        ("predict", "source=2024", "source", "2024"),
        ("predict", "source=2024_11_30", "source", "2024_11_30"),
        ("predict", "weights=7", "weights", "7"),
        ("predict", "output=2026", "output", "2026"),
        ("predict", "device=0", "device", "0"),
        ("predict", "depth=1", "depth", "1"),
        ("train", "data.root=2024", "data.root", "2024"),
        ("train", "++data.root=1e3", "data.root", "1e3"),
        ("train", "ckpt_path=2024", "ckpt_path", "2024"),
        ("train", "hydra.run.dir=2024_11_30", "hydra.run.dir", "2024_11_30"),
        ("train", "hydra.sweep.dir=1e5", "hydra.sweep.dir", "1e5"),
        ("evaluate", "output=2026", "output", "2026"),
        ("analyze", "weights=true", "weights", "true"),
    ],
)
def test_numbers_as_names_of_files_and_folders_stay_as_typed(
    command: str, override: str, key: str, text: str
) -> None:
    assert OmegaConf.select(composed(command, override), key) == text


def test_a_sweep_over_names_that_hydra_reads_as_numbers_is_refused() -> None:
    config = composed("predict")
    with pytest.raises(ValueTypeError, match=r"would sweep over the number 20241130.*in quotes"):
        keep_texts(config, ["source=2024_11_30,2024_12_01"], "predict")
    keep_texts(
        config, ["source=2024,2025", "batch_size=1_0,2_0", "source='2024_11_30','2024_12_01'"], "predict"
    )


def test_a_number_as_name_in_a_file_is_refused_because_its_text_is_lost() -> None:
    config = composed("predict", "weights=a", "source=b")
    config.source = 20241130
    with pytest.raises(ValueTypeError, match=r"got source=20241130, expected text or null .put it in quotes"):
        check_config(config, "predict")


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        (
            "train",
            "recipe.epoch=3",
            "Could not override 'recipe.epoch': there is no such setting; the nearest is recipe.epochs",
        ),
        ("train", "+recipe.epoch=3", "recipe.epoch: this setting is unknown; the nearest is recipe.epochs"),
        (
            "train",
            "+curve.dephts=[full]",
            "curve.dephts: this setting is unknown; the nearest is curve.depths",
        ),
        (
            "train",
            "+detector.stemm=deep",
            "detector.stemm: this setting is unknown; the nearest is detector.stem",
        ),
        (
            "train",
            "+data.batchsize=2",
            "data.batchsize: this setting is unknown; the nearest is data.batch_size",
        ),
        (
            "train",
            "batch_size=4",
            "Could not override 'batch_size': there is no such setting; the nearest is data.batch_size",
        ),
        (
            "predict",
            "treshold=0.4",
            "Could not override 'treshold': there is no such setting; the nearest is threshold",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(command: str, override: str, message: str) -> None:
    with pytest.raises(ConfigCompositionException, match=f"(?m)^{re.escape(message)}$"):
        composed(command, override)


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("predict", "~threshold", "threshold is needed: leave ~threshold out"),
        ("train", "~curve.pictures", "curve.pictures is needed: leave ~curve.pictures out"),
        ("train", "~losses", "losses is needed: leave ~losses out"),
        ("evaluate", "~data", "data is needed: leave ~data out"),
        ("predict", "+foo=1", "+foo: anydepth-predict has no such setting"),
        (
            "predict",
            "++treshold=0.3",
            "+treshold: anydepth-predict has no such setting; the nearest is threshold",
        ),
        ("evaluate", "+foo.bar=1", "+foo.bar: anydepth-evaluate has no such setting"),
        (
            "train",
            "logger=null",
            "logger=null: a group takes one of its options, see --help; e.g. logger=none",
        ),
        ("train", "+sed=1", "+sed: anydepth-train has no such setting; the nearest is seed"),
    ],
)
def test_settings_that_are_removed_or_added_for_nothing_are_refused(
    command: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigCompositionException, match=f"(?m)^{re.escape(message)}$"):
        composed(command, override)


def test_a_setting_that_another_one_uses_or_a_logger_records_may_be_added() -> None:
    config = composed("predict", "+stem=street", "output=found/${stem}/a", "weights=a", "source=b")
    assert config.output == "found/street/a"
    assert composed("predict", "+tag=a", "hydra.run.dir=runs/${tag}", "weights=a", "source=b").tag == "a"
    assert composed("train", "+remark='second try'").remark == "second try"


def test_a_target_without_a_value_that_it_needs_names_the_setting() -> None:
    config = composed("train", "~recipe.lr")
    with pytest.raises(ValueTypeError, match=r"^recipe\.lr: no value, but needed; give recipe\.lr=VALUE$"):
        instantiate(config.recipe)


def test_a_misspelt_key_in_a_preset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "detector").mkdir()
    preset = tmp_path / "detector" / "mine.yaml"
    preset.write_text("defaults: [detr_tiny, _self_]\n\nhiden_dim: 64\n", encoding="utf-8")
    overrides = ["paths.output_dir=out", f"hydra.searchpath=[file://{tmp_path}]", "detector=mine"]
    with pytest.raises(
        ConfigCompositionException, match=r"detector.hiden_dim: .* the nearest is detector.hidden_dim"
    ):
        compose("train", overrides, hydra_config=True)


def test_values_of_python_callers_are_checked_alike() -> None:
    with pytest.raises(
        ValueTypeError, match=r"got detector.input_size=640, expected a list of whole numbers"
    ):
        anydepth.build("detr_tiny", num_classes=1, input_size=640)
    with pytest.raises(
        ConfigCompositionException, match=r"got losses.distillation.neck_weight='x', expected a number"
    ):
        anydepth.build_losses("detr", ["distillation.neck_weight=x"])


def _plain(node: Mapping[str, Any], hints: Any, prefix: str = "") -> set[str]:
    """Keys of a configuration that no target takes and the table lacks."""
    missing = set()
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            continue
        if name not in hints.__annotations__:
            missing.add(f"{prefix}{name}")
        elif isinstance(value, Mapping) and hasattr(hints.__annotations__[name], "__annotations__"):
            missing |= _plain(value, hints.__annotations__[name], f"{prefix}{name}.")
    return missing


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_command_has_a_type(command: str) -> None:
    config = resolve_config(composed(command))
    config.pop("data", None)  # of evaluations: its target is that of a preset
    assert _plain(config, COMMANDS[command]) == set()
    assert set(COMMANDS[command].__annotations__) <= config.keys()
    assert (config_dir() / f"{command}.yaml").is_file()


@pytest.mark.parametrize(
    ("hint", "value", "fits"),
    [
        (int, 3, True),
        (int, 3.0, False),
        (int, True, False),
        (float, 3, True),
        (float, "3", False),
        (str, 3, False),
        (str | Path, "a", True),
        (Path | None, 7, False),
        (Sequence[int], [1, 2], True),
        (Sequence[int], (1, 2), True),
        (Sequence[str], "text", False),
        (tuple[int, int], [1, 2, 3], False),
        (tuple[float, ...], [1, 2.5, 3], True),
        (list[int] | str | int, "auto", True),
        (Literal["joint", "separate"], "both", False),
        (Literal[1, "a"], True, False),
        (Mapping[str, Any], {"a": 1}, True),
        (Callable[[], int], {"_target_": "a.b"}, True),
        (Any, object(), True),
        ("Unresolved", 1, True),
    ],
)
def test_annotations_as_rules(hint: Any, value: object, fits: bool) -> None:
    assert accepts(hint, value) is fits


def test_rules_in_words() -> None:
    assert describe(Sequence[int] | None) == "a list of whole numbers or null"
    assert describe(tuple[int, int]) == "a list of 2 values (a whole number, a whole number)"
    assert describe(str | Path | None) == "text, a file or folder or null"


def test_what_cannot_be_resolved_yet_is_not_judged() -> None:
    config = composed("train")
    config.weights, config.seed = "???", "${hydra:job.num}"
    check_types(config, "train")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="the system has no such signal")
def test_help_into_a_closed_pipe_ends_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "anydepth.predict", "--help"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == -signal.SIGPIPE
