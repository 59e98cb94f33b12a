"""Speed of bundles in inference engines against PyTorch, and against other projects' exports, paired.

Usage: ``python scripts/benchmark_engines.py --detectors detr_r50 yolo_s --threads 2 --bundles FOLDER``

Each form of a network (PyTorch as it is and specialised, each engine, a peer's graph in each engine; full and
minimal depth) is a process of its own, which keeps it open: the idle threads of an engine would disturb
others in its process. In each round every form is timed once, in random order, one at a time, by the median
of a few passes; a figure is the median over the rounds of the ratio within a round, with its quartiles, so
that other load on the machine affects both sides alike. Still, run it on a quiet machine.

Figures: eager over engine and over ``specialise``; full over minimal depth; switching the depth at every pass
over staying (both in one process); threads of ONNX Runtime that sleep instead of spinning; time per MAC over
that of the peer's own export; start of the loader until its first result, above the engine's own.

Bundles and peers' graphs have random weights, which take as long as trained ones, and are exported into the
folder ``--bundles`` once: minutes for each large network. ``--peer detr_r50=FILE.onnx:GMACS`` adds a graph of
another project with the outputs ``boxes`` and ``scores``.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anydepth.deploy.runtime.benchmark import disturbances
from anydepth.deploy.runtime.bundle import Bundle, read_bundle

DETECTORS = ("detr_r50", "detr_r18", "yolo_s", "yolo_l")
ENGINES = ("onnxruntime", "openvino")
DEPTHS = ("full", "minimal")
# Exports of transformers that a detector is compared with.
PEERS = {"detr_r18": "rtdetr_r18", "detr_r50": "rtdetr_r50"}
WORKER = Path(__file__).with_name("engine_worker.py")

Times = Mapping[str, Sequence[Sequence[float]]]


class Worker:
    """A process that times passes of one form."""

    def __init__(self, job: Mapping[str, object]) -> None:
        command = [sys.executable, str(WORKER), json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready\n")

    def time(self, passes: int) -> list[float]:
        """Return the median milliseconds of some passes, of each function of the form."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{passes}\n")
        self.process.stdin.flush()
        return [statistics.median(times) for times in json.loads(self._answer())]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self, expected: str | None = None) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line or expected not in (None, line):
            raise RuntimeError(f"a worker failed (its error is above): {self.process.args!r}")
        return line


