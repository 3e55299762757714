"""What cannot fit is refused in one line that names what would, before anything is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxstab
from jaxstab.engine import room
from jaxstab.engine.program import Program


@pytest.fixture(autouse=True)
def _nothing_compiles(monkeypatch):
    def start(*_):
        raise AssertionError("something ran")

    monkeypatch.setattr(Program, "start", start)
    monkeypatch.setattr(Program, "memory", start)


DENSE = {"sampler": "dense"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 200_000, **DENSE}, r"width=200000: a matrix of 4e\+10 entries.*width=46340 would fit.*conditioned"),
        ({"width": 100_000, "batch": 30_000}, r"width=100000 and batch=30000: .*batch=21474 would fit"),
        ({"width": 30_000, "kind": "lstm"}, "width=30000.*width=23170 would fit"),
        ({"width": 2**31}, "width=2147483648: .*below 2"),
        ({"width": 20_000, "memory": 1e9, **DENSE}, r"an array of 1.49 GiB, and .* has room for.*width=\d+ would fit"),
        ({"depth": 10**9, "width": 100}, r"depth=1000000000.*an array of .* TiB.*depth=\d+ (or|would fit)"),
        ({"width": 100_000, "depth": 12_000, "memory": 1e9}, r"an array of 8.94 GiB.*depth=\d+ or width=\d+ would fit"),
    ],
)  # fmt: skip  # a refusal a line
def test_a_stack_that_cannot_fit(settings, words):
    with pytest.raises(jaxstab.UsageError, match=words) as refusal:
        jaxstab.propagate(**{"seeds": 1, "depth": 2, "batch": 2} | settings)
    assert "\n" not in str(refusal.value)


def test_what_is_said_to_fit_is_not_refused_for_its_size(monkeypatch):
    with pytest.raises(AssertionError, match="something ran"):
        jaxstab.propagate(seeds=1, width=46_340, depth=2, batch=2, memory=1e12, sampler="dense")


def test_hidden_layers_that_cannot_fit():
    with pytest.raises(jaxstab.UsageError, match=r"hidden=\(10000000000,\).*hidden=\(\d+,\) would fit"):
        jaxstab.train(seeds=1, epochs=1, hidden={"huge": (10**10,)}, memory=1e9 * jax.local_device_count())


def test_results_that_cannot_fit(monkeypatch):
    monkeypatch.setattr(room, "host_memory", lambda: 1e6)
    with pytest.raises(
        jaxstab.UsageError, match=r"1 configurations x 20000 seeds x \d+ bytes: .*seeds=\d+ would fit"
    ):
        jaxstab.propagate(seeds=20_000, depth=3, width=4, batch=2, memory=1e9)
    with pytest.raises(jaxstab.UsageError, match=r"seeds=100000: .*31250 would"):
        jaxstab.propagate(seeds=100_000, depth=3, width=4, batch=2)


def test_an_array_that_the_compiler_need_never_hold_is_not_refused():
    @jaxstab.family
    def series(key, *, terms: int):
        return {"sum": jnp.sum(1.0 / jnp.arange(1, terms, dtype=jnp.float32))}

    with pytest.raises(AssertionError, match="something ran"):
        jaxstab.sweep(series, jaxstab.grid(terms=10**9), 1, memory=1e6)
