"""The comparison page shows the runs' figures, and nothing in a run's files becomes HTML or script."""

import base64
import hashlib
import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from page_samples import (
    one_comparison,
    sample_compatibility,
    sample_curve,
    sample_gallery,
    sample_log,
    sample_run,
    sample_setting,
)
from PIL import Image
from run_files import ladder, write_run

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.report import cli
from anydepth.report.claims.questions import Finding, Verdict
from anydepth.report.comparison import Comparison, Report, compare
from anydepth.report.logs import Series
from anydepth.report.page.curves import curves
from anydepth.report.page.depths import budget_hint, budget_table, class_table
from anydepth.report.page.page import BACKGROUNDS, PALETTES, VERDICT_MARKS, render_page, safe_json
from anydepth.report.page.pictures import MAX_SIDE, Pictures, detections
from anydepth.report.page.tables import MAX_KEY_COLUMNS, config_table, provenance, runs_table, settings_table
from anydepth.report.page.training import (
    MAX_POINTS,
    downsample,
    gradient_metrics,
    gradients,
    training,
    training_metrics,
)
from anydepth.report.runs import Run, find_runs

EVIL = "</script><img src=x onerror=alert(1)>&'\""


def _comparison(report: Report) -> Comparison:
    return report.comparisons[0]


@pytest.fixture
def two_seeds(tmp_path: Path) -> Comparison:
    """One setting of two seeds (AP at full depth 30 and 40), and one of a single seed (20)."""
    pair = [sample_run(tmp_path / f"s{seed}", best, seed) for seed, best in enumerate((0.3, 0.4))]
    alone = sample_run(tmp_path / "alone", 0.2, 0, curve=sample_curve(0.2, latency=False))
    settings = [sample_setting("pair", pair, {"a.b": 1}), sample_setting("alone", [alone], {"a.b": None})]
    return _comparison(one_comparison(settings))


# -- depth curves ----------------------------------------------------------------------------------------


def test_points_are_means_over_seeds_with_their_range_in_percent(two_seeds: Comparison):
    full = curves(two_seeds)["settings"][0]["points"][0]
    # By hand: (0.3 + 0.4) / 2; AP50 is 1.5 x AP in the sample.
    assert full["AP"] == [35.0, 30.0, 40.0]
    assert full["AP50"] == [52.5, 45.0, 60.0]
    assert (full["depth"], full["gflops"], full["latency"], full["rung"]) == ("full", 2.4, 12.0, True)


def test_the_front_is_pareto_optimal_over_all_settings(two_seeds: Comparison):
    data = curves(two_seeds)
    # "pair" is above "alone" at every cost, so the front is its ladder, cheapest first.
    assert data["fronts"]["AP"]["gflops"] == [[0, at] for at in (5, 4, 3, 2, 1, 0)]


def test_latency_that_one_setting_lacks_is_a_gap(two_seeds: Comparison):
    pair, alone = curves(two_seeds)["settings"]
    assert [point["latency"] is None for point in pair["points"]] == [False] * 6
    assert [point["latency"] is None for point in alone["points"]] == [True] * 6


def test_without_latency_there_is_no_chart_of_it(tmp_path: Path):
    run = sample_run(tmp_path / "r", 0.3, 0, curve=sample_curve(0.3, latency=False))
    data = curves(_comparison(one_comparison([sample_setting("a", [run], {})])))
    assert data["fronts"]["AP"]["latency"] is None


def test_metrics_of_images_without_such_objects_are_missing_not_minus_one(tmp_path: Path):
    curve = sample_curve(0.3)
    text = curve.to_json().replace(f'"AP75": {0.3 * 0.9}', f'"AP75": {NO_GROUND_TRUTH}')
    run = sample_run(tmp_path / "r", 0.3, 0, curve=DepthCurve.from_json(text))
    points = curves(_comparison(one_comparison([sample_setting("a", [run], {})])))["settings"][0]["points"]
    assert points[0]["AP75"] is None
    assert points[1]["AP75"] is not None


# -- tables ----------------------------------------------------------------------------------------------


