"""A detector that runs a bundle: one class for all engines, the depth chosen at each call."""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from anydepth.budget import DepthFigures, choose_depth, parse_budget
from anydepth.deploy.runtime.bundle import WEIGHTS, Bundle, BundledDepth, BundleError, read_bundle
from anydepth.deploy.runtime.engines import (
    check_engine,
    check_graphs,
    choose_engine,
    conditions_here,
    open_session,
)
from anydepth.deploy.runtime.engines.base import (
    FEATURES,
    EngineOptions,
    Session,
    check_trust,
    output_names,
)
from anydepth.deploy.runtime.hub_bundle import find_bundle
from anydepth.deploy.runtime.outputs import (
    NonFiniteOutputError,
    are_finite,
    check_outputs,
    split_selected,
    to_pixels,
)
from anydepth.deploy.runtime.selection import select
from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detections import Detections
from anydepth.measurement import newest
from anydepth.pictures.fitting import Fit, fit_picture, to_input
from anydepth.pictures.sources import list_pictures, read_member, to_picture
from anydepth.utils.arguments import check_count, check_share
from anydepth.utils.messages import join_few


class DeployedDetector:
    """Detects with the graphs of a bundle; several threads may share it, at different depths.

    Args:
        bundle: A bundle whose description was read.
        engine: Name of the inference engine, see :data:`anydepth.deploy.runtime.engines.ENGINES`; ``auto``:
            ONNX Runtime, or OpenVINO for a bundle in its own format.
        options: Device, threads and precision.
        memory_limit: Limit in MiB of the weights of all open depths; None: no limit. The depths that were not
            used for longest are closed first. The engine's own buffers are not counted.
        verify: Whether the hashes of files are compared when a depth is opened.

    Attributes:
        bundle: The bundle.
        engine: Name of the inference engine.
        depths: Texts of the exported depths.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "auto",
        options: EngineOptions | None = None,
        memory_limit: float | None = None,
        verify: bool = True,
    ) -> None:
        self.bundle = bundle
        self.engine = engine = choose_engine(engine, bundle.graph_format)
        self.depths = tuple(str(entry.config) for entry in bundle.depths)
        self._options = options or EngineOptions()
        check_engine(engine).check_device(self._options.device)
        check_graphs(engine, bundle.graph_format, bundle.precision)
        if bundle.graph_format == "torch":
            check_trust(bundle.folder, self._options)
        # Outputs that detections are made of; feature maps follow, if the graphs return any.
        self._candidates = len(output_names(selects=bundle.selects))
        self._limit = math.inf if memory_limit is None else _check_memory_limit(memory_limit) * 2**20
        self._verify = verify
        self._sessions: OrderedDict[str, tuple[Session, int]] = OrderedDict()
        self._lock = threading.Lock()
        # Held while a depth is opened, which must not keep threads from those that are open.
        self._opening = threading.Lock()
        self._weights_checked = False

    @property
    def depth_space(self) -> DepthSpace:
        """The depths of the detector, exported or not."""
        return self.bundle.depth_space

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.bundle.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category id of each class, for :meth:`anydepth.detections.BaseDetections.to_coco`."""
        return self.bundle.category_ids

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the network input."""
        return self.bundle.input.size

    @property
    def open_depths(self) -> tuple[str, ...]:
        """The depths whose graphs are open, the one used last at the end; depths may share a graph."""
        with self._lock:
            graphs = list(self._sessions)
        return tuple(
            str(entry.config) for graph in graphs for entry in self.bundle.depths if entry.graph == graph
        )

    @property
    def figures(self) -> list[DepthFigures]:
        """Cost and AP of each depth with this engine and these options, see :func:`depth_figures`."""
        return depth_figures(self.bundle, self.engine, self._options)

    def resolve(self, depth: str | DepthConfig) -> BundledDepth:
        """Return the exported depth that a text or a budget names.

        Args:
            depth: A depth of the bundle, or a budget: ``<=40gflops``, ``>=95%ap`` of the best AP, or
                ``<=8ms`` and ``<=120mb`` by what ``anydepth-benchmark`` measured, see :func:`depth_figures`.

        Raises:
            DepthError: The depth was not exported, or nothing is within the budget.
        """
        budget = parse_budget(depth)
        if budget is None:
            return self.bundle.depth(depth)
        remedy = "export with the depth curve of these weights (curve=FILE)"
        if not budget.is_lower:
            command = f"anydepth-benchmark {self.bundle.folder} engine={self.engine}{self._given_options()}"
            remedy = f"measure it with `{command}`{_measured_conditions(self.bundle)}"
        return self.bundle.depth(choose_depth(budget, self.figures, remedy=remedy))

    def _given_options(self) -> str:
        """Return the options that are not the usual ones, as the benchmark takes them."""
        usual = EngineOptions()
        return "".join(
            f" {name}={value}" for name, value in vars(self._options).items() if value != getattr(usual, name)
        )

    def open(self, depth: str | DepthConfig = "full") -> None:
        """Open the graph of a depth ahead of its first use.

        Raises:
            DepthError: The depth was not exported.
            BundleError: A file is missing or altered.
            EngineError: The engine is not installed, or cannot open the graph.
        """
        self._session(self.resolve(depth))

    def close(self, depth: str | DepthConfig | None = None) -> None:
        """Close the graph of a depth, and of those that share it, or all; a later call opens it again."""
        with self._lock:
            if depth is None:
                self._sessions.clear()
            else:
                self._sessions.pop(self.resolve(depth).graph, None)

    def run(
        self, images: NDArray[np.float32], depth: str | DepthConfig = "full", threshold: float = 0.0
    ) -> tuple[Any, ...]:
        """Run the network alone, or with the selection if the graphs of the bundle hold it.

        Args:
            images: [B, 3, H, W] float32 RGB in [0, 1] of :attr:`input_size`.
            depth: A depth of the bundle.
            threshold: Lowest score of detections that a graph selects; others take none.

        Returns:
            Boxes [B, N, 4] and scores [B, N, K]; or boxes [B, D, 4], scores [B, D], labels [B, D] and counts
            [B] of detections; as described in the bundle.

        Raises:
            ValueError: Images of another shape or type.
            BundleError: A graph that returns something else, or a file that is missing or altered.
        """
        self._check_images(images)
        return self._run(images, self.resolve(depth), threshold)[: self._candidates]

    def _check_images(self, images: NDArray[np.float32]) -> None:
        expected = (self.bundle.input.batch, 3, *self.input_size)
        if images.ndim != 4 or images.dtype != np.float32 or images.shape[1:] != expected[1:]:
            raise ValueError(
                f"got images of shape {images.shape} and type {images.dtype}, expected [B, 3, "
                f"{self.input_size[0]}, {self.input_size[1]}] float32 in [0, 1]"
            )
        if expected[0] not in (None, len(images)):
            raise ValueError(
                f"got {len(images)} images, but the bundle was exported for {expected[0]}; export it without "
                "batch=... for any number"
            )

    def predict(
        self,
        source: object,
        depth: str | DepthConfig = "full",
        threshold: float = 0.5,
        batch_size: int = 8,
        *,
        urls: bool = False,
    ) -> list[Detections]:
        """Detect objects in images of any size, as :meth:`anydepth.detector.Detector.predict` does.

        Args:
            source: One image or several: a path, the bytes of an image file, a Pillow picture, an array
                [H, W, 3] uint8 RGB, or a batch of arrays. Files and Pillow pictures of any mode are converted
                to RGB and turned upright.
            depth: A depth of the bundle, or a budget, see :meth:`resolve`.
            threshold: Detections with a lower score are left out.
            batch_size: Images per pass, from 1; a bundle of a fixed number of images uses that one.
            urls: Whether a text that begins with ``http://`` or ``https://`` is fetched.

        Returns:
            One entry per image; boxes in pixels of the original image and clipped to it.

        Raises:
            ValueError: An image of another form, a threshold outside [0, 1], or a ``batch_size`` below 1.
            ImageError: A file that is missing or not a readable image.
            DepthError: The depth was not exported, or nothing is within the budget.
            BundleError: A file of the bundle is missing or altered.
            EngineError: The engine is not installed, or cannot open the graph.
            NonFiniteOutputError: The network's output is NaN or infinite.
        """
        threshold = check_share("threshold", threshold)
        batch_size = check_count("batch_size", batch_size)
        batch_size = self.bundle.input.batch or batch_size
        entry = self.resolve(depth)
        sources, read = list_pictures(source), partial(to_picture, urls=urls)
        found: list[Detections] = []
        for start in range(0, len(sources), batch_size):
            pictures = [
                read_member(read, sources, index)
                for index in range(start, min(start + batch_size, len(sources)))
            ]
            found += self._detect(pictures, entry, threshold)[0]
        return found

    def detect(
        self,
        images: NDArray[np.float32],
        original_sizes: Sequence[tuple[int, int]],
        depth: str | DepthConfig = "full",
        threshold: float = 0.0,
    ) -> list[Detections]:
        """Detect objects in images that have the size of the input, as a data loader yields them.

        Args:
            images: [B, 3, H, W] float32 RGB in [0, 1] of :attr:`input_size`; of a bundle for a fixed number
                of images, at most as many.
            original_sizes: (height, width) of each image in its file, in pixels.
            depth: A depth of the bundle, or a budget, see :meth:`resolve`.
            threshold: Detections with a lower score are left out.

        Returns:
            One entry per image; boxes in pixels of the original image, not clipped to it.

        Raises:
            ValueError: Images of another shape or type, or another number of sizes.
            NonFiniteOutputError: The network's output is NaN or infinite.
        """
        return self._detect_fitted(images, original_sizes, self.resolve(depth), threshold)[0]

    def detect_with_features(
        self, source: object, depth: str | DepthConfig = "full", threshold: float = 0.5
    ) -> tuple[Detections, dict[str, NDArray[np.float32]]]:
        """Detect objects in one image, and return the pooled feature maps of the pass.

        Args:
            source: One image, as :meth:`predict` takes it.
            depth: A depth of the bundle, or a budget, see :meth:`resolve`.
            threshold: Detections with a lower score are left out.

        Returns:
            What :meth:`predict` finds, and [C, G, G] of each part of the network, see
            :attr:`anydepth.deploy.runtime.bundle.Bundle.features`.

        Raises:
            BundleError: The graphs of the bundle return no feature maps.
            Exception: See :meth:`predict`.
        """
        if self.bundle.features is None:
            raise BundleError(
                f"{self.bundle.folder}: its graphs return no feature maps; export it again with "
                "feature_grid=2, the grid of the router"
            )
        threshold, entry = check_share("threshold", threshold), self.resolve(depth)
        found, maps = self._detect([to_picture(source)], entry, threshold)
        return found[0], {name: values[0] for name, values in maps.items()}

    def _detect_fitted(
        self,
        images: NDArray[np.float32],
        original_sizes: Sequence[tuple[int, int]],
        entry: BundledDepth,
        threshold: float,
    ) -> tuple[list[Detections], dict[str, NDArray[np.float32]]]:
        """Return the detections of each image, and the feature maps [B, C, G, G] by part, if there are."""
        if len(images) != len(original_sizes):
            raise ValueError(f"got {len(images)} images and {len(original_sizes)} sizes, expected as many")
        missing = max(self.bundle.input.batch or 0, len(images)) - len(images)
        if missing:  # A fixed number of images, of which the last batch has fewer.
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        self._check_images(images)
        everything = self._run(images, entry, threshold)
        outputs, maps = everything[: self._candidates], everything[self._candidates :]
        if not are_finite(outputs, selects=self.bundle.selects):
            raise NonFiniteOutputError(
                f"the network's output at depth {entry.config} holds NaN or infinite values: the weights are "
                "damaged, or too large for the engine's precision; export the bundle again, or use "
                "precision='fp32'"
            )
        found = split_selected(outputs) if self.bundle.selects else None
        detections = []
        # A batch that was filled up has more rows than images.
        for index, size in enumerate(original_sizes):
            if found is None:
                boxes = to_pixels(outputs[0][index], self.bundle, size)
                own = select(boxes, outputs[1][index], self.bundle.selection, threshold)
            else:
                own = found[index]._replace(boxes_xyxy=to_pixels(found[index].boxes_xyxy, self.bundle, size))
            detections.append(Detections(*own, self.class_names))
        return detections, dict(zip(FEATURES, maps, strict=False))

    def _detect(
        self, pictures: Sequence[NDArray[np.uint8]], entry: BundledDepth, threshold: float
    ) -> tuple[list[Detections], dict[str, NDArray[np.float32]]]:
        fit = cast(Fit, self.bundle.input.fit)
        images = to_input([fit_picture(picture, self.input_size, fit) for picture in pictures])
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        found, maps = self._detect_fitted(images, sizes, entry, threshold)
        return [own.clipped(*size) for own, size in zip(found, sizes, strict=True)], maps

    def _run(
        self, images: NDArray[np.float32], entry: BundledDepth, threshold: float
    ) -> tuple[NDArray[Any], ...]:
        selects = self.bundle.selects
        outputs = self._session(entry).run(images, entry.number, threshold if selects else None)
        try:
            check_outputs(
                outputs,
                len(images),
                len(self.class_names),
                selects=selects,
                features=self.bundle.features,
            )
        except BundleError as error:
            raise BundleError(f"{self.bundle.folder}: the graph {entry.graph} {error}") from None
        return outputs

    def _session(self, entry: BundledDepth) -> Session:
        """Return the session of a depth, which is opened at its first use."""
        session = self._opened(entry.graph)
        if session is None:
            with self._opening:
                # Another thread may have opened it meanwhile.
                session = self._opened(entry.graph)
                if session is None:
                    session = self._open(entry)
        return session

    def _opened(self, graph: str) -> Session | None:
        with self._lock:
            if graph not in self._sessions:
                return None
            self._sessions.move_to_end(graph)
            return self._sessions[graph][0]

    def _open(self, entry: BundledDepth) -> Session:
        weights = self.bundle.check_graph(entry.graph)
        if self._verify:
            self.bundle.check_files(entry.graph, *(() if self._weights_checked else (WEIGHTS,)))
            self._weights_checked = True
        if weights > self._limit:
            raise BundleError(
                f"{self.bundle.folder}: depth {entry.config} has {weights / 2**20:.0f} MiB of weights, the "
                f"memory limit is {self._limit / 2**20:.0f}; raise memory_limit, or use a smaller depth or "
                "detector"
            )
        with self._lock:
            while self._sessions and weights + sum(size for _, size in self._sessions.values()) > self._limit:
                self._sessions.popitem(last=False)
        session = open_session(
            self.engine,
            self.bundle.folder / entry.graph,
            self._options,
            several_depths=entry.number is not None,
            selects=self.bundle.selects,
            features=self.bundle.features is not None,
        )
        with self._lock:
            self._sessions[entry.graph] = (session, weights)
        return session


def depth_figures(bundle: Bundle, engine: str, options: EngineOptions) -> list[DepthFigures]:
    """Return what is known of each depth of a bundle.

    Latency and memory are those of a pass of one image (of a bundle for a fixed number of images: of as many)
    that were measured last under these conditions: with the installed version of the engine, on a machine of
    this kind, and with these options. Others, as of a machine from which the bundle was copied, say nothing.
    """
    here = conditions_here(engine, options, bundle.input.batch or 1)
    rows = []
    for entry in bundle.depths:
        measured = newest(entry.measurements, here)
        rows.append(
            DepthFigures(
                str(entry.config),
                2 * entry.gmacs,
                entry.figures.get("AP"),
                measured.median_ms if measured else None,
                measured.memory_mb if measured else None,
            )
        )
    return rows


def load(
    path: str | Path,
    *,
    engine: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    precision: str = "fp32",
    trust_code: bool = False,
    memory_limit: float | None = None,
    verify: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> DeployedDetector:
    """Load the detector of a bundle; graphs are opened when a depth is first used.

    Args:
        path: Folder that ``anydepth-export`` wrote; or as a text the name ``OWNER/NAME`` of a repository of
            the Hugging Face hub with such a bundle, if there is no such folder (extra ``hub``).
        engine: ``onnxruntime`` or ``openvino``; ``aotinductor`` for a bundle of ``format=torch``; ``auto``:
            the first that reads the bundle's format.
        device: ``cpu``; with ONNX Runtime also ``cuda``, ``tensorrt`` or ``coreml``, with OpenVINO ``gpu`` or
            ``npu``.
        threads: Threads of one pass on a CPU; None: as many as the engine chooses.
        precision: ``fp32``, or ``auto`` for what the engine chooses (OpenVINO: bfloat16 where the
            processor has it, which finds somewhat different boxes).
        trust_code: Whether machine code in the bundle may run, as one of ``format=torch`` has it: it can do
            whatever the program can.
        memory_limit: Limit in MiB of the weights of all open depths; None: no limit.
        verify: Whether files are compared with the hashes in the bundle; False saves a fraction of a second.
        revision: Branch, tag or commit of the repository; None: the main branch.
        cache_dir: Folder for downloads; None: that of ``huggingface_hub``.

    Raises:
        BundleError: No bundle, or one that is damaged, of another version or not allowed.
        HubError: Neither a folder nor a repository that can be read.
        ValueError: A revision or a folder for downloads of a local path.
        EngineError: Options that do not exist, or an engine that is not installed.
    """
    options = EngineOptions(device, threads, precision, trust_code)
    bundle = read_bundle(find_bundle(path, revision=revision, cache_dir=cache_dir))
    return DeployedDetector(bundle, engine=engine, options=options, memory_limit=memory_limit, verify=verify)


def _measured_conditions(bundle: Bundle) -> str:
    """Return the conditions of the measurements that a bundle holds, for a message."""
    found = {one.conditions for entry in bundle.depths for one in entry.measurements}
    return f"; what it holds was measured with {join_few(sorted(map(str, found)), 3)}" if found else ""


def _check_memory_limit(limit: object) -> float:
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
        raise ValueError(f"got memory_limit={limit!r}, expected MiB above 0, or None")
    return limit
