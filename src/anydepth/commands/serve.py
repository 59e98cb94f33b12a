"""``anydepth-serve``: detect with a bundle over HTTP; needs no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from anydepth.commands.plain_options import (
    Option,
    OptionError,
    number,
    one_path,
    parse_options,
    start_console,
    switch,
    text,
    texts,
    whole,
)
from anydepth.deploy.runtime.bundle import read_bundle
from anydepth.deploy.runtime.engines import choose_engine
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.runtime.hub_bundle import find_bundle
from anydepth.utils.optional_packages import needing_packages

if TYPE_CHECKING:
    from anydepth.deploy.serve.server import ServerOptions

SETTINGS: Final = """\
  engine=auto         inference engine: onnxruntime, openvino or aotinductor, by the bundle's format
  device=cpu          with onnxruntime also cuda, tensorrt, coreml; with openvino gpu, npu
  threads=null        threads of one pass; null: as many as the engine chooses
  precision=fp32      auto: what the engine chooses
  trust_code=false    whether machine code in a bundle of format=torch may run
  host=127.0.0.1      this machine alone; or 0.0.0.0: every network
  port=8000           1024 to 65535
  names=[]            host names under which it may be reached; by default those of this machine if it
                      listens there alone, else any
  workers=1           processes that detect
  batch=8             most pictures of a pass; those of one depth that wait together share it
  wait=0              milliseconds that a request waits for others to share a pass with
  upload=16           largest request in MiB
  pixels=40           largest picture in millions of pixels
  queue=64            requests that are answered or wait at once; more are refused
  timeout=30          seconds after which a request that still waits is refused
  memory_limit=null   MiB of the weights of open depths; null: all depths are open from the start"""

HELP: Final = f"""\
anydepth-serve BUNDLE [KEY=VALUE ...]

Serves a bundle: a folder, or a repository OWNER/NAME of the Hugging Face hub (extra hub).

Detects in pictures that are sent to /predict, at the depth or within the budget of each request. /info
describes the depths, /metrics counts, /health says whether it is ready.

{SETTINGS}
  measure=false       whether latency is measured at the start where the bundle does not know it, for budgets
                      such as depth="<=8ms"

example:
  anydepth-serve bundle engine=openvino threads=2
  curl -F image=@photo.jpg -F depth=1/2 http://127.0.0.1:8000/predict"""

OPTIONS: Final[Mapping[str, Option]] = {
    "engine": text("auto"),
    "device": text("cpu"),
    "threads": whole(None),
    "precision": text("fp32"),
    "trust_code": switch(False),
    "host": text("127.0.0.1"),
    "port": whole(8000),
    "names": texts(),
    "workers": whole(1),
    "batch": whole(8),
    "wait": number(0.0),
    "upload": number(16.0),
    "pixels": number(40.0),
    "queue": whole(64),
    "timeout": number(30.0),
    "memory_limit": number(None),
    "measure": switch(False),
}


def server_options(bundle: str, values: Mapping[str, Any]) -> "ServerOptions":
    """Return what a server is told, after measuring latency if that is wanted.

    Args:
        bundle: Folder of a bundle, or name of a repository of the hub.
        values: Value of each option.

    Raises:
        ValueError: A bundle or a setting that cannot be used.
        MissingPackageError: The packages of the server are not installed.
    """
    with needing_packages("serving", "it with `pip install litserve`, or the extra `serve` of this package"):
        from anydepth.deploy.serve.api import DetectorSource
        from anydepth.deploy.serve.measured import measure_missing
        from anydepth.deploy.serve.requests import Limits
        from anydepth.deploy.serve.server import ServerOptions
    options = EngineOptions(values["device"], values["threads"], values["precision"], values["trust_code"])
    limits = Limits(
        _whole_units(values, "upload", 2**20), _whole_units(values, "pixels", 10**6), values["queue"]
    )
    found = read_bundle(find_bundle(bundle))
    engine = choose_engine(values["engine"], found.graph_format)
    measured = measure_missing(found, engine, options) if values["measure"] else {}
    return ServerOptions(
        DetectorSource(found.folder.resolve(), engine, options, values["memory_limit"], measured),
        limits,
        values["host"],
        values["port"],
        values["names"],
        values["workers"],
        values["batch"],
        values["wait"],
        values["timeout"],
    )


def _whole_units(values: Mapping[str, Any], key: str, unit: int) -> int:
    """Return a number of millions as a whole number.

    Raises:
        OptionError: Not above 0, or no number.
    """
    if not 0 < values[key] < math.inf:
        raise OptionError(f"got {key}={values[key]:g}, expected a number above 0")
    return max(1, int(values[key] * unit))


def run(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C.

    Raises:
        ValueError: A bundle or a setting that cannot be used.
    """
    folders, values = parse_options(argv, OPTIONS)
    options = server_options(one_path(folders), values)
    from anydepth.deploy.serve.server import build_server, run_server

    run_server(build_server(options), options)


def main() -> None:
    """Console script ``anydepth-serve``."""
    start_console("anydepth-serve", HELP, run)


if __name__ == "__main__":
    main()
