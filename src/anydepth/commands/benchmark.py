"""``anydepth-benchmark``: measure the depths of a bundle on this machine; needs no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anydepth.deploy.runtime.benchmark import (
    Protocol,
    disturbances,
    measure_bundle,
    record_measurements,
)
from anydepth.deploy.runtime.budget import DepthFigures, figures_table
from anydepth.deploy.runtime.bundle import Bundle, read_bundle
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.runtime.measurement import Measurement
from anydepth.utils.messages import join_few
from anydepth.utils.version import package_version

HELP: Final = """\
anydepth-benchmark BUNDLE [KEY=VALUE ...]

Measures latency, throughput and memory of each depth of a bundle on this machine, prints them and writes
them into
bundle.json, where budgets such as depth="<=8ms" find them. One measurement is one pass of the engine over
noise; depths take turns until the medians are known well enough.

  engine=onnxruntime  inference engine; or openvino
  device=cpu          with onnxruntime also cuda, tensorrt, coreml; with openvino gpu, npu
  threads=null        threads of one pass; null: as many as the engine chooses
  precision=fp32      auto: what the engine chooses
  batch=null          images of a pass; null: 1, or the number that the bundle was exported for
  depths=all          or a list, such as [full,1/2]
  spread=0.02         the medians' 95 % confidence intervals are at most twice this share wide
  seconds=60          after 20 passes of each depth, no further round begins after this time
  memory=true         whether memory is measured, each depth in a process of its own
  record=true         whether bundle.json is changed

example:
  anydepth-benchmark bundle engine=openvino threads=2"""

_DEFAULTS: Final[dict[str, object]] = {
    "engine": "onnxruntime",
    "device": "cpu",
    "threads": None,
    "precision": "fp32",
    "batch": None,
    "depths": "all",
    "spread": 0.02,
    "seconds": 60.0,
    "memory": True,
    "record": True,
}


class OptionError(ValueError):
    """The command line holds something that is not allowed; the message says what is."""


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Attributes:
        bundle: Folder of the bundle.
        values: Value of each key of the help.
    """

    bundle: Path
    values: dict[str, Any]


def parse(argv: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        OptionError: A missing bundle, an unknown key or a value of another type.
    """
    values, folders = dict(_DEFAULTS), []
    for text in argv:
        key, equals, value = text.partition("=")
        if not equals or (key not in _DEFAULTS and Path(text).exists()):
            folders.append(text)
        elif key not in _DEFAULTS:
            raise OptionError(f"got {text!r}, expected one of {', '.join(_DEFAULTS)}; see --help")
        else:
            values[key] = _convert(key, value)
    if len(folders) != 1:
        raise OptionError(f"got the bundles {join_few(folders) or '(none)'}, expected one; see --help")
    return Options(Path(folders[0]), values)


def _convert(key: str, text: str) -> object:
    default = _DEFAULTS[key]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise OptionError(f"got {key}={text!r}, expected true or false")
        return text.lower() == "true"
    if default is None and text.lower() in ("null", "none"):
        return None
    if isinstance(default, str):
        return text
    kind = float if isinstance(default, float) else int
    try:
        return kind(text)
    except ValueError:
        name = "a number" if kind is float else "a whole number"
        raise OptionError(f"got {key}={text!r}, expected {name}") from None


def run(options: Options) -> None:
    """Measure, print and record.

    Raises:
        ValueError: A bundle, depth or option that cannot be used.
        EngineError: The engine is not installed, or cannot open a graph.
    """
    values = options.values
    bundle = read_bundle(options.bundle)
    engine = EngineOptions(values["device"], values["threads"], values["precision"])
    batch = values["batch"] or bundle.input.batch or 1
    protocol = Protocol(batch, values["spread"], values["seconds"], values["memory"])
    depths = [str(entry.config) for entry in bundle.depths]
    if values["depths"] != "all":
        depths = [name.strip() for name in values["depths"].strip("[]").split(",")]
    for sentence in disturbances():
        print(f"Warning: {sentence}", file=sys.stderr)
    found = measure_bundle(bundle, depths, values["engine"], engine, protocol)
    _print(bundle, found, protocol)
    # Last of all: what was measured is printed even if it cannot be written.
    if values["record"]:
        record_measurements(bundle, found)
    print(f"{'written to' if values['record'] else 'not written to'} {bundle.folder}")


def _print(bundle: Bundle, found: Mapping[str, Measurement], protocol: Protocol) -> None:
    rows = [
        DepthFigures(
            str(entry.config), 2 * entry.gmacs, entry.figures.get("AP"), one.median_ms, one.memory_mb
        )
        for entry in bundle.depths
        if (one := found.get(str(entry.config)))
    ]
    first = next(iter(found.values()))
    threads = "threads of the engine's choice" if first.threads is None else f"{first.threads} threads"
    print(
        f"{first.engine} {first.engine_version}, {first.machine}, {first.device}, {threads}, "
        f"{first.precision}, "
        f"batch {first.batch}, {first.repetitions} passes per depth in turn, medians within "
        f"{max(one.spread for one in found.values()):.1%}"
    )
    print(figures_table(rows))
    print(f"p90 in ms: {', '.join(f'{depth} {one.p90_ms:.1f}' for depth, one in found.items())}")
    if max(one.spread for one in found.values()) > protocol.spread:
        print(
            f"Warning: the medians are not known within {protocol.spread:.1%} after {protocol.seconds:g} "
            "seconds; give seconds= more, or free the machine",
            file=sys.stderr,
        )


def main() -> None:
    """Console script ``anydepth-benchmark``."""
    argv = sys.argv[1:]
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP)
        raise SystemExit(0 if argv else 2)
    if "--version" in argv:
        print(f"anydepth-benchmark {package_version()}")
        return
    try:
        run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"\nError: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
