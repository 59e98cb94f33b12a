"""Modules that must run where PyTorch is not installed."""

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))

# All but the engine that is PyTorch, which is imported when it is chosen.
IMPORT_ALL = """
import importlib, pkgutil, sys
roots = sys.argv[1:]
imported = []
for root in roots:
    module = importlib.import_module(root)
    parts = pkgutil.walk_packages(getattr(module, "__path__", []), root + ".")
    names = [root, *(part.name for part in parts if not part.name.endswith(".aotinductor_engine"))]
    imported += [importlib.import_module(name).__name__ for name in names]
print(len(imported), *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_what_runs_a_deployed_detector_imports_no_torch() -> None:
    # The contract reads import statements; this sees what is imported in the end, also by other packages.
    (contract,) = (
        contract
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        if contract["name"] == "What runs a deployed detector never imports torch"
    )
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *contract["source_modules"]],
        capture_output=True,
        text=True,
        check=True,
    )
    count, *packages = done.stdout.split()
    assert int(count) > len(contract["source_modules"])
    assert {"numpy", "PIL", "anydepth"} <= set(packages)
    assert not set(contract["forbidden_modules"]) & set(packages)
