"""Count the multiply-accumulates and parameters of a forward pass, without computing it."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from anydepth.layers.sketch import ReadRecorder, as_meta, copy_to_meta


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
    reads = ReadRecorder(parameters)
    flops_by_module = _count_by_module(sketch, flops)
    # no_grad and not inference_mode: a tensor that the module caches here may later take part in training.
    with torch.no_grad(), reads, flops:
        sketch(*meta_args, **meta_kwargs)
    run = sum(parameters[key] for key in reads.read)
    by_module = {name: count // 2 for name, count in flops_by_module.items()}
    return ForwardCount(int(flops.get_total_flops()) // 2, run, by_module)


def _count_by_module(module: nn.Module, flops: FlopCounterMode) -> Mapping[str, int]:
    """Return a mapping that a pass under ``flops`` fills with the FLOPs of each submodule by its name.

    The counter's own figures by module come from hooks on the modules of the whole process, so that a pass in
    another thread would be counted as well.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    begun: list[int] = []

    def hook_for(name: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            counts[name] += int(flops.get_total_flops()) - begun.pop()

        return add

    for name, part in module.named_modules():
        if name:
            part.register_forward_pre_hook(lambda *_: begun.append(int(flops.get_total_flops())))
            part.register_forward_hook(hook_for(name))
    return counts
