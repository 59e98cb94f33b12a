"""Progress on the console and in log files."""

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from anydepth.training.module import DetectionModule
from anydepth.utils.console import print_lines


class ConsoleProgress(ProgressBar):
    """One bar for the whole run, with the losses of every pass, and one line per validation.

    The bar appears on terminals, the lines also in log files. There, a further line every ``line_seconds``
    has what a bar would show: the losses, images per second of training (of all processes, without
    validation), the learning rate of the first parameter group, the most memory so far (of tensors on a GPU,
    otherwise of this process) and the time left.

    Args:
        refresh_steps: Training steps between two updates of the losses. Each update waits for the device.
        line_seconds: Seconds between two lines of training in a log file.
        clock: Source of the time in seconds.

    Raises:
        ValueError: ``refresh_steps`` below 1, or ``line_seconds`` not above 0.
    """

    def __init__(
        self,
        *,
        refresh_steps: int = 5,
        line_seconds: float = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        if refresh_steps < 1:
            raise ValueError(f"refresh_steps={refresh_steps}: allowed are 1 and above")
        if not line_seconds > 0:
            raise ValueError(f"line_seconds={line_seconds}: allowed is more than 0")
        self.refresh_steps = refresh_steps
        self.line_seconds = line_seconds
        self._clock = clock
        self._started = (0.0, 0.0)  # time and completed share at the start
        self._last_line = 0.0
        self._training_since = 0.0
        self._training_seconds = 0.0
        self._images = 0
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def disable(self) -> None:
        """Show nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar, each argument on a line of its own."""
        if self._enabled:
            print_lines(*args)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        super().on_train_start(trainer, pl_module)
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=get_console(),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("training", total=1.0, state="")
        self._progress.update(self._task, completed=_completed(trainer, pl_module))
        now = self._clock()
        self._started = (now, _completed(trainer, pl_module))
        self._last_line = self._training_since = now
        self._training_seconds, self._images = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar and show the losses now and then; in a log file, print a line now and then."""
        if self._progress is not None and not get_console().is_terminal:
            self._images += len(batch.images) * trainer.world_size
            self._print_line(trainer, pl_module)
            return
        if self._progress is None or self._task is None or batch_idx % self.refresh_steps:
            return
        state = (
            f"epoch {trainer.current_epoch + 1} step {trainer.global_step} · {_losses(trainer, pl_module)}"
        )
        self._progress.update(self._task, completed=_completed(trainer, pl_module), state=state)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that a validation is running, whose time is not that of training."""
        self._training_seconds += self._clock() - self._training_since
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, state=f"epoch {trainer.current_epoch + 1} · validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one line with the AP of every depth."""
        self._training_since = self._clock()
        if not self._enabled or self._progress is None:
            return
        metrics = trainer.callback_metrics
        figures = [
            f"{name.removeprefix('val/').removesuffix('/AP')} AP {_percent(metrics[name])} "
            f"AP50 {_percent(metrics.get(f'{name}50'))}"
            for name in metrics
            if name.startswith("val/") and name.endswith("/AP")
        ]
        self.print(
            f"{_completed(trainer, pl_module):4.0%} · epoch {trainer.current_epoch + 1} · "
            f"step {trainer.global_step} · {_losses(trainer, pl_module)} · {' · '.join(figures)}"
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error message appears below it."""
        self._close()

    def _print_line(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Print the state of training, if the last such line is long enough ago."""
        now = self._clock()
        if now - self._last_line < self.line_seconds:
            return
        seconds = self._training_seconds + now - self._training_since
        start, completed_at_start = self._started
        completed = _completed(trainer, module)
        gained = completed - completed_at_start
        left = (
            f"{_clock_time((now - start) / gained * (1 - completed))} left" if gained > 0 else "time unknown"
        )
        self.print(
            f"{completed:4.0%} · epoch {trainer.current_epoch + 1} · step {trainer.global_step} · "
            f"{_losses(trainer, module)} · {self._images / max(seconds, 1e-9):.1f} images/s · "
            f"lr {trainer.optimizers[0].param_groups[0]['lr']:.2g} · "
            f"{_peak_memory(module.device)} · {left}"
        )
        self._last_line = self._training_since = now
        self._training_seconds, self._images = 0.0, 0

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _completed(trainer: pl.Trainer, module: pl.LightningModule) -> float:
    """Return the completed share of the run, by steps or by time, whichever is further along."""
    assert isinstance(module, DetectionModule)
    return min(max(trainer.global_step / trainer.estimated_stepping_batches, module.time_progress), 1.0)


def _losses(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    assert isinstance(module, DetectionModule)
    metrics = trainer.callback_metrics
    names = [planned.name for planned in module.plan]
    losses = [f"{name} {_format(metrics.get(f'train/{name}/loss'))}" for name in names]
    return f"loss {' '.join(losses)}"


def _format(value: Tensor | None) -> str:
    return "-" if value is None else f"{float(value):.3f}"


def _percent(value: Tensor | None) -> str:
    """Return a figure in percent, as all tables show it; a negative one stands for no ground truth."""
    return "-" if value is None or float(value) < 0 else f"{100 * float(value):.1f}"


def _clock_time(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _peak_memory(device: torch.device) -> str:
    """Return the most memory so far: of tensors on a GPU, otherwise of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return "memory unknown"
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux kibibytes
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GiB"
