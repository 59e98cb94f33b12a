"""Count the multiply-accumulates and parameters of a forward pass, without computing it."""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from anydepth.layers.sketch import ReadRecorder, as_meta, copy_to_meta

# Frequent operations with their output and their MACs: inferring and counting them on ``meta`` would take
# most of the time. None is returned for arguments of another form, which are left to torch, and for shapes
# that do not fit, which it refuses.


def _add(first: object, second: object) -> tuple[Tensor, int] | None:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return None
    alike = first.shape == second.shape and first.dtype == second.dtype
    return (torch.empty_like(first), 0) if alike else None


def _linear(features: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, int] | None:
    # [..., I], [O, I] -> [..., O]
    if weight.dim() != 2 or features.shape[-1:] != weight.shape[1:]:
        return None
    return features.new_empty(*features.shape[:-1], weight.shape[0]), features.numel() * weight.shape[0]


def _conv2d(maps: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, int] | None:
    # [B, I, H, W], [O, I / groups, height, width] -> [B, O, H', W']
    if len(rest) != 5 or isinstance(rest[2], str) or maps.dim() != 4:
        return None
    _, stride, padding, dilation, groups = rest
    if maps.shape[1] != weight.shape[1] * groups:
        return None
    sides = zip(maps.shape[2:], weight.shape[2:], *map(_pair, (stride, padding, dilation)), strict=True)
    size = [(side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, gap in sides]
    if min(size) < 1:
        return None
    output = maps.new_empty(maps.shape[0], weight.shape[0], *size)
    return output, output.numel() * weight[0].numel()


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


_KNOWN_COUNTS: Mapping[object, Callable[..., tuple[Tensor, int] | None]] = {
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), _add),
    F.linear: _linear,
    F.conv2d: _conv2d,
}


@dataclass(frozen=True)
class ForwardCount:
    """Cost of one eval-mode forward pass.

    Attributes:
        macs: Multiply-accumulates; GFLOPs = 2 x GMACs. Counted are convolutions, matrix products (``mm``,
            ``addmm``, ``bmm``, ``baddbmm``, so every linear layer) and both products of scaled dot-product
            attention. Not counted are norms, activations, softmax, element-wise arithmetic, pooling,
            resizing, ``grid_sample`` and top-k.
        parameters: Number of parameters (scalars, not tensors) that at least one operation read.
        macs_by_module: MACs of every submodule that ran, by its name; those of a submodule are included in
            its parents'.
    """

    macs: int
    parameters: int
    macs_by_module: Mapping[str, int] = field(default_factory=dict, repr=False)


def count_macs(module: nn.Module, *args: object, **kwargs: object) -> int:
    """Count the multiply-accumulates of one eval-mode forward pass, see :func:`count_forward`.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, bias=False), torch.empty(1, 3, 10, 10))  # 8*8 places * 27 * 8
        13824
    """
    return count_forward(module, *args, **kwargs).macs


def count_forward(module: nn.Module, *args: object, **kwargs: object) -> ForwardCount:
    """Measure the cost of one eval-mode forward pass.

    The cost follows from shapes alone: the pass runs in a copy of the module with ``meta`` tensors in place
    of weights and buffers, so nothing is computed or copied. The module itself is not touched, not even
    during the call, because other threads may use it.

    Args:
        module: Any module whose forward works on the ``meta`` device: its control flow must not read values
            of tensors, and tensors it owns must be parameters or buffers.
        *args: Arguments of the forward; of tensors, also inside tuples, lists and dictionaries, only shape
            and type matter.
        **kwargs: Keyword arguments of the forward.

    Returns:
        The cost of the whole input batch.
    """
    sketch = copy_to_meta(module)
    parameters = {id(tensor): tensor.numel() for tensor in sketch.parameters()}
    meta_args, meta_kwargs = tree_map(as_meta, (args, kwargs))
    flops = FlopCounterMode(display=False)
    recorder = _MacRecorder(parameters)

    def macs() -> int:
        return recorder.macs + int(flops.get_total_flops()) // 2

    by_module = _count_by_module(sketch, macs)
    # no_grad and not inference_mode: a tensor that the module caches here may later take part in training.
    with torch.no_grad(), recorder, flops:
        sketch(*meta_args, **meta_kwargs)
    run = sum(parameters[key] for key in recorder.read)
    return ForwardCount(macs(), run, dict(by_module))


class _MacRecorder(ReadRecorder):
    """Counts the MACs of operations in ``_KNOWN_COUNTS``, and records which tensors operations receive."""

    def __init__(self, known: Container[int]) -> None:
        super().__init__(known)
        self.macs = 0

    def compute(
        self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Return the result of an operation, and count it if it is a known one."""
        counted = _KNOWN_COUNTS.get(func)
        found = counted(*args) if counted is not None and not kwargs else None
        if found is None:
            return super().compute(func, args, kwargs)
        output, macs = found
        self.macs += macs
        return output


def _count_by_module(module: nn.Module, macs: Callable[[], int]) -> Mapping[str, int]:
    """Return a mapping that a pass fills with the MACs of each submodule by its name, from those so far.

    The counter's own figures by module come from hooks on the modules of the whole process, so that a pass in
    another thread would be counted as well.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    begun: list[int] = []

    def hook_for(name: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            counts[name] += macs() - begun.pop()

        return add

    for name, part in module.named_modules():
        if name:
            part.register_forward_pre_hook(lambda *_: begun.append(macs()))
            part.register_forward_hook(hook_for(name))
    return counts
