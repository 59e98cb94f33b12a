"""Feature maps that graphs return, and routers beside a bundle that look at them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import DEPTHS, GRID, SIDE, features_of, outputs_of, write_bundle
from torch.nn.functional import adaptive_avg_pool2d

from anydepth import zoo
from anydepth.deploy import load
from anydepth.deploy.control import ControlError, ControlledDetector, RoutedDepth, read_router, rungs_of
from anydepth.deploy.export.bundle_writer import write_bundle as export_bundle
from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.routing.features import pooled_maps
from anydepth.deploy.routing.fit import FitSettings, fit_router, write_router
from anydepth.deploy.routing.networks import RouterNetwork
from anydepth.deploy.routing.samples import Samples
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.control.router import Router
from anydepth.deploy.runtime.engines.base import EngineError
from anydepth.detector import Detector
from anydepth.selection import NmsConfig
from small_networks import SMALL_DETECTOR

ENGINES = ("onnxruntime", "openvino")


def _frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def _as_input(frame: np.ndarray) -> np.ndarray:
    return (frame.transpose(2, 0, 1)[None] / 255).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("selects", [False, True])
def test_every_depth_returns_maps_beside_its_detections(
    tmp_path: Path, engine: str, one: bool, selects: bool
):
    selection = NmsConfig(0.2, 0.4) if selects else None
    folder = write_bundle(tmp_path / "bundle", one=one, selection=selection, features=True)
    detector = load(folder, engine=engine, threads=1)
    for depth in DEPTHS:
        found, maps = detector.detect_with_features(_frame(0), depth, threshold=0.1)
        wanted = detector.predict(_frame(0), depth, threshold=0.1)[0]
        np.testing.assert_array_equal(found.boxes_xyxy, wanted.boxes_xyxy)
        assert len(found) > 0
        for name, values in features_of(_as_input(_frame(0))).items():
            np.testing.assert_allclose(maps[name], values[0], atol=1e-6)
    # Those who ask for boxes and scores get no more.
    images = np.concatenate([_as_input(_frame(seed)) for seed in (1, 2)])
    outputs = detector.run(images, "full", 0.1)
    assert len(outputs) == (4 if selects else 2)
    if not selects:
        np.testing.assert_allclose(outputs[1], outputs_of(images, "full")[1], atol=1e-6)


@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (3, 9), (2, 1)])
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_maps_are_pooled_as_pytorch_pools(sides: tuple[int, int], grid: int):
    class Output:
        backbone_features = (torch.randn(2, 4, *sides), torch.randn(2, 3, 6, 4, dtype=torch.float64))
        neck_features = (torch.randn(2, 5, *sides),)

    found = pooled_maps(Output, grid)  # type: ignore[arg-type]
    for name, maps in (("backbone", Output.backbone_features), ("neck", Output.neck_features)):
        wanted = torch.cat([adaptive_avg_pool2d(level.float(), grid) for level in maps], 1)
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=1e-6)


def _router(folder: Path, kind: Any = "tiny_conv", grid: int = GRID, channels: int = 3) -> Router:
    """A router that was trained on noise, written and read again."""
    random = np.random.default_rng(0)
    shape = (16, 2, channels, grid, grid)
    maps = {name: random.normal(size=shape).astype(np.float16) for name in ("backbone", "neck")}
    samples = Samples(maps, random.normal(size=(16, 2)).astype(np.float32))
    settings = FitSettings(kind, ("backbone", "neck"), 2, 0.01, 8, 0.0, (0,))
    write_router(fit_router(samples, samples, settings), folder, {})
    return read_router(folder)


@pytest.mark.parametrize("kind", ["tiny_conv", "gap_mlp"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_router_of_maps_chooses_beside_a_bundle_what_it_chooses_in_pytorch(
    tmp_path: Path, kind: str, engine: str
):
    detector = load(write_bundle(tmp_path / "bundle", features=True), engine=engine, threads=1)
    router = _router(tmp_path / "router", kind)
    network = _restored(router)
    policy = RoutedDepth(router, rungs_of(detector))
    controlled = ControlledDetector(detector, policy)
    policy.threshold = router.advantage(_first_frame(controlled), deep=False)  # in the middle of all
    ran = ["minimal"]
    for seed in range(1, 20):
        deep = ran[-1] == "full"
        maps = {
            name: torch.from_numpy(values)
            for name, values in features_of(_as_input(_frame(seed - 1))).items()
        }
        with torch.no_grad():
            advantage = float(network(maps, torch.tensor([int(deep)])))
        controlled.predict(_frame(seed))
        assert controlled.last is not None
        ran.append(controlled.last.depth)
        assert abs(advantage - policy.threshold) < 1e-5 or (ran[-1] == "full") == (
            advantage > policy.threshold
        )
    assert set(ran) == {"minimal", "full"}


def _first_frame(controlled: ControlledDetector) -> Any:
    controlled.predict(_frame(0))
    return controlled.last


def _restored(router: Router) -> RouterNetwork:
    """The network of PyTorch with the weights of a router; norms of branches as scale and shift."""
    network = RouterNetwork(router.kind, router.channels).eval()
    arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in router.arrays.items()}
    state = network.state_dict()
    own = {
        "path.weight": arrays["path"],
        **{name: arrays[name] for name in ("hidden.weight", "hidden.bias", "last.weight", "last.bias")},
    }
    if router.kind == "gap_mlp":
        own |= {name: arrays[name] for name in ("mean", "deviation")}
    else:
        for group in router.groups:
            first = {"weight": "scale", "bias": "shift"}
            own |= {f"branches.{group}.0.{name}": arrays[f"{group}.{key}"] for name, key in first.items()}
            own[f"branches.{group}.0.running_mean"] = torch.zeros(router.channels[group])
            own[f"branches.{group}.0.running_var"] = torch.full((router.channels[group],), 1 - 1e-5)
            own[f"branches.{group}.1.weight"] = arrays[f"{group}.reduce"][:, :, None, None]
            own[f"branches.{group}.1.bias"] = arrays[f"{group}.reduce_bias"]
            own[f"branches.{group}.3.weight"] = arrays[f"{group}.depthwise"][:, None]
            own[f"branches.{group}.3.bias"] = arrays[f"{group}.depthwise_bias"]
    network.load_state_dict({**state, **own})
    return network


@pytest.mark.parametrize(
    ("features", "grid", "channels", "message"),
    [
        (False, 2, 3, r"return none: export it again with feature_grid=2, or train a router of statistics"),
        (True, 3, 3, r"looks at 3 x 3 cells of .* return 2 x 2 cells of .*with grid=2, or .* feature_grid=3"),
        (True, 2, 5, r"looks at 2 x 2 cells of backbone 5, neck 5 channels, and .* return 2 x 2 cells of"),
    ],
)
def test_a_router_of_other_maps_is_refused_before_the_first_frame(
    tmp_path: Path, features: bool, grid: int, channels: int, message: str
):
    detector = load(write_bundle(tmp_path / "bundle", features=features), threads=1)
    policy = RoutedDepth(_router(tmp_path / "router", grid=grid, channels=channels), rungs_of(detector))
    with pytest.raises(ControlError, match=message):
        ControlledDetector(detector, policy)
    # Maps that something else provides are its own affair.
    ControlledDetector(detector, policy, features=dict)


def test_a_detector_of_pytorch_needs_a_tap(tmp_path: Path):
    class Eager:
        def predict(self, source: Any, depth: Any = "full", threshold: float = 0.5) -> list[Any]:
            return []

    detector = load(write_bundle(tmp_path / "bundle", features=True), threads=1)
    policy = RoutedDepth(_router(tmp_path / "router"), rungs_of(detector))
    with pytest.raises(ControlError, match=r"give features=FeatureTap\(detector, 2\)"):
        ControlledDetector(Eager(), policy)


def test_maps_are_asked_in_vain_of_a_bundle_without(tmp_path: Path):
    detector = load(write_bundle(tmp_path / "bundle"), threads=1)
    with pytest.raises(BundleError, match="its graphs return no feature maps; export it again"):
        detector.detect_with_features(_frame(0))


def _features(value: object) -> Callable[[dict[str, Any]], None]:
    def edit(description: dict[str, Any]) -> None:
        description["output"]["features"] = value

    return edit


@pytest.mark.parametrize(
    "value",
    [
        5,
        [],
        {"grid": 0, "channels": {"backbone": 3, "neck": 3}},
        {"grid": 10**9, "channels": {"backbone": 3, "neck": 3}},
        {"grid": True, "channels": {"backbone": 3, "neck": 3}},
        {"grid": 2, "channels": {"backbone": 3}},
        {"grid": 2, "channels": {"backbone": 3, "neck": 10**9}},
        {"grid": 2, "channels": {"backbone": 3, "neck": 3, "<b>" * 50: 1}},
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_description_of_other_maps_is_refused(tmp_path: Path, value: object):
    folder = write_bundle(tmp_path / "bundle", features=True, edit=_features(value))
    with pytest.raises(BundleError, match=r"features|grid|neck"):
        read_bundle(folder)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("features", [True, False])
def test_a_description_that_does_not_fit_the_graph_is_refused(tmp_path: Path, engine: str, features: bool):
    described = {"grid": 2, "channels": {"backbone": 3, "neck": 3}}
    edit = _features(None if features else described)
    folder = write_bundle(tmp_path / "bundle", features=features, edit=edit)
    with pytest.raises(EngineError, match=r"got the outputs .*expected boxes and scores"):
        load(folder, engine=engine, threads=1).open("full")


def test_maps_of_another_shape_are_refused(tmp_path: Path):
    described = {"grid": 2, "channels": {"backbone": 3, "neck": 4}}
    detector = load(write_bundle(tmp_path / "bundle", features=True, edit=_features(described)), threads=1)
    with pytest.raises(
        BundleError, match=r"returned .*neck_features \(1, 3, 2, 2\) float32, expected .*neck 4"
    ):
        detector.predict(_frame(0))


@pytest.fixture(scope="module")
def small() -> Detector:
    return zoo.build("detr_tiny", 2, **SMALL_DETECTOR).eval()


@pytest.mark.parametrize("grid", [0, -1, 65])
def test_a_grid_that_cannot_be_is_refused(small: Detector, tmp_path: Path, grid: int):
    with pytest.raises(ExportError, match=f"got feature_grid={grid}, expected 1 to 64, or null for none"):
        export_bundle(small, [small.depth_space.full], tmp_path / "bundle", feature_grid=grid)
    assert list(tmp_path.iterdir()) == []
