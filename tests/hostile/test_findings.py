"""What hostile cases found, one test each: every one of these crashed, hung, or passed in silence before."""

import json
import math
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boundaries import COCO, VOC
from omegaconf import OmegaConf
from PIL import Image

import anydepth
from anydepth import zoo
from anydepth.config.compose import compose, instantiate
from anydepth.config.hydra_node import check_hydra_node
from anydepth.config.targets import MissingTargetError, TargetError, check_targets, find_target
from anydepth.data.coco.categories import read_categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.convert.dataset import write_coco
from anydepth.data.convert.folders import files_below
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError
from anydepth.data.fetch.archives import ArchiveError, unpack
from anydepth.depth import DepthError, DepthSpace
from anydepth.images import read_image
from anydepth.pictures.reading import ImageError
from anydepth.report.runs import UnusableRun, find_runs
from anydepth.runs import job
from anydepth.training.checkpointing.read import CheckpointError, read_checkpoint
from anydepth.utils.messages import short_repr
from anydepth.utils.yaml_text import YamlTextError, load_yaml
from anydepth.weights.files import WeightsError, read_state_dict
from small_networks import SMALL_DETECTOR

THOUSANDS_OF_DIGITS = "9" * 5000


# -- annotations -----------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for name in ("images/0.png", "images/sub/1.png", "outside.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    return tmp_path


def load(folder: Path, text: str) -> CocoIndex:
    (folder / "x.json").write_text(text, encoding="utf-8")
    return CocoIndex.load(folder / "x.json", folder / "images", report=lambda _: None)


def test_numbers_of_thousands_of_digits_are_a_damaged_json(coco: Path) -> None:
    text = json.dumps(COCO).replace('"id": ', f'"id": {THOUSANDS_OF_DIGITS}, "former": ')
    with pytest.raises(DataError, match=r"x\.json: not a json file"):
        load(coco, text)
    with pytest.raises(DataError, match=r"x\.json: not a json file"):
        read_categories(coco / "x.json")


def test_whole_numbers_that_no_float_holds_count_as_infinite(coco: Path) -> None:
    large = "1" + "0" * 400
    index = load(coco, json.dumps(COCO).replace('"bbox": [1,', f'"bbox": [{large},').replace("84", large))
    assert index.repairs.not_finite == 1
    index = load(coco, json.dumps(COCO).replace('"area": 84', f'"area": {large}'))
    assert index.areas.tolist() == [10.5 * 8, 600]


@pytest.mark.parametrize("value", ["1e308", "-1e308"])
@pytest.mark.filterwarnings("error")
def test_boxes_beyond_all_numbers_are_dropped_without_a_warning_of_numpy(coco: Path, value: str) -> None:
    index = load(coco, json.dumps(COCO).replace("[1, 2, 10.5, 8]", f"[{value}, {value}, 1e308, 1e308]"))
    assert index.repairs.outside == 1


@pytest.mark.parametrize("key", ["file_name", "name"])
def test_half_a_character_is_no_text(coco: Path, key: str) -> None:
    with pytest.raises(DataError, match=rf"'{key}' is '\\ud800', expected a text"):
        load(coco, re.sub(rf'"{key}": "[^"]+"', lambda _: f'"{key}": "\\ud800"', json.dumps(COCO), count=1))


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + "/y", "y/" + "x" * 5000])
def test_names_longer_than_any_file_are_missing_images(coco: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"1 of 2 images of .* are missing"):
        load(coco, json.dumps(COCO).replace('"0.png"', json.dumps(name)))


def test_categories_nested_without_end_are_a_damaged_json(coco: Path) -> None:
    (coco / "x.json").write_text('{"categories": ' + "[" * 100_000)
    with pytest.raises(DataError, match="not a json file"):
        read_categories(coco / "x.json")


def test_messages_about_long_and_deep_values_are_short(coco: Path) -> None:
    deep: Any = 0
    for _ in range(500):
        deep = [deep, "x" * 100]
    document = {**COCO, "annotations": [{**COCO["annotations"][0], "bbox": deep}]}
    with pytest.raises(
        DataError, match=r"annotation id 1: 'bbox' is \[\[\[.*, expected a list of 4 numbers"
    ) as caught:
        load(coco, json.dumps(document))
    assert len(str(caught.value).removeprefix(str(coco))) < 200


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname", "sub/../../outside.png", "..\\outside.png"]
)
def test_names_do_not_leave_the_image_folder(coco: Path, name: str) -> None:
    with pytest.raises(DataError, match="leaves the image folder"):
        load(coco, json.dumps(COCO).replace('"0.png"', json.dumps(name)))


