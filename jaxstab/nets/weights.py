"""A weight is what multiplies: a matrix, or its action drawn in law without it. Layers do not know which."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random
from jaxstab.errors import UsageError, require_choice
from jaxstab.formats import Storage
from jaxstab.names import spell
from jaxstab.nets import conditioned, initializers
from jaxstab.nets.initializers import Initializer
from jaxstab.nets.probe import watch
from jaxstab.typing import Scalar

SAMPLERS = ("dense", "conditioned")
GAUSSIAN = ("normal", "lecun_normal", "xavier_normal", "kaiming_normal")
CONDITIONED = (*GAUSSIAN, "orthogonal")
"""Schemes whose weights can be drawn in law without their matrix: those that no rotation changes."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """How weights are drawn and how they multiply: `draw` makes one.

    init: a scheme's name, or any initializer of JAX's protocol, `(key, shape, dtype) -> array`. kernel: side of a
    convolution's, whose weights are [kernel, kernel, channels, channels] to the scheme, and then the matrix of patches.

    Errors: UsageError for what is neither, and for what cannot be drawn as `sampler` and `precision` ask.
    """

    init: str | Initializer
    sampler: str = "dense"
    precision: str = "highest"
    kernel: int = 1

    def __post_init__(self) -> None:
        choices = {"sampler": SAMPLERS} | ({} if callable(self.init) else {"init": initializers.NAMES})
        for field, names in choices.items():
            object.__setattr__(self, field, require_choice(getattr(self, field), names, field))
        if callable(self.init):
            _require_initializer(self.init, (self.kernel,) * 2 * (self.kernel > 1))
        if self.sampler == "dense":
            return
        if self.init not in CONDITIONED:
            raise UsageError(
                f"init={spell(self.init)!r} cannot be drawn without its matrix (sampler='conditioned'): only Gaussian"
                f" and orthogonal ones can. Choices: {', '.join(CONDITIONED)}; or sampler='dense'."
            )
        if self.precision != "highest":
            raise UsageError(
                f"precision={self.precision!r}: sampler='conditioned' forms no product whose precision could be"
                " lowered. Choices: highest; or sampler='dense'."
            )

    def draw(self, key: jax.Array, fan_in: int, units: int, gain: Scalar, blocks: int = 1) -> Weight:
        """A weight [kernel^2 fan_in, units], or `blocks` of them side by side, each drawn by the scheme times gain."""
        probe, taps = jnp.float32(0.0), self.kernel**2
        if self.sampler == "conditioned":
            return Weight(key, jnp.asarray(gain, jnp.float32), probe, self, taps * fan_in, units, taps)
        scheme = (
            _scaled(self.init, gain) if callable(self.init) else initializers.resolve(self.init)(gain=gain)
        )
        kernel_init = scheme if taps == 1 else _by_patch(scheme, (self.kernel, self.kernel, fan_in, units))
        dense = nn.Dense(units, use_bias=False, precision=self.precision, kernel_init=kernel_init)
        row = jnp.zeros((1, taps * fan_in), jnp.float32)
        keys = random.split(key, blocks) if blocks > 1 else key[None]
        kernels: list[Any] = [dense.init(k, row)["params"]["kernel"] for k in keys]
        return Weight(
            jnp.concatenate(kernels, axis=1), None, probe, self, taps * fan_in, blocks * units, taps
        )


def _scaled(init: Initializer, gain: Scalar) -> Initializer:
    """An initializer times a gain, which may be traced."""

    def scaled(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(gain, dtype) * init(key, shape, dtype)

    return scaled


def _by_patch(init: Initializer, kernel: tuple[int, ...]) -> Initializer:
    """The initializer of a kernel of that shape, as the matrix of its patches."""

    def by_patch(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return init(key, kernel, dtype).reshape(shape)

    return by_patch


def _require_initializer(init: Initializer, within: tuple[int, ...]) -> None:
    """Refuse a callable that draws no matrix, or none for each pixel of a kernel."""
    wanted = (*within, 2, 3)
    try:
        drawn = jax.eval_shape(lambda key: init(key, wanted, jnp.float32), jax.random.key(0))
        shape = drawn.shape
    except Exception as error:  # whatever a user's function raises when it is called as none
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"init={spell(init)} is no initializer (key, shape, dtype): {reason}") from None
    if shape != wanted:
        raise UsageError(
            f"init={spell(init)} is no initializer (key, shape, dtype): for {wanted} it gives {shape}."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """`weight(h)` is h W: of a matrix, or in law, where each call stands for a matrix of its own.

    drawn: the matrix [fan_in, units], or the key it is drawn from in law; gain: of the latter. probe: 0, and its
    cotangent is the rms of the loss's gradient with respect to the matrix, which is never formed.
    """

    drawn: Any  # a pytree's leaves may be other things than arrays: shapes, axes, cotangents
    gain: Any
    probe: Any
    weights: Weights = dataclasses.field(metadata={"static": True})
    fan_in: int = dataclasses.field(metadata={"static": True})
    units: int = dataclasses.field(metadata={"static": True})
    taps: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, h: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch units"]:
        return self._times(h.reshape(-1, h.shape[-1])).reshape(*h.shape[:-1], self.units)

    def cast(self, cast: Storage) -> Weight:
        """The weight for signals so stored; what is drawn in law is rounded where it is used."""
        probe = self.probe.astype(jnp.promote_types(cast.dtype, jnp.float32))
        drawn = self.drawn if self.weights.sampler == "conditioned" else cast(self.drawn)
        return dataclasses.replace(self, drawn=drawn, probe=probe)

    def _times(self, rows: Float[Array, "rows fan_in"]) -> Float[Array, "rows units"]:
        if self.weights.sampler == "dense":
            dense = nn.Dense(self.units, use_bias=False, precision=self.weights.precision)
            units: Any = dense.apply({"params": {"kernel": self.drawn.astype(rows.dtype)}}, rows)
            return watch(self.probe, rows, units)
        if self.weights.init == "orthogonal":
            return conditioned.haar_layer(self.drawn, rows, self.gain, self.probe)
        assert isinstance(self.weights.init, str)
        std = initializers.weight_std(self.weights.init, self.fan_in, self.taps * self.units)
        return conditioned.gaussian_layer(self.drawn, rows, std * self.gain, self.units, self.probe)
