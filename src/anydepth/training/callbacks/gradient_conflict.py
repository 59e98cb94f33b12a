"""Whether the paths of a step pull the weights they share in the same direction.

Distillation between depths of one network is said to reconcile them; the cosine between the gradients of the
full path's loss and of the minimal path's loss, per part of the network and over training, shows how far. A
negative cosine is a conflict: a step that helps one path harms the other (Yu et al., "Gradient Surgery for
Multi-Task Learning", NeurIPS 2020, definition 1).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import lightning.pytorch as pl
import torch
import torch._functorch.config
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from anydepth import distributed
from anydepth.detector import Detector
from anydepth.layers.precision import disable_autocast
from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph

Gradients = list[Tensor | None]

ALL = "all"
STEM = "stem"


class GradientConflict(pl.Callback):
    """Logs, now and then, the cosine between the gradients of the first path's loss and of any other path's.

    Names of what is logged:

    - ``gradients/cosine/PATH/MODULE``: between the first path (full, as a rule) and another one, as
      ``minimal`` or ``random1``, over the parameters of a part of the network (:func:`parameter_groups`) that
      both paths use; ``all`` is the whole network. Norm sets and refinements that only one path uses do not
      count.
    - ``gradients/norm/PATH``: norm of a path's gradient over the parameters that all paths use.

    Losses are those of the paths before the schedule's weights, the loss scale and the precision's scaling.
    The gradients are taken on the graph of the running step, before its own backward, by as many further
    backward passes as there are paths; training goes on bit for bit as without this callback. With gradient
    accumulation, the first micro-batch of a step counts. Over several processes, gradients are averaged
    before they are compared, as training averages them, so that the figures are about the whole batch. Where
    nothing is logged, or a step has one path alone, nothing is measured.

    A measured step takes 1.9 times as long with two paths (on a CPU), other steps no longer than before;
    every 50th step comes to 1.7 % of training.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; the first step is measured.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, *, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"gradient_conflict.every_n_steps={every_n_steps}: allowed are 1 and above")
        self.every_n_steps = every_n_steps
        self._measured = -1
        self._gradients: list[Gradients] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let compiled graphs be walked more than once."""
        assert isinstance(pl_module, DetectionModule)
        if stage == "fit" and pl_module.compile_forward:
            # A compiled backward otherwise reuses the memory of what it was given.
            torch._functorch.config.donated_buffer = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask to be shown the losses of each step."""
        assert isinstance(pl_module, DetectionModule)
        self._measured = -1
        pl_module.observe_path = partial(self._observe, trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask no longer."""
        assert isinstance(pl_module, DetectionModule)
        pl_module.observe_path = None

    def _observe(self, trainer: pl.Trainer, module: DetectionModule, graph: PassGraph) -> None:
        step = trainer.global_step
        # A single path has nothing to be compared with, and its norm is logged anyway.
        watched = trainer.loggers and len(module.plan) > 1
        if not watched or step % self.every_n_steps or step == self._measured:
            return
        last = graph.number + 1 == len(module.plan)
        if last:
            self._measured = step
        if graph.number == 0:
            self._gradients.clear()
        self._gradients.append(pass_gradients(module.detector, graph, scale=_scale(trainer)))
        if last:
            names = [path.name for path in module.plan]
            values = compare_gradients(module.detector, self._gradients, names)
            self._gradients.clear()
            # Not through `log`, which forgets a step that is not one of `log_every_n_steps`.
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)


def pass_gradients(detector: Detector, graph: PassGraph, *, scale: float = 1.0) -> Gradients:
    """The gradient of a path's loss by each trained parameter, averaged over the processes.

    None stands for parameters that the path does not use. The graph stays usable. In distributed training
    every process must call this in the same step.

    Args:
        detector: Whose parameters are meant.
        graph: The path.
        scale: Factor of the loss in the backward pass, against underflow in half precision; it is taken out
            again.
    """
    parameters = _trained(detector)
    with disable_autocast(graph.total.device):
        found = graph.gradients(list(parameters.values()), scale)
    # Inside autograd.grad nothing is exchanged: DDP's hooks sit where gradients are accumulated.
    if distributed.world_size() > 1:
        return _averaged(found, list(parameters.values()), scale)
    return [None if gradient is None else gradient / scale for gradient in found]


def compare_gradients(
    detector: Detector, gradients: Sequence[Gradients], names: Sequence[str]
) -> dict[str, float]:
    """Cosines and norms of the gradients of several paths; see :class:`GradientConflict`.

    Values that are not defined (a gradient of zero, or an overflow in half precision) are left out.

    Args:
        detector: Whose parameters are shared.
        gradients: Of each path, as :func:`pass_gradients` returns them.
        names: Of the paths.
    """
    parameters = _trained(detector)
    groups = parameter_groups(detector)
    members: dict[str, list[int]] = {}
    for index, name in enumerate(parameters):
        members.setdefault(groups[name], []).append(index)
    members[ALL] = list(range(len(parameters)))
    values: dict[str, float] = {}
    for name, path in zip(names[1:], gradients[1:], strict=True):
        cosines = _cosines(gradients[0], path, members)
        values |= {f"gradients/cosine/{name}/{group}": value for group, value in cosines.items()}
    common = [all(path[i] is not None for path in gradients) for i in range(len(parameters))]
    for name, path in zip(names, gradients, strict=True):
        shared = [
            gradient for gradient, used in zip(path, common, strict=True) if used and gradient is not None
        ]
        if shared:
            values[f"gradients/norm/{name}"] = float(torch.nn.utils.get_total_norm(shared))
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _trained(detector: Detector) -> dict[str, nn.Parameter]:
    return {name: p for name, p in detector.named_parameters() if p.requires_grad}


def parameter_groups(detector: Detector) -> dict[str, str]:
    """The part of the network of every parameter, by its name.

    Parts are ``stem``, the stages of the depth space (in DETR, ``neck`` is one of them), and what is in none
    of them under the name of its top-level module, as ``decoder`` or ``head``; where stages lie inside that
    module, what lies between them is ``MODULE_other`` (the down-sampling convolutions of a YOLO).
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


def _averaged(found: Sequence[Tensor | None], parameters: Sequence[nn.Parameter], scale: float) -> Gradients:
    used = torch.tensor([gradient is not None for gradient in found], dtype=torch.uint8)
    used = used.to(parameters[0].device)
    # One process may have used what another has not, e.g. where its images hold no object.
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    averaged: Gradients = []
    for gradient, parameter, somewhere in zip(found, parameters, used.tolist(), strict=True):
        if not somewhere:
            averaged.append(None)
            continue
        # Collectives refuse other layouts, as channels last; an expanded gradient would be added to itself.
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
    """By part of the network, where both gradients are there and neither is zero."""
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


def _scale(trainer: pl.Trainer) -> float:
    """The factor of the losses in float16 training, 1 otherwise."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return 1.0 if scaler is None else float(scaler.get_scale())
