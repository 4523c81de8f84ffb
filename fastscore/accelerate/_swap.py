"""How a module becomes a fused one and itself again: its class is exchanged, everything else stays where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn


@dataclass(frozen=True)
class Finding:
    """A part of a module that a fused op can take over.

    Attributes:
        part: attribute path below the module, of what is replaced; "" is the module itself.
        kind: "group_norm_silu", "attention" or "resample".
        by: what runs in its place.
        along: attribute paths of further modules that are not called any more.
    """

    part: str
    kind: str
    by: str
    along: tuple[str, ...] = ()


class Fused:
    """Base of the classes that stand in front of somebody's class: they override one method and add no parameter.

    A fused method goes back to the one that it overrides wherever it cannot do the same: for arguments it does not
    know, and where somebody has put a hook on a layer that it would not call.
    """

    kind: ClassVar[str] = "group_norm_silu"
    """What the class is for, in reports on why it was left alone."""
    names: ClassVar[tuple[str, ...]] = ()
    """Names of the classes it is for: of the class that defines `methods`, so that a subclass may do so no more."""
    methods: ClassVar[tuple[str, ...]] = ("forward",)
    mixin: ClassVar[type[Fused]]
    stock: ClassVar[type[nn.Module]]

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        """What it would take over in `module`, why it cannot, or None where there is nothing of the kind."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what the fused method needs, after the class has been exchanged: attributes named `_fused_...`."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle cannot find a class that was made at run time
        mixins = mixins_of(type(self))
        return _new, (mixins, stock_of(type(self))), self.__dict__


_CLASSES: dict[tuple[type[Fused], type[nn.Module]], type[nn.Module]] = {}


def fused_class(mixin: type[Fused], stock: type[nn.Module]) -> type[nn.Module]:
    """The subclass of both, one for each pair, so that torch.compile sees equal types of equal layers."""
    if (mixin, stock) not in _CLASSES:
        own = {"mixin": mixin, "stock": stock, "__module__": __name__}
        _CLASSES[mixin, stock] = type(f"Fused{stock.__name__}", (mixin, stock), own)
    return _CLASSES[mixin, stock]


def swap(module: Any, mixin: type[Fused]) -> None:
    """Exchange the class of `module`."""
    module.__class__ = fused_class(mixin, type(module))
    module.prepare()


def unswap(module: Any) -> None:
    """The opposite."""
    for name in [name for name in vars(module) if name.startswith("_fused_")]:
        delattr(module, name)
    module.__class__ = module.stock


def mixins_of(cls: Any) -> list[type[Fused]]:
    """What stands in front of somebody's class, the outermost first."""
    found = []
    while issubclass(cls, Fused):
        found.append(cls.mixin)
        cls = cls.stock
    return found


def stock_of(cls: Any) -> type[nn.Module]:
    """Somebody's class."""
    while issubclass(cls, Fused):
        cls = cls.stock
    stock: type[nn.Module] = cls
    return stock


def _new(mixins: list[type[Fused]], stock: type[nn.Module]) -> Any:
    cls = stock
    for mixin in reversed(mixins):
        cls = fused_class(mixin, cls)
    return cls.__new__(cls)


def definer(module: object, method: str) -> type | None:
    """The class that `module` has a method from, Fused ones aside; None if there is none."""
    for cls in type(module).__mro__:
        if method in vars(cls) and not issubclass(cls, Fused):
            return cls
    return None


def why_unlike(module: nn.Module, mixin: type[Fused], attributes: tuple[str, ...]) -> str | None:
    """Why `module` is not what the class name promises, or None: a method or an attribute is another's or missing."""
    for method in mixin.methods:
        cls = definer(module, method)
        if cls is None or cls.__name__ not in mixin.names:
            return f"its {method}() is not that of {mixin.names[0]}"
        if method in vars(module):
            return f"somebody has replaced its {method}()"
    missing = [name for name in attributes if not hasattr(module, name)]
    return f"it has no {', '.join(missing)}" if missing else None


def hooked(*modules: Any) -> bool:
    """Whether anybody watches one of these modules: then it has to be called."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return True
    return False
