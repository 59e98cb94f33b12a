"""Run folders as written by training, with curves whose AP a test chooses."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from anydepth.config.compose import compose, instantiate, resolve_config
from anydepth.detector import Objective
from anydepth.evaluation.coco_eval import FIGURES
from anydepth.evaluation.cost import Latency, LatencyProtocol
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow

# The ladder of a detector with two stages and three decoder layers, two of them at minimal depth.
LADDER: Mapping[str, tuple[tuple[bool, bool], int, float]] = {
    "full": ((True, True), 3, 10.0),
    "neck@3": ((False, True), 3, 8.0),
    "none@3": ((False, False), 3, 6.0),
    "minimal": ((False, False), 2, 5.0),
}


Places = Mapping[str, tuple[tuple[bool, bool], int, float]]


def make_curve(aps: Mapping[str, float], *, places: Places | None = None, **changes: Any) -> DepthCurve:
    """Return a curve with these AP; an unknown depth has the cost of ``neck@3``.

    Args:
        aps: AP by depth, in [0, 1].
        places: Parts that run and GFLOPs of depths that :data:`LADDER` lacks.
        changes: Changed attributes; ``latency_ms`` gives every depth that latency.
    """
    latency_ms = changes.pop("latency_ms", None)
    device = changes.pop("device", "cpu, 1 thread")
    class_names = changes.pop("class_names", ("crown",))
    protocol = LatencyProtocol(device, "fp32", 1, (64, 64), 3, 20) if latency_ms else None
    rows = []
    for depth, ap in aps.items():
        refine, layers, gflops = {**LADDER, **(places or {})}.get(depth, ((True, False), 3, 8.0))
        rows.append(
            DepthRow(
                depth=depth,
                refine=dict(zip(("stage1", "neck"), refine, strict=True)),
                decoder_layers=layers,
                parameters_run=1000,
                gflops=gflops,
                latency=Latency(latency_ms, latency_ms, None) if latency_ms else None,
                figures={**dict.fromkeys(FIGURES, 0.1), "AP": ap},
                per_class=dict.fromkeys(class_names, ap),
            )
        )
    plain = {"detector": "detr_tiny", "parameters": 1_000_000, "input_size": (64, 64), "precision": "fp32"}
    return DepthCurve(**{**plain, "images": 19, "protocol": protocol, "rows": tuple(rows), **changes})


def ladder(full: float, neck: float, none: float, minimal: float) -> dict[str, float]:
    """Return AP by depth of the four rungs of :data:`LADDER`, from AP points."""
    return {depth: ap / 100 for depth, ap in zip(LADDER, (full, neck, none, minimal), strict=True)}


@cache
def _composed(overrides: tuple[str, ...]) -> str:
    # The values of ${hydra:...} in a job.
    chosen = dict(text.split("=", 1) for text in overrides)
    known = [f"detector_name={chosen.get('detector', 'detr_tiny')}", "paths.output_dir=FOLDER"]
    config = compose("train", [*overrides, *known])
    return json.dumps(resolve_config(config), default=str)


def config_of(overrides: Iterable[str], folder: Path | str = "FOLDER") -> dict[str, Any]:
    """Return the plain configuration of a training run, composed from the real groups."""
    config = json.loads(_composed(tuple(overrides)).replace("FOLDER", str(folder)))
    assert isinstance(config, dict)
    return config


def levels_of(config: Mapping[str, Any]) -> list[str]:
    """Return the distilled levels that the objective of a configuration states, as training records them."""
    objective: Objective = instantiate(config["losses"])
    return sorted(objective.distilled_levels)


def write_run(
    folder: Path,
    aps: Mapping[str, float] | None,
    overrides: Sequence[str] = (),
    *,
    seed: int = 0,
    arm: str | None = None,
    curve: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    log: str | None = None,
    finished: bool = True,
) -> Path:
    """Write a run folder.

    Args:
        folder: Folder to create.
        aps: AP by depth; None writes no curve.
        overrides: Overrides of the command line.
        seed: Seed of the run.
        arm: Arm, recorded as ``ablation=ARM``.
        curve: Changes to the curve, see :func:`make_curve`.
        data: Changes to the provenance of the data; ``{"fingerprint": None}`` makes an older run.
        log: Text of ``logs/version_0/metrics.csv``.
        finished: Whether to write ``result.json``.
    """
    folder.mkdir(parents=True)
    given = [*overrides, f"seed={seed}"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(given, folder)))
    described = {"fingerprint": "f1", "train_images": 56, "val_images": 19, "class_names": ["crown"]}
    provenance = {
        "time": "2026-01-01T00:00:00+00:00",
        "command": shlex.join(["anydepth-train", *given]),
        "overrides": [*([f"ablation={arm}"] if arm else []), *given],
        "versions": {"torch": "2.15.0"},
        "git": {"commit": "c" * 40, "changed": False},
        "seed": seed,
        "data": described | dict(data or {}),
        "distilled_levels": levels_of(config_of(given, folder)),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    if aps is not None:
        (folder / "depth_curve.json").write_text(make_curve(aps, **dict(curve or {})).to_json())
    if log is not None:
        write_log(folder, 0, log)
    if finished:
        (folder / "result.json").write_text(json.dumps({"status": "finished", "metrics": {}}))
    return folder


def write_log(folder: Path, version: int, text: str) -> None:
    """Write ``logs/version_N/metrics.csv``."""
    path = folder / "logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
