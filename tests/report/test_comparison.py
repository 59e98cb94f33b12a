"""Runs of different data are compared separately, and limitations are stated."""

import json
from pathlib import Path
from random import Random

import pytest
from run_files import ladder, write_run

from anydepth.report.comparison import Report, compare
from anydepth.report.runs import ReportError, UnusableRun, find_runs

APS = ladder(30, 28, 27, 26)


def _report(folder: Path) -> Report:
    return compare(*find_runs([folder]))


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_runs_of_the_same_data_are_one_comparison_with_a_title(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), APS, seed=seed)
    report = _report(tmp_path)
    (comparison,) = report.comparisons
    assert comparison.title == "detr_tiny on embedded sample: 19 validation images, 1 class (crown)"
    assert [setting.label for setting in comparison.settings] == ["defaults"]
    assert comparison.findings
    assert report.notes == ()


def test_fixed_depth_networks_without_a_counterpart_are_named(tmp_path: Path):
    write_run(tmp_path / "0", APS)
    write_run(tmp_path / "1", {"full": 0.3}, ["detector=yolov12_m", "depth_schedule=full_only"])
    write_run(tmp_path / "2", {"full": 0.3}, ["detector=rtdetr_r18", "depth_schedule=full_only"])
    (comparison,) = _report(tmp_path).comparisons
    (warning,) = [text for text in comparison.warnings if "not part of any claim" in text]
    assert "yolov12_m" in warning
    assert "rtdetr_r18" not in warning


def test_the_title_names_the_data_set_by_its_folder(tmp_path: Path):
    write_run(tmp_path / "1", APS, ["data=custom", "data.root=/somewhere/cells"])
    write_run(tmp_path / "2", APS, ["data=bccd"], data={"fingerprint": "f2"})
    titles = {comparison.title.partition(":")[0] for comparison in _report(tmp_path).comparisons}
    assert titles == {"detr_tiny on cells", "detr_tiny on bccd"}


def test_runs_of_different_data_are_separate_with_a_note(tmp_path: Path):
    write_run(tmp_path / "0", APS, data={"fingerprint": "other"})
    for seed in (0, 1):
        write_run(tmp_path / f"more{seed}", APS, seed=seed)
    report = _report(tmp_path)
    assert [len(found.settings[0].runs) for found in report.comparisons] == [2, 1]
    assert len(report.notes) == 1
    assert "have different data," in report.notes[0]
    assert "shown separately, in 2 comparisons" in report.notes[0]


def test_runs_of_different_class_lists_are_separate_with_a_note(tmp_path: Path):
    write_run(tmp_path / "0", APS)
    write_run(tmp_path / "1", APS, data={"class_names": ["tree"]})
    report = _report(tmp_path)
    assert len(report.comparisons) == 2
    assert "have different class lists," in report.notes[0]


def test_runs_without_a_fingerprint_are_compared_by_place_and_classes(tmp_path: Path):
    older = {"fingerprint": None, "class_names": None}
    for seed in (0, 1):
        write_run(tmp_path / str(seed), APS, seed=seed, data=older)
    (comparison,) = _report(tmp_path).comparisons
    assert comparison.warnings[0].startswith("these runs recorded no fingerprint")
    write_run(tmp_path / "classes", APS, data=older, curve={"class_names": ("a", "b")})
    write_run(tmp_path / "place", APS, ["data.root=/elsewhere"], data=older)
    write_run(tmp_path / "newer", APS)
    report = _report(tmp_path)
    assert sorted(len(found.settings[0].runs) for found in report.comparisons) == [1, 1, 1, 2]
    assert "earlier versions" in report.notes[1]


def test_damaged_provenance_is_that_of_an_older_run(tmp_path: Path):
    folder = write_run(tmp_path / "0", APS)
    _edit(folder, data=["no", "mapping"], git="none", versions=3, command="text", overrides=None)
    (comparison,) = _report(tmp_path).comparisons
    assert comparison.settings[0].label == "defaults"


