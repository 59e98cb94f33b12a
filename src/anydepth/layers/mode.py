"""Eval mode of a module without changing the module."""

from types import MethodType
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Registered under this name, torch.compile's wrapper holds the module that it compiled.
_COMPILED = "_orig_mod"


def in_eval_mode(module: ModuleT) -> ModuleT:
    """Return a module in eval mode that computes with the same tensors; the module itself if it is in it.

    Switching the module and back would be seen by every other thread that uses it, whose norms would then
    change their statistics. The copy costs no memory worth mentioning, and a millisecond for hundreds of
    modules: it has modules of its own, but shares their parameters, buffers, hooks and other attributes,
    also after ``module`` was moved to another device or got other weights. A submodule that ``torch.compile``
    wraps runs uncompiled in the copy.

    Args:
        module: Any module; it is not changed.

    Raises:
        ValueError: A submodule cannot be copied, because its forward belongs to the instance.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> copy = in_eval_mode(norm)
        >>> norm.training, copy.training, copy.weight is norm.weight, in_eval_mode(copy) is copy
        (True, False, True, True)
    """
    if not any(part.training for part in module.modules()):
        return module
    return copy_for_eval(module)


def copy_for_eval(module: ModuleT) -> ModuleT:
    """Return a copy in eval mode with modules of its own and the same tensors; see :func:`in_eval_mode`.

    Raises:
        ValueError: A submodule cannot be copied.
    """
    # A submodule that is registered twice is one module in the copy, too.
    copied: ModuleT = _copy(module, {})  # type: ignore[assignment]
    return copied


def _copy(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) in copies:
        return copies[id(module)]
    compiled = module._modules.get(_COMPILED)
    if compiled is not None:
        return _copy(compiled, copies)
    copy: nn.Module = module.__new__(type(module))
    copies[id(module)] = copy
    attributes = copy.__dict__
    attributes.update(module.__dict__)
    # What nn.Module.compile() left is bound to the original, and so is a forward of the instance.
    attributes["_compiled_call_impl"] = None
    forward = attributes.get("forward")
    if forward is not None:
        if not (isinstance(forward, MethodType) and forward.__self__ is module):
            raise ValueError(
                f"got a {type(module).__name__} in training mode whose forward was replaced, so that no copy "
                "of it can run in eval mode; call detector.eval() before"
            )
        attributes["forward"] = MethodType(forward.__func__, copy)
    attributes["training"] = False
    attributes["_modules"] = {
        name: None if part is None else _copy(part, copies) for name, part in module._modules.items()
    }
    return copy
