"""The contract of a detector, whatever family or package it is from."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from anydepth.budget import DepthFigures, choose_depth, parse_budget
from anydepth.depth import DepthConfig, DepthCosts, DepthSpace
from anydepth.fixed_depth import FixedDepthSpace
from anydepth.image_sources import ImageSource, list_images, to_image
from anydepth.images import fit_image, to_unit_range
from anydepth.layers.macs import count_forward
from anydepth.layers.mode import ModuleT, in_eval_mode
from anydepth.layers.specialise import specialise
from anydepth.measurement import Conditions
from anydepth.pictures.fitting import Fit, Placement, place_image
from anydepth.pictures.sources import read_member
from anydepth.selection import Selection
from anydepth.structures import Candidates, Detections, DetectorOutput, Targets
from anydepth.utils.arguments import check_count, check_share
from anydepth.weights import figures
from anydepth.weights.own_layout import load_own_layout
from anydepth.weights.report import LoadReport


class NonFiniteOutputError(ArithmeticError):
    """NaN or infinite network output, which cannot be decoded to boxes."""


class Detector(nn.Module, ABC):
    """One network, one set of weights, many depths.

    Attributes:
        depth_space: Parses, prints and enumerates the depths of this detector.
        num_classes: K.
        class_names: One name per class; "0", "1", ... until a data set or a weights file names them.
        input_size: (height, width) in pixels that evaluation and prediction resize to.
        fit: Whether they keep the aspect ratio.
        config: Plain values that :func:`anydepth.build` builds an equal detector from.
        builder: Full name of the function or class that built it from these values; saved with the weights.
        clips_boxes: Whether :meth:`postprocess` clips boxes to the image, as the reference of a family does
            before it is scored. AP depends on it, so it is recorded with each depth curve.
        memory_format: Layout of the maps in a specialised detector; ``channels_last`` is faster on CPUs, if
            no part of the forward depends on strides, as ``view`` does.
        specialised_for: Depth that :meth:`specialise` made this detector for; None for one of all depths.
        weights_file: File that the weights were loaded from; what is known of the depths lies beside it, see
            :mod:`anydepth.weights.figures`. None: not from a file.
    """

    depth_space: DepthSpace
    num_classes: int
    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    fit: Fit
    config: Mapping[str, object]
    builder: str
    clips_boxes: ClassVar[bool] = False
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format
    specialised_for: DepthConfig | None = None
    weights_file: Path | None = None

    @property
    def compiled(self) -> bool:
        """Whether calls run what ``torch.compile`` made, see :func:`anydepth.detector.compile_depth`."""
        return self._compiled_call_impl is not None

    @property
    @abstractmethod
    def stage_modules(self) -> tuple[str, ...]:
        """Name of the submodule that holds each stage of :attr:`depth_space`, in its order."""

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        depth: str | DepthConfig = "full",
        targets: Sequence[Targets] | None = None,
        stem: Tensor | None = None,
    ) -> DetectorOutput:
        """Run the network at one depth.

        Args:
            images: [B, 3, H, W] float RGB in [0, 1].
            depth: A depth of :attr:`depth_space`.
            targets: Ground truth per image, for what a family feeds back in training (denoising). Ignored in
                eval mode.
            stem: Output of :meth:`stem_features` for these images, so that it is not computed again.

        Raises:
            DepthError: The depth does not exist in this detector's space.
            ValueError: Images of a wrong shape or type.
        """

    @abstractmethod
    def stem_features(self, images: Tensor) -> Tensor:
        """Return what all depths share in front of the first stage, for several passes over one batch.

        Args:
            images: [B, 3, H, W] float RGB in [0, 1].

        Raises:
            ValueError: Images of a wrong shape or type.
        """

    @abstractmethod
    def postprocess(
        self, output: DetectorOutput, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections per image as they are scored, best score first, no threshold.

        Boxes are in pixels of the original image, and clipped to it only if :attr:`clips_boxes`.

        Args:
            output: Output of :meth:`forward` in eval mode.
            original_sizes: (height, width) of each image in pixels.
        """

    @property
    def selection(self) -> Selection | None:
        """How :meth:`postprocess` selects detections among :meth:`candidates`, for exported bundles.

        None: not stated, so that the detector cannot be exported.
        """
        return None

    def candidates(self, output: DetectorOutput) -> Candidates:
        """Return the boxes among which :meth:`postprocess` selects, for exported bundles.

        Args:
            output: Output of :meth:`forward` in eval mode.

        Raises:
            NotImplementedError: The family does not state them, so that it cannot be exported.
        """
        raise NotImplementedError(
            f"{type(self).__name__} states no candidates; define `candidates` and `selection` to export it"
        )

    @abstractmethod
    def reset_classes(self, class_names: Sequence[str]) -> None:
        """Name the classes; if their number changes, the class heads are initialised again."""

    def load_weights(self, source: str | Path | Mapping[str, object]) -> LoadReport:
        """Fill the detector with weights of a file or a state dict.

        A family overrides this with the layouts it knows; by default, keys must be named as in the detector.

        Args:
            source: A checkpoint file, or a state dict.

        Returns:
            What was loaded, kept as initialised and left over; prints as text.

        Raises:
            WeightsError: The source cannot be read or does not fit; the detector is left as it was.
        """
        return load_own_layout(self, self.class_names, source)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode.

        Raises:
            ValueError: Training mode of a specialised detector.
        """
        if mode and self.specialised_for is not None:
            raise ValueError(
                f"got a detector that was specialised for '{self.specialised_for}', which cannot be trained: "
                "train the original"
            )
        return super().train(mode)

    def specialise(self, depth: str | DepthConfig = "full", *, share_weights: bool = False) -> Self:
        """Return the network of one depth alone, smaller and faster than this detector at that depth.

        Norms are folded into convolutions, branches merged and parts that do not run left out, so that
        results are equal to rounding. The result is a snapshot that shares nothing with this detector; its
        :attr:`depth_space` refuses every other depth.

        Args:
            depth: A depth of :attr:`depth_space`, or a budget, see :meth:`resolve`.
            share_weights: Whether the networks of several depths shall share a file of weights: kernels that
                two norm sets use then keep their values, each with its norm behind it, and all others are
                folded to the same values at every depth where they run.

        Returns:
            A detector in eval mode on the same device, whose parameters need no gradients. A detector that
            was specialised for this depth returns itself.

        Raises:
            DepthError: A depth that does not exist, or one that this detector was not specialised for, or
                nothing is within the budget.
            ValueError: ``share_weights`` of a detector that is specialised already.

        Example:
            >>> import anydepth
            >>> detector = anydepth.build("yolo_tiny", num_classes=2)
            >>> fast = detector.specialise("minimal")
            >>> str(fast.depth_space), fast.training, detector.training
            ('minimal', False, True)
        """
        config = self.resolve(depth, specialised=True)
        if self.specialised_for is not None:
            if share_weights:
                raise ValueError(
                    f"got share_weights=True of a detector that was specialised for '{config}' already: "
                    "specialise the original"
                )
            return self
        images = torch.empty(1, 3, *self.input_size, device="meta")
        network = specialise(
            self, images, depth=config, share_weights=share_weights, memory_format=self.memory_format
        )
        network.depth_space = FixedDepthSpace(self.depth_space, config)
        network.specialised_for = config
        return network

    def resolve(
        self, depth: str | DepthConfig, *, specialised: bool = False, compiled: bool = False
    ) -> DepthConfig:
        """Return the depth that a text or a budget names.

        Args:
            depth: A depth of :attr:`depth_space`, or a budget: ``<=40gflops``; ``>=95%ap`` of the best AP in
                the depth curve beside the weights; ``<=8ms`` or ``<=120mb`` by what ``anydepth-benchmark``
                measured on this machine with the same device, precision and number of threads.
            specialised: Whether latency and memory are those of the specialised network of the depth
                (:meth:`specialise`); otherwise those of this detector (``engine=eager``).
            compiled: Whether they are those of that network compiled, see
                :func:`anydepth.detector.compile_depth`.

        Raises:
            DepthError: A depth that does not exist, or nothing is within the budget.
            WeightsError: The curve or the measurements beside the weights are damaged.

        Example:
            >>> import anydepth
            >>> detector = anydepth.build("yolo_tiny", num_classes=2)
            >>> str(detector.resolve("<=40gflops")), str(detector.resolve("1/2")) != "full"
            ('full', True)
        """
        budget = parse_budget(depth)
        if budget is None:
            return self.depth_space.parse(depth)
        rows = self.depth_figures(specialised=specialised, compiled=compiled)
        remedy = ""
        if all(row.cost(budget.unit) is None for row in rows):
            here = self._conditions(specialised, compiled)
            remedy = figures.remedy_for(budget, self.measured_network, self.weights_file, here)
        return self.depth_space.parse(choose_depth(budget, rows, remedy=remedy))

    def resolve_list(
        self,
        depths: str | DepthConfig | Sequence[str | DepthConfig],
        *,
        specialised: bool = False,
        compiled: bool = False,
    ) -> list[DepthConfig]:
        """Return several depths: texts and budgets, or ``ladder`` or ``all``; duplicates are dropped.

        Raises:
            DepthError: A depth that does not exist, an empty list, or nothing is within a budget.
            WeightsError: The curve or the measurements beside the weights are damaged.
        """
        given: object = depths  # A configuration file may hold anything.
        if not isinstance(given, Sequence):
            return self.depth_space.parse_list(depths)
        several = [given] if isinstance(given, str) else given
        return self.depth_space.parse_list(
            [
                self.resolve(one, specialised=specialised, compiled=compiled) if parse_budget(one) else one
                for one in several
            ]
        )

    def depth_figures(self, *, specialised: bool = False, compiled: bool = False) -> list[DepthFigures]:
        """Return what is known of the depths among which :meth:`resolve` chooses by a budget.

        :func:`anydepth.budget.figures_table` prints it; :func:`anydepth.weights.figures.known_figures` says
        which depths these are.
        """
        here = self._conditions(specialised, compiled)
        return figures.known_figures(
            self.depth_space, self.measured_network, self.weights_file, here, self._count_gflops
        )

    @property
    def measured_network(self) -> figures.Network:
        """The network to which AP and measurements of the depths belong."""
        config = getattr(self, "config", {})
        height, width = self.input_size
        return figures.Network(str(config.get("name", type(self).__name__)), config, (height, width))

    def _conditions(self, specialised: bool, compiled: bool) -> Conditions:
        device = next(self.parameters()).device
        engine = figures.engine_of(
            specialised=specialised or self.specialised_for is not None, compiled=compiled or self.compiled
        )
        return figures.conditions_here(engine, device, figures.autocast_precision(device))

    def _count_gflops(self, config: DepthConfig) -> float:
        """Count the GFLOPs of a depth, once: a count takes longer than a small network's pass."""
        counted: dict[object, float] = self.__dict__.setdefault("_gflops", {})
        key = (config, tuple(self.input_size), self.specialised_for)
        if key not in counted:
            images = torch.empty(1, 3, *self.input_size, device="meta")
            counted[key] = 2e-9 * count_forward(self, images, depth=config).macs
        return counted[key]

    def placements(self, original_sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[Placement]:
        """Return where images of these sizes lay in an input of ``size`` (height, width) in pixels."""
        return [place_image(original, size, self.fit) for original in original_sizes]

    def measure_depth_costs(self) -> DepthCosts:
        """Count the MACs at ``input_size`` of each refinement path, and of one of several decoder layers."""
        space = self.depth_space
        images = torch.empty(1, 3, *self.input_size, device="meta")
        full = count_forward(self, images, depth=space.full)
        skipped = count_forward(self, images, depth=space.config((False,) * len(space.stages)))
        # By stage and not by block: a stage whose units are skipped also fuses fewer channels.
        refinements = tuple(
            full.macs_by_module[name] - skipped.macs_by_module.get(name, 0)
            for name, _ in zip(self.stage_modules, space.stages, strict=False)
        )
        layers = space.decoder_layers or 1
        if layers == 1:
            return DepthCosts(refinements)
        one_less = count_forward(self, images, depth=space.config(space.full.refine, layers - 1))
        return DepthCosts(refinements, full.macs - one_less.macs)

    def predict(
        self,
        source: ImageSource | Iterable[ImageSource],
        depth: str | DepthConfig = "full",
        threshold: float = 0.5,
        batch_size: int = 8,
        *,
        urls: bool = False,
    ) -> list[Detections]:
        """Detect objects in images of any size, in eval mode and without gradients.

        The detector is not changed, not even during the call, whatever its mode: several threads may predict
        with one detector at different depths.

        Args:
            source: One image or several: a path, the bytes of an image file, a Pillow picture, an array
                [H, W, 3] uint8 RGB, a tensor [3, H, W] RGB (uint8, or float in [0, 1]), or a batch of arrays
                or tensors. Files and Pillow pictures of any mode are converted to RGB and turned upright.
            depth: A depth of :attr:`depth_space`, or a budget, see :meth:`resolve`.
            threshold: Detections with a lower score are left out.
            batch_size: Images per forward pass, from 1.
            urls: Whether a text that begins with ``http://`` or ``https://`` is fetched.

        Returns:
            One entry per image, in host memory and with the class names; boxes in pixels of the original
            image and clipped to it.

        Raises:
            ValueError: An image of another form or range of values, a threshold outside [0, 1], a
                ``batch_size`` below 1, or weights of another type than float32.
            ImageError: A file that is missing or not a readable image.
            DepthError: A depth that does not exist, or nothing is within the budget.
        """
        threshold = check_share("threshold", threshold)
        batch_size = check_count("batch_size", batch_size)
        config = self.resolve(depth)
        sources, read = list_images(source), partial(to_image, urls=urls)
        weight = next(self.parameters())
        if weight.dtype != torch.float32:
            raise ValueError(
                f"got a detector whose weights are {weight.dtype}, expected torch.float32: keep them, and "
                f'predict within torch.autocast("{weight.device.type}", {weight.dtype}) for its speed'
            )
        found: list[Detections] = []
        with evaluating(self) as network:
            for start in range(0, len(sources), batch_size):
                images = [
                    read_member(read, sources, index)
                    for index in range(start, min(start + batch_size, len(sources)))
                ]
                sizes = [(image.shape[-2], image.shape[-1]) for image in images]
                # Resized on the host, as the validation loader does: a GPU rounds some grey levels otherwise.
                fitted = [fit_image(image, self.input_size, self.fit) for image in images]
                batch = torch.stack([to_unit_range(image) for image in fitted])
                output = network(batch.to(weight.device), depth=config)
                found += [
                    item.above(threshold).clipped(*size).cpu().named(self.class_names)
                    for item, size in zip(self.postprocess(output, sizes), sizes, strict=True)
                ]
        return found


@contextmanager
def evaluating(module: ModuleT) -> Iterator[ModuleT]:
    """Run the block without gradients, and provide the module in eval mode; the module is never switched.

    Yields:
        The module to call: ``module`` itself, or a copy in eval mode that shares its tensors.
    """
    with torch.inference_mode():
        yield in_eval_mode(module)


def plain_config(values: Mapping[str, object]) -> dict[str, object]:
    """Return a builder's arguments with sequences as lists, as a yaml or json file gives them back."""
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
    }
