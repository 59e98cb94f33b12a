"""Types of the settings of each command that no ``_target_`` takes; it declares the types of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Depths = str | Sequence[str | int | float] | None
"""Depths of a curve; what they may be is the affair of the detector's depth space."""

Size = Sequence[int] | None


class Paths(TypedDict, total=False):
    """Node ``paths``."""

    output_root: str
    output_dir: str


class NonFinite(TypedDict, total=False):
    """Node ``non_finite`` of training."""

    action: str
    limit: int
    limit_in_a_row: int
    files: int
    weights: bool


class Validation(TypedDict, total=False):
    """Node ``validation`` of training."""

    depths: Sequence[str | int | float]
    score: str
    backend: str


class MultiScale(TypedDict, total=False):
    """Node ``multi_scale`` of training."""

    mode: str
    antialias: bool


class Curve(TypedDict, total=False):
    """Node ``curve`` of training."""

    depths: Depths
    latency_repetitions: int
    pictures: int
    compatibility_images: int
    threshold: float


class Latency(TypedDict, total=False):
    """Node ``latency`` of an evaluation."""

    repetitions: int
    batch_size: int


class Compatibility(TypedDict, total=False):
    """Node ``compatibility`` of an analysis."""

    images: int
    depths: Depths
    positions: int


class TeachingShares(TypedDict, total=False):
    """Node ``teaching.shares``."""

    predictions: float | None
    features: float | None


class TeachingSettings(TypedDict, total=False):
    """Node ``teaching``."""

    ramp_steps: int
    gate: bool
    gate_steps: int
    shares: TeachingShares
    measure_every: int


class Train(TypedDict, total=False):
    """Settings of ``anydepth-train``."""

    seed: int
    weights: str | None
    convert: bool
    new_classes: bool
    ckpt_path: str | None
    compile: bool
    backward: str
    float32_matmul: Literal["highest", "high", "medium"]
    non_finite: NonFinite
    validation: Validation
    multi_scale: MultiScale
    teaching: TeachingSettings
    curve: Curve
    detector_name: str
    family: Mapping[str, Any]
    dataset_kind: Mapping[str, Any]
    paths: Paths
    callbacks: Mapping[str, Mapping[str, Any] | None]
    logger: Mapping[str, Mapping[str, Any] | None]


class Predict(TypedDict, total=False):
    """Settings of ``anydepth-predict``."""

    weights: str | None
    source: str | None
    depth: str
    threshold: float
    engine: str
    device: str
    threads: int | None
    precision: str
    trust_code: bool
    batch_size: int
    subfolders: bool
    on_bad_image: str
    resume: bool
    output: str
    paths: Paths


class Evaluate(TypedDict, total=False):
    """Settings of ``anydepth-evaluate``."""

    weights: str | None
    depths: Depths
    split: str
    engine: str
    device: str
    threads: int | None
    precision: str
    trust_code: bool
    backend: str
    batch_size: int
    input_size: Size
    specialised: bool
    record: bool
    results: bool
    latency: Latency
    output: str
    dataset_kind: Mapping[str, Any]
    paths: Paths


class Analyze(TypedDict, total=False):
    """Settings of ``anydepth-analyze``."""

    weights: str | None
    split: str
    device: str
    precision: str
    backend: str
    batch_size: int
    input_size: Size
    compatibility: Compatibility
    curve: str | None
    curve_images: int | None
    chunk: int
    output: str
    dataset_kind: Mapping[str, Any]
    paths: Paths


class Export(TypedDict, total=False):
    """Settings of ``anydepth-export``."""

    weights: str | None
    depths: Depths
    format: str
    graph: str
    selection: str
    feature_grid: int | None
    input_size: Size
    batch: int | None
    curve: str | None
    category_ids: Sequence[int] | None
    hub: str | None
    private: bool
    license: str | None
    engine: str | None
    output: str
    paths: Paths


class RouterSettings(TypedDict, total=False):
    """Node ``router`` of the training of a router."""

    kind: str
    groups: Sequence[str]
    epochs: int
    lr: float
    batch_size: int
    weight_decay: float
    seeds: Sequence[int]


class Route(TypedDict, total=False):
    """Settings of ``anydepth-route``."""

    weights: str | None
    train_split: str
    val_split: str
    images: int | None
    criterion: str
    device: str
    precision: str
    batch_size: int
    input_size: Size
    grid: int
    router: RouterSettings
    output: str
    dataset_kind: Mapping[str, Any]
    paths: Paths


class Calibration(TypedDict, total=False):
    """Node ``calibration`` of a quantisation."""

    split: str
    images: int


class Quantize(TypedDict, total=False):
    """Settings of ``anydepth-quantize``."""

    bundle: str | None
    depths: Depths
    calibration: Calibration
    format: str
    engine: str | None
    split: str
    backend: str
    batch_size: int
    output: str
    dataset_kind: Mapping[str, Any]
    paths: Paths


COMMANDS: Mapping[str | None, Any] = {
    "train": Train,
    "predict": Predict,
    "evaluate": Evaluate,
    "analyze": Analyze,
    "export": Export,
    "route": Route,
    "quantize": Quantize,
}
"""Settings of a command by the name of its file in ``conf/``."""

BUILT_NODES: Mapping[str | None, tuple[str, ...]] = {
    "train": ("data", "detector", "losses", "recipe", "depth_schedule", "trainer"),
    "evaluate": ("data",),
    "analyze": ("data",),
    "route": ("data",),
    "quantize": ("data",),
}
"""Nodes of a command that it builds, beside its settings."""

CHOSEN_NODES = ("family", "dataset_kind")
"""Nodes that a detector or a data set chooses."""

FILLED_IN = frozenset({"detector.num_classes", "data.input_size", "data.fit"})
"""Settings that may be null although their target needs a value: the command fills them in."""

HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
"""Folders in Hydra's own node."""
