"""``anydepth-route`` on the embedded sample with a small network."""

import json
from pathlib import Path

import pytest
import torch

import anydepth
from anydepth.config.compose import compose
from anydepth.deploy.control import read_router
from anydepth.route import run
from small_networks import SMALL_DETECTOR


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = anydepth.build("detr_tiny", num_classes=1, **SMALL_DETECTOR)
    detector.reset_classes(["tree"])
    with torch.no_grad():
        # A fresh network does not tell depths apart, so that there would be nothing to learn.
        for parameter in detector.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return anydepth.save(detector, tmp_path_factory.mktemp("route") / "weights.safetensors")


def overrides(weights: Path, output: Path, *more: str) -> list[str]:
    return [
        f"weights={weights}",
        f"output={output}",
        f"paths.output_dir={output}",
        "data.num_workers=0",
        "images=10",
        "router.epochs=2",
        "router.seeds=[0]",
        *more,
    ]


def test_one_command_writes_a_router_and_its_report(weights: Path, tmp_path: Path) -> None:
    figures, objects = run(compose("route", overrides(weights, tmp_path / "out")))
    router = read_router(tmp_path / "out")
    assert router.kind == "statistics"
    report = json.loads((tmp_path / "out" / "route_report.json").read_text())
    assert report["pearson"] == figures["pearson"]
    assert report["images"] == {"train": 10, "val": 10}
    assert [row["share"] for row in report["tradeoff"]] == [share / 10 for share in range(11)]
    assert objects["fitted"].parameters == figures["parameters"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("router.kind=resnet", "got kind=resnet"),
        ("val_split=train", "chosen by rote"),
        ("train_split=x", "train_split=x"),
        ("grid=0", "grid=0"),
        ("images=0", "images=0"),
        ("criterion=x", "unknown losses 'x'"),
        ("precision=fp8", "precision=fp8"),
    ],
)
def test_settings_are_checked_before_any_work(
    override: str, message: str, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(compose("route", overrides(weights, tmp_path / "out", override)))
    assert not (tmp_path / "out").exists()
