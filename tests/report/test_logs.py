"""Logs of a run are merged, thinned and cleaned; expected series are written out by hand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import write_log

from anydepth.report.logs import MAX_POINTS, Series, read_logs, thin


def test_gaps_are_skipped_and_every_column_has_its_own_steps(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,train/loss,val/score\n0,9,2.0,\n0,19,1.5,\n0,19,,0.1\n1,29,1.0,\n")
    log, notes = read_logs(tmp_path)
    assert log == {
        "train/loss": Series((9, 19, 29), (0.0, 0.0, 1.0), (2.0, 1.5, 1.0)),
        "val/score": Series((19,), (0.0,), (0.1,)),
    }
    assert notes == ()


def test_a_later_version_replaces_lost_steps(tmp_path: Path):
    # Version 10 resumed from step 20: steps 25 and 40 of version 9 were lost with the interruption.
    write_log(tmp_path, 9, "epoch,step,a,b\n0,10,1,5\n0,20,2,\n0,25,2,6\n0,40,4,\n")
    write_log(tmp_path, 10, "epoch,step,a\n0,25,7\n0,35,8\n")
    log, _ = read_logs(tmp_path)
    assert log["a"] == Series((10, 20, 25, 35), (0.0,) * 4, (1.0, 2.0, 7.0, 8.0))
    assert log["b"] == Series((10,), (0.0,), (5.0,))


def test_a_version_that_logged_nothing_replaces_nothing(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,a\n0,10,1\n")
    write_log(tmp_path, 1, "epoch,step,a\n")
    write_log(tmp_path, 2, "")
    log, notes = read_logs(tmp_path)
    assert log["a"].values == (1.0,)
    assert notes == ()


def test_values_that_are_not_finite_are_left_out_with_a_note(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,a,b\n0,1,nan,1\n0,2,inf,1\n0,3,2,words\n")
    log, notes = read_logs(tmp_path)
    assert log["a"] == Series((3,), (0.0,), (2.0,))
    assert notes == (
        "version_0/metrics.csv: values that are not finite are left out: 2 of a (first at step 1), 1 of b "
        "(first at step 3)",
    )


def test_columns_that_come_later_are_read(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,a\n0,1,1\nepoch,step,a,b\n0,2,2,3\n0,3,4\n")
    log, _ = read_logs(tmp_path)
    assert log["a"].values == (1.0, 2.0, 4.0)
    assert log["b"] == Series((2,), (0.0,), (3.0,))


def test_an_incomplete_last_line_is_left_out(tmp_path: Path):
    # The last number was 1234: its first digits are not what was logged.
    write_log(tmp_path, 0, "epoch,step,a\n0,1,1\n0,2,12")
    log, notes = read_logs(tmp_path)
    assert log["a"].values == (1.0,)
    assert notes == ("version_0/metrics.csv: 1 damaged line left out",)


def test_a_line_without_an_epoch_takes_the_one_before(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,a\n3,1,1\nnan,2,2\nx,3,3\n,,4\n")
    log, notes = read_logs(tmp_path)
    assert log["a"] == Series((1, 2), (3.0, 3.0), (1.0, 2.0))
    assert notes == ("version_0/metrics.csv: 2 damaged lines left out",)


def test_a_damaged_version_leaves_the_others(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,a\n0,1,1\n")
    write_log(tmp_path, 1, "what is this\n")
    (tmp_path / "logs" / "version_1" / "metrics.csv").write_bytes(b"\xff\xfe\x00\x01")
    log, notes = read_logs(tmp_path)
    assert log["a"].values == (1.0,)
    assert notes[0].startswith("version_1/metrics.csv is damaged and not shown")


def test_a_run_without_logs_has_none(tmp_path: Path):
    assert read_logs(tmp_path) == ({}, ())


def test_a_long_log_is_thinned_and_keeps_its_spike(tmp_path: Path):
    lines = [f"{step // 1000},{step},{1000.0 if step == 54_321 else step % 7}" for step in range(100_000)]
    write_log(tmp_path, 0, "\n".join(["epoch,step,a", *lines, ""]))
    series = read_logs(tmp_path)[0]["a"]
    assert len(series.values) <= MAX_POINTS
    assert (series.steps[0], series.steps[-1]) == (0, 99_999)
    assert series.steps[series.values.index(1000.0)] == 54_321


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(4, 50))
def test_thinning_keeps_ends_extremes_and_order(values: list[float], most: int):
    series = Series(tuple(range(len(values))), tuple(map(float, range(len(values)))), tuple(values))
    thinned = thin(series, most)
    assert len(thinned.values) <= most
    assert list(thinned.steps) == sorted(set(thinned.steps))
    assert {thinned.steps[0], thinned.steps[-1]} == {0, len(values) - 1}
    assert {min(thinned.values), max(thinned.values)} == {min(values), max(values)}
    assert all(values[step] == value for step, value in zip(thinned.steps, thinned.values, strict=True))
    assert len(thinned.values) == len(values) or len(values) > most


def test_thinning_below_four_points_is_refused():
    with pytest.raises(ValueError, match="got max_points=3, expected at least 4"):
        thin(Series((), (), ()), 3)


def test_all_values_are_finite(tmp_path: Path):
    write_log(tmp_path, 0, "epoch,step,a,b\n0,1,-inf,1\n0,2,1e400,nan\n0,3,,3\n")
    log, _ = read_logs(tmp_path)
    assert log == {"b": Series((1, 3), (0.0, 0.0), (1.0, 3.0))}
