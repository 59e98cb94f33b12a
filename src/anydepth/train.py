"""``anydepth-train``: train a detector at many depths, then measure its depth curve."""

import logging
import math
import platform
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from omegaconf import DictConfig
from rich import get_console

from anydepth import zoo
from anydepth.config.compose import check_config, entry_point, instantiate, resolve_config
from anydepth.config.resolvers import is_sweep
from anydepth.conversion import convert_into
from anydepth.data.coco.fingerprint import fingerprint
from anydepth.data.coco.layout import SplitName
from anydepth.data.datamodule import DetectionDataModule
from anydepth.detector import Detector, Objective
from anydepth.distributed import is_first_process
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.report.flat_config import flatten
from anydepth.results.depth_curve import print_depth_curve
from anydepth.runs import provenance
from anydepth.runs.job import BEST_SCORE, SCORE, execute, explain_repeated_sweep, resolve_checkpoint
from anydepth.runs.provenance import write_provenance
from anydepth.training.callbacks.process_guard import ProcessGuard
from anydepth.training.callbacks.progress import ConsoleProgress
from anydepth.training.callbacks.self_distillation import SelfDistillation
from anydepth.training.callbacks.unscored_validation import UnscoredValidation
from anydepth.training.checkpointing.read import check_resumable, read_checkpoint
from anydepth.training.checkpointing.sigterm import Terminated, forward_sigterm
from anydepth.training.checkpointing.write import CheckpointFiles
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.export import export_curve, load_best_weights
from anydepth.training.loggers.run_logger import close_loggers, end_runs_on_failure, log_results
from anydepth.training.module import DetectionModule
from anydepth.training.non_finite.recorder import StepRecorder
from anydepth.training.non_finite.watch import NonFinitePolicy, StepWatch
from anydepth.training.norms import NormSynchronization
from anydepth.training.teaching import TeachingControl
from anydepth.utils.console import print_lines
from anydepth.weights.report import LoadReport

# Warnings of Lightning that recommend nothing a user of this entry point should change.
_IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    # Raised when float16's first step overflows.
    ".*Detected call of .lr_scheduler.step.*",
    # The evaluator returns the same figures in all processes.
    ".*sync_dist=True.*",
)


_LARGEST_SEED = 2**32 - 1  # NumPy's generators take no larger one.
_SPLITS: tuple[SplitName, ...] = ("train", "val")


