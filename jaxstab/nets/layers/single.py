"""Layers of one matrix (a residual branch may have two): plain, residual, normalized, recurrent, LSTM."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random
from jaxstab.nets.layers.layer import Make, Numbers, Params, preactivation
from jaxstab.nets.mlp import dropout
from jaxstab.theory import activations


@dataclasses.dataclass(frozen=True)
class Plain(Make):
    """h = phi(W h_before + b), then dropout where there is a rate."""

    is_reused: bool = False

    @property
    def is_homogeneous(self) -> bool:
        """Whether a > 0 times the state (and the bias) gives a times the next state."""
        return activations.is_homogeneous(self.activation)

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Any]:
        """Weight, bias, and the key of a dropout mask."""
        kernel_key, bias_key = random.split(key)
        drawn = {"weight": self.weights.draw(kernel_key, self.fan_in or self.width, self.width, numbers.gain)}
        return drawn | {"bias": self.draw_bias(bias_key, numbers)} | draw_mask(key, numbers)

    def linear(self, params: Params, h: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch width"]:
        """W h + b."""
        return params["weight"](h) + params["bias"]

    def __call__(
        self, params: Params, state: Float[Array, "*batch fan_in"], numbers: Numbers
    ) -> Float[Array, "*batch width"]:
        return masked(params, self.phi(preactivation(self.linear(params, state), self.activation)), numbers)


@dataclasses.dataclass(frozen=True)
class Convolution(Plain):
    """A plain layer on images [batch, row, column, channels]: W multiplies patches, of the weights' kernel.

    padding: "zero" or "circular". Xiao et al. 2018 (arXiv:1806.05393).
    """

    padding: str = "zero"

    @property
    def summed(self) -> int:
        """The channels of all pixels of a patch."""
        return self.weights.kernel**2 * self.width

    def linear(self, params: Params, h: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """W on the patch around each pixel, + b."""
        kernel, side = self.weights.kernel, h.shape[1]
        edge = ((kernel - 1) // 2, kernel // 2)
        around = [(0, 0), edge, edge, (0, 0)]
        padded = jnp.pad(h, around, mode="wrap" if self.padding == "circular" else "constant")
        taps = itertools.product(range(kernel), repeat=2)
        patches = [padded[:, i : i + side, j : j + side] for i, j in taps]
        return super().linear(params, jnp.concatenate(patches, axis=-1))


@dataclasses.dataclass(frozen=True)
class Residual(Plain):
    """h = a h_before + b f(h_before), f = phi(W h + b), or W2 phi(W1 h + b) with two matrices.

    a is `skip_scale`, b `branch_scale`; dropout is the branch's. He et al. 2016 (arXiv:1603.05027).
    """

    matrices: int = 1

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Any]:
        """As a plain layer's, and the second weight where there is one."""
        drawn = super().draw(key, numbers)
        if self.matrices == 1:
            return drawn
        second = random.fold_in(key, jnp.uint32(2))
        return drawn | {"second": self.weights.draw(second, self.width, self.width, numbers.gain)}

    def __call__(
        self, params: Params, state: Float[Array, "*batch width"], numbers: Numbers
    ) -> Float[Array, "*batch width"]:
        branch = self.phi(preactivation(self.linear(params, state), self.activation))
        if self.matrices == 2:
            branch = params["second"](branch)
        return add(state, masked(params, branch, numbers), numbers)


@dataclasses.dataclass(frozen=True)
class Normalized(Plain):
    """h = phi(norm(W h_before + b)); layer, rms or batch norm without scale and shift.

    Ba et al. 2016 (arXiv:1607.06450), Zhang & Sennrich 2019 (arXiv:1910.07467), Ioffe & Szegedy 2015
    (arXiv:1502.03167).
    """

    norm: str = "layer"

    @property
    def is_homogeneous(self) -> bool:
        """Never: the norm takes the scale away."""
        return False

    def __call__(
        self, params: Params, state: Float[Array, "*batch fan_in"], numbers: Numbers
    ) -> Float[Array, "*batch width"]:
        def activate(z: Array) -> tuple[Array, Array]:
            normed = normalize(self.norm, z)
            return activations.resolve(self.activation)(normed), normed

        # the way back keeps what the norm is given alone
        h, normed = jax.checkpoint(activate, prevent_cse=False)(self.linear(params, state))
        preactivation(normed, self.activation)
        return masked(params, h, numbers)


@dataclasses.dataclass(frozen=True)
class Lstm(Make):
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; no input after the first state."""

    is_reused: bool = True

    def start(self, inputs: Float[Array, "batch width"]) -> tuple[Array, Array]:
        """The inputs, and an empty cell."""
        return inputs, jnp.zeros_like(inputs)

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Any]:
        """Weight and bias of the four gates: input, forget, new, output."""
        kernel_key, bias_key = random.split(key)
        bias = self.draw_bias(bias_key, numbers, blocks=4)
        bias = bias.at[self.width : 2 * self.width].add(jnp.float32(numbers.forget_bias))
        weight = self.weights.draw(kernel_key, self.width, self.width, numbers.gain, blocks=4)
        return {"weight": weight, "bias": bias}

    def __call__(self, params: Params, state: tuple[Array, Array], numbers: Numbers) -> tuple[Array, Array]:
        phi = activations.resolve(self.activation)  # `self.phi` would move the last bits of its gradients
        h, c = state
        i, f, g, o = jnp.split(params["weight"](h) + params["bias"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * phi(preactivation(g, self.activation))
        return jax.nn.sigmoid(o) * phi(c), c


def add(
    h: Float[Array, "*shape"], branch: Float[Array, "*shape"], numbers: Numbers
) -> Float[Array, "*shape"]:
    """a h + b branch, in h's dtype: a traced float32 would promote a half."""
    skip, scale = (jnp.asarray(x).astype(h.dtype) for x in (numbers.skip_scale, numbers.branch_scale))
    return skip * h + scale * branch


def normalize(norm: str, z: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """z by the mean and rms (or the rms alone) of its units, or of each unit over the batch."""
    plain: dict[str, Any] = {"use_scale": False, "dtype": z.dtype}
    exact: dict[str, Any] = {"use_bias": False, "use_fast_variance": False, **plain}
    if norm == "rms":
        return nn.RMSNorm(**plain).apply({}, z)  # type: ignore[return-value]
    axes = tuple(range(z.ndim - 1)) if norm == "batch" else -1
    return nn.LayerNorm(reduction_axes=axes, **exact).apply({}, z)  # type: ignore[return-value]


def draw_mask(key: jax.Array, numbers: Numbers) -> dict[str, jax.Array]:
    """The key of a dropout mask, where there is a rate."""
    return {"mask": random.fold_in(key, jnp.uint32(3))} if numbers.dropout else {}


def masked(params: Params, h: Float[Array, "*shape"], numbers: Numbers) -> Float[Array, "*shape"]:
    """h after dropout; h itself where there is no rate. Srivastava et al. 2014."""
    return dropout(params["mask"], h, numbers.dropout[0]) if numbers.dropout else h
