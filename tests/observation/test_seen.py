"""What observation adds to a program, leaves behind, says of what it saw, and refuses."""

from __future__ import annotations

import functools
import threading

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from models import BATCH, CASES, LENGTH, WIDTH
from sightings import assert_same_bits, rms

from jaxstab.errors import UsageError
from jaxstab.observation import mark, observe, walk
from jaxstab.observation.statistics import STATISTICS, measure


def primitives(jaxpr):
    inside = [primitives(inner) for e in jaxpr.eqns for inner in walk.programs_in(e)]
    return sum(inside, [e.primitive.name for e in jaxpr.eqns])


def count(jaxpr):
    return len(primitives(jaxpr))


@pytest.mark.parametrize("case", ["linen", "linen_remat", "nnx"])
def test_nothing_is_added_to_the_program_but_the_statistics(case):
    loss, params = CASES[case]()
    x, step = models.inputs(), jax.value_and_grad(loss)
    program, shape = jax.make_jaxpr(observe(step), return_shape=True)(params, x)
    measured = jax.make_jaxpr(jax.jit(functools.partial(measure, ("rms", "absmax"))))(x).jaxpr
    assert primitives(measured).count("reduce") == 1  # one pass over the entries
    one = count(measured)
    assert (
        one <= 13
    )  # with the call; two keep the NaN that XLA's maximum would drop, two are the reduction's own
    added = count(program.jaxpr) - count(jax.make_jaxpr(step)(params, x).jaxpr)
    assert added == one * len(shape[1].sites)
    assert not walk.has_marks(program.jaxpr)


MOVES = {
    "transpose": lambda x: x.T,
    "reshape": lambda x: x.reshape(-1),
    "rev": lambda x: jnp.flip(x, 0),
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x, (3, *x.shape)),
    "convert_element_type": lambda x: x.astype(jnp.float32),
}


@pytest.mark.parametrize("kind", MOVES)
def test_what_is_only_moved_is_measured_once(kind):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, WIDTH)), jnp.float16)
    every = tuple(name for name in STATISTICS if not STATISTICS[name].knows_axes)

    def f(x):
        return MOVES[kind](jnp.exp(x))

    look = observe(f, statistics=every, at="operations")
    y, seen = jax.jit(look)(x)
    assert [site.kind for site in seen.sites] == ["exp", kind]
    assert [site.shape for site in seen.sites] == [x.shape, y.shape]
    np.testing.assert_allclose(seen.values[1], measure(every, y), rtol=1e-6)
    program = jax.make_jaxpr(look)(x).jaxpr
    assert [e.params.get("name") for e in program.eqns].count("measure") == 1


def test_what_knows_axes_is_measured_again():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, WIDTH)), jnp.float32)
    names = ("unit_spread", "rms")
    _, seen = jax.jit(observe(lambda x: jnp.exp(x).T, statistics=names, at="operations"))(x)
    for value, y in zip(seen.values, (jnp.exp(x), jnp.exp(x).T), strict=True):
        np.testing.assert_allclose(value, measure(names, y), rtol=1e-6)
    assert seen.values[0][0] != seen.values[1][0]


def test_rounding_to_a_smaller_dtype_is_no_move():
    _, seen = jax.jit(observe(lambda x: (2 * x).astype(jnp.float16), at="operations"))(jnp.full(4, 1e6))
    assert np.isfinite(seen.values[0]).all()
    assert np.isinf(seen.values[1]).all()


def test_one_trace_one_program_and_no_marks_left_in_caches():
    traces = []
    loss, params = CASES["linen"]()

    @jax.jit
    def counted(params, x):
        traces.append(1)
        return loss(params, x)

    x = models.inputs()
    plain = counted(params, x)
    step = jax.jit(observe(counted))
    for scale in (1.0, 2.0):
        _, seen = step(params, scale * x)
        assert len(seen.sites) == 5
    assert step._cache_size() == 1
    assert len(traces) == 2  # once plain, once observed
    assert_same_bits(plain, counted(params, x))
    assert len(traces) == 2
    assert not walk.has_marks(jax.make_jaxpr(counted)(params, x).jaxpr)


def test_classes_and_modules_are_as_before_even_after_an_error():
    calls = {c: vars(c)["__call__"] for c in (nnx.Linear, nnx.LayerNorm, models.Residual)}
    model = models.Nnx("plain", nnx.Rngs(0))

    def fails(x):
        model(x)
        raise RuntimeError("after the call")

    with pytest.raises(RuntimeError, match="after the call"):
        observe(fails)(models.inputs())
    observe(lambda x: model(x))(models.inputs())
    assert all(vars(c)["__call__"] is call for c, call in calls.items())
    assert not any("_jaxstab_path" in vars(m) for _, m in nnx.iter_modules(model))


def test_threads_observe_side_by_side():
    found = {}

    def run(i):
        loss, params = models.of_nnx("plain")
        found[i] = observe(loss)(params, models.inputs())[1].sites

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({tuple(site.path for site in sites) for sites in found.values()}) == 1


