"""Bundles of machine code: detections, shared weights, and refusal of code that nobody vouched for."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import anydepth
from anydepth.commands import benchmark
from anydepth.deploy import load
from anydepth.deploy.export import aot
from anydepth.deploy.export.bundle_writer import file_entry, write_bundle
from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.runtime import package_file
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.engines import aotinductor_engine
from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions
from anydepth.deploy.runtime.package_file import TABLE, processor_instructions, read_table
from anydepth.deploy.task import open_bundle
from anydepth.depth import DepthConfig
from anydepth.detector import Detector
from small_networks import SMALL_DETECTOR, SMALL_YOLO

IMAGES = np.random.default_rng(0).random((5, 3, 64, 64), np.float32)


def build(name: str) -> Detector:
    torch.manual_seed(0)
    return anydepth.build(name, 3, **(SMALL_YOLO if name == "yolo_tiny" else SMALL_DETECTOR)).eval()


class Loaded:
    """Stands for a package that PyTorch loaded: the scores are a mean of the images times a constant."""

    def __init__(self) -> None:
        self.constants: dict[str, torch.Tensor] = {}

    def get_constant_fqns(self) -> list[str]:
        return ["detector.weight"]

    def load_constants(self, constants: dict[str, torch.Tensor], **_: object) -> None:
        self.constants = constants

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.is_contiguous()
        scores = images.mean(dim=(2, 3))[:, None] * self.constants["detector.weight"].sum()
        return images.new_zeros(images.shape[0], 1, 4), scores


class OneWeight(nn.Module):
    """A network of one kernel, which lies in memory with its channels last."""

    def __init__(self) -> None:
        super().__init__()
        values = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
        self.weight = nn.Parameter(values.to(memory_format=torch.channels_last), requires_grad=False)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the compiler, which takes half a minute, by a package without a library."""

    def package(program: object, *, package_path: str, inductor_configs: object) -> None:
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.writestr("package/data/model.wrapper.cpp", "// /home/somebody")
            archive.writestr("package/data/model.wrapper.so", b"\x7fELF")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: Loaded())
    monkeypatch.setattr(aot, "CandidatesOnly", lambda detector, depth, grid: _Network(detector))


