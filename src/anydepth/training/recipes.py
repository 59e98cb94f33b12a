"""Optimisation recipes: parameter groups, learning-rate schedules and the length of a run."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from anydepth.weights.plan import skip_source

NoDecay = Literal["norm_and_bias", "norm", "none"]
Schedule = Literal["constant", "cosine", "linear", "multistep"]
Kind = Literal["weight", "norm", "bias"]

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
    nn.RMSNorm,
)
_EXEMPT: dict[NoDecay, frozenset[Kind]] = {
    "norm_and_bias": frozenset({"norm", "bias"}),
    "norm": frozenset({"norm"}),
    "none": frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Length and learning-rate schedule of a training; subclasses add the optimizer.

    A run ends after ``epochs`` or after ``minutes``, whichever comes first; the learning rate follows the
    one that is further along. The result of a run that ``minutes`` ends depends on the speed of the machine.

    Attributes:
        lr: Learning rate of everything but the backbone.
        backbone_lr: Learning rate of the backbone.
        skip_lr: Learning rate of what only depths below full use, the norms and fusion kernels of skipping
            stages, in backbone and elsewhere; None: that of their part of the detector.
        weight_decay: Weight decay of all parameters that are not exempt from it.
        schedule: ``constant``; ``cosine`` or ``linear`` to ``final_lr`` times the learning rate;
            ``multistep``, which multiplies by ``gamma`` at each of ``milestones``.
        warmup_steps: Optimizer steps in which the learning rate rises linearly.
        final_lr: Share of the learning rate that ``cosine`` and ``linear`` end with.
        milestones: Milestones of ``multistep``, as shares of the run in (0, 1).
        gamma: Factor of ``multistep``.
        epochs: Passes over the training images; None: as many as ``minutes`` allow.
        minutes: Wall time of training with its validations; None: no limit.
        clip_norm: Largest global norm of the gradients; None: no clipping.
        ema_decay: Decay of the averaged weights after their warm-up.
        ema_warmup_steps: Time constant of that warm-up, in optimizer steps.
        validate_every_epochs: Epochs between two validations; the last epoch is always validated.
        multi_scale_sizes: Sides in pixels that each step draws its image size from; empty: the data's size.

    Raises:
        ValueError: A value outside its range; the message names it.
    """

    lr: float
    backbone_lr: float
    weight_decay: float
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    final_lr: float = 0.0
    milestones: Sequence[float] = ()
    gamma: float = 0.1
    epochs: int | None = None
    minutes: float | None = None
    clip_norm: float | None = None
    ema_decay: float = 0.9999
    ema_warmup_steps: int = 2000
    validate_every_epochs: int = 1
    multi_scale_sizes: Sequence[int] = ()
    skip_lr: float | None = None

    def __post_init__(self) -> None:
        self._check("lr", self.lr > 0, "above 0")
        self._check("backbone_lr", self.backbone_lr >= 0, "0 and above")
        self._check("skip_lr", self.skip_lr is None or self.skip_lr >= 0, "0 and above, or null")
        self._check("weight_decay", self.weight_decay >= 0, "0 and above")
        self._check("schedule", self.schedule in get_args(Schedule), ", ".join(get_args(Schedule)))
        self._check("warmup_steps", self.warmup_steps >= 0, "0 and above")
        self._check("final_lr", 0 <= self.final_lr <= 1, "0 to 1")
        rising = list(self.milestones) == sorted(set(self.milestones))
        self._check("milestones", rising and all(0 < m < 1 for m in self.milestones), "rising, in (0, 1)")
        self._check("gamma", 0 < self.gamma <= 1, "above 0 and up to 1")
        self._check("epochs", self.epochs is None or self.epochs >= 1, "1 and above, or null")
        self._check("minutes", self.minutes is None or self.minutes > 0, "above 0, or null")
        self._check("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or null")
        self._check("ema_decay", 0 <= self.ema_decay < 1, "0 and above, below 1")
        self._check("ema_warmup_steps", self.ema_warmup_steps >= 0, "0 and above")
        self._check("validate_every_epochs", self.validate_every_epochs >= 1, "1 and above")
        if self.epochs is None and self.minutes is None:
            raise ValueError(
                "recipe.epochs and recipe.minutes are both null: the run would never end; give one"
            )

    def _check(self, name: str, allowed: bool, range_text: str) -> None:
        if not allowed:
            raise ValueError(f"recipe.{name}={getattr(self, name)}: allowed are {range_text}")

    @property
    def loss_scale(self) -> float:
        """Return the factor of the loss of a step."""
        return 1.0

    def decay_factor(self, progress: float) -> float:
        """Return the schedule's factor of the learning rates.

        Args:
            progress: Completed share of the run, in [0, 1].
        """
        progress = min(progress, 1.0)
        if self.schedule == "cosine":
            return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2
        if self.schedule == "linear":
            return self.final_lr + (1 - self.final_lr) * (1 - progress)
        if self.schedule == "multistep":
            return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))
        return 1.0

    def lr_factor(self, step: int, progress: float) -> float:
        """Return the factor of the learning rates, from the schedule and the warm-up.

        Args:
            step: Optimizer steps done.
            progress: Completed share of the run, in [0, 1].
        """
        return self.decay_factor(progress) * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    @abstractmethod
    def optimizer(self, detector: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """Return the optimizer of the trainable parameters of ``detector``.

        Args:
            detector: Detector; its attribute ``backbone`` gets the backbone's learning rate.
            fused: Whether to use one kernel per step; incompatible with gradient clipping under float16.
        """

    def scheduler(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: Callable[[], float],
        time_progress: Callable[[], float],
    ) -> LambdaLR:
        """Return the learning-rate schedule, to be stepped once per optimizer step.

        Args:
            optimizer: Optimizer that :meth:`optimizer` returned.
            total_steps: Function that returns the optimizer steps of the run; infinity if only ``minutes``
                limits it. Not called before the first step: a resumed run has not loaded its data until then.
            time_progress: Function that returns the share of ``minutes`` that has passed.
        """

        def factor(step: int) -> float:
            return self.lr_factor(step, _progress(step, total_steps, time_progress))

        return LambdaLR(optimizer, factor)


@dataclass(frozen=True, kw_only=True)
class AdamWRecipe(Recipe):
    """AdamW (Loshchilov and Hutter, ICLR 2019), the optimizer of RT-DETR.

    Attributes:
        no_decay: Parameters without weight decay: ``norm_and_bias``, only those of ``norm`` layers, or
            ``none``.
        betas: Decay rates of the two moments.
    """

    no_decay: NoDecay = "norm_and_bias"
    betas: Sequence[float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("no_decay", self.no_decay in get_args(NoDecay), ", ".join(get_args(NoDecay)))
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self._check("betas", in_range, "two shares in [0, 1)")

    def optimizer(self, detector: nn.Module, *, fused: bool = True) -> torch.optim.AdamW:
        """Return AdamW with decoupled weight decay."""
        groups = parameter_groups(
            detector,
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            skip_lr=self.skip_lr,
            weight_decay=self.weight_decay,
            exempt=_EXEMPT[self.no_decay],
        )
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=fused)


@dataclass(frozen=True, kw_only=True)
class SGDRecipe(Recipe):
    """SGD with Nesterov momentum, the optimizer of YOLO: weights decay, norms and biases do not.

    Its learning rates are meant for gradients that are summed over ``nominal_batch`` images. So the loss,
    which is a mean over the images of a step, is multiplied by that number, whatever the batch size, the
    number of processes and the accumulation.

    Attributes:
        momentum: Momentum after the warm-up.
        nominal_batch: Images per optimizer step that the learning rate was chosen for.
        warmup_momentum: Momentum at the start of the warm-up, in which it rises linearly.
        warmup_bias_lr: Learning rate of biases at the start of the warm-up, from where it changes linearly to
            theirs; all others start at 0.
    """

    momentum: float = 0.937
    nominal_batch: int = 64
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("momentum", 0 < self.momentum < 1, "above 0, below 1")
        self._check("nominal_batch", self.nominal_batch >= 1, "1 and above")
        self._check("warmup_momentum", 0 <= self.warmup_momentum < 1, "0 and above, below 1")
        self._check("warmup_bias_lr", self.warmup_bias_lr >= 0, "0 and above")

    @property
    def loss_scale(self) -> float:
        """Return the nominal batch size."""
        return float(self.nominal_batch)

    def optimizer(self, detector: nn.Module, *, fused: bool = True) -> torch.optim.SGD:
        """Return SGD with Nesterov momentum."""
        groups = parameter_groups(
            detector,
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            skip_lr=self.skip_lr,
            weight_decay=self.weight_decay,
            exempt=_EXEMPT["norm_and_bias"],
            separate="bias",
        )
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=True, fused=fused)

    def scheduler(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: Callable[[], float],
        time_progress: Callable[[], float],
    ) -> LambdaLR:
        """Return the learning-rate schedule, which also warms up the momentum and the biases' rate."""

        def factor(number: int, step: int) -> float:
            # Looked up each time: loading a checkpoint replaces the groups.
            group = optimizer.param_groups[number]
            done = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
            # LambdaLR calls this for every group before each step, so the momentum can be set here as well.
            group["momentum"] = self.warmup_momentum + done * (self.momentum - self.warmup_momentum)
            start_lr = self.warmup_bias_lr if group["name"].endswith("_bias") else 0.0
            start = start_lr / group["initial_lr"] if start_lr else 0.0
            decayed = self.decay_factor(_progress(step, total_steps, time_progress))
            return start + done * (decayed - start)

        return LambdaLR(optimizer, [partial(factor, number) for number in range(len(optimizer.param_groups))])


