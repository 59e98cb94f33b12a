"""The five places where files and texts of strangers come in, each as a function of bytes that must not fail.

A case is bytes; the first one says which reader gets the rest. A reader may refuse them with the error class
that it documents, or give something that holds what it promises; anything else is a defect.
"""

import contextlib
import importlib
import io
import json
import os
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations import NUMBERS, hostile_value, strangely_changed
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from anydepth import zoo
from anydepth.config.compose import instantiate
from anydepth.config.hydra_node import check_hydra_node
from anydepth.config.targets import TargetError, check_targets
from anydepth.data.coco.categories import read_categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.orientation import read_picture_sizes
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError
from anydepth.depth import DepthCosts, DepthError, DepthSpace
from anydepth.images import decode_image
from anydepth.pictures.reading import ImageError, max_pixels
from anydepth.report.runs import ReportError, find_runs
from anydepth.training.checkpointing.read import (
    CheckpointError,
    check_resumable,
    detector_weights,
    read_checkpoint,
)
from anydepth.utils.yaml_text import YamlTextError, load_yaml
from anydepth.weights.files import WeightsError, read_state_dict
from small_networks import SMALL_DETECTOR

SECRET_VARIABLE = "ANYDEPTH_FUZZ_SECRET"
SECRET = "what no file may read"


@dataclass(frozen=True)
class Boundary:
    """One place where bytes come in.

    Attributes:
        seeds: Bytes that are as they should be, or nearly.
        run: Reads bytes; True where they were accepted, False where they were refused as documented.
        invent: Hostile bytes that know the format.
        words: What changed bytes may get inserted.
        files: Names in the package whose coverage guides the search.
    """

    seeds: tuple[bytes, ...]
    run: Callable[[bytes], bool]
    invent: Callable[[random.Random], bytes]
    words: tuple[bytes, ...]
    files: tuple[str, ...]


