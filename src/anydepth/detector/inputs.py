"""Checks of the images that a detector takes."""

from torch import Tensor

from anydepth import distributed

# Every detector's coarsest stride: the sides of an image must be multiples of it.
SIZE_DIVISOR = 32


def check_images(images: Tensor, *, training: bool = False) -> None:
    """Refuse images that no detector can take.

    Args:
        images: Batch for the network.
        training: Whether batch norms compute statistics of this batch.

    Raises:
        ValueError: Not [B, 3, H, W] float with H and W multiples of 32, or in training a single cell.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"got images of shape {tuple(images.shape)} and type {images.dtype}, "
            "expected [B, 3, H, W] float RGB in [0, 1]"
        )
    batch, _, height, width = images.shape
    check_input_size(height, width)
    # Synchronised norms may see the images of other processes.
    if training and batch * height * width <= SIZE_DIVISOR**2 and distributed.world_size() == 1:
        raise ValueError(
            f"got {batch} training image of {height}x{width}: its coarsest map is a single cell, of which "
            "batch norms have no statistics; give two images (data.batch_size) or larger ones "
            "(detector.input_size)"
        )


def check_input_size(height: int, width: int) -> None:
    """Refuse image sizes that the coarsest stride does not divide.

    Raises:
        ValueError: With the nearest smaller size that works.
    """
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR or min(height, width) < SIZE_DIVISOR:
        lower = [max(SIZE_DIVISOR, side // SIZE_DIVISOR * SIZE_DIVISOR) for side in (height, width)]
        raise ValueError(
            f"got image size {height}x{width}, expected multiples of {SIZE_DIVISOR}; give e.g. "
            f"{lower[0]}x{lower[1]}"
        )
