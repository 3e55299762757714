"""Layers that others wrote are tried, without a number being computed, before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.errors import UsageError, require_hashable
from jaxstab.formats import storage
from jaxstab.names import spell
from jaxstab.nets.layers.layer import Layer, Numbers, in_dtype, start


def require_layers(layers: Sequence[Layer], shape: tuple[int, ...], dtype: str) -> None:
    """Refuse layers that draw other things than arrays, or that do not end with a state like the one they began with.

    What a layer itself raises comes through as it is.
    """
    numbers = jax.tree.map(
        lambda _: jax.ShapeDtypeStruct((), jnp.float32), Numbers()
    )  # traced, as in a sweep
    inputs = jax.ShapeDtypeStruct(shape, storage(dtype).dtype)
    with storage(dtype).computing():
        begun = state = jax.eval_shape(lambda x: start(layers[0], x), inputs)
        for layer in layers:
            require_hashable("kind", layer)
            drawn = _drawn(layer, numbers)
            call = lambda p, s, n, layer=layer: layer(in_dtype(p, dtype), s, n)  # noqa: E731 - one expression
            state = jax.eval_shape(call, drawn, state, numbers)
    if not _is_like(state, begun):
        names = ", ".join(spell(layer) for layer in layers)
        raise UsageError(
            f"kind={names}: makes {_spell(state)} of {_spell(begun)}; a state of the same is wanted."
        )


def _drawn(layer: Layer, numbers: Numbers) -> Any:
    """Shapes of what a layer draws."""

    def draw(key: jax.Array, numbers: Numbers) -> Any:
        drawn = layer.draw(key, numbers)
        strangers = [x for x in jax.tree.leaves(drawn) if not isinstance(x, (jax.Array, int, float, complex))]
        if strangers:
            raise UsageError(
                f"kind={spell(layer)}: draw returns {spell(strangers[0])}, which is no array; keep it in the layer."
            )
        return drawn

    return jax.eval_shape(draw, jax.random.key(0, impl="threefry2x32"), numbers)


def _is_like(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        (x.shape, x.dtype) == (y.shape, y.dtype)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _spell(state: Any) -> str:
    """float32[2,16], or several of them."""
    return ", ".join(f"{x.dtype}{list(x.shape)}".replace(" ", "") for x in jax.tree.leaves(state))
