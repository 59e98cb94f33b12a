"""The jobs of the study, their order, and the record that keeps two studies out of one folder."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from anydepth import zoo
from anydepth.evidence.arms import BASE, BY_NAME, Arm
from anydepth.evidence.datasets import StudyData, hydra_setting
from anydepth.utils.files import write_text

Kind = Literal["train", "convert", "score"]

STUDY: Final = "study.json"
CONVERTED: Final = "converted.safetensors"
WEIGHTS: Final = "weights.safetensors"
FORMAT: Final = 1
"""Version of the folder's layout; another one is refused."""

# Validations of a training run: the base and those from scratch show a learning curve.
_VALIDATIONS: Final[Mapping[str, int]] = {"base": 12, "scratch": 12, "converted": 3}


class StudyError(ValueError):
    """A study that cannot be planned or continued as asked; the message says what to change."""


@dataclass(frozen=True)
class StudySettings:
    """What all jobs of a study have in common; a folder holds one study.

    Attributes:
        steps: Optimizer steps of the base network. Arms that start from the converted network take a quarter
            of them, and arms from scratch as many as both together.
        batch_size: Images per step.
        lr: Learning rate of the base and of the arms from scratch; None: that of the recipe.
        convert_lr: Learning rate of the arms that start from the converted network; None: that of
            ``recipe=convert_small``.
        all_set: Further settings of every training run, e.g. ``detector.input_size=[320,320]``.
        convert_set: Further settings of the arms that start from the converted network, which override those
            before them, e.g. ``recipe.skip_lr=3e-3``.
    """

    steps: int = 2040
    batch_size: int = 4
    lr: float | None = None
    convert_lr: float | None = None
    all_set: tuple[str, ...] = ()
    convert_set: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch_size", self.batch_size)):
            if value < 1:
                raise StudyError(f"got {name}={value}, expected at least 1")
        for name, rate in (("lr", self.lr), ("convert_lr", self.convert_lr)):
            if rate is not None and not rate > 0:
                raise StudyError(f"got {name}={rate}, expected a learning rate above 0")
        for text in (*self.all_set, *self.convert_set):
            if "=" not in text:
                raise StudyError(f"got the setting {text!r}, expected KEY=VALUE")

    def epochs(self, arm: Arm, steps_per_epoch: int) -> int:
        """Return the epochs of an arm, at least one: whole ones, the nearest to its steps."""
        base = max(1, round(self.steps / steps_per_epoch))
        further = max(1, round(self.steps / 4 / steps_per_epoch))
        return {"scratch": base + further, "base": base, "converted": further}[phase_of(arm)]


@dataclass(frozen=True)
class Cell:
    """What arms are compared within: a data set, a detector and a seed.

    Attributes:
        dataset: Name of the data set.
        detector: Name of the any-depth detector.
        seed: Seed of initial weights, order of images and augmentation.
    """

    dataset: str
    detector: str
    seed: int

    @property
    def folder(self) -> Path:
        """Folder below that of the study."""
        return Path(self.dataset, self.detector, f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.dataset} {self.detector} seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """One step of the study, which runs as a process of its own.

    Attributes:
        kind: ``train``, ``convert`` (the base's weights into the any-depth detector) or ``score`` (detections
            of every rung of the ladder on a split).
        cell: Data set, detector and seed.
        arm: Arm that it belongs to; the base for ``convert``.
        split: Split that ``score`` runs on; else None.
        steps: Optimizer steps of ``train``; else 0.
        settings: Settings of ``anydepth-train`` that its result depends on; none for the other kinds.
        needs: Names of the jobs that must have finished.
    """

    kind: Kind
    cell: Cell
    arm: Arm
    split: str | None
    steps: int
    settings: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name that no other job of the study has; also its folder."""
        return self.folder.as_posix()

    @property
    def folder(self) -> Path:
        """Folder below that of the study."""
        if self.kind == "convert":
            return self.cell.folder / "convert"
        folder = self.cell.folder / self.arm.name
        return folder if self.split is None else folder / self.split

    @property
    def result(self) -> Path:
        """File below the study's folder that only a finished job leaves."""
        if self.kind == "convert":
            return self.folder / CONVERTED
        return self.folder / ("result.json" if self.kind == "train" else "detections.npz")


def phase_of(arm: Arm) -> str:
    """Return ``base``, ``scratch`` or ``converted``, which decides the length of an arm."""
    return BASE if arm.name == BASE else arm.start


def make_plan(
    datasets: Sequence[StudyData],
    detectors: Sequence[str],
    seeds: Sequence[int],
    arms: Sequence[Arm],
    settings: StudySettings,
    *,
    test: bool,
) -> list[Job]:
    """Return the jobs in the order in which they run.

    Seed by seed and, within a seed, by the rank of the arms, so that each finished prefix answers a question
    for all data sets and detectors. The test split comes last, after everything else.

    Args:
        datasets: Data sets.
        detectors: Names of any-depth detectors.
        seeds: Seeds.
        arms: Arms, from :func:`anydepth.evidence.arms.choose_arms`.
        settings: What all jobs have in common.
        test: Whether the test split is scored, too.

    Raises:
        StudyError: Two of a kind, or a detector that is none or has a fixed depth.
    """
    for what, names in (("data set", [data.name for data in datasets]), ("detector", detectors)):
        _check_each_once(what, names)
    _check_each_once("seed", seeds)
    for detector in detectors:
        _check_detector(detector)
    cells = [(data, Cell(data.name, name, seed)) for seed in seeds for data in datasets for name in detectors]
    jobs = [
        job
        for seed in seeds
        for arm in sorted(arms, key=lambda one: one.rank)
        for data, cell in cells
        if cell.seed == seed
        for job in _jobs_of(arm, data, cell, settings)
    ]
    if test:
        jobs += [_score(arm, cell, "test") for _, cell in cells for arm in arms]
    return jobs


