"""Checkpoints of networks whose classes are gone when the file is read."""

import argparse
import datetime
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

PACKAGE = "foreign_yolo"


@contextmanager
def foreign_classes() -> Iterator[types.ModuleType]:
    """A package of network classes that can be imported inside the block only."""
    package = types.ModuleType(PACKAGE)
    bases = {"DetectionModel": nn.Module, "Block": nn.Module, "Args": object, "Names": dict}
    for name, base in bases.items():
        setattr(package, name, type(name, (base,), {"__module__": PACKAGE}))
    sys.modules[PACKAGE] = package
    try:
        yield package
    finally:
        del sys.modules[PACKAGE]


def network_of(foreign: types.ModuleType, state: dict[str, Tensor]) -> nn.Module:
    """A network of foreign classes that has this state dict."""
    root: nn.Module = foreign.DetectionModel()
    for key, value in state.items():
        *path, leaf = key.split(".")
        module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, foreign.Block())
            module = module.get_submodule(name)
        if value.is_floating_point() and "running" not in leaf:
            module.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=False))
        else:
            module.register_buffer(leaf, value.clone())
    return root


def checkpoint_of(foreign: types.ModuleType, **networks: nn.Module | None) -> dict[str, object]:
    args = foreign.Args()
    args.lr0 = 0.01
    return {
        "epoch": -1,
        **networks,
        "train_args": args,
        "names": foreign.Names({0: "helmet"}),
        "hyper": argparse.Namespace(a=1),
        "date": datetime.datetime(2025, 1, 1),
        "path": Path("best.pt"),
        "seen": {1, 2},
    }
