"""``anydepth-benchmark``, and budgets by what it measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import write_bundle

from anydepth.budget import BudgetError
from anydepth.commands import benchmark as command
from anydepth.commands.benchmark import parse
from anydepth.commands.plain_options import OptionError
from anydepth.deploy import load
from anydepth.deploy.runtime import benchmark
from anydepth.deploy.runtime.benchmark import (
    Protocol,
    measure_bundle,
    median_spread,
    record_measurements,
)
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.engines import engine_version
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.measurement import Measurement, machine_name

QUICK = Protocol(seconds=1e-9, memory=False)
MEASUREMENT = Measurement(
    engine="onnxruntime",
    engine_version=engine_version("onnxruntime"),
    device="cpu",
    machine=machine_name(),
    threads=1,
    precision="fp32",
    batch=1,
    repetitions=20,
    median_ms=5.0,
    p90_ms=6.0,
    images_per_second=200.0,
    memory_mb=30.0,
    spread=0.01,
    date="2026-01-01",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def test_all_depths_are_measured_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch):
    runs: list[str] = []
    original = benchmark.DeployedDetector.run

    def run(self: benchmark.DeployedDetector, images: np.ndarray, depth: str) -> object:
        runs.append(depth)
        return original(self, images, depth)

    monkeypatch.setattr(benchmark.DeployedDetector, "run", run)
    bundle = read_bundle(folder)
    found = measure_bundle(
        bundle, ["full", "minimal", "none@1"], "onnxruntime", EngineOptions(threads=1), QUICK
    )
    assert list(found) == ["full", "minimal"]  # none@1 is the minimal depth
    assert runs[6:] == ["full", "minimal"] * 20
    for one in found.values():
        assert one.repetitions == 20
        assert 0 < one.median_ms <= one.p90_ms
        assert one.images_per_second == pytest.approx(1000 / one.median_ms, rel=1e-2)
        assert (one.engine, one.device, one.threads, one.memory_mb) == ("onnxruntime", "cpu", 1, None)


def test_measuring_goes_on_until_the_medians_are_known(folder: Path, monkeypatch: pytest.MonkeyPatch):
    spreads = iter([0.5] * 10 + [0.0] * 100)
    monkeypatch.setattr(benchmark, "median_spread", lambda times: next(spreads))
    protocol = Protocol(seconds=100, memory=False, spread=0.02)
    found = measure_bundle(read_bundle(folder), ["full"], "onnxruntime", EngineOptions(), protocol)
    # Ten rounds more than the least.
    assert found["full"].repetitions == 30


def test_the_spread_of_a_median_is_that_of_order_statistics():
    # 100 values: ranks 49.5 -+ 9.8, rounded outwards, are 39 and 60.
    values = np.arange(100.0)
    np.random.default_rng(0).shuffle(values)
    assert median_spread(values.tolist()) == pytest.approx((60 - 39) / 2 / 49.5)
    # Twenty exponential samples: the interval covers the true median in at least 95 % of cases.
    random = np.random.default_rng(1).exponential(size=(2000, 21))
    half = np.array([median_spread(row.tolist()) for row in random]) * np.median(random, axis=1)
    assert half.mean() == pytest.approx(0.45, abs=0.15)


def test_measurements_are_recorded_and_replaced_under_the_same_conditions(folder: Path):
    bundle = read_bundle(folder)
    others = replace(MEASUREMENT, threads=4, median_ms=2.0)
    for measured in (MEASUREMENT, others, replace(MEASUREMENT, median_ms=7.0)):
        record_measurements(bundle, {"full": measured})
    found = read_bundle(folder).depths[0].measurements
    assert found == (others, replace(MEASUREMENT, median_ms=7.0))
    assert read_bundle(folder).depths[1].measurements == ()
    # The files of the bundle are those of the export.
    load(folder).open("full")


def test_budgets_choose_among_what_was_measured_on_this_machine(folder: Path):
    with pytest.raises(BudgetError, match="latency of the depths is not known; measure it with `anyd"):
        load(folder).resolve("<=6ms")
    bundle = read_bundle(folder)
    record_measurements(
        bundle, {"full": MEASUREMENT, "a@1": replace(MEASUREMENT, median_ms=4.0, memory_mb=9.0)}
    )
    detector = load(folder, threads=1)
    assert str(detector.resolve("<=6ms").config) == "full"
    assert str(detector.resolve("<=4.5ms").config) == "a@1"
    assert str(detector.resolve("<=10mb").config) == "a@1"
    with pytest.raises(BudgetError, match="no depth is within the budget <=1ms"):
        detector.predict(np.zeros((9, 9, 3), np.uint8), "<=1ms")
    (found,) = detector.predict(np.zeros((9, 9, 3), np.uint8), "<=4.5ms", threshold=0.0)
    assert detector.open_depths == ("a@1",)
    assert len(found)
    for other in ({"engine": "openvino"}, {"threads": 2}, {}, {"threads": 1, "precision": "auto"}):
        with pytest.raises(BudgetError, match="not known"):
            load(folder, **other).resolve("<=6ms")  # type: ignore[arg-type]
    record_measurements(bundle, {"minimal": replace(MEASUREMENT, machine="another", median_ms=1.0)})
    with pytest.raises(BudgetError, match="no depth is within"):
        load(folder, threads=1).resolve("<=1ms")


def test_budgets_of_operations_and_ap_need_no_measurement(folder: Path):
    detector = load(folder)
    assert str(detector.resolve("<=2gflops").config) == "full"  # 1 GMAC each
    assert str(detector.resolve(">=95%ap").config) == "full"
    with pytest.raises(BudgetError, match=r"no depth is within the budget <=1.9gflops"):
        detector.resolve("<=1.9gflops")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("median_ms", "5"),
        ("median_ms", -1.0),
        ("p90_ms", 10**400),
        ("repetitions", 1.5),
        ("threads", True),
        ("memory_mb", "x"),
        ("engine", None),
    ],
)
def test_measurements_of_another_type_are_refused(key: str, value: object, folder: Path):
    description = json.loads((folder / "bundle.json").read_text())
    description["depths"][0]["measurements"] = [{**MEASUREMENT.to_dict(), key: value}]
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=f"got {key}="):
        read_bundle(folder)


def test_the_command_measures_prints_and_records(folder: Path, capsys: pytest.CaptureFixture[str]):
    command.run(parse([str(folder), "threads=1", "seconds=1e-9", "depths=[full, minimal]"]))
    printed = capsys.readouterr().out
    assert "cpu, 1 threads, fp32, batch 1, 20 passes per depth in turn" in printed
    rows = {
        line.split()[0]: line.split()[1:]
        for line in printed.splitlines()
        if line.startswith(("full", "mini"))
    }
    assert set(rows) == {"full", "minimal"}
    assert rows["full"][:2] == ["2.00", "25.0"]
    entry, other = read_bundle(folder).depths[:2]
    (measured,) = entry.measurements
    # A process that runs so little takes some megabytes of buffers.
    assert measured.memory_mb is not None
    assert 0 < measured.memory_mb < 200
    assert other.measurements == ()
    command.run(parse([str(folder), "threads=1", "seconds=1e-9", "memory=false", "record=false", "batch=2"]))
    assert "not written" in capsys.readouterr().out
    assert len(read_bundle(folder).depths[0].measurements) == 1


def test_an_unknown_latency_names_what_was_measured(folder: Path):
    record_measurements(read_bundle(folder), {"full": replace(MEASUREMENT, machine="A chip, 4 cores")})
    with pytest.raises(BudgetError) as raised:
        load(folder, threads=1).resolve("<=8ms")
    wanted = f"onnxruntime {engine_version('onnxruntime')}, A chip, 4 cores, cpu, 1 threads, fp32, batch 1"
    assert str(raised.value).endswith(f"; what it holds was measured with {wanted}")


def test_a_measurement_of_time_alone_keeps_the_memory_that_was_known(folder: Path):
    record_measurements(read_bundle(folder), {"full": MEASUREMENT})
    later = replace(MEASUREMENT, median_ms=7.0, memory_mb=None, date="2099-01-01T00:00:00+00:00")
    record_measurements(read_bundle(folder), {"full": later})
    (found,) = read_bundle(folder).depth("full").measurements
    assert (found.median_ms, found.memory_mb, found.date) == (7.0, 30.0, later.date)
    # Under other conditions, nothing is known.
    record_measurements(read_bundle(folder), {"full": replace(later, threads=2)})
    assert [one.memory_mb for one in read_bundle(folder).depth("full").measurements] == [30.0, None]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch=10000000000", "Error: memory ran out: "),
        ("threads=100000", "Error: got threads=100000, expected a whole number from 1 to 1024, or None"),
        ("threads=0", "Error: got threads=0, expected a whole number from 1 to 1024, or None"),
    ],
)
def test_what_the_machine_cannot_do_ends_in_one_line(
    setting: str,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", ["anydepth-benchmark", str(folder), setting])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_times_are_kept_if_the_process_that_measures_memory_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    real = subprocess.run

    def fail_at_full(words: list[str], **options: Any) -> Any:
        if '"depth": "full"' not in words[-1]:
            return real(words, **options)
        # As the kernel ends a process when memory is short: without a word.
        return real([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **options)

    monkeypatch.setattr(benchmark.subprocess, "run", fail_at_full)
    command.run(parse([str(folder), "threads=1", "seconds=1e-9", "depths=[full, minimal]"]))
    printed = capsys.readouterr()
    assert "the memory at depth full is not known" in printed.err
    assert "ended with exit code -9: it said nothing" in printed.err
    assert "depth minimal" not in printed.err
    assert "written to" in printed.out
    measured = {str(entry.config): entry.measurements for entry in read_bundle(folder).depths}
    assert measured["full"][0].memory_mb is None
    assert measured["full"][0].median_ms > 0
    assert measured["minimal"][0].memory_mb is not None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"got the bundles or weights \(none\), expected one"),
        (["a", "b"], "got the bundles or weights a, b, expected one"),
        (["a", "engin=x"], "got 'engin=x', expected one of engine, device"),
        (["a", "batch=two"], "got batch='two', expected a whole number"),
        (["a", "batch=1.5"], "got batch='1.5', expected a whole number"),
        (["a", "seconds=long"], "got seconds='long', expected a number"),
        (["a", "memory=yes"], "got memory='yes', expected true or false"),
        (["a", "threads="], "got threads='', expected a whole number"),
    ],
)
def test_options_that_do_not_exist_are_refused(argv: list[str], message: str):
    with pytest.raises(OptionError, match=message):
        parse(argv)


def test_options_have_the_types_of_their_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "some=dir").mkdir()
    monkeypatch.chdir(tmp_path)
    options = parse(["some=dir", "threads=2", "memory=false", "seconds=5", "engine=openvino"])
    assert str(options.path) == "some=dir"
    assert options.values["threads"] == 2
    assert options.values["memory"] is False
    assert options.values["seconds"] == 5.0
    assert parse(["b", "threads=null"]).values["threads"] is None


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"spread": 0.0}, {"spread": 1.0}, {"seconds": 0.0}])
def test_protocols_that_measure_nothing_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=r"got batch=.*expected a number of images from 1"):
        Protocol(**wrong)  # type: ignore[arg-type]


def test_the_console_script_needs_no_torch(folder: Path):
    code = (
        "import sys; sys.argv = ['anydepth-benchmark', sys.argv[1], 'memory=false', 'seconds=1e-9', "
        "'depths=x']\nfrom anydepth.commands.start import benchmark\n"
        "try:\n    benchmark()\nexcept SystemExit as end:\n    assert end.code == 1\n"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert "Error: depth 'x': unknown stage 'x'" in done.stderr