def test_links_in_the_image_folder_are_the_users_own_and_are_followed(coco: Path) -> None:
    """``anydepth-data import --link`` builds data sets of such links."""
    (coco / "images" / "0.png").unlink()
    (coco / "images" / "0.png").symlink_to(coco / "outside.png")
    assert load(coco, json.dumps(COCO)).read_image(0).shape == (3, 20, 30)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    "xml",
    [
        b"<annotation><object>" + b"<a>" * 300_000,
        b'<?xml version="1.0" encoding="cp932"?>' + VOC,
        b'<?xml version="1.0" encoding="rot13"?>' + VOC,
    ],
    ids=["deep", "several bytes", "no encoding"],
)
def test_xmls_that_nest_or_spell_strangely_are_refused_at_once(voc: Path, xml: bytes) -> None:
    (voc / "a.xml").write_bytes(xml)
    with pytest.raises(DataError, match=r"a\.xml: not a Pascal VOC xml"):
        read_voc(voc)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "private" / "images").mkdir(parents=True)
    for folder in ("set", "private"):
        Image.new("RGB", (30, 20)).save(tmp_path / folder / "images" / "a.png")
        (tmp_path / folder / "labels").mkdir()
        (tmp_path / folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return tmp_path / "set"


def yaml_of(folder: Path, text: str) -> Path:
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('train: images\nnames: {"²": a}\n', "expected a list of names"),
        (f"train: images\nnames:\n  ? {THOUSANDS_OF_DIGITS}\n  : a\n", "expected a list of names"),
        ('train: images\nnames: [a]\nkpt_shape: ["²", 3]\n', "'kpt_shape' is"),
        ("train: " + "x" * 5000 + "\nnames: [a]\n", "'train' is xxx"),
        ("names: " + "[" * 5000, "not a YAML file .*nests too deep"),
        ('train: images\nnames: ["\\uD800"]\n', "cannot be encoded in UTF-8"),
        ("names: &me [*me]\n", "recursive node|contains itself"),
    ],
    ids=["digit", "digits", "keypoints", "long", "deep", "half", "itself"],
)
def test_strange_values_of_a_yaml_are_refused(yolo: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_yolo(yaml_of(yolo, text) / "data.yaml")


def billions(key: str) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join([*lines, f"{key}: *a11"])


def test_references_that_stand_for_billions_of_values_are_refused(yolo: Path) -> None:
    with pytest.raises(DataError, match="references expand to more than 200,000 values"):
        read_yolo(yaml_of(yolo, billions("names")))


@pytest.mark.parametrize(
    "text", ["train: ../private/images", "path: PRIVATE\ntrain: images", "train: list.txt"]
)
def test_a_yaml_of_others_reads_no_folder_but_its_own(yolo: Path, text: str) -> None:
    (yolo / "list.txt").write_text("../private/images/a.png\n")
    yaml_of(yolo, f"{text.replace('PRIVATE', str(yolo.parent / 'private'))}\nnames: [a]\n")
    with pytest.raises(DataError, match=r"leads to .*private.*outside the folder of data\.yaml.*--anywhere"):
        read_yolo(yolo)
    (image,) = read_yolo(yolo, anywhere=True).splits["train"]
    assert image.path == yolo.parent / "private" / "images" / "a.png"


def test_links_in_a_circle_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    for number in range(2):
        (tmp_path / "a" / f"again{number}").symlink_to(tmp_path, target_is_directory=True)
    assert [path.name for path in files_below(tmp_path)] == ["x"]


def test_file_names_that_are_no_text_are_refused(yolo: Path) -> None:
    try:
        (yolo / "images" / "a.png").rename(yolo / "images" / os.fsdecode(b"a\xff.png"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (yolo / "labels" / os.fsdecode(b"a\xff.txt")).write_text("0 0.5 0.5 0.5 0.5\n")
    dataset = read_yolo(yaml_of(yolo, "train: images\nnames: [a]\n"))
    with pytest.raises(DataError, match=r"file name .*udcff.* is not UTF-8; rename it"):
        write_coco(dataset, yolo / "out")
    assert not (yolo / "out").exists()


# -- archives --------------------------------------------------------------------------------------------


def test_a_million_empty_files_are_too_many(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}", b"")
    with pytest.raises(ArchiveError, match="unpacks to more than 20,000 bytes"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=20_000)


def test_an_archive_whose_names_are_no_text_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        archive.writestr("ä", b"x")  # Not ASCII, so that the entry promises UTF-8.
    path = tmp_path / "packed"
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff"))
    with pytest.raises(ArchiveError, match="packed: damaged"):
        unpack(path, tmp_path / "out", limit_bytes=20_000)


# -- pictures --------------------------------------------------------------------------------------------


def test_postscript_is_not_given_to_ghostscript_whatever_its_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg", "EPS")
    with pytest.raises(ImageError, match="in an unknown format"):
        read_image(tmp_path / "a.jpg")


def test_a_wrong_suffix_does_no_harm(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.jpg", "PNG")
    assert read_image(tmp_path / "a.jpg")[:, 0, 0].tolist() == [1, 2, 3]


def header_of(width: int, height: int) -> bytes:
    """A bitmap that says its size and holds no pixel."""
    return struct.pack("<2sIHHIIiiHH", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24) + bytes(24)


@pytest.mark.parametrize("pillow", [89_478_485, None], ids=["its usual limit", "turned off by a library"])
@pytest.mark.parametrize(("limit", "side"), [(None, 20_000), ("5000000", 3000)])
def test_a_picture_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, side: int, pillow: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow)
    monkeypatch.delenv("ANYDEPTH_MAX_IMAGE_PIXELS", raising=False)
    if limit:
        monkeypatch.setenv("ANYDEPTH_MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    (tmp_path / "a.bmp").write_bytes(header_of(side, side))
    with pytest.raises(ImageError, match=r"decompression bomb.*ANYDEPTH_MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "a.bmp")


def test_the_limit_of_pixels_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="decompression bomb"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("ANYDEPTH_MAX_IMAGE_PIXELS", "100")
    assert read_image(tmp_path / "a.png").shape == (3, 10, 10)
    monkeypatch.setenv("ANYDEPTH_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ImageError, match="ANYDEPTH_MAX_IMAGE_PIXELS='many', expected a number of pixels"):
        read_image(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "a.png")
    assert stat.S_ISFIFO((tmp_path / "a.png").stat().st_mode)
    with pytest.raises(ImageError, match=r"a\.png: not a regular file"):
        read_image(tmp_path / "a.png")


# -- depths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [f"none@{THOUSANDS_OF_DIGITS}", 5, None, ["full"], 0.5])
def test_whatever_is_no_depth_is_a_depth_error(depth: Any) -> None:
    space = DepthSpace(stages=("neck",), decoder_layers=6, minimal_decoder_layers=4)
    with pytest.raises(DepthError, match="Allowed: full, minimal"):
        space.parse(depth)
    if not isinstance(depth, list):
        with pytest.raises(DepthError, match="Allowed: full, minimal"):
            space.parse_list(depth)


# -- weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return zoo.save(
        zoo.build("detr_tiny", 2, **SMALL_DETECTOR), tmp_path_factory.mktemp("ours") / "w.safetensors"
    )


def described(ours: Path, folder: Path, **config: object) -> Path:
    """Our weights with another description."""
    data = ours.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header["__metadata__"]
    names = config.pop("class_names", None)
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **config})
    if names is not None:
        metadata["class_names"] = names if isinstance(names, str) else json.dumps(names)
    text = json.dumps(header).encode()
    path = folder / "other.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_dim": 60_000, "neck_ffn_dim": 60_000}, "do not fit the detector"),
        ({"hidden_dim": 10**12}, "hidden_dim'=1000000000000; at most 65536"),
        ({"hidden_dim": 10**400}, "at most 65536"),
        ({"neck_expansion": math.nan}, "neck_expansion'=nan"),
        ({"input_size": [65536, 65536]}, r"'input_size'=\[65536, 65536\]; at most 8192"),
        ({"num_queries": 60_000}, "num_queries'=60000; at most 10000"),
        ({"blocks": [2, 2, 2, 60_000]}, "repeated parts .* holds only"),
        ({"widths": [8] * 1000}, "1000 values of 'widths'"),
        ({"widths": None}, "its detector cannot be built"),
        ({"heads": "x"}, "its detector cannot be built"),
        ({"class_names": 5}, "description of the detector is damaged"),
        ({"class_names": "ab"}, "description of the detector is damaged"),
        ({"class_names": [{"a": 1}, 2]}, "description of the detector is damaged"),
        ({"class_names": []}, "0 classes; allowed are 1 to 32767"),
        ({"class_names": "[" * 100_000}, "description of the detector is damaged"),
    ],
    ids=str,
)
def test_a_description_that_asks_for_more_than_the_weights_is_refused(
    ours: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(zoo.ZooError, match=message):
        anydepth.load(described(ours, tmp_path, **config))


def test_compressed_and_overlapping_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {"detector.a": torch.ones(9)}, "detector": {}}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    for reader, error in ((read_state_dict, WeightsError), (read_checkpoint, CheckpointError)):
        with pytest.raises(error, match=r"is compressed, which torch\.save never does"):
            reader(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", bytes(1000))
        for number in range(9):
            entry = zipfile.ZipInfo(f"x/data/{number}")
            entry.header_offset = entry.CRC = 0
            archive.NameToInfo[entry.filename] = entry
            entry.file_size = entry.compress_size = 1000
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match="records overlap"):
        read_state_dict(path)