class _Network(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = OneWeight()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = images.mean(dim=(2, 3))[:, None] * self.detector.weight.sum()
        return images.new_zeros(images.shape[0], 1, 4), scores


@pytest.fixture
def folder(tmp_path: Path, compiled: None) -> Path:
    write_bundle(
        build("yolo_tiny"), _depths("full", "minimal"), tmp_path / "b", graph_format="torch", engine=None
    )
    return tmp_path / "b"


def _depths(*names: str) -> list[DepthConfig]:
    space = build("yolo_tiny").depth_space
    return [space.parse(name) for name in names]


def _edit(folder: Path, name: str, **changes: object) -> None:
    """Change the table of a package, and its hash in the description."""
    path = folder / name
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    key = next(one for one in members if one.endswith(TABLE))
    members[key] = json.dumps({**json.loads(members[key]), **changes}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for one, content in members.items():
            archive.writestr(one, content)
    description = json.loads((folder / "bundle.json").read_text())
    description["files"][name] = file_entry(path)
    (folder / "bundle.json").write_text(json.dumps(description))


def test_packages_share_the_weights_and_hold_no_sources(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert [entry.graph for entry in bundle.depths] == ["full.pt2", "minimal.pt2"]
    assert bundle.files["weights.bin"].bytes == bundle.check_graph("full.pt2") == 4 * 2 * 3 * 4 * 5
    with zipfile.ZipFile(folder / "full.pt2") as archive:
        assert archive.namelist() == ["package/data/model.wrapper.so", f"package/{TABLE}"]
    card = (folder / "README.md").read_text()
    assert "**Holds machine code**" in card
    assert f"Compiled by PyTorch {torch.__version__.partition('+')[0]} for " in card
    assert "trust_code=True" in card
    assert "not torch" not in card


def test_constants_are_read_in_their_own_layout(folder: Path) -> None:
    table = read_table((folder / "full.pt2").read_bytes())
    (weight,) = aotinductor_engine._read_constants(folder / "weights.bin", table.constants).values()
    expected = OneWeight().weight
    assert torch.equal(weight, expected)
    assert weight.stride() == expected.stride() == (60, 1, 15, 3)


def test_code_runs_only_for_those_who_trust_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ({}, {"engine": "aotinductor"}, {"trust_code": False}, {"trust_code": "yes"}):
        with pytest.raises(EngineError, match=r"holds machine code.*trust_code=true"):
            load(folder, **options)
    with pytest.raises(EngineError, match="holds machine code"):
        aotinductor_engine.open_session(folder / "full.pt2", EngineOptions())
    with pytest.raises(EngineError, match="holds machine code"):
        benchmark.run(benchmark.parse([str(folder), "memory=false", "seconds=1e-9"]))
    common = {"engine": "auto", "device": "auto", "precision": "fp32", "threads": None}
    with pytest.raises(EngineError, match="holds machine code"):
        open_bundle(folder, **common)
    assert open_bundle(folder, trust_code=True, **common).engine == "aotinductor"
    detector = load(folder, trust_code=True, threads=torch.get_num_threads())
    boxes, scores = detector.run(IMAGES[:, :, ::-1], "minimal")
    assert boxes.shape == (5, 1, 4)
    weight = np.arange(120.0).sum()
    np.testing.assert_allclose(scores[:, 0], IMAGES.mean(axis=(2, 3)) * weight, rtol=1e-5)
    benchmark.run(benchmark.parse([str(folder), "trust_code=true", "memory=false", "seconds=1e-9"]))
    assert "aotinductor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "1.0.0"}, "compiled by PyTorch 1.0.0, and here is"),
        ({"machine": "pdp11"}, "compiled for processors pdp11"),
        ({"instructions": ["sse", "avx9000"]}, "instructions .*avx9000"),
    ],
)
def test_another_pytorch_or_processor_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    _edit(folder, "full.pt2", **change)
    detector = load(folder, trust_code=True)
    with pytest.raises(EngineError, match=message):
        detector.open("full")
    detector.open("minimal")


def _constant(**changes: object) -> dict[str, object]:
    constant = {"name": "a", "offset": 0, "length": 480, "type": "float32", "size": [120], "stride": [1]}
    return {**constant, **changes}


@pytest.mark.parametrize(
    ("constant", "error"),
    [
        (_constant(offset=64), BundleError),
        (_constant(length=2**40), BundleError),
        (_constant(offset=-4), BundleError),
        (_constant(type="void"), BundleError),
        (_constant(size=[2, 60]), BundleError),
        (_constant(size=[1.5]), BundleError),
        (_constant(size=[121]), EngineError),
        (_constant(stride=[2]), EngineError),
    ],
)
def test_constants_outside_the_weights_are_refused(
    folder: Path, constant: dict[str, object], error: type[Exception]
) -> None:
    _edit(folder, "full.pt2", constants=[constant])
    with pytest.raises(error, match=r"full\.pt2"):
        load(folder, trust_code=True).open("full")


def test_a_file_that_is_no_package_is_refused(folder: Path) -> None:
    (folder / "full.pt2").write_bytes(b"no archive")
    description = json.loads((folder / "bundle.json").read_text())
    description["files"]["full.pt2"] = file_entry(folder / "full.pt2")
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match="not a readable graph in the format torch"):
        load(folder, trust_code=True).open("full")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"graph": "one"}, "got graph=one and selection=runtime with format=torch"),
        ({"selection": "graph"}, "got graph=each and selection=graph with format=torch"),
        ({"engine": "onnxruntime"}, "got engine=onnxruntime for a bundle of graph_format=torch"),
    ],
)
def test_what_packages_cannot_do_is_refused_before_the_export(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises((ExportError, EngineError), match=message):
        write_bundle(build("yolo_tiny"), _depths("full"), tmp_path / "b", graph_format="torch", **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_missing_compiler_and_an_unknown_processor_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> str:
        raise RuntimeError("no working C++ compiler found")

    with monkeypatch.context() as patch:
        patch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
        with pytest.raises(ExportError, match=r"install g\+\+"):
            aot.check_compiler()
    monkeypatch.setattr(package_file, "_CPU_INFO", tmp_path / "none")
    assert processor_instructions() == ()


def test_instructions_are_those_of_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma hypervisor md_clear\n")
    monkeypatch.setattr(package_file, "_CPU_INFO", tmp_path / "cpuinfo")
    assert processor_instructions() == ("avx2", "fma", "sse4_2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo_tiny", "detr_tiny"])
def test_machine_code_detects_what_pytorch_detects(name: str, tmp_path: Path) -> None:
    detector = build(name)
    depth = detector.depth_space.minimal
    bundle = write_bundle(detector, [depth], tmp_path / "b", graph_format="torch")
    assert bundle.depths[0].equality_engine == "aotinductor"
    assert bundle.depths[0].equality["found"] == 1
    deployed = load(tmp_path / "b", trust_code=True, threads=1)
    for number in (1, 2, 5):
        with torch.no_grad():
            images = torch.from_numpy(IMAGES[:number])
            wanted = detector.candidates(detector(images, depth=depth))
        boxes, scores = deployed.run(IMAGES[:number], depth)
        np.testing.assert_allclose(boxes, wanted.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)