def run_once(job: Mapping[str, object]) -> str:
    """Run a job that ends by itself, and return what it prints."""
    command = [sys.executable, str(WORKER), json.dumps(job)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def prepare_bundle(detector: str, arguments: argparse.Namespace) -> Bundle:
    """Return the bundle of a detector, which is exported unless it is there."""
    folder = arguments.bundles / f"{detector}_{arguments.size}"
    if not (folder / "bundle.json").is_file():
        print(f"exports {folder}", file=sys.stderr, flush=True)
        size = [arguments.size, arguments.size]
        run_once(
            {"job": "bundle", "detector": detector, "depths": DEPTHS, "folder": str(folder), "size": size}
        )
    return read_bundle(folder)


def prepare_peer(detector: str, arguments: argparse.Namespace) -> tuple[Path, float] | None:
    """Return the graph that a detector is compared with and its GMACs; None: there is none."""
    if detector in arguments.peer:
        return arguments.peer[detector]
    if detector not in PEERS or arguments.no_peers:
        return None
    graph = arguments.bundles / f"peer_{PEERS[detector]}_{arguments.size}.onnx"
    # Written last.
    described = graph.with_suffix(".json")
    if not described.is_file():
        print(f"exports {graph}", file=sys.stderr, flush=True)
        size = [arguments.size, arguments.size]
        run_once({"job": "peer", "peer": PEERS[detector], "graph": str(graph), "size": size})
    return graph, json.loads(described.read_text())["gmacs"]


def list_jobs(
    detector: str, bundle: Bundle, peer: tuple[Path, float] | None, arguments: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Return the jobs of the workers by the name of the form."""
    size = [arguments.size, arguments.size]
    common = {"threads": arguments.threads, "size": size}
    jobs: dict[str, dict[str, object]] = {}
    for depth in DEPTHS:
        torch = {"job": "torch", "detector": detector, "depth": depth, **common}
        graph = str(bundle.folder / bundle.depth(depth).graph)
        jobs[f"eager {depth}"] = {**torch, "specialise": False}
        jobs[f"specialised {depth}"] = {**torch, "specialise": True}
        for engine in arguments.engines:
            jobs[f"{engine} {depth}"] = {"job": "graph", "engine": engine, "graph": graph, **common}
        if "onnxruntime" in arguments.engines:
            jobs[f"sleeping {depth}"] = {"job": "sleeping", "graph": graph, **common}
    for engine in arguments.engines:
        folder = str(bundle.folder)
        jobs[f"{engine} switching"] = {
            "job": "depths", "engine": engine, "folder": folder, "depths": DEPTHS, **common
        }  # fmt: skip
        if peer:
            jobs[f"{engine} peer"] = {"job": "graph", "engine": engine, "graph": str(peer[0]), **common}
    return jobs


def time_in_rounds(jobs: Mapping[str, Mapping[str, object]], arguments: argparse.Namespace) -> Times:
    """Return the milliseconds of each form in each round, one list for each of its functions."""
    workers: dict[str, Worker] = {}
    found: dict[str, list[list[float]]] = {name: [] for name in jobs}
    order = random.Random(0)
    try:
        for name, job in jobs.items():
            workers[name] = Worker(job)
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
            for name in order.sample(list(jobs), len(jobs)):
                # Until the threads of the one before have stopped spinning.
                time.sleep(arguments.pause)
                # Each of the two functions of switching is four passes.
                passes = 1 if jobs[name]["job"] == "depths" else arguments.passes
                found[name].append(workers[name].time(passes))
    finally:
        for worker in workers.values():
            worker.close()
    return {name: list(zip(*rounds, strict=True)) for name, rounds in found.items()}


def ratio(above: Sequence[float], below: Sequence[float], factor: float = 1.0) -> dict[str, float]:
    """Return median and quartiles of the ratios within rounds, times a factor."""
    ratios = [factor * first / second for first, second in zip(above, below, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(statistics.median(ratios), 3), "low": round(low, 3), "high": round(high, 3)}


def compute_figures(
    times: Times, gmacs: Mapping[str, float], peer: float | None, engines: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the ratios by what they compare.

    Args:
        times: Milliseconds by form, function and round.
        gmacs: GMACs of each depth.
        peer: GMACs of the peer; None: there is none.
        engines: Names of the engines.
    """
    figures = {}
    own = {name: rounds[0] for name, rounds in times.items()}
    for depth in DEPTHS:
        for form in ("specialised", *engines):
            figures[f"eager / {form}, {depth}"] = ratio(own[f"eager {depth}"], own[f"{form} {depth}"])
        if "onnxruntime" in engines:
            figures[f"onnxruntime spinning / sleeping, {depth}"] = ratio(
                own[f"onnxruntime {depth}"], own[f"sleeping {depth}"]
            )
    for form in ("eager", "specialised", *engines):
        figures[f"full / minimal, {form}"] = ratio(own[f"{form} full"], own[f"{form} minimal"])
    for engine in engines:
        staying, switching = times[f"{engine} switching"]
        figures[f"switching / staying, {engine}"] = ratio(switching, staying)
        if peer:
            theirs = own[f"{engine} peer"]
            figures[f"per MAC of the peer, {engine}"] = ratio(
                own[f"{engine} full"], theirs, peer / gmacs["full"]
            )
            figures[f"minimal / peer, {engine}"] = ratio(own[f"{engine} minimal"], theirs)
    return figures


def measure_start(bundle: Bundle, engine: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return what the loader takes above the engine alone, from the start of Python to the first result."""
    graph = str(bundle.folder / bundle.depth("minimal").graph)
    job = {
        "job": "cold", "engine": engine, "graph": graph, "folder": str(bundle.folder), "depth": "minimal",
        "threads": arguments.threads, "size": [arguments.size, arguments.size],
    }  # fmt: skip
    seconds, memory = [], []
    for _ in range(arguments.starts):
        found = {}
        for loader in (False, True):
            start = time.perf_counter()
            peak = float(run_once({**job, "loader": loader}))
            found[loader] = (time.perf_counter() - start, peak)
        seconds.append(found[True][0] - found[False][0])
        memory.append(found[True][1] - found[False][1])
    return {
        "seconds": round(statistics.median(seconds), 3),
        "megabytes": round(statistics.median(memory), 1),
    }


def measure(detector: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one detector."""
    bundle, peer = prepare_bundle(detector, arguments), prepare_peer(detector, arguments)
    times = time_in_rounds(list_jobs(detector, bundle, peer, arguments), arguments)
    gmacs = {depth: bundle.depth(depth).gmacs for depth in DEPTHS}
    return {
        "gmacs": {**gmacs, **({"peer": peer[1]} if peer else {})},
        "median_ms": {
            name: [round(statistics.median(own), 2) for own in rounds] for name, rounds in times.items()
        },
        "ratios": compute_figures(times, gmacs, peer[1] if peer else None, arguments.engines),
        "start_above_engine": {
            engine: measure_start(bundle, engine, arguments) for engine in arguments.engines
        },
    }


def parse_peer(text: str) -> tuple[str, tuple[Path, float]]:
    """Parse ``DETECTOR=FILE:GMACS``."""
    detector, equals, rest = text.partition("=")
    path, colon, gmacs = rest.rpartition(":")
    if not equals or not colon or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected DETECTOR=FILE.onnx:GMACS with such a file")
    return detector, (Path(path), float(gmacs))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", default=DETECTORS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--bundles", type=Path, default=Path("outputs/bench_engines"), help="exports")
    parser.add_argument("--size", type=int, default=640, help="side of the square images in pixels")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a pass")
    parser.add_argument("--rounds", type=int, default=20, help="from 2")
    parser.add_argument("--passes", type=int, default=3, help="of each form in a round")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two forms")
    parser.add_argument("--starts", type=int, default=5, help="cold starts with and without the loader")
    parser.add_argument("--peer", type=parse_peer, action="append", default=[], help="DETECTOR=FILE:GMACS")
    parser.add_argument("--no-peers", action="store_true", help="no exports of transformers")
    arguments = parser.parse_args()
    arguments.bundles.mkdir(parents=True, exist_ok=True)
    arguments.peer = dict(arguments.peer)
    for sentence in disturbances():
        print(f"Warning: {sentence}", file=sys.stderr)
    setting = {**vars(arguments), "bundles": str(arguments.bundles)}
    setting["peer"] = {name: [str(path), gmacs] for name, (path, gmacs) in arguments.peer.items()}
    print(json.dumps({"setting": setting}, indent=2), flush=True)
    for detector in arguments.detectors:
        # As soon as it is known: the next one may take minutes.
        print(json.dumps({detector: measure(detector, arguments)}, indent=2), flush=True)


if __name__ == "__main__":
    main()
