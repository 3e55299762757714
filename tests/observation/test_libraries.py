"""Equinox and Haiku under observation; and what every library's user is told of a mistake."""

from __future__ import annotations

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sightings import assert_same_bits, rms, rows

from jaxstab.errors import UsageError
from jaxstab.observation import calls, observe

eqx = pytest.importorskip("equinox", reason="observation of Equinox needs Equinox")
hk = pytest.importorskip("haiku", reason="observation of Haiku needs Haiku")

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3))


class Listed(eqx.Module):
    """Layers in a list, a function among them, and one layer that is no part of it."""

    layers: list
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(3, 8, key=first), jax.nn.relu, eqx.nn.Linear(8, 2, key=second)]
        self.norm = eqx.nn.LayerNorm(2)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def by_hand(layers, x, activation=jax.nn.relu):
    """What each of Equinox's linear layers leaves, for a batch."""
    left = []
    for i, layer in enumerate(layers):
        left.append(jnp.matmul(activation(x) if i else x, layer.weight.T, precision="highest") + layer.bias)
        x = left[-1]
    return left


def equinox_mlp():
    model = eqx.nn.MLP(3, 2, 8, 2, key=KEY)
    left = by_hand(model.layers, X)
    return model, {"MLP": left[-1]} | {f"MLP/layers/{i}": y for i, y in enumerate(left)}


def equinox_list():
    model = Listed(KEY)
    left = by_hand([model.layers[0], model.layers[2]], X)
    out = jax.vmap(eqx.nn.LayerNorm(2))(left[1])
    return model, {"Listed/layers/0": left[0], "Listed/layers/2": left[1], "Listed/norm": out, "Listed": out}


def equinox_sequential():
    first, second = eqx.nn.Linear(3, 8, key=KEY), eqx.nn.Linear(8, 2, key=jax.random.key(5))
    left = by_hand([first, second], X)
    model = eqx.nn.Sequential([first, eqx.nn.Lambda(jax.nn.relu), second])
    inner = dict(enumerate([left[0], jax.nn.relu(left[0]), left[1]]))
    return model, {"Sequential": left[1]} | {f"Sequential/layers/{i}": y for i, y in inner.items()}


EQUINOX = pytest.mark.parametrize("make", [equinox_mlp, equinox_list, equinox_sequential])


def square(model, x):
    return jnp.mean(jax.vmap(model)(x) ** 2)


def assert_rms(found, wanted):
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], [rms(value)], rtol=1e-5, err_msg=path)


@EQUINOX
def test_equinox_under_filter_jit_and_filter_value_and_grad(make):
    model, wanted = make()
    step = eqx.filter_value_and_grad(square)
    plain = eqx.filter_jit(step)(model, X)
    arrays, rest = eqx.partition(model, eqx.is_array)
    seeing = jax.jit(lambda arrays, x: observe(step)(eqx.combine(arrays, rest), x))
    (value, gradient), seen = seeing(arrays, X)
    assert_same_bits(eqx.filter(plain, eqx.is_array), eqx.filter((value, gradient), eqx.is_array))
    assert_rms(rows(seen), wanted)
    assert rows(seen, "backward").keys() == wanted.keys()
    assert len(seen.sites) == 2 * len(wanted)
    assert_same_bits(plain, eqx.filter_jit(step)(model, X))


@EQUINOX
def test_equinox_with_filter_jit_inside(make):
    model, wanted = make()
    step = eqx.filter_jit(eqx.filter_value_and_grad(square))
    out, seen = observe(step)(model, X)
    assert_same_bits(step(model, X), out)
    assert_rms(rows(seen), wanted)
    assert rows(seen, "backward").keys() == wanted.keys()


@EQUINOX
def test_equinox_without_any_transformation_and_vmapped(make):
    model, wanted = make()
    out, seen = observe(model)(X[0])
    assert_same_bits(model(X[0]), out)
    assert_rms(rows(seen), {path: y[0] for path, y in wanted.items()})
    out, seen = jax.vmap(observe(model))(X)
    assert_same_bits(jax.vmap(model)(X), out)
    assert rows_of_seeds(seen).keys() == wanted.keys()
    for path, value in rows_of_seeds(seen).items():
        np.testing.assert_allclose(value, [rms(y) for y in wanted[path]], rtol=1e-5)


def rows_of_seeds(seen):
    return {site.path: np.asarray(v)[:, 0] for site, v in zip(seen.sites, seen.values, strict=True)}


def test_gradients_of_equinox_are_those_with_respect_to_the_outputs():
    model, _ = equinox_mlp()
    _, seen = observe(eqx.filter_value_and_grad(square))(model, X)
    hidden = by_hand(model.layers, X)

    def rest(y, number):
        for layer in model.layers[number + 1 :]:
            y = jnp.matmul(jax.nn.relu(y), layer.weight.T, precision="highest") + layer.bias
        return jnp.mean(y**2)

    found = rows(seen, "backward")
    for number, y in enumerate(hidden):
        np.testing.assert_allclose(found[f"MLP/layers/{number}"], [rms(jax.grad(rest)(y, number))], rtol=1e-5)


