"""`family_of`: a sweep of anybody's model is what its single runs are, and is cut, stored and resumed as any other."""

from __future__ import annotations

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxstab
from jaxstab.diagnosis import families
from jaxstab.engine.job import Job

sys.path.append(str(Path(__file__).parent.parent / "observation"))
import models

GAINS = [0.5, 1.0, 2.0]
SEEDS = 3


def sweep(family, seeds=SEEDS, store=None, **axes):
    keywords = {name: axes.pop(name) for name in ("keep", "devices") if name in axes}
    return jaxstab.sweep(family, jaxstab.grid(**axes), seeds, store=store, progress=False, **keywords)


def square(y):
    return jnp.mean(y**2)


def by_hand(model, gain, seed):
    """rms of every site, forward and backward, of one run without any of what is tested here."""
    variables = model.init(jax.random.fold_in(jax.random.key(0), seed), models.inputs())

    def by_gain(path, x):
        return gain * x if path[-1].key == "kernel" else x

    def loss(p, x):
        return square(model.apply({"params": p}, x))

    params = jax.tree_util.tree_map_with_path(by_gain, variables["params"])
    (value, _), seen = jax.jit(jaxstab.observe(jax.value_and_grad(loss)))(params, models.inputs())
    return value, seen.to_pandas()


def assert_as_by_hand(model, swept):
    for gain in GAINS:
        for seed in range(SEEDS):
            value, table = by_hand(model, gain, seed)
            one = swept.sel(gain=gain, seed=seed)
            np.testing.assert_allclose(one.loss, value, rtol=1e-5)
            np.testing.assert_allclose(one.rms, table.rms, rtol=2e-5)
            np.testing.assert_allclose(one.absmax, table.absmax, rtol=2e-5)
            assert one.direction.values.tolist() == table.direction.tolist()
            assert [p.split("[")[0] for p in one.path.values] == table.path.tolist()


@pytest.fixture(scope="module")
def scan():
    return jaxstab.family_of(models.LinenScan(), models.inputs(), loss=square)


@pytest.fixture(scope="module")
def swept(scan):
    return sweep(scan, gain=GAINS)


def test_a_sweep_is_what_single_runs_are(swept):
    assert_as_by_hand(models.LinenScan(), swept)
    assert swept.attrs["programs"] == 1
    assert (swept.status == 0).all()


def test_a_gain_on_stacked_scales_is_seen(monkeypatch):
    """The comparison fails on what it is there for: a norm's scale, with two dimensions under a scan, is no weight."""
    monkeypatch.setattr(families, "NO_WEIGHTS", ())
    family = jaxstab.family_of(models.LinenScan(), models.inputs(), loss=square)
    with pytest.raises(AssertionError):
        assert_as_by_hand(models.LinenScan(), sweep(family, gain=GAINS))


def test_iterations_of_a_scan_are_sites(swept):
    forward = swept.isel(site=(swept.direction == "forward") & (swept.kind == "Dense"))
    inside = [f"LinenScan/blocks/up[{i}]" for i in range(models.LENGTH)]
    assert forward.path.values.tolist() == [*inside, "LinenScan/head"]
    assert all(str(source).startswith(models.__file__) for source in forward.source.values)
    assert forward.path.attrs["long_name"]
    assert {*swept.source[swept.path == "LinenScan"].values} == {""}


def test_cut_otherwise_and_asked_for_less_the_bits_are_the_same(scan, swept):
    for part in (sweep(scan, gain=GAINS, devices=1), sweep(scan, [2, 1], gain=GAINS)):
        assert part.identical(swept.sel(seed=part.seed))
    less = sweep(scan, gain=GAINS, keep=["rms"])
    assert {*less.data_vars} == {"rms", "status"}
    np.testing.assert_allclose(less.rms, swept.rms, rtol=2e-5)


