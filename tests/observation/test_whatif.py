"""The twin is the half model: its errors, its first overflow, its loops; and what is said of every operation."""

from __future__ import annotations

import functools

import halves
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sightings import assert_close, assert_same_bits, plant

from experiments.benchmarks.plants import PLANTS, first_overflow, inputs, line_of
from jaxstab import UsageError, observe, what_if
from jaxstab.compiler import compiler_options
from jaxstab.formats import format_of, round_to
from jaxstab.observation import loops, twins
from jaxstab.observation.statistics import SIMULATED
from jaxstab.observation.whatif import accumulation_error

ALL = pytest.mark.parametrize("case", halves.SHAPES)
F16 = format_of("float16")


def rehearsed(f, *args, dtype="float16"):
    return jax.jit(what_if(f, dtype))(*args)


def row(twin, kind, nth=0):
    """The dataset of the nth operation of that kind."""
    data = twin.to_dataset()
    return data.isel(site=np.flatnonzero(data.kind.values == kind)[nth])


def half(x):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


@ALL
def test_outputs_keep_their_bits(case):
    f, v, x = halves.apply(case), halves.draw(case, 1), halves.inputs(case)
    assert_same_bits(jax.jit(f)(v, x), rehearsed(f, v, x)[0])


@pytest.mark.parametrize("case", ["mlp", "cnn", "transformer"])  # which has layer norms
def test_gradients_are_what_they_were_but_for_how_the_compiler_fuses(case):
    """Which of their last bits that moves hangs on the processor."""
    f, v, x = halves.step(case), halves.draw(case, 1), halves.inputs(case)
    assert_close(jax.jit(f)(v, x), rehearsed(f, v, x)[0])


def test_a_changed_bit_is_seen(monkeypatch):
    true, factor = loops.bind, 1.0000003

    def planted(e, x):
        return [y * factor if e.primitive.name == "dot_general" else y for y in true(e, x)]

    plant(monkeypatch, loops, "bind", planted)
    with pytest.raises(AssertionError):
        test_outputs_keep_their_bits("mlp")


def errors(case, dtype, seeds=6):
    """Relative errors of outputs [seed, (twin, real)], and how far the two are apart over the real error."""
    x = halves.inputs(case)
    rehearse = jax.jit(
        what_if(halves.apply(case), dtype), compiler_options=compiler_options("cpu", is_small=True)
    )
    real = jax.jit(halves.apply(case, jnp.dtype(dtype)), compiler_options=halves.EXACT)
    rows = []
    for seed in range(1, seeds + 1):
        v = halves.draw(case, seed)
        wanted, twin = rehearse(v, x)
        rows.append([halves.relative(y, wanted) for y in (twin.outputs, real(v, x.astype(dtype)))])
    return np.array(rows)


def assert_errors_are_those_of_the_half_model(case, dtype):
    """The ratio of mean errors is 1 within three standard errors of either side's mean, and 3 %."""
    twin, real = errors(case, dtype).T
    spread = 3 * np.std(real, ddof=1) / real.mean() / np.sqrt(len(real))
    assert abs(twin.mean() / real.mean() - 1) < min(spread, 0.2) + 0.03


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        (dtype, case)
        for dtype in ("float16", "bfloat16")
        for case in halves.SHAPES
        if (dtype, case)
        != ("bfloat16", "transformer")  # it has nothing that the others have not, and costs most
    ],
)
def test_errors_are_those_of_the_half_model(case, dtype):
    assert_errors_are_those_of_the_half_model(case, dtype)


def lose_a_bit(x, f):
    return round_to(x, f._replace(mantissa_bits=f.mantissa_bits - 1, epsilon=2 * f.epsilon))


@pytest.mark.parametrize("case", ["mlp", "layernorm"])
def test_a_bit_lost_in_rounding_is_seen(case, monkeypatch):
    plant(monkeypatch, twins, "round_to", lose_a_bit)
    with pytest.raises(AssertionError):
        assert_errors_are_those_of_the_half_model(case, "float16")


def test_a_convolution_with_batch_normalization_is_the_half_model_to_the_bit():
    v, x = halves.draw("cnn", 1), halves.inputs("cnn")
    real = jax.jit(halves.apply("cnn", jnp.float16), compiler_options=halves.EXACT)(v, x.astype(jnp.float16))
    assert_same_bits(real.astype(jnp.float32), rehearsed(halves.apply("cnn"), v, x)[1].outputs)


