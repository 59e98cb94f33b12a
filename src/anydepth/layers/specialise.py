"""Specialisation: the network that runs for fixed arguments, without everything else.

A module that has a cheaper form of itself for a fixed flag of its stage provides it, see
:class:`Specialisable`; nothing here knows a module of a detector.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from anydepth.layers.mode import ModuleT, copy_for_eval
from anydepth.layers.sketch import ReadRecorder, as_meta, copy_to_meta

# Argument of a forward that carries the flag of the stage.
_FLAG = "refine"
# Modules that are indexed or iterated, so that the places of their parts matter.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Form:
    """Form in which a module is wanted.

    Attributes:
        refine: Flag with which the module is always called.
        share_weights: Whether kernels that two norm sets use keep their values, so that the networks of
            several depths have them in common; otherwise every norm is folded.
    """

    refine: bool
    share_weights: bool = False


@runtime_checkable
class Specialisable(Protocol):
    """A module that has a cheaper form of itself if its flag is fixed."""

    def specialised(self, form: Form) -> nn.Module:
        """Return the cheaper form, which is called with the same arguments as the module.

        It may share tensors with the module, which must not be changed. The module itself means that only its
        parts have cheaper forms.
        """


class NotRun(nn.Module):
    """Takes the place of a module that does not run and holds tensors.

    Args:
        name: Class name of that module.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *_: object, **__: object) -> Tensor:
        """Refuse to run.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f"got a call of a {self.name} that does not run at the depth that this network was specialised "
            "for; specialise the original for the depth that needs it"
        )

    def extra_repr(self) -> str:
        """Return the name of the module that does not run."""
        return self.name


def specialise(
    module: ModuleT,
    *args: object,
    share_weights: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
    **kwargs: object,
) -> ModuleT:
    """Return the network that runs in eval mode if a module is called with these arguments.

    The module runs once on the ``meta`` device, which shows what runs and with which flags. What does not run
    is left out with its tensors; a module that ran with one flag, and knows a cheaper form for it, is
    replaced by this form. Structure and names of everything else stay, hooks are left out.

    Args:
        module: Any module whose forward works on the ``meta`` device, see
            :func:`anydepth.layers.macs.count_forward`; it is not changed, and the result shares nothing with
            it.
        *args: Arguments of the forward; of tensors only the shape matters.
        share_weights: See :attr:`Form.share_weights`.
        memory_format: Layout of the kernels of convolutions, which their outputs follow.
        **kwargs: Keyword arguments of the forward.

    Returns:
        A network in eval mode whose parameters need no gradients.
    """
    network = copy_for_eval(module)
    # Tensors made within inference mode could never be changed outside it, e.g. by load_state_dict.
    with torch.inference_mode(False), torch.no_grad():
        trace = _trace(copy_to_meta(network), args, kwargs)
        # The outermost module does not replace itself, so its type stays.
        made = cast(ModuleT, _Builder(trace, share_weights).build_parts(network, trace.sketch))
        _own_tensors(made.modules(), memory_format)
    return made


@dataclass(frozen=True)
class _Trace:
    """Record of one pass through a sketch.

    Attributes:
        sketch: The sketch.
        called: ``id`` of its modules that were called, each with the flags that it got.
        seen: ``id`` of its tensors that were used.
    """

    sketch: nn.Module
    called: dict[int, set[bool]]
    seen: set[int]

    def runs(self, part: nn.Module) -> bool:
        """Return whether a part of the sketch, or anything inside it, was called or used."""
        return any(
            id(inner) in self.called or any(id(tensor) in self.seen for tensor in _tensors(inner))
            for inner in part.modules()
        )


def _trace(sketch: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> _Trace:
    # In float32, because the types of weights and images must agree, and say nothing about what runs.
    sketch.float()
    called: dict[int, set[bool]] = {}
    kinds = {type(part) for part in sketch.modules()}
    signatures = {kind: inspect.signature(kind.forward) for kind in kinds}
    for part in sketch.modules():
        _clear_hooks(part)
        record = _flag_recorder(part, signatures[type(part)], called)
        part.register_forward_pre_hook(record, with_kwargs=True)
    recorder = ReadRecorder({id(tensor) for part in sketch.modules() for tensor in _tensors(part)})
    meta_args, meta_kwargs = tree_map(as_meta, (args, kwargs))
    with recorder:
        sketch(*meta_args, **meta_kwargs)
    return _Trace(sketch, called, recorder.seen)


def _flag_recorder(
    part: nn.Module, signature: inspect.Signature, called: dict[int, set[bool]]
) -> Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]:
    def record(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        flags = called.setdefault(id(part), set())
        if _FLAG in signature.parameters:
            bound = signature.bind(part, *args, **kwargs)
            bound.apply_defaults()
            flag = bound.arguments[_FLAG]
            # The parts above the stages get the flags of several stages.
            if isinstance(flag, bool):
                flags.add(flag)

    return record


class _Builder:
    """Builds a network out of a copy of a module, in place, as the trace of its sketch tells.

    Args:
        trace: Trace of a sketch with the structure of the copy.
        share_weights: See :attr:`Form.share_weights`.
    """

    def __init__(self, trace: _Trace, share_weights: bool) -> None:
        self.trace = trace
        self._share_weights = share_weights
        # A module that is registered twice is one module in the result, too.
        self._made: dict[int, nn.Module] = {}

    def build(self, part: nn.Module, sketch: nn.Module) -> nn.Module:
        """Return what takes the place of a part of the copy, whose sketch is ``sketch``."""
        if id(sketch) not in self._made:
            self._made[id(sketch)] = self._choose(part, sketch)
        return self._made[id(sketch)]

    def build_parts(self, part: nn.Module, sketch: nn.Module) -> nn.Module:
        """Return a part of the copy with its own parts built, and without tensors that were not used."""
        for kind in ("_parameters", "_buffers"):
            tensors, sketched = part.__dict__[kind], sketch.__dict__[kind]
            part.__dict__[kind] = {
                key: tensor if id(sketched[key]) in self.trace.seen else None
                for key, tensor in tensors.items()
            }
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = self.build(child, cast(nn.Module, sketch._modules[name]))
        return part

    def _choose(self, part: nn.Module, sketch: nn.Module) -> nn.Module:
        if not isinstance(part, _CONTAINERS) and _holds_tensors(part) and not self.trace.runs(sketch):
            return NotRun(type(part).__name__)
        flags = self.trace.called.get(id(sketch), set())
        if isinstance(part, Specialisable) and len(flags) == 1:
            made = part.specialised(Form(next(iter(flags)), self._share_weights))
            if made is not part:
                return made.eval()
        return self.build_parts(part, sketch)


def _own_tensors(parts: Iterable[nn.Module], memory_format: torch.memory_format) -> None:
    """Give modules tensors and hooks of their own; tensors that were one stay one."""
    known: dict[int, Tensor] = {}

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            layout = memory_format if tensor.ndim == 4 else torch.contiguous_format
            copy = tensor.detach().clone(memory_format=layout)
            is_parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
        return known[id(tensor)]

    for part in parts:
        for kind in ("_parameters", "_buffers"):
            part.__dict__[kind] = {
                key: None if tensor is None else own(tensor) for key, tensor in part.__dict__[kind].items()
            }
        part._non_persistent_buffers_set = set(part._non_persistent_buffers_set)
        _clear_hooks(part)


def _clear_hooks(part: nn.Module) -> None:
    """Give a module new dictionaries of hooks, which a copy has in common with its original."""
    for name in part.__dict__:
        if "_hooks" in name:
            part.__dict__[name] = OrderedDict()


def _tensors(part: nn.Module) -> list[Tensor]:
    """Return the tensors of a module itself, without those of its parts."""
    found = [*part._parameters.values(), *part._buffers.values()]
    return [tensor for tensor in found if tensor is not None]


def _holds_tensors(part: nn.Module) -> bool:
    return any(_tensors(inner) for inner in part.modules())
