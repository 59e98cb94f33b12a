"""Processes that would not train the same thing: comparison and error message."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import torch

from anydepth import distributed
from anydepth.detector import Detector
from anydepth.training.callbacks import process_guard
from anydepth.training.callbacks.process_guard import ProcessGuard, ProcessMismatchError

FACTS = {"setting": {"recipe.lr": "0.1", "seed": "0"}, "data split": {"train": "abc"}}


def _check(
    monkeypatch: pytest.MonkeyPatch,
    detector: Detector,
    *others: Mapping[str, Mapping[str, str]],
    change: Callable[[dict[str, Any]], Any] = lambda own: own,
) -> None:
    """Run the guard with other processes that have these facts, and weights modified by ``change``."""

    def all_gather_object(found: list[Any], own: dict[str, Any]) -> None:
        weights = change(dict(own["parameter"]))
        found[:] = [own, *({**other, "parameter": weights} for other in others)]

    monkeypatch.setattr(distributed, "world_size", lambda: 1 + len(others))
    monkeypatch.setattr(process_guard.dist, "all_gather_object", all_gather_object)
    remedies = {"setting": "Start all with one command"}
    ProcessGuard(facts=lambda: FACTS, remedies=remedies).setup(cast(Any, None), cast(Any, detector), "fit")


def test_equal_processes_train(monkeypatch: pytest.MonkeyPatch, small_detector: Detector) -> None:
    _check(monkeypatch, small_detector)
    _check(monkeypatch, small_detector, FACTS, FACTS)


def test_the_setting_that_differs_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, small_detector: Detector
) -> None:
    other = {**FACTS, "setting": {"recipe.lr": "0.2", "seed": "0"}}
    message = (
        r"differ\.\nsetting recipe\.lr: 0\.2 in process 2, 0\.1 in process 0\nStart all with one command$"
    )
    with pytest.raises(ProcessMismatchError, match=message):
        _check(monkeypatch, small_detector, FACTS, other)


def test_data_that_differ_are_named(monkeypatch: pytest.MonkeyPatch, small_detector: Detector) -> None:
    other = {**FACTS, "data split": {}}
    with pytest.raises(ProcessMismatchError, match="data split train: none in process 1, abc in process 0"):
        _check(monkeypatch, small_detector, other)


def test_parameters_that_differ_are_named_and_counted(
    monkeypatch: pytest.MonkeyPatch, build_small: Callable[..., Detector]
) -> None:
    detector = build_small()
    changed = build_small()
    name = next(key for key in changed.state_dict() if "decoder" in key)
    with torch.no_grad():
        changed.state_dict()[name].view(-1)[0] += 1e-6

    def one(own: dict[str, str]) -> dict[str, str]:
        found = process_guard._checksums(changed)
        assert {key for key in own if own[key] != found[key]} == {name}
        return found

    with pytest.raises(ProcessMismatchError, match=rf"parameter {name}: \[.*float32 \w{{8}} in process 1"):
        _check(monkeypatch, detector, FACTS, change=one)
    with pytest.raises(ProcessMismatchError, match=rf"and {len(detector.state_dict()) - 5} more"):
        _check(monkeypatch, detector, FACTS, change=lambda own: {})
