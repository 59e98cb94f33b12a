"""What commands take in place of a bundle or weights: a run's folder, a repository, and what they refuse."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hand_made import write_bundle
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

import anydepth
from anydepth import analyze, evaluate, predict, quantize, zoo
from anydepth.commands import benchmark, demo, serve
from anydepth.config.compose import compose
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.hub_bundle import find_weights_or_bundle
from anydepth.hub import HubError
from hub_server import HubServer, serve_hub
from small_networks import SMALL_DETECTOR

QUICK = ("threads=1", "seconds=1e-9", "memory=false")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The folder of a training run, as far as it matters here."""
    anydepth.save(zoo.build("detr_tiny", 2, **SMALL_DETECTOR), tmp_path / "run" / "weights.safetensors")
    return tmp_path / "run"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_folder: Path) -> Iterator[HubServer]:
    """A hub with a bundle, weights, both, and neither."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    bundle, weights = _files(write_bundle(tmp_path / "local")), _files(run_folder)
    with serve_hub(monkeypatch, tmp_path / "home") as running:
        running.repositories |= {
            "ann/bundle": [bundle],
            "ann/weights": [weights],
            "ann/both": [{**bundle, **weights}],
            "ann/text": [{"model.bin": b""}],
        }
        yield running


@pytest.fixture
def predicted(tmp_path: Path) -> Iterator[Callable[..., object]]:
    """Type of the detector that a prediction of a photo used."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")

    def run(weights: str, *overrides: str) -> object:
        folder = tmp_path / "out"
        photo = f"source={tmp_path / 'photo.png'}"
        settings = [f"weights={weights}", photo, f"output={folder}", f"paths.output_dir={folder}"]
        metrics, objects = predict.run(compose("predict", [*settings, *overrides]))
        assert metrics["images"] == 1
        return type(objects["detector"]).__name__

    yield run
    GlobalHydra.instance().clear()


def test_a_prediction_takes_a_repository(server: HubServer, predicted: Callable[..., object]) -> None:
    assert predicted("ann/bundle") == "DeployedDetector"
    assert predicted("ann/weights") != "DeployedDetector"
    assert predicted("ann/both") == "DeployedDetector"
    assert predicted("ann/both", "engine=torch") != "DeployedDetector"
    with pytest.raises(
        HubError, match=r"ann/text: no such local path, .* neither weights.safetensors nor bu"
    ):
        predicted("ann/text")
    with pytest.raises(HubError, match=r"ann/none: no such local path, .* does not exist, or needs access"):
        predicted("ann/none")


def test_a_prediction_takes_the_folder_of_a_run(
    run_folder: Path, tmp_path: Path, predicted: Callable[..., object]
) -> None:
    assert predicted(str(run_folder)) != "DeployedDetector"
    # As a clone of a repository with both.
    for path in write_bundle(tmp_path / "local").iterdir():
        path.rename(run_folder / path.name)
    assert predicted(str(run_folder)) == "DeployedDetector"
    assert predicted(str(run_folder), "engine=torch") != "DeployedDetector"


@pytest.mark.parametrize("name", ["ann/bundle", "ann/weights", "./local", "run"])
def test_a_benchmark_takes_each(
    name: str, server: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    depths = "depths=[full,minimal]"
    benchmark.run(benchmark.parse([name, depths, *QUICK]))
    assert "written to" in capsys.readouterr().out
    if name == "ann/bundle":
        # In the folder that `load` finds again.
        assert anydepth.deploy.load(name).bundle.depth("full").measurements
        assert not read_bundle(tmp_path / "local").depth("full").measurements


def test_a_run_that_did_not_end_is_named(tmp_path: Path, predicted: Callable[..., object]) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    message = (
        r"run: a folder with neither bundle.json, .* nor weights.safetensors, which a training writes when"
    )
    with pytest.raises(FileNotFoundError, match=message):
        predicted(str(tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match=message):
        benchmark.run(benchmark.parse([str(tmp_path / "run")]))


def test_a_path_with_a_dot_is_no_repository(server: HubServer) -> None:
    with pytest.raises(BundleError, match="ann/bundle: no such folder"):
        benchmark.run(benchmark.parse(["./ann/bundle", *QUICK]))


def test_a_server_takes_a_repository(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    litserve_server = pytest.importorskip("anydepth.deploy.serve.server")
    values = {key: option.default for key, option in serve.OPTIONS.items()}
    assert serve.server_options("ann/bundle", values).source.load().depths == ("full", "a@1", "minimal")
    seen = []
    monkeypatch.setattr(litserve_server, "build_server", lambda options, **_: seen.append(options))
    monkeypatch.setattr(litserve_server, "run_server", lambda *_: None)
    demo.run(["ann/bundle", "measure=false"])
    serve.run(["ann/bundle"])
    assert [(one.source.folder / "bundle.json").is_file() for one in seen] == [True, True]


def test_evaluation_analysis_and_quantisation_take_a_repository(server: HubServer) -> None:
    """Up to the data set, which is missing: what is wrong with the first argument is found before."""

    def message(command: Callable[[DictConfig], object], name: str, *settings: str) -> str:
        common = ["data=custom", "data.root=nowhere", "output=out", "paths.output_dir=out"]
        with pytest.raises((ValueError, OSError)) as raised:
            command(compose(name, [*settings, *common]))
        return str(raised.value)

    for weights in ("ann/bundle", "ann/weights", "run"):
        assert "nowhere" in message(evaluate.run, "evaluate", f"weights={weights}")
    for weights in ("ann/weights", "ann/both", "run"):
        assert "nowhere" in message(analyze.run, "analyze", f"weights={weights}", "curve=all")
    assert "it holds no weights.safetensors" in message(analyze.run, "analyze", "weights=ann/bundle")
    assert "local: a bundle, which inference engines run" in message(analyze.run, "analyze", "weights=local")
    assert "nowhere" in message(quantize.run, "quantize", "bundle=ann/bundle")
    GlobalHydra.instance().clear()


def test_a_complete_cache_is_enough_without_a_connection(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    first = find_weights_or_bundle("ann/weights", "auto")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_weights_or_bundle("ann/weights", "auto") == first


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "run",
            r"run: not a bundle, but weights.safetensors is in it; make a bundle of it: anydepth-export ",
        ),
        ("run/weights.safetensors", r"a file of weights; make a bundle of it: anydepth-export weights=.*run"),
        ("photo.png", "photo.png: a file, expected the folder of a bundle that anydepth-export wrote"),
        ("empty", "empty: not a bundle, because it has no bundle.json; give a folder that anydepth-export"),
        ("none", "none: no such folder; give a folder that anydepth-export wrote"),
    ],
)
def test_what_is_no_bundle_is_named_for_what_it_is(
    path: str, message: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"")
    Path("empty").mkdir()
    with pytest.raises(BundleError, match=message):
        anydepth.deploy.load(path)


def test_a_run_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder without weights.safetensors, which a training wr"):
        anydepth.load(tmp_path)
