"""Validation images without an object to find: the last weights are exported, and a warning says so."""

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

import anydepth
from anydepth.train import run
from anydepth.training.callbacks.unscored_validation import UnscoredValidation, UnscoredValidationWarning

SAMPLE = Path(anydepth.__file__).parent / "data" / "sample"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the embedded sample."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "data"))


def _without_boxes(root: Path) -> None:
    _rewrite(root, lambda document: document.update(annotations=[]))


def _all_crowd(root: Path) -> None:
    _rewrite(root, lambda document: [entry.update(iscrowd=1) for entry in document["annotations"]])


def _without_boxes_at_first(root: Path) -> None:
    """Four images, all that one validation batch of the small run holds."""

    def empty(document: dict[str, Any]) -> None:
        first = {image["id"] for image in document["images"][:4]}
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] not in first]

    _rewrite(root, empty)


def _rewrite(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(_without_boxes, "the validation split holds no object to find", marks=pytest.mark.slow),
        pytest.param(_all_crowd, "the validation split holds no object to find", marks=pytest.mark.slow),
        (_without_boxes_at_first, "the images of this validation hold no object"),
    ],
)
def test_the_last_weights_are_exported_with_a_warning(
    compose_run: Callable[..., DictConfig],
    sample: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    spoil(sample)
    config = compose_run(tmp_path / "run", "data=custom", f"data.root={sample}", "recipe.epochs=3")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics, objects = run(config)
    texts = [str(one.message) for one in caught if one.category is UnscoredValidationWarning]
    assert len(texts) == 1
    assert message in texts[0]
    assert "the last weights are exported" in texts[0]
    assert not {"val/score", "val/best_score"} & metrics.keys()
    checkpoint = torch.load(objects["files"]["best checkpoint"], weights_only=True)
    assert checkpoint["epoch"] == 2, "epochs count from 0"
    exported = anydepth.load(objects["files"]["weights"]).state_dict()
    for name, tensor in checkpoint["state_dict"].items():
        assert torch.equal(tensor, exported[name.removeprefix("detector.")]), name


@pytest.mark.parametrize(("kept", "left"), [(-math.inf, 0), (0.0, 1), (0.25, 1)])
def test_a_real_score_is_never_replaced_by_none(kept: float, left: int) -> None:
    best = ModelCheckpoint(monitor="val/score", mode="max")
    other = ModelCheckpoint(monitor="val/full/AP", mode="max")
    for callback in (best, other):
        callback.best_k_models = {"best.ckpt": torch.tensor(kept)}
    trainer: Any = SimpleNamespace(
        callback_metrics={"val/score": torch.tensor(math.nan)}, checkpoint_callbacks=[best, other]
    )
    module: Any = None
    with pytest.warns(UnscoredValidationWarning):
        UnscoredValidation().on_validation_end(trainer, module)
    assert len(best.best_k_models) == left
    assert len(other.best_k_models) == 1


def test_validations_with_objects_change_nothing() -> None:
    best = ModelCheckpoint(monitor="val/score", mode="max")
    best.best_k_models = {"best.ckpt": torch.tensor(-math.inf)}
    trainer: Any = SimpleNamespace(
        callback_metrics={"val/score": torch.tensor(0.0)}, checkpoint_callbacks=[best]
    )
    module: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UnscoredValidation().on_validation_end(trainer, module)
    assert len(best.best_k_models) == 1
