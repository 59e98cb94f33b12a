"""Tables of the page: figures of settings and runs, differing configuration keys, provenance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anydepth.evaluation.curve_summary import CurveSummary
from anydepth.report.comparison import Comparison
from anydepth.report.runs import Run
from anydepth.report.settings import Setting

MAX_KEY_COLUMNS = 4
"""Differing keys shown as columns of the table of settings, which stays readable; another table shows all."""


@dataclass(frozen=True)
class Cell:
    """Cell of a table.

    Attributes:
        text: Text of the cell.
        key: Sort key: in numeric columns the text of a number; empty if the value is missing.
        under: Smaller second line.
    """

    text: str
    key: str = ""
    under: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column; numeric columns are right-aligned and sort as numbers."""

    title: str
    numeric: bool
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first cell of a row is its heading."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


_FIGURES: Mapping[str, tuple[Column, float, int]] = {
    "full": (Column("AP full", True, "at full depth, percent"), 100, 1),
    "minimal": (Column("AP minimal", True, "at minimal depth, percent"), 100, 1),
    "ladder_mean": (Column("ladder mean", True, "mean AP over the rungs of the ladder, percent"), 100, 1),
    "area": (Column("area", True, "mean AP over cost between minimal and full, percent"), 100, 1),
    "hypervolume": (
        Column("hypervolume", True, "area that the ladder dominates, with cost as a share of full"),
        100,
        1,
    ),
    "largest_drop": (Column("largest drop", True, "AP points lost between neighbouring rungs"), 100, 1),
    "saving": (Column("saving", True, "GFLOPs of full divided by those of minimal"), 1, 2),
}
"""Column, factor and decimals of each figure of :class:`CurveSummary`, by name."""


def settings_table(comparison: Comparison) -> Table:
    """Return one row per setting: means over seeds, with half the range over seeds."""
    keys = differing_keys(comparison)[:MAX_KEY_COLUMNS]
    rows = [_setting_row(setting, keys) for setting in comparison.settings]
    columns = (Column("setting", False), Column("seeds", True))
    return Table((*columns, *_key_columns(keys), *_columns()), tuple(rows))


def runs_table(comparison: Comparison) -> Table:
    """Return one row per run."""
    columns = (Column("run", False), Column("setting", False), Column("seed", True))
    rows = [_run_row(run, setting) for setting in comparison.settings for run in setting.runs]
    return Table((*columns, *_columns()), tuple(rows))


def config_table(comparison: Comparison) -> Table | None:
    """Return a table of differing keys x settings; None if nothing differs."""
    keys = differing_keys(comparison)
    if not keys:
        return None
    columns = (Column("key", False), *(Column(setting.label, False) for setting in comparison.settings))
    rows = [
        (Cell(key), *(Cell(format_value(setting.differing.get(key))) for setting in comparison.settings))
        for key in keys
    ]
    return Table(columns, tuple(rows))