def test_observing_under_filter_jit_warns_of_nothing():
    model, wanted = equinox_mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, seen = eqx.filter_jit(observe(eqx.filter_value_and_grad(square)))(model, X)
    assert_rms(rows(seen), wanted)


def test_equinox_classes_are_as_they_were():
    model, _ = equinox_mlp()
    before = {owner: vars(owner)["__call__"] for owner in (Listed, eqx.nn.MLP, eqx.nn.Linear)}
    with calls.marked_calls():
        assert all(vars(owner)["__call__"] is not call for owner, call in before.items())
    observe(model)(X[0])
    assert all(vars(owner)["__call__"] is call for owner, call in before.items())


def haiku_mlp(x):
    return hk.nets.MLP([8, 8, 2], name="net")(x)


def haiku_sequential(x):
    return hk.Sequential([hk.Linear(8, name="up"), jax.nn.relu, hk.Linear(8), jax.nn.relu, hk.Linear(2)])(x)


PATHS = {
    haiku_mlp: ["net/linear_0", "net/linear_1", "net/linear_2", "net"],
    haiku_sequential: ["sequential/up", "sequential/linear", "sequential/linear_1", "sequential"],
}
PARAMETERS = {
    haiku_mlp: ["net/~/linear_0", "net/~/linear_1", "net/~/linear_2"],
    haiku_sequential: ["up", "linear", "linear_1"],
}


@pytest.mark.parametrize("forward", PATHS)
def test_haiku(forward):
    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(KEY, X)
    step = jax.value_and_grad(lambda params, x: jnp.mean(model.apply(params, x) ** 2))
    out, seen = jax.jit(observe(step))(params, X)
    assert_same_bits(jax.jit(step)(params, X), out)
    paths = PATHS[forward]
    assert [s.path for s in seen.sites if s.direction == "forward"] == paths
    assert [s.path for s in seen.sites if s.direction == "backward"] == paths[::-1]
    y, wanted = X, {}
    for i, (path, name) in enumerate(zip(paths[:-1], PARAMETERS[forward], strict=True)):
        y = jnp.matmul(jax.nn.relu(y) if i else y, params[name]["w"], precision="highest") + params[name]["b"]
        wanted[path] = wanted[paths[-1]] = y
    assert_rms(rows(seen), wanted)
    np.testing.assert_allclose(rows(seen, "backward")[paths[-1]], [rms(2 * y / y.size)], rtol=1e-5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, name="norm")(nn.Dense(3, name="up")(x))
        return nn.Dropout(0.5, deterministic=False)(x) + self.variable("cache", "shift", jnp.zeros, 3).value


VARIABLES = Linen().init({"params": KEY, "dropout": KEY}, X)
RNGS = {"dropout": KEY}


def linen(without=(), rngs=RNGS, mutable=("batch_stats",), **changed):
    kept = {name: value for name, value in VARIABLES.items() if name not in without}
    return lambda x: Linen().apply(kept | changed, x, rngs=rngs, mutable=list(mutable))


class Counter(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1
        return x + 1


COUNTER = Counter()
MISTAKES = {
    "class of linen": (Linen, ["not the class Linen", "write Linen(...)"]),
    "class of NNX": (Counter, ["not the class Counter", "write Counter(...)"]),
    "class of Equinox": (Listed, ["not the class Listed", "write Listed(...)"]),
    "linen without variables": (Linen(), ["Linen", "observe its apply"]),
    "NNX in a closure": (lambda x: COUNTER(x), ["changes an NNX module", "as an argument"]),
    "NNX itself": (COUNTER, ["Counter changes an NNX module", "as an argument"]),
    "no arrays": (lambda x: None, ["returns no arrays"]),
    "NumPy": (lambda x: np.asarray(x) + 1, ["NumPy"]),
    "rng": (linen(rngs=None), ["rng 'dropout'", "rngs={'dropout': key}"]),
    "collection": (
        linen(without=("batch_stats",), mutable=()),
        ["'mean'", "collection 'batch_stats'", "/norm"],
    ),
    "parameter": (linen(params={"up": {"kernel": jnp.eye(3)}}), ["'bias'", "/up", "'params'"]),
    "variable": (linen(cache={"other": X}), ["'shift'", "collection 'cache'"]),
    "mutable": (linen(mutable=()), ["'batch_stats'", "mutable=['batch_stats']"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_gets_one_line_that_says_what_to_do(case):
    f, said = MISTAKES[case]
    with pytest.raises(UsageError) as raised:
        observe(f)(X)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in said), message


def test_what_is_told_to_do_works():
    (_, model), seen = observe(lambda model, x: (model(x), model))(Counter(), X)
    assert model.calls[...] == 1
    np.testing.assert_allclose(rows(seen)["Counter"], [rms(X + 1)], rtol=1e-6)
    _, seen = observe(linen())(X)
    assert {site.path for site in seen.sites} >= {"Linen/up", "Linen/norm", "Linen"}


def test_an_error_of_the_users_own_is_left_as_it_is():
    def f(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        observe(f)(X)
