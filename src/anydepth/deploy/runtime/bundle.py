"""A bundle: one folder with graphs of several depths, their common weights, and a description of all.

The folder holds ``bundle.json``, one graph per depth or one for all (``.onnx``; ``.xml`` for OpenVINO),
``weights.bin``, and a model card for people.
A bundle is untrusted: every name, size and number is checked before anything is opened, and nothing in it is
executed but the graphs, by the engine; packages of machine code (``.pt2``) only for a caller who trusts them.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from anydepth import hub
from anydepth.deploy.runtime.engines.base import FEATURES
from anydepth.deploy.runtime.ir_file import constants, parse_graph
from anydepth.deploy.runtime.onnx_file import ExternalTensor, external_tensors
from anydepth.deploy.runtime.package_file import read_table
from anydepth.depth import DepthConfig, DepthCosts, DepthError, DepthSpace
from anydepth.measurement import Measurement
from anydepth.selection import Selection, parse_selection
from anydepth.utils.messages import join_few, short_repr

DESCRIPTION: Final = hub.BUNDLE
WEIGHTS: Final = "weights.bin"
PRECISIONS: Final = ("fp32", "int8")
GRAPH_SUFFIXES: Final = MappingProxyType({"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"})
"""Suffix of the files of graphs by the format of a bundle: ONNX, OpenVINO's own, or PyTorch's packages."""
INT8_FORMATS: Final = ("onnx", "openvino")
"""Formats in which graphs compute in int8."""
CARD: Final = "README.md"
FORMAT: Final = "anydepth_bundle"
FORMAT_VERSION: Final = 1

MAX_GRID: Final = 64
"""Largest side of the grid that feature maps are pooled to."""
# Limits of what a bundle may ask for, far above any detector: it is untrusted, and a number costs nothing.
_MAX_DESCRIPTION_BYTES: Final = 64 * 2**20
_MAX_GRAPH_BYTES: Final = 2**31
_MAX_SIDE: Final = 8192
_MAX_ENTRIES: Final = 65_536
_MAX_PIXELS: Final = 2**28  # 3 GiB of input
_MAX_STAGES: Final = 64
_MAX_LAYERS: Final = 1024
LICENSE_ID: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
"""Identifier of a licence, as the hub has them."""
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}")

T = TypeVar("T")


class BundleError(ValueError):
    """A bundle is missing, incomplete, altered, of another version or not allowed; the message says why."""


@dataclass(frozen=True)
class BundledFile:
    """A file of a bundle.

    Attributes:
        name: Name in the folder of the bundle.
        bytes: Size.
        sha256: Hash of its content, hexadecimal.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class InputFormat:
    """How images become the input of the graphs.

    Attributes:
        size: (height, width) in pixels.
        fit: ``stretch`` or ``letter_box``.
        batch: Images of a pass; None: any number.
    """

    size: tuple[int, int]
    fit: str
    batch: int | None


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps that graphs return beside boxes and scores, averaged over a grid of cells.

    Attributes:
        grid: Side G of the grid.
        channels: Channels of the maps of each part, by the keys of
            :data:`anydepth.deploy.runtime.engines.base.FEATURES`.
    """

    grid: int
    channels: Mapping[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count}" for name, count in self.channels.items())
        return f"{self.grid} x {self.grid} cells of {parts} channels"


@dataclass(frozen=True)
class BundledDepth:
    """A depth of a bundle.

    Attributes:
        config: The depth; its text is that of the export.
        graph: Name of the file of its graph.
        number: What the graph's input ``depth`` is for this depth; None: a graph of this depth alone.
        gmacs: Billions of multiply-accumulates of one image.
        parameters: Number of parameters that run.
        figures: COCO figures in [0, 1] by name; empty if the export knew no depth curve.
        float_figures: Figures of the float bundle that an int8 bundle was made of, on the same images in the
            same engine; empty: a float bundle, or not measured.
        measurements: Latency and memory, as ``anydepth-benchmark`` measured them.
        equality: Largest differences to PyTorch that were measured at the export, see
            :class:`anydepth.deploy.export.equality.Equality`; empty: not measured.
        equality_engine: Engine that they were measured with.
    """

    config: DepthConfig
    graph: str
    gmacs: float
    parameters: int
    figures: Mapping[str, float] = field(default_factory=dict)
    float_figures: Mapping[str, float] = field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    equality: Mapping[str, float] = field(default_factory=dict)
    equality_engine: str | None = None
    number: int | None = None


@dataclass(frozen=True)
class Bundle:
    """Description of a bundle whose values are checked; the files are checked by :meth:`check_files`.

    Attributes:
        folder: Folder of the bundle.
        detector: Name of the detector.
        parameters: Number of parameters of the whole detector.
        depth_space: Parses and prints the depths of the detector, exported or not.
        class_names: One name per class.
        category_ids: Category id of each class in results files.
        input: How images become the input.
        normalised_boxes: Whether the graphs' boxes are shares of the input instead of its pixels.
        clips_boxes: Whether boxes are clipped to the image before they are scored, see
            :attr:`anydepth.detector.Detector.clips_boxes`.
        selection: How detections are selected among the graphs' boxes.
        selects: Whether the graphs themselves do it; their boxes are in pixels of the input then.
        depths: The depths that were exported, as listed.
        files: Files by name, without the description itself.
        versions: Versions of the packages that made it.
        license: Identifier of the licence of the weights; None: none is stated.
        precision: Numbers that the graphs compute with: ``fp32``, or ``int8`` for most of them.
        graph_format: One of :data:`GRAPH_SUFFIXES`.
        features: Feature maps that the graphs return, too; None: they return none.
    """

    folder: Path
    detector: str
    parameters: int
    depth_space: DepthSpace
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    input: InputFormat
    normalised_boxes: bool
    clips_boxes: bool
    selection: Selection
    depths: tuple[BundledDepth, ...]
    files: Mapping[str, BundledFile]
    versions: Mapping[str, str]
    license: str | None = None
    precision: str = "fp32"
    graph_format: str = "onnx"
    selects: bool = False
    features: FeatureMaps | None = None

    def depth(self, depth: str | DepthConfig) -> BundledDepth:
        """Return an exported depth.

        Raises:
            DepthError: The depth does not exist, or was not exported; the message names those that were.
        """
        config = self.depth_space.parse(depth)
        for entry in self.depths:
            if entry.config == config:
                return entry
        exported = ", ".join(str(entry.config) for entry in self.depths)
        raise DepthError(
            f"depth {str(config)!r} is not in the bundle {self.folder}: it holds {exported}; choose one of "
            "these, or export it as well"
        )

    def check_files(self, *names: str) -> None:
        """Compare files with the sizes and hashes of the description.

        Raises:
            BundleError: A file is missing, cut short or altered.
        """
        self.check_sizes(*names)
        for name in names:
            file, path = self.files[name], self.folder / name
            with path.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file.sha256:
                raise BundleError(
                    f"{path}: altered since the export (its hash is another one); copy or export the "
                    "bundle again"
                )

    def check_sizes(self, *names: str) -> None:
        """Compare the sizes of files with the description, which reads nothing of them.

        Raises:
            BundleError: A file is missing, no ordinary file, or of another size.
        """
        for name in names:
            file, path = self.files[name], self.folder / name
            if not path.is_file():
                raise BundleError(f"{path}: missing; the bundle is incomplete: copy or export it again")
            size = path.stat().st_size
            if size != file.bytes:
                raise BundleError(
                    f"{path}: got {size:,} bytes, expected {file.bytes:,}; copy or export the bundle again"
                )

    def check_graph(self, name: str) -> int:
        """Check that a graph takes tensors from this bundle's weights alone.

        Returns:
            The number of bytes of weights that it reads.

        Raises:
            BundleError: It is no graph of the bundle's format, or names another file or a place outside the
                file.
        """
        self.check_sizes(name, WEIGHTS)
        path, limit = self.folder / name, self.files[WEIGHTS].bytes
        try:
            tensors = _read_places(path, self.graph_format)
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{path}: not a readable graph in the format {self.graph_format} ({error}); export the "
                "bundle again"
            ) from error
        for tensor in tensors:
            end = limit if tensor.length is None else tensor.offset + tensor.length
            if tensor.location != WEIGHTS or end > limit or tensor.offset > limit:
                raise BundleError(
                    f"{path}: takes a tensor from {short_repr(tensor.location)} at bytes {tensor.offset} to "
                    f"{end}, expected {WEIGHTS} with {limit:,} bytes; do not use a bundle from this source"
                )
        return sum({(tensor.offset, tensor.length): tensor.length or 0 for tensor in tensors}.values())


def _read_places(path: Path, graph_format: str) -> list[ExternalTensor]:
    """Return the places of the tensors that a graph takes from files.

    Raises:
        ValueError: The file is of another format.
    """
    content = path.read_bytes()
    if graph_format == "onnx":
        return external_tensors(content)
    if graph_format == "torch":
        return [ExternalTensor(WEIGHTS, one.offset, one.length) for one in read_table(content).constants]
    # All constants of a graph of OpenVINO are in the file that is given with it.
    return [replace(place, location=WEIGHTS) for _, place in constants(parse_graph(content))]


def read_bundle(folder: str | Path) -> Bundle:
    """Read the description of a bundle.

    Args:
        folder: Folder that ``anydepth-export`` wrote.

    Raises:
        BundleError: There is no bundle, or its description is damaged, of another version or not allowed.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise BundleError(f"{folder}: {_describe_other(folder)}")
    if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
        raise BundleError(
            f"{path}: {path.stat().st_size:,} bytes, expected at most {_MAX_DESCRIPTION_BYTES:,}"
        )
    try:
        values = json.loads(path.read_bytes())
        _check_version(values)
        bundle = _parse(folder, values)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    # Not JSON, or values that a part refuses.
    except (ValueError, RecursionError, OverflowError) as error:
        raise BundleError(f"{path}: damaged ({short_repr(str(error))}); copy or export it again") from error
    return bundle