def _progress(step: int, total_steps: Callable[[], float], time_progress: Callable[[], float]) -> float:
    return max(step / total_steps() if step else 0.0, time_progress())


def parameter_groups(
    detector: nn.Module,
    *,
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    exempt: frozenset[Kind],
    separate: Kind | None = None,
    skip_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay, without frozen ones and empty groups.

    The type of its module decides whether a parameter belongs to a norm: names differ between families.

    Args:
        detector: Detector with the attribute ``backbone``.
        lr: Learning rate of everything but the backbone.
        backbone_lr: Learning rate of the backbone.
        weight_decay: Weight decay of parameters that are not exempt.
        exempt: Kinds without weight decay. The bias of a norm is of both kinds.
        separate: Exempt kind that gets groups of its own; biases of norms stay with the norms.
        skip_lr: Learning rate of what only depths below full use, which gets groups of its own; None: that of
            its part of the detector.

    Returns:
        Groups named ``backbone`` and ``head``, and ``skip`` if ``skip_lr`` is given, with the suffixes
        ``_no_decay`` and ``_KIND`` of ``separate``.

    Raises:
        ValueError: The detector has no backbone, or nothing to train.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"{type(detector).__name__} has no `backbone`, which recipe.backbone_lr applies to; name its "
            "backbone module so"
        )
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    suffixes = ["", "_no_decay"] + ([f"_{separate}"] if separate else [])
    rates = {"backbone": backbone_lr, "head": lr} | ({} if skip_lr is None else {"skip": skip_lr})
    groups: dict[str, list[nn.Parameter]] = {part + suffix: [] for part in rates for suffix in suffixes}
    for name, parameter, kinds in _trainable_parameters(detector):
        part = "backbone" if id(parameter) in in_backbone else "head"
        if skip_lr is not None and skip_source(name) is not None:
            part = "skip"
        suffix = f"_{separate}" if kinds == {separate} else "_no_decay" if kinds & exempt else ""
        groups[part + suffix].append(parameter)
    if not any(groups.values()):
        raise ValueError(
            f"all parameters of {type(detector).__name__} are frozen: nothing to train; unfreeze some"
        )
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates[name.partition("_")[0]],
            "weight_decay": weight_decay if name in rates else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def _trainable_parameters(detector: nn.Module) -> Iterator[tuple[str, nn.Parameter, set[Kind]]]:
    """Yield each trainable parameter once, with its name and its kinds."""
    seen: set[int] = set()
    for prefix, module in detector.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            kinds: set[Kind] = set()
            if isinstance(module, _NORMS):
                kinds.add("norm")
            # nn.MultiheadAttention names its stacked bias in_proj_bias.
            if name.endswith("bias"):
                kinds.add("bias")
            yield f"{prefix}.{name}", parameter, kinds or {"weight"}
