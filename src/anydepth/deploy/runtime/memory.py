"""Peak memory of a process that runs one depth of a bundle; the benchmark starts one for each depth."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

from anydepth.deploy.runtime.detector import load
from anydepth.deploy.runtime.engines import ENGINES


def peak_memory_mb() -> float | None:
    """Return the peak memory of this process in units of 10^6 bytes; None where it is not known."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: on Linux it begins with the peak of the process that started this one.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        resource = import_module("resource")
    except ImportError:  # Windows
        return None
    # Bytes on macOS.
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e6


def main() -> None:
    """Print what one depth adds to the peak memory of a process that has imported the engine, as JSON."""
    request = json.loads(sys.argv[1])
    import_module(ENGINES[request["engine"]])
    before = peak_memory_mb()
    detector = load(
        request["folder"],
        engine=request["engine"],
        device=request["device"],
        threads=request["threads"],
        precision=request["precision"],
        trust_code=request["trust_code"],
        # Hashing maps the file of weights into memory.
        verify=False,
    )
    images = np.random.default_rng(0).random((request["batch"], 3, *detector.input_size), np.float32)
    for _ in range(3):
        detector.run(images, request["depth"])
    after = peak_memory_mb()
    print(json.dumps(None if before is None or after is None else round(after - before, 1)))


if __name__ == "__main__":
    main()
