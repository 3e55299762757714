"""Functions against their definitions, slopes against differences, and refusals of what is no activation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from jaxstab.errors import UsageError
from jaxstab.theory import activations
from jaxstab.theory.activations import ACTIVATIONS

NAMES = list(ACTIVATIONS)
SELU_LAMBDA, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def logistic(x):
    return special.expit(x)


DEFINITIONS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: SELU_LAMBDA * np.where(x > 0, x, SELU_ALPHA * np.expm1(x)),
    "gelu": lambda x: x * special.ndtr(x),
    "silu": lambda x: x * logistic(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": logistic,
    "scaled_sigmoid": lambda x: 4 * logistic(x) - 2,
    "tanh": np.tanh,
    "erf": special.erf,
}


@jax.custom_vjp
def squashed(x):
    """A function with a rule for backward mode only."""
    return jnp.tanh(x)


squashed.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def test_order_is_that_of_the_documentation():
    assert list(DEFINITIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_definition(name):
    x = np.linspace(-12, 12, 241)
    np.testing.assert_allclose(
        activations.evaluate(ACTIVATIONS[name], x), DEFINITIONS[name](x), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept(name, dtype):
    x = jnp.linspace(-3, 3, 13).astype(dtype)
    y = ACTIVATIONS[name](x)
    assert y.dtype == dtype
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    exact = DEFINITIONS[name](np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_limit_of_differences(name):
    x = np.linspace(-5, 5, 20) + 0.0137  # away from 0, where ReLUs have no slope
    h = 1e-5
    difference = (DEFINITIONS[name](x + h) - DEFINITIONS[name](x - h)) / (2 * h)
    slope = activations.evaluate(activations.derivative(ACTIVATIONS[name]), x)
    np.testing.assert_allclose(slope, difference, rtol=1e-7, atol=1e-9)


def test_slope_takes_any_shape_and_is_the_same_function_each_time():
    slope = activations.derivative(jnp.tanh)
    assert slope is activations.derivative(jnp.tanh)
    assert slope(jnp.zeros((2, 3, 4))).shape == (2, 3, 4)


def test_slope_of_a_function_that_has_backward_mode_only():
    x = jnp.linspace(-2.0, 2.0, 5)
    np.testing.assert_allclose(activations.derivative(squashed)(x), 1 - jnp.tanh(x) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_homogeneous_are_the_linear_and_the_relus(name):
    expected = name in ("linear", "relu", "leaky_relu")
    assert activations.is_homogeneous(name) is expected
    assert activations.is_homogeneous(ACTIVATIONS[name]) is expected  # the function, tested numerically


@settings(deadline=None, max_examples=20)
@given(slope=st.floats(-2, 2))
def test_any_relu_is_homogeneous_and_a_shifted_one_is_not(slope):
    assert activations.is_homogeneous(lambda x: jnp.where(x > 0, x, slope * x))
    assert not activations.is_homogeneous(lambda x: jnp.where(x > 0, x, slope * x) + 1e-3)


def test_a_homogeneous_function_in_float32_passes_and_a_clipped_one_does_not():
    assert activations.is_homogeneous(lambda x: jax.nn.relu(x.astype(jnp.float32)))
    assert not activations.is_homogeneous(jax.nn.relu6)


def test_evaluation_is_float64_whatever_the_shape():
    x = np.random.default_rng(0).normal(size=(3, 1111))
    np.testing.assert_allclose(activations.evaluate(jnp.tanh, x), np.tanh(x), rtol=1e-14)
    assert activations.evaluate(jnp.tanh, np.zeros((0, 2))).shape == (0, 2)


def test_names():
    assert activations.name_of("gelu") == "gelu"
    assert activations.name_of(jax.nn.relu) == "relu"
    assert activations.name_of(squashed) == "squashed"
    assert (
        activations.name_of(functools.partial(jax.nn.leaky_relu, negative_slope=0.2))
        == "leaky_relu(negative_slope=0.2)"
    )


def test_resolved_names_and_callables():
    assert activations.resolve("tanh") is jnp.tanh
    assert activations.resolve(squashed) is squashed


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(UsageError, match=r"'relu6'.*relu.*Choices: linear, relu"):
        activations.resolve("relu6")
    with pytest.raises(UsageError, match="Choices"):
        activations.name_of("nothing")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (jnp.sum, "not elementwise"),
        (jax.nn.softmax, "depends on the others"),
        (jnp.cumsum, "depends on the others"),
        (jnp.flip, "depends on the others"),
        (lambda x: x > 0, "not elementwise"),
        (lambda x, y: x, "cannot be applied"),
        (lambda x: (x, x), "not elementwise"),
    ],
)
def test_callables_that_are_no_activations_are_refused(function, reason):
    with pytest.raises(UsageError, match=reason):
        activations.resolve(function)


def test_a_callable_that_cannot_be_a_key_is_refused():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(UsageError, match="hashable"):
        activations.resolve(Unhashable())