def _jobs_of(arm: Arm, data: StudyData, cell: Cell, settings: StudySettings) -> Iterator[Job]:
    """Yield the jobs of an arm in a cell that do not touch the test split."""
    convert = Job("convert", cell, BY_NAME[BASE], None, 0, (), (f"{cell.folder.as_posix()}/{BASE}",))
    if arm.is_trained:
        per_epoch = data.steps_per_epoch(settings.batch_size)
        epochs = settings.epochs(arm, per_epoch)
        needs = (convert.name,) if arm.start == "converted" else ()
        own = _last_of_each(_train_settings(arm, data, cell, settings, epochs))
        yield Job("train", cell, arm, None, epochs * per_epoch, own, needs)
    if arm.name == BASE:
        yield convert
    yield _score(arm, cell, "val")


def _score(arm: Arm, cell: Cell, split: str) -> Job:
    source = arm.name if arm.is_trained else "convert"
    return Job("score", cell, arm, split, 0, (), (f"{cell.folder.as_posix()}/{source}",))


def _train_settings(
    arm: Arm, data: StudyData, cell: Cell, settings: StudySettings, epochs: int
) -> Iterator[str]:
    converted = arm.start == "converted"
    family = "detr" if zoo.settings_of(cell.detector).get("decoder_layers") else "yolo"
    yield from data.settings
    yield f"detector={cell.detector}"
    yield "recipe=convert_small" if converted else f"recipe={family}_small"
    if converted:
        yield "convert=false"  # The weights were, by a job of its own.
    yield f"seed={cell.seed}"
    yield f"data.batch_size={settings.batch_size}"
    yield "recipe.minutes=null"
    yield f"recipe.epochs={epochs}"
    yield f"recipe.validate_every_epochs={max(1, epochs // _VALIDATIONS[phase_of(arm)])}"
    yield f"validation.depths=[{','.join(arm.scored_depths)}]"
    yield f"validation.score={arm.score}"
    # Scores come from jobs of their own.
    yield "curve.depths=null"
    lr = settings.convert_lr if converted else settings.lr
    if lr is not None:
        yield f"recipe.lr={lr}"
        yield f"recipe.backbone_lr={lr}"
    yield from arm.settings
    yield from settings.all_set
    if converted:
        yield from settings.convert_set


def _last_of_each(settings: Iterable[str]) -> tuple[str, ...]:
    """Return settings without those that a later one replaces; Hydra takes no group twice."""
    last = {text.partition("=")[0]: text for text in settings}
    return tuple(last.values())


def _check_each_once(what: str, values: Sequence[object]) -> None:
    if not values:
        raise StudyError(f"got no {what}, expected at least one")
    twice = [value for value in values if list(values).count(value) > 1]
    if twice:
        raise StudyError(f"got the {what} {twice[0]} twice, expected each once")


def _check_detector(name: str) -> None:
    """Refuse a name that is no any-depth detector.

    Raises:
        StudyError: It has a fixed depth.
        ZooError: There is no such detector.
    """
    if not zoo.settings_of(name).get("any_depth", True):
        raise StudyError(
            f"got the detector {name}, which has a fixed depth; give an any-depth one, e.g. detr_tiny"
        )


# -- the study's record ------------------------------------------------------------------------------------


def open_study(folder: Path, settings: StudySettings, datasets: Sequence[StudyData]) -> None:
    """Record what the jobs of a study have in common, or compare it with the record.

    Data sets may join a study later; one that it has must stay the same.

    Raises:
        StudyError: The folder holds another study, or files of something else.
    """
    path = folder / STUDY
    wanted = json.loads(json.dumps(asdict(settings)))
    digests = {data.name: data.digest for data in datasets}
    record = read_study(folder)
    if record is None:
        others = [one.name for one in folder.glob("*") if one.name != "splits"] if folder.exists() else []
        if others:
            raise StudyError(f"{folder}: holds {others[0]} and no {STUDY}; give another --output")
    else:
        known = record["settings"]
        different = [
            f"{key}={known.get(key)} there, {wanted[key]} here"
            for key in wanted
            if known.get(key) != wanted[key]
        ]
        different += [
            f"other annotations of {name}"
            for name, digest in digests.items()
            if record["datasets"].get(name, digest) != digest
        ]
        if different:
            raise StudyError(
                f"{folder}: holds a study with other settings ({'; '.join(different)}); give another "
                "--output, or the settings of that study"
            )
        digests = {**record["datasets"], **digests}
    write_text(
        path,
        json.dumps({"format": FORMAT, "settings": wanted, "datasets": digests}, indent=2) + "\n",
    )


def read_study(folder: Path) -> dict[str, Any] | None:
    """Return the record of a study; None if there is none.

    Raises:
        StudyError: It is damaged or of another version.
    """
    path = folder / STUDY
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise StudyError(
                f"{path}: of version {record['format']}, expected {FORMAT}; give another --output"
            )
        return {"settings": dict(record["settings"]), "datasets": dict(record["datasets"])}
    except (OSError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise StudyError(f"{path}: not the record of a study ({error!r}); give another --output") from error


def train_command(job: Job, study: Path, machine: Sequence[str]) -> list[str]:
    """Return the settings of ``anydepth-train`` for a job, with those of this machine and its folder."""
    folder = study.resolve() / job.folder
    weights: tuple[str, ...] = ()
    if job.arm.start == "converted":
        weights = (hydra_setting("weights", study.resolve() / job.cell.folder / "convert" / CONVERTED),)
    return [*job.settings, *weights, *machine, "ckpt_path=auto", hydra_setting("hydra.run.dir", folder)]
