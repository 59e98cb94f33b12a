"""Training of a router on collected samples, and its files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anydepth.deploy.routing.networks import RouterNetwork
from anydepth.deploy.routing.samples import RouteError, Samples
from anydepth.deploy.runtime.control.policy import ControlError
from anydepth.deploy.runtime.control.router import (
    ARRAYS,
    DESCRIPTION,
    FORMAT,
    FORMAT_VERSION,
    KINDS,
    Kind,
    Router,
)
from anydepth.deploy.runtime.control.statistics import NAMES
from anydepth.utils.files import atomic_path, write_text

_LEAST = 8
# Beyond the validation images' range, a frame of a video is not unlikely (the source's margin, too).
_BAND_MARGIN = 0.03


@dataclass(frozen=True)
class FitSettings:
    """How a router is trained.

    Attributes:
        kind: Kind of the router.
        groups: Groups of maps that it sees; ignored for ``statistics``.
        epochs: Passes over the samples.
        lr: Learning rate of Adam.
        batch_size: Samples of a step.
        weight_decay: Decay of AdamW.
        seeds: Seeds of as many trainings, the best of which is kept.

    Raises:
        RouteError: An unknown kind, no group, no seed, or numbers that are not above 0.
    """

    kind: Kind
    groups: tuple[str, ...]
    epochs: int
    lr: float
    batch_size: int
    weight_decay: float
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RouteError(f"got kind={self.kind}, expected one of {', '.join(KINDS)}")
        unknown = set(self.groups) - {"backbone", "neck"}
        if unknown or not self.groups or len(set(self.groups)) != len(self.groups):
            raise RouteError(f"got groups={list(self.groups)}, expected backbone, neck or both")
        counts = min(self.epochs, self.batch_size, len(self.seeds))
        if counts < 1 or not self.lr > 0 or not self.weight_decay >= 0:
            raise RouteError(
                f"got epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}, weight_decay="
                f"{self.weight_decay}, seeds={list(self.seeds)}, expected numbers from 1, a rate above 0, a "
                "decay from 0 and a seed"
            )


@dataclass(frozen=True)
class Fitted:
    """A trained router.

    Attributes:
        router: The router.
        channels: Channels of each group.
        pearson: Pearson's r of predicted and true advantage on the validation images, both paths.
        epoch: Epoch of the weights, from 1.
        seed: Seed of the training that they are from.
        parameters: Number of parameters.
        predicted: [N, 2] predictions for the validation images, by the path that the features are from.
    """

    router: Router
    channels: Mapping[str, int]
    pearson: float
    epoch: int
    seed: int
    parameters: int
    predicted: NDArray[np.float32]


def fit_router(train: Samples, val: Samples, settings: FitSettings) -> Fitted:
    """Train a router, and keep the weights of the seed and epoch with the best validation Pearson r.

    Args:
        train: Samples that it learns from.
        val: Samples that choose among seeds and epochs.
        settings: How it is trained.

    Raises:
        RouteError: Fewer than 8 images of either, or advantages that are all equal.
    """
    for name, samples in (("training", train), ("validation", val)):
        if len(samples) < _LEAST or not samples.advantages.std() > 0:
            raise RouteError(
                f"got {len(samples)} {name} images whose advantages deviate by "
                f"{samples.advantages.std() if len(samples) else 0:.3g}, expected at least {_LEAST} and some "
                "deviation: both ends must differ, and images must have boxes"
            )
    found = [_fit(train, val, settings, seed) for seed in settings.seeds]
    return max(found, key=lambda fitted: fitted.pearson)


def _fit(train: Samples, val: Samples, settings: FitSettings, seed: int) -> Fitted:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        names = ("statistics",) if settings.kind == "statistics" else settings.groups
        channels = {name: int(train.inputs[name].shape[2]) for name in names}
        network = RouterNetwork(settings.kind, channels)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        inputs, advantages = _tensors(train, names), torch.from_numpy(train.advantages)
        if settings.kind != "tiny_conv":
            network.standardise(network.vector({name: value.flatten(0, 1) for name, value in inputs.items()}))
        with torch.no_grad():
            network.last.bias.fill_(float(advantages.mean()))
        best: tuple[float, int, Fitted] | None = None
        for epoch in range(1, settings.epochs + 1):
            _train_epoch(network, optimizer, inputs, advantages, settings.batch_size)
            predicted = predict(network, val)
            pearson = pearson_r(predicted, np.stack([val.advantages] * 2, 1))
            if best is None or pearson > best[0]:
                best = (pearson, epoch, _pack(network, channels, predicted, pearson, epoch, seed, val))
        assert best is not None
        return best[2]


def _train_epoch(
    network: RouterNetwork,
    optimizer: torch.optim.Optimizer,
    inputs: Mapping[str, Tensor],
    advantages: Tensor,
    batch_size: int,
) -> None:
    network.train()
    order = torch.randperm(len(advantages))
    # Which path ran on the frame before is chance here, so that the router suits the features of both.
    paths = torch.randint(2, (len(advantages),))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        if len(rows) < 2:
            continue  # A batch norm has no statistics of a single one.
        path = paths[rows]
        chosen = {name: value[rows, path] for name, value in inputs.items()}
        loss = functional.mse_loss(network(chosen, path), advantages[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def predict(network: RouterNetwork, samples: Samples) -> NDArray[np.float32]:
    """Return predicted advantages [N, 2], by the path that the features are from."""
    network.eval()
    inputs = _tensors(samples, network.groups)
    with torch.no_grad():
        both = [
            network(
                {name: value[:, path] for name, value in inputs.items()}, torch.full((len(samples),), path)
            )
            for path in (0, 1)
        ]
    found: NDArray[np.float32] = torch.stack(both, 1).numpy()
    return found


def pearson_r(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    """Return Pearson's r, 0 if either is constant.

    Example:
        >>> pearson_r(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
        1.0
    """
    x, y = (np.asarray(values, np.float64).ravel() for values in (predicted, true))
    spread = x.std() * y.std()
    if not spread > 0:
        return 0.0
    return round(float(((x - x.mean()) * (y - y.mean())).mean() / spread), 9)


def _tensors(samples: Samples, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(samples.inputs[name]).float() for name in names}


def _pack(
    network: RouterNetwork,
    channels: Mapping[str, int],
    predicted: NDArray[np.float32],
    pearson: float,
    epoch: int,
    seed: int,
    val: Samples,
) -> Fitted:
    # [N, 2, C, G, G] of maps; statistics have no grid.
    shape = val.inputs[network.groups[0]].shape
    router = Router(
        kind=network.kind,
        groups=() if network.kind == "statistics" else network.groups,
        grid=int(shape[-1]) if len(shape) == 5 else 0,
        band=(float(predicted.min()) - _BAND_MARGIN, float(predicted.max()) + _BAND_MARGIN),
        threshold=float(np.median(predicted)),
        arrays={name: array.copy() for name, array in network.to_arrays().items()},
        channels={} if network.kind == "statistics" else channels,
    )
    count = sum(parameter.numel() for parameter in network.parameters())
    return Fitted(router, router.channels, pearson, epoch, seed, count, predicted)


def write_router(fitted: Fitted, folder: str | Path, facts: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``router.npz`` and ``router.json``, which :func:`anydepth.deploy.control.read_router` reads.

    Args:
        fitted: The router.
        folder: Folder, which exists or can be made.
        facts: Further plain values for the description, such as the detector's name.

    Returns:
        The files by description.

    Raises:
        ControlError: The router holds NaN; nothing was written.
        OSError: A file cannot be written.
    """
    router = fitted.router
    if not all(np.isfinite(array).all() for array in router.arrays.values()):
        raise ControlError("got a router with NaN or infinite weights; lower lr")
    folder = Path(folder)
    with atomic_path(folder / ARRAYS) as partial, partial.open("wb") as file:
        np.savez(file, **dict(router.arrays))  # type: ignore[arg-type]
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": router.kind,
        "grid": router.grid,
        "channels": dict(fitted.channels),
        "statistics": list(NAMES),
        "band": list(router.band),
        "threshold": router.threshold,
        "parameters": fitted.parameters,
        "pearson": fitted.pearson,
        "epoch": fitted.epoch,
        "seed": fitted.seed,
        **facts,
    }
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2, allow_nan=False) + "\n")
    return {"router": folder / DESCRIPTION, "weights of the router": folder / ARRAYS}