@end_runs_on_failure()
def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Train, export the best averaged weights and measure their depth curve.

    Args:
        cfg: Configuration composed from ``conf/train.yaml``.

    Returns:
        Metrics by name (``val/score`` of the last validation, ``val/best_score`` of the best checkpoint,
        ``train/steps``, ``train/ended_by_minutes`` (1 if a limit of wall time ended the run, else 0), and
        ``curve/DEPTH/FIGURE`` on the first process), and the objects of
        the run by name: ``data``, ``detector``, ``module``, ``trainer``, and on the first process ``files``
        and ``curve`` (None if the configuration asks for no curve).

    Raises:
        ValueError: A setting, a file or a data set that cannot be used; the message says what to change.
    """
    cfg = resolve_checkpoint(cfg)
    config = check_config(cfg, "train")
    _prepare(config)
    data, module, trainer = assemble(cfg)
    detector = module.detector
    _check_curve(config["curve"], detector)
    if config["ckpt_path"]:
        check_resumable(config["ckpt_path"], detector)
    if trainer.is_global_zero:
        _complete_provenance(config, data, trainer, module.objective)
        _print_summary(config, detector, data, trainer)
    with _forward_sigterm_to_processes(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=config["ckpt_path"], weights_only=True)
    if config["ckpt_path"] and "val/score" not in trainer.callback_metrics:
        # The checkpoint was the last one: nothing is left to train, but its figures are part of the result.
        trainer.validate(
            module, datamodule=data, ckpt_path=config["ckpt_path"], verbose=False, weights_only=True
        )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()} | best_score(trainer)
    if math.isnan(metrics.get(SCORE, 0.0)):
        del metrics[SCORE]  # there was no object to find
    metrics["train/steps"] = float(trainer.global_step)
    # Such a result depends on the speed of the machine.
    metrics["train/ended_by_minutes"] = float(module.time_progress >= 1)
    if module.time_progress >= 1 and trainer.is_global_zero:
        print_lines(
            f"ended by recipe.minutes={config['recipe']['minutes']:g} after {trainer.global_step} steps: "
            "another machine, or other load, gives another result; recipe.minutes=null counts epochs alone"
        )
    objects: dict[str, Any] = {"data": data, "detector": detector, "module": module, "trainer": trainer}
    # The rest runs in the first process alone and must not wait for the others.
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    if trainer.is_global_zero:
        files, curve = _export(config, module, data, trainer)
        objects |= {"files": files, "curve": curve}
        if curve is not None:
            metrics |= {
                f"curve/{row.depth}/{key}": value for row in curve.rows for key, value in row.figures.items()
            }
        log_results(trainer.loggers, files, curve)
        close_loggers(trainer.loggers)
    return metrics, objects


def assemble(cfg: DictConfig) -> tuple[DetectionDataModule, DetectionModule, pl.Trainer]:
    """Build data, module and Trainer, ready for ``trainer.fit(module, datamodule=data)``.

    Raises:
        ValueError: A setting, a file or a data set that cannot be used; the message says what to change.
    """
    config = check_config(cfg, "train")
    data: DetectionDataModule = instantiate(cfg.data)
    data.prepare_data()
    data.setup("fit")
    detector = build_detector(config, data)
    module = build_module(cfg, detector, data)
    return data, module, build_trainer(cfg, config, detector, data)


def _forward_sigterm_to_processes(trainer: pl.Trainer) -> AbstractContextManager[None]:
    """Forward SIGTERM if this process only starts, from Python, the processes that train."""
    launcher: Any = trainer.strategy.launcher
    if type(launcher).__name__ != "_MultiProcessingLauncher":
        return nullcontext()

    def send(number: int) -> None:
        if not launcher.procs:
            raise Terminated
        launcher.kill(number)

    return forward_sigterm(send)


def build_detector(config: Mapping[str, Any], data: DetectionDataModule) -> Detector:
    """The configured detector for the classes of the data, with its initial weights.

    Raises:
        ValueError: ``detector.num_classes`` contradicts the data, or initial weights that cannot be used.
    """
    wanted = config["detector"]["num_classes"]
    if wanted not in (None, data.num_classes):
        raise ValueError(
            f"detector.num_classes={wanted}, but the data set has {data.num_classes} classes: leave it null"
        )
    detector = zoo.build_configured(config["detector_name"], config["detector"], data.num_classes)
    detector.reset_classes(data.class_names)
    report = _load_initial_weights(config, detector)
    if report is not None and is_first_process():
        print_lines(report)
    return detector


def _load_initial_weights(config: Mapping[str, Any], detector: Detector) -> LoadReport | None:
    """Load the configured weights, if there are any, and return what was loaded."""
    weights, converts, new_classes = config["weights"], config["convert"], config["new_classes"]
    if converts and not weights:
        raise ValueError(
            "recipe=convert (convert=true) trains the any-depth form of a detector of fixed depth: give its "
            "weights with weights=FILE"
        )
    if new_classes and not converts:
        raise ValueError(
            "new_classes=true has an effect only with convert=true: weights=FILE alone starts class heads "
            "anew that do not fit; leave it out"
        )
    if converts:
        return convert_into(detector, weights, new_classes=new_classes)
    return zoo.load_weights(detector, weights) if weights else None


def build_module(cfg: DictConfig, detector: Detector, data: DetectionDataModule) -> DetectionModule:
    """Build the Lightning module with the losses, the recipe and the evaluator of the validation images.

    Raises:
        ValueError: A setting that is out of range; the message says what is allowed.
    """
    evaluator = CocoEvaluator(
        ground_truth=data.val_index.to_coco_dict(),
        category_ids=data.category_ids,
        backend=cfg.validation.backend,
    )
    return DetectionModule(
        detector=detector,
        objective=instantiate(cfg.losses),
        recipe=instantiate(cfg.recipe),
        evaluator=evaluator,
        seed=cfg.seed,
        val_depths=list(cfg.validation.depths),
        score=cfg.validation.score,
        resize_mode=cfg.multi_scale.mode,
        antialias=cfg.multi_scale.antialias,
        compile_forward=cfg.compile,
        backward=cfg.backward,
        watch=build_watch(resolve_config(cfg), detector),
    )


def build_watch(config: Mapping[str, Any], detector: Detector) -> StepWatch:
    """Build the watch that keeps non-finite steps from the weights.

    Raises:
        ValueError: A setting that is out of range; the message says what is allowed.
    """
    settings = dict(config["non_finite"])
    recorder = StepRecorder(
        folder=Path(config["paths"]["output_dir"]) / "non_finite",
        module=detector,
        config=config,
        num_classes=detector.num_classes,
        limit=settings.pop("files"),
        weights=settings.pop("weights"),
    )
    return StepWatch(policy=NonFinitePolicy(**settings), recorder=recorder)


def build_trainer(
    cfg: DictConfig,
    config: Mapping[str, Any],
    detector: Detector,
    data: DetectionDataModule,
) -> pl.Trainer:
    """Build Lightning's Trainer with the configured callbacks and loggers.

    Raises:
        ValueError: A sweep whose jobs would start processes by running the command line again.
    """
    schedule: DepthSchedule = instantiate(cfg.depth_schedule)
    callbacks: list[pl.Callback] = [
        build_guard(config, data),
        SelfDistillation(schedule=schedule, seed=cfg.seed, teaching=TeachingControl(**config["teaching"])),
        UnscoredValidation(),
        *(instantiate(node) for node in cfg.callbacks.values() if node is not None),
    ]
    loggers = [instantiate(node) for node in cfg.logger.values() if node is not None]
    strategy = cfg.trainer.strategy
    # With one backward per pass, gradients are exchanged in the last one, which covers a single pass only.
    every_parameter = cfg.backward == "joint" and schedule.trains_every_parameter(detector.depth_space)
    if strategy in ("ddp", "ddp_spawn") and not every_parameter:
        strategy += "_find_unused_parameters_true"
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        strategy=strategy,
        sync_batchnorm=False,
        plugins=[CheckpointFiles(), *([NormSynchronization()] if cfg.trainer.sync_batchnorm else [])],
        # Lightning interprets None as 1000 epochs.
        max_epochs=-1 if cfg.trainer.max_epochs is None else cfg.trainer.max_epochs,
        callbacks=callbacks,
        logger=loggers or False,
        enable_progress_bar=any(isinstance(callback, ConsoleProgress) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    lengths = {
        "recipe.epochs": trainer.max_epochs,
        "trainer.max_steps": trainer.max_steps,
        "trainer.limit_train_batches": trainer.limit_train_batches,
    }
    for key, length in lengths.items():
        if length == 0:
            raise ValueError(f"{key}=0 trains nothing: give a larger number, or leave it out")
    starts_processes = type(trainer.strategy.launcher).__name__ == "_SubprocessScriptLauncher"
    if is_sweep() and trainer.world_size > 1 and starts_processes:
        raise ValueError(explain_repeated_sweep(cfg.trainer.strategy))
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(config))
    return trainer


def build_guard(config: Mapping[str, Any], data: DetectionDataModule) -> ProcessGuard:
    """Build the guard that compares settings, data and versions of all processes of a run."""
    return ProcessGuard(
        facts=partial(_facts, config, data),
        remedies={
            "setting": "Start all processes with the same command. A sweeper must not draw again in each of "
            "them: sweep with trainer=ddp_spawn, with a launcher that starts one job per configuration "
            "(submitit), or on one device (trainer.devices=1). Processes that another program starts have "
            "different start times: name their common folder with paths.output_dir=FOLDER",
            "data split": "Give all processes the same annotations",
            "version of": "Install the same versions everywhere",
        },
    )


def _facts(config: Mapping[str, Any], data: DetectionDataModule) -> dict[str, dict[str, str]]:
    settings = {name: str(value) for name, value in flatten(config).items()}
    splits = {str(name): fingerprint([data.index(name)])[:12] for name in _SPLITS}
    return {"setting": settings, "data split": splits, "version of": provenance.versions()}


def best_score(trainer: pl.Trainer) -> dict[str, float]:
    """Return ``val/best_score`` of the exported checkpoint; empty if none was selected by a score."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor == SCORE:
            score = callback.best_model_score
            if score is None and callback.best_model_path:
                # Processes that Lightning starts from Python return only the file path.
                states = read_checkpoint(callback.best_model_path).get("callbacks", {})
                score = states.get(callback.state_key, {}).get("best_model_score")
            if score is not None and math.isfinite(score):  # -inf: validations held no object to find
                return {BEST_SCORE: float(score)}
    return {}


