"""Turn a network without memory into one that holds weights, without building it again."""

import gc
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def materialise(build: Callable[[], NetworkT], sketch: NetworkT, weights: Mapping[str, Tensor]) -> NetworkT:
    """Return a network on the CPU that holds copies of weights.

    Args:
        build: Builds the network with memory, with values that are replaced.
        sketch: The same network on ``meta``; it is used up.
        weights: Tensors by the keys of its ``state_dict``, in their shapes; other types are converted.

    Returns:
        The sketch itself, filled; or a new network if the weights do not hold all that the sketch lacks, as
        with buffers that are not saved, or if it has one tensor under two names.
    """
    if not _shares_tensors(sketch):
        empty = sketch.state_dict()
        filled = {key: torch.empty_like(empty[key], device="cpu").copy_(weights[key]) for key in empty}
        sketch.load_state_dict(filled, assign=True)
        if not _reaches_meta(sketch):
            return sketch
    network = build()
    network.load_state_dict(dict(weights))
    return network


def _shares_tensors(network: nn.Module) -> bool:
    """Return whether a tensor has two names, which filling by names would split into two."""
    named = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    return len({id(tensor) for _, tensor in named}) < len(named)


def _reaches_meta(network: nn.Module) -> bool:
    """Return whether anything that belongs to a network, in whatever object, is a tensor on ``meta``."""
    seen: set[int] = set()
    waiting: list[object] = [network]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor) and one.is_meta:
            return True
        waiting += _references(one)
    return False


def _references(one: object) -> Iterable[object]:
    # Not the globals of a function, from which everything can be reached.
    if isinstance(one, FunctionType):
        return (one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__)
    return gc.get_referents(one)
