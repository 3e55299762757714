"""While a function is traced, calls of modules are marked: of Flax linen and NNX, Equinox and Haiku.

linen and Haiku open a named scope for each call and hand it to an interceptor. NNX and Equinox do neither: for the
time of the trace the `__call__` of their classes is replaced by one that does both. A library that the program has
not imported is not imported here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxstab.observation.marks import Tracing, is_tracing, mark_outputs

PATH = "_jaxstab_path"
"""Attribute of an NNX module, for the time of a call of its root: splitting and merging take it along."""

_is_observing = jax.make_user_context(False)
_local = threading.local()
_lock = threading.Lock()
_replaced: list[tuple[type, Any]] = []
_users = 0


@contextlib.contextmanager
def marked_calls() -> Iterator[None]:
    """Every call of a module that this thread traces here has its outputs marked.

    Part of the key of JAX's caches meanwhile: no trace made without marks is taken, and none with marks is left.
    Inside another of these it does nothing.
    """
    if is_tracing():
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, intercept in (("flax.linen", _intercept_linen), ("haiku", _intercept_haiku)):
            if name in sys.modules:
                stack.enter_context(sys.modules[name].intercept_methods(intercept))
        stack.enter_context(_replaced_classes())
        stack.enter_context(_is_observing(True))
        stack.enter_context(Tracing())
        yield


def _stack() -> list[Any]:
    """Calls that this thread is in, outermost first: (module, name of the method)."""
    if not hasattr(_local, "calls"):
        _local.calls = []
    return _local.calls


@contextlib.contextmanager
def _inside(module: Any, method: str) -> Iterator[None]:
    _stack().append((module, method))
    try:
        yield
    finally:
        _stack().pop()


def _is_super(module: Any, method: str) -> bool:
    """Whether the call is one that the same method of the same object makes: super().__call__ is no call apart."""
    stack = _stack()
    return bool(stack) and stack[-1][0] is module and stack[-1][1] == method


def _intercept_linen(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    return _intercept(call, args, kwargs, context, hidden=("setup",))


def _intercept_haiku(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    return _intercept(call, args, kwargs, context, hidden=())


def _intercept(call: Any, args: Any, kwargs: Any, context: Any, hidden: tuple[str, ...]) -> Any:
    module, method = context.module, context.method_name
    private = method.startswith("_") and method != "__call__"
    if private or method in hidden or not is_tracing() or _is_super(module, method):
        return call(*args, **kwargs)
    with _inside(module, method):
        return mark_outputs(call(*args, **kwargs), type(module).__name__)


@contextlib.contextmanager
def _replaced_classes() -> Iterator[None]:
    """The `__call__` of NNX and Equinox classes replaced; put back when the last thread leaves."""
    global _users
    with _lock:
        _users += 1
        for owner in _classes() if _users == 1 else ():
            original = vars(owner)["__call__"]
            _replaced.append((owner, original))
            type.__setattr__(owner, "__call__", _marking(_without_scope(owner, original)))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            while _users == 0 and _replaced:
                owner, original = _replaced.pop()
                type.__setattr__(owner, "__call__", original)


def _classes() -> list[type]:
    """Classes that define a call of their own. Equinox's wrappers of functions are no modules of a network."""
    found: dict[type, None] = {}
    waiting = [sys.modules[name].Module for name in ("flax.nnx", "equinox") if name in sys.modules]
    while waiting:
        owner = waiting.pop()
        if owner not in found:
            found[owner] = None
            waiting += type.__subclasses__(owner)
    return [
        owner
        for owner in found
        if "__call__" in vars(owner)
        and not owner.__module__.startswith("equinox._")
        and not getattr(vars(owner)["__call__"], "__isabstractmethod__", False)
    ]


def _without_scope(owner: type, original: Any) -> Any:
    """The call without the scope that Equinox's own layers open inside it, eqx.nn.MLP say: ours takes its place."""
    cells = getattr(original, "__closure__", None) or ()
    is_scoped = any(isinstance(cell.cell_contents, type(jax.named_scope("_"))) for cell in cells)
    is_own = owner.__module__.startswith("equinox.nn.")
    return original.__wrapped__ if is_own and is_scoped and hasattr(original, "__wrapped__") else original


def _marking(original: Any) -> Callable[..., Any]:
    """A `__call__` that opens a scope with the module's name and marks what comes out."""

    @functools.wraps(getattr(original, "method", original))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(self, type(self))
        if not is_tracing() or _is_super(self, "__call__"):
            return bound(*args, **kwargs)
        labelled = [] if _stack() else _label(self)
        try:
            with jax.named_scope(_name_of(self)), _inside(self, "__call__"):
                return mark_outputs(bound(*args, **kwargs), type(self).__name__)
        finally:
            for module in labelled:
                vars(module).pop(PATH, None)

    return call


def _label(root: Any) -> list[Any]:
    """Write into every NNX module under `root` its path; the modules that have one now and had none."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(root, nnx.Module):
        return []
    labelled = []
    for path, module in nnx.iter_modules(root):
        if PATH not in vars(module):
            vars(module)[PATH] = "/".join((type(root).__name__, *map(str, path)))
            labelled.append(module)
    return labelled


def _name_of(module: Any) -> str:
    """Name of a call below the call around it: the path from that module to this one, or the class's name."""
    calls = [caller for caller, _ in _stack()]
    path = getattr(module, PATH, None)
    if path is not None:
        around = next((vars(c)[PATH] for c in reversed(calls) if PATH in getattr(c, "__dict__", {})), "")
        return path[len(around) + 1 :] if around and path.startswith(f"{around}/") else path
    for caller in reversed(calls):
        for name, child in _children(caller):
            if child is module:
                return name
    alike = [name for name, child in _children(calls[-1]) if type(child) is type(module)] if calls else []
    return alike[0] if len(alike) == 1 else type(module).__name__


def _children(module: Any) -> Iterator[tuple[str, Any]]:
    """Modules that are attributes of `module`, or stand in lists, tuples and dicts that are: (path, module)."""
    waiting = (
        [(str(name), value) for name, value in vars(module).items()] if hasattr(module, "__dict__") else []
    )
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting += [(f"{path}/{i}", inner) for i, inner in enumerate(value)]
        elif isinstance(value, dict):
            waiting += [(f"{path}/{key}", inner) for key, inner in value.items()]
        elif callable(value) and hasattr(value, "__dict__"):
            yield path, value