def _describe_other(folder: Path) -> str:
    """Return why a path is no bundle, and what to do."""
    weights = folder / hub.WEIGHTS if folder.is_dir() else folder
    if weights.is_file() and weights.suffix == ".safetensors":
        what = "a file of weights" if weights == folder else f"not a bundle, but {hub.WEIGHTS} is in it"
        return f"{what}; make a bundle of it: anydepth-export weights={weights} output=FOLDER"
    if folder.exists() and not folder.is_dir():
        return "a file, expected the folder of a bundle that anydepth-export wrote"
    missing = f"not a bundle, because it has no {DESCRIPTION}" if folder.exists() else "no such folder"
    return f"{missing}; give a folder that anydepth-export wrote"


def _check_version(values: object) -> None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError("not the description of a bundle; give a folder that anydepth-export wrote")
    if values.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"version {short_repr(values.get('format_version'))} of the format, expected {FORMAT_VERSION}; "
            "install the version of anydepth that wrote it, or export it again"
        )


def _parse(folder: Path, values: Mapping[str, Any]) -> Bundle:
    space = _parse_space(_take(values, "depth_space", dict))
    files = {name: _parse_file(name, entry) for name, entry in _take(values, "files", dict).items()}
    depths = tuple(_parse_depth(space, entry, files) for entry in _take(values, "depths", list))
    names = tuple(_each(values, "class_names", str))
    ids = tuple(_each(values, "category_ids", int))
    if not names or len(ids) != len(names) or len(set(ids)) != len(ids):
        raise BundleError(
            f"got {len(names)} class names and {len(set(ids))} different category ids, expected one per class"
        )
    if not depths or WEIGHTS not in files:
        raise BundleError(
            f"got {len(depths)} depths and the files {join_few(files)}, expected a depth and {WEIGHTS}"
        )
    if len({entry.config for entry in depths}) < len(depths):
        raise BundleError(f"got {len(depths)} depths of which two are equal")
    _check_numbers(depths)
    graph_format = _parse_format(values.get("graph_format", "onnx"), depths)
    output, detector = _take(values, "output", dict), _take(values, "detector", dict)
    selects = _take({"selects": False, **output}, "selects", bool)
    if selects and output.get("normalised_boxes") is not False:
        raise BundleError("got normalised boxes of graphs that select detections, expected pixels")
    return Bundle(
        folder=folder,
        detector=_take(detector, "name", str),
        parameters=_take(detector, "parameters", int),
        depth_space=space,
        class_names=names,
        category_ids=ids,
        input=_parse_input(_take(values, "input", dict)),
        normalised_boxes=_take(output, "normalised_boxes", bool),
        clips_boxes=_take(output, "clips_boxes", bool),
        selection=parse_selection(output.get("selection")),
        depths=depths,
        files=files,
        versions={name: str(text) for name, text in _take(values, "versions", dict).items()},
        license=_parse_license(values.get("license")),
        precision=_parse_precision(values.get("precision", "fp32")),
        graph_format=graph_format,
        selects=selects,
        features=_parse_features(output.get("features")),
    )