def test_it_is_stored_and_resumed_by_another_family_of_the_same_model(scan, tmp_path, monkeypatch):
    ran = []
    run = Job.run
    monkeypatch.setattr(
        Job, "run", lambda self, chunks, **k: ran.append(len(chunks)) or run(self, chunks, **k)
    )
    whole = sweep(scan, 4, gain=GAINS)
    sweep(scan, 2, tmp_path, gain=GAINS)
    again = jaxstab.family_of(models.LinenScan(), models.inputs(), loss=square)
    grown = sweep(again, 4, tmp_path, gain=GAINS)
    assert ran[-1] > 0
    assert grown.drop_attrs().identical(whole.drop_attrs())
    assert jaxstab.open_store(tmp_path).drop_attrs().identical(whole.drop_attrs())
    sweep(again, 4, tmp_path, gain=GAINS)
    assert ran[-1] == 0
    with pytest.raises(jaxstab.UsageError, match="the program is another"):
        sweep(jaxstab.family_of(models.LinenScan(), models.inputs()), 4, tmp_path, gain=GAINS)
    with pytest.raises(jaxstab.UsageError, match="the data that every lane reads are others"):
        sweep(
            jaxstab.family_of(models.LinenScan(), 2 * models.inputs(), loss=square), 4, tmp_path, gain=GAINS
        )