def test_operations_are_seen_with_names_and_lines():
    loss, params = CASES["linen"]()
    _, seen = jax.jit(observe(jax.grad(loss), at="operations"))(params, models.inputs())
    products = [s for s in seen.sites if s.kind == "dot_general"]
    assert {s.path for s in products} >= {f"LinenMLP/layer_{i}" for i in range(3)}
    assert all("models.py:" in s.source for s in products)
    plain = jax.jit(observe(models.plain()[0], at="operations"))(models.plain()[1], models.inputs())[1]
    assert any(site.loops == (LENGTH,) and site.kind == "tanh" for site in plain.sites)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_statistics_are_right(name, dtype):
    x = (
        jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, WIDTH)) + 0.5, dtype)
        .at[0, :2]
        .set(0)
        .at[:, 3]
        .set(0)
    )
    exact = np.asarray(x, np.float64)

    def spread(axis):
        return rms(exact - exact.mean(axis, keepdims=True)) / rms(exact)

    wanted = {
        "rms": rms(exact),
        "absmax": np.abs(exact).max(),
        "mean": exact.mean(),
        "zeros": (exact == 0).mean(),
        "nans": 0,
        "infs": 0,
        "unit_spread": spread(1),
        "sample_spread": spread(0),
        "dead_units": 1 / WIDTH,
        "absmin": np.abs(exact)[exact != 0].min(),
        "log2_rms": np.log2(rms(exact)),
    }[name]
    found = measure((name,), x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [wanted], rtol=1e-5, atol=1e-6)


def test_overflow_of_the_statistic_is_told_from_overflow_of_the_value():
    def f(x):
        return mark(x, "x"), mark(x * 1e30, "large"), mark(x * jnp.inf, "inf"), mark(x * 1e-30, "small")

    _, seen = jax.jit(observe(f, statistics=("rms", "absmax", "log2_rms")))(jnp.ones(4))
    data = seen.to_dataset().set_index(site="path")
    assert data["finite"].sel(site=["x", "large", "inf", "small"]).values.tolist() == [
        True,
        True,
        False,
        True,
    ]
    assert data["rms_in_range"].sel(site=["x", "large", "inf", "small"]).values.tolist() == [
        True,
        False,
        False,
        False,
    ]
    np.testing.assert_allclose(
        data["log2_rms"].sel(site=["large", "small"]), np.log2([1e30, 1e-30]), rtol=1e-6
    )


def test_the_dataset_describes_itself():
    loss, params = CASES["linen_scan"]()
    _, seen = jax.jit(observe(jax.grad(loss)))(params, models.inputs())
    data = seen.to_dataset()
    assert data["rms"].dims == ("site", "iteration")
    assert all(v.attrs["long_name"] and v.attrs["units"] for v in data.variables.values())
    assert np.isnan(data["rms"].values).sum() == 2 * 2 * (LENGTH - 1)  # head and root, both directions
    assert len(seen.to_pandas()) == np.isfinite(data["rms"].values).sum()
    with pytest.raises(UsageError, match="names 1 axes, but vmap put 0 in front"):
        seen.to_dataset(axes=("seed",))


def unchecked(*args, **kwargs):
    """observe as it is outside of tests, where no type is checked at run time."""
    return getattr(observe, "__wrapped__", observe)(*args, **kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unchecked(3), "observe needs a function, not 3"),
        (lambda: observe(jnp.sin, statistics=("rmss",)), "unknown statistic 'rmss'. Did you mean 'rms'"),
        (lambda: observe(jnp.sin, statistics=()), "one name or more"),
        (lambda: unchecked(jnp.sin, statistics=4), "statistics must be names, not 4"),
        (lambda: observe(jnp.sin, at="layers"), "unknown at 'layers'. Choices: calls, operations"),
        (lambda: observe(lambda x: None)(jnp.ones(2)), "returns no arrays"),
        (lambda: observe(models.LinenMLP)(), "not the class LinenMLP"),
        (lambda: observe(lambda x: jnp.asarray(np.asarray(x)))(jnp.ones(2)), "into one of NumPy"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_python_numbers_and_other_outputs_stay_as_they_are():
    out, _ = observe(lambda x, n, how=None: (x * n, how, n))(jnp.ones(2), 3, how="text")
    assert out[1:] == ("text", 3)


def test_equinox_modules():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(WIDTH, 2, WIDTH, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    step = jax.value_and_grad(lambda p, x: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2))
    out, seen = jax.jit(observe(step))(params, models.inputs())
    assert_same_bits(jax.jit(step)(params, models.inputs()), out)
    forward = [s.path for s in seen.sites if s.direction == "forward"]
    assert forward == [*(f"MLP/layers/{i}" for i in range(3)), "MLP"]


def test_haiku_modules():
    hk = pytest.importorskip("haiku")
    model = hk.without_apply_rng(hk.transform(lambda x: jnp.mean(hk.nets.MLP([WIDTH, 2])(x) ** 2)))
    params = model.init(jax.random.key(0), models.inputs())
    step = jax.value_and_grad(model.apply)
    out, seen = jax.jit(observe(step))(params, models.inputs())
    assert_same_bits(jax.jit(step)(params, models.inputs()), out)
    assert {s.direction for s in seen.sites if s.path.endswith("linear_1")} == {"forward", "backward"}
