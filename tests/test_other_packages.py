"""Code of other packages comes in by doors: presets, entry points, targets; nothing in this package names it.

``tests/packages/spotter`` is a third detector family in miniature, with losses, presets, and a backbone for
AnyDepth-DETR. Training and evaluation with it run in processes of their own, as users start them; the rest
runs in the tests' own process, because starting one takes longer than most of them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import anydepth
from anydepth import train, zoo
from anydepth.config import targets
from anydepth.config.presets import preset_folders
from anydepth.config.targets import TargetError
from anydepth.deploy import load
from anydepth.deploy.export.bundle_writer import write_bundle
from anydepth.detr.backbones.table import all_backbones
from anydepth.evaluation.cost import count_depth
from anydepth.report.runs import find_runs

REPOSITORY = Path(__file__).resolve().parents[1]
SPOTTER = REPOSITORY / "tests" / "packages" / "spotter"
Run = Callable[..., str]
SMALL = (
    *("trainer.accelerator=cpu", "trainer.limit_train_batches=4", "trainer.limit_val_batches=2"),
    *("recipe.minutes=null", "recipe.epochs=1", "data.num_workers=0", "data.batch_size=2"),
    *("data.eval_batch_size=4", "callbacks.progress=null", "logger=none"),
    *("curve.latency_repetitions=0", "curve.pictures=0", "curve.compatibility_images=2"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its entry points, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(SPOTTER / "spotter", folder / "spotter", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((SPOTTER / "pyproject.toml").read_text())["project"]
    described = folder / f"{project['name']}-{project['version']}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (described / "entry_points.txt").write_text("\n".join(groups))
    return folder


@pytest.fixture(scope="module")
def run(installed: Path) -> Run:
    """Runs Python with the package installed, and gives what it prints."""

    def run_python(*arguments: str) -> str:
        done = _start(installed, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_python


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Installs the packages of a folder into this process, until the end of the test."""

    def forget() -> None:
        zoo._settings.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "spotter"]:
            del sys.modules[name]

    def install(folder: Path) -> None:
        monkeypatch.delenv(targets.ALLOW_VARIABLE, raising=False)
        monkeypatch.syspath_prepend(folder)
        forget()

    yield install
    forget()