def test_settings_are_means_with_half_the_range(two_seeds: Comparison):
    table = settings_table(two_seeds)
    titles = [column.title for column in table.columns]
    pair, alone = (dict(zip(titles, row, strict=True)) for row in table.rows)
    assert (pair["AP full"].text, pair["AP full"].key) == ("35.0 ± 5.0", repr(35.0))
    assert alone["AP full"].text == "20.0"
    # 6 rungs of 2.4 to 1.4 GFLOPs.
    assert pair["saving"].text == "1.71x"
    assert pair["seconds"].key == repr(100.5)
    assert pair["commit"].text == "012345678, 012345678+"
    assert (pair["b"].text, alone["b"].text, alone["b"].key) == ("1", "-", "")


def test_every_run_has_a_row(two_seeds: Comparison):
    assert [row[0].text for row in runs_table(two_seeds).rows] == ["s0", "s1", "alone"]


def test_all_differing_keys_are_listed_and_the_first_are_columns(tmp_path: Path):
    keys = {f"group.key{number}": number for number in range(MAX_KEY_COLUMNS + 2)}
    comparison = _comparison(
        one_comparison([sample_setting("a", [sample_run(tmp_path / "r", 0.3, 0)], keys)])
    )
    table = config_table(comparison)
    assert table is not None
    assert [row[0].text for row in table.rows] == list(keys)
    assert (
        sum(column.title.startswith("key") for column in settings_table(comparison).columns)
        == MAX_KEY_COLUMNS
    )


def test_keys_with_the_same_ending_are_distinguished(tmp_path: Path):
    keys = {"detector.name": "a", "optim.name": "b"}
    comparison = _comparison(
        one_comparison([sample_setting("a", [sample_run(tmp_path / "r", 0.3, 0)], keys)])
    )
    titles = [column.title for column in settings_table(comparison).columns]
    assert {"detector.name", "optim.name"} <= set(titles)


@pytest.mark.parametrize(
    "broken", [{}, {"git": "x", "versions": 3, "command": "a b"}], ids=["nothing", "odd"]
)
def test_a_run_with_incomplete_provenance_is_shown(tmp_path: Path, broken: dict[str, object]):
    run = sample_run(tmp_path / "r", 0.3, 0, provenance=broken, result={})
    assert dict(provenance(run))["folder"] == str(tmp_path / "r")
    assert "r" in render_page(one_comparison([sample_setting("a", [run], {})]))


def test_the_command_is_shown_as_it_was_recorded(tmp_path: Path):
    command = "anydepth-train 'depths=[full, minimal]'"
    run = sample_run(tmp_path / "r", 0.3, 0, provenance={"command": command})
    assert dict(provenance(run))["command"] == command


# -- training --------------------------------------------------------------------------------------------