def _parse_features(values: object) -> FeatureMaps | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise BundleError(f"got features={short_repr(values)}, expected null or their description")
    grid, channels = _take(values, "grid", int), _take(values, "channels", dict)
    if not 1 <= grid <= MAX_GRID or set(channels) != set(FEATURES):
        parts = join_few([short_repr(name) for name in channels]) or "nothing"
        raise BundleError(
            f"got features with grid={short_repr(grid)} of {parts}, expected 1 to {MAX_GRID} and "
            f"{' and '.join(FEATURES)}"
        )
    counts = {name: _take(channels, name, int) for name in FEATURES}
    if not all(1 <= count <= _MAX_ENTRIES for count in counts.values()):
        raise BundleError(f"got features of {counts} channels, expected 1 to {_MAX_ENTRIES:,} of each part")
    return FeatureMaps(grid, counts)


def _parse_license(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and LICENSE_ID.fullmatch(value)):
        raise BundleError(f"got license={short_repr(value)}, expected an identifier such as apache-2.0")
    return value


def _parse_format(value: object, depths: Sequence[BundledDepth]) -> str:
    if not isinstance(value, str) or value not in GRAPH_SUFFIXES:
        raise BundleError(f"got graph_format={short_repr(value)}, expected {' or '.join(GRAPH_SUFFIXES)}")
    suffix = GRAPH_SUFFIXES[value]
    others = [entry.graph for entry in depths if not entry.graph.endswith(suffix)]
    if others:
        raise BundleError(
            f"got the graphs {join_few(others)}, expected files *{suffix} of graph_format={value}"
        )
    return value


