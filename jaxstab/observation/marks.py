"""Marks: an identity that survives differentiation and tells which call a value came out of.

A mark stands in the traced program only. Its derivative marks the tangent, and the transpose of that marks the
cotangent, so that a function that takes a gradient inside itself has the gradient with respect to every marked
value marked too. Compiled, a mark is nothing.
"""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

FORWARD, TANGENT, BACKWARD = "forward", "tangent", "backward"
MARK = "mark"
"""Kind of a value that a user marked by hand."""
LIBRARIES = frozenset({
    "jax", "jaxlib", "flax", "equinox", "haiku", "optax", "jaxstab", "jaxtyping", "beartype", "typechecker",
    "functools", "contextlib", "importlib",
})  # fmt: skip
"""Packages whose lines are not the user's: the source of a call is the first frame outside them."""

mark_p = Primitive("mark")
mark_p.def_impl(lambda x, **_: x)
mark_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(mark_p, lambda _, x, **__: [x])


def _batch(values: Any, axes: Any, **parameters: Any) -> tuple[Any, Any]:
    return mark_p.bind(values[0], **parameters), axes[0]


def _differentiate(primals: Any, tangents: Any, *, direction: str, **parameters: Any) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    y = mark_p.bind(x, direction=direction, **parameters)
    if direction == FORWARD and not isinstance(tangent, ad.Zero):
        tangent = mark_p.bind(tangent, direction=TANGENT, **parameters)
    return y, tangent


def _transpose(cotangent: Any, _: Any, *, direction: str, **parameters: Any) -> list[Any]:
    if direction == TANGENT and not isinstance(cotangent, ad.Zero):
        cotangent = mark_p.bind(cotangent, direction=BACKWARD, **parameters)
    return [cotangent]


batching.primitive_batchers[mark_p] = _batch
ad.primitive_jvps[mark_p] = _differentiate
ad.primitive_transposes[mark_p] = _transpose

_numbers = itertools.count()
_tracing = threading.local()


def is_tracing() -> bool:
    """Whether this thread traces a function that is observed."""
    return getattr(_tracing, "depth", 0) > 0


class Tracing:
    """Context in which marks are made, for this thread."""

    def __enter__(self) -> None:
        _tracing.depth = getattr(_tracing, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _tracing.depth -= 1


def mark(value: Any, name: str) -> Any:
    """`value` as it is (an array or a pytree), reported under `name` by an `observe` around it.

    With the gradient with respect to it where one is taken. Outside of `observe` this is the identity.
    """
    if not is_tracing():
        return value
    return mark_outputs(value, MARK, name)


def mark_outputs(outputs: Any, kind: str, name: str = "") -> Any:
    """The outputs of one call, each inexact array marked; its path is the name stack's, then `name`."""
    call, source = next(_numbers), source_of_caller()

    def one(keys: Any, x: Any) -> Any:
        if (
            not isinstance(x, (jax.Array, np.ndarray))
            or not x.size
            or not jnp.issubdtype(x.dtype, jnp.inexact)
        ):
            return x
        output = jax.tree_util.keystr(keys)
        about = {"name": name, "kind": kind, "call": call, "output": output, "source": source}
        return mark_p.bind(x, direction=FORWARD, **about)

    return jax.tree_util.tree_map_with_path(one, outputs)


def library_files() -> tuple[str, ...]:
    """Where the files of the loaded libraries begin: a folder for a package, a file for a module."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES]
    return tuple(file.removesuffix("__init__.py") for file in files if file)


def source_of_caller() -> str:
    """file:line of the innermost frame outside the libraries; empty if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] not in LIBRARIES and not frame.f_code.co_filename.startswith("<"):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
