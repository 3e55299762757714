"""Name -> activation function; and of any elementwise function its slope and whether it is homogeneous."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.errors import ALIASES, UsageError, require_choice
from jaxstab.names import spell
from jaxstab.typing import Activation, Function

_BLOCK = 2**13  # the one length that functions are compiled for
_RADIUS = np.geomspace(1e-3, 1e3, 61)  # where a function is tried


def _linear(x: jax.Array) -> jax.Array:
    return x


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)  # the erf itself, not its tanh approximation


def _scaled_sigmoid(x: jax.Array) -> jax.Array:
    return 2 * jnp.tanh(x / 2)  # = 4 sigmoid(x) - 2, without the cancellation near 0


ACTIVATIONS: Mapping[str, Function] = MappingProxyType(
    {
        "linear": _linear,
        "relu": jax.nn.relu,
        "leaky_relu": jax.nn.leaky_relu,  # slope 0.01, as in PyTorch
        "elu": jax.nn.elu,
        "selu": jax.nn.selu,
        "gelu": _gelu,
        "silu": jax.nn.silu,
        "mish": jax.nn.mish,
        "softplus": jax.nn.softplus,
        "sigmoid": jax.nn.sigmoid,
        "scaled_sigmoid": _scaled_sigmoid,
        "tanh": jnp.tanh,
        "erf": jax.lax.erf,
    }
)
"""Elementwise functions, in the order of the documentation. Each keeps its argument's floating dtype."""

_HOMOGENEOUS = ("linear", "relu", "leaky_relu")


def resolve(activation: Activation) -> Function:
    """Find the function of a name; a callable is returned as it is, once it is seen to be elementwise.

    Raises UsageError for an unknown name (with the choices) and for a callable that is not hashable, cannot
    be applied to a float32 vector, changes its shape, returns no floats, or mixes entries (as softmax does).
    """
    if isinstance(activation, str):
        return ACTIVATIONS[name_of(activation)]
    if isinstance(activation, np.ufunc):
        name = activation.__name__
        raise UsageError(
            f"activation np.{name}: NumPy's functions cannot be differentiated; give jax.numpy's, jnp.{name}."
        )
    try:
        weakref.ref(activation)
        return _checked(activation)
    except TypeError as error:
        raise UsageError(
            f"activation {spell(activation)!r} must be hashable and weakly referable: {error}"
        ) from None


def canonicalize(spec: object) -> None:
    """Replace `activation` of a frozen dataclass by its name here, if it is a name; UsageError for what is none."""
    activation = spec.activation  # type: ignore[attr-defined]
    resolve(activation)
    if isinstance(activation, str):
        object.__setattr__(spec, "activation", name_of(activation))


def name_of(activation: Activation) -> str:
    """The name of an activation: of a known function its own here, of any other callable its `__name__`."""
    if isinstance(activation, str):
        is_jaxs = (
            activation.isidentifier()
            and activation not in ALIASES
            and callable(getattr(jax.nn, activation, None))
        )
        hint = f"Give JAX's own as a function, activation=jax.nn.{activation}." if is_jaxs else ""
        return require_choice(activation, ACTIVATIONS, "activation", hint)
    for name, function in ACTIVATIONS.items():
        if activation is function:
            return name
    return spell(activation)


@functools.lru_cache(maxsize=256)
def derivative(phi: Function) -> Function:
    """phi', elementwise, for an array of any shape. The same phi gets the same function: one compilation."""

    def slope(x: jax.Array) -> jax.Array:
        try:
            return jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]
        except TypeError:  # a function with a custom_vjp has no forward mode; its Jacobian is diagonal
            value, pullback = jax.vjp(phi, x)
            return pullback(jnp.ones_like(value))[0]

    return slope


def is_homogeneous(activation: Activation) -> bool:
    """Whether phi(a x) = a phi(x) for every a > 0: linear, ReLU, leaky ReLU, and callables like them.

    Tested on a grid of |x| from 1e-3 to 1e3 and a from 1e-3 to 1e3, to 1e-6 of the scale a |x|, so that a
    callable that computes in float32 passes.
    """
    for name, function in ACTIVATIONS.items():  # known, so that a sweep of names compiles only its programs
        if activation is function or activation == name:
            return name in _HOMOGENEOUS
    return _is_homogeneous(resolve(activation))


@functools.lru_cache(maxsize=256)
def homogeneous_slopes(phi: Function) -> tuple[float, float] | None:
    """(a, b) where phi(x) = a x for x > 0 and b x for x < 0, and its slopes are these; None where that is not so."""
    if not is_homogeneous(phi):
        return None
    right, left = evaluate(phi, np.array([1.0, -1.0])) * [1, -1]
    slopes = evaluate(derivative(phi), np.stack([_RADIUS, -_RADIUS], axis=1))
    if not np.allclose(slopes, [right, left], rtol=1e-6, atol=1e-6):  # as a straight-through estimator's
        return None
    return float(right), float(left)


def evaluate(function: Function, x: np.ndarray) -> np.ndarray:
    """function(x), of x's shape, in float64 whatever jax's precision, also while a program is traced."""
    with _float64():
        return evaluate_in_dtype(function, np.asarray(x, np.float64))


def evaluate_in_dtype(function: Function, x: np.ndarray) -> np.ndarray:
    """function(x), of x's shape, computed in x's dtype, as float64; also while a program is traced.

    In blocks of one length, so that a function is compiled once for a dtype.
    """
    blocks = np.resize(np.ravel(x), (-(-x.size // _BLOCK), _BLOCK))
    with jax.ensure_compile_time_eval():
        run = _compiled(function)
        values = [run(block) for block in blocks]
        parts = [np.zeros(0), *(np.asarray(value) for value in values)]  # asked for once all are under way
    return np.concatenate(parts)[: x.size].reshape(x.shape)


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Concrete float64 arithmetic, on the CPU where there is one: accelerators may lack float64."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        cpu = None
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(cpu):
        yield


@functools.lru_cache(maxsize=256)
def _compiled(function: Function) -> Function:
    return jax.jit(function)


@functools.lru_cache(maxsize=256)
def _checked(activation: Function) -> Function:
    """The function, once it is seen to be elementwise; UsageError otherwise."""
    name = name_of(activation)
    try:
        out = jax.eval_shape(activation, jax.ShapeDtypeStruct((3,), jnp.float32))
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"activation {name!r} cannot be applied to a float32 vector: {reason}") from error
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != (3,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UsageError(f"activation {name!r} is not elementwise: it maps float32[3] to {out}.")
    alone = evaluate(activation, np.array([0.7, 0.7, 0.7]))
    beside = evaluate(activation, np.array([-1.9, 0.7, 2.3]))
    if not np.allclose(alone[1], beside[1], rtol=1e-5, atol=1e-6, equal_nan=True):
        raise UsageError(f"activation {name!r} is not elementwise: an entry's value depends on the others.")
    return activation


@functools.lru_cache(maxsize=256)
def _is_homogeneous(phi: Function) -> bool:
    x = np.concatenate([-_RADIUS, _RADIUS])
    value = evaluate(phi, x)
    factors = (1e-3, 0.3, 7.0, 1e3)
    return all(np.all(np.abs(evaluate(phi, a * x) - a * value) <= 1e-6 * a * np.abs(x)) for a in factors)
