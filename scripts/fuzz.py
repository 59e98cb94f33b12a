"""Fuzz everything that reads untrusted files and texts.

    python scripts/fuzz.py                              # all boundaries, 100,000 cases each
    python scripts/fuzz.py images depth --cases 5000
    python scripts/fuzz.py checkpoints --case failures/checkpoints-crash-0b5f...    # one kept case again

Atheris (on libFuzzer) mutates earlier cases that reached new code of the package, and receives generated
cases of each format. Every case must be refused with a documented error or read into a valid result, within a
time limit, without starting a program, and without writing or opening planted files outside its folder. The
first failing case of a boundary is kept and ends its search.
"""

import argparse
import contextlib
import importlib.util
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "hostile"), str(REPOSITORY / "tests")]

BOUNDARIES = ("annotations", "images", "depth", "checkpoints", "config")
_MEMORY_BYTES = 6 << 30  # more lets a case slow the machine down, less fails valid cases
_SHOWN_LINES = 30  # of libFuzzer's output about a failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program; None: that of the process.

    Returns:
        0, or 1 if a boundary failed.
    """
    arguments = _parser().parse_args(argv)
    if arguments.within is not None:
        _search(arguments)
    wanted = arguments.boundaries or BOUNDARIES
    if arguments.case is not None and len(wanted) != 1:
        raise SystemExit("--case FILE: name the one boundary that it belongs to")
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris is not installed (it runs on Linux and macOS): pip install atheris")
    failed = False
    for name in wanted:
        with tempfile.TemporaryDirectory() as place:
            # libFuzzer ends its process, so each search has its own.
            command = [sys.executable, __file__, name, "--within", place]
            command += ["--cases", str(arguments.cases), "--seed", str(arguments.seed)]
            command += ["--keep", str(arguments.keep)]
            command += [] if arguments.case is None else ["--case", str(arguments.case)]
            search = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if search.returncode:
            print(*search.stderr.splitlines()[-_SHOWN_LINES:], sep="\n")
        print(f"{name}: {'failed' if search.returncode else 'no failure'}", flush=True)
        failed |= search.returncode != 0
    return int(failed)


def _search(arguments: argparse.Namespace) -> None:
    """Search one boundary; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["anydepth", "PIL"]):
        from boundaries import boundary
        from cases import MOST_BYTES, attempt, make_case
        from watch import Watch

    import torch

    torch.set_num_threads(1)
    (name,) = arguments.boundaries
    files, corpus = (arguments.within.resolve() / part for part in ("files", "corpus"))
    files.mkdir()
    corpus.mkdir()
    there, watch = boundary(name, files), Watch(files)
    for number, seed in enumerate(there.seeds):
        (corpus / str(number)).write_bytes(seed)
        with contextlib.suppress(Exception):
            there.run(seed)  # Triggers late imports of readers, unwatched.
    arguments.keep.mkdir(parents=True, exist_ok=True)
    counted = {True: 0, False: 0}

    def run(data: bytes) -> None:
        counted[attempt(there, watch, data)] += 1
        cases = sum(counted.values())
        if cases % max(arguments.cases // 10, 1) == 0:
            print(f"  {name}: {cases:,} cases, {counted[True]:,} read, the others refused", flush=True)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            changed: bytes = atheris.Mutate(data, most)
            return changed
        return make_case(there, rng, data)[:most]

    # A case that needs more memory fails, instead of exhausting the machine.
    resource.setrlimit(resource.RLIMIT_AS, (_used_bytes() + _MEMORY_BYTES, resource.RLIM_INFINITY))
    options = [
        f"-runs={arguments.cases}",
        f"-seed={arguments.seed + 1}",  # 0 means a random seed.
        f"-max_len={MOST_BYTES}",
        "-len_control=0",
        "-timeout=0",  # The watch has its own time limit.
        f"-rss_limit_mb={2 * _MEMORY_BYTES >> 20}",
        "-verbosity=0",
        f"-artifact_prefix={arguments.keep}/{name}-",
        str(corpus if arguments.case is None else arguments.case),
    ]
    atheris.Setup([sys.argv[0], *options], run, custom_mutator=change)
    atheris.Fuzz()


def _used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "boundaries", nargs="*", metavar="BOUNDARY", help=f"any of {', '.join(BOUNDARIES)}; default: all"
    )
    parser.add_argument("--cases", type=int, default=100_000, help="cases per boundary; default 100000")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases; default 0")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("failures"),
        metavar="DIR",
        help="folder of failing cases; default ./failures",
    )
    parser.add_argument("--case", type=Path, metavar="FILE", help="run only this kept case")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
