"""Hostile bytes at every boundary: a few hundred here, 100,000 each with ``make test-slow``."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from boundaries import NAMES, Boundary, boundary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search import Findings, search
from watch import HostileError, Watch

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


def check(found: Findings) -> None:
    assert not found.failures, "\n".join(f"{kind}: {case}" for kind, case in found.failures.items())
    assert found.lines >= found.lines_of_seeds > 0
    assert found.accepted > 0


def test_hostile_bytes_are_refused_or_read(place: tuple[str, Boundary, Watch]) -> None:
    name, there, watch = place
    check(search(there, watch, cases=QUICK[name]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(place: tuple[str, Boundary, Watch], data: bytes) -> None:
    name, there, watch = place
    kinds = {seed[:1] for seed in there.seeds} if name not in ("images", "depth") else {b""}
    for kind in sorted(kinds):
        with watch.case(10):
            there.run(kind + data)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_cases_are_refused_or_read(place: tuple[str, Boundary, Watch]) -> None:
    name, there, watch = place
    found = search(there, watch, cases=100_000, seed=1)
    print(f"\n{name}: {found}")
    check(found)


def test_equal_seeds_make_equal_cases(tmp_path: Path) -> None:
    there = boundary("depth", tmp_path)
    first, second = (there.invent(random.Random("3 4")) for _ in range(2))
    assert first == second


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
