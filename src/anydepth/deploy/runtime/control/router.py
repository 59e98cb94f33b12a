"""The learnt router without PyTorch: how much more full depth would gain on the next frame.

Source: Kang et al. (2026), "Dynamic Depth Routing for Budget-Adaptive Object Detection in ADAS". A router
regresses the advantage A = loss at minimal depth - loss at full depth of an image, from what the last frame
left behind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anydepth.deploy.runtime.bundle import FeatureMaps
from anydepth.deploy.runtime.control.policy import ControlError, FrameResult
from anydepth.deploy.runtime.control.statistics import NAMES, detection_statistics
from anydepth.utils.messages import short_repr

FORMAT: Final = "anydepth_router"
FORMAT_VERSION: Final = 1
DESCRIPTION: Final = "router.json"
ARRAYS: Final = "router.npz"

Kind = Literal["statistics", "gap_mlp", "tiny_conv"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

_MAX_BYTES: Final = 2**26
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Router:
    """A router whose arrays were read.

    Attributes:
        kind: ``statistics``: a multi-layer perceptron on statistics of detections; ``gap_mlp`` and
            ``tiny_conv``: on pooled feature maps, the latter with a convolution per group.
        groups: Names of the groups of maps that it sees; empty for ``statistics``.
        grid: Side G of the pooled maps; 0 for ``statistics``.
        band: Lowest and highest advantage that it predicted for the validation images.
        threshold: Advantage above which full depth runs, if no budget says otherwise: the median of what it
            predicted for the validation images.
        arrays: Weights by name.
        channels: Channels of each group; empty for ``statistics``.
    """

    kind: Kind
    groups: tuple[str, ...]
    grid: int
    band: tuple[float, float]
    threshold: float
    arrays: Mapping[str, Floats]
    channels: Mapping[str, int] = field(default_factory=dict)

    @property
    def needs_maps(self) -> bool:
        """Whether it sees feature maps."""
        return self.kind != "statistics"

    @property
    def maps(self) -> FeatureMaps | None:
        """The feature maps that it sees; None: it sees statistics."""
        return FeatureMaps(self.grid, self.channels) if self.needs_maps else None

    def advantage(self, frame: FrameResult, *, deep: bool) -> float:
        """Return the advantage that full depth is expected to have on the frame after this one.

        Args:
            frame: The last frame.
            deep: Whether it ran at the deep end.

        Raises:
            ControlError: The frame lacks what this router sees.
        """
        return self.predict(self.inputs_of(frame), deep=deep)

    def inputs_of(self, frame: FrameResult) -> dict[str, Floats]:
        """Return what this router sees of a frame.

        Raises:
            ControlError: The frame lacks it.
        """
        if not self.needs_maps:
            if frame.detections is None:
                raise ControlError("got a frame without detections, whose statistics this router needs")
            return {"statistics": detection_statistics(frame.detections)}
        missing = [name for name in self.groups if name not in frame.features]
        if missing:
            raise ControlError(
                f"got a frame without the feature maps {missing} that this router needs: export the bundle "
                f"with feature_grid={self.grid}, or give features=FeatureTap(detector, {self.grid}) beside "
                "a PyTorch detector"
            )
        return {name: np.asarray(frame.features[name], np.float32) for name in self.groups}

    def predict(self, inputs: Mapping[str, Floats], *, deep: bool) -> float:
        """Return the expected advantage.

        Args:
            inputs: ``statistics`` [12], or pooled maps [C, G, G] by group.
            deep: Whether they come from the deep end.
        """
        if self.kind == "tiny_conv":
            parts = [self._convolve(name, inputs[name]) for name in self.groups]
        else:
            parts = (
                [inputs["statistics"]]
                if not self.needs_maps
                else [inputs[name].mean((1, 2)) for name in self.groups]
            )
            parts = [(np.concatenate(parts) - self.arrays["mean"]) / self.arrays["deviation"]]
        values = np.concatenate([*parts, self.arrays["path"][int(deep)]])
        hidden = np.maximum(self.arrays["hidden.weight"] @ values + self.arrays["hidden.bias"], 0)
        return float((self.arrays["last.weight"] @ hidden + self.arrays["last.bias"])[0])

    def _convolve(self, name: str, maps: Floats) -> Floats:
        """Return [64] of pooled maps [C, G, G]: norm, 1 x 1, ReLU, 3 x 3 per channel, ReLU, mean."""
        weights = {key: self.arrays[f"{name}.{key}"] for key in ("scale", "shift", "reduce", "depthwise")}
        normed = maps * weights["scale"][:, None, None] + weights["shift"][:, None, None]
        reduced = np.einsum("oc,chw->ohw", weights["reduce"], normed)
        reduced = np.maximum(reduced + self.arrays[f"{name}.reduce_bias"][:, None, None], 0)
        padded = np.pad(reduced, ((0, 0), (1, 1), (1, 1)))
        height, width = reduced.shape[1:]
        mixed = sum(
            weights["depthwise"][:, row, column, None, None]
            * padded[:, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        )
        mixed = mixed + self.arrays[f"{name}.depthwise_bias"][:, None, None]
        pooled: Floats = np.maximum(mixed, 0).mean((1, 2))
        return pooled


def read_router(folder: str | Path) -> Router:
    """Read the router that ``anydepth-route`` wrote.

    The files are untrusted: nothing in them is executed, and shapes are checked by running the router once.

    Args:
        folder: Folder of ``router.json`` and ``router.npz``.

    Raises:
        ControlError: A file is missing, damaged or of another version.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, ARRAYS):
        path = folder / name
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ControlError(f"{path}: missing or too large; give a folder that anydepth-route wrote")
    try:
        values = json.loads((folder / DESCRIPTION).read_bytes())
        _check_version(values)
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float32) for name in file.files}
        router = _parse(values, arrays)
        _try(router, values["channels"])
    except ControlError as error:
        raise ControlError(f"{folder / DESCRIPTION}: {error}") from None
    # Whatever a damaged file leads to, in a parser or in numpy.
    except Exception as error:
        raise ControlError(
            f"{folder}: damaged router ({short_repr(str(error))}); copy it again, or train it with "
            "anydepth-route"
        ) from error
    return router