def provenance(run: Run) -> list[tuple[str, str]]:
    """Return the known provenance of a run as pairs of name and text."""
    data, git = _as_mapping(run.provenance.get("data")), _as_mapping(run.provenance.get("git"))
    versions = _as_mapping(run.provenance.get("versions"))
    facts = {
        "folder": str(run.folder),
        "command": _text(run.provenance.get("command")),
        "commit": _text(git.get("commit")) + (", with uncommitted changes" if git.get("changed") else ""),
        "seed": _text(run.seed),
        "device": _text(run.provenance.get("device")),
        "time": _text(run.provenance.get("time")),
        "data": _text(data.get("fingerprint")),
        "Python, platform": ", ".join(
            filter(None, (_text(run.provenance.get(name)) for name in ("python", "platform")))
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "notes": "; ".join(run.notes),
    }
    return [(name, text) for name, text in facts.items() if text]


def differing_keys(comparison: Comparison) -> list[str]:
    """Return the flat configuration keys that differ between the settings, in order."""
    return list(dict.fromkeys(key for setting in comparison.settings for key in setting.differing))


def format_value(value: object) -> str:
    """Format a configuration value as in YAML; a dash if the setting lacks the key."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _columns() -> tuple[Column, ...]:
    extra = (
        Column("steps", True),
        Column("seconds", True, "duration of the whole run"),
        Column("commit", False),
    )
    return (*(column for column, _, _ in _FIGURES.values()), *extra)


def _key_columns(keys: Sequence[str]) -> tuple[Column, ...]:
    return tuple(Column(_shorten_key(key, keys), False, key) for key in keys)


def _shorten_key(key: str, keys: Sequence[str]) -> str:
    """Return the last parts of a key, as few as distinguish it from the other keys."""
    parts = key.split(".")
    endings = (".".join(parts[at:]) for at in range(len(parts) - 1, 0, -1))
    return next((end for end in endings if sum(f".{k}".endswith(f".{end}") for k in keys) == 1), key)


def _setting_row(setting: Setting, keys: Sequence[str]) -> tuple[Cell, ...]:
    values = [format_value(setting.differing.get(key)) for key in keys]
    figures = [
        _figure_cell(name, setting.mean.get(name), setting.spread.get(name) if setting.seeds > 1 else None)
        for name in _FIGURES
    ]
    drops = list(dict.fromkeys(filter(None, (_drop_rungs(run.summary) for run in setting.runs))))
    figures[list(_FIGURES).index("largest_drop")] = _figure_cell(
        "largest_drop",
        setting.mean.get("largest_drop"),
        setting.spread.get("largest_drop") if setting.seeds > 1 else None,
        drops[0] if len(drops) == 1 else "rungs differ by seed" * bool(drops),
    )
    return (
        Cell(setting.label, setting.label),
        Cell(str(setting.seeds), str(setting.seeds)),
        *(Cell(value, "" if value == "-" else value) for value in values),
        *figures,
        *_run_columns(setting.runs),
    )


def _run_row(run: Run, setting: Setting) -> tuple[Cell, ...]:
    figures = run.summary.figures()
    seed = _text(run.seed)
    return (
        Cell(run.name, run.name),
        Cell(setting.label, setting.label),
        Cell(seed or "-", seed),
        *(
            _figure_cell(
                name, figures.get(name), None, _drop_rungs(run.summary) if name == "largest_drop" else ""
            )
            for name in _FIGURES
        ),
        *_run_columns([run]),
    )


def _figure_cell(name: str, value: float | None, spread: float | None, under: str = "") -> Cell:
    _, factor, digits = _FIGURES[name]
    if value is None:
        return Cell("-")
    text = f"{factor * value:.{digits}f}" + ("x" if name == "saving" else "")
    plus_minus = f" ± {factor * spread:.{digits}f}" if spread is not None and name != "saving" else ""
    return Cell(text + plus_minus, repr(factor * value), under)


def _drop_rungs(summary: CurveSummary) -> str:
    drop = summary.largest_drop
    return f"{drop.deeper} → {drop.shallower}" if drop else ""


def _run_columns(runs: Sequence[Run]) -> tuple[Cell, Cell, Cell]:
    """Return steps, seconds (means over runs) and commits."""
    steps = [max(last) + 1 for run in runs if (last := [s.steps[-1] for s in run.log.values() if s.steps])]
    seconds = [float(s) for run in runs if isinstance(s := run.result.get("seconds"), int | float)]
    commits = dict.fromkeys(filter(None, (_short_commit(run) for run in runs)))
    text = ", ".join(commits)
    return _mean_cell(steps), _mean_cell(seconds), Cell(text or "-", text)


def _mean_cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("-")
    mean = sum(values) / len(values)
    return Cell(f"{mean:.0f}", repr(float(mean)))


def _short_commit(run: Run) -> str:
    git = _as_mapping(run.provenance.get("git"))
    commit = _text(git.get("commit"))[:9]
    return commit + ("+" if commit and git.get("changed") else "")


def _as_mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return "" if value is None else str(value)
