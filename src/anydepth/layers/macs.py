"""Count the multiply-accumulates and parameters of a forward pass, without computing it."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    reads = _ReadRecorder(parameters)
    flops_by_module = _count_by_module(sketch, flops)
    # no_grad and not inference_mode: a tensor that the module caches here may later take part in training.
    with torch.no_grad(), reads, flops:
        sketch(*meta_args, **meta_kwargs)
    run = sum(parameters[name].numel() for name in reads.read)
    by_module = {name: count // 2 for name, count in flops_by_module.items()}
    return ForwardCount(int(flops.get_total_flops()) // 2, run, by_module)


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


class _ReadRecorder(TorchFunctionMode):
    """Records which parameters operations receive.

    Forward hooks would miss some: fused modules such as ``nn.MultiheadAttention`` pass the weights of a child
    to a function without calling the child.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self.read: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        known = _KNOWN_SHAPES.get(func) if args else None
        result = (known or func)(*args, **(kwargs or {}))
        # Queries of shape, type or device are intercepted too, but they return no tensor.
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            leaves = tree_leaves((args, kwargs or {}))
            self.read.update(self._names[id(leaf)] for leaf in leaves if id(leaf) in self._names)
        return result


def _as_meta(value: object) -> object:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
