"""Every command works on the YOLO family by the choice of the detector alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image

import anydepth
from anydepth import evaluate, predict, train
from anydepth.config.compose import compose

SMALL_YOLO = (
    "detector=yolo_tiny",
    "detector.widths=[8,8,16,64,64]",
    "detector.backbone_units=[1,2,2,1]",
    "detector.neck_units=[1,1,1,2]",
    "detector.input_size=[64,64]",
)


@pytest.fixture
def settings(tmp_path: Path, small_run: tuple[str, ...]) -> Iterator[list[str]]:
    shared = [setting for setting in small_run if not setting.startswith("detector.")]
    yield [*shared, *SMALL_YOLO, f"paths.output_dir={tmp_path / 'run'}", "recipe.epochs=1"]
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def test_training_evaluation_and_prediction(settings: list[str], tmp_path: Path) -> None:
    more = ["curve.depths=[full,1/2,minimal]", "curve.latency_repetitions=0", "curve.pictures=1"]
    train.run(compose("train", [*settings, *more], hydra_config=True))
    weights = tmp_path / "run" / "weights.safetensors"
    curve = json.loads((tmp_path / "run" / "depth_curve.json").read_text())
    assert [row["depth"] for row in curve["rows"]] == ["full", "1/2", "minimal"]
    assert curve["rows"][0]["gflops"] > curve["rows"][2]["gflops"]
    assert list((tmp_path / "run" / "pictures").iterdir())
    GlobalHydra.instance().clear()

    common = [f"weights={weights}", "device=cpu", f"paths.output_dir={tmp_path}"]
    small = ["depths=[full,stage2+neck4,minimal]", "latency.repetitions=0", "data.num_workers=0"]
    config = compose("evaluate", [*common, *small, f"output={tmp_path / 'evaluated'}"])
    metrics, _ = evaluate.run(config)
    assert "minimal/AP50" in metrics
    GlobalHydra.instance().clear()

    (tmp_path / "photos").mkdir()
    image = (torch.rand(3, 40, 60) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photos" / "one.png")
    config = compose(
        "predict",
        [*common, f"source={tmp_path / 'photos'}", "depth=1/2", "threshold=0", f"output={tmp_path / 'out'}"],
    )
    predict.run(config)
    assert list((tmp_path / "out").rglob("*.json"))


def test_the_published_recipe_trains_both_norm_sets(settings: list[str], tmp_path: Path) -> None:
    fast = ["recipe=yolo", "recipe.epochs=1", "recipe.warmup_steps=0", "callbacks.averaging=null"]
    torch.manual_seed(0)
    train.run(compose("train", [*settings, *fast], hydra_config=True))
    trained = anydepth.load(tmp_path / "run" / "weights.safetensors").state_dict()
    skips = [name for name in trained if ".norm.skip.weight" in name]
    assert skips
    assert [name for name in skips if (trained[name] == 1).all()] == []
    assert all(value.isfinite().all() for value in trained.values())
