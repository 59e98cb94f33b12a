"""Give files and texts that nobody should write to everything that reads those of others.

    python scripts/fuzz.py                              # all boundaries, 100,000 cases each
    python scripts/fuzz.py images depth --cases 5000
    python scripts/fuzz.py checkpoints --seed 7 --keep failures

Every case is refused with a documented error or read into something that holds what it promises, within a
time limit, without starting a program and without writing, or opening what is planted, outside its folder.
Cases are made by changing earlier ones that reached new lines of the package; equal seeds make equal cases.
"""

import argparse
import faulthandler
import hashlib
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "hostile"), str(REPOSITORY / "tests")]

from boundaries import NAMES, boundary  # noqa: E402
from search import search  # noqa: E402
from watch import Watch  # noqa: E402

_MEMORY_BYTES = 6 << 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: The command line without the program; None: that of the process.

    Returns:
        0, or 1 where a boundary failed.
    """
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    # What asks for more fails, instead of taking the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (_used_bytes() + _MEMORY_BYTES, resource.RLIM_INFINITY))
    failed = False
    for name in arguments.boundaries or NAMES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place).resolve()
            faulthandler.dump_traceback_later(6 * 3600, exit=True)
            found = search(
                boundary(name, folder),
                Watch(folder),
                cases=arguments.cases,
                seed=arguments.seed,
                tell=lambda text, name=name: print(f"  {name}: {text}", flush=True),
            )
        print(f"{name}: {found}", flush=True)
        for kind, (data, message) in found.failures.items():
            failed = True
            print(f"  {kind}: {message}\n    {data[:200]!r}")
            if arguments.keep is not None:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
    return int(failed)


def _used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "boundaries", nargs="*", metavar="BOUNDARY", help=f"of {', '.join(NAMES)}; default: all"
    )
    parser.add_argument("--cases", type=int, default=100_000, help="of each boundary; default 100000")
    parser.add_argument("--seed", type=int, default=0, help="of the cases; default 0")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write what a boundary failed on there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
