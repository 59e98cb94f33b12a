"""What a run logged while it trained: metrics.csv of Lightning's CSVLogger, also where a run went on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """One logged metric over training; equal lengths, ascending steps, finite values.

    Attributes:
        steps: Optimizer steps done.
        epochs: The epoch of each step.
        values: Finite figures.
    """

    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    values: tuple[float, ...]