def test_tar_archives_are_refused_before_torch_unpacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", pytest.fail)
    old = tmp_path / "old.pt"
    with tarfile.open(old, "w") as tar:
        tar.add(__file__, "storages")
    zeros = tmp_path / "zeros.pt"
    zeros.write_bytes(bytes(2000))
    both = tmp_path / "both.pt"
    both.write_bytes(old.read_bytes())
    with zipfile.ZipFile(both, "a") as archive:
        archive.writestr("x/data.pkl", b"")
    for path in (old, zeros, both):
        with pytest.raises(
            WeightsError, match="tar archive, as the first versions of torch wrote, or filled"
        ):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.ones(1).as_strided((2**40, 3), (0, 0)), "repeats few numbers"),
        (torch.ones(2).to_sparse(), "sparse, quantised or nested"),
        (torch.ones(2, dtype=torch.complex64), "complex numbers"),
        (torch.ones(2, device="meta"), "a shape but no numbers"),
    ],
    ids=["repeated", "sparse", "complex", "meta"],
)
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path: Path, tensor: Any, problem: str) -> None:
    torch.save({"a": tensor}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=rf"its tensor 'a' .*{problem}"):
        read_state_dict(tmp_path / "x.pt")


def test_keys_of_any_length_are_refused(tmp_path: Path) -> None:
    torch.save({"a" * 2000: torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="a name of 2,000 characters"):
        read_state_dict(tmp_path / "x.pt")
    torch.save({10**5000: 1}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="got the entries a number of 16610 bits"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("pickled", [b"\x80\x02R.", b"\x80\x02h\x09.", b"\x80\x02}q\x00(K\x01u."])
def test_pickles_that_make_no_sense_are_damaged_files(tmp_path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/version", "3\n")
        archive.writestr("x/data.pkl", pickled)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "change",
    [{"detector": []}, {"class_names": 5}, {"state_dict": [1]}, {"state_dict": {3: 4}}, {"detector": {4: 1}}],
    ids=str,
)
def test_a_checkpoint_with_parts_of_another_kind_is_none_of_ours(tmp_path: Path, change: Any) -> None:
    torch.save({"state_dict": {}, "detector": {}, "class_names": []} | change, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of anydepth-train"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("change", ["ten thousand digits", "kernel of one axis", "parts that do not fit"])
def test_weights_of_strange_names_and_shapes_are_refused_whole(change: str) -> None:
    detector = zoo.build("detr_tiny", 2, **SMALL_DETECTOR)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    weights = {key: value + 1 for key, value in before.items()}
    if change == "ten thousand digits":
        weights[f"backbone.stages.0.essential.{THOUSANDS_OF_DIGITS}.x"] = torch.ones(1)
        del weights["backbone.stages.0.essential.0.conv1.conv.weight"]
    else:
        key = next(key for key in weights if key.endswith("conv1.conv.weight"))
        weights[key] = torch.ones(3)
    with pytest.raises(WeightsError):
        zoo.load_weights(detector, weights)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


# -- configurations --------------------------------------------------------------------------------------


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYDEPTH_ALLOW_TARGETS", raising=False)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.open",
        "anydepth.runs.provenance.subprocess.run",
        "anydepth.runs.provenance._git",
        "anydepth.utils.files.write_text",
        "anydepth.data.fetch.archives.unpack",
        "anydepth.results.video.VideoWriter",
        "anydepth.data.datamodule.Path",
        "anydepth.training.callbacks.ema.WeightAveraging.__init__.__globals__",
        "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree",
        "lightning.pytorch.cli.LightningCLI",
        "mypackage.Thing",
    ],
)
def test_targets_that_are_not_allowed_are_refused(name: str) -> None:
    with pytest.raises(
        TargetError, match=rf"_target_ {re.escape(name)} is not among .*ANYDEPTH_ALLOW_TARGETS={name}"
    ):
        find_target(name)


@pytest.mark.usefixtures("strict")
def test_nothing_is_built_where_one_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    monkeypatch.setattr("anydepth.data.augment.hsv.HSVJitter.__init__", lambda self, **_: built.append(self))
    good = {"_target_": "anydepth.data.augment.hsv.HSVJitter"}
    config = OmegaConf.create(
        {"_target_": "anydepth.data.augment.hsv.HSVJitter", "x": good, "y": [{"z": "${bad}"}]}
    )
    config.bad = {"_target_": "os.system", "_args_": ["true"]}
    with pytest.raises(TargetError, match=r"os\.system") as caught:
        instantiate(config)
    assert "(in the configuration key `y[0].z`)" in caught.value.__notes__
    assert built == []


def test_only_the_environment_allows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYDEPTH_ALLOW_TARGETS", "fractions.*, json.dumps")
    assert str(instantiate({"_target_": "fractions.Fraction", "numerator": 3})) == "3"
    assert find_target("json.dumps") is json.dumps
    with pytest.raises(TargetError, match=r"It leads to re\._?compile|It leads to re\.compile"):
        find_target("fractions.re.compile")
    with pytest.raises(MissingTargetError, match="check the spelling"):
        find_target("fractions.Gone")


@pytest.mark.usefixtures("strict")
def test_all_targets_of_our_own_configuration_are_allowed() -> None:
    for detector in ("detr_tiny", "yolo_tiny"):
        for extra in ((), ("data=custom", "data.root=x"), ("logger=wandb",)):
            config = compose("train", [f"detector={detector}", "paths.output_dir=x", *extra])
            config = OmegaConf.to_container(config, resolve=False)
            assert check_targets(config) > 10


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"callbacks": {"x": {"_target_": "os.system"}}}, r"os\.system"),
        ({"callbacks": {"x": "${oc.create:{_target_: os.system}}"}}, r"os\.system"),
        ({"callbacks": {"x": "${hydra.y}"}, "y": {"_target_": "os.system"}}, r"os\.system"),
        ({"sweeper": {"sampler": {"_target_": "torch.load", "f": "x"}}}, r"torch\.load"),
        ({"sweeper": {"custom_search_space": "os.system"}}, r"os\.system"),
        ({"job_logging": {"handlers": {"x": {"()": "os.system"}}}}, "are not allowed in logging"),
        ({"job_logging": {"handlers": {"x": {"class": "evil.Handler"}}}}, "allowed are colorlog"),
        ({"job": {"env_set": {"ANYDEPTH_ALLOW_TARGETS": "*"}}}, "sets environment variables"),
        ({"launcher": {"setup": ["touch x"]}}, "allowed only on the command line"),
        ({"callbacks": "${hydra.y}", "y": {}}, "write its settings out"),
    ],
    ids=str,
)
def test_what_hydra_itself_would_do_is_checked(node: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        check_hydra_node(OmegaConf.create({"hydra": node}))


def test_commands_of_launchers_may_stand_on_the_command_line() -> None:
    node = {"launcher": {"setup": ["module load cuda"]}, "overrides": {"hydra": ["hydra.launcher.setup=[x]"]}}
    check_hydra_node(OmegaConf.create({"hydra": node}))


@pytest.mark.parametrize(
    "text",
    ["x: 2024-99-99", "x: 0x_", "? [a]\n: b", "x: " + THOUSANDS_OF_DIGITS, "&a [*a]", "[" * 3000, "x: \t@"],
)
def test_malformed_yaml_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(YamlTextError):
        load_yaml(text)


@pytest.mark.parametrize(
    "text", [billions("seed"), "x: 2024-99-99", "&a {x: *a}"], ids=["billions", "date", "itself"]
)
def test_a_hostile_config_of_a_run_folder_is_a_damaged_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    (run,) = find_runs([tmp_path])[1]
    assert isinstance(run, UnusableRun)
    assert "config.yaml is damaged" in run.reason
    assert job._read_config(tmp_path) == {}


def test_a_saved_config_does_not_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "my password")
    (tmp_path / "config.yaml").write_text("seed: ${oc.env:SECRET}\n")
    assert job._read_config(tmp_path) == {"seed": "${oc.env:SECRET}"}
    assert "password" not in repr(find_runs([tmp_path]))


def test_brief_values_cost_little() -> None:
    shared: list[object] = []
    for _ in range(60):
        shared = [shared, shared]
    assert len(short_repr(shared)) <= 80
    assert short_repr(np.float64(3)) in ("3.0", "np.float64(3.0)")