def assert_overflow_is_placed(name, scale=1.0):
    f = PLANTS[name]
    told = first_overflow(rehearsed(f, scale * inputs())[1].seen, "absmax_rounded")
    look = observe(f, statistics=("absmax",), at="operations")
    seen = jax.jit(look, compiler_options=halves.EXACT)(inputs().astype(jnp.float16))[1]
    assert told == first_overflow(seen, "absmax")
    assert told is not None
    assert told[0] == line_of(f)


@pytest.mark.parametrize("name", PLANTS)
def test_the_first_overflow_is_at_the_line_of_the_half_run(name):
    assert_overflow_is_placed(name)


@pytest.mark.parametrize("name", ["square", "residual growth in scan"])
def test_an_overflow_elsewhere_is_seen(name):
    with pytest.raises(AssertionError):
        assert_overflow_is_placed(name, scale=1e-3)


def test_a_row_of_each_iteration_of_a_scan():
    _, twin = rehearsed(PLANTS["residual growth in scan"], inputs())
    absmax = row(twin, "add").absmax.values
    np.testing.assert_allclose(absmax, np.abs(inputs()).max() * 3.0 ** np.arange(1, 13), rtol=1e-5)
    assert list(np.isfinite(row(twin, "add").absmax_rounded.values)) == [True] * 8 + [False] * 4
    assert (row(twin, "add").headroom.values < 0)[8:].all()


def test_a_while_loop_has_the_largest_and_takes_the_path_of_float32():
    def f(x):
        return jax.lax.while_loop(lambda c: jnp.max(c) < 1000.2, lambda c: c * 2.001, x)

    out, twin = rehearsed(f, jnp.float32([0.5, 1.0]))
    steps, y = 0, half([0.5, 1.0])
    while 2.001**steps < 1000.2:
        steps, y = steps + 1, half(y * half(2.001))
    np.testing.assert_array_equal(twin.outputs, y)
    np.testing.assert_allclose(row(twin, "mul").absmax, out.max())


def test_a_branch_not_taken_is_nan():
    def f(x):
        return jax.lax.cond(x[0] > 0, lambda x: x * 3.1, lambda x: x - 1.7, x)

    out, twin = rehearsed(f, jnp.float32([2.0, 1.1]))
    assert np.isnan(row(twin, "sub").absmax)
    assert row(twin, "mul").absmax == out.max()
    np.testing.assert_array_equal(twin.outputs, half(half(3.1) * half([2.0, 1.1])))


def test_remat_and_functions_with_derivatives_of_their_own_are_entered():
    @jax.custom_vjp
    def triple(x):
        return 3.1 * x

    triple.defvjp(lambda x: (triple(x), None), lambda _, g: (3.1 * g,))
    x = jnp.linspace(0.3, 2, 7)
    for f in (triple, jax.checkpoint(lambda x: 3.1 * x), jax.jit(lambda x: 3.1 * x)):
        _, twin = rehearsed(f, x)
        np.testing.assert_array_equal(twin.outputs, half(half(3.1) * half(x)))
        assert [site.kind for site in twin.seen.sites] == ["mul"]
    _, gradient = rehearsed(jax.grad(lambda x: jnp.sum(triple(x))), x)
    np.testing.assert_array_equal(gradient.outputs, np.full(7, half(3.1)))
    _, relu = rehearsed(lambda x: jax.nn.relu(x - 1.0), x)
    np.testing.assert_array_equal(relu.outputs, np.maximum(half(half(x) - 1), 0))
    wanted, found = rehearsed(jax.nn.logsumexp, 100 * x)
    assert abs(found.outputs / wanted - 1) < 3 * F16.epsilon