def _export(
    config: Mapping[str, Any], module: DetectionModule, data: DetectionDataModule, trainer: pl.Trainer
) -> tuple[dict[str, Path], DepthCurve | None]:
    """Export the best weights and evaluate their depths.

    Returns:
        Files by description, and the curve if the configuration asks for one.
    """
    folder = Path(config["paths"]["output_dir"])
    files = load_best_weights(module.detector, trainer)
    files["weights"] = zoo.save(module.detector, folder / "weights.safetensors")
    if not config["curve"]["depths"]:
        return files, None
    found, curve = export_curve(config["curve"], module, data, folder, trainer.strategy.root_device)
    files |= found
    console = get_console()
    print_depth_curve(curve, console)
    print_lines(*(f"{name:20} {path}" for name, path in files.items()), console=console)
    return files, curve


def _check_curve(settings: Mapping[str, Any], detector: Detector) -> None:
    """Check what is used only once training is over."""
    if settings["depths"]:
        detector.depth_space.parse_list(settings["depths"])
    for name in ("pictures", "latency_repetitions"):
        if settings[name] < 0:
            raise ValueError(f"curve.{name}={settings[name]}: allowed are 0 and above")
    if not 0 <= settings["threshold"] <= 1:
        raise ValueError(f"curve.threshold={settings['threshold']}: allowed are 0 to 1")