def _parse_precision(value: object) -> str:
    if not isinstance(value, str) or value not in PRECISIONS:
        raise BundleError(f"got precision={short_repr(value)}, expected {' or '.join(PRECISIONS)}")
    return value


def _parse_space(values: Mapping[str, Any]) -> DepthSpace:
    costs = _take(values, "costs", dict)
    refinements = tuple(_each(costs, "refinements", int))
    stages = _each(values, "stages", str)
    if len(refinements) != len(stages):
        raise BundleError(f"got costs of {len(refinements)} stages, expected {len(stages)}")
    decoder_layer = _take(costs, "decoder_layer", int)
    layers = _take(values, "decoder_layers", (int, type(None)))
    if len(stages) > _MAX_STAGES or (layers or 0) > _MAX_LAYERS:
        raise BundleError(
            f"got {len(stages)} stages and {short_repr(layers)} decoder layers, expected at most "
            f"{_MAX_STAGES} and {_MAX_LAYERS}"
        )
    return DepthSpace(
        stages=stages,
        decoder_layers=layers,
        minimal_decoder_layers=_take(values, "minimal_decoder_layers", (int, type(None))),
        costs=lambda: DepthCosts(refinements, decoder_layer),
    )


def _parse_file(name: str, values: object) -> BundledFile:
    if not _PLAIN_NAME.fullmatch(name) or not isinstance(values, dict):
        raise BundleError(
            f"got a file {short_repr(name)}, expected the name of a file in the bundle's folder"
        )
    digest = _take(values, "sha256", str)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BundleError(f"{name}: got the hash {short_repr(digest)}, expected 64 hexadecimal digits")
    size = _take(values, "bytes", int)
    if size < 0 or (name.endswith(tuple(GRAPH_SUFFIXES.values())) and size > _MAX_GRAPH_BYTES):
        raise BundleError(f"{name}: {size:,} bytes, expected at most {_MAX_GRAPH_BYTES:,} of a graph")
    return BundledFile(name, size, digest)


