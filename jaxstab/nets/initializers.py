"""Initial weights in JAX's protocol, `(key, shape, dtype) -> Array`, with a scale that may be traced.

Every random scheme goes through `variance_scaling`: Var W = gain^2 scale_var / n, n a fan or their mean.
`*_normal` are untruncated, as in PyTorch (JAX's own lecun, glorot and he normals are truncated). All is drawn
and scaled in float32 and then cast, where JAX's own round the scale to the parameters' dtype first.

Which axes serve which convolution (`compute_fans` has the examples):

- Flax's kernels (height, width, in, out): the defaults. PyTorch's (out, in, height, width): in_axis=1, out_axis=0.
- Grouped, Flax's (height, width, in / groups, out): the defaults give the right fan_in; for fan_out, draw
  (height, width, in / groups, groups, out / groups) with in_axis=2, out_axis=4, batch_axis=3 and reshape.
- Depthwise, Flax's (height, width, 1, channels x multiplier): the same with in / groups = 1; for multiplier 1,
  out_axis=(), batch_axis=-1.
- Transposed, Flax's (height, width, in, out): the defaults, with `gain` times the root of the strides' product,
  since an output position meets only one in so many of the kernel's entries; with `transpose_kernel=True`, or
  PyTorch's (in, out, height, width): in_axis=-1, out_axis=-2, or in_axis=0, out_axis=1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxstab import random
from jaxstab.errors import UsageError, require_choice
from jaxstab.nets.haar import haar_matrix
from jaxstab.typing import Scalar

Axes: TypeAlias = int | Sequence[int]

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of N(0, 1) cut at -2 and 2."""


@runtime_checkable
class Initializer(Protocol):
    """Draws an array of `shape`; what flax and JAX call an initializer."""

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array: ...


class Scheme(NamedTuple):
    """Var W = gain^2 scale_var / n, n by `mode`, drawn from `distribution`."""

    scale_var: float
    mode: str
    distribution: str


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "normal": Scheme(1.0, "none", "normal"),
        "lecun_normal": Scheme(1.0, "fan_in", "normal"),
        "lecun_uniform": Scheme(1.0, "fan_in", "uniform"),
        "xavier_normal": Scheme(1.0, "fan_avg", "normal"),
        "xavier_uniform": Scheme(1.0, "fan_avg", "uniform"),
        "kaiming_normal": Scheme(2.0, "fan_in", "normal"),
        "kaiming_uniform": Scheme(2.0, "fan_in", "uniform"),
        "torch_default": Scheme(1 / 3, "fan_in", "uniform"),
        "truncated_normal": Scheme(1.0, "none", "truncated_normal"),
        "lecun_truncated_normal": Scheme(1.0, "fan_in", "truncated_normal"),
        "orthogonal": Scheme(1.0, "fan_max", "orthogonal"),
        "constant": Scheme(0.0, "none", "constant"),
    }
)
"""The law of every named scheme at gain 1: the one place where it is written."""

NAMES: tuple[str, ...] = tuple(SCHEMES)

_DENOMINATORS: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "fan_in": lambda fan_in, fan_out: fan_in,
        "fan_out": lambda fan_in, fan_out: fan_out,
        "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
        "fan_max": max,
        "none": lambda fan_in, fan_out: 1.0,
    }
)


_DRAWS: Mapping[str, tuple[Callable[..., Array], float]] = MappingProxyType(
    {
        "normal": (random.normal, 1.0),
        "uniform": (lambda key, shape: 2 * random.uniform(key, shape) - 1, 1 / 3),
        "truncated_normal": (
            lambda key, shape: jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32),
            TRUNCATED_STD**2,
        ),
    }
)
"""distribution -> (draw(key, shape) in float32, variance of what it draws)."""


def variance_scaling(
    scale_var: float | int,
    mode: str,
    distribution: str,
    gain: Scalar = 1.0,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
) -> Initializer:
    """Entries of mean 0 and variance gain^2 scale_var / n.

    `mode` is fan_in, fan_out, fan_avg (n their mean), fan_max, or none (n = 1); `distribution` is normal,
    uniform, or truncated_normal (cut at two sigma, then widened to the nominal standard deviation). `gain`
    may be traced, `scale_var` is a Python number. Axes that are neither in, out nor batch are the receptive
    field of a convolution and count in both fans, as in `jax.nn.initializers.variance_scaling`.

    Errors: UsageError for an unknown mode or distribution and a gain that is no number; from the initializer,
    before anything is drawn, for fewer than two axes (unless mode is none), an axis that is not there, or a
    dtype that is not floating.
    """
    require_choice(mode, _DENOMINATORS, "mode of variance scaling")
    draw, drawn_var = _DRAWS[require_choice(distribution, _DRAWS, "distribution")]
    require_gain(gain)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        dims = _require_shape(shape, at_least=0 if mode == "none" else 2)
        target = _require_floating(dtype)
        fans = (1.0, 1.0) if mode == "none" else compute_fans(dims, in_axis, out_axis, batch_axis)
        std = np.float32(math.sqrt(scale_var / drawn_var / _DENOMINATORS[mode](*fans)))
        # flat: the same bits as with all axes, and up to seven times faster to compile
        flat = draw(key, (math.prod(dims),))
        return (jnp.asarray(gain, jnp.float32) * std * flat).reshape(dims).astype(target)

    return init


