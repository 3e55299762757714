"""One layer of a deep stack: plain, residual, normalized, recurrent or LSTM, as pure functions.

A stack is drawn layer by layer and never stands in memory as a whole. Its `step` takes, besides the layer's
parameters and the state, a power of two: where the layer is positively homogeneous the true state is
`state * 2**exponent`, so that a signal can be followed past what any dtype holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab import random
from jaxstab.errors import UsageError, canonicalize
from jaxstab.nets import conditioned, initializers
from jaxstab.theory import activations
from jaxstab.theory.floats import power_of_two
from jaxstab.typing import Activation, Scalar

KINDS = ("plain", "residual", "normalized", "recurrent", "lstm")
USED_ONCE = ("plain", "residual", "normalized")
"""Kinds that use each matrix once; the others apply one matrix at every step."""
SAMPLERS = ("dense", "conditioned")
GAUSSIAN = ("normal", "lecun_normal", "xavier_normal", "kaiming_normal")
CONDITIONED = (*GAUSSIAN, "orthogonal")
"""Schemes whose layers can be drawn in law without their matrix: those that no rotation changes."""


class Numbers(NamedTuple):
    """What a layer needs besides its draws; each may be traced."""

    gain: Scalar
    sigma_b: Scalar
    branch_scale: Scalar
    forget_bias: Scalar


class State(NamedTuple):
    """What a layer hands to the next: the activations `h`, and the cell `c` of an LSTM (else of no units)."""

    h: Float[Array, "batch width"]
    c: Float[Array, "batch cell"]


@dataclass(frozen=True)
class Stack:
    """`width` units a layer, of one kind. Equal stacks draw and compute the same bits."""

    width: int
    activation: Activation
    init: str
    kind: str
    sampler: str
    precision: str

    def __post_init__(self) -> None:
        activations.canonicalize(self)
        canonicalize(self, {"init": initializers.NAMES, "kind": KINDS, "sampler": SAMPLERS})
        if self.sampler == "dense":
            return
        if self.init not in CONDITIONED:
            raise UsageError(
                f"init={self.init!r} cannot be drawn without its matrix (sampler='conditioned'): only Gaussian and"
                f" orthogonal ones can. Choices: {', '.join(CONDITIONED)}; or sampler='dense'."
            )
        if self.kind not in USED_ONCE:
            raise UsageError(
                f"kind={self.kind!r} uses one matrix at every step, which sampler='conditioned' cannot draw."
                f" Choices: {', '.join(USED_ONCE)}; or sampler='dense'."
            )
        if self.precision != "highest":
            raise UsageError(
                f"precision={self.precision!r}: sampler='conditioned' forms no product whose precision could be"
                " lowered. Choices: highest; or sampler='dense'."
            )

    @property
    def blocks(self) -> int:
        """Matrices of width x width in a layer: the four gates of an LSTM, else one."""
        return 4 if self.kind == "lstm" else 1

    @property
    def is_homogeneous(self) -> bool:
        """Whether a > 0 times the state (and the bias) gives a times the next state."""
        if self.kind in ("lstm", "normalized"):
            return False
        return activations.is_homogeneous(self.activation)

    def _dense(self, gain: Scalar) -> nn.Dense:
        kernel_init = initializers.resolve(self.init)(gain=gain)
        return nn.Dense(self.width, use_bias=False, precision=self.precision, kernel_init=kernel_init)

    def start(self, inputs: Float[Array, "batch width"]) -> State:
        """The state before the first layer: the inputs, and an empty cell."""
        cell = inputs.shape[1] if self.kind == "lstm" else 0
        return State(inputs, jnp.zeros((inputs.shape[0], cell), inputs.dtype))

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Array]:
        """Kernel [width, blocks * width] (or the key it is drawn from in law) and bias of one layer, float32."""
        kernel_key, bias = random.split(key)[0], self.draw_bias(key, numbers)
        if self.sampler == "conditioned":
            return {"key": kernel_key, "bias": bias}
        dense, row = self._dense(numbers.gain), jnp.zeros((1, self.width), jnp.float32)
        keys = random.split(kernel_key, self.blocks) if self.blocks > 1 else kernel_key[None]
        kernels: list[Any] = [dense.init(k, row)["params"]["kernel"] for k in keys]
        return {"kernel": jnp.concatenate(kernels, axis=1), "bias": bias}

    def draw_bias(self, key: jax.Array, numbers: Numbers) -> Float[Array, " units"]:
        """The bias of `draw` alone."""
        units = self.blocks * self.width
        normal_key, own_key = random.split(random.split(key)[1])
        bias = jnp.float32(numbers.sigma_b) * random.normal(normal_key, (units,))
        own = initializers.bias_initializer(self.init, self.width)
        if own is not None:
            bias += own(own_key, (units,), jnp.float32)
        if self.kind == "lstm":
            bias = bias.at[self.width : 2 * self.width].add(jnp.float32(numbers.forget_bias))
        return bias

    def preactivations(
        self,
        parameters: dict[str, Array],
        linear: Float[Array, "batch units"],
        exponent: Int[Array, ""] | int = 0,
    ) -> Float[Array, "batch units"]:
        """The layer's linear part and its bias, in units of 2^exponent."""
        bias = parameters["bias"] * power_of_two(-jnp.asarray(exponent))
        return linear + bias.astype(linear.dtype)

    def activate(
        self, z: Float[Array, "batch units"], state: State, numbers: Numbers
    ) -> tuple[State, Float[Array, "batch preactivations"]]:
        """(next state, what the nonlinearity was applied to) of preactivations z."""
        return _KINDS[self.kind](activations.resolve(self.activation), z, state, numbers)

    def linear(self, parameters: dict[str, Array], h: Float[Array, "batch width"], numbers: Numbers) -> Array:
        """The layer's linear part, in h's dtype."""
        if self.sampler == "dense":
            kernel = parameters["kernel"].astype(h.dtype)
            dense = nn.Dense(kernel.shape[1], use_bias=False, precision=self.precision)
            return dense.apply({"params": {"kernel": kernel}}, h)  # type: ignore[return-value]
        if self.init == "orthogonal":
            return conditioned.haar_layer(parameters["key"], h, numbers.gain)
        std = initializers.weight_std(self.init, self.width, self.width)
        return conditioned.gaussian_layer(parameters["key"], h, std * jnp.asarray(numbers.gain), self.width)


def _plain(phi: Callable, z: Array, state: State, numbers: Numbers) -> tuple[State, Array]:
    return State(phi(z), state.c), z


def _residual(phi: Callable, z: Array, state: State, numbers: Numbers) -> tuple[State, Array]:
    scale = jnp.asarray(numbers.branch_scale).astype(z.dtype)  # a traced float32 would promote float16
    return State(state.h + scale * phi(z), state.c), z


def _normalized(phi: Callable, z: Array, state: State, numbers: Numbers) -> tuple[State, Array]:
    norm = nn.LayerNorm(use_bias=False, use_scale=False, use_fast_variance=False, dtype=z.dtype)
    z = norm.apply({}, z)  # type: ignore[assignment]
    return State(phi(z), state.c), z


def _lstm(phi: Callable, z: Array, state: State, numbers: Numbers) -> tuple[State, Array]:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; no input after the first state."""
    i, f, g, o = jnp.split(z, 4, axis=1)
    c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * phi(g)
    return State(jax.nn.sigmoid(o) * phi(c), c), g


_KINDS: dict[str, Any] = {
    "plain": _plain,
    "residual": _residual,
    "normalized": _normalized,
    "recurrent": _plain,  # the same formula; what differs is that one draw serves every step
    "lstm": _lstm,
}