def _parse_depth(space: DepthSpace, values: object, files: Mapping[str, BundledFile]) -> BundledDepth:
    if not isinstance(values, dict):
        raise BundleError(f"got the depth {short_repr(values)}, expected its description")
    graph = _take(values, "graph", str)
    if graph not in files:
        raise BundleError(f"the graph {short_repr(graph)} is none of the files {join_few(files)}")
    try:
        config = space.parse(_take(values, "depth", str))
    except DepthError as error:
        raise BundleError(str(error)) from None
    figures, equality = _take(values, "figures", dict), dict(_take(values, "equality", dict))
    engine = equality.pop("engine", None)
    before = _take({"float_figures": {}, **values}, "float_figures", dict)
    return BundledDepth(
        config=config,
        graph=graph,
        gmacs=_number(values, "gmacs"),
        parameters=_take(values, "parameters", int),
        figures={name: _number(figures, name) for name in figures},
        float_figures={name: _number(before, name) for name in before},
        measurements=tuple(_parse_measurement(entry) for entry in _take(values, "measurements", list)),
        equality={name: _number(equality, name) for name in equality},
        equality_engine=None if engine is None else str(engine),
        number=_parse_number(values),
    )


def _check_numbers(depths: Sequence[BundledDepth]) -> None:
    """Check that depths that share a graph have a number each, from which it knows them."""
    by_graph: dict[str, list[int | None]] = {}
    for entry in depths:
        by_graph.setdefault(entry.graph, []).append(entry.number)
    for graph, numbers in by_graph.items():
        if len(numbers) > 1 and (None in numbers or len(set(numbers)) < len(numbers)):
            raise BundleError(f"{len(numbers)} depths share the graph {graph}, expected a number of each")


def _parse_number(values: Mapping[str, Any]) -> int | None:
    number: int | None = _take(values, "number", (int, type(None)))
    if number is not None and not 0 <= number < _MAX_ENTRIES:
        raise BundleError(f"got number={number} of a depth, expected 0 to {_MAX_ENTRIES - 1}")
    return number


def _parse_measurement(values: object) -> Measurement:
    try:
        return Measurement.from_dict(values)
    except ValueError as error:
        raise BundleError(str(error)) from None


def _parse_input(values: Mapping[str, Any]) -> InputFormat:
    size, batch = _each(values, "size", int), _take(values, "batch", (int, type(None)))
    fit = _take(values, "fit", str)
    if len(size) != 2 or not all(1 <= side <= _MAX_SIDE for side in size):
        raise BundleError(f"got the input size {short_repr(size)}, expected two sides up to {_MAX_SIDE}")
    if fit not in ("stretch", "letter_box"):
        raise BundleError(f"got fit={short_repr(fit)}, expected stretch or letter_box")
    if batch is not None and not 1 <= batch <= _MAX_PIXELS // (size[0] * size[1]):
        raise BundleError(
            f"got a batch of {batch} images, expected 1 to {_MAX_PIXELS // (size[0] * size[1])} of "
            f"{size[0]} x {size[1]} pixels, or null"
        )
    return InputFormat((size[0], size[1]), fit, batch)


def _take(values: Mapping[str, Any], key: str, kind: type[T] | tuple[type, ...]) -> Any:
    """Return a value of a type; a bool is no number."""
    value = values.get(key)
    allowed = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
        raise BundleError(f"got {key}={short_repr(value)}, expected {names}")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    """Return a number from 0; NaN and infinity are none."""
    value = float(_take(values, key, (int, float)))
    if not 0 <= value < math.inf:
        raise BundleError(f"got {key}={short_repr(value)}, expected a finite number from 0")
    return value


def _each(values: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """Return a list whose members have a type."""
    members = _take(values, key, list)
    if len(members) > _MAX_ENTRIES:
        raise BundleError(f"got {len(members):,} entries of {key}, expected at most {_MAX_ENTRIES:,}")
    return [_take({key: member}, key, kind) for member in members]
