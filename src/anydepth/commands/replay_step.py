"""``anydepth-replay``: run a training step that was NaN or infinite again, and print losses and gradients."""

import argparse
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anydepth import zoo
from anydepth.config.compose import instantiate
from anydepth.config.errors import readable_errors
from anydepth.config.renamed import check_groups
from anydepth.detector import Detector
from anydepth.layers.precision import disable_autocast
from anydepth.training.checkpointing.read import detector_weights, read_checkpoint
from anydepth.training.module import DetectionModule
from anydepth.training.non_finite.diagnosis import names_of_non_finite
from anydepth.training.non_finite.recorder import RecordedStep, read_whole_step, weights_file
from anydepth.utils.interrupt import readable_interrupt
from anydepth.utils.version import package_version
from anydepth.weights.files import read_state_dict

# Largest relative difference of losses that count as equal: several processes sum in another order than one.
RELATIVE_TOLERANCE = 1e-3
# For losses near zero, of which a relative difference says nothing.
ABSOLUTE_TOLERANCE = 1e-6

_DESCRIPTION = """\
Run a training step that was NaN or infinite again, and print the losses and gradients of its passes.

Training writes a file of each step that is not finite (`non_finite.files`), one per process with its images,
and beside them the weights that the step started from. The images of all processes are joined: one process
takes the step that several took. Give other weights with --weights, e.g. an earlier checkpoint, to see
whether the images or the weights are to blame. Equal random numbers need the kind of device that trained."""

_EXAMPLES = """\
examples:
  anydepth-replay RUN/non_finite/step_7_rank_0.pt
  anydepth-replay RUN/non_finite/step_7_rank_0.pt --weights RUN/checkpoints/last.ckpt --device cpu"""


@dataclass(frozen=True)
class ReplayedPass:
    """Losses and gradients of one pass of a step that was run again.

    Attributes:
        name: Name of the pass.
        terms: Losses by name.
        recorded: Losses of the same names in training.
        norm: Norm of the gradient of their sum.
        bad: Parameters whose gradients are not finite, as text; empty if there are none.
        fault: Fault that the losses found; empty if they found none.
    """

    name: str
    terms: Mapping[str, float]
    recorded: Mapping[str, float]
    norm: float
    bad: str
    fault: str

    @property
    def finite(self) -> bool:
        """Whether all losses and gradients are finite."""
        return not self.bad and not self.fault and all(map(math.isfinite, self.terms.values()))

    def __str__(self) -> str:
        lines = [f"pass {self.name}"]
        for name, value in self.terms.items():
            recorded = self.recorded.get(name, math.nan)
            remark = "" if _equal(value, recorded) else f"   recorded: {recorded:.6g}"
            lines.append(f"  {name:14} {value:12.6g}{remark}")
        lines.append(f"  {'gradient norm':14} {self.norm:12.6g}")
        lines += [f"  not finite: gradient of {self.bad}"] if self.bad else []
        lines += [f"  {self.fault}"] if self.fault else []
        return "\n".join(lines)


def replay(file: Path, weights: Path | None = None, device: str | None = None) -> list[ReplayedPass]:
    """Run the step of a file again.

    Args:
        file: File of the step, from any of the processes.
        weights: Weights to start from; None: the weights beside the file.
        device: ``cpu`` or ``cuda``; None: the kind that trained, if it is available.

    Returns:
        The passes of the step, in the order in which they ran.

    Raises:
        FileNotFoundError: The file, or weights, are missing.
        ValueError: A file cannot be used; the message says why.
    """
    step, missing = read_whole_step(file)
    if missing:
        print(f"The images of processes {list(missing)} are missing: losses differ from those of the run")
    target = torch.device(device or (step.run["device"] if _is_available(step.run["device"]) else "cpu"))
    if target.type != step.run["device"]:
        print(f"The run trained on {step.run['device']}: random numbers differ on {target.type}")
    config = step.run["config"]
    check_groups(config)
    detector = zoo.build_configured(config["detector_name"], config["detector"], step.run["num_classes"])
    _load_weights(detector, weights or weights_file(file, step))
    torch.set_float32_matmul_precision(config["float32_matmul"])
    module = _build_module(config, detector, step).to(target)
    batch = step.batch.to(target)
    parameters = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    replayed = []
    with _autocast(config["trainer"]["precision"], target):
        for graph in module.replay(batch, step.place):
            with disable_autocast(target):
                gradients = dict(
                    zip(parameters, graph.gradients(list(parameters.values()), keep=False), strict=True)
                )
            present = [gradient for gradient in gradients.values() if gradient is not None]
            replayed.append(
                ReplayedPass(
                    name=graph.planned.name,
                    terms={name: float(value.detach()) for name, value in graph.losses.terms.items()},
                    recorded=step.terms.get(graph.planned.name, {}),
                    norm=float(torch.nn.utils.get_total_norm(present)),
                    bad=names_of_non_finite(gradients),
                    fault=str(graph.losses.fault or ""),
                )
            )
    return replayed


def _load_weights(detector: Detector, weights: Path) -> None:
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights}: no such file; give weights with --weights FILE, e.g. a checkpoint of the run"
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


def _build_module(config: Mapping[str, Any], detector: Detector, step: RecordedStep) -> DetectionModule:
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
    module.plan = step.planned_passes(detector.depth_space)
    return module.train()


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    if precision not in ("16-mixed", "bf16-mixed"):
        return nullcontext()
    # Lightning replaces float16 by bfloat16 on CPUs.
    half = torch.float16 if precision == "16-mixed" and device.type != "cpu" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, cache_enabled=False)


def _is_available(device: str) -> bool:
    return device == "cpu" or (device == "cuda" and torch.cuda.is_available())


def _equal(first: float, second: float) -> bool:
    if not (math.isfinite(first) and math.isfinite(second)):
        return str(first) == str(second)
    return math.isclose(first, second, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


@readable_interrupt()
@readable_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Console script ``anydepth-replay``.

    Args:
        argv: The command line without the program; None: the command line of the process.
    """
    options = _parser().parse_args(argv)
    print(read_whole_step(options.file)[0].message)
    replayed = replay(options.file, options.weights, options.device)
    for one in replayed:
        print(one)
    print("all numbers are finite" if all(one.finite for one in replayed) else "not finite again")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anydepth-replay",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {package_version()}")
    parser.add_argument("file", type=Path, help="step_N_rank_R.pt of a run's folder non_finite")
    parser.add_argument("--weights", type=Path, help="checkpoint or weights; default: those beside the file")
    parser.add_argument("--device", help="cpu or cuda; default: the kind that trained")
    return parser


if __name__ == "__main__":
    main()
