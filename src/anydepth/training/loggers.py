"""What a run sends to loggers that keep pictures and tables, beside the metrics that Lightning sends."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from anydepth.evaluation.coco_eval import FIGURES
from anydepth.evaluation.depth_curve import DepthCurve


def log_depth_curve(loggers: Iterable[Logger], curve: DepthCurve, pictures: Mapping[str, Path]) -> None:
    """Send a depth curve as a table, and pictures, to every logger that takes them (Weights & Biases).

    Args:
        loggers: Of the Trainer.
        curve: What was evaluated.
        pictures: Image files by the name to show them under.
    """
    columns = ["depth", "gflops", "parameters_run", *FIGURES]
    rows = [
        [row.depth, row.gflops, row.parameters_run, *(row.figures[name] for name in FIGURES)]
        for row in curve.rows
    ]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key="depth_curve", columns=columns, data=rows)
            for name, path in pictures.items():
                logger.log_image(key=name, images=[str(path)])


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End the runs of the loggers, so that the next job of a sweep starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
