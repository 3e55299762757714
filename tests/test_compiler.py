"""What programs are compiled with: NaN is passed on, and few numbers are one kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from jaxstab import compiler
from jaxstab.compiler import FEW, ON_CPU, compiler_options, one_kernel
from jaxstab.engine import program
from jaxstab.nets import haar


def test_processors_get_options_and_accelerators_none(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options("cpu") == ON_CPU
    assert compiler_options("cpu", is_small=True).keys() > ON_CPU.keys()
    assert compiler_options("gpu") == compiler_options("tpu", is_small=True) == {}


def test_what_a_user_says_of_one_stands(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_hlo_as_text --xla_cpu_prefer_vector_width=256")
    assert compiler_options("cpu").keys() == ON_CPU.keys() - {"xla_cpu_prefer_vector_width"}


def test_an_option_that_is_unknown_is_left_out_alone(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(compiler, "ON_CPU", ON_CPU | {"xla_cpu_of_another_day": True})
    assert compiler_options("cpu") == ON_CPU


def test_programs_are_compiled_with_them(monkeypatch):
    @jaxstab.family(dims={})
    def walk(key, *, drift: float = 0.0):
        return {"end": drift + jax.random.normal(key)}

    monkeypatch.setattr(program, "compiler_options", lambda platform: {f"none_for_{platform}": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"none_for_{jax.default_backend()}"):
        jaxstab.sweep(walk, jaxstab.grid(drift=jnp.array([0.0])), 2)


@jaxstab.family(dims={"largest": ("layer",)})
def relus(key, *, bad: float = 0.0, examples: int = 16, width: int = 64, depth: int = 3):
    """A user's network, one number of whose inputs is `bad`."""
    x_key, w_key = jax.random.split(key)
    h = jax.random.normal(x_key, (examples, width)).at[0, 0].set(bad)
    w = jax.random.normal(w_key, (width, width)) * (2 / width) ** 0.5
    seen = []
    for _ in range(depth):
        h = jax.nn.relu(h @ w + w[0])
        seen.append(jnp.max(h))
    return {"largest": jnp.stack(seen), "first": jnp.max(h, axis=-1)[0], "pooled": jnp.max(h, axis=0)[0]}


@pytest.mark.parametrize(("examples", "width"), [(4, 16), (16, 64), (256, 64)])
def test_a_familys_network_passes_nan_on(examples, width):
    found = jaxstab.sweep(relus, jaxstab.grid(bad=[0.0, np.nan], examples=examples, width=width), 2)
    for name in ("largest", "first", "pooled"):
        well, bad = (found[name].isel(bad=i).values for i in (0, 1))
        assert np.isfinite(well).all()
        assert np.isnan(bad).all(), name


def test_without_the_options_it_does_not(monkeypatch):
    """Of a size that no other test has compiled."""
    x = jnp.full((16, 12, 12, 16), jnp.nan)
    if np.isnan(jax.jit(lambda x: jnp.max(x, axis=-1))(x)).all():
        pytest.skip("maxima of this backend keep NaN by themselves")
    monkeypatch.setattr(program, "compiler_options", lambda platform: {})
    found = jaxstab.sweep(relus, jaxstab.grid(bad=[np.nan], examples=192, width=64), 2)
    assert not np.isnan(found["largest"]).all()


@pytest.mark.parametrize("is_small", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_a_program_passes_nan_on(is_small, axis):
    options = compiler_options(jax.default_backend(), is_small=is_small)
    x = jnp.full((16, 12, 12, 16), jnp.nan)
    assert np.isnan(jax.jit(lambda x: jnp.max(x, axis=axis), compiler_options=options)(x)).all()


def kernels_of(f, x):
    """Fusions and reductions of the program that are not within a marked call, and how many calls there are."""
    text = jax.jit(f).lower(x).compile().as_text()
    entry = text[text.index("\nENTRY") :].splitlines()
    return sum(" fusion(" in line for line in entry), sum("xla_cpu_small_call" in line for line in entry)


def of_rank(k, lanes):
    x = np.random.default_rng(0).normal(size=(lanes, k, 2 * k)).astype(np.float32)
    return jnp.asarray(x @ x.transpose(0, 2, 1))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="kernels are marked for CPUs")
def test_few_numbers_are_one_kernel_and_many_are_not():
    fusions, calls = kernels_of(jax.vmap(haar.cholesky), of_rank(16, 4))
    assert calls == 1
    assert fusions <= 2  # lanes to the end and back
    many = of_rank(16, FEW // 256 + 1)
    fusions, calls = kernels_of(jax.vmap(haar.cholesky), many)
    assert calls == 0
    assert fusions > 16
    np.testing.assert_allclose(jax.vmap(haar.cholesky)(many), np.linalg.cholesky(many), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize(("k", "lanes"), [(1, 1), (3, 5), (16, 64), (32, 16), (40, 10), (128, 1)])
def test_as_many_as_may_be_in_one_kernel_are(k, lanes):
    """At the largest sizes that are marked the compiler deals nothing to threads, which would fail."""
    gram = of_rank(k, lanes)
    found = jax.jit(jax.vmap(haar.cholesky))(gram)
    np.testing.assert_allclose(found, np.linalg.cholesky(np.float64(gram)), rtol=2e-4, atol=1e-4)


def test_one_kernel_differentiates_and_maps():
    f = one_kernel(lambda x: jnp.tanh(x) * x)
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(x), np.tanh(x) * x, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda x: f(x).sum()))(x)
    np.testing.assert_allclose(slope, np.tanh(x) + x / np.cosh(x) ** 2, rtol=1e-5, atol=1e-6)
