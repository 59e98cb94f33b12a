"""Count the multiply-accumulates and parameters of a forward pass, without computing it."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from anydepth.layers.mode import copy_for_eval


def _keep_shape(tensor: Tensor, *_: object, **__: object) -> Tensor:
    return tensor


def _grid_sample_shape(images: Tensor, grid: Tensor, *_: object, **__: object) -> Tensor:
    return images.new_empty(*images.shape[:2], *grid.shape[1:-1])


# Operations that are not counted and whose output shape follows from their first arguments: inferring it on
# ``meta`` would take most of the time.
_KNOWN_SHAPES: Mapping[object, Callable[..., Tensor]] = {
    **dict.fromkeys((F.batch_norm, F.layer_norm, F.relu, F.silu, F.gelu), _keep_shape),
    F.grid_sample: _grid_sample_shape,
}


# The most frequent of the others, with their output and their MACs, for the same reason. None is returned for
# arguments of another form, which are left to torch, and for shapes that do not fit, which it refuses.


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
    sketch = _copy_to_meta(module)
    parameters = dict(sketch.named_parameters())
    meta_args, meta_kwargs = tree_map(_as_meta, (args, kwargs))
    flops = FlopCounterMode(display=False)
    recorder = _Recorder(parameters)

    def macs() -> int:
        return recorder.macs + int(flops.get_total_flops()) // 2

    by_module = _count_by_module(sketch, macs)
    # no_grad and not inference_mode: a tensor that the module caches here may later take part in training.
    with torch.no_grad(), recorder, flops:
        sketch(*meta_args, **meta_kwargs)
    run = sum(parameters[name].numel() for name in recorder.read)
    return ForwardCount(macs(), run, dict(by_module))


def _copy_to_meta(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose tensors are on ``meta``; what shares a tensor shares it there, too."""
    sketch = copy_for_eval(module)
    known: dict[int, Tensor] = {}

    def replace(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        return known.setdefault(id(tensor), empty)

    for part in sketch.modules():
        for name in ("_parameters", "_buffers"):
            part.__dict__[name] = {key: replace(tensor) for key, tensor in part.__dict__[name].items()}
        # Dictionaries of its own for the hooks that count.
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            part.__dict__[name] = OrderedDict(part.__dict__[name])
    return sketch


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


class _Recorder(TorchFunctionMode):
    """Records which parameters operations receive, and counts the MACs of those in ``_KNOWN_COUNTS``.

    Forward hooks would miss some: fused modules such as ``nn.MultiheadAttention`` pass the weights of a child
    to a function without calling the child.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self.read: set[str] = set()
        self.macs = 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = self._compute(func, args, kwargs or {})
        # Queries of shape, type or device are intercepted too, but they return no tensor.
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            leaves = tree_leaves((args, kwargs or {}))
            self.read.update(self._names[id(leaf)] for leaf in leaves if id(leaf) in self._names)
        return result

    def _compute(
        self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        counted = _KNOWN_COUNTS.get(func)
        found = counted(*args) if counted is not None and not kwargs else None
        if found is not None:
            output, macs = found
            self.macs += macs
            return output
        known = _KNOWN_SHAPES.get(func) if args else None
        return (known or func)(*args, **kwargs)


def _as_meta(value: object) -> object:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
