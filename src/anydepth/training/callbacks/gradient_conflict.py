"""Gradient conflict: cosine between the gradients of a step's passes on the weights that they share.

Distillation between depths of one network is said to reconcile them; the cosine between the gradients of the
full pass's loss and the minimal pass's loss, per part of the network and over training, shows how far. A
negative cosine is a conflict: a step that helps one pass harms the other (Yu et al., "Gradient Surgery for
Multi-Task Learning", NeurIPS 2020, definition 1).
"""

import math
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from anydepth import distributed
from anydepth.detector import Detector
from anydepth.layers.precision import disable_autocast
from anydepth.training.callbacks.pass_observer import PassObserver
from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph

Gradients = list[Tensor | None]

ALL = "all"
STEM = "stem"


class GradientConflict(PassObserver):
    """Logs, every few steps, the cosine between the gradients of the first pass's loss and of each other's.

    Names of the logged metrics:

    - ``gradients/cosine/PASS/MODULE``: between the first pass (usually full) and another one, such as
      ``minimal`` or ``random1``, over the parameters of a part of the network (:func:`parameter_groups`) that
      both passes use; ``all`` is the whole network. Norm sets and refinements that only one pass uses do not
      count.
    - ``gradients/norm/PASS``: norm of a pass's gradient over the parameters that all passes use.

    The losses are those of the passes before the schedule's weights, the loss scale and the precision's
    scaling. The gradients are computed on the graph of the current step, before its own backward, with one
    extra backward per pass; training stays bit for bit the same as without this callback. With gradient
    accumulation, the first micro-batch of a step is measured. In distributed training, gradients are
    averaged before they are compared, as training averages them, so that the figures describe the whole
    batch. Nothing is measured without loggers, or in a step with a single pass.

    A measured step takes 1.9 times as long with two passes (on a CPU), other steps no longer than before;
    measuring every 50th step adds 1.7 % to training.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; the first step is measured.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, *, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"gradient_conflict.every_n_steps={every_n_steps}: allowed are 1 and above")
        super().__init__()
        self.every_n_steps = every_n_steps
        self._gradients: list[Gradients] = []

    def _observe(self, trainer: pl.Trainer, module: DetectionModule, graph: PassGraph) -> None:
        step = trainer.global_step
        # A single pass has nothing to be compared with, and its norm is logged anyway.
        comparable = trainer.loggers and len(module.plan) > 1
        if not comparable or step % self.every_n_steps or step == self._measured:
            return
        last = graph.number + 1 == len(module.plan)
        if last:
            self._measured = step
        if graph.number == 0:
            self._gradients.clear()
        self._gradients.append(pass_gradients(module.detector, graph, scale=loss_scale(trainer)))
        if last:
            names = [planned.name for planned in module.plan]
            values = compare_gradients(module.detector, self._gradients, names)
            self._gradients.clear()
            # Not through `log`, which drops steps that are not multiples of `log_every_n_steps`.
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)


def pass_gradients(detector: Detector, graph: PassGraph, *, scale: float = 1.0) -> Gradients:
    """Return the gradient of a pass's loss by each trained parameter, averaged over the processes.

    The gradient is None for parameters that the pass does not use. The graph stays usable. In distributed
    training every process must call this in the same step.

    Args:
        detector: Detector in training.
        graph: Graph of the pass.
        scale: Factor of the loss in the backward, against underflow in half precision; the returned
            gradients are divided by it.
    """
    parameters = list(trainable_parameters(detector).values())
    with disable_autocast(graph.total.device):
        found = graph.gradients(parameters, scale)
    return unscaled_mean(found, parameters, scale)


def unscaled_mean(
    found: Sequence[Tensor | None], parameters: Sequence[nn.Parameter], scale: float
) -> Gradients:
    """Return gradients divided by the factor of their loss, averaged over the processes.

    In distributed training every process must call this with the gradients of the same loss.
    """
    # autograd.grad exchanges nothing between processes: DDP's hooks run where gradients are accumulated.
    if distributed.world_size() > 1:
        return _average_gradients(found, parameters, scale)
    return [None if gradient is None else gradient / scale for gradient in found]


def compare_gradients(
    detector: Detector, gradients: Sequence[Gradients], names: Sequence[str]
) -> dict[str, float]:
    """Return cosines and norms of the gradients of several passes; see :class:`GradientConflict`.

    Undefined values (a gradient of zero, or an overflow in half precision) are left out.

    Args:
        detector: Detector in training.
        gradients: Gradients of each pass, as :func:`pass_gradients` returns them.
        names: Names of the passes.
    """
    parameters = trainable_parameters(detector)
    groups = parameter_groups(detector)
    members: dict[str, list[int]] = {}
    for index, name in enumerate(parameters):
        members.setdefault(groups[name], []).append(index)
    members[ALL] = list(range(len(parameters)))
    values: dict[str, float] = {}
    for name, other in zip(names[1:], gradients[1:], strict=True):
        cosines = _cosines(gradients[0], other, members)
        values |= {f"gradients/cosine/{name}/{group}": value for group, value in cosines.items()}
    common = [all(one[i] is not None for one in gradients) for i in range(len(parameters))]
    for name, one in zip(names, gradients, strict=True):
        shared = [
            gradient for gradient, used in zip(one, common, strict=True) if used and gradient is not None
        ]
        if shared:
            values[f"gradients/norm/{name}"] = float(torch.nn.utils.get_total_norm(shared))
    return {name: value for name, value in values.items() if math.isfinite(value)}


def trainable_parameters(detector: Detector) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in detector.named_parameters() if p.requires_grad}


def parameter_groups(detector: Detector) -> dict[str, str]:
    """Return the part of the network that each parameter belongs to, by parameter name.

    Parts are ``stem``, the stages of the depth space (in DETR, ``neck`` is one of them), and for everything
    else the name of its top-level module, such as ``decoder`` or ``head``; if that module contains stages,
    the rest of it is ``MODULE_other`` (the down-sampling convolutions of a YOLO).
    """
    stages = dict(zip(detector.stage_modules, detector.depth_space.stages, strict=False))
    split = {name.partition(".")[0] for name in stages if "." in name} | {"backbone"}
    prefixes = {**stages, "backbone.stem": STEM}
    groups = {}
    for name, _ in detector.named_parameters():
        found = [group for prefix, group in prefixes.items() if name.startswith(f"{prefix}.")]
        top = name.partition(".")[0]
        groups[name] = found[0] if found else f"{top}_other" if top in split else top
    return groups


def _average_gradients(
    found: Sequence[Tensor | None], parameters: Sequence[nn.Parameter], scale: float
) -> Gradients:
    used = torch.tensor([gradient is not None for gradient in found], dtype=torch.uint8)
    used = used.to(parameters[0].device)
    # One process may use parameters that another does not, e.g. if the other's images hold no object.
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    averaged: Gradients = []
    for gradient, parameter, somewhere in zip(found, parameters, used.tolist(), strict=True):
        if not somewhere:
            averaged.append(None)
            continue
        # Collectives reject other layouts such as channels last; in an expanded gradient, elements that share
        # memory would be summed with each other.
        layout = torch.contiguous_format
        whole = (
            torch.zeros_like(parameter, memory_format=layout)
            if gradient is None
            else gradient.clone(memory_format=layout)
        )
        dist.all_reduce(whole)
        averaged.append(whole / (distributed.world_size() * scale))
    return averaged


def _cosines(first: Gradients, second: Gradients, members: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the cosine for each part of the network that both passes use with non-zero gradients."""
    products: dict[int, Tensor] = {}
    for index, (x, y) in enumerate(zip(first, second, strict=True)):
        if x is not None and y is not None:
            x, y = x.double(), y.double()
            products[index] = torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()])
    cosines = {}
    for group, indices in members.items():
        shared = [products[index] for index in indices if index in products]
        if not shared:
            continue
        dot, xx, yy = torch.stack(shared).sum(dim=0).tolist()
        if xx > 0 and yy > 0:
            cosines[group] = dot / (xx * yy) ** 0.5
    return cosines


def loss_scale(trainer: pl.Trainer) -> float:
    """Return the factor of the losses in float16 training, 1 otherwise."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return 1.0 if scaler is None else float(scaler.get_scale())
