"""How alike two sets of features of the same samples are, accumulated over batches in float64.

Three measures of features X [n, C] and Y [n, D] of the same n samples:

- linear CKA (Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section
  3): ||Yc'Xc||_F^2 / (||Xc'Xc||_F ||Yc'Yc||_F) of column-centred features, in [0, 1]; blind to rotations and
  to a common scale of the features;
- cosine: the mean over samples of the cosine between both feature vectors, uncentred;
- relative L2: sqrt(sum |x - y|^2 / sum |x|^2) over all samples together, 0 for equal features.

CKA is that of all samples at once, not the average of the batches' own values, which depends on their size.
"""

from typing import Protocol

import torch
from torch import Tensor

# Features whose root-mean-square deviation from their mean is this share of their size are constant: float32
# has no more digits.
CONSTANT = 1e-6


class SimilarityError(ValueError):
    """Features that cannot be compared; the message says why."""


class CkaAccumulator(Protocol):
    """Collects paired features batch by batch; both forms give the same value."""

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take features [n, C] and [n, D] of the same n further samples."""

    def value(self) -> float:
        """Linear CKA of everything added."""


class CovarianceCka:
    """Linear CKA from cross products of features: memory C x C + C x D + D x D, for any number of samples.

    Batches are centred by themselves and merged with the correction for their means (Chan et al., 1979), so
    that features far from zero lose no digits.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._means: tuple[Tensor, Tensor] | None = None
        self._products: tuple[Tensor, Tensor, Tensor] | None = None
        self._squares = (0.0, 0.0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """See :meth:`CkaAccumulator.add`."""
        x, y = _checked(x, y)
        count = len(x)
        means = (x.mean(dim=0), y.mean(dim=0))
        a, b = x - means[0], y - means[1]
        products = (a.T @ a, a.T @ b, b.T @ b)
        self._squares = (self._squares[0] + _norm2(x), self._squares[1] + _norm2(y))
        if self._means is None or self._products is None:
            self._samples, self._means, self._products = count, means, products
            return
        total = self._samples + count
        dx, dy = means[0] - self._means[0], means[1] - self._means[1]
        factor = self._samples * count / total
        corrections = ((dx, dx), (dx, dy), (dy, dy))
        for mine, new, (left, right) in zip(self._products, products, corrections, strict=True):
            mine.add_(new).addr_(left, right, alpha=factor)
        self._means = (self._means[0] + dx * count / total, self._means[1] + dy * count / total)
        self._samples = total

    def value(self) -> float:
        """See :meth:`CkaAccumulator.value`.

        Raises:
            SimilarityError: Fewer than two samples were added.
        """
        if self._products is None or self._samples < 2:
            raise SimilarityError(f"{self._samples} samples: CKA needs at least 2")
        xx, xy, yy = self._products
        varies = (
            _varies(float(xx.trace()), self._squares[0]),
            _varies(float(yy.trace()), self._squares[1]),
        )
        return _ratio(_norm2(xy), float(xx.norm() * yy.norm()), varies)


class SampleCka:
    """Linear CKA that keeps all samples, for few of them: memory n x (C + D).

    Takes products of features or of samples, whichever are smaller (both give the same value).
    """

    def __init__(self) -> None:
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """See :meth:`CkaAccumulator.add`."""
        x, y = _checked(x, y)
        self._x.append(x)
        self._y.append(y)

    def value(self) -> float:
        """See :meth:`CkaAccumulator.value`.

        Raises:
            SimilarityError: Fewer than two samples were added.
        """
        if sum(len(part) for part in self._x) < 2:
            raise SimilarityError(f"{sum(len(part) for part in self._x)} samples: CKA needs at least 2")
        x, y = torch.cat(self._x), torch.cat(self._y)
        a, b = x - x.mean(dim=0), y - y.mean(dim=0)
        varies = (_varies(_norm2(a), _norm2(x)), _varies(_norm2(b), _norm2(y)))
        if len(x) < max(x.shape[1], y.shape[1]):
            gram_x, gram_y = a @ a.T, b @ b.T
            return _ratio(float((gram_x * gram_y).sum()), float(gram_x.norm() * gram_y.norm()), varies)
        return _ratio(_norm2(a.T @ b), float((a.T @ a).norm() * (b.T @ b).norm()), varies)


class Similarity:
    """The three measures of paired features; X is the reference of the relative L2.

    Where a measure is 0/0 its value is that of equal or of unrelated features: CKA of two constant sets is 1,
    of a constant set and one that varies 0; the cosine of two zero vectors is 1, of a zero vector and another
    one 0.

    Args:
        keep_samples: Keep all samples instead of products of features: right for fewer samples than
            features.
    """

    def __init__(self, *, keep_samples: bool = False) -> None:
        self.samples = 0
        self._cka: CkaAccumulator = SampleCka() if keep_samples else CovarianceCka()
        self._cosines = 0.0
        self._differences = 0.0
        self._size = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take the features of further samples.

        Args:
            x: [n, C] reference features, float of any precision.
            y: [n, C] features of the same samples.

        Raises:
            SimilarityError: Features of different shapes, or values that are not finite.
        """
        x, y = _checked(x, y)
        if x.shape != y.shape:
            raise SimilarityError(f"features of {list(x.shape)} and {list(y.shape)} have no common axes")
        self._cka.add(x, y)
        self._cosines += float(_cosines(x, y).sum())
        self._differences += _norm2(x - y)
        self._size += _norm2(x)
        self.samples += len(x)

    def values(self) -> dict[str, float]:
        """``cka``, ``cosine`` and ``l2`` of everything added.

        Raises:
            SimilarityError: Fewer than two samples, or a reference that is zero everywhere.
        """
        cka = self._cka.value()
        if self._size == 0 and self._differences > 0:
            raise SimilarityError("the reference features are zero everywhere: relative L2 is not defined")
        relative = (self._differences / self._size) ** 0.5 if self._size else 0.0
        return {"cka": cka, "cosine": self._cosines / self.samples, "l2": relative}


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise SimilarityError(f"features of {list(x.shape)} and {list(y.shape)}: give [n, C] and [n, D]")
    x, y = x.double(), y.double()
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise SimilarityError("a feature is NaN or infinite: the weights are damaged or training diverged")
    return x, y


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    """[n] cosines; 1 for two zero vectors, 0 for a zero vector and another one."""
    sizes = x.norm(dim=1), y.norm(dim=1)
    zero = (sizes[0] == 0) & (sizes[1] == 0)
    product = sizes[0] * sizes[1]
    cosines = (x * y).sum(dim=1) / torch.where(product > 0, product, 1.0)
    return torch.where(zero, 1.0, cosines)


def _norm2(values: Tensor) -> float:
    return float(values.square().sum())


def _varies(deviation: float, size: float) -> bool:
    """From the summed squares of centred features, and of features."""
    return deviation > CONSTANT**2 * size


def _ratio(shared: float, whole: float, varies: tuple[bool, bool]) -> float:
    if not all(varies):
        return 0.0 if any(varies) else 1.0
    return shared / whole