class Tall(nn.Module):
    """Beyond float16, and within float32, in its second layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(1e-6 * nn.Dense(8, name="tall")(3e5 * nn.Dense(8, name="low")(x)))


def test_a_dtype_is_a_program_and_an_overflow_in_it_is_seen():
    data = sweep(jaxstab.family_of(Tall(), models.inputs()), dtype=["float32", "bfloat16", "float16"])
    assert data.attrs["programs"] == 3
    assert data.status.sel(dtype="float32").values.tolist() == [0, 0, 0]
    assert data.status.sel(dtype="float16").values.tolist() == [1, 1, 1]
    forward = data.isel(site=data.direction == "forward")
    overflowing = ~np.isfinite(forward.absmax.sel(dtype="float16")).all("seed")
    assert forward.path.values[overflowing.values].tolist()[0] == "Tall/tall"
    exact, half = (forward.rms.sel(dtype=d).isel(site=0) for d in ("float32", "bfloat16"))
    assert 0 < abs(half / exact - 1).max() < 2**-7


def test_an_nnx_module_brings_its_parameters():
    model = models.Nnx("scan", nnx.Rngs(0))
    data = sweep(jaxstab.family_of(model, models.inputs(), loss=square), gain=[1.0, 2.0])
    assert (data.loss == data.loss.isel(seed=0)).all()  # it has no rngs
    np.testing.assert_allclose(data.loss.sel(gain=1.0, seed=0), square(model(models.inputs())), rtol=1e-5)
    model.blocks.up.kernel[...] *= 2
    model.head.kernel[...] *= 2
    np.testing.assert_allclose(data.loss.sel(gain=2.0, seed=0), square(model(models.inputs())), rtol=1e-5)


def test_an_equinox_module_brings_its_parameters():
    eqx = pytest.importorskip("equinox")

    class Batched(eqx.Module):
        inner: eqx.nn.MLP

        def __call__(self, x):
            return jax.vmap(self.inner)(x)

    model = Batched(eqx.nn.MLP(models.WIDTH, 2, 8, 1, key=jax.random.key(0)))
    data = sweep(jaxstab.family_of(model, models.inputs(), loss=square), gain=[1.0, 2.0])
    np.testing.assert_allclose(data.loss.sel(gain=1.0), square(model(models.inputs())), rtol=1e-5)
    doubled = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) and x.ndim == 2 else x, model)
    np.testing.assert_allclose(data.loss.sel(gain=2.0), square(doubled(models.inputs())), rtol=1e-5)
    assert {"forward", "backward"} == {*data.direction.values}


def test_rngs_of_nnx_change_with_the_seed():
    model = nnx.Sequential(nnx.Linear(models.WIDTH, 8, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    loss = sweep(jaxstab.family_of(model, models.inputs())).loss.values
    assert len({*loss.tolist()}) == SEEDS


def test_a_function_of_scopes_and_its_branches():
    loss, weights = models.plain()
    data = sweep(jaxstab.family_of(loss, weights, models.inputs(), loss=lambda y: y), gain=[1.0])
    np.testing.assert_allclose(data.loss, loss(weights, models.inputs()), rtol=1e-5)
    assert "stack/layer[2]" in data.path.values
    assert {"", "0"} <= {*data.branch.values}
    assert (data.status == 0).all()
    assert "branch" in data.rms.attrs["undefined"]


def untaken(params, x):
    with jax.named_scope("choice"):
        return jax.lax.cond(jnp.sum(x) > 1e6, jnp.log, models.scaled, x @ params)


def test_a_branch_that_was_not_taken_is_no_failure():
    data = sweep(jaxstab.family_of(untaken, jnp.ones((models.WIDTH, 2)), 1e6 + jnp.ones((4, models.WIDTH))))
    assert np.isnan(data.rms.isel(site=data.branch != "")).any()
    assert (data.status == 0).all()


class Language(nn.Module):
    """Tokens in; running averages and dropout."""

    @nn.compact
    def __call__(self, tokens, train):
        h = nn.BatchNorm(use_running_average=not train)(nn.Embed(11, 8)(tokens))
        return nn.Dense(11, name="logits")(nn.Dropout(0.5, deterministic=not train)(h))


def test_tokens_rngs_and_variables():
    tokens, keys = jnp.arange(12).reshape(3, 4) % 11, {"dropout": 0}
    given = {"rngs": keys, "apply_kwargs": {"train": True}}
    data = sweep(jaxstab.family_of(Language(), tokens, **given), dtype=["float32", "float16"])
    assert (data.status == 0).all()
    assert len({*data.loss.sel(dtype="float32").values.tolist()}) == SEEDS
    variables = Language().init(jax.random.key(5), tokens, train=False)
    fixed = sweep(jaxstab.family_of(Language(), tokens, variables=variables, **given))
    embedded = fixed.rms.isel(site=(fixed.kind == "Embed") & (fixed.direction == "forward"))
    expected = jnp.sqrt(square(variables["params"]["Embed_0"]["embedding"][tokens]))
    np.testing.assert_allclose(embedded.values.ravel(), np.full(SEEDS, expected), rtol=1e-5)
    assert len({*fixed.loss.values.tolist()}) == SEEDS  # its dropout


class Logarithm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.exp(-jnp.abs(nn.Dense(4)(jnp.log(nn.relu(nn.Dense(8, name="first")(x))))))


def test_a_planted_infinity_is_the_lanes_fate_whatever_is_kept():
    """The output is finite and the gradient is not."""
    family = jaxstab.family_of(Logarithm(), models.inputs(), statistics=["zeros"])
    for keep in (None, ["loss"], []):
        assert sweep(family, keep=keep).status.values.tolist() == [1, 1, 1]


def whole(params, x):
    return x @ params


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f, x: f(models.LinenMLP, x), ["the class LinenMLP"]),
        (lambda f, x: f(3, x), ["family_of needs a function", "3"]),
        (lambda f, x: f(whole), ["family_of(f, parameters, inputs)"]),
        (lambda f, x: f(whole, jnp.ones((8, 2), int), x), ["whole", "no array of floats"]),
        (lambda f, x: f(nnx.Linear(8, 2, rngs=nnx.Rngs(0)), x, variables={}), ["variables", "linen"]),
        (lambda f, x: f(models.LinenMLP(), x, variables={"kernel": 1}), ["'params'"]),
        (lambda f, x: f(models.LinenMLP(), x, statistics=["rmss"]), ["'rmss'", "'rms'", "absmax"]),
        (lambda f, x: f(models.LinenMLP(), x, loss=lambda y: y), ["loss", "(4, 2)"]),
        (lambda f, x: f(models.LinenMLP(), x, x), ["LinenMLP", "float32[4, 8], float32[4, 8]"]),
        (lambda f, x: f(whole, jnp.ones((7, 2)), x), ["whole", "float32[4, 8]"]),
        (lambda f, x: f(Language(), jnp.zeros((2, 2), int), apply_kwargs={"train": True}), ["'dropout'"]),
        (lambda f, x: f(Language(), jnp.zeros((2, 2), int), rngs=3), ["rngs=3"]),
        (lambda f, x: sweep(f(whole, jnp.ones((8, 2)), x), dtype="float64"), ["'float64'", "float16"]),
        (lambda f, x: sweep(f(whole, jnp.ones((8, 2)), x), gian=1.0), ["'gian'", "'gain'", "dtype"]),
        (lambda f, x: sweep(f(whole, jnp.ones((8, 2)), x), keep=["rm"]), ["'rm'", "'rms'", "loss"]),
    ],
)
def test_bad_input_gets_one_line(call, said):
    with pytest.raises(jaxstab.UsageError) as caught:
        call(jaxstab.family_of, models.inputs())
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in said), text
