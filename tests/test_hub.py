"""Repositories of the Hugging Face hub: names, downloads and uploads through the real client, and errors."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialize

import anydepth
from anydepth import hub, zoo
from anydepth.conversion import convert
from anydepth.detector import Detector
from anydepth.detr.weights import layouts
from anydepth.weights.files import WeightsError
from hub_server import HubServer, commit_hash, serve_hub
from small_networks import SMALL_DETECTOR
from written_weights import written_as

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with serve_hub(monkeypatch, tmp_path / "home") as running:
        yield running


def _weights(path: Path) -> Path:
    detector = zoo.build("detr_tiny", 2, **SMALL_DETECTOR)
    detector.reset_classes(("cat", "dog"))
    return zoo.save(detector, path)


def test_weights_are_downloaded_once_and_found_without_a_connection(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = _weights(tmp_path / "weights.safetensors").read_bytes()
    server.repositories["ann/boats"] = [{"weights.safetensors": data, "run.py": b"raise SystemExit"}]
    detector = anydepth.load("ann/boats", cache_dir=tmp_path / "cache")
    assert detector.class_names == ("cat", "dog")
    anydepth.load("ann/boats", cache_dir=tmp_path / "cache")
    assert server.downloaded == ["weights.safetensors"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert anydepth.load("ann/boats", cache_dir=tmp_path / "cache").num_classes == 2
    with pytest.raises(
        hub.HubError, match="not in the cache, and the hub cannot be reached or HF_HUB_OFFLINE"
    ):
        anydepth.load("ann/other", cache_dir=tmp_path / "cache")


def test_a_revision_is_a_commit_of_its_own(server: HubServer, tmp_path: Path):
    server.repositories["ann/boats"] = [{"weights.safetensors": b"old"}, {"weights.safetensors": b"new"}]
    first = hub.find_file("ann/boats", hub.WEIGHTS, revision=commit_hash(0))
    assert first.read_bytes() == b"old"
    assert hub.find_file("ann/boats", hub.WEIGHTS).read_bytes() == b"new"
    with pytest.raises(hub.HubError, match="it has no revision 'v2'; give a branch, tag or commit"):
        hub.find_file("ann/boats", hub.WEIGHTS, revision="v2")


def test_local_paths_win(server: HubServer, tmp_path: Path):
    (tmp_path / "ann").mkdir()
    _weights(tmp_path / "weights.safetensors").rename(tmp_path / "ann" / "boats")
    assert anydepth.load("ann/boats").num_classes == 2
    with pytest.raises(ValueError, match="got revision='v1' for ann/boats, which is read as a local path"):
        anydepth.load("ann/boats", revision="v1")
    with pytest.raises(ValueError, match=r"got cache_dir=.* for .*cats, which is read as a local path"):
        anydepth.load(Path("ann/cats"), cache_dir=tmp_path)
    assert server.downloaded == []


def test_a_wrong_path_names_both_readings(server: HubServer):
    with pytest.raises(FileNotFoundError, match=r"runs/first: no such local path, and as a repository of .*"):
        anydepth.load("runs/first")
    server.repositories["ann/text"] = [{"model.bin": b""}]
    with pytest.raises(
        hub.HubError, match=r"it holds no weights\.safetensors, so that anydepth-export did not"
    ):
        anydepth.load("ann/text")
    # Texts that cannot be names of a repository are not looked up.
    for path in ("runs/first.safetensors", "first", "./runs/first", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such weights file"):
            anydepth.load(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.HubError, match=r"ann/boats: no such local path, .*install the extra `hub`"):
        anydepth.load("ann/boats")


def test_files_are_published_in_one_commit(server: HubServer, tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    server.repositories["ann/boats"] = [{"old.onnx": b"", "notes.txt": b"mine", "bundle.json": b"{}"}]
    server.private["ann/boats"] = False
    address = hub.publish("ann/boats", {"full.onnx": first, "bundle.json": second}, private=True)
    assert address == f"{server.url}/ann/boats/commit/{commit_hash(1)}"
    # A graph of a former bundle goes; what somebody else put there stays.
    assert server.repositories["ann/boats"][1:] == [
        {"full.onnx": b"1", "bundle.json": b"2", "notes.txt": b"mine"}
    ]
    assert server.private["ann/boats"] is False
    # Without a bundle in it, its graphs are of something else.
    server.repositories["ann/text"] = [{"old.onnx": b"theirs"}]
    hub.publish("ann/text", {"full.onnx": first}, private=True)
    assert set(server.repositories["ann/text"][-1]) == {"old.onnx", "full.onnx"}
    hub.publish("ann/new", {"full.onnx": first}, private=True)
    assert server.private["ann/new"] is True


def test_publishing_is_checked_ahead(server: HubServer, monkeypatch: pytest.MonkeyPatch):
    hub.check_publishing("ann/boats")
    with pytest.raises(ValueError, match="got hub='boats', expected the name of a repository"):
        hub.check_publishing("boats")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        hub.HubError, match="ann/boats: publishing needs a login: log in with `hf auth login`"
    ):
        hub.check_publishing("ann/boats")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(hub.HubError, match="the Hugging Face hub refused the request"):
        hub.check_publishing("ann/boats")


def _rtdetr_of_transformers(**config: object) -> tuple[Detector, dict[str, bytes]]:
    """A fixed detector, and the files that transformers would write of it."""
    detector = zoo.build("detr_tiny", 3, any_depth=False, **SMALL_DETECTOR)
    heads = {"decoder_attention_heads": 2, "encoder_attention_heads": 2}
    description = {"model_type": "rt_detr", **heads, **config}
    return detector, {
        "model.safetensors": serialize(written_as(detector, layouts.TRANSFORMERS)),
        "config.json": json.dumps(description).encode(),
    }


def test_a_repository_of_transformers_is_converted_with_its_class_names(server: HubServer):
    source, files = _rtdetr_of_transformers(id2label={"0": "sofa", "1": "cat", "2": "remote"})
    server.repositories["ann/rtdetr"] = [{**files, "run.py": b"raise SystemExit"}]
    made = convert("ann/rtdetr", "detr_tiny", **SMALL_DETECTOR)
    assert made.detector.class_names == ("sofa", "cat", "remote")
    assert sorted(server.downloaded) == ["config.json", "model.safetensors"]
    key = "decoder.enc_score_head.bias"
    bias = source.state_dict()[key]
    assert torch.equal(made.detector.state_dict()[key], bias)
    other = zoo.build("detr_tiny", 3, **SMALL_DETECTOR)
    other.reset_classes(("remote", "couch", "dog"))
    before = other.state_dict()[key].clone()
    report = zoo.load_weights(other, "ann/rtdetr")
    assert "2 of 3 are in the file (couch = sofa)" in str(report)
    assert torch.equal(other.state_dict()[key], torch.stack((bias[2], bias[0], before[2])))


@pytest.mark.parametrize(
    "labels",
    [
        None,
        [],
        {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
        {"0": "a", "2": "b"},
        {"0": "a", "1": "a"},
        {"0": 5},
    ],
    ids=str,
)
def test_classes_that_nobody_named_are_numbers(server: HubServer, labels: object):
    _, files = _rtdetr_of_transformers(id2label=labels)
    server.repositories["ann/rtdetr"] = [files]
    assert convert("ann/rtdetr", "detr_tiny", **SMALL_DETECTOR).detector.class_names == ("0", "1", "2")


def test_what_a_repository_says_of_its_network_counts(server: HubServer):
    _, files = _rtdetr_of_transformers(decoder_method="discrete", model_type="rt_detr_v2")
    server.repositories["ann/rtdetr"] = [files]
    with pytest.raises(WeightsError, match="decoder_method='discrete'"):
        convert("ann/rtdetr", "detr_tiny", **SMALL_DETECTOR)
    # Without a description, its name may say so.
    server.repositories["ann/rtdetrv2_dsp"] = [{"model.safetensors": files["model.safetensors"]}]
    with pytest.raises(WeightsError, match=r"discrete sampling \(dsp\)"):
        convert("ann/rtdetrv2_dsp", "detr_tiny", **SMALL_DETECTOR)


def test_a_repository_without_weights_is_named(server: HubServer):
    server.repositories["ann/yolo"] = [{"yolov12n.pt": b""}]
    with pytest.raises(hub.MissingFileError, match=r"ann/yolo: .* holds none of model\.safetensors, "):
        convert("ann/yolo")
