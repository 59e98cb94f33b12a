"""Similarity of two sets of features of the same samples, accumulated over batches in float64.

Three measures of features X [n, C] and Y [n, D] of the same n samples:

- linear CKA (Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section
  3): ||Yc'Xc||_F^2 / (||Xc'Xc||_F ||Yc'Yc||_F) of column-centred features, in [0, 1]; invariant to rotations
  and to isotropic scaling of the features;
- cosine: the mean over samples of the cosine between both feature vectors, uncentred;
- relative L2: sqrt(sum |x - y|^2 / sum |x|^2) over all samples together, 0 for equal features.

CKA is computed over all samples at once: an average of per-batch values would depend on the batch size.
"""

from typing import Protocol

import torch
from torch import Tensor

# Features whose root-mean-square deviation from their mean is below this share of their magnitude are
# constant: float32 has a resolution of about 1e-7.
CONSTANT_TOLERANCE = 1e-6


class SimilarityError(ValueError):
    """Features that cannot be compared; the message says why and what to do."""


class CkaAccumulator(Protocol):
    """Accumulates paired features batch by batch; both implementations give the same value."""

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add features [n, C] and [n, D] of the same n further samples."""

    def value(self) -> float:
        """Return linear CKA of all samples added."""


class CovarianceCka:
    """Linear CKA from cross products of features: memory C x C + C x D + D x D, for any number of samples.

    Each batch is centred by itself and merged with the correction for the means (Chan et al., 1979), so that
    features far from zero lose no digits.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._means: tuple[Tensor, Tensor] | None = None
        self._products: tuple[Tensor, Tensor, Tensor] | None = None
        self._squares = (0.0, 0.0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """See :meth:`CkaAccumulator.add`."""
        x, y = _to_checked_float64(x, y)
        count = len(x)
        means = (x.mean(dim=0), y.mean(dim=0))
        a, b = x - means[0], y - means[1]
        products = (a.T @ a, a.T @ b, b.T @ b)  # [C, C], [C, D], [D, D]
        self._squares = (self._squares[0] + _sum_of_squares(x), self._squares[1] + _sum_of_squares(y))
        if self._means is None or self._products is None:
            self._samples, self._means, self._products = count, means, products
            return
        total = self._samples + count
        dx, dy = means[0] - self._means[0], means[1] - self._means[1]
        factor = self._samples * count / total
        corrections = ((dx, dx), (dx, dy), (dy, dy))
        for merged, new, (left, right) in zip(self._products, products, corrections, strict=True):
            merged.add_(new).addr_(left, right, alpha=factor)
        self._means = (self._means[0] + dx * count / total, self._means[1] + dy * count / total)
        self._samples = total

    def value(self) -> float:
        """See :meth:`CkaAccumulator.value`.

        Raises:
            SimilarityError: Fewer than two samples were added.
        """
        if self._products is None or self._samples < 2:
            raise SimilarityError(f"got {self._samples} samples, expected at least 2 for CKA; add more")
        xx, xy, yy = self._products
        varies = (
            _varies(float(xx.trace()), self._squares[0]),
            _varies(float(yy.trace()), self._squares[1]),
        )
        return _cka_from(_sum_of_squares(xy), float(xx.norm() * yy.norm()), varies)


class SampleCka:
    """Linear CKA that keeps all samples, for small numbers of them: memory n x (C + D).

    Uses products of features or of samples, whichever are smaller (both give the same value).
    """

    def __init__(self) -> None:
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """See :meth:`CkaAccumulator.add`."""
        x, y = _to_checked_float64(x, y)
        self._x.append(x)
        self._y.append(y)

    def value(self) -> float:
        """See :meth:`CkaAccumulator.value`.

        Raises:
            SimilarityError: Fewer than two samples were added.
        """
        if sum(len(part) for part in self._x) < 2:
            samples = sum(len(part) for part in self._x)
            raise SimilarityError(f"got {samples} samples, expected at least 2 for CKA; add more")
        x, y = torch.cat(self._x), torch.cat(self._y)
        a, b = x - x.mean(dim=0), y - y.mean(dim=0)
        varies = (
            _varies(_sum_of_squares(a), _sum_of_squares(x)),
            _varies(_sum_of_squares(b), _sum_of_squares(y)),
        )
        if len(x) < max(x.shape[1], y.shape[1]):
            gram_x, gram_y = a @ a.T, b @ b.T  # [n, n]
            return _cka_from(float((gram_x * gram_y).sum()), float(gram_x.norm() * gram_y.norm()), varies)
        return _cka_from(_sum_of_squares(a.T @ b), float((a.T @ a).norm() * (b.T @ b).norm()), varies)


class Similarity:
    """Accumulates the three measures of paired features; X is the reference of the relative L2.

    If a measure is 0/0, it takes the value of equal or of unrelated features: CKA is 1 for two constant sets
    and 0 for a constant and a varying one; the cosine is 1 for two zero vectors and 0 if only one is zero.

    Args:
        keep_samples: Whether to keep all samples instead of products of features, which takes less memory if
            there are fewer samples than features.
    """

    def __init__(self, *, keep_samples: bool = False) -> None:
        self.samples = 0
        self._cka: CkaAccumulator = SampleCka() if keep_samples else CovarianceCka()
        self._cosines = 0.0
        self._differences = 0.0
        self._reference_squares = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the features of further samples.

        Args:
            x: [n, C] reference features, floating point of any precision.
            y: [n, C] features of the same samples.

        Raises:
            SimilarityError: The shapes differ, or a value is not finite.
        """
        x, y = _to_checked_float64(x, y)
        if x.shape != y.shape:
            raise SimilarityError(
                f"got features of {list(x.shape)} and {list(y.shape)}, expected equal shapes"
            )
        self._cka.add(x, y)
        self._cosines += float(_cosines(x, y).sum())
        self._differences += _sum_of_squares(x - y)
        self._reference_squares += _sum_of_squares(x)
        self.samples += len(x)

    def values(self) -> dict[str, float]:
        """Return ``cka``, ``cosine`` and ``l2`` of all samples added.

        Raises:
            SimilarityError: Fewer than two samples were added, or the reference is zero everywhere.
        """
        cka = self._cka.value()
        if self._reference_squares == 0 and self._differences > 0:
            raise SimilarityError("the reference features are zero everywhere, so relative L2 is undefined")
        relative = (self._differences / self._reference_squares) ** 0.5 if self._reference_squares else 0.0
        return {"cka": cka, "cosine": self._cosines / self.samples, "l2": relative}


def _to_checked_float64(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise SimilarityError(
            f"got features of {list(x.shape)} and {list(y.shape)}, expected [n, C] and [n, D]"
        )
    x, y = x.double(), y.double()
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise SimilarityError("a feature is NaN or infinite; the weights are damaged or training diverged")
    return x, y


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    """Return [n] cosines; 1 for two zero vectors, 0 if only one is zero."""
    norms = x.norm(dim=1), y.norm(dim=1)  # [n] each
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    product = norms[0] * norms[1]
    cosines = (x * y).sum(dim=1) / torch.where(product > 0, product, 1.0)
    return torch.where(both_zero, 1.0, cosines)


def _sum_of_squares(values: Tensor) -> float:
    return float(values.square().sum())


def _varies(centred: float, total: float) -> bool:
    """Return whether features vary, from the sums of squares of centred and of raw features."""
    return centred > CONSTANT_TOLERANCE**2 * total


def _cka_from(shared: float, total: float, varies: tuple[bool, bool]) -> float:
    """Return ||XY||^2 / (||XX|| ||YY||), with the limits for constant features."""
    if not all(varies):
        return 0.0 if any(varies) else 1.0
    return shared / total
