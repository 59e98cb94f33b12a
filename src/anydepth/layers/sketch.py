"""Sketch of a module: a copy whose tensors have shapes and no values, for passes that compute nothing."""

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from anydepth.layers.mode import copy_for_eval

# Every dictionary of hooks that a forward pass reads.
_FORWARD_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


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


def copy_to_meta(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose tensors are on ``meta``; what shares a tensor shares it there, too.

    Hooks of the module run in the copy; hooks that the copy gets do not run in the module.
    """
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
        for name in _FORWARD_HOOKS:
            part.__dict__[name] = OrderedDict(part.__dict__[name])
    return sketch


def as_meta(value: object) -> object:
    """Return a tensor of the same shape and type on ``meta``; anything else as it is."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


class ReadRecorder(TorchFunctionMode):
    """Records which tensors operations receive.

    Forward hooks would miss some: fused modules such as ``nn.MultiheadAttention`` pass the weights of a child
    to a function without calling the child.

    Args:
        known: ``id`` of the tensors that are recorded.

    Attributes:
        read: ``id`` of those from which an operation computed a tensor.
        seen: ``id`` of those and of the ones that were only asked for their shape, type or device.
    """

    def __init__(self, known: Container[int]) -> None:
        super().__init__()
        self._known = known
        self.read: set[int] = set()
        self.seen: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = self.compute(func, args, kwargs or {})
        leaves = tree_leaves((args, kwargs or {}))
        found = {id(leaf) for leaf in leaves if id(leaf) in self._known}
        self.seen |= found
        # Queries of shape, type or device are intercepted too, but they return no tensor.
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.read |= found
        return result

    def compute(
        self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Return the result of an operation, of which only shape and type matter."""
        known = _KNOWN_SHAPES.get(func) if args else None
        return (known or func)(*args, **kwargs)
