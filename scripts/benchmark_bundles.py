"""How many times as fast one bundle is as another at each depth that both hold, paired in one process.

Usage: ``python scripts/benchmark_bundles.py bundle bundle_int8 --engine openvino`` for the table of
docs/int8.md, and with bundles of ``graph=each`` and ``graph=one`` for the one of docs/deploy.md. Passes over
noise take turns; CPU time is counted, so that other load on the machine disturbs little, with one thread
unless told otherwise (threads that wait in a loop would count). Printed are medians of the ratios, with
quartiles, and of both times.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from anydepth.deploy import load
from anydepth.deploy.runtime.benchmark import noise


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--engine", default="auto", help="of both; auto: the one of each bundle's format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="images of a pass")
    parser.add_argument("--rounds", type=int, default=20, help="from 2")
    given = parser.parse_args()
    detectors = [
        load(folder, engine=given.engine, threads=given.threads) for folder in (given.first, given.second)
    ]
    images = noise(given.batch, detectors[0].input_size)
    for depth in (name for name in detectors[0].depths if name in detectors[1].depths):
        times: list[list[float]] = [[], []]
        for number in range(given.rounds + 2):
            for detector, own in zip(detectors, times, strict=True):
                start = time.process_time()
                detector.run(images, depth)
                # The first passes open the graph and warm it up.
                own += [time.process_time() - start] if number >= 2 else []
        ratios = [first / second for first, second in zip(*times, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
        found = {
            "depth": depth,
            "times_as_fast": round(statistics.median(ratios), 3),
            "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
            "cpu_ms": [round(1000 * statistics.median(own), 2) for own in times],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
