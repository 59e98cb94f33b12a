"""Depth curves as files and tables: written completely or not at all, readable at every width."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from rich.console import Console

from anydepth.depth import DepthSpace
from anydepth.evaluation.coco_eval import FIGURES
from anydepth.evaluation.cost import Latency, LatencyProtocol
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.results.charts import METRICS, save_depth_chart
from anydepth.results.depth_curve import print_depth_curve, write_depth_curve
from anydepth.utils.files import atomic_path

SPACE = DepthSpace(
    stages=("stage1", "stage2", "stage3", "stage4", "neck"), decoder_layers=6, minimal_decoder_layers=4
)


def _curve(depths: str | list[str], *, latency: bool = True) -> DepthCurve:
    rows = []
    for config in SPACE.parse_list(depths):
        gflops = 20.0 + 10 * sum(config.refine) + 2 * (config.decoder_layers or 0)
        figures = dict.fromkeys(FIGURES, gflops / 200) | {"APs": -1.0, "AP50": gflops / 150}
        rows.append(
            DepthRow(
                depth=str(config),
                refine=dict(zip(SPACE.stages, config.refine, strict=True)),
                decoder_layers=config.decoder_layers,
                parameters_run=int(gflops * 1e6),
                gflops=gflops,
                latency=Latency(gflops / 3, gflops / 2, None) if latency else None,
                figures=figures,
                per_class={},
            )
        )
    protocol = LatencyProtocol("cpu, 2 threads", "fp32", 1, (64, 96), 3, 20) if latency else None
    return DepthCurve("detr", 10**8, (64, 96), "fp32", 50, protocol, tuple(rows))


def _printed(curve: DepthCurve, width: int) -> str:
    file = io.StringIO()
    print_depth_curve(curve, Console(width=width, file=file))
    return file.getvalue()


def test_a_wide_table_shows_every_measured_column() -> None:
    text = _printed(_curve(["full", "minimal"]), 200)
    assert "detr: 50 images, 64x96 pixels, fp32, boxes clipped (not recorded, by an earlier version)" in text
    scored = replace(_curve(["full"]), boxes_clipped=False)
    assert "fp32, boxes not clipped" in _printed(scored, 200)
    assert "cpu, 2 threads, fp32, batch 1" in text
    # Full: 20 + 5 * 10 + 6 * 2 = 82 GFLOPs, latency 82 / 3 and 82 / 2, AP 82 / 200, AP50 82 / 150, no APs.
    assert "full xxxxx 6 82.00 M 82.00 27.3 41.0 41.0 54.7 41.0 - 41.0 41.0 41.0" in " ".join(text.split())
    assert "minimal ..... 4 28.00 M 28.00" in " ".join(text.split())
    assert "MiB" not in text, "memory was not measured"
    assert " ms" not in _printed(_curve(["full"], latency=False), 200)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_table_keeps_the_important_columns(width: int) -> None:
    curve = _curve("ladder")
    text = _printed(curve, width)
    lines = [line for line in text.splitlines() if line.strip()]
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "…" not in text
    # Every column of the wide table is shown or named below it.
    titles = ["depth", "refines", "decoder", "params run", "GFLOPs", "ms", "p90"]
    titles += ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]
    heading = re.split(r"\s{2,}", next(line for line in lines if line.startswith(" depth")).strip())
    left_out = " ".join(text.split()).partition("without room here, but in the csv file: ")[2].split(", ")
    assert sorted([*heading, *filter(None, left_out)]) == sorted(titles)
    assert "refines" in left_out
    for row in curve.rows:
        line = next(line for line in lines if line.startswith(f" {row.depth} "))
        for value in (
            f"{row.gflops:.2f}",
            f"{100 * row.figures['AP']:.1f}",
            f"{100 * row.figures['AP50']:.1f}",
        ):
            assert value in line


def _with_classes(aps: list[dict[str, float]]) -> DepthCurve:
    curve = _curve(["full", "none@6", "minimal"])
    rows = [replace(row, per_class=one) for row, one in zip(curve.rows, aps, strict=True)]
    return replace(curve, rows=tuple(rows))


def test_classes_are_listed_at_both_ends_with_their_change() -> None:
    curve = _with_classes(
        [
            {"[red] car": 0.5, "dog": 0.25, "cow": -1.0},
            {"[red] car": 0.1, "dog": 0.1, "cow": -1.0},
            {"[red] car": 0.375, "dog": 0.3, "cow": -1.0},
        ]
    )
    for width in (60, 80):
        lines = [" ".join(line.split()) for line in _printed(curve, width).splitlines()]
        assert lines[lines.index("class AP full AP minimal change") + 2 :][:3] == [
            "[red] car 50.0 37.5 -12.5",
            "dog 25.0 30.0 +5.0",
            "cow - - -",
        ]
    assert "class" not in _printed(_with_classes([{"dog": 0.1}] * 3), 80), "AP of one class is AP"


def test_of_many_classes_those_that_lose_the_most_are_listed() -> None:
    deep = {f"class{number}": 0.9 for number in range(80)}
    shallow = {name: 0.9 - 0.01 * number for number, name in enumerate(deep)}
    lines = _printed(_with_classes([deep, deep, shallow | {"class79": -1.0}]), 80).splitlines()
    listed = [line.split()[0] for line in lines if line.strip().startswith("class") and "AP" not in line]
    assert listed == [f"class{number}" for number in range(78, 58, -1)]
    assert "20 of 80 classes that lose the most; all are in the csv file" in " ".join(" ".join(lines).split())


def _lines_of_chart(curve: DepthCurve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[float]]:
    """The x positions of the lines of the first panel that are not markers of the legend."""
    found: list[list[float]] = []
    plot = Axes.plot

    def record(axes: Axes, x: list[float], *rest: object, **options: object) -> object:
        found.append(list(x))
        return plot(axes, x, *rest, **options)

    monkeypatch.setattr(Axes, "plot", record)
    save_depth_chart(curve, tmp_path / "chart.png")
    return found


def test_the_ladder_is_joined_also_where_a_depth_is_not_optimal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    curve = _curve("all", latency=False)
    ladder = sorted(row.gflops for row in _curve("ladder").rows)
    worst = replace(curve.row("full"), figures=dict.fromkeys(FIGURES, 0.01))
    rows = tuple(worst if row.depth == "full" else row for row in curve.rows)
    joined, front, *_ = _lines_of_chart(replace(curve, rows=rows), monkeypatch, tmp_path)
    assert joined == ladder
    assert max(front) < max(ladder), "full is the most expensive and the least accurate depth"


def test_a_curve_is_written_as_three_files_and_nothing_else(tmp_path: Path) -> None:
    curve = _curve(["full", "none@6", "minimal"])
    paths = write_depth_curve(curve, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "depth_curve.csv",
        "depth_curve.json",
        "depth_curve.png",
    ]
    assert DepthCurve.from_json(paths["json"].read_text()) == curve
    assert paths["csv"].read_text() == curve.to_csv()


@pytest.mark.parametrize(
    ("depths", "latency"), [(["full", "minimal"], True), ("ladder", False), ("all", True)]
)
def test_the_chart_shows_both_metrics(tmp_path: Path, depths: str | list[str], latency: bool) -> None:
    save_depth_chart(_curve(depths, latency=latency), tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert METRICS.keys() == {"AP50", "AP"}
    for colour in METRICS.values():
        wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) <= 2).sum() > 100


def test_latency_has_a_panel_of_its_own(tmp_path: Path) -> None:
    sizes = []
    for latency in (True, False):
        save_depth_chart(_curve(["full", "minimal"], latency=latency), tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] > 1.8 * sizes[1][0]
    assert sizes[0][1] == sizes[1][1]


def test_a_chart_without_any_ground_truth_is_drawn_empty(tmp_path: Path) -> None:
    curve = _curve(["full"])
    row = replace(curve.rows[0], figures=dict.fromkeys(FIGURES, -1.0))
    save_depth_chart(replace(curve, rows=(row,)), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0


def test_a_failed_write_leaves_the_previous_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "curve.json"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.json"]
