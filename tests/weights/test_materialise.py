"""Networks without memory that are filled with weights: what is built again, and what is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import anydepth
from anydepth import zoo
from anydepth.detector import Detector
from anydepth.weights.materialise import materialise
from small_networks import SMALL_YOLO


class _Plain(nn.Module):
    """Everything it needs is in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("scale", torch.full((2,), 3.0))

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values) * self.scale


class _WithUnsavedBuffer(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.arange(2.0), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) + self.offset


class _WithTensorInAnObject(_Plain):
    def __init__(self) -> None:
        super().__init__()
        offset = torch.arange(2.0)
        self.add = {"offset": [lambda values: values + offset]}

    def forward(self, values: Tensor) -> Tensor:
        return self.add["offset"][0](super().forward(values))


class _WithOneTensorTwice(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Linear(2, 2)
        self.same.weight = self.layer.weight


def _build_on_meta(kind: type[_Plain]) -> _Plain:
    with torch.device("meta"):
        return kind()


@pytest.mark.parametrize("kind", [_Plain, _WithUnsavedBuffer, _WithTensorInAnObject, _WithOneTensorTwice])
def test_a_filled_network_computes_what_a_built_one_does(kind: type[_Plain]) -> None:
    wanted = kind()
    found = materialise(kind, _build_on_meta(kind), wanted.state_dict())
    values = torch.rand(3, 2)
    assert torch.equal(found(values), wanted(values))
    assert [parameter.requires_grad for parameter in found.parameters()] == [
        parameter.requires_grad for parameter in wanted.parameters()
    ]
    if isinstance(found, _WithOneTensorTwice):
        assert found.same.weight is found.layer.weight


@pytest.mark.parametrize(
    ("kind", "times"),
    [(_Plain, 0), (_WithUnsavedBuffer, 1), (_WithTensorInAnObject, 1), (_WithOneTensorTwice, 1)],
)
def test_only_what_weights_cannot_fill_is_built_again(kind: type[_Plain], times: int) -> None:
    built: list[_Plain] = []

    def build() -> _Plain:
        built.append(kind())
        return built[-1]

    materialise(build, _build_on_meta(kind), kind().state_dict())
    assert len(built) == times


def test_weights_are_copied_and_converted() -> None:
    weights = {key: value.half() for key, value in _Plain().state_dict().items()}
    found = materialise(_Plain, _build_on_meta(_Plain), weights)
    assert found.layer.weight.dtype == torch.float32
    same = _Plain().state_dict()
    found = materialise(_Plain, _build_on_meta(_Plain), same)
    same["scale"].zero_()
    assert found.scale.tolist() == [3, 3]


@pytest.mark.parametrize("family", ["detr", "yolo"])
def test_detectors_of_this_package_are_built_once(
    family: str, build_small: Callable[..., Detector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = build_small() if family == "detr" else anydepth.build("yolo_tiny", 2, **SMALL_YOLO)
    path = anydepth.save(detector, tmp_path / "weights.safetensors")
    find, built = zoo.find_builder, []

    def counted(target: str) -> Callable[..., Detector]:
        built.append(target)
        return find(target)

    monkeypatch.setattr(zoo, "find_builder", counted)
    loaded = anydepth.load(path)
    assert built == [detector.builder]
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
