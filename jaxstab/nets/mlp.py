"""A classifier of dense layers whose dropout rates may be traced, so that rates are lanes of one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import machine, random
from jaxstab.errors import UsageError
from jaxstab.nets import initializers
from jaxstab.nets.initializers import Initializer
from jaxstab.theory import activations
from jaxstab.typing import Activation, Scalar


def dropout(key: Array, x: Float[Array, ...], rate: Scalar) -> Float[Array, ...]:
    """Each entry is 0 with probability `rate`, else divided by 1 - rate, so that its mean stays.

    Srivastava et al. 2014, section 10, scaled in training. `rate` may be traced, 0 and 1 included: 0 returns
    the bits of `x`, 1 exact zeros with zero gradients. (flax's Dropout decides with a Python `if`.)

    Errors: UsageError for a Python number outside [0, 1].
    """
    if isinstance(rate, (float, int)) and not 0 <= rate <= 1:
        raise UsageError(f"a dropout rate is a probability, got {rate!r}.")
    rate = jnp.asarray(rate, jnp.float32)
    kept = random.uniform(key, x.shape) >= rate  # draws lie in [0, 1)
    # nothing is kept at rate 1; dividing by 0 there would put a NaN into the gradient of what is not chosen
    share = jnp.where(rate < 1, 1 - rate, 1).astype(x.dtype)
    return jnp.where(kept, x / share, 0)


@jax.custom_vjp
def bfloat16_product(x: Float[Array, "batch n"], w: Float[Array, "n m"]) -> Float[Array, "batch m"]:
    """x w of operands rounded to bfloat16, summed in float32; the two products of its gradient likewise.

    (JAX's own derivative of such a product multiplies a float32 cotangent with the bfloat16 operand.)
    """
    return _in_bfloat16(x, w, 1, 0)


def _in_bfloat16(a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> Array:
    dimensions = (((axis_of_a,), (axis_of_b,)), ((), ()))

    def native(a: Array, b: Array) -> Array:
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)

    def in_float32(a: Array, b: Array) -> Array:
        a, b = (jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7) for x in (a, b))
        return jax.lax.dot_general(a, b, dimensions, precision=jax.lax.Precision.HIGHEST)

    if machine.cpu_multiplies_bfloat16():
        return native(a, b)
    return jax.lax.platform_dependent(a, b, cpu=in_float32, default=native)


def _product_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return bfloat16_product(x, w), (x, w)


def _product_backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = saved
    return _in_bfloat16(d, w, 1, 1), _in_bfloat16(x, d, 0, 0)


bfloat16_product.defvjp(_product_forward, _product_backward)


def _bfloat16_dot_general(x: Array, w: Array, dimension_numbers: Any, **_: Any) -> Array:
    """What nn.Dense asks for: the last axis of x [batch, n] with the first of w [n, m]."""
    return bfloat16_product(x, w)


class Mlp(nn.Module):
    """Dense layers of `hidden` units with `activation`, then `classes` logits; float32 parameters.

    `kernel_init` draws each matrix [fan_in, units] and may hold a traced gain. `bias_init(fan_in)` is the
    initializer of a layer's biases, None for zeros. `precision` is that of the products, as in JAX, or
    "bfloat16": operands rounded to it, sums in float32, forward and backward. The model is a pure function:
    `init(key, x)` gives its variables, `apply(variables, x)` the logits.
    """

    hidden: tuple[int, ...]
    classes: int
    activation: Activation
    kernel_init: Initializer
    bias_init: Callable[[int], Initializer | None]
    precision: str = "highest"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch inputs"],
        rates: Scalar | Sequence[Scalar] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits. With `rates` (one a hidden layer, or one for all) and `key`, hidden units are dropped.

        Without `rates` nothing is dropped: that is evaluation. Errors: UsageError for rates without a key
        and for another number of rates than hidden layers.
        """
        phi = activations.resolve(self.activation)
        droppers = self._droppers(rates, key)
        for units, drop in zip(self.hidden, droppers, strict=True):
            x = drop(phi(self._dense(x, units)))
        return self._dense(x, self.classes)

    def _dense(self, x: Float[Array, "batch inputs"], units: int) -> Float[Array, "batch units"]:
        bias_init = self.bias_init(x.shape[-1]) or nn.initializers.zeros_init()
        in_bfloat16 = self.precision == "bfloat16"
        dense = nn.Dense(
            units,
            precision=None if in_bfloat16 else self.precision,
            dot_general=_bfloat16_dot_general if in_bfloat16 else None,
            kernel_init=self.kernel_init,
            bias_init=bias_init,
        )
        return dense(x)

    def _droppers(self, rates: Scalar | Sequence[Scalar] | None, key: Array | None) -> list[Callable]:
        n = len(self.hidden)
        if rates is None:
            return [lambda h: h] * n
        if key is None:
            raise UsageError("dropout needs a key beside its rates.")
        if isinstance(rates, Sequence):
            each = list(rates)
        else:
            each = list(jnp.asarray(rates)) if jnp.ndim(rates) else [rates] * n
        if len(each) != n:
            raise UsageError(f"{len(each)} dropout rates for {n} hidden layers.")
        keys = jax.random.split(key, n) if n else []
        return [partial(dropout, layer_key, rate=rate) for layer_key, rate in zip(keys, each, strict=True)]


def make_mlp(
    hidden: tuple[int, ...],
    classes: int = 10,
    *,
    activation: Activation = "relu",
    init: str = "xavier_normal",
    gain: Scalar = 1.0,
    precision: str = "highest",
) -> Mlp:
    """An `Mlp` drawn by a named scheme times `gain`, which may be traced; biases zero but for torch_default.

    Errors: UsageError for an unknown scheme or activation, a gain that is no number, or a size below 1.
    """
    if min((*hidden, classes)) < 1:
        raise UsageError(f"every layer needs at least one unit, got hidden {hidden} and {classes} classes.")
    activations.resolve(activation)
    kernel_init = initializers.resolve(init)(gain)
    return Mlp(
        hidden, classes, activation, kernel_init, partial(initializers.bias_initializer, init), precision
    )
