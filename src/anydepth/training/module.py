"""The Lightning module of every any-depth detector: one step runs several depths on one batch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from anydepth.detector import WHOLE_TEACHING, Detector, Objective, PassLosses
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.images import to_unit_range
from anydepth.layers.precision import disable_autocast
from anydepth.structures import Batch, DetectorOutput, Targets
from anydepth.training.depth_schedule import PlannedPass
from anydepth.training.non_finite.diagnosis import BatchRecord
from anydepth.training.non_finite.watch import StepWatch
from anydepth.training.passes import PassGraph, SharedStem
from anydepth.training.recipes import Recipe
from anydepth.training.step_context import ResizeMode, StepPlace

Backward = Literal["joint", "separate"]
SCORE = "val/score"
# torch.compile makes one graph per depth, training mode and image shape, and falls back to eager after 8 by
# default. 256 leaves room for several depths at a dozen multi-scale sizes each.
COMPILED_GRAPHS = 256


class DetectionModule(pl.LightningModule):
    """Trains a detector at the depths that a callback plans.

    The callback is :class:`~anydepth.training.callbacks.self_distillation.SelfDistillation`.

    All forward passes of a step see the same batch at the same size and share its stem. Their losses are
    summed for one backward, or each pass runs its own backward before the next pass starts, which needs the
    memory of one pass at a time and gives the same gradients.

    Random numbers of a step (denoising, stochastic depth) are a function of the seed, the epoch and the
    batch, so that a resumed run draws the same ones. They are drawn alike in all processes, each of which
    takes the rows of its own images (:func:`anydepth.distributed.local_rows`).

    Args:
        detector: The detector to train; checkpoints hold it under ``detector.``.
        objective: Losses of the detector's family.
        recipe: Optimizer, learning rates and image sizes.
        evaluator: COCO evaluator of the validation images; None: there is no validation.
        seed: Seed of the run.
        val_depths: Depths that each validation evaluates.
        score: Selection score of checkpoints: ``mean`` of the AP at ``val_depths``, or one of these depths.
        resize_mode: Interpolation of the multi-scale resize.
        antialias: Whether that resize filters before it shrinks.
        compile_forward: Whether ``torch.compile`` compiles the training forward, one graph per depth and
            size.
        backward: ``joint``, one backward for the sum of the losses, or ``separate``, one per pass. In
            distributed training the latter needs a strategy that looks for unused parameters.
        watch: Watch that keeps non-finite steps from the weights; None: one that stops at the first.

    Attributes:
        plan: Passes of the current step.
        observers: Functions that are called with every pass of a step while its graph still exists; they must
            leave parameters, gradients and random numbers alone.

    Raises:
        ValueError: An unknown score, resize mode or backward mode, or antialiasing of ``nearest``.
        DepthError: A depth that the detector does not have.
    """

    def __init__(
        self,
        *,
        detector: Detector,
        objective: Objective,
        recipe: Recipe,
        evaluator: CocoEvaluator | None,
        seed: int,
        val_depths: Sequence[str] = ("full", "minimal"),
        score: str = "mean",
        resize_mode: ResizeMode = "bilinear",
        antialias: bool = False,
        compile_forward: bool = False,
        backward: Backward = "joint",
        watch: StepWatch | None = None,
    ) -> None:
        super().__init__()
        self.val_depths = detector.depth_space.parse_list(val_depths)
        scores = ["mean", *(str(depth) for depth in self.val_depths)]
        if score not in scores:
            raise ValueError(f"validation.score={score!r}: allowed are {', '.join(scores)}")
        if resize_mode not in get_args(ResizeMode):
            raise ValueError(f"multi_scale.mode={resize_mode!r}: allowed are bilinear and nearest")
        if backward not in get_args(Backward):
            raise ValueError(f"backward={backward!r}: allowed are joint and separate")
        if antialias and resize_mode == "nearest":
            raise ValueError(
                "multi_scale.antialias=true: only mode bilinear supports it; set it to false or use bilinear"
            )
        self.detector = detector
        self.objective = objective
        self.recipe = recipe
        self.evaluator = evaluator
        self.seed = seed
        self.score = score
        self.resize_mode = resize_mode
        self.antialias = antialias
        self.plan: tuple[PlannedPass, ...] = ()
        self.observers: list[Callable[[PassGraph], None]] = []
        self.time_progress = 0.0
        self.compile_forward = compile_forward
        self.separate_backward = backward == "separate"
        self.watch = watch or StepWatch()
        self._stem: Callable[[Tensor], Tensor] = detector.stem_features
        # A bound method: the module itself would be registered, and saved, a second time.
        self._forward: Callable[..., DetectorOutput] = detector.__call__

    # -- training ----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compile the forward if the configuration asks for it, in each process of the run."""
        self.watch.reset()
        if self.compile_forward:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_GRAPHS)
            self._stem = torch.compile(self.detector.stem_features)
            self._forward = torch.compile(self.detector.forward)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the losses of all planned passes on one batch, summed, times the recipe's ``loss_scale``.

        With ``backward="separate"``, all passes but the last have run backward already, and only the loss of
        the last one is returned.
        """
        if not self.plan:
            raise RuntimeError("no depths were planned for this step: add SelfDistillation to the callbacks")
        self.watch.start_batch(self.detector)
        place = StepPlace(
            seed=self.seed, epoch=self.current_epoch, batch_idx=batch_idx, step=self.global_step
        )
        graphs: list[PassGraph] = []
        for graph in self._run_passes(batch, place):
            graphs.append(graph)
            if self.separate_backward:
                self._notify_observers([graph])
                if len(graphs) < len(self.plan):
                    self._backward_now(
                        graph, first_batch=batch_idx % self.trainer.accumulate_grad_batches == 0
                    )
        if not self.separate_backward:
            self._notify_observers(graphs)
        self.watch.record_batch(batch, place, graphs)
        self._log_losses(graphs, len(batch))
        returned = graphs[-1:] if self.separate_backward else graphs
        return (
            self.recipe.loss_scale
            * torch.stack([graph.planned.weight * graph.total for graph in returned]).sum()
        )

    def replay(self, batch: Batch, place: StepPlace) -> Iterator[PassGraph]:
        """Run the passes of :attr:`plan` on a batch again; each graph may be freed before the next one.

        Args:
            batch: Batch on the device of the detector.
            place: Position in the run at which the batch was trained on.
        """
        return self._run_passes(batch, place, again=True)

    def _run_passes(self, batch: Batch, place: StepPlace, *, again: bool = False) -> Iterator[PassGraph]:
        """Run one pass after the other; each may run backward before the next one is requested."""
        place.seed_generators()
        images = place.resize(
            to_unit_range(batch.images),
            self.recipe.multi_scale_sizes,
            self.resize_mode,
            antialias=self.antialias,
        )
        detector = self.detector
        # Compiled graphs reject a backward that runs differently than in training.
        stem_of, forward = (detector.stem_features, detector) if again else (self._stem, self._forward)
        stem = SharedStem(stem_of(images))
        outputs: list[DetectorOutput] = []
        losses: list[PassLosses] = []
        for number, planned in enumerate(self.plan):
            last = number + 1 == len(self.plan)
            features = stem.for_pass(last=last) if again or self.separate_backward else stem.features
            outputs.append(forward(images, planned.depth, batch.targets, features))
            losses.append(self._pass_losses(planned, outputs, losses, batch.targets))
            yield PassGraph(number, planned, losses[-1], losses[-1].total, stem)

    def _notify_observers(self, graphs: Sequence[PassGraph]) -> None:
        for observe in self.observers:
            for graph in graphs:
                observe(graph)

    def _backward_now(self, graph: PassGraph, *, first_batch: bool) -> None:
        """Run the backward of a pass that others follow, as Lightning runs that of the returned loss.

        It is local: in distributed training, gradients are exchanged in the backward of the last pass.
        """
        if graph.number == 0 and first_batch:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            optimizer.zero_grad()
        loss = (
            self.recipe.loss_scale * graph.planned.weight * graph.total / self.trainer.accumulate_grad_batches
        )
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        with disable_autocast(self.device):
            loss.backward()  # type: ignore[no-untyped-call]

    def _pass_losses(
        self,
        planned: PlannedPass,
        outputs: list[DetectorOutput],
        losses: list[PassLosses],
        targets: Sequence[Targets],
    ) -> PassLosses:
        """Return the losses of the newest output; one of the earlier passes may be its teacher."""
        with disable_autocast(self.device):
            if planned.teacher is None:
                return self.objective.supervised(outputs[-1], targets)
            teacher = planned.teacher
            given = (outputs[-1], outputs[teacher], targets, losses[teacher])
            if planned.teaching == WHOLE_TEACHING:
                return self.objective.distilled(*given)
            return self.objective.distilled(*given, planned.teaching)

    # -- validation --------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Remove the detections of the last validation."""
        if self.evaluator is not None:
            self.evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Detect at every validation depth, on a batch that is loaded and moved only once."""
        assert self.evaluator is not None
        images = to_unit_range(batch.images)
        stem = self.detector.stem_features(images)
        for depth in self.val_depths:
            output = self.detector(images, depth, stem=stem)
            with disable_autocast(self.device):
                detections = self.detector.postprocess(output, batch.original_sizes)
            self.evaluator.add(str(depth), batch.image_ids, detections)

    def on_validation_epoch_end(self) -> None:
        """Log the COCO figures of every depth, and the score that selects checkpoints.

        The score is NaN if the images hold no object to find.
        """
        if self.evaluator is None:
            return
        results = self.evaluator.evaluate()
        for depth, result in results.items():
            # A figure below 0 means that the images hold no such object, e.g. no small one.
            self.log_dict(
                {f"val/{depth}/{name}": value for name, value in result.figures.items() if value >= 0}
            )
        ap = {depth: result.figures["AP"] for depth, result in results.items()}
        score = sum(ap.values()) / len(ap) if self.score == "mean" else ap[self.score]
        # All depths see the same images, which hold an object for all of them or for none.
        self.log(SCORE, score if score >= 0 else math.nan)

    # -- optimisation ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimizer and its schedule, which advances with every optimizer step."""
        # Gradient scaling of float16 cannot clip the gradients of a fused optimizer.
        optimizer = self.recipe.optimizer(self.detector, fused=self.trainer.precision != "16-mixed")
        scheduler = self.recipe.scheduler(
            optimizer,
            # Computed late: Lightning would load the data for it now, before a checkpoint restores the
            # position in them.
            total_steps=cache(lambda: float(self.trainer.estimated_stepping_batches)),
            time_progress=lambda: self.time_progress,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Reset the last step's gradients, unless passes of this step have run backward already."""
        if not self.separate_backward or len(self.plan) == 1:
            optimizer.zero_grad()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step; a non-finite one finds no gradients and changes nothing."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.watch.end_step(self._scaler)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Drop non-finite gradients, or clip by norm; log the norm before clipping and the learning rates.

        Raises:
            NonFiniteStepError: A loss or a gradient is NaN or infinite, and the policy is to stop.
            ValueError: Clipping by value.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"gradient_clip_algorithm={gradient_clip_algorithm}: allowed is only `norm`")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        taken = self.watch.check_step(norm, self.detector, self._replay_recorded, self._scaler)
        if taken and gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, float(gradient_clip_val), norm)
        if self._is_logged_step():
            rates = {
                f"lr/{g['name']}": g["lr"]
                for g in optimizer.param_groups
                if not g["name"].endswith("no_decay")
            }
            self.log_dict({"train/gradient_norm": norm, **rates, **self._counts()})

    def _counts(self) -> dict[str, float]:
        """Return the number of skipped steps, if the policy skips, and float16's overflows and loss scale."""
        counts: dict[str, float] = {}
        if self.watch.policy.action == "skip":
            counts["train/skipped_steps"] = float(self.watch.skipped)
        if self._scaler is not None:
            counts["train/overflow_steps"] = float(self.watch.overflows)
            counts["train/loss_scale"] = float(self._scaler.get_scale())
        return counts

    def _replay_recorded(self, record: BatchRecord) -> Iterator[PassGraph]:
        plugin = self.trainer.precision_plugin
        with plugin.train_step_context() if plugin is not None else nullcontext():
            yield from self.replay(record.batch, record.place)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """Return the gradient scaler, or None outside float16 training."""
        plugin = None if self._trainer is None else self._trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    # -- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which detector the weights belong to, as plain values."""
        checkpoint["detector"] = {**self.detector.config, "num_classes": self.detector.num_classes}
        checkpoint["class_names"] = list(self.detector.class_names)
        checkpoint["numbers"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts of skipped steps."""
        self.watch.load_state_dict(checkpoint.get("numbers", {}))

    # -- logging -----------------------------------------------------------------------------------------

    def _log_losses(self, graphs: Sequence[PassGraph], batch_size: int) -> None:
        values: dict[str, Tensor] = {}
        for graph in graphs:
            # The console shows the sums of every step. Collecting each term costs Lightning a fraction of a
            # millisecond, wasted in steps that no logger records.
            if self._is_logged_step():
                values |= _with_prefix(f"train/{graph.planned.name}", graph.losses.terms)
            values[f"train/{graph.planned.name}/loss"] = graph.total.detach()
        self.log_dict(values, batch_size=batch_size)

    def _is_logged_step(self) -> bool:
        """Return whether the loggers record this step."""
        if self._trainer is None:
            return False
        # Through vars(), because Lightning sets the attribute without declaring it.
        interval: int = vars(self._trainer)["log_every_n_steps"]
        return interval > 0 and (self.global_step + 1) % interval == 0


def _with_prefix(prefix: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value.detach() for name, value in terms.items()}