def test_long_series_become_means_of_neighbours():
    series = Series(tuple(range(1000)), tuple(float(step // 10) for step in range(1000)), tuple(range(1000)))
    short = downsample(series)
    assert len(short.values) <= MAX_POINTS
    # Groups of ceil(1000 / 160) = 7: the mean of 0..6 is 3, at step 6; the last group is 994..999.
    assert (short.steps[0], short.values[0], short.steps[-1], short.values[-1]) == (6, 3.0, 999, 996.5)


def test_columns_of_a_log_become_named_metrics():
    columns = ["train/full/loss", "train/minimal/loss", "train/minimal/kd_class", "val/3/4/AP", "val/full/AP"]
    metrics = training_metrics([*columns, "train/gradient_norm", "lr/head"])
    assert [(metric.group, metric.label, list(metric.columns.values())) for metric in metrics] == [
        ("Validation", "AP per depth", ["3/4", "full"]),
        ("Loss", "total loss per pass", ["full", "minimal"]),
        ("Distillation", "kd_class", ["minimal"]),
        ("Optimization", "gradient norm", ["gradient norm"]),
        ("Optimization", "learning rates", ["head"]),
    ]
    assert gradient_metrics(columns) == []


def test_cosines_of_gradients_have_a_line_for_each_pass():
    cosines = [
        f"gradients/cosine/{pass_name}/{part}" for pass_name in ("minimal", "1/2") for part in ("all", "neck")
    ]
    metrics = gradient_metrics([*cosines, "gradients/norm/full"])
    assert [
        (metric.group, metric.label.rpartition("another")[2], dict(metric.columns)) for metric in metrics
    ] == [
        (
            "Cosine",
            ", all shared parameters",
            {"gradients/cosine/minimal/all": "minimal", "gradients/cosine/1/2/all": "1/2"},
        ),
        (
            "Cosine of a module",
            ": neck",
            {"gradients/cosine/minimal/neck": "minimal", "gradients/cosine/1/2/neck": "1/2"},
        ),
        ("Norm", "gradient norm of each pass", {"gradients/norm/full": "full"}),
    ]
    (alone,) = gradient_metrics(["gradients/cosine/random1/all"])
    assert alone.label == "cosine between the gradients of the first pass and random1, all shared parameters"


def test_validation_on_images_without_objects_is_missing_not_minus_100(tmp_path: Path):
    log = {
        "val/full/AP": Series((9, 19), (0.0, 1.0), (-1.0, 0.25)),
        "val/minimal/AP": Series((9,), (0.0,), (-1.0,)),
        "gradients/cosine/minimal/all": Series((9,), (0.0,), (-1.0,)),
    }
    comparison = _comparison(
        one_comparison([sample_setting("a", [sample_run(tmp_path / "r", 0.3, 0, log=log)], {})])
    )
    shown = training(comparison)
    assert shown is not None
    assert {name: line["values"] for name, line in shown["runs"][0]["series"].items()} == {
        "val/full/AP": [25.0]
    }
    agreement = gradients(comparison)
    assert agreement is not None
    assert agreement["runs"][0]["series"]["gradients/cosine/minimal/all"]["values"] == [-1.0]


def test_validation_is_in_percent_and_losses_are_as_logged(tmp_path: Path):
    log = {"val/full/AP": Series((9,), (0.0,), (0.25,)), "train/full/loss": Series((9,), (0.0,), (1.5,))}
    data = training(
        _comparison(one_comparison([sample_setting("a", [sample_run(tmp_path / "r", 0.3, 0, log=log)], {})]))
    )
    assert data is not None
    series = data["runs"][0]["series"]
    assert (series["val/full/AP"]["values"], series["train/full/loss"]["values"]) == ([25.0], [1.5])


# -- detections ------------------------------------------------------------------------------------------


def test_one_picture_of_many_runs_is_stored_once_and_boxes_follow_its_size(tmp_path: Path):
    galleries = [
        sample_gallery(tmp_path / name, 0.3, 0, classes=("tree", "lake"), images=2) for name in ("one", "two")
    ]
    settings = [
        sample_setting(str(n), [sample_run(tmp_path / str(n), 0.3, 0, gallery=gallery)], {})
        for n, gallery in enumerate(galleries)
    ]
    pictures = Pictures()
    data = detections(_comparison(one_comparison(settings)), pictures)
    assert data is not None
    assert len(pictures.images) == 2
    first, second = (setting["pictures"][0]["image"] for setting in data["settings"])
    assert first == second
    embedded = pictures.images[first]
    with Image.open(BytesIO(base64.b64decode(embedded["uri"].partition(",")[2]))) as image:
        # 800 x 480 pixels fit into 640.
        assert image.size == (embedded["width"], embedded["height"]) == (MAX_SIDE, 384)
    truth = galleries[0].images[0].truth.boxes_xyxy[0] * 640 / 800
    assert data["settings"][0]["pictures"][0]["truth"][0][:4] == pytest.approx(truth.tolist(), abs=0.06)
    assert [depth["depth"] for depth in data["settings"][0]["depths"]][::5] == ["full", "minimal"]


def test_a_damaged_picture_is_left_out_and_the_page_says_so(tmp_path: Path):
    gallery = sample_gallery(tmp_path, 0.3, 0, classes=("tree",), images=2)
    gallery.images[0].path.write_bytes(b"no picture")
    page = render_page(
        one_comparison([sample_setting("a", [sample_run(tmp_path / "r", 0.3, 0, gallery=gallery)], {})])
    )
    assert "not a readable picture" in page
    assert page.count('"uri":') == 1


def test_values_that_are_not_finite_are_left_out(tmp_path: Path):
    gallery = sample_gallery(tmp_path, 0.3, 0, classes=("tree",), images=1)
    gallery.images[0].truth.boxes_xyxy[0, 0] = math.nan
    table = sample_compatibility(0.3)
    values = {**table.rows[0].values, "pooled_cka": math.nan}
    table = replace(table, rows=(replace(table.rows[0], values=values), *table.rows[1:]))
    run = sample_run(tmp_path / "r", 0.3, 0, gallery=gallery, compatibility=table)
    data = json.loads(_parsed(render_page(one_comparison([sample_setting("a", [run], {})]))).scripts[0])
    comparison = data["comparisons"][0]
    assert comparison["compatibility"]["maps"][0]["values"][0][0][:2] == [None, 0.986]
    assert len(comparison["gallery"]["settings"][0]["pictures"][0]["truth"]) == 4


# -- the page --------------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    """All elements, the text of the data, and the scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.tags.append(("/script", {}))


def _parsed(page: str) -> _Elements:
    parser = _Elements()
    parser.feed(page)
    return parser


def test_untrusted_names_stay_text(tmp_path: Path):
    run = sample_run(
        tmp_path / "r",
        0.3,
        0,
        name=EVIL,
        provenance={"command": EVIL, "git": {"commit": EVIL}, "versions": {EVIL: EVIL}},
        notes=(EVIL,),
        log={f"train/full/{EVIL}": Series((1,), (0.0,), (1.0,))},
        gallery=sample_gallery(tmp_path, 0.3, 0, classes=(EVIL,), images=1),
    )
    report = one_comparison(
        [sample_setting(EVIL, [run], {EVIL: EVIL})],
        title=EVIL,
        warnings=(EVIL,),
        findings=(Finding("1", EVIL, EVIL, "undecided", {EVIL: 1.0}),),
    )
    page = _parsed(render_page(report))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    data = json.loads(page.scripts[0])
    assert data["comparisons"][0]["settings"][0]["label"] == EVIL
    assert data["comparisons"][0]["gallery"]["classes"] == [EVIL]


def test_the_page_allows_its_own_scripts_and_no_others(two_seeds: Comparison):
    page = _parsed(render_page(Report((two_seeds,), (), ())))
    policy = next(
        attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert re.findall("'sha256-([^']+)'", policy) == hashes
    assert policy.startswith("default-src 'none';")
    assert not [attrs for tag, attrs in page.tags if tag == "script" and "src" in attrs]


def test_sections_without_content_are_absent(two_seeds: Comparison, tmp_path: Path):
    bare = render_page(Report((two_seeds,), (), ()))
    rich_run = sample_run(
        tmp_path / "rich", 0.3, 0, log=sample_log(0.3, 0), compatibility=sample_compatibility(0.3)
    )
    rich = render_page(one_comparison([sample_setting("a", [rich_run], {})]))
    for part in ("training", "gradients", "compatibility"):
        assert f'id="c0-{part}"' not in bare
        assert f'id="c0-{part}"' in rich
    assert 'id="unusable"' not in bare
    assert 'id="unusable"' in rich


def _order(page: str) -> list[str]:
    return re.findall(r'<section class="panel" id="c0-(\w+)"', page)


def test_a_single_run_begins_with_what_was_measured_and_ends_with_its_claims(tmp_path: Path):
    """A claim that the runs decide comes first."""
    classes = ("tree", "lake")
    run = sample_run(tmp_path / "run", 0.3, 0, gallery=sample_gallery(tmp_path, 0.3, 0, classes=classes))
    undecided = Finding("1", "Full depth holds", "Some text.", "undecided", {})
    first = ["curves", "detections", "budget", "table", "config"]
    page = render_page(one_comparison([sample_setting("a", [run], {})], findings=[undecided]))
    assert _order(page) == [*first, "claims", "runs"]
    assert re.findall(r'href="#c0-(\w+)"', page) == _order(page), "the bar on top has the same order"
    assert "<h1>AnyDepth: a run</h1>" in page
    decided = replace(undecided, verdict="supported")
    page = render_page(one_comparison([sample_setting("a", [run], {})], findings=[undecided, decided]))
    assert _order(page) == ["claims", "curves", "budget", "table", "config", "detections", "runs"]
    assert re.findall(r'href="#c0-(\w+)"', page) == _order(page)


def test_the_depth_that_fits_a_budget_is_named(tmp_path: Path):
    """Rungs from 2.4 to 1.4 GFLOPs by 0.2; those at 2.0 and 1.8 are worse than the one at 1.6."""
    curve = sample_curve(0.3)
    aps = dict(zip([row.depth for row in curve.rows], (0.30, 0.295, 0.20, 0.21, 0.25, 0.1), strict=True))
    rows = tuple(replace(row, figures={**row.figures, "AP": aps[row.depth]}) for row in curve.rows)
    run = sample_run(tmp_path / "run", 0.3, 0, curve=replace(curve, rows=rows))
    comparison = _comparison(one_comparison([sample_setting("a", [run], {})]))
    depths = [row.depth for row in curve.rows]
    table = budget_table(comparison)
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [
        [depths[5], "1.40", "58 %", "7.00", "10.0", "20.0"],
        [depths[4], "1.60", "67 %", "8.00", "25.0", "5.0"],
        [depths[1], "2.20", "92 %", "11.00", "29.5", "0.5"],
        ["full", "2.40", "100 %", "12.00", "30.0", "0.0"],
    ]
    assert f"the best (full) is {depths[1]}, with 8 % fewer GFLOPs" in budget_hint(comparison)
    assert budget_table(_comparison(one_comparison([*comparison.settings] * 2))) is None


def test_ap_of_classes_is_the_mean_over_seeds_at_both_ends(tmp_path: Path):
    """A class without objects in one run has no mean."""

    def run(seed: int, full: dict[str, float], minimal: dict[str, float]) -> Run:
        curve = sample_curve(0.3)
        ends = {"full": full, "minimal": minimal}
        rows = tuple(replace(row, per_class=ends.get(row.depth, full)) for row in curve.rows)
        return sample_run(tmp_path / f"s{seed}", 0.3, seed, curve=replace(curve, rows=rows))

    runs = [
        run(0, {"tree": 0.5, "lake": 0.25, "sea": -1.0}, {"tree": 0.25, "lake": 0.25, "sea": 0.1}),
        run(1, {"tree": 0.25, "lake": 0.25, "sea": 0.1}, {"tree": 0.25, "lake": 0.75, "sea": 0.1}),
    ]
    table = class_table(_comparison(one_comparison([sample_setting("a", runs, {})])))
    assert table is not None
    assert [column.title for column in table.columns] == ["class", "full", "minimal", "change"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["tree", "37.5", "25.0", "-12.5"],
        ["lake", "25.0", "50.0", "+25.0"],
        ["sea", "-", "10.0", "-"],
    ]
    report = one_comparison([sample_setting("a", runs, {})])
    assert '<th scope="row" data-sort="lake">lake</th>' in render_page(report)


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_a_verdict_has_a_word_and_a_mark_not_colour_alone(two_seeds: Comparison, verdict: Verdict):
    finding = Finding("1", "Full depth holds", "Some text.", verdict, {"loss": 0.5})
    page = render_page(Report((replace(two_seeds, findings=(finding,)),), (), ()))
    assert f'<span aria-hidden="true">{VERDICT_MARKS[verdict]}</span> {verdict}</span>' in page
    assert "Claim 1: Full depth holds" in page
    assert len(set(VERDICT_MARKS.values())) == len(get_args(Verdict))


def test_comparisons_of_different_data_are_separate_below_the_note(two_seeds: Comparison):
    page = render_page(Report((two_seeds, two_seeds), (), ("shown separately, as their data differ",)))
    assert (
        page.index("shown separately, as their data differ") < page.index('id="c0"') < page.index('id="c1"')
    )


def test_json_in_the_page_reads_back():
    text = safe_json({"a": EVIL + "\u2028<!--"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": EVIL + "\u2028<!--"}


# -- colours ---------------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes 2009, severity 1.0: what protanopes and deuteranopes see, in linear RGB.
VISION = {
    "full": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
# Ottosson 2020: linear RGB to OKLab, whose distances are about how different colours look.
TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _linear(colour: str) -> NDArray[np.float64]:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("vision", sorted(VISION))
@pytest.mark.parametrize("theme", sorted(PALETTES))
def test_colours_of_settings_are_distinguishable_for_colour_blind_readers(theme: str, vision: str):
    seen = [np.clip(VISION[vision] @ _linear(colour), 0, 1) for colour in PALETTES[theme]]
    labs = [TO_LAB @ np.cbrt(TO_LMS @ colour) for colour in seen]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(labs, 2)) > 0.1


@pytest.mark.parametrize("theme", sorted(PALETTES))
def test_lines_stand_out_from_their_background(theme: str):
    # WCAG 2.2, 1.4.11: graphics need a contrast of 3.
    def luminance(colour: str) -> float:
        return float(_linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05

    back = luminance(BACKGROUNDS[theme])
    assert len(PALETTES[theme]) >= 8
    for colour in PALETTES[theme]:
        line = luminance(colour)
        assert max(line, back) / min(line, back) > 3, colour


# -- the command -----------------------------------------------------------------------------------------


def test_files_among_the_folders_are_skipped_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """STUDY/* also matches the study's own page and multirun.yaml."""
    run = write_run(tmp_path / "run", {"full": 0.3, "minimal": 0.2})
    files = [tmp_path / "multirun.yaml", tmp_path / "old.html"]
    for file in files:
        file.touch()
    page = tmp_path / "report.html"
    assert cli.main([str(files[0]), str(run), str(files[1]), "--output", str(page)]) == 0
    assert page.is_file()
    skipped = f"anydepth-report: skipped files, expected folders: {files[0]}, {files[1]}\n"
    assert capsys.readouterr().err == skipped
    assert cli.main([str(files[0]), "--output", str(page)]) == 1
    assert "is a file; give a run folder" in capsys.readouterr().err


def test_curves_of_unequal_depths_make_a_page(tmp_path: Path):
    """Seeds of one setting that were evaluated at other depths, and on images without objects."""
    whole = {"full": 0.3, "neck@3": 0.29, "none@3": 0.28, "minimal": 0.27}
    inner = {"neck@3": 0.29, "none@3": 0.2}
    for seed, aps in enumerate((whole, {"full": 0.3, **inner}, {**whole, "minimal": -1.0}, inner)):
        write_run(tmp_path / str(seed), aps, seed=seed)
    assert cli.main([str(tmp_path), "--output", str(tmp_path / "report.html")]) == 0
    (comparison,) = compare(*find_runs([tmp_path])).comparisons
    tables = (runs_table(comparison), settings_table(comparison))
    shown = [cell.text for table in tables for row in table.rows for cell in row]
    assert "30.0" in shown
    assert not [text for text in shown if text.startswith("-1")]


def test_the_command_compares_the_folders_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep, output = tmp_path / "sweep", tmp_path / "new" / "page.html"
    write_run(sweep / "0", ladder(30, 28, 26, 24))
    write_run(sweep / "1", ladder(20, 18, 16, 14), seed=1)
    write_run(sweep / "2", ladder(20, 18, 16, 14), data={"fingerprint": "f2"})
    write_run(sweep / "3", None, finished=False)
    assert cli.main([str(sweep), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    page = output.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    data = json.loads(_parsed(page).scripts[0])
    # Runs 0 and 1 are one setting of two seeds: (30 + 20) / 2 at full depth.
    first, second = data["comparisons"]
    assert [(s["seeds"], s["points"][0]["AP"]) for s in first["settings"]] == [(2, [25.0, 20.0, 30.0])]
    assert len(second["settings"]) == 1
    assert "shown separately" in re.sub(r"\s+", " ", page)
    assert "shown separately" in printed
    assert f"left out: {sweep / '3'}" in printed
    assert str(output) in printed.splitlines()[-1]
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


def test_a_missing_folder_is_one_line_and_leaves_the_older_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "page.html"
    output.write_text("older")
    assert cli.main([str(tmp_path / "nowhere"), "--output", str(output)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "nowhere" in captured.err
    assert output.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main([str(tmp_path), "--output", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_an_error_while_the_page_is_made_leaves_the_older_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_run(tmp_path / "run", ladder(30, 28, 26, 24))
    output = tmp_path / "page.html"
    output.write_text("older")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    assert cli.main([str(tmp_path / "run"), "--output", str(output)]) == 1
    assert output.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]
