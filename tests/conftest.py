"""Fixtures shared by all tests: the real configuration, shrunk until a run takes seconds."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Callbacks and builders of the tests themselves.
os.environ.setdefault("ANYDEPTH_ALLOW_TARGETS", "test_*,*.test_*,steps.*,runs.*,builtins.dict")

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from anydepth import zoo
from anydepth.config.compose import compose
from anydepth.detector import Detector
from chromium import running_chromium
from kept_compositions import kept_compositions
from small_networks import SMALL_DETECTOR

# The real entry point on the embedded sample: two steps on 64-pixel images, one validation batch.
SMALL_RUN: tuple[str, ...] = (
    *(f"detector.{key}={value}".replace(" ", "") for key, value in SMALL_DETECTOR.items()),
    "trainer.accelerator=cpu",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "recipe.minutes=null",
    "recipe.epochs=1",
    "recipe.validate_every_epochs=1",
    "data.num_workers=0",
    "data.batch_size=2",
    "data.eval_batch_size=4",
    "callbacks.progress=null",
    "curve.depths=null",
)


def pytest_collection_finish() -> None:
    """Look for garbage less often, and not in what the modules made on import: a sixth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # 700 by default


def pytest_unconfigure() -> None:
    """Let libraries free what they made; some complain of it otherwise."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _compositions() -> Iterator[None]:
    with kept_compositions():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the tests of a file, as it starts slowly."""
    with running_chromium() as started:
        yield started


@pytest.fixture(scope="session")
def small_run() -> tuple[str, ...]:
    """The settings of a small training run, as text for the command line."""
    return SMALL_RUN


@pytest.fixture(scope="session")
def build_small() -> Callable[..., Detector]:
    """Builds small detectors of two classes; equal seeds give equal weights."""

    def build(seed: int = 0, **overrides: object) -> Detector:
        torch.manual_seed(seed)
        return zoo.build("detr_tiny", 2, **{**SMALL_DETECTOR, **overrides})

    return build


@pytest.fixture
def small_detector(build_small: Callable[..., Detector]) -> Detector:
    """A fresh small detector, always with the same weights."""
    return build_small()


@pytest.fixture(scope="module")
def compose_run() -> Iterator[Callable[..., DictConfig]]:
    """Composes a small training run that writes into a folder, as the command line would."""

    def compose_job(folder: Path, *overrides: str) -> DictConfig:
        settings = [*SMALL_RUN, f"paths.output_dir={folder}", *overrides]
        return compose("train", settings, hydra_config=True)

    yield compose_job
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture
def shared_data() -> Path:
    """Folder of real data sets beside a checkout, or named by ANYDEPTH_SHARED."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ANYDEPTH_SHARED", repository.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder}; set ANYDEPTH_SHARED to the folder that holds data/")
    return folder
