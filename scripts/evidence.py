"""Train the arms of the evidence study, and compare them.

Usage: ``python scripts/evidence.py --output outputs/evidence`` or ``make evidence``; docs/studies.md tells
what is trained and how it is compared. The same command again runs what is missing. ``--list`` prints the
jobs with an estimate of their time, ``--report`` writes the page of what has finished.

Without an option that narrows the study (``--seeds``, ``--datasets``, ``--detectors``, ``--arms``), the test
split is scored when everything else has ended; with one, only if ``--test`` is given. Each arm is scored
there once.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from anydepth.evidence.arms import ARMS, choose_arms
from anydepth.evidence.datasets import StudyData, prepare_data
from anydepth.evidence.estimate import estimate_seconds
from anydepth.evidence.page import write_report
from anydepth.evidence.plan import Job, StudyError, StudySettings, make_plan, open_study
from anydepth.evidence.run import Machine, Runner

DETECTORS = ("detr_tiny", "yolo_tiny")
SEEDS = (0, 1, 2, 3)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("outputs/evidence"), help="folder of the study")
    add("--datasets", type=_names, help="names, separated by commas; bccd and those of --root")
    add("--root", type=_root, action="append", default=[], help="NAME=FOLDER of a data set in COCO format")
    add("--detectors", type=_names, help=f"names, separated by commas; {','.join(DETECTORS)}")
    add("--seeds", type=_numbers, help=f"numbers, separated by commas; {','.join(map(str, SEEDS))}")
    add("--arms", type=_names, help=f"all, or some of {', '.join(arm.name for arm in ARMS)}")
    add("--steps", type=int, default=2040, help="steps of the base; a quarter more for its arms")
    add("--batch-size", type=int, default=4, help="images per step")
    add("--lr", type=float, help="learning rate from scratch; that of the recipe")
    add("--convert-lr", type=float, help="learning rate after the conversion; that of its recipe")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of every training run")
    add(
        "--convert-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of the training after the conversion, e.g. recipe.skip_lr=3e-3",
    )
    add("--jobs", type=int, help="jobs at a time; one per core, or 4 on a GPU")
    add("--threads", type=int, default=1, help="CPU threads of each job")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto")
    add("--workers", type=int, help="processes of each job that load images; 0, or 2 on a GPU")
    add("--test", action="store_true", help="score the test split once the rest has ended")
    add("--list", action="store_true", help="print the jobs, run nothing")
    add("--report", action="store_true", help="write the page of what has finished, run nothing")
    add("--samples", type=int, default=500, help="bootstrap samples of the images, for the page")
    return parser.parse_args(argv)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in _names(text))
    if any(number < 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"got {text}, expected seeds of 0 and above")
    return numbers


def _root(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder) or "/" in name:
        raise argparse.ArgumentTypeError(f"got {text}, expected NAME=FOLDER")
    return name, Path(folder)


def machine_of(options: argparse.Namespace) -> Machine:
    """Return how jobs run on this machine.

    Raises:
        StudyError: A number that is out of range.
    """
    gpu = torch.cuda.is_available() if options.device == "auto" else options.device == "gpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, value, least in (
        ("jobs", options.jobs, 1),
        ("threads", options.threads, 1),
        ("workers", options.workers, 0),
    ):
        if value is not None and value < least:
            raise StudyError(f"got --{name} {value}, expected at least {least}")
    jobs = options.jobs or (4 if gpu else max(1, cores // options.threads))
    workers = options.workers if options.workers is not None else (2 if gpu else 0)
    return Machine(jobs, options.threads, gpu, workers)


def run(options: argparse.Namespace) -> int:
    """Plan the study and run it; return the exit status.

    Raises:
        ValueError: An option or a data set that cannot be used; the message says what to change.
    """
    machine = machine_of(options)
    settings = StudySettings(
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        convert_lr=options.convert_lr,
        all_set=tuple(options.set),
        convert_set=tuple(options.convert_set),
    )
    roots = dict(options.root)
    names = options.datasets or tuple(dict.fromkeys(("bccd", *roots)))
    if unused := roots.keys() - set(names):
        raise StudyError(f"got --root of {sorted(unused)[0]}, which is not among --datasets")
    datasets = [prepare_data(name, roots.get(name), options.output) for name in names]
    narrowed = any((options.datasets, options.detectors, options.seeds, options.arms))
    jobs = make_plan(
        datasets,
        options.detectors or DETECTORS,
        options.seeds or SEEDS,
        choose_arms(options.arms),
        settings,
        test=options.test or not narrowed,
    )
    if options.list:
        print_plan(jobs, datasets, options.output, machine)
        return 0
    by_name = {data.name: data for data in datasets}
    if options.report:
        print_report(options, jobs, by_name)
        return 0
    open_study(options.output, settings, datasets)
    runner = Runner(
        study=options.output,
        jobs=jobs,
        datasets=by_name,
        machine=machine,
        report=lambda line: print(line, flush=True),
    )
    runner.run()
    print_report(options, jobs, by_name)
    return 1 if runner.failed else 0


def print_report(options: argparse.Namespace, jobs: Sequence[Job], datasets: Mapping[str, StudyData]) -> None:
    """Write the page, on the test split if the whole of it was scored, and print where it is.

    Raises:
        ValueError: Nothing was scored yet, or fewer than one bootstrap sample.
    """
    if options.samples < 1:
        raise StudyError(f"got --samples {options.samples}, expected at least 1")
    test = [job for job in jobs if job.split == "test"]
    split = "test" if test and all((options.output / job.result).is_file() for job in test) else "val"
    files = write_report(options.output, jobs, datasets, split=split, samples=options.samples)
    for name, path in files.items():
        print(f"{name:16} {path}")


def print_plan(jobs: Sequence[Job], datasets: Sequence[StudyData], study: Path, machine: Machine) -> None:
    """Print the jobs in their order with an estimate of their time, and the sums."""
    for data in datasets:
        if data.remark:
            print(f"{data.name}: {data.remark}")
    estimate = estimate_seconds(jobs, study, machine)
    total = left = 0.0
    for job in jobs:
        seconds, done = estimate(job), (study / job.result).is_file()
        total, left = total + seconds, left + (0.0 if done else seconds)
        length = f"{job.steps} steps, " if job.steps else ""
        print(f"{'done' if done else '':5}{job.kind:8}{job.name:55}{length}{seconds / 60:.1f} min")
    print(
        f"{len(jobs)} jobs, about {total / 3600 / machine.jobs:.1f} hours with {machine.jobs} at a time; "
        f"{left / 3600 / machine.jobs:.1f} hours are left"
    )


def main() -> None:
    """Run the command; what the user can mend ends in one line."""
    options = parse()
    try:
        status = run(options)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues the study")
    sys.exit(status)


if __name__ == "__main__":
    main()
