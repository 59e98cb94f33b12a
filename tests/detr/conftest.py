"""Detectors that several tests of foreign weights load into."""

import pytest
from detr_reference import SMALL_DEEP, SMALL_PLAIN, SMALL_SWIN, build, randomise

from anydepth.detr.detector import DetrDetector


@pytest.fixture(scope="module")
def deep() -> DetrDetector:
    """An any-depth detector whose two norm sets differ, with the deep stem."""
    detector = build("detr_tiny", 5, **SMALL_DEEP)
    randomise(detector)
    return detector


@pytest.fixture(scope="module")
def plain() -> DetrDetector:
    """A detector like ``deep`` with the plain stem."""
    detector = build("detr_tiny", 5, **SMALL_PLAIN)
    randomise(detector, seed=2)
    return detector


@pytest.fixture(scope="module")
def swin() -> DetrDetector:
    """A detector like ``deep`` with a Swin Transformer."""
    detector = build("detr_tiny", 5, **SMALL_SWIN)
    randomise(detector, seed=3)
    return detector
