"""Make the bundle that the package carries for ``anydepth-demo``, src/anydepth/deploy/serve/demo_bundle.zip.

Usage: ``python scripts/make_demo_bundle.py WORK`` trains ``yolo_tiny`` on the embedded sample into WORK/run,
exports five depths of it to WORK/bundle, rounds the weights of the graphs to float16, evaluates the result on
the validation tiles, and packs it. A run or a bundle that is in WORK already is used. Training stops by the
clock, so that a faster machine makes better weights.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from anydepth.data.sample import sample_root
from anydepth.deploy.export.bundle_writer import file_entry, write_description
from anydepth.deploy.runtime.bundle import DESCRIPTION, WEIGHTS, Bundle, read_bundle
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.serve.demo_weights import ARCHIVE, pack
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.structures import Detections

DEPTHS = "[full,3/4,1/2,1/4,minimal]"


def main() -> None:
    """Train, export, round, evaluate and pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the run and the bundle")
    parser.add_argument("--minutes", type=float, default=30, help="training time (default: 30)")
    parser.add_argument("--output", type=Path, default=ARCHIVE, help="archive to write")
    given = parser.parse_args()
    run, bundle = given.work / "run", given.work / "bundle"
    if not (run / "weights.safetensors").is_file():
        call(
            "anydepth.train",
            "detector=yolo_tiny",
            f"recipe.minutes={given.minutes:g}",
            "curve.latency_repetitions=0",
            f"hydra.run.dir={run}",
        )
    if not (bundle / DESCRIPTION).is_file():
        call(
            "anydepth.export",
            f"weights={run / 'weights.safetensors'}",
            f"depths={DEPTHS}",
            f"output={bundle}",
        )
    former = evaluate(read_bundle(bundle))
    round_weights(bundle)
    figures = evaluate(read_bundle(bundle))
    for depth, values in figures.items():
        print(f"{depth:8} AP {100 * values['AP']:.2f} (float32: {100 * former[depth]['AP']:.2f})")
    describe(bundle, figures)
    pack(read_bundle(bundle), given.output)
    print(f"{given.output.stat().st_size:,} bytes in {given.output}")


def call(module: str, *settings: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", module, *settings], check=True)


def round_weights(folder: Path) -> None:
    """Round the file of weights to values of float16.

    Raises:
        ValueError: A tensor in it has another type than float32, or a value beyond float16.
    """
    for graph in folder.glob("*.onnx"):
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
            if tensor.external_data and tensor.data_type != onnx.TensorProto.FLOAT:
                raise ValueError(f"{graph}: {tensor.name} is stored outside and not float32")
    weights = np.fromfile(folder / WEIGHTS, "<f4")
    half = weights.astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError(f"{folder / WEIGHTS}: holds {np.abs(weights).max():g}, more than float16 can")
    (folder / WEIGHTS).write_bytes(half.astype("<f4").tobytes())
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    description["files"][WEIGHTS] = file_entry(folder / WEIGHTS)
    write_description(folder, description)


def evaluate(bundle: Bundle) -> dict[str, Mapping[str, float]]:
    """Return the COCO metrics of each depth on the validation tiles, by what ``predict`` finds."""
    truth = json.loads((sample_root() / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
    detector, evaluator = DeployedDetector(bundle), CocoEvaluator(ground_truth=truth)
    ids = [image["id"] for image in truth["images"]]
    files = [sample_root() / "images" / "val" / image["file_name"] for image in truth["images"]]
    for depth in detector.depths:
        found = [
            Detections(*map(torch.from_numpy, (one.boxes_xyxy, one.scores, one.labels)))
            for one in detector.predict(files, depth, threshold=0.0)
        ]
        evaluator.add(depth, ids, found)
    return {depth: result.figures for depth, result in evaluator.evaluate().items()}


def describe(folder: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Write the metrics of the rounded weights into the description; what was compared was not rounded."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    for entry in description["depths"]:
        measured = figures[entry["depth"]]
        entry["figures"] = {name: round(value, 4) for name, value in measured.items() if value >= 0}
        entry["equality"] = {}
    write_description(folder, description)


if __name__ == "__main__":
    main()