def normal(gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> Initializer:
    """N(0, gain^2), whatever the width."""
    return variance_scaling(*SCHEMES["normal"], gain, in_axis, out_axis, batch_axis)


def lecun_normal(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """N(0, gain^2 / fan_in). LeCun et al. 1998, Efficient BackProp, eq. 16."""
    return variance_scaling(*SCHEMES["lecun_normal"], gain, in_axis, out_axis, batch_axis)


def lecun_uniform(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Uniform within gain sqrt(3 / fan_in) of 0: variance gain^2 / fan_in. LeCun et al. 1998, eq. 16."""
    return variance_scaling(*SCHEMES["lecun_uniform"], gain, in_axis, out_axis, batch_axis)


def xavier_normal(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """N(0, 2 gain^2 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 12."""
    return variance_scaling(*SCHEMES["xavier_normal"], gain, in_axis, out_axis, batch_axis)


def xavier_uniform(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Uniform within gain sqrt(6 / (fan_in + fan_out)) of 0. Glorot & Bengio 2010, eq. 16."""
    return variance_scaling(*SCHEMES["xavier_uniform"], gain, in_axis, out_axis, batch_axis)


def kaiming_normal(
    gain: Scalar = 1.0,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    *,
    mode: str = "fan_in",
) -> Initializer:
    """N(0, 2 gain^2 / n), n = fan_in to keep the signal (He et al. 2015, eq. 10) or fan_out the gradient (eq. 14).

    The factor of ReLU is in it at gain 1.
    """
    return _kaiming("kaiming_normal", gain, (in_axis, out_axis, batch_axis), mode)


def kaiming_uniform(
    gain: Scalar = 1.0,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    *,
    mode: str = "fan_in",
) -> Initializer:
    """Uniform within gain sqrt(6 / n) of 0: variance 2 gain^2 / n, n as for `kaiming_normal`."""
    return _kaiming("kaiming_uniform", gain, (in_axis, out_axis, batch_axis), mode)


def _kaiming(name: str, gain: Scalar, axes: tuple[Axes, Axes, Axes], mode: str) -> Initializer:
    require_choice(mode, ("fan_in", "fan_out"), "mode of Kaiming's initialization")
    return variance_scaling(SCHEMES[name].scale_var, mode, SCHEMES[name].distribution, gain, *axes)


def torch_default(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Uniform within gain / sqrt(fan_in) of 0: `torch.nn.Linear`'s own, kaiming_uniform with a = sqrt 5."""
    return variance_scaling(*SCHEMES["torch_default"], gain, in_axis, out_axis, batch_axis)


def truncated_normal(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Normal cut at two sigma and widened to standard deviation `gain`, whatever the width.

    Of N(0, s^2) cut at 2 s, as JAX's and PyTorch's functions of this name draw it for their standard deviation s, the
    standard deviation is 0.87963 s: the same law has gain = 0.87963 s here.
    """
    return variance_scaling(*SCHEMES["truncated_normal"], gain, in_axis, out_axis, batch_axis)


def lecun_truncated_normal(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Normal cut at two sigma, widened to variance gain^2 / fan_in: JAX's own `lecun_normal`."""
    return variance_scaling(*SCHEMES["lecun_truncated_normal"], gain, in_axis, out_axis, batch_axis)


def orthogonal(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """`gain` times a Haar matrix: orthonormal columns, or rows where there are fewer. Saxe et al. 2014.

    The matrix is (all other axes) x (out_axis), as in `jax.nn.initializers.orthogonal`; one is drawn for each
    index of `batch_axis`. No LAPACK is called, so it may run inside vmap on every backend.
    """
    require_gain(gain)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        dims = _require_shape(shape, at_least=2)
        target = _require_floating(dtype)
        compute_fans(dims, in_axis, out_axis, batch_axis)  # refuses the axes and sizes that the others refuse
        batch, out = _axes_of(dims, batch_axis), _axes_of(dims, out_axis)
        rest = tuple(axis for axis in range(len(dims)) if axis not in batch + out)
        n_batch, n_rest, n_out = (math.prod(dims[i] for i in axes) for axes in (batch, rest, out))
        keys = jax.random.split(key, n_batch) if batch else key[None]
        matrices = jax.vmap(lambda one: haar_matrix(one, n_rest, n_out))(keys)
        order = batch + rest + out
        weights = matrices.reshape([dims[axis] for axis in order]).transpose(np.argsort(order).tolist())
        return (jnp.asarray(gain, jnp.float32) * weights).astype(target)

    return init


def constant(
    gain: Scalar = 1.0, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Every weight equals `gain`; the axes are taken and not used, as every scheme takes them."""
    require_gain(gain)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        dims, target = _require_shape(shape, at_least=0), _require_floating(dtype)
        return jnp.full(dims, jnp.asarray(gain, jnp.float32)).astype(target)

    return init


INITIALIZERS: Mapping[str, Callable[..., Initializer]] = MappingProxyType({n: globals()[n] for n in NAMES})
"""name -> factory(gain=1.0, in_axis=-2, out_axis=-1, batch_axis=()) -> Initializer."""


def resolve(name: object) -> Callable[..., Initializer]:
    """The factory of that name; UsageError with the choices for any other."""
    return INITIALIZERS[require_choice(name, NAMES, "initialization")]


def weight_std(name: object, fan_in: float | int, fan_out: float | int) -> float:
    """Standard deviation of one entry at gain 1, for theory and for sampling in law; 0 for constant.

    Exact for every dense matrix, fan_in x fan_out; for orthogonal it is 1/sqrt(max(fan_in, fan_out)).
    """
    scheme = SCHEMES[require_choice(name, NAMES, "initialization")]
    return math.sqrt(scheme.scale_var / _DENOMINATORS[scheme.mode](fan_in, fan_out))


def bias_std(name: object, fan_in: float | int) -> float:
    """Standard deviation of the biases that a scheme brings: 1/sqrt(3 fan_in) for torch_default, else 0."""
    std = weight_std(name, fan_in, fan_in)
    return std if name == "torch_default" else 0.0


def bias_initializer(name: object, fan_in: int) -> Initializer | None:
    """Biases that a scheme brings itself, [features]: U(-1, 1)/sqrt(fan_in) for torch_default, else None.

    They belong to the layer and not to the weights, so no gain multiplies them.
    """
    require_choice(name, NAMES, "initialization")
    return variance_scaling(1 / (3 * fan_in), "none", "uniform") if name == "torch_default" else None


def compute_fans(
    shape: Sequence[int], in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> tuple[float, float]:
    """(fan_in, fan_out) of a weight array; axes that are not named are a receptive field and count in both.

    >>> compute_fans((3, 3, 16, 32))  # Flax: height, width, in, out
    (144.0, 288.0)
    >>> compute_fans((32, 16, 3, 3), in_axis=1, out_axis=0)  # PyTorch
    (144.0, 288.0)
    >>> compute_fans((3, 3, 4, 4, 8), in_axis=2, out_axis=4, batch_axis=3)  # 4 groups of 4 in, 8 out
    (36.0, 72.0)
    >>> compute_fans((3, 3, 1, 16), out_axis=(), batch_axis=-1)  # depthwise
    (9.0, 9.0)
    >>> compute_fans((16, 32, 3, 3), in_axis=0, out_axis=1)  # PyTorch, transposed
    (144.0, 288.0)

    Errors: UsageError where an axis is not there, is named twice, or has length 0.
    """
    if 0 in shape:
        raise UsageError(f"shape {tuple(shape)} has an axis of length 0 and therefore no fans.")
    named = [_axes_of(shape, axes) for axes in (in_axis, out_axis, batch_axis)]
    every = [axis for axes in named for axis in axes]
    if len(set(every)) < len(every):
        raise UsageError(
            f"in_axis={in_axis}, out_axis={out_axis}, batch_axis={batch_axis}: an axis of shape {tuple(shape)} is named"
            " twice."
        )
    n_in, n_out, n_batch = (math.prod(shape[axis] for axis in axes) for axes in named)
    receptive_field = math.prod(shape) / n_in / n_out / n_batch
    return n_in * receptive_field, n_out * receptive_field


def require_gain(gain: object) -> None:
    """UsageError unless `gain` is one real number, concrete or traced."""
    if isinstance(gain, (np.number, np.ndarray, jax.Array)):
        is_real = gain.ndim == 0 and jnp.isdtype(gain.dtype, ("real floating", "integral"))
    else:
        is_real = isinstance(gain, (float, int)) and not isinstance(gain, bool)
    if not is_real:
        raise UsageError(f"gain must be one real number, got {gain!r}.")


def _axes_of(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """`axes` counted from 0."""
    named = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -len(shape) <= axis < len(shape) for axis in named):
        raise UsageError(f"shape {tuple(shape)} has no axis {axes}.")
    return tuple(axis % len(shape) for axis in named)


def _require_shape(shape: Sequence[int], at_least: int) -> tuple[int, ...]:
    if len(shape) < at_least:
        raise UsageError(f"shape {tuple(shape)} has too few axes: its fans need at least {at_least}.")
    return tuple(shape)


def _require_floating(dtype: Any) -> jnp.dtype:
    target = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(target, jnp.floating):
        raise UsageError(f"weights are drawn as floating-point numbers, not as {target}.")
    return target
