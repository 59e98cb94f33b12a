"""Unreadable images in a run: skipped, listed, and excluded from the figures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from PIL import Image

from anydepth.config.compose import compose
from anydepth.data.errors import DataError
from anydepth.evaluate import run as evaluate
from anydepth.evaluation.depth_curve import SkippedImagesWarning
from anydepth.train import run

Compose = Callable[..., DictConfig]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six training and three validation images, of which one each is not an image."""
    for split, count in (("train", 6), ("val", 3)):
        folder = tmp_path / "data" / "images" / split
        folder.mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((64, 64), 80).convert("RGB").save(folder / f"{number}.png")
        (folder / "1.png").write_bytes(b"not an image")
        document = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(count)],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0}
                for n in range(count)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
        path = tmp_path / "data" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore::anydepth.evaluation.depth_curve.SkippedImagesWarning")
def test_skipped_images_are_listed_once_and_left_out_of_the_figures(
    root: Path, compose_run: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data=custom", f"data.root={root}", "recipe.epochs=2", "trainer.limit_train_batches=1.0")
    folder = tmp_path / "run"
    _, objects = run(compose_run(folder, *settings, "data.batch_size=2", "data.on_bad_image=skip"))
    lines = (folder / "skipped_images.txt").read_text().splitlines()
    assert len(lines) == 2
    assert {line.partition(": ")[0] for line in lines} == {
        str(root / "annotations" / f"instances_{split}.json") for split in ("train", "val")
    }
    assert all("image id 1: " in line and "not a readable image" in line for line in lines)
    assert "2 images could not be read and were skipped" in " ".join(capsys.readouterr().out.split())
    settings = [f"weights={folder / 'weights.safetensors'}", "data=custom", f"data.root={root}"]
    config = compose(
        "evaluate",
        [*settings, "data.on_bad_image=skip", "depths=[full]", "latency.repetitions=0", "data.num_workers=0"],
        hydra_config=True,
    )
    config.output = str(tmp_path / "evaluation")
    with pytest.warns(SkippedImagesWarning, match="1 images could not be read .* image id 1: "):
        _, found = evaluate(config)
    assert found["curve"].images == 2
    assert objects["trainer"].current_epoch == 2


def test_a_bad_image_ends_a_run_that_must_not_skip(root: Path, compose_run: Compose, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image id 1: .*1\.png: not a readable image.*on_bad_image=skip"):
        run(compose_run(tmp_path / "run", "data=custom", f"data.root={root}", "data.batch_size=6"))
