"""``anydepth-evaluate`` with a bundle: AP of each depth in an engine, in the same files as with weights."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import AP, BOXES, CLASSES, NAMES, outputs_of, write_bundle
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from anydepth import evaluate
from anydepth.config.compose import compose
from anydepth.deploy import load
from anydepth.deploy.runtime.bundle import read_bundle
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.selection import TopScores

HEIGHT, WIDTH, GREY = 60, 90, 90


def _object() -> tuple[list[float], int, int]:
    """Best upright box of `full` in the image, its label, and its rank within its class."""
    boxes, scores = outputs_of(np.full((1, 3, 2, 2), GREY / 255, np.float32), "full")
    corners = boxes[0] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    upright = ((corners[:, 2:] - corners[:, :2]) > 1).all(axis=1)
    assert upright.any()
    row, label = divmod(int(np.argmax(np.where(upright[:, None], scores[0], -1))), CLASSES)
    rank = 1 + int((scores[0][:, label] > scores[0][row, label]).sum())
    return corners[row].tolist(), label, rank


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One grey image with that object; categories in another order than the classes of the bundle."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), (GREY,) * 3).save(root / "images" / "val" / "a.png")
    (left, top, right, bottom), label, _ = _object()
    width, height = right - left, bottom - top
    entry = {"id": 1, "image_id": 1, "category_id": 20 - label, "bbox": [left, top, width, height]}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 20 - label, "name": name} for label, name in enumerate(NAMES)],
        "annotations": [{**entry, "area": width * height, "iscrowd": 0}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    card = b"a card"
    entry = {"bytes": len(card), "sha256": hashlib.sha256(card).hexdigest()}

    def add_card(description: dict[str, Any]) -> None:
        description["files"]["README.md"] = entry

    folder = write_bundle(tmp_path / "bundle", edit=add_card)
    (folder / "README.md").write_bytes(card)
    return folder


@pytest.fixture
def config(tmp_path: Path, data: Path, bundle: Path) -> Iterator[Callable[..., DictConfig]]:
    def compose_job(*overrides: str) -> DictConfig:
        folder = tmp_path / "out"
        settings = ["data=custom", f"data.root={data}", "data.num_workers=0", f"weights={bundle}"]
        settings += [f"output={folder}", f"paths.output_dir={folder}"]
        return compose("evaluate", [*settings, *overrides])

    yield compose_job
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_a_bundle_has_the_files_of_weights(
    config: Callable[..., DictConfig], bundle: Path, tmp_path: Path, engine: str
):
    before = (bundle / "bundle.json").read_text()
    metrics, objects = evaluate.run(config(f"engine={engine}", "threads=1", "results=true"))
    # The only object is found with an IoU of 1 after rank - 1 others of its class.
    assert metrics["full/AP"] == pytest.approx(1 / _object()[2])
    curve = DepthCurve.from_json((tmp_path / "out" / "depth_curve.json").read_text())
    assert [row.depth for row in curve.rows] == ["full", "a@1", "minimal"]  # all that were exported
    assert (curve.detector, curve.images, curve.row("full").latency) == ("two_products", 1, None)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"depth_curve.csv", "depth_curve.png", "provenance.json"} <= written
    results = json.loads(Path(objects["files"]["full"]).read_text())
    assert {row["category_id"] for row in results} == {19, 20}
    assert (bundle / "bundle.json").read_text() == before


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_figures_are_those_of_the_runtime_if_graphs_select(
    config: Callable[..., DictConfig], bundle: Path, engine: str
):
    wanted, _ = evaluate.run(config(f"engine={engine}", "threads=1"))
    shutil.rmtree(bundle)
    write_bundle(bundle, selection=TopScores(BOXES))
    found, _ = evaluate.run(config(f"engine={engine}", "threads=1"))
    assert {name: found[name] for name in wanted if "AP" in name} == pytest.approx(
        {name: value for name, value in wanted.items() if "AP" in name}
    )


def test_figures_are_recorded_on_request_and_budgets_use_them(
    config: Callable[..., DictConfig], bundle: Path
):
    metrics, _ = evaluate.run(config("record=true", "depths=[a@1,minimal]", "data.num_workers=0"))
    found = {str(entry.config): entry.figures["AP"] for entry in read_bundle(bundle).depths}
    assert found == {"full": AP["full"], "a@1": metrics["a@1/AP"], "minimal": metrics["minimal/AP"]}
    assert AP["a@1"] != metrics["a@1/AP"]
    # COCO's -1 of objects that the image lacks is no figure.
    assert all(value >= 0 for entry in read_bundle(bundle).depths for value in entry.figures.values())
    best = max(found, key=lambda depth: found[depth])
    assert str(load(bundle).resolve(">=100%ap").config) == best
    # The card shows them, and its hash is the one in the description.
    assert f"{100 * found['a@1']:.1f}" in (bundle / "README.md").read_text()
    read_bundle(bundle).check_files(*read_bundle(bundle).files)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["depths=[1/4]"], "is not in the bundle"),
        (["input_size=[64,64]"], r"input_size=\[64, 64\], expected neither"),
        (["specialised=true"], "specialised=True and input_size=None, expected neither"),
        (["engine=torch"], "is a bundle; allowed are onnxruntime, openvino"),
        (["precision=bf16"], "got precision='bf16', expected fp32 or auto"),
    ],
)
def test_settings_that_do_not_suit_a_bundle_are_refused(
    config: Callable[..., DictConfig], tmp_path: Path, overrides: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        evaluate.run(config(*overrides))
    assert not (tmp_path / "out").exists()
