"""``anydepth-benchmark``: measure depths on this machine; of a bundle without torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from anydepth.budget import DepthFigures, figures_table
from anydepth.commands.plain_options import (
    number,
    one_path,
    parse_options,
    start_console,
    switch,
    text,
    whole,
)
from anydepth.deploy.runtime.benchmark import (
    Protocol,
    disturbances,
    measure_bundle,
    record_measurements,
)
from anydepth.deploy.runtime.bundle import read_bundle
from anydepth.deploy.runtime.engines import choose_engine
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.runtime.hub_bundle import find_weights_or_bundle
from anydepth.measurement import Measurement

HELP: Final = """\
anydepth-benchmark BUNDLE [KEY=VALUE ...]
anydepth-benchmark WEIGHTS.safetensors [KEY=VALUE ...]
anydepth-benchmark OWNER/NAME [KEY=VALUE ...]

Measures latency, throughput and memory of each depth of a bundle, or of weights in PyTorch, on this machine,
and prints them. They are written into bundle.json, or beside the weights into WEIGHTS.measurements.json, and
budgets such as depth="<=8ms" find them there. One measurement is one pass of the network over noise; depths
take turns until the medians are known well enough. A folder of a training run stands for its weights, and
OWNER/NAME for the bundle, or else the weights, in that repository of the Hugging Face hub (extra hub).

  engine=auto         of a bundle onnxruntime, openvino or aotinductor; of weights torch (each
                      depth specialised), compile (that, by torch.compile: minutes for each
                      depth), or eager (the detector of all depths, as Detector.predict runs it)
  device=cpu          with onnxruntime also cuda, tensorrt, coreml; with openvino gpu, npu; with weights cuda
  threads=null        threads of one pass; null: as many as the engine chooses
  precision=fp32      of a bundle also auto: what the engine chooses; of weights also bf16, fp16
  trust_code=false    whether machine code in a bundle of format=torch may run
  batch=null          images of a pass; null: 1, or the number that the bundle was exported for
  depths=auto         all depths of a bundle, the ladder of weights; or a list, such as [full,1/2]
  spread=0.02         the medians' 95 % confidence intervals are at most twice this share wide
  seconds=60          after 20 passes of each depth, no further round begins after this time
  memory=true         whether memory is measured, each depth in a process of its own
  record=true         whether what was measured is written

examples:
  anydepth-benchmark bundle engine=openvino threads=2
  anydepth-benchmark RUN/weights.safetensors depths=[full,1/2,minimal]"""

_OPTIONS: Final = {
    "engine": text("auto"),
    "device": text("cpu"),
    "threads": whole(None),
    "precision": text("fp32"),
    "trust_code": switch(False),
    "batch": whole(None),
    "depths": text("auto"),
    "spread": number(0.02),
    "seconds": number(60.0),
    "memory": switch(True),
    "record": switch(True),
}


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Attributes:
        path: Folder of a bundle, file of weights, or name of a repository, as typed.
        values: Value of each key of the help.
    """

    path: str
    values: dict[str, Any]


def parse(argv: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        OptionError: No bundle or weights, an unknown key or a value of another type.
    """
    paths, values = parse_options(argv, _OPTIONS)
    return Options(one_path(paths, "bundles or weights"), values)


@dataclass(frozen=True)
class Outcome:
    """Results of a benchmark.

    Attributes:
        rows: What is known of each depth that was measured.
        found: Measurements by depth.
        record: Function that writes them, and returns where.
    """

    rows: Sequence[DepthFigures]
    found: Mapping[str, Measurement]
    record: Callable[[], Path]


def run(options: Options) -> None:
    """Measure, print and record.

    Raises:
        ValueError: A bundle, weights, a depth or an option that cannot be used.
        EngineError: The engine is not installed, or cannot open a graph.
    """
    for sentence in disturbances():
        _warn(sentence)
    path = find_weights_or_bundle(options.path, options.values["engine"])
    outcome = (_measure_weights if path.is_file() else _measure_bundle)(path, options.values)
    _print(outcome, options)
    # Last of all: what was measured is printed even if it cannot be written.
    print(f"written to {outcome.record()}" if options.values["record"] else "not written")


def _measure_bundle(folder: Path, values: Mapping[str, Any]) -> Outcome:
    bundle = read_bundle(folder)
    engine = choose_engine(values["engine"], bundle.graph_format)
    depths = _listed(values["depths"])
    found = measure_bundle(
        bundle,
        [str(entry.config) for entry in bundle.depths] if depths in (["auto"], ["all"]) else depths,
        engine,
        EngineOptions(values["device"], values["threads"], values["precision"], values["trust_code"]),
        _protocol(values, bundle.input.batch or 1),
        _warn,
    )
    rows = [
        DepthFigures(name, 2 * entry.gmacs, entry.figures.get("AP"), one.median_ms, one.memory_mb)
        for entry in bundle.depths
        if (one := found.get(name := str(entry.config)))
    ]

    def record() -> Path:
        record_measurements(bundle, found)
        return bundle.folder

    return Outcome(rows, found, record)


def _measure_weights(path: Path, values: Mapping[str, Any]) -> Outcome:
    # Only here: a bundle is measured without PyTorch.
    from anydepth.commands import weights_benchmark as benchmark
    from anydepth.weights.figures import SPECIALISED

    detector = benchmark.load_to_measure(path, values["device"], values["threads"])
    depths = ["ladder"] if values["depths"] == "auto" else _listed(values["depths"])
    engine = SPECIALISED if values["engine"] == "auto" else values["engine"]
    found = benchmark.measure_weights(
        detector, depths, engine, values["precision"], _protocol(values, batch=1), _warn
    )
    return Outcome(benchmark.figures_of(detector, found), found, partial(benchmark.record, detector, found))


def _listed(text: str) -> list[str]:
    """Return the depths of a list as it is typed."""
    return [name.strip() for name in text.strip("[]").split(",")]


def _protocol(values: Mapping[str, Any], batch: int) -> Protocol:
    given = values["batch"]
    return Protocol(batch if given is None else given, values["spread"], values["seconds"], values["memory"])


def _print(outcome: Outcome, options: Options) -> None:
    found, first = outcome.found, next(iter(outcome.found.values()))
    spread, aimed = max(one.spread for one in found.values()), options.values["spread"]
    print(f"{first.conditions}, {first.repetitions} passes per depth in turn, medians within {spread:.1%}")
    print(figures_table(outcome.rows))
    print(f"p90 in ms: {', '.join(f'{depth} {one.p90_ms:.1f}' for depth, one in found.items())}")
    if spread > aimed:
        _warn(
            f"the medians are not known within {aimed:.1%} after {options.values['seconds']:g} seconds; give "
            "seconds= more, or free the machine"
        )


def _warn(sentence: str) -> None:
    print(f"Warning: {sentence}", file=sys.stderr)


def main() -> None:
    """Console script ``anydepth-benchmark``."""
    start_console("anydepth-benchmark", HELP, lambda words: run(parse(words)))


if __name__ == "__main__":
    main()
