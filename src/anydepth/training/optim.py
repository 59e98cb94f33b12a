"""The optimisation recipe: AdamW parameter groups, learning-rate schedules and the length of a run."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

NoDecay = Literal["norm_and_bias", "norm", "none"]
Schedule = Literal["constant", "cosine", "multistep"]

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a detector is optimised, and for how long.

    A run ends after ``epochs`` or after ``minutes``, whichever comes first; the learning rate follows the
    one that is further along. A run that ``minutes`` ends depends on the speed of the machine.

    Attributes:
        lr: Learning rate of everything but the backbone.
        backbone_lr: Learning rate of the backbone.
        weight_decay: Decoupled weight decay of AdamW (Loshchilov and Hutter, ICLR 2019).
        no_decay: What does not decay: ``norm_and_bias`` parameters, only those of ``norm`` layers, ``none``.
        betas: Of AdamW.
        schedule: ``constant``; ``cosine`` to ``final_lr`` times the learning rate; ``multistep``, which
            multiplies by ``gamma`` at each of ``milestones``.
        warmup_steps: Optimizer steps in which the learning rate rises linearly.
        final_lr: Share of the learning rate that ``cosine`` ends with.
        milestones: For ``multistep``, as shares of the run in (0, 1).
        gamma: For ``multistep``.
        epochs: Passes over the training images; None: as many as ``minutes`` allow.
        minutes: Wall time of training with its validations; None: no limit.
        clip_norm: Gradients are scaled down to this global norm; None: left alone.
        ema_decay: Decay of the averaged weights towards the end of their warm-up.
        ema_warmup_steps: Time constant of that warm-up, in optimizer steps.
        validate_every_epochs: Epochs between two validations; the last epoch is always validated.
        multi_scale_sizes: Sides in pixels that each step draws its image size from; empty: the data's size.

    Raises:
        ValueError: A value outside its range; the message names it.
    """

    lr: float
    backbone_lr: float
    weight_decay: float
    no_decay: NoDecay = "norm_and_bias"
    betas: Sequence[float] = (0.9, 0.999)
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

    def __post_init__(self) -> None:
        self._check("lr", self.lr > 0, "above 0")
        self._check("backbone_lr", self.backbone_lr >= 0, "0 and above")
        self._check("weight_decay", self.weight_decay >= 0, "0 and above")
        self._check("no_decay", self.no_decay in get_args(NoDecay), ", ".join(get_args(NoDecay)))
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self._check("betas", in_range, "two shares in [0, 1)")
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
                "optim.epochs and optim.minutes are both null: the run would never end; give one"
            )

    def _check(self, name: str, allowed: bool, range_text: str) -> None:
        if not allowed:
            raise ValueError(f"optim.{name}={getattr(self, name)}: allowed are {range_text}")

    def lr_factor(self, step: int, progress: float) -> float:
        """What the learning rates are multiplied by.

        Args:
            step: Optimizer steps done.
            progress: Share of the run that is done, in [0, 1].
        """
        factor = 1.0
        if self.schedule == "cosine":
            cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
            factor = self.final_lr + (1 - self.final_lr) * cosine
        elif self.schedule == "multistep":
            factor = self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        if step < self.warmup_steps:
            factor *= (step + 1) / self.warmup_steps
        return factor

    def optimizer(self, detector: nn.Module, *, fused: bool = True) -> torch.optim.AdamW:
        """AdamW over the trainable parameters of ``detector`` in the groups of :func:`parameter_groups`.

        Args:
            detector: Its attribute ``backbone`` gets the backbone's learning rate.
            fused: One kernel per step; not together with gradient clipping under float16.
        """
        groups = parameter_groups(
            detector,
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            weight_decay=self.weight_decay,
            no_decay=self.no_decay,
        )
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=fused)

    def scheduler(
        self, optimizer: torch.optim.Optimizer, *, total_steps: float, time_progress: Callable[[], float]
    ) -> LambdaLR:
        """The learning-rate schedule, to be stepped once per optimizer step.

        Args:
            optimizer: Of :meth:`optimizer`.
            total_steps: Optimizer steps of the run; infinity where only ``minutes`` limits it.
            time_progress: Gives the share of ``minutes`` that has passed.
        """

        def factor(step: int) -> float:
            return self.lr_factor(step, max(step / total_steps, time_progress()))

        return LambdaLR(optimizer, factor)


def parameter_groups(
    detector: nn.Module, *, lr: float, backbone_lr: float, weight_decay: float, no_decay: NoDecay
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay, without frozen ones and empty groups.

    Whether a parameter belongs to a norm is decided by the type of its module: names differ between wings.

    Args:
        detector: With the attribute ``backbone``.
        lr: Of everything else.
        backbone_lr: Of the backbone.
        weight_decay: Of what decays.
        no_decay: See :class:`Recipe`.

    Returns:
        Groups named ``backbone``, ``backbone_no_decay``, ``head`` and ``head_no_decay``.

    Raises:
        ValueError: The detector has no backbone, or nothing to train.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"{type(detector).__name__} has no `backbone`: optim.backbone_lr applies to nothing")
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    groups: dict[str, list[nn.Parameter]] = {}
    for parameter, decays in _trainable(detector, no_decay):
        name = ("backbone" if id(parameter) in in_backbone else "head") + ("" if decays else "_no_decay")
        groups.setdefault(name, []).append(parameter)
    if not groups:
        raise ValueError(f"all parameters of {type(detector).__name__} are frozen: there is nothing to train")
    return [
        {
            "name": name,
            "params": groups[name],
            "lr": backbone_lr if name.startswith("backbone") else lr,
            "weight_decay": 0.0 if name.endswith("no_decay") else weight_decay,
        }
        for name in ("backbone", "backbone_no_decay", "head", "head_no_decay")
        if name in groups
    ]


def _trainable(detector: nn.Module, no_decay: NoDecay) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each trainable parameter once, and whether it decays."""
    seen: set[int] = set()
    for module in detector.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            spared = no_decay != "none" and isinstance(module, _NORMS)
            # nn.MultiheadAttention names its stacked bias in_proj_bias.
            spared |= no_decay == "norm_and_bias" and name.endswith("bias")
            yield parameter, not spared
