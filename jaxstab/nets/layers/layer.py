"""What a layer is: a small pure object that draws what it needs and maps a state to the next.

Whoever has one has the laboratory: `jaxstab.propagate(kind={"mine": layer}, ...)`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random
from jaxstab.formats import Storage, storage
from jaxstab.nets import initializers
from jaxstab.nets.weights import Weight, Weights
from jaxstab.scaling import power_of_two, rescale, rms
from jaxstab.theory import activations
from jaxstab.typing import Activation, Scalar

State: TypeAlias = Any
"""A pytree of arrays whose first is the signal, [batch, ..., width]; mostly that array itself."""
Params: TypeAlias = Any
"""A pytree of what a layer drew: `Weight`s, float32 arrays, keys. What stands under "bias" is added to the signal."""


class Numbers(NamedTuple):
    """What layers are given besides their draws; each may be traced."""

    gain: Scalar = 1.0
    sigma_b: Scalar = 0.0
    branch_scale: Scalar = 1.0
    forget_bias: Scalar = 1.0
    skip_scale: Scalar = 1.0
    qk_scale: Scalar = 1.0
    dropout: tuple[Scalar, ...] = ()


@runtime_checkable
class Layer(Protocol):
    """One layer. Frozen and hashable, since it is part of what a program is compiled for.

    Optional besides: `is_homogeneous` (a > 0 times the state and the biases gives a times the next state, of `end` as
    well, so that a signal can be followed past what any dtype holds), `is_reused` (one draw serves every layer, as
    over time), `start(inputs)` (the state before the first layer; the inputs themselves) and `end(state)` (what the
    read-out reads; the state's first array), and its theory, `predict(square, numbers) -> (next square, factor)`: of
    E[h^2] before the layer that behind it, and what the gradient's mean square is multiplied with on the way back, as
    the width grows; arrays or numbers alike. Where a layer calls `preactivation(z, phi)`, the share of saturated units
    is seen.
    """

    def draw(self, key: jax.Array, numbers: Numbers) -> Params:
        """What one layer multiplies with and adds, float32."""
        ...

    def __call__(self, params: Params, state: State, numbers: Numbers) -> State:
        """The next state, in the state's dtype. Pure; its gradient is JAX's."""
        ...


def signal(state: State) -> Float[Array, "batch ..."]:
    """The signal among what a layer hands to the next."""
    return jax.tree.leaves(state)[0]


_noted: contextvars.ContextVar[list[tuple[Activation, Array]] | None] = contextvars.ContextVar(
    "noted", default=None
)


@contextlib.contextmanager
def noting() -> Iterator[list[tuple[Activation, Array]]]:
    """Collects what `preactivation` is called with: (activation, z)."""
    noted: list[tuple[Activation, Array]] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def preactivation(z: Float[Array, "*shape"], activation: Activation) -> Float[Array, "*shape"]:
    """z itself: what that activation, a name or a scalar function, is applied to; saturated units are counted so."""
    noted = _noted.get()
    if noted is not None:
        noted.append((activation, z))
    return z


def is_homogeneous(layer: Layer) -> bool:
    """Whether a signal's scale may be carried apart from it."""
    return bool(getattr(layer, "is_homogeneous", False))


def is_reused(layer: Layer) -> bool:
    """Whether one draw serves every layer."""
    return bool(getattr(layer, "is_reused", False))


def start(layer: Layer, inputs: Float[Array, "batch ..."]) -> State:
    """The state before the first layer."""
    return layer.start(inputs) if hasattr(layer, "start") else inputs  # type: ignore[attr-defined]


def end(layer: Layer, state: State) -> Float[Array, "batch ..."]:
    """What the read-out reads of the last state."""
    return layer.end(state) if hasattr(layer, "end") else signal(state)  # type: ignore[attr-defined]


def in_dtype(params: Params, dtype: Any, exponent: Any = 0) -> Params:
    """A layer's draws for signals of that dtype or format in units of 2^exponent, in which biases are then too."""
    cast = dtype if isinstance(dtype, Storage) else storage(dtype)

    def convert(path: tuple[Any, ...], leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            return leaf.cast(cast)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if path and getattr(path[-1], "key", None) == "bias":
            leaf = leaf * power_of_two(-jnp.asarray(exponent, jnp.int32))
        return cast(leaf)

    return jax.tree_util.tree_map_with_path(convert, params, is_leaf=lambda x: isinstance(x, Weight))


def vectors(params: Params) -> list[Float[Array, " units"]]:
    """The biases and other vectors among a layer's draws."""
    return [leaf for leaf in jax.tree.leaves(params) if _is_vector(leaf)]


def with_vectors(params: Params, given: list[Float[Array, " units"]]) -> Params:
    """The draws with these in the place of their `vectors`."""
    left = iter(given)
    return jax.tree.map(lambda leaf: next(left) if _is_vector(leaf) else leaf, params)


def _is_vector(leaf: Array) -> bool:
    return leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.floating)


def gradient_rms(gradient: Params) -> Float[Array, ""]:
    """rms of a loss's gradient with respect to a layer's weights; of other arrays of two or more axes as well.

    NaN where there is none.
    """
    parts: list[tuple[int, Array]] = []
    for leaf in jax.tree.leaves(gradient, is_leaf=lambda x: isinstance(x, Weight)):
        if isinstance(leaf, Weight):
            parts.append((leaf.fan_in * leaf.units, leaf.probe))
        elif jnp.ndim(leaf) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating):
            parts.append((leaf.size, rms(leaf)))
    if len(parts) == 1:
        return parts[0][1]
    if not parts:
        return jnp.float32(jnp.nan)
    sizes, values = (jnp.stack(list(map(jnp.asarray, column))) for column in zip(*parts, strict=True))
    m, exponent = rescale(values)
    return jnp.ldexp(jnp.sqrt(jnp.sum(sizes / jnp.sum(sizes) * m * m)), exponent)


@dataclasses.dataclass(frozen=True)
class Make:
    """What the layers of this package are made of."""

    width: int
    activation: Activation
    weights: Weights
    fan_in: int = dataclasses.field(default=0, kw_only=True)
    """Units before the layer; 0: as many as its own."""

    @property
    def summed(self) -> int:
        """How many entries of the state a unit sums over."""
        return self.fan_in or self.width

    def phi(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The activation, of which the way back keeps z alone."""
        return jax.checkpoint(activations.resolve(self.activation), prevent_cse=False)(z)

    def draw_bias(self, key: jax.Array, numbers: Numbers, blocks: int = 1) -> Float[Array, " units"]:
        """N(0, sigma_b^2), and what the scheme has of its own."""
        units = blocks * self.width
        normal_key, own_key = random.split(key)
        bias = jnp.float32(numbers.sigma_b) * random.normal(normal_key, (units,))
        init = self.weights.init
        own = initializers.bias_initializer(init, self.summed) if isinstance(init, str) else None
        return bias if own is None else bias + own(own_key, (units,), jnp.float32)
