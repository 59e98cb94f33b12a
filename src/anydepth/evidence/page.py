"""The results of the study: tables of AP, claims and effects in Markdown, and learning curves."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anydepth.data.coco.layout import SplitName
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.evidence.arms import BY_NAME, Arm
from anydepth.evidence.claims import (
    CLAIMS,
    EFFECTS,
    FULL,
    MINIMAL,
    Difference,
    compare,
    rungs,
)
from anydepth.evidence.datasets import StudyData
from anydepth.evidence.detections import CURVE, DETECTIONS, read_detections
from anydepth.evidence.matches import Matches, sample_images
from anydepth.evidence.plan import Cell, Job
from anydepth.utils.files import atomic_path, write_text

PAGE: Final = "evidence.md"
CHART: Final = "learning_curves.png"
TABLE: Final = "evidence.csv"
_LIMIT: Final = -1.0  # of a rung below the line between its neighbours


@dataclass
class _Group:
    """What was measured of a detector on a data set.

    Attributes:
        ap: AP in percent by arm and depth, then by seed: [1 + S], see :data:`anydepth.evidence.claims.Curve`.
        gflops: Operations by depth.
        images: Images of the split.
    """

    ap: dict[tuple[str, str], dict[int, NDArray[np.float64]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    gflops: dict[str, float] = field(default_factory=dict)
    images: int = 0


def write_report(
    study: Path, jobs: Sequence[Job], datasets: Mapping[str, StudyData], *, split: str, samples: int = 500
) -> dict[str, Path]:
    """Write what the finished jobs of a study say, whichever these are.

    Args:
        study: Folder of the study.
        jobs: Jobs of the plan.
        datasets: Data sets by name.
        split: Split whose detections count: ``val`` or ``test``.
        samples: Bootstrap samples of the images.

    Returns:
        The files by description.

    Raises:
        ValueError: No arm was scored on this split, or a damaged file.
    """
    scored = [
        job for job in jobs if job.kind == "score" and job.split == split and (study / job.result).is_file()
    ]
    if not scored:
        raise ValueError(f"{study}: no arm was scored on the split {split}; run the study first")
    groups = _measure(study, scored, datasets, samples)
    lines = [*_head(groups, split, samples)]
    for (dataset, detector), group in groups.items():
        lines += ["", f"### {detector} on {dataset}", "", *_group_lines(group)]
    write_text(study / PAGE, "\n".join(lines) + "\n")
    _write_table(study / TABLE, groups)
    files = {"page": study / PAGE, "table": study / TABLE}
    if _draw_curves(study, jobs, study / CHART):
        files["learning curves"] = study / CHART
    return files


def _measure(
    study: Path, scored: Sequence[Job], datasets: Mapping[str, StudyData], samples: int
) -> dict[tuple[str, str], _Group]:
    truths = {name: _ground_truth(datasets[name], str(scored[0].split)) for name in datasets}
    groups: dict[tuple[str, str], _Group] = defaultdict(_Group)
    for job in scored:
        group = groups[job.cell.dataset, job.cell.detector]
        folder = study / job.folder
        curve = DepthCurve.from_json((folder / CURVE).read_text(encoding="utf-8"))
        found = _samples_of(folder, truths[job.cell.dataset], samples)
        group.images = curve.images
        for row in curve.rows:
            if row.depth in found:
                group.ap[job.arm.name, row.depth][job.cell.seed] = 100 * found[row.depth]
            # A network of fixed depth runs all of itself, with the norms of one state.
            if job.arm.name != "base":
                group.gflops[row.depth] = row.gflops
    return dict(groups)


def _ground_truth(data: StudyData, split: str) -> dict[str, Any]:
    path = data.splits[cast(SplitName, split)].json_path
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _samples_of(folder: Path, truth: Mapping[str, Any], samples: int) -> dict[str, NDArray[np.float64]]:
    """Return AP [1 + S] in [0, 1] by depth, which is kept beside the detections, as it takes a minute."""
    kept, source = folder / f"samples_{samples}.npz", folder / DETECTIONS
    if kept.is_file() and kept.stat().st_mtime_ns > source.stat().st_mtime_ns:
        with np.load(kept) as file:
            return {name: file[name] for name in file.files}
    found = {}
    for depth, columns in read_detections(folder).items():
        matches = Matches(truth, columns)
        count = len(matches.image_ids)
        weights = np.concatenate([np.ones((1, count)), sample_images(count, samples)])
        found[depth] = matches.average_precision(weights)
    with atomic_path(kept) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **found)  # type: ignore[arg-type]
    return found


def _head(groups: Mapping[tuple[str, str], _Group], split: str, samples: int) -> Iterator[str]:
    counts = {dataset: group.images for (dataset, _), group in groups.items()}
    images = ", ".join(f"{count} of {dataset}" for dataset, count in counts.items())
    yield (
        f"AP in percent on the {split} images ({images}). Intervals are of 95 %, over images and seeds "
        f"({samples} bootstrap samples), of differences within a seed on the same images. A claim holds if "
        "its whole interval is above the limit, fails if it is below, and is open otherwise."
    )


def _group_lines(group: _Group) -> Iterator[str]:
    yield from _arm_table(group)
    yield ""
    yield "| claim | limit | difference | interval | seeds | |"
    yield "|---|---|---|---|---|---|"
    for claim in CLAIMS:
        found = compare(group.ap, claim)
        if found is not None:
            assert claim.limit is not None
            yield f"| {claim.text} | {claim.limit:+.1f} | {_numbers(found)} | {found.verdict(claim.limit)} |"
    yield from _rung_lines(group)
    effects = [(claim, found) for claim in EFFECTS if (found := compare(group.ap, claim)) is not None]
    if effects:
        yield ""
        yield "| what it brings | difference | interval | seeds |"
        yield "|---|---|---|---|"
        for claim, found in effects:
            yield f"| {claim.text} | {_numbers(found)} |"


def _rung_lines(group: _Group) -> Iterator[str]:
    for arm in ("converted-any_depth", "scratch-any_depth"):
        found = list(rungs(group.ap, arm, group.gflops))
        if found:
            worst = min(found, key=lambda rung: rung.gap.mean)
            start = "Converted" if arm.startswith("converted") else "From scratch"
            yield (
                f"| {start}, no depth is far below the line between its neighbours; the lowest is "
                f"`{worst.depth}` | {_LIMIT:+.1f} | {_numbers(worst.gap)} | {worst.gap.verdict(_LIMIT)} |"
            )


def _numbers(found: Difference) -> str:
    return f"{found.mean:+.1f} | {found.low:+.1f} to {found.high:+.1f} | {len(found.seeds)}"


def _arm_table(group: _Group) -> Iterator[str]:
    yield "| arm | full | minimal | seeds |"
    yield "|---|---|---|---|"
    for name in (one for one in BY_NAME if any(arm == one for arm, _ in group.ap)):
        cells, seeds = [], 0
        for depth in (FULL, MINIMAL):
            own = group.ap.get((name, depth), {})
            seeds = max(seeds, len(own))
            cells.append(_mean_and_range(own) if own else "")
        yield f"| {BY_NAME[name].about} | {cells[0]} | {cells[1]} | {seeds} |"


def _mean_and_range(own: Mapping[int, NDArray[np.float64]]) -> str:
    values = [float(one[0]) for one in own.values()]
    ends = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{ends}"


def _write_table(path: Path, groups: Mapping[tuple[str, str], _Group]) -> None:
    """Write AP of each arm, depth and seed, one per line."""
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "detector", "arm", "depth", "gflops", "seed", "ap"])
        for (dataset, detector), group in groups.items():
            for (arm, depth), own in group.ap.items():
                for seed, values in sorted(own.items()):
                    cost = group.gflops.get(depth, "")
                    writer.writerow([dataset, detector, arm, depth, cost, seed, round(float(values[0]), 3)])


# -- learning curves -----------------------------------------------------------------------------------------


def _draw_curves(study: Path, jobs: Sequence[Job], path: Path) -> bool:
    """Draw AP on the validation images over steps for networks from scratch; False if there are none."""
    curves: dict[tuple[str, str], list[tuple[Arm, Cell, list[tuple[int, float]]]]] = defaultdict(list)
    for job in jobs:
        if job.kind == "train" and job.arm.start == "scratch":
            points = list(_validations(study / job.folder, job.arm.scored_depths[0]))
            if len(points) > 1:
                curves[job.cell.dataset, job.cell.detector].append((job.arm, job.cell, points))
    if not curves:
        return False
    figure = Figure(figsize=(5.4 * len(curves), 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Learning curves: AP on the validation images, one line per seed", parse_math=False)
    colours = {name: f"C{number % 10}" for number, name in enumerate(BY_NAME)}
    for number, ((dataset, detector), lines) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(1, len(curves), number)
        labelled: set[str] = set()
        for arm, _, points in lines:
            depth = arm.scored_depths[0]
            label = None if arm.name in labelled else f"{arm.name} at {depth} depth"
            labelled.add(arm.name)
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colours[arm.name], lw=1.2, alpha=0.8, label=label)
        axes.set_title(f"{detector} on {dataset}", parse_math=False)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("AP in percent")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")
    return True


def _validations(run: Path, depth: str) -> Iterator[tuple[int, float]]:
    """Yield step and AP in percent of each validation of a run."""
    for path in sorted((run / "logs").glob("version_*/metrics.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                value = row.get(f"val/{depth}/AP")
                if value:
                    yield int(float(row["step"])) + 1, 100 * float(value)
