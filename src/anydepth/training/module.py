"""The Lightning module of every any-depth detector: one step runs several depths on one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from anydepth.detector import Detector, Objective, PassLosses
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.images import to_unit_range
from anydepth.layers.precision import disable_autocast
from anydepth.structures import Batch, DetectorOutput, Targets
from anydepth.training.depth_schedule import PlannedPass
from anydepth.training.non_finite.diagnosis import SeenBatch
from anydepth.training.non_finite.watch import StepWatch
from anydepth.training.passes import PassGraph, SharedStem
from anydepth.training.recipes import Recipe
from anydepth.training.step_context import ResizeMode, StepPlace

Backward = Literal["joint", "separate"]
# torch.compile makes a graph per path, training mode and image shape, and gives up after a few by default.
COMPILED_GRAPHS = 256


class DetectionModule(pl.LightningModule):
    """Trains a detector at the depths that a callback plans.

    The callback is :class:`~anydepth.training.callbacks.self_distillation.SelfDistillation`.

    All paths of a step see the same batch at the same size and share its stem. Their losses are summed into
    one backward pass, or each path has its own before the next one runs, which needs the memory of one path
    at a time and gives the same gradients.

    Random numbers of a step (denoising, stochastic depth) are a function of the seed, the epoch and the
    batch, so that a resumed run draws the same, and alike in all processes, each of which takes the rows of
    its own images (:func:`anydepth.distributed.local_rows`).

    Args:
        detector: What is trained; checkpoints hold it under ``detector.``.
        objective: The losses of the detector's wing.
        recipe: Optimizer, learning rates and image sizes.
        evaluator: Of the validation images; None: there is no validation.
        seed: Of the run.
        val_depths: Depths that each validation evaluates.
        score: What checkpoints are selected by: ``mean`` of the AP at ``val_depths``, or one of these depths.
        resize_mode: Interpolation of the multi-scale resize.
        antialias: Whether that resize filters before it shrinks.
        compile_forward: Compile the training forward with ``torch.compile``, one graph per path and size.
        backward: ``joint``, one pass for the sum of the losses, or ``separate``, one pass per path. In
            distributed training the latter needs a strategy that looks for unused parameters.
        watch: Keeps steps that are not finite from the weights; None: one that stops at the first.

    Attributes:
        plan: The paths of the current step.
        observe_path: Called with every path of a step while its graph is still there; it must leave
            parameters, gradients and random numbers alone. None: nobody looks.

    Raises:
        ValueError: An unknown score, resize mode or way backward, or antialiasing of ``nearest``.
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
            raise ValueError("multi_scale.antialias=true: only bilinear can be filtered; set it to false")
        self.detector = detector
        self.objective = objective
        self.recipe = recipe
        self.evaluator = evaluator
        self.seed = seed
        self.score = score
        self.resize_mode = resize_mode
        self.antialias = antialias
        self.plan: tuple[PlannedPass, ...] = ()
        self.observe_path: Callable[[PassGraph], None] | None = None
        self.time_progress = 0.0
        self.compile_forward = compile_forward
        self.separate_backward = backward == "separate"
        self.watch = watch or StepWatch()
        self._stem: Callable[[Tensor], Tensor] = detector.stem_features
        # A bound method: the module itself would be registered, and saved, a second time.
        self._forward: Callable[..., DetectorOutput] = detector.__call__

    # -- training ----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compile the forward where that was asked for, in each process of the run."""
        self.watch.restart()
        if self.compile_forward:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_GRAPHS)
            self._stem = torch.compile(self.detector.stem_features)
            self._forward = torch.compile(self.detector.forward)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The losses of all planned paths on one batch, summed, times the recipe's ``loss_scale``.

        Where each path has a backward pass of its own, that of the last path is left to do, and only its loss
        is returned.
        """
        if not self.plan:
            raise RuntimeError("no depths were planned for this step: add SelfDistillation to the callbacks")
        self.watch.begin(self.detector)
        place = StepPlace(
            seed=self.seed, epoch=self.current_epoch, batch_idx=batch_idx, step=self.global_step
        )
        graphs: list[PassGraph] = []
        for graph in self._run_passes(batch, place):
            graphs.append(graph)
            if self.separate_backward:
                self._show([graph])
                if len(graphs) < len(self.plan):
                    self._backward_now(
                        graph, first_batch=batch_idx % self.trainer.accumulate_grad_batches == 0
                    )
        if not self.separate_backward:
            self._show(graphs)
        self.watch.see(batch, place, graphs)
        self._log_losses(graphs, len(batch))
        returned = graphs[-1:] if self.separate_backward else graphs
        return (
            self.recipe.loss_scale
            * torch.stack([graph.path.weight * graph.total for graph in returned]).sum()
        )

    def replay(self, batch: Batch, place: StepPlace) -> Iterator[PassGraph]:
        """Run the paths of :attr:`plan` on a batch again; each graph may be given up before the next one.

        Args:
            batch: On the device of the detector.
            place: Where in the run the batch was trained on.
        """
        return self._run_passes(batch, place, again=True)

    def _run_passes(self, batch: Batch, place: StepPlace, *, again: bool = False) -> Iterator[PassGraph]:
        """Run one path after the other; each may go backward before the next one is asked for."""
        place.seed_generators()
        images = place.resize(
            to_unit_range(batch.images),
            self.recipe.multi_scale_sizes,
            self.resize_mode,
            antialias=self.antialias,
        )
        detector = self.detector
        # Compiled graphs refuse to be walked in another way than in training.
        stem_of, forward = (detector.stem_features, detector) if again else (self._stem, self._forward)
        stem = SharedStem(stem_of(images))
        outputs: list[DetectorOutput] = []
        losses: list[PassLosses] = []
        for number, path in enumerate(self.plan):
            last = number + 1 == len(self.plan)
            features = stem.for_pass(last=last) if again or self.separate_backward else stem.features
            outputs.append(forward(images, path.depth, batch.targets, features))
            losses.append(self._pass_losses(path, outputs, losses, batch.targets))
            yield PassGraph(number, path, losses[-1], losses[-1].total, stem)

    def _show(self, graphs: Sequence[PassGraph]) -> None:
        if self.observe_path is not None:
            for graph in graphs:
                self.observe_path(graph)

    def _backward_now(self, graph: PassGraph, *, first_batch: bool) -> None:
        """The backward pass of a path that others follow, as Lightning does that of the returned loss.

        It is local: in distributed training, gradients are exchanged in the pass of the last path.
        """
        if graph.number == 0 and first_batch:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            optimizer.zero_grad()
        loss = self.recipe.loss_scale * graph.path.weight * graph.total / self.trainer.accumulate_grad_batches
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        with disable_autocast(self.device):
            loss.backward()  # type: ignore[no-untyped-call]

    def _pass_losses(
        self,
        path: PlannedPass,
        outputs: list[DetectorOutput],
        losses: list[PassLosses],
        targets: Sequence[Targets],
    ) -> PassLosses:
        """Losses of the newest output; those of earlier paths serve as its teacher's."""
        with disable_autocast(self.device):
            if path.teacher is None:
                return self.objective.supervised(outputs[-1], targets)
            teacher = path.teacher
            return self.objective.distilled(outputs[-1], outputs[teacher], targets, losses[teacher])

    # -- validation --------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the detections of the last validation."""
        if self.evaluator is not None:
            self.evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Detect at every validation depth; the batch is decoded and moved once."""
        assert self.evaluator is not None
        images = to_unit_range(batch.images)
        stem = self.detector.stem_features(images)
        for depth in self.val_depths:
            output = self.detector(images, depth, stem=stem)
            with disable_autocast(self.device):
                detections = self.detector.postprocess(output, batch.original_sizes)
            self.evaluator.add(str(depth), batch.image_ids, detections)

    def on_validation_epoch_end(self) -> None:
        """Log the COCO figures of every depth, and the score that selects checkpoints."""
        if self.evaluator is None:
            return
        results = self.evaluator.evaluate()
        for depth, result in results.items():
            # A figure below 0 means that the images hold no such object, e.g. no small one.
            self.log_dict(
                {f"val/{depth}/{name}": value for name, value in result.figures.items() if value >= 0}
            )
        ap = {depth: max(result.figures["AP"], 0.0) for depth, result in results.items()}
        score = sum(ap.values()) / len(ap) if self.score == "mean" else ap[self.score]
        self.log("val/score", score)

    # -- optimisation ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW and a learning rate that is set anew before every optimizer step."""
        # Gradient scaling of float16 cannot clip the gradients of a fused optimizer.
        optimizer = self.recipe.optimizer(self.detector, fused=self.trainer.precision != "16-mixed")
        scheduler = self.recipe.scheduler(
            optimizer,
            # Lightning would load the data for it now, before a checkpoint can tell where to go on in them.
            total_steps=cache(lambda: float(self.trainer.estimated_stepping_batches)),
            time_progress=lambda: self.time_progress,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Forget the last step's gradients, unless paths have gone backward in this step already."""
        if not self.separate_backward or len(self.plan) == 1:
            optimizer.zero_grad()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, or what is left of it where it was found not to be finite."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.watch.end(self._scaler)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Drop gradients that are not finite, or clip by norm; log the norm before and the learning rates.

        Raises:
            NonFiniteStepError: A loss or a gradient is NaN or infinite, and the run is to stop at that.
            ValueError: Clipping by value.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"gradient_clip_algorithm={gradient_clip_algorithm}: only `norm` is supported")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        taken = self.watch.judge(norm, self.detector, self._replay_seen, self._scaler)
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
        """How many steps were left out so far, where that may happen, and the scale of float16."""
        counts: dict[str, float] = {}
        if self.watch.policy.action == "skip":
            counts["train/skipped_steps"] = float(self.watch.skipped)
        if self._scaler is not None:
            counts["train/overflow_steps"] = float(self.watch.overflows)
            counts["train/loss_scale"] = float(self._scaler.get_scale())
        return counts

    def _replay_seen(self, seen: SeenBatch) -> Iterator[PassGraph]:
        plugin = self.trainer.precision_plugin
        with plugin.train_step_context() if plugin is not None else nullcontext():
            yield from self.replay(seen.batch, seen.place)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """That of float16 training."""
        plugin = None if self._trainer is None else self._trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    # -- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which detector the weights belong to, as plain values."""
        checkpoint["detector"] = {**self.detector.config, "num_classes": self.detector.num_classes}
        checkpoint["class_names"] = list(self.detector.class_names)
        checkpoint["numbers"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the steps that were left out."""
        self.watch.load_state_dict(checkpoint.get("numbers", {}))

    # -- logging -----------------------------------------------------------------------------------------

    def _log_losses(self, graphs: Sequence[PassGraph], batch_size: int) -> None:
        values: dict[str, Tensor] = {}
        for graph in graphs:
            # The console shows the sums of every step. Collecting each term costs Lightning a fraction of a
            # millisecond, in vain where no logger takes it.
            if self._is_logged_step():
                values |= _under(f"train/{graph.path.name}", graph.losses.terms)
            values[f"train/{graph.path.name}/loss"] = graph.total.detach()
        self.log_dict(values, batch_size=batch_size)

    def _is_logged_step(self) -> bool:
        """Whether the loggers take what is logged in this step."""
        if self._trainer is None:
            return False
        # Lightning sets it without declaring it.
        interval: int = vars(self._trainer)["log_every_n_steps"]
        return interval > 0 and (self.global_step + 1) % interval == 0


def _under(prefix: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value.detach() for name, value in terms.items()}
