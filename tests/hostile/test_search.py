"""Hostile bytes at every boundary: a few hundred here, 100,000 each with ``make test-slow``."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boundaries import NAMES, Boundary, boundary
from cases import make_case, run_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watch import HostileError, Watch

FUZZ = Path(__file__).parents[2] / "scripts" / "fuzz.py"
# Depths with an "@" divide by zero.
BROKEN = """
from anydepth.depth import DepthSpace
parse = DepthSpace.parse
DepthSpace.parse = lambda self, text: 1 // 0 if "@" in str(text) else parse(self, text)
"""
QUICK = {"annotations": 300, "images": 300, "depth": 1000, "checkpoints": 150, "config": 300}


@pytest.fixture(scope="module", params=NAMES)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Boundary, Watch]]:
    with pytest.MonkeyPatch.context() as patch:
        # Set by boundaries; the tests' own permissions are no part of what strangers may do.
        patch.setenv("ANYDEPTH_MAX_IMAGE_PIXELS", "1000000")
        patch.setenv("ANYDEPTH_FUZZ_SECRET", "")
        patch.delenv("ANYDEPTH_ALLOW_TARGETS", raising=False)
        folder = tmp_path_factory.mktemp("hostile").resolve()
        yield request.param, boundary(request.param, folder), Watch(folder)


def test_hostile_bytes_are_refused_or_read(place: tuple[str, Boundary, Watch]) -> None:
    name, there, watch = place
    found = run_cases(there, watch, cases=QUICK[name])
    assert not found.failures, "\n".join(f"{kind}: {case}" for kind, case in found.failures.items())
    assert found.accepted > 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(place: tuple[str, Boundary, Watch], data: bytes) -> None:
    name, there, watch = place
    kinds = {seed[:1] for seed in there.seeds} if name not in ("images", "depth") else {b""}
    for kind in sorted(kinds):
        with watch.case(10):
            there.run(kind + data)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_thousand_cases_guided_by_coverage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris, which guides the search, runs on Linux and macOS only")
    command = [sys.executable, str(FUZZ), name, "--keep", str(tmp_path / "failures")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    print("measured:", found.stdout.splitlines()[-2])
    assert "100,000 cases" in found.stdout
    assert list((tmp_path / "failures").iterdir()) == []


@pytest.mark.slow
def test_a_search_ends_with_the_case_that_fails_which_runs_again_alone(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris, which guides the search, runs on Linux and macOS only")
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    folders = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    broken = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    keep = tmp_path / "failures"
    command = [sys.executable, str(FUZZ), "depth", "--keep", str(keep)]
    found = subprocess.run(command, capture_output=True, text=True, env=broken)
    assert (found.returncode, "depth: failed" in found.stdout) == (1, True), found.stdout
    assert "ZeroDivisionError" in found.stdout
    (case,) = keep.iterdir()
    again = [*command, "--case", str(case)]
    assert subprocess.run(again, capture_output=True, env=broken).returncode == 1
    assert subprocess.run(again, capture_output=True).returncode == 0


def test_equal_seeds_make_equal_cases(tmp_path: Path) -> None:
    there = boundary("depth", tmp_path)
    first, second = ([make_case(there, random.Random(f"3 {n}")) for n in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 25


@pytest.mark.parametrize("deed", ["write", "read", "start", "loop"])
def test_the_watch_sees_what_a_reader_must_not_do(tmp_path: Path, deed: str) -> None:
    """The oracle itself, as a watch that sees nothing would let everything pass."""
    folder = tmp_path / "inside"
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "secret").touch()

    def loop() -> None:
        while True:
            pass

    deeds = {
        "write": lambda: (tmp_path / "elsewhere").write_text("x"),
        "read": lambda: (folder / "outside" / "secret").read_text(),
        "start": lambda: __import__("os").system("true"),
        "loop": loop,
    }
    with pytest.raises(HostileError), Watch(folder).case(0.2):
        deeds[deed]()