def _start(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with a folder of installed packages, without what the tests themselves allow."""
    paths = [str(site), str(REPOSITORY / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("ANYDEPTH_ALLOW_TARGETS", None)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
def test_a_third_family_trains_is_saved_loaded_evaluated_and_compared(
    run: Run, installed: Path, installs: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shown = run("-m", "anydepth.train", "detector=spotter", *SMALL, f"hydra.run.dir={folder}")
    assert "early+late" in shown or "full" in shown
    curve = json.loads((folder / "depth_curve.json").read_text())
    assert [row["depth"] for row in curve["rows"]] == ["full", "late", "minimal"]
    assert curve["rows"][0]["gflops"] > curve["rows"][-1]["gflops"] > 0
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["distilled_levels"] == ["attention", "predictions"]
    installs(installed)
    weights = folder / "weights.safetensors"
    detector = anydepth.load(weights)
    assert type(detector).__module__ == "spotter.detector", type(detector)
    assert detector.config["name"] == "spotter"
    assert not detector.training
    other = anydepth.build("spotter", num_classes=detector.num_classes)
    report = anydepth.load_weights(other, weights)
    assert len(report.loaded) == len(detector.state_dict())
    assert not report.missing
    images = torch.rand(1, 3, 64, 64)
    ours, theirs = other.eval()(images, "minimal"), detector(images, "minimal")
    assert torch.equal(ours.scores, theirs.scores)
    (found,), unusable = find_runs([str(folder)])
    assert found.distilled_levels == frozenset({"attention", "predictions"})
    assert not unusable
    evaluated = tmp_path / "evaluation"
    run(
        *("-m", "anydepth.evaluate", f"weights={weights}", "depths=[minimal]"),
        *(f"output={evaluated}", "device=cpu", "latency.repetitions=0", "data.num_workers=0"),
    )
    assert (evaluated / "depth_curve.json").is_file()


def test_a_backbone_of_another_package_is_built_and_counted(
    installed: Path, installs: Callable[[Path], None]
) -> None:
    installs(installed)
    detector = anydepth.build("detr_plain", num_classes=2, input_size=[128, 128])
    assert type(detector.backbone).__module__ == "spotter.backbone"
    costs = detector.measure_depth_costs()
    assert len(costs.refinements) == 5
    assert all(cost > 0 for cost in costs.refinements)
    state = detector.state_dict()
    assert len(anydepth.load_weights(detector, state).loaded) == len(state)
    with pytest.raises(ValueError, match=r"a plain backbone \(block=plain\) has the stem 'small'"):
        anydepth.build("detr_plain", num_classes=2, stem="deep")


@pytest.mark.parametrize("name", ["spotter", "detr_plain"])
def test_detectors_of_other_packages_are_specialised_without_a_word_about_it(
    installed: Path, installs: Callable[[Path], None], name: str
) -> None:
    """They know nothing of specialisation: what does not run is left out, and norms get one set."""
    installs(installed)
    torch.manual_seed(0)
    detector = anydepth.build(name, num_classes=2, input_size=[128, 128]).eval()
    for part in detector.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias)
    images = torch.rand(1, 3, 128, 128)
    for depth in ("full", "minimal"):
        fast = detector.specialise(depth)
        with torch.inference_mode():
            ours, wanted = (one(images, depth=depth).neck_features for one in (fast, detector))
        for found, expected in zip(ours, wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        left = sum(parameter.numel() for parameter in fast.parameters())
        run = count_depth(detector, depth).parameters_run
        assert left == run if name == "spotter" else left < run


def test_a_detector_of_another_package_is_exported_with_weights_that_depths_share(
    installed: Path, installs: Callable[[Path], None], tmp_path: Path
) -> None:
    """It states its candidates and its selection, and nothing else about deployment."""
    installs(installed)
    torch.manual_seed(0)
    detector = anydepth.build("spotter", num_classes=2, input_size=[64, 64], width=64).eval()
    for part in detector.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias)
    depths = detector.depth_space.parse_list(["full", "minimal"])
    bundle = write_bundle(detector, depths, tmp_path / "bundle")
    # A 3x3 kernel of 64 channels in each of four blocks, of which two run at minimal depth, and half of one
    # in the stem.
    kernel = 4 * 64 * 64 * 9
    assert 4 * kernel < bundle.files["weights.bin"].bytes < 5 * kernel
    full, minimal = (bundle.check_graph(entry.graph) for entry in bundle.depths)
    assert 4 * kernel < full < 5 * kernel
    assert 2 * kernel < minimal < 3 * kernel
    picture = torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)
    array = picture.permute(1, 2, 0).contiguous().numpy()
    for depth in ("full", "minimal"):
        (found,) = load(bundle.folder, threads=1).predict(array, depth, threshold=0.0)
        (expected,) = detector.predict(picture, depth, threshold=0.0)
        torch.testing.assert_close(torch.from_numpy(found.scores), expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(found.boxes_xyxy), expected.boxes_xyxy, rtol=0, atol=1e-2)


def test_weights_of_another_family_are_loaded_whole_or_not_at_all(
    installed: Path, installs: Callable[[Path], None]
) -> None:
    installs(installed)
    detector = anydepth.build("spotter", num_classes=2)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    state = {key: torch.ones_like(value) for key, value in before.items()}
    spoilt = next(key for key, value in state.items() if value.is_floating_point())
    state[spoilt].view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=rf"1 of {len(state)} tensors hold NaN or infinity .{spoilt}"):
        anydepth.load_weights(detector, state)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    state[spoilt].view(-1)[0] = 1
    assert len(anydepth.load_weights(detector, state).loaded) == len(state)


@pytest.mark.slow
def test_options_of_other_packages_are_listed(
    installed: Path,
    installs: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installs(installed)
    monkeypatch.setattr(sys, "argv", ["anydepth-train", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    shown = capsys.readouterr().out.partition("== Values ==")[0]
    options = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert {"spotter", "detr_plain", "detr_tiny"} <= set(options["detector"].split(", "))
    assert "spotter" in options["losses"].split(", ")
    # What detector and data set choose, and pointers to options, is not among them.
    assert not {"family", "dataset_kind", "recipe/default", "augmentation/default"} & options.keys()


def test_without_its_entry_point_nothing_of_a_package_is_built(
    installed: Path, installs: Callable[[Path], None], tmp_path: Path
) -> None:
    """The same package, installed without allowing its targets: its preset composes and builds nothing."""
    closed = tmp_path / "site-packages"
    shutil.copytree(installed, closed)
    (points,) = closed.glob("*.dist-info/entry_points.txt")
    points.write_text(points.read_text().replace("[anydepth.targets]", "[somebody.else]"))
    installs(closed)
    with pytest.raises(TargetError, match=r"spotter.detector.SpotDetector is not among what a config"):
        anydepth.build("spotter", num_classes=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("spotter = spotter.conf", "spotter = spotter.gone", "No module named 'spotter.gone'"),
        (
            "plain = spotter.backbone:PLAIN",
            "plain = spotter.gone:PLAIN",
            "entry point plain = spotter.gone:PLAIN",
        ),
        ("plain = spotter.backbone:PLAIN", "basic = spotter.backbone:PLAIN", "has a backbone of this name"),
    ],
)
def test_a_broken_entry_point_is_named(
    installed: Path, installs: Callable[[Path], None], tmp_path: Path, old: str, new: str, message: str
) -> None:
    broken = tmp_path / "site-packages"
    shutil.copytree(installed, broken)
    (points,) = broken.glob("*.dist-info/entry_points.txt")
    assert old in points.read_text()
    points.write_text(points.read_text().replace(old, new))
    installs(broken)
    with pytest.raises(ValueError, match=re.escape(message)):
        (preset_folders(), list(all_backbones()))


def test_a_package_without_its_yaml_files_is_named(
    installed: Path,
    installs: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a package forgets its package data. A command ends with one message, not a traceback."""
    bare = tmp_path / "site-packages"
    shutil.copytree(installed, bare, ignore=shutil.ignore_patterns("*.yaml"))
    installs(bare)
    monkeypatch.setattr(sys, "argv", ["anydepth-train", "--help"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert "Error: entry point spotter = spotter.conf of anydepth.presets: got no yaml file" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_preset_is_one_file_in_a_folder_of_ones_own(run: Run, tmp_path: Path) -> None:
    presets = {
        "detector": "defaults: [detr_tiny]\nnum_queries: 20\ninput_size: [64, 64]\n",
        "data": f"defaults: [custom]\nroot: {tmp_path / 'bees'}\nbatch_size: 2\n",
    }
    for group, text in presets.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    shutil.copytree(REPOSITORY / "src" / "anydepth" / "data" / "sample", tmp_path / "bees")
    folder = tmp_path / "run"
    run(
        *("-m", "anydepth.train", f"--config-dir={tmp_path / 'conf'}", "detector=mine", "data=mine"),
        *(*SMALL, "curve.depths=[minimal]", f"hydra.run.dir={folder}"),
    )
    assert json.loads((folder / "depth_curve.json").read_text())["detector"] == "mine"
    # The file needs neither the preset nor the folder it lies in.
    assert anydepth.load(folder / "weights.safetensors").config["num_queries"] == 20
