"""Run a training step that was NaN or infinite again, and print the losses and gradients of its paths.

Usage: ``python scripts/reproduce_step.py RUN/non_finite/step_7_rank_0.pt``

Training writes such files where a step is not finite (``non_finite.files``), each process one with its
images, and the weights that the step began with beside them. The images of all processes are put together:
one process takes the step that several took. Give other weights with ``--weights``, e.g. those of a
checkpoint before, to see whether the images or the weights are to blame. Equal random numbers need the kind
of device that trained.
"""

import argparse
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anydepth import zoo
from anydepth.config.compose import instantiate
from anydepth.config.errors import readable_errors
from anydepth.detector import Detector
from anydepth.layers.precision import disable_autocast
from anydepth.training.checkpointing.read import detector_weights, read_checkpoint
from anydepth.training.module import DetectionModule
from anydepth.training.non_finite.diagnosis import names_of_non_finite
from anydepth.training.non_finite.recorder import RecordedStep, weights_beside, whole_step
from anydepth.weights.files import read_state_dict

# Relative difference of losses that are called equal: processes add up in another order than one alone.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Outcome:
    """What came out of a path of the step.

    Attributes:
        name: Of the path.
        terms: Losses by name.
        recorded: What they were in training.
        norm: Of the gradient of their sum.
        bad: The parameters whose gradients are not finite, in words; empty where there are none.
        fault: What the losses found wrong; empty where they found nothing.
    """

    name: str
    terms: Mapping[str, float]
    recorded: Mapping[str, float]
    norm: float
    bad: str
    fault: str

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return not self.bad and not self.fault and all(map(math.isfinite, self.terms.values()))

    def __str__(self) -> str:
        lines = [f"path {self.name}"]
        for name, value in self.terms.items():
            was = self.recorded.get(name, math.nan)
            remark = "" if _equal(value, was) else f"   recorded: {was:.6g}"
            lines.append(f"  {name:14} {value:12.6g}{remark}")
        lines.append(f"  {'gradient norm':14} {self.norm:12.6g}")
        lines += [f"  not finite: gradient of {self.bad}"] if self.bad else []
        lines += [f"  {self.fault}"] if self.fault else []
        return "\n".join(lines)


def reproduce(file: Path, weights: Path | None = None, device: str | None = None) -> list[Outcome]:
    """Run the step of a file again.

    Args:
        file: Of one of the processes.
        weights: To begin with; None: those beside the file.
        device: None: the kind that trained, where there is one.

    Returns:
        Its paths, in their order.

    Raises:
        FileNotFoundError: The file, or weights, are missing.
        ValueError: A file that cannot be used; the message says why.
    """
    step, missing = whole_step(file)
    if missing:
        print(f"Without the images of processes {list(missing)}: losses differ from those of the run")
    where = torch.device(device or (step.run["device"] if _available(step.run["device"]) else "cpu"))
    if where.type != step.run["device"]:
        print(f"The run trained on {step.run['device']}: other random numbers than there")
    config = step.run["config"]
    detector = _detector(config, step.run["num_classes"])
    _load(detector, weights or weights_beside(file, step))
    torch.set_float32_matmul_precision(config["float32_matmul"])
    module = _module(config, detector, step).to(where)
    batch = step.batch.to(where)
    parameters = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    found = []
    with _precision(config["trainer"]["precision"], where):
        for graph in module.replay(batch, step.place):
            with disable_autocast(where):
                gradients = dict(
                    zip(parameters, graph.gradients(list(parameters.values()), keep=False), strict=True)
                )
            present = [gradient for gradient in gradients.values() if gradient is not None]
            found.append(
                Outcome(
                    name=graph.path.name,
                    terms={name: float(value.detach()) for name, value in graph.losses.terms.items()},
                    recorded=step.terms.get(graph.path.name, {}),
                    norm=float(torch.nn.utils.get_total_norm(present)),
                    bad=names_of_non_finite(gradients),
                    fault=str(graph.losses.fault or ""),
                )
            )
    return found


def _detector(config: Mapping[str, Any], num_classes: int) -> Detector:
    settings = {k: v for k, v in config["detector"].items() if k not in ("_target_", "num_classes")}
    return zoo.build(config["detector_name"], num_classes, **settings)


def _load(detector: Detector, weights: Path) -> None:
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights}: no such weights; give --weights FILE, e.g. a checkpoint of the run"
        )
    if weights.suffix == ".ckpt":
        checkpoint = read_checkpoint(weights)
        detector.load_state_dict(checkpoint.get("weights_in_training") or detector_weights(checkpoint))
        return
    tensors = dict(read_state_dict(weights).tensors)
    if tensors.keys() == detector.state_dict().keys():
        detector.load_state_dict(tensors)
    else:
        zoo.load_weights(detector, weights)


def _module(config: Mapping[str, Any], detector: Detector, step: RecordedStep) -> DetectionModule:
    module = DetectionModule(
        detector=detector,
        objective=instantiate(config["losses"]),
        recipe=instantiate(config["recipe"]),
        evaluator=None,
        seed=step.place.seed,
        val_depths=["full"],
        resize_mode=config["multi_scale"]["mode"],
        antialias=config["multi_scale"]["antialias"],
    )
    module.plan = step.paths(detector.depth_space)
    return module.train()


def _precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    if precision not in ("16-mixed", "bf16-mixed"):
        return nullcontext()
    # Lightning has no float16 on CPUs and takes bfloat16 in its place.
    half = torch.float16 if precision == "16-mixed" and device.type != "cpu" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, cache_enabled=False)


def _available(device: str) -> bool:
    return device == "cpu" or (device == "cuda" and torch.cuda.is_available())


def _equal(first: float, second: float) -> bool:
    if not (math.isfinite(first) and math.isfinite(second)):
        return str(first) == str(second)
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=1e-6)


@readable_errors()
def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="step_N_rank_R.pt of a run's folder non_finite")
    parser.add_argument("--weights", type=Path, help="checkpoint or weights; default: those beside the file")
    parser.add_argument("--device", help="cpu or cuda; default: the kind that trained")
    options = parser.parse_args()
    print(whole_step(options.file)[0].message)
    found = reproduce(options.file, options.weights, options.device)
    for path in found:
        print(path)
    print("all numbers are finite" if all(path.finite for path in found) else "not finite again")


if __name__ == "__main__":
    main()