@pytest.mark.parametrize("case", ["mlp", "layernorm"])
def test_seeds_under_vmap_are_as_one_by_one(case):
    step, x = what_if(halves.apply(case), "bfloat16"), halves.inputs(case)
    models = [halves.draw(case, seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    _, together = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, x)
    data = together.to_dataset(axes=("seed",))
    one = jax.jit(step)
    for i, model in enumerate(models):
        alone = one(model, x)[1].to_dataset()
        for name in ("absmax", "absmax_rounded", "magnitude"):
            np.testing.assert_allclose(data[name].isel(seed=i), alone[name], rtol=1e-2)
        np.testing.assert_allclose(data.error.isel(seed=i), alone.error, rtol=0.1, atol=1e-4)


def test_a_mean_does_not_overflow_by_its_count():
    x = jnp.full(1_000_000, 2.0) + jax.random.normal(jax.random.key(0), (1_000_000,))
    out, twin = rehearsed(jnp.mean, x)
    np.testing.assert_allclose(twin.outputs, out, rtol=F16.epsilon)
    assert not row(twin, "reduce_sum").overflow
    assert str(row(twin, "reduce_sum").dtype.values) == "float32"
    assert np.isinf(rehearsed(jnp.sum, x)[1].outputs)


def test_a_mask_is_the_lowest_of_the_format():
    low = float(jnp.finfo(jnp.float32).min)
    _, twin = rehearsed(lambda x: jnp.where(x > 0, x, low), jnp.float32([1, -1]))
    np.testing.assert_array_equal(twin.outputs, [1, -65504])
    _, twin = rehearsed(lambda x: jax.nn.softmax(jnp.where(x > 0, x, low)), jnp.float32([1, -1, -2]))
    np.testing.assert_array_equal(twin.outputs, [1, 0, 0])


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_what_is_drawn_and_what_is_no_float32_is_the_same(make):
    def drop(x, key, n, flag):
        def block(carry, _):
            h, key = carry
            key, own = jax.random.split(key)
            return (jnp.where(jax.random.bernoulli(own, 0.7, h.shape), h, 0.0), key), None

        (h, _), _ = jax.lax.scan(block, (x, key), length=2)
        return h, n + 70_001, ~flag, n.astype(jnp.float16) / 3

    x = 1 + jax.random.uniform(jax.random.key(0), (100, 1000))
    out, twin = rehearsed(drop, x, make(3), jnp.arange(9), jnp.array([True]), dtype="bfloat16")
    np.testing.assert_array_equal(out[0] == 0, twin.outputs[0] == 0)
    assert_same_bits(out[1:], twin.outputs[1:])


def test_callbacks_run_once():
    count = []

    def f(x):
        jax.debug.callback(lambda y: count.append(float(y)), x[0])
        return x * 3.0

    jax.block_until_ready(rehearsed(f, jnp.full(3, 0.1)))
    jax.effects_barrier()
    assert count == [np.float32(0.1)]


def test_what_is_no_function_or_format_gets_one_line():
    for arguments in ((jnp.sin, "float64"), (3, "float16"), (halves.MLP, "float16")):
        with pytest.raises(UsageError) as caught:
            getattr(what_if, "__wrapped__", what_if)(*arguments)
        assert "\n" not in str(caught.value)


def equations(jaxpr):
    """All of a program and of those inside, without those that only hold another."""
    inner = [[*twins.programs_in(e)] for e in jaxpr.eqns]
    return sum(sum(map(equations, one)) if one else 1 for one in inner)


def test_what_looking_costs_in_equations_and_programs():
    f, v, x = halves.apply("mlp"), halves.draw("mlp", 1), halves.inputs("mlp")
    plain, whole = jax.make_jaxpr(f)(v, x), jax.make_jaxpr(what_if(f, "float16"))(v, x)
    _, twin = rehearsed(f, v, x)
    added = equations(whole.jaxpr) - 2 * equations(plain.jaxpr)
    assert added / len(twin.seen.sites) < 90
    sampled = jax.make_jaxpr(twins.sample)(x, x).jaxpr.eqns[0].params["jaxpr"].eqns
    assert [e.primitive.name for e in sampled if e.primitive.name.startswith("reduce")] == [
        "reduce"
    ]  # one pass
    compiled = []
    note = functools.partial(lambda event, _, **__: compiled.append(event))
    jax.monitoring.register_event_duration_secs_listener(note)
    run = jax.jit(what_if(f, "float16"))
    jax.block_until_ready(run(v, x))
    count = compiled.count("/jax/core/compile/backend_compile_duration")
    jax.block_until_ready(run(v, x))
    assert compiled.count("/jax/core/compile/backend_compile_duration") == count == 1
    assert len(SIMULATED) == twin.seen.values[0].shape[-1]


def test_accumulation_error_is_in_the_table():
    _, twin = rehearsed(lambda a, b: a @ b, inputs(), inputs().T)
    data = row(twin, "dot_general")
    np.testing.assert_allclose(data.error_accumulated, accumulation_error(64, F16))
