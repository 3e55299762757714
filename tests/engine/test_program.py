"""What a program is compiled with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxstab
from jaxstab.engine import program
from jaxstab.engine.program import VECTOR_BITS, compiler_options


def test_processors_get_vectors_as_wide_as_theirs_and_nobody_else_does(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options("cpu") == {VECTOR_BITS: "512"}
    assert compiler_options("gpu") == compiler_options("tpu") == {}


def test_what_a_user_says_of_it_stands(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_hlo_as_text --{VECTOR_BITS}=256")
    assert compiler_options("cpu") == {}


def test_programs_are_compiled_with_it(monkeypatch):
    @jaxstab.family(dims={})
    def walk(key, *, drift: float = 0.0):
        return {"end": drift + jax.random.normal(key)}

    monkeypatch.setattr(program, "compiler_options", lambda platform: {f"none_for_{platform}": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"none_for_{jax.default_backend()}"):
        jaxstab.sweep(walk, jaxstab.grid(drift=jnp.array([0.0])), 2)
