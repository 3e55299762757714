"""The classifier against its own formula; dropout against its law, exact at both ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab import machine
from jaxstab.errors import UsageError
from jaxstab.nets.mlp import Mlp, bfloat16_product, dropout, make_mlp

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 12))


def loss_and_gradient(model, variables, *args):
    def loss(params, x):
        return jnp.sum(model.apply(params, x, *args) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, X)


def assert_same_bits(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32))


def test_it_is_its_formula():
    model = make_mlp((5, 7), 3, activation="tanh")
    variables = model.init(KEY, X)
    kernels = [np.asarray(variables["params"][f"Dense_{i}"]["kernel"], np.float64) for i in range(3)]
    assert [kernel.shape for kernel in kernels] == [(12, 5), (5, 7), (7, 3)]
    hidden = np.tanh(np.tanh(np.asarray(X, np.float64) @ kernels[0]) @ kernels[1])
    np.testing.assert_allclose(model.apply(variables, X), hidden @ kernels[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("has_instruction", [True, False])
def test_products_of_bfloat16_are_summed_in_float32_forward_and_backward(has_instruction, monkeypatch):
    monkeypatch.setattr(machine, "cpu_multiplies_bfloat16", lambda: has_instruction)

    def rounded(x):
        return np.asarray(x.astype(jnp.bfloat16), np.float64)

    w, d = jax.random.normal(KEY, (12, 5)), jax.random.normal(jax.random.key(2), (6, 5))
    y, back = jax.vjp(bfloat16_product, X, w)
    of_x, of_w = back(d)
    assert {leaf.dtype for leaf in (y, of_x, of_w)} == {jnp.dtype("float32")}
    pairs = [
        (y, rounded(X) @ rounded(w)),
        (of_x, rounded(d) @ rounded(w).T),
        (of_w, rounded(X).T @ rounded(d)),
    ]
    for found, wanted in pairs:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):  # without the rounding it would be another number
        np.testing.assert_allclose(
            y, np.asarray(X, np.float64) @ np.asarray(w, np.float64), rtol=1e-5, atol=1e-5
        )


def test_the_classifier_multiplies_in_bfloat16_if_asked_to(monkeypatch):
    exact, rough = make_mlp((5,), 3), make_mlp((5,), 3, precision="bfloat16")
    variables = exact.init(KEY, X)

    def products() -> list[str]:
        text = jax.jit(jax.grad(lambda v: rough.apply(v, X).sum())).lower(variables).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    monkeypatch.setattr(machine, "cpu_multiplies_bfloat16", lambda: True)
    assert products()
    assert all("xbf16>, tensor" in line and "xf32>" in line for line in products())
    np.testing.assert_allclose(rough.apply(variables, X), exact.apply(variables, X), rtol=0.1, atol=0.05)
    monkeypatch.setattr(machine, "cpu_multiplies_bfloat16", lambda: False)
    assert jax.default_backend() != "cpu" or not any("bf16" in line for line in products())


def test_the_biases_count_and_start_at_zero():
    model = make_mlp((), 3)
    variables = model.init(KEY, X)
    assert not variables["params"]["Dense_0"]["bias"].any()
    shifted = jax.tree.map(lambda leaf: leaf, variables)
    shifted["params"]["Dense_0"]["bias"] = jnp.array([1.0, 2.0, 3.0])
    difference = model.apply(shifted, X) - model.apply(variables, X)
    np.testing.assert_allclose(difference, np.tile([1.0, 2.0, 3.0], (6, 1)), rtol=1e-5)


def test_torch_default_draws_its_biases_within_one_over_root_fan_in():
    params = make_mlp((400,), 10, init="torch_default").init(KEY, X)["params"]
    for layer, fan_in in (("Dense_0", 12), ("Dense_1", 400)):
        for leaf in params[layer].values():
            assert 0.5 / math.sqrt(fan_in) < jnp.abs(leaf).max() <= np.float32(1 / math.sqrt(fan_in))


def test_an_initializer_and_a_callable_of_ones_own():
    model = Mlp((4,), 2, jnp.tanh, jax.nn.initializers.ones, lambda fan_in: None)
    variables = model.init(KEY, X)
    expected = np.tanh(np.asarray(X).sum(axis=1, keepdims=True)) * 4
    np.testing.assert_allclose(model.apply(variables, X), np.repeat(expected, 2, axis=1), rtol=1e-5)


def test_gain_and_rates_are_lanes_of_one_program():
    traces = []

    @jax.jit
    def run(gain, rates, key):
        traces.append(gain)
        model = make_mlp((5, 7), 3, init="orthogonal", gain=gain)
        variables = model.init(KEY, X)
        return variables, model.apply(variables, X, rates, key)

    unit, _ = run(1.0, jnp.array([0.0, 0.5]), KEY)
    triple, _ = run(3.0, jnp.array([1.0, 0.2]), KEY)
    assert len(traces) == 1
    jax.tree.map(lambda one, other: np.testing.assert_allclose(3 * one, other, rtol=1e-6), unit, triple)
    lanes = jax.vmap(run, in_axes=(0, 0, None))(jnp.array([1.0, 3.0]), jnp.zeros((2, 2)), KEY)
    assert lanes[1].shape == (2, 6, 3)


@pytest.mark.parametrize("activation", ["relu", "elu", "gelu", "sigmoid", "tanh"])
def test_rate_0_has_the_bits_of_no_dropout(activation):
    model = make_mlp((16, 8), 3, activation=activation)
    variables = model.init(KEY, X)
    plain = loss_and_gradient(model, variables)
    assert_same_bits(plain, loss_and_gradient(model, variables, jnp.zeros(2), KEY))
    assert_same_bits(plain, loss_and_gradient(model, variables, [0.0, jnp.float32(0)], KEY))
    with pytest.raises(AssertionError):
        assert_same_bits(plain, loss_and_gradient(model, variables, (0.0, 0.3), KEY))


def test_rate_1_gives_zeros_and_zero_gradients():
    model = make_mlp((16, 8), 3)
    variables = model.init(KEY, X)
    (value, (gradient, to_inputs)) = loss_and_gradient(model, variables, (0.0, 1.0), KEY)
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves((gradient, to_inputs)))
    slope = jax.grad(lambda x, rate: dropout(KEY, x, rate).sum(), argnums=(0, 1))(X, 1.0)
    assert all(np.isfinite(leaf).all() for leaf in slope)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_follows_its_law(rate):
    x = jnp.full((200, 300), 3.0)
    dropped = jax.jit(dropout)(KEY, x, rate)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 3 / (1 - rate), rtol=1e-6)
    n = x.size
    assert stats.binomtest(int(kept.sum()), n, 1 - rate).pvalue > 1e-3
    assert stats.binomtest(int(kept.sum()), n, 0.95 * (1 - rate)).pvalue < 1e-3
    error = 3 * math.sqrt(rate / (1 - rate) / n)
    assert abs(float(dropped.mean()) - 3) < 5 * error


def test_dropout_is_independent_between_layers_and_keys():
    x = jnp.ones((50, 200))
    masks = [np.asarray(dropout(key, x, 0.5) != 0).ravel() for key in jax.random.split(KEY, 2)]
    agreement = int((masks[0] == masks[1]).sum())
    assert stats.binomtest(agreement, x.size).pvalue > 1e-3
    assert_same_bits(dropout(KEY, x, 0.5), dropout(KEY, x, 0.5))
    # two hidden layers of the identity: were their masks one, the product would have as many zeros as one
    model = Mlp(
        (200, 200), 200, "linear", lambda key, shape, dtype=None: jnp.eye(*shape), lambda fan_in: None
    )
    out = model.apply(model.init(KEY, x), x, 0.5, KEY)
    assert stats.binomtest(int((out != 0).sum()), x.size, 0.25).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_traced_rate_does_not_promote(dtype):
    assert jax.jit(dropout)(KEY, X.astype(dtype), 0.5).dtype == dtype


def test_evaluation_drops_nothing():
    model = make_mlp((16,), 3)
    variables = model.init(KEY, X)
    assert_same_bits(model.apply(variables, X), model.apply(variables, X, None, KEY))
    assert np.any(model.apply(variables, X) != model.apply(variables, X, 0.5, KEY))


def test_products_are_asked_for_in_full_precision():
    model = make_mlp((4,), 2)
    variables = model.init(KEY, X)
    assert "HIGHEST" in str(jax.make_jaxpr(model.apply)(variables, X))
    fast = make_mlp((4,), 2, precision="default")
    assert "HIGHEST" not in str(jax.make_jaxpr(fast.apply)(variables, X))


def test_bad_input_gets_one_line():
    model = make_mlp((16, 8), 3)
    variables = model.init(KEY, X)
    for call, line in [
        (lambda: model.apply(variables, X, 0.5), "needs a key"),
        (lambda: model.apply(variables, X, (0.5,), KEY), "1 dropout rates for 2"),
        (lambda: model.apply(variables, X, jnp.zeros(3), KEY), "3 dropout rates for 2"),
        (lambda: dropout(KEY, X, 1.5), "probability"),
        (lambda: dropout(KEY, X, math.nan), "probability"),
        (lambda: make_mlp((4, 0), 3), "at least one unit"),
        (lambda: make_mlp((4,), init="xavier"), "unknown initialization"),
        (lambda: make_mlp((4,), activation="rellu"), "relu"),
    ]:
        with pytest.raises(UsageError, match=line) as refusal:
            call()
        assert "\n" not in str(refusal.value)