def _check_version(values: object) -> None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ControlError("not a router; give a folder that anydepth-route wrote")
    if values.get("format_version") != FORMAT_VERSION:
        raise ControlError(
            f"version {short_repr(values.get('format_version'))}, expected {FORMAT_VERSION}; train it again"
        )
    if values.get("kind") not in KINDS:
        raise ControlError(f"got the kind {short_repr(values.get('kind'))}, expected one of {KINDS}")
    if values["kind"] == "statistics" and values.get("statistics") != list(NAMES):
        raise ControlError("its statistics are not those of this version of anydepth; train it again")


def _parse(values: Mapping[str, Any], arrays: Mapping[str, Floats]) -> Router:
    low, high = (float(value) for value in values["band"])
    threshold = float(values["threshold"])
    if not np.isfinite([low, high, threshold]).all() or not all(
        np.isfinite(array).all() for array in arrays.values()
    ):
        raise ControlError("holds NaN or infinite numbers; train it again")
    channels = {str(name): int(count) for name, count in values["channels"].items()}
    return Router(
        values["kind"], tuple(channels), int(values["grid"]), (low, high), threshold, arrays, channels
    )


def _try(router: Router, channels: Mapping[str, int]) -> None:
    """Run a router on zeros, which fails if its arrays do not fit each other."""
    grid = min(router.grid, 64)
    inputs: dict[str, Floats] = {
        name: np.zeros((int(count), grid, grid), np.float32) for name, count in channels.items()
    }
    if not router.needs_maps:
        inputs = {"statistics": np.zeros(len(NAMES), np.float32)}
    for deep in (False, True):
        router.predict(inputs, deep=deep)