def _prepare(config: Mapping[str, Any]) -> None:
    images = config["curve"]["compatibility_images"]
    if images < 0 or images == 1:
        raise ValueError(f"curve.compatibility_images={images}: give 2 or more images, or 0 for none")
    if not 0 <= config["seed"] <= _LARGEST_SEED:
        raise ValueError(f"seed={config['seed']}: allowed are 0 to {_LARGEST_SEED}")
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    torch.set_float32_matmul_precision(config["float32_matmul"])
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if is_first_process():
        write_provenance(config["paths"]["output_dir"], config)


def _complete_provenance(
    config: Mapping[str, Any], data: DetectionDataModule, trainer: pl.Trainer, objective: Objective
) -> None:
    """Add what is known only now: the data that was read, the device, and the distilled levels."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    provenance.complete(
        Path(config["paths"]["output_dir"]),
        device={"type": device.type, "name": name or platform.machine(), "count": trainer.world_size},
        data={
            "fingerprint": fingerprint([data.index("train"), data.index("val")]),
            "train_images": len(data.source("train")),
            "val_images": len(data.val_index),
            "class_names": list(data.class_names),
        },
        distilled_levels=sorted(objective.distilled_levels),
    )


def _print_summary(
    config: Mapping[str, Any],
    detector: Detector,
    data: DetectionDataModule,
    trainer: pl.Trainer,
) -> None:
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    height, width = detector.input_size
    schedule: DepthSchedule = instantiate(config["depth_schedule"])
    epochs, minutes = config["recipe"]["epochs"], config["recipe"]["minutes"]
    limits = [f"{epochs} epoch{'s' if epochs > 1 else ''}"] if epochs else []
    limits += [f"{minutes:g} minutes"] if minutes else []
    lines = {
        "detector": f"{config['detector_name']}, {parameters / 1e6:.2f} M parameters, input {height}x{width}",
        "data": f"{len(data.source('train'))} training and {len(data.val_index)} validation images, "
        f"{data.num_classes} class{'es' if data.num_classes > 1 else ''}",
        "depths": str(schedule),
        "device": f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}",
        "length": f"{' or '.join(limits)}, whichever comes first" if len(limits) > 1 else limits[0],
        "folder": config["paths"]["output_dir"],
    }
    print_lines(*(f"{name:9} {text}" for name, text in lines.items()))


@entry_point("train")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-train``; returns the validation score to a sweep."""
    return execute(cfg, run)


if __name__ == "__main__":
    main()