def test_unusable_runs_are_named(tmp_path: Path):
    write_run(tmp_path / "good", APS)
    write_run(tmp_path / "bad", None, finished=False)
    report = _report(tmp_path)
    assert [run.folder.name for run in report.unusable] == ["bad"]


def test_nothing_but_unusable_runs_is_an_error_with_their_reasons(tmp_path: Path):
    with pytest.raises(ReportError, match="got no run with a depth curve: a: failed"):
        compare([], [UnusableRun(Path("a"), "failed")])


def test_different_conditions_are_reported(tmp_path: Path):
    write_run(tmp_path / "0", APS, seed=0, curve={"latency_ms": 3.0})
    changes = {
        "input_size": (128, 64),
        "precision": "bf16",
        "latency_ms": 1.0,
        "device": "A GPU",
        "images": 18,
        "boxes_clipped": False,
    }
    other = write_run(tmp_path / "1", APS, seed=1, curve=changes)
    _edit(other, git={"commit": "d" * 40}, versions={"torch": "2.14.0"})
    (comparison,) = _report(tmp_path).comparisons
    text = "\n".join(comparison.warnings)
    assert "different input sizes: 128x64, 64x64" in text
    assert "different precisions: bf16, fp32" in text
    assert "different numbers of images, as some could not be read: 18, 19" in text
    # The other curve is of a version that recorded nothing and clipped all boxes.
    assert (
        "clipped to the image before AP, or not, as families and versions differ: clipped, not clipped"
        in text
    )
    assert "different devices: A GPU, cpu, 1 thread" in text
    assert "different commits of the code: cccccccccccc, dddddddddddd" in text
    assert "different versions of torch: 2.14.0, 2.15.0" in text
    assert "18 or 19 validation images" in comparison.title


def test_few_and_repeated_seeds_are_reported(tmp_path: Path):
    write_run(tmp_path / "0", APS)
    (comparison,) = _report(tmp_path).comparisons
    assert comparison.warnings == (
        "one seed only, so the spread is unknown and nothing is decided (at least 2 are needed): defaults",
    )
    write_run(tmp_path / "1", APS, seed=1)
    (comparison,) = _report(tmp_path).comparisons
    assert comparison.warnings == (
        "few seeds: with 2 and 2 seeds of two equal settings, all of one lie above all of the other by "
        "chance in 33 % of cases",
    )
    write_run(tmp_path / "again", APS, seed=1)
    write_run(tmp_path / "random", APS, ["depth_schedule=random"], seed=5)
    (comparison,) = _report(tmp_path).comparisons
    assert "settings have between 1 and 2 seeds" in comparison.warnings
    assert "defaults repeats seeds: runs with the same seed count once, by their mean" in comparison.warnings


def test_different_seeds_are_reported(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", APS, seed=seed)
        write_run(tmp_path / f"b{seed}", APS, ["depth_schedule=random"], seed=seed + 1)
    (comparison,) = _report(tmp_path).comparisons
    assert any("different seeds, so they cannot be paired" in text for text in comparison.warnings)


def test_a_curve_without_its_ends_is_reported(tmp_path: Path):
    write_run(tmp_path / "0", {"full": 0.3})
    (comparison,) = _report(tmp_path).comparisons
    assert "curves without full or minimal depth: 0" in comparison.warnings


def test_the_order_of_the_runs_does_not_matter(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", APS, seed=seed, arm="both")
        write_run(tmp_path / f"b{seed}", APS, ["depth_schedule=random"], seed=seed, arm="random")
        write_run(tmp_path / f"c{seed}", APS, seed=seed, data={"fingerprint": "other"})
    runs, _ = find_runs([tmp_path])
    expected = compare(runs)
    for shuffle in range(5):
        Random(shuffle).shuffle(runs)
        assert compare(runs) == expected
