"""A training that is observed: the same bits, each step compiled once, and gradients that are those of theory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from experiments import watch

ROOT = Path(__file__).parent.parent.parent
STEPS, EVERY = 7, 3
MADE = {"optax": watch.with_optax, "nnx": watch.with_nnx}


@pytest.fixture(scope="module", params=MADE)
def trained(request):
    """(the plain step, where it begins, the observed run's last state and history, how often its step was traced)."""
    step, state = MADE[request.param](optax.adam(1e-3))
    traces = []

    def counted(state, batch):
        traces.append(batch)
        return step(state, batch)

    last, history = watch.watch(counted, state, watch.batches(STEPS), EVERY)
    return step, state, last, history, len(traces)


def unobserved(step, state):
    step = jax.jit(step)
    for batch in watch.batches(STEPS):
        state = step(state, batch)
    return state


def bits(state) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def test_the_parameters_keep_their_bits(trained):
    step, start, last, _, _ = trained
    plain = unobserved(step, start)
    assert bits(plain) == bits(last)
    assert bits(start) != bits(last)


def test_the_plain_and_the_observed_step_are_traced_once_each(trained):
    assert trained[-1] == 2


def test_the_history_is_layer_by_step(trained):
    history = trained[3]
    assert history.step.values.tolist() == [0, 3, 6]
    gradient = watch.gradients(history)
    assert gradient.shape == (watch.DEPTH + 1, 3)
    assert np.isfinite(gradient).all()
    assert (
        gradient[1:].isel(step=0).values > gradient[:-1].isel(step=0).values
    ).all()  # sigmoids, at the start


def test_the_last_layers_gradient_is_the_error_of_its_probabilities():
    step, (params, inner) = watch.with_optax(optax.sgd(0.1))
    images, labels = batch = next(watch.batches(1))
    _, history = watch.watch(step, (params, inner), [batch], 1)
    logits = watch.Linen().apply(params, images)
    error = (jax.nn.softmax(logits) - jax.nn.one_hot(labels, watch.CLASSES)) / watch.BATCH
    np.testing.assert_allclose(10 ** watch.gradients(history)[-1], np.sqrt(np.mean(error**2)), rtol=1e-5)


def test_the_script_draws_both_maps(tmp_path):
    words = [
        sys.executable,
        "-m",
        "experiments.watch",
        "--steps",
        "4",
        "--every",
        "2",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "watch.png")
    assert (tmp_path / "watch.png").stat().st_size > 10_000