def boundary(name: str, folder: Path) -> Boundary:
    """A boundary whose files lie in a folder."""
    makers = {
        "annotations": annotations,
        "images": images,
        "depth": depth_texts,
        "checkpoints": checkpoints,
        "config": configurations,
    }
    outside = folder / "outside"
    outside.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(outside / "secret.png")
    (outside / "secret.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    return makers[name](folder)


NAMES = ("annotations", "images", "depth", "checkpoints", "config")


# -- annotations -----------------------------------------------------------------------------------------

COCO: dict[str, Any] = {
    "info": {"description": "x"},
    "images": [
        {"id": 1, "height": 20, "width": 30, "file_name": "0.png"},
        {"id": 2, "height": 20, "width": 30, "file_name": "sub/1.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10.5, 8], "area": 84, "iscrowd": 0,
         "segmentation": [[1, 2, 9, 2, 9, 9]]},
        {"id": 2, "image_id": 2, "category_id": 4, "bbox": [0, 0, 30, 20], "area": 600, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
}  # fmt: skip
VOC = (
    b"<annotation><size><width>30</width><height>20</height></size><object><name>cat</name>"
    b"<difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    b"</object></annotation>"
)
YOLO = b"path: .\ntrain: images\nval: list.txt\nnc: 2\nnames: [cat, dog]\nkpt_shape: [2, 3]\n"


def annotations(folder: Path) -> Boundary:
    """Readers of COCO jsons (J), Pascal VOC xmls (X), YOLO's data.yaml (Y), labels (L) and lists (P)."""
    root = folder / "images"
    (root / "sub").mkdir(parents=True)
    (folder / "voc").mkdir()
    (folder / "yolo" / "images").mkdir(parents=True)
    (folder / "yolo" / "labels").mkdir()
    for place in (
        root / "0.png",
        root / "sub" / "1.png",
        folder / "voc" / "a.png",
        folder / "yolo/images/a.png",
    ):
        Image.new("RGB", (30, 20)).save(place)
    readers = {b"J": _read_coco, b"X": _read_voc, b"Y": _read_yolo, b"L": _read_label, b"P": _read_list}

    def run(data: bytes) -> bool:
        if data[:1] in (b"Y", b"L", b"P"):
            restore()
        try:
            readers.get(data[:1], _read_coco)(folder, data[1:])
        except DataError:
            return False
        return True

    def restore() -> None:
        (folder / "yolo" / "data.yaml").write_bytes(YOLO)
        (folder / "yolo" / "list.txt").write_text("images/a.png\n", encoding="utf-8")
        (folder / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n", encoding="utf-8")

    seeds = [
        b"J" + json.dumps(COCO).encode(),
        b"X" + VOC,
        b"Y" + YOLO,
        b"L0 0.5 0.5 0.2 0.4\n1 0 0 1 0 1 1\n",
    ]
    words = (b'"', b"{", b"[", b"1e999", b"NaN", b"9" * 5000, b"[" * 2000, b"../", b"\\ud800", b"<a>" * 300)
    words += (
        b'<!DOCTYPE a [<!ENTITY b "c">]>',
        b'<?xml version="1.0" encoding="cp932"?>',
        b"&a",
        b"*a",
        b"\0",
    )
    words += ("²".encode(), b"? ", b"!!python/object/apply:os.system [x]", b"1_0", b"-inf", b"\xff\xfe")
    return Boundary(
        (*seeds, b"Pimages/a.png\n"), run, _invent_annotations, words, ("data/", "utils/yaml_text")
    )


def _read_coco(folder: Path, data: bytes) -> None:
    path, root = folder / "x.json", folder / "images"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        read_categories(path)
    index = CocoIndex.load(path, root, outlines=zlib.crc32(data) % 2 == 0, report=lambda _: None)
    for row in range(len(index)):
        assert os.path.realpath(index.path(row)).startswith(str(root)), index.path(row)
        boxes, labels = index.training_boxes(row)
        assert np.isfinite(boxes).all()
        assert ((labels >= 0) & (labels < len(index.class_names))).all()
        height, width = index.sizes[row].tolist()
        assert (boxes >= -1).all()
        assert (boxes <= np.float32([width + 1, height + 1] * 2)).all()
        outlines = index.outlines_of(row)
        assert outlines is None or np.isfinite(outlines.points).all()
    json.dumps(index.to_coco_dict(), allow_nan=False)


def _read_voc(folder: Path, data: bytes) -> None:
    (folder / "voc" / "a.xml").write_bytes(data)
    _check_imported(read_voc(folder / "voc"), folder)


def _read_yolo(folder: Path, data: bytes) -> None:
    (folder / "yolo" / "data.yaml").write_bytes(data)
    _check_imported(read_yolo(folder / "yolo"), folder)


def _read_label(folder: Path, data: bytes) -> None:
    (folder / "yolo" / "labels" / "a.txt").write_bytes(data)
    _check_imported(read_yolo(folder / "yolo"), folder)


def _read_list(folder: Path, data: bytes) -> None:
    (folder / "yolo" / "list.txt").write_bytes(data)
    _check_imported(read_yolo(folder / "yolo"), folder)


def _check_imported(dataset: Any, folder: Path) -> None:
    for image in (image for part in dataset.splits.values() for image in part):
        assert "outside" not in os.path.realpath(image.path)
        for item in image.objects:
            left, top, right, bottom = item.box_xyxy
            assert 0 <= left < right <= image.size[1]
            assert 0 <= top < bottom <= image.size[0]
            item.class_name.encode("utf-8")
            assert item.class_name in dataset.class_names


def _invent_annotations(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.6:
        document: object = COCO
        for _ in range(rng.choice((1, 1, 2, 4))):
            document = strangely_changed(document, rng)
        text = json.dumps(document, ensure_ascii=rng.random() < 0.9)
        if rng.random() < 0.1:
            text = text.replace('"id"', '"id": 1, "id"', 1)
        return b"J" + text.encode("utf-8", "surrogatepass")
    if kind < 0.7:
        value = str(hostile_value(rng))[:6000].encode("utf-8", "surrogatepass")
        return b"X" + VOC.replace(
            rng.choice((b"30", b"20", b"cat", b"9", b"0", b"2")), value, rng.choice((1, 9))
        )
    if kind < 0.9:
        changed = strangely_changed(load_yaml(YOLO.decode()), rng)
        text = json.dumps(changed) if rng.random() < 0.98 else _aliases(rng)
        return b"Y" + text.encode("utf-8", "surrogatepass")
    numbers = [str(hostile_value(rng))[:400] for _ in range(rng.choice((1, 4, 5, 7, 9)))]
    return rng.choice((b"L", b"P")) + " ".join(numbers).encode("utf-8", "replace")


def _aliases(rng: random.Random) -> str:
    """Ten lines of references to references: a billion values, or a list that holds itself."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    depth = rng.choice((3, 9, 30))
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, depth)]
    key = rng.choice(("names", "train", "nc", "kpt_shape", "path", "seed", "curve", "_target_"))
    lines.append(rng.choice((f"{key}: *a{len(lines) - 1}", f"{key}: &me [*me]")))
    return "\n".join([*lines, "train: images", "names: [a]"][: rng.choice((99, len(lines)))])


# -- images ----------------------------------------------------------------------------------------------


def images(folder: Path) -> Boundary:
    """Pictures in memory, upright and as stored, and what an import reads of their headers."""
    os.environ["ANYDEPTH_MAX_IMAGE_PIXELS"] = "1000000"

    def run(data: bytes) -> bool:
        path = folder / "x.jpg"
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            upright, stored = read_picture_sizes(path)
            assert sorted(upright) == sorted(stored)
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Twice now and then: memory that a decoder leaves as it was would differ.
            times = 2 if zlib.crc32(data) % 8 == 1 else 1
            for _ in range(times):
                try:
                    image = decode_image(data, "x", upright=zlib.crc32(data) % 2 == 0)
                except ImageError:
                    continue
                assert image.dtype == torch.uint8
                assert image.ndim == 3
                assert image.shape[0] == 3
                assert 0 < image.shape[1] * image.shape[2] <= max_pixels()
                found.append(image)
        assert len(found) in (0, times), "read once and refused once"
        assert times == 1 or not found or torch.equal(*found), "read differently"
        return bool(found)

    return Boundary(
        tuple(_pictures()), run, _invent_picture, _PICTURE_WORDS, ("images", "data/convert/dataset")
    )


_PICTURE_WORDS = (
    b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt",
    b"eXIf", b"tRNS",
    b"\xff\xd8", b"\xff\xc0", b"\xff\xc2", b"\xff\xda", b"\xff\xe1", b"\xff\xd9", b"Exif\0\0", b"MPF\0",
    b"RIFF", b"WEBPVP8 ", b"VP8L", b"VP8X", b"ANMF", b"GIF89a", b"\x21\xf9\x04", b"BM", b"II*\0", b"MM\0*",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6\n9 9\n255\n", b"\xff\xff\xff\xff",
)  # fmt: skip


def _pictures() -> list[bytes]:
    """Small pictures of every kind that Pillow writes here, and an EPS that must not be rendered."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (12, 17, 3), dtype=np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65535, (9, 7)).astype(np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        (rgb.convert("1"), "PNG", {}),
        (grey16, "PNG", {}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {"progressive": True}),
        (rgb, "WEBP", {}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("CMYK"), "TIFF", {}),
        (grey16, "TIFF", {}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        (rgb, "JPEG2000", {}),
        (rgb, "AVIF", {}),
        (rgb, "PPM", {}),
        (rgb, "EPS", {}),
        (rgb, "ICO", {}),
    ]
    written = []
    for picture, kind, options in wanted:
        buffer = io.BytesIO()
        # Not every build of Pillow writes all of them.
        with contextlib.suppress(KeyError, OSError):
            picture.save(buffer, kind, **options)
            written.append(buffer.getvalue())
    return written


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _invent_picture(rng: random.Random) -> bytes:
    """A PNG with right checksums around wrong contents, or the header of a picture of any size."""
    width, height = rng.choice(NUMBERS) % 2**32, rng.choice((1, 7, *NUMBERS)) % 2**32
    if rng.random() < 0.2:
        return struct.pack("<2sIHHIIiiHH", b"BM", 0, 0, 0, 54, 40, width % 2**31, height % 2**31, 1, 24)
    if rng.random() < 0.2:
        return (
            b"GIF89a" + struct.pack("<HHBBB", width % 65536, height % 65536, 0xF0, 0, 0) + rng.randbytes(40)
        )
    if rng.random() < 0.5:
        width, height = rng.randrange(1, 40), rng.randrange(1, 40)
    depth, kind = rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, rng.choice((0, 0, 1)))
    pixels = (
        rng.randbytes(rng.choice((0, 10, 4000))) if rng.random() < 0.7 else bytes(rng.choice((10, 300_000)))
    )
    chunks = [_chunk(b"IHDR", header)]
    for _ in range(rng.randrange(3)):
        extra = rng.choice(
            (b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"sRGB")
        )
        content = rng.randbytes(rng.randrange(60))
        if extra in (b"iCCP", b"zTXt") and rng.random() < 0.5:
            content = b"x\0\0" + zlib.compress(bytes(rng.choice((10, 5_000_000))))
        chunks.append(_chunk(extra, content))
    chunks += [_chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# -- depth texts -----------------------------------------------------------------------------------------

SPACES = (
    DepthSpace(
        stages=("stage1", "stage2", "neck"),
        decoder_layers=6,
        minimal_decoder_layers=4,
        costs=lambda: DepthCosts((5, 4, 3), 2),
    ),
    DepthSpace(stages=("b1", "b2", "n1"), costs=lambda: DepthCosts((3, 2, 1))),
    DepthSpace(stages=()),
)


def _decoded(data: bytes) -> str:
    """Any bytes as text, half characters too."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def depth_texts(folder: Path) -> Boundary:
    """Texts of depths, for detectors of both wings and one of fixed depth."""
    everything = [set(space.all()) for space in SPACES]

    def run(data: bytes) -> bool:
        text = _decoded(data)
        accepted = False
        for space, known in zip(SPACES, everything, strict=True):
            try:
                config = space.parse(text)
                listed = space.parse_list([text, text])
            except DepthError as error:
                message = str(error)
            else:
                message = ""
            if message:
                # What a space without costs says of fractions.
                assert space.describe() in message or "no costs" in message
                continue
            assert config in known
            assert listed == [config]
            assert space.parse(str(config)) == config
            accepted = True
        return accepted

    tokens = (
        "full",
        "minimal",
        "none",
        "3/4",
        "1/2",
        "stage1",
        "stage2",
        "neck",
        "b1",
        "n1",
        "@",
        "+",
        "@6",
        "@4",
    )
    tokens += (
        "@0",
        "@7",
        "@-1",
        "@٣",
        "@" + "9" * 5000,
        " ",
        "\n",
        "\0",
        "\ud800",
        "ladder",
        "all",
        "²",
        "1e9",
        "",
    )

    def invent(rng: random.Random) -> bytes:
        text = "".join(rng.choice(tokens) for _ in range(rng.choice((1, 2, 3, 4, 9))))
        return text.encode("utf-8", "surrogatepass")

    words = tuple(token.encode("utf-8", "surrogatepass") for token in tokens)
    return Boundary(words[:14], run, invent, words, ("depth.py",))


# -- checkpoints -----------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> Boundary:
    """Readers of checkpoints (C), of weights of any layout (W, S), of our weights files (Z), and of weights
    that are loaded into a detector (L)."""
    torch.manual_seed(0)
    detector = zoo.build("detr_tiny", 2, **SMALL_DETECTOR)
    weights = detector.state_dict()
    checkpoint = {
        "state_dict": {f"detector.{key}": value for key, value in weights.items()},
        "detector": dict(detector.config),
        "class_names": list(detector.class_names),
        "epoch": 3,
    }
    small = {"state_dict": {"detector.a": torch.ones(2)}, "detector": {"name": "x"}, "class_names": ["a"]}
    zoo.save(detector, folder / "valid.safetensors")
    ours = (folder / "valid.safetensors").read_bytes()

    def run(data: bytes) -> bool:
        kind, content = data[:1], data[1:]
        path = folder / ("x.safetensors" if kind in b"SZ" else "x.pt")
        path.write_bytes(content)
        try:
            if kind == b"C":
                assert isinstance(detector_weights(read_checkpoint(path)), dict)
                check_resumable(path, detector)
            elif kind == b"Z":
                loaded = zoo.load(path)
                assert sum(value.numel() for value in loaded.state_dict().values()) * 4 <= 2 * len(content)
            elif kind == b"L":
                zoo.load_weights(detector, path)
            else:
                found = read_state_dict(path)
                assert found.tensors
        except (CheckpointError, WeightsError, zoo.ZooError):
            return False
        return True

    seeds = (
        b"C" + _saved(small),
        b"C" + _saved(checkpoint),
        b"W" + _saved({"model": {"a.weight": torch.ones(2, 3), "b": torch.arange(4)}}),
        b"W" + _saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False),
        b"W" + _packed(b"}S'a'\ncforeign\nThing\n)\x81s.", {"0": bytes(8)}),
        b"L" + _saved(dict(weights)),
        b"S" + _safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        b"Z" + ours,
    )
    words = (
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"data.pkl",
        b"../../outside",
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"tR.",
    )
    words += (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b'"dtype":"F64"',
        b'"shape":[99999999999]',
        b"\x8a\xff",
        b"(",
        b"}",
    )
    return Boundary(
        seeds,
        run,
        lambda rng: _invent_checkpoint(rng, ours, weights),
        words,
        ("weights/", "training/checkpointing/read", "zoo"),
    )


def _saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _packed(pickled: bytes, records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save's layout around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x/version", "3\n")
        archive.writestr("x/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"x/data/{name}", content)
    return buffer.getvalue()


def _safetensors(header: object, content: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


_GLOBALS = (
    b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nexec\n", b"cbuiltins\nopen\n",
    b"csubprocess\nPopen\n", b"ctorch\nload\n", b"ctorch.hub\nload\n", b"cshutil\nrmtree\n",
    b"cforeign\nThing\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
    b"ctorch\nTensor\n", b"ctorch\nFloatTensor\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cbuiltins\ngetattr\n", b"ctorch.nn.parameter\nParameter\n", b"ctorch\nSize\n", b"cbuiltins\nset\n",
    b"ctorch._utils\n_rebuild_qtensor\n",
)  # fmt: skip
_OPCODES = tuple(bytes([code]) for code in b"().0123456789NRQatbdeuslJ}]{") + tuple(
    bytes([code]) for code in range(0x80, 0x98)
)


def _invent_pickle(rng: random.Random, trace: str) -> bytes:
    """Instructions in any order, calls of forbidden names, and tensors of any shape."""
    if rng.random() < 0.3:
        shape, stride = ([rng.choice(NUMBERS) % 2**63 for _ in range(rng.randrange(4))] for _ in range(2))
        storage = ("storage", "FLOAT", "0", "cpu", rng.choice((1, 2, 2**40)))
        numbers = b"".join(_tuple(values) for values in (shape, stride))
        view = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI%d\ntQI%d\n" % (
            storage[4],
            rng.choice((0, 1, 2**40)),
        )
        return b"}S'model'\n}S'w'\nctorch._utils\n_rebuild_tensor_v2\n" + view + numbers + b"I00\nNtRss."
    if rng.random() < 0.3:
        call = rng.choice(_GLOBALS) + b"(S'touch %s'\ntR" % trace.encode()
        return b"}S'model'\n}S'w'\n" + call + b"ss."
    parts = [b"\x80\x02"]
    for _ in range(rng.randrange(1, 30)):
        choice = rng.random()
        if choice < 0.25:
            parts.append(rng.choice(_GLOBALS))
        elif choice < 0.5:
            parts.append(
                b"I%d\n" % rng.choice(NUMBERS) if rng.random() < 0.5 else b"S'%s'\n" % trace.encode()
            )
        else:
            parts.append(rng.choice(_OPCODES) + rng.randbytes(rng.choice((0, 0, 1, 4))))
    return b"".join(parts) + b"."


def _tuple(values: list[int]) -> bytes:
    return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"


def _invent_checkpoint(rng: random.Random, ours: bytes, weights: Mapping[str, Any]) -> bytes:
    choice = rng.random()
    if choice < 0.8:
        pickled = _invent_pickle(rng, "outside/trace")
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        records = {"0": bytes(rng.choice((0, 4, 8, 1000)))}
        raw = rng.random() < 0.2
        return rng.choice((b"C", b"W")) + (pickled if raw else _packed(pickled, records, compression))
    if choice < 0.9:
        saved = {"state_dict": {"detector.a": torch.ones(2)}, "detector": {"name": "x"}, "class_names": ["a"]}
        changed = strangely_changed(saved, rng)
        with contextlib.suppress(Exception):
            return b"C" + _saved(changed)
    if choice < 0.97:
        tensors = {"a": {"dtype": rng.choice(("F32", "I8", "BOOL", "BF16", "F8_E4M3", "C64", "U64", "X")),
                         "shape": [rng.choice((0, 1, 2, *NUMBERS)) for _ in range(rng.randrange(4))],
                         "data_offsets": [rng.choice((0, 1, 8, *NUMBERS)) for _ in range(2)]}}  # fmt: skip
        return b"S" + _safetensors(
            strangely_changed(tensors, rng) if rng.random() < 0.3 else tensors, bytes(64)
        )
    if choice < 0.975:
        return b"Z" + _other_config(rng, ours)
    keys = rng.sample(list(weights), 3)
    changed_weights = dict(weights)
    for key in keys:
        _change_weight(changed_weights, key, rng)
    return b"L" + _saved(changed_weights)


def _change_weight(weights: dict[str, Any], key: str, rng: random.Random) -> None:
    value = weights.pop(key)
    change = rng.randrange(9)
    if change == 0:
        weights[f"{key}.essential.{'9' * rng.choice((1, 5000))}.x"] = value
    elif change == 1:
        weights[key] = value.flatten()[:1].reshape(())
    elif change == 2:
        weights[key] = torch.ones(1).as_strided((2**40, 3), (0, 0))
    elif change == 3:
        weights[key] = value.to(rng.choice((torch.complex64, torch.bool, torch.float64, torch.int8)))
    elif change == 4:
        weights[key] = value.to_sparse()
    elif change == 5:
        weights[rng.choice(list(weights))] = value
    elif change == 6:
        weights[key.replace("full", "skip")] = value.reshape(-1)[:1]
    elif change == 7:
        weights[rng.choice((f"module.{key}", key * 40, "", "a\0"))] = value


def _other_config(rng: random.Random, ours: bytes) -> bytes:
    """Our weights with another description of the detector."""
    size = struct.unpack("<Q", ours[:8])[0]
    header = json.loads(ours[8 : 8 + size])
    metadata = header["__metadata__"]
    part = rng.choice(("config", "config", "config", "class_names"))
    content = json.loads(metadata[part])
    if part == "config" and rng.random() < 0.7:
        key = rng.choice(list(content))
        content[key] = rng.choice(
            (
                10**12,
                10**6,
                -1,
                0,
                65536,
                1e300,
                "x",
                None,
                [10**9] * 4,
                [],
                [65536] * 4,
                {"x": 1},
                True,
                [2] * 60,
            )
        )
    else:
        content = strangely_changed(content, rng)
    metadata[part] = json.dumps(content)
    return _safetensors(header, ours[8 + size :])


# -- configurations --------------------------------------------------------------------------------------


def configurations(folder: Path) -> Boundary:
    """Nodes with targets (T), the node ``hydra`` (H), and the saved configuration of a run folder (R)."""
    os.environ[SECRET_VARIABLE] = SECRET
    # What an allowed name imports, and writes into its caches for doing so, is no deed of a configuration.
    for module in ("lightning.pytorch", "matplotlib", "torchmetrics", "optuna.samplers", "pydantic"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    run_folder = folder / "run"
    run_folder.mkdir()
    (run_folder / "result.json").write_text("{}", encoding="utf-8")

    def run(data: bytes) -> bool:
        text = data[1:].decode("utf-8", "replace")
        try:
            if data[:1] == b"R":
                (run_folder / "config.yaml").write_bytes(data[1:])
                assert SECRET not in repr(find_runs([run_folder]))
                return True
            content = load_yaml(text)
            if not isinstance(content, dict):
                return False
            if data[:1] == b"H":
                check_hydra_node(OmegaConf.create({"hydra": content}))
            else:
                node = OmegaConf.create(content)
                check_targets(OmegaConf.to_container(node, resolve=True))
                # Whatever allowed classes say of arguments that are wrong.
                with contextlib.suppress(Exception):
                    instantiate(node)
        except (YamlTextError, TargetError, OmegaConfBaseException, ReportError):
            return False
        return True

    seeds = (
        b"T_target_: anydepth.training.recipes.AdamWRecipe\nlr: 0.1\n",
        b"T_target_: anydepth.data.augment.hsv.HSVJitter\nhue: 0.1\n",
        b"T_target_: datetime.timedelta\nminutes: 3\n",
        b"Hcallbacks: {a: {_target_: anydepth.runs.sweep.SweepSummary}}\njob: {env_set: {}}\n",
        b"Rseed: 0\ncurve: {depths: ladder}\nx: ${oc.env:ANYDEPTH_FUZZ_SECRET}\n",
    )
    words = tuple(name.encode() for name in HOSTILE_TARGETS)
    words += (
        b"_target_: ",
        b"_args_: [",
        b"_partial_: true",
        b"${oc.env:ANYDEPTH_FUZZ_SECRET}",
        b"&a",
        b"*a",
        b"{",
        b"[",
    )
    words += (b"!!python/object/apply:os.system [id]", b"2024-99-99", b"0x_", b"? ", b"1" * 5000, b"[" * 2000)
    return Boundary(
        seeds,
        run,
        _invent_config,
        words,
        ("config/", "utils/yaml_text", "report/runs"),
    )


HOSTILE_TARGETS = (
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "subprocess.run",
    "subprocess.Popen",
    "shutil.rmtree",
    "pathlib.Path.write_text",
    "torch.load",
    "torch.hub.load",
    "numpy.fromfile",
    "hydra.utils.instantiate",
    "importlib.import_module",
    "anydepth.runs.provenance.subprocess.run",
    "anydepth.runs.provenance._git",
    "anydepth.config.compose.os.system",
    "anydepth.utils.files.write_text",
    "anydepth.results.video.VideoWriter",
    "anydepth.data.fetch.archives.unpack",
    "anydepth.data.streaming.Path.write_text",
    "anydepth.data.datamodule.Path",
    "anydepth.training.loggers.wandb_connection.os.system",
    "anydepth.training.callbacks.ema.WeightAveraging.__init__.__globals__",
    "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree",
    "lightning.pytorch.callbacks.model_checkpoint.os.system",
    "lightning.pytorch.cli.LightningCLI",
    "optuna.samplers._base.np.fromfile",
    "lightning.pytorch.callbacks.LambdaCallback",
    "functools.partial",
    "mypackage.Evil",
    "..os",
    "os..system",
    "",
)


def _invent_config(rng: random.Random) -> bytes:
    kind = rng.choice((b"T", b"T", b"H", b"R"))
    if kind == b"R":
        document: object = {
            "seed": 1,
            "curve": {"depths": "ladder"},
            "optim": {},
            "x": "${oc.env:ANYDEPTH_FUZZ_SECRET}",
        }
        if rng.random() < 0.05:
            return b"R" + _aliases(rng).encode()
        return b"R" + json.dumps(strangely_changed(document, rng)).encode("utf-8", "surrogatepass")
    node: dict[str, Any] = {"_target_": rng.choice(HOSTILE_TARGETS)}
    arguments = ["touch outside/trace", "${oc.env:HOME}", {"_target_": rng.choice(HOSTILE_TARGETS)}, 3]
    node[rng.choice(("_args_", "args", "path", "callbacks"))] = rng.sample(arguments, rng.randrange(4))
    if rng.random() < 0.3:
        node["_partial_"] = True
    for _ in range(rng.randrange(3)):
        allowed = rng.choice(
            (
                "anydepth.data.augment.hsv.HSVJitter",
                "lightning.pytorch.callbacks.ModelCheckpoint",
                "datetime.timedelta",
            )
        )
        node = {
            "_target_": allowed,
            rng.choice(("x", "callbacks", "hue")): rng.choice((node, [node], {"y": node})),
        }
    if kind == b"T":
        return b"T" + json.dumps(node).encode()
    place = rng.choice(("callbacks", "launcher", "sweeper", "job", "job_logging", "hydra_logging"))
    parts: dict[str, Any] = {place: {"a": node} if rng.random() < 0.6 else node}
    extra = (
        ("job", {"env_set": {"ANYDEPTH_ALLOW_TARGETS": "*"}}),
        ("launcher", {"setup": ["touch outside/trace"]}),
        ("sweeper", {"custom_search_space": "os.system"}),
        ("job_logging", {"handlers": {"x": {"()": "os.system"}}}),
        ("callbacks", {"x": "${oc.create:{_target_: os.system}}"}),
        ("callbacks", "${hydra.job}"),
    )
    if rng.random() < 0.5:
        name, value = rng.choice(extra)
        parts[name] = value
    return b"H" + json.dumps(strangely_changed(parts, rng) if rng.random() < 0.2 else parts).encode(
        "utf-8", "replace"
    )
