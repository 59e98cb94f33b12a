"""Training of a router: samples of both families, networks with and without PyTorch, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import anydepth
from anydepth.deploy.control import (
    ControlError,
    ControlledDetector,
    FrameResult,
    RoutedDepth,
    read_router,
    rungs_of,
)
from anydepth.deploy.routing.features import FeatureTap, pooled_maps
from anydepth.deploy.routing.fit import FitSettings, fit_router, pearson_r, write_router
from anydepth.deploy.routing.networks import RouterNetwork
from anydepth.deploy.routing.samples import RouteError, Samples, collect_samples, image_losses
from anydepth.deploy.routing.tradeoff import KeptDetections, measure_tradeoff
from anydepth.deploy.runtime.control.router import KINDS, Kind
from anydepth.detector import Detector
from anydepth.structures import Batch, Detections, Targets
from small_networks import SMALL_DETECTOR, SMALL_YOLO

FAMILIES = {"detr": ("detr_tiny", SMALL_DETECTOR), "yolo": ("yolo_tiny", SMALL_YOLO)}
SETTINGS = {
    "groups": ("backbone", "neck"),
    "epochs": 15,
    "lr": 0.01,
    "batch_size": 32,
    "weight_decay": 0.0,
    "seeds": (0,),
}


def settings(kind: Kind = "statistics", **changes: object) -> FitSettings:
    return FitSettings(kind=kind, **{**SETTINGS, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> tuple[str, Detector]:
    name, values = FAMILIES[request.param]
    torch.manual_seed(0)
    return request.param, lively(anydepth.build(name, num_classes=2, **values))


def lively(detector: Detector) -> Detector:
    """A fresh network hardly tells images or depths apart; these weights do."""
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return detector.eval()


def batch(count: int = 3) -> Batch:
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])
    # The last image has no boxes.
    targets = [Targets(boxes, torch.tensor([0, 1])) for _ in range(count - 1)]
    targets.append(Targets(boxes[:0], torch.tensor([], dtype=torch.int64)))
    return Batch(images, tuple(targets), tuple(range(count)), ((64, 64),) * count)


def test_losses_of_images_are_those_of_each_image_alone(network: tuple[str, Detector]) -> None:
    family, detector = network
    objective, images = anydepth.build_losses(family), batch()
    with torch.inference_mode():
        together = image_losses(objective, detector(images.images), list(images.targets))
        alone = [
            image_losses(objective, detector(images.images[row : row + 1]), [images.targets[row]])[0]
            for row in range(3)
        ]
    assert together == pytest.approx(alone, rel=1e-3)
    assert len(set(together)) == 3


def test_samples_hold_both_ends_and_their_difference(network: tuple[str, Detector]) -> None:
    family, detector = network
    objective, seen = anydepth.build_losses(family), []
    samples = collect_samples(
        detector,
        objective,
        [batch(3), batch(2)],
        grid=2,
        maps=True,
        on_found=lambda end, part, found: seen.append((end, len(found))),
    )
    assert len(samples) == 5
    assert seen == [("minimal", 3), ("full", 3), ("minimal", 2), ("full", 2)]
    with torch.inference_mode():
        output = detector(batch().images, depth="minimal")
        expected = image_losses(objective, output, list(batch().targets))
    assert samples.losses[:3, 0] == pytest.approx(expected, rel=1e-4)
    assert np.allclose(samples.advantages, samples.losses[:, 0] - samples.losses[:, 1])
    maps = pooled_maps(output, 2)["neck"].numpy()
    assert np.allclose(samples.inputs["neck"][:3, 0], maps, atol=2e-3 * np.abs(maps).max())
    # Mean of the cells is the mean of the map, as the sides divide.
    means = torch.cat([level.mean((2, 3)) for level in output.neck_features], 1)
    assert np.allclose(maps[..., 0, 0].shape, means.shape)
    assert samples.inputs["statistics"].shape == (5, 2, 12)


def made_up(count: int, seed: int) -> Samples:
    """Advantages that are linear in the features, plus noise; features of full are shifted."""
    random = np.random.default_rng(seed)
    own = random.normal(0, 1, (count, 1, 12)).astype(np.float32)
    statistics = np.concatenate([own, own + 1], 1)
    maps = np.repeat(statistics[..., None], 4, -1).reshape(count, 2, 12, 2, 2)
    advantage = own[:, 0, 0] + 0.1 * random.normal(0, 1, count)
    losses = np.stack([advantage + 5, np.full(count, 5.0)], 1).astype(np.float32)
    return Samples({"statistics": statistics, "backbone": maps, "neck": maps}, losses)


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_learns_and_computes_the_same_without_pytorch(kind: Kind, tmp_path: Path) -> None:
    train, val = made_up(200, 0), made_up(60, 1)
    fitted = fit_router(train, val, settings(kind))
    # Noise of 0.1 beside a deviation of 1 leaves an r of 0.995 at best.
    assert fitted.pearson > 0.8
    write_router(fitted, tmp_path, {"detector": "made up"})
    router = read_router(tmp_path)
    names = router.groups or ("statistics",)
    for path in (0, 1):
        for row in range(5):
            inputs = {name: val.inputs[name][row, path].astype(np.float32) for name in names}
            found = router.predict(inputs, deep=bool(path))
            assert found == pytest.approx(fitted.predicted[row, path], abs=1e-4)
    assert router.band[0] <= router.threshold <= router.band[1]
    assert json.loads((tmp_path / "router.json").read_text())["pearson"] == fitted.pearson


def test_the_best_seed_is_kept_and_a_training_repeats() -> None:
    train, val = made_up(60, 0), made_up(40, 1)
    each = [fit_router(train, val, settings(epochs=3, seeds=(seed,))) for seed in (0, 1, 2)]
    best = fit_router(train, val, settings(epochs=3, seeds=(0, 1, 2)))
    assert best.pearson == max(one.pearson for one in each)
    assert best.seed == max(each, key=lambda one: one.pearson).seed


def test_the_size_of_the_published_router_is_met() -> None:
    # 768 channels of the backbone and 640 of the neck.
    network = RouterNetwork("tiny_conv", {"backbone": 768, "neck": 640})
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 112_017


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "resnet"}, "expected one of statistics"),
        ({"groups": ("head",)}, "expected backbone, neck or both"),
        ({"groups": ()}, "expected backbone, neck or both"),
        ({"epochs": 0}, "expected numbers from 1"),
        ({"seeds": ()}, "and a seed"),
        ({"lr": float("nan")}, "a rate above 0"),
    ],
)
def test_settings_that_train_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RouteError, match=message):
        FitSettings(**{"kind": "statistics", **SETTINGS, **changes})  # type: ignore[arg-type]


def test_samples_that_teach_nothing_are_refused() -> None:
    equal = made_up(20, 0)
    equal = Samples(equal.inputs, np.ones((20, 2), np.float32))
    for train, val in ((equal, made_up(20, 1)), (made_up(20, 1), equal), (made_up(7, 0), made_up(20, 1))):
        with pytest.raises(RouteError, match="both ends must differ"):
            fit_router(train, val, settings())


def test_pearson_is_0_of_a_constant() -> None:
    assert pearson_r(np.ones(5, np.float32), np.arange(5, dtype=np.float32)) == 0


def test_a_tap_sees_what_the_router_was_trained_on_and_comes_off(network: tuple[str, Detector]) -> None:
    family, detector = network
    frame = (255 * batch(1).images[0].permute(1, 2, 0)).byte().numpy()
    train = collect_samples(detector, anydepth.build_losses(family), [batch(10)], grid=2, maps=True)
    fitted = fit_router(train, train, settings("gap_mlp", epochs=2))
    tap = FeatureTap(detector, grid=2)
    assert tap() == {}
    rungs = rungs_of(detector, ["full", "minimal"])
    assert [rung.depth for rung in rungs] == ["minimal", "full"]
    policy = RoutedDepth(fitted.router, rungs)
    controlled = ControlledDetector(detector, policy, features=tap)
    controlled.predict(frame)
    controlled.predict(frame)
    assert controlled.last is not None
    assert controlled.last.features["neck"].shape == train.inputs["neck"].shape[2:]
    with torch.inference_mode():
        image = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
        expected = pooled_maps(detector(image, depth=controlled.last.depth), 2)["neck"][0]
    assert np.allclose(controlled.last.features["neck"], expected, atol=1e-5)
    tap.close()
    assert not detector._forward_hooks


def test_a_detector_in_training_mode_is_not_tapped() -> None:
    detector = anydepth.build("yolo_tiny", num_classes=1, **SMALL_YOLO)
    with pytest.raises(ValueError, match=r"call detector\.eval"):
        FeatureTap(detector)


def test_a_router_with_nan_is_not_written(tmp_path: Path) -> None:
    fitted = fit_router(made_up(20, 0), made_up(20, 1), settings(epochs=1))
    fitted.router.arrays["last.bias"][:] = np.nan
    with pytest.raises(ControlError, match="lower lr"):
        write_router(fitted, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_the_trade_off_ends_at_both_depths_and_the_true_advantage_is_no_worse() -> None:
    # Full finds the box of each image, minimal that of every second one.
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    kept, count = KeptDetections(), 20
    images = Batch(torch.zeros(count, 3, 1, 1), (), tuple(range(count)), ())
    right = Detections(box, torch.tensor([0.9]), torch.tensor([0]))
    wrong = Detections(box + 30, torch.tensor([0.9]), torch.tensor([0]))
    easy = [number % 2 == 0 for number in range(count)]
    kept.add("minimal", images, [right if one else wrong for one in easy])
    kept.add("full", images, [right] * count)
    truth = {
        "images": [{"id": number, "width": 64, "height": 64} for number in range(count)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": n,
                "category_id": 1,
                "bbox": [10, 10, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            for n in range(count)
        ],
    }
    advantages = np.array([0.0 if one else 1.0 for one in easy], np.float32)
    rows = measure_tradeoff(
        kept, np.stack([advantages] * 2, 1), advantages, ground_truth=truth, category_ids=[1]
    )
    assert rows[-1].router == rows[-1].chance == rows[-1].oracle == pytest.approx(1)
    assert rows[0].router == rows[0].oracle < 0.5
    # Half of the images are hard, so that full depth on these is as good as on all.
    assert rows[5].router == rows[5].oracle == pytest.approx(1)
    assert rows[5].chance < 0.9


def test_the_router_of_a_frame_without_maps_says_how_to_get_them() -> None:
    fitted = fit_router(made_up(20, 0), made_up(20, 1), settings("tiny_conv", epochs=1))
    with pytest.raises(ControlError, match="FeatureTap"):
        fitted.router.advantage(FrameResult("full", 1.0), deep=True)
