"""fit against a loop written by hand; shuffles against their law; a run that diverges says where."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxstab.errors import UsageError
from jaxstab.trials import fitting
from jaxstab.trials.fitting import Task, fit, make_batches, shuffle

KEY = jax.random.key(3)
N, INPUTS = 10, 3
X = jax.random.normal(jax.random.key(1), (N, INPUTS))
Y = X @ jnp.array([1.0, -2.0, 0.5]) + 0.3


def make_task(**more) -> Task:
    return Task(
        init=lambda key: {"w": jax.random.normal(key, (INPUTS, 1)), "b": jnp.zeros(1)},
        apply=lambda p, x, key: (jnp.matmul(x, p["w"], precision="highest") + p["b"])[:, 0],
        loss=lambda outputs, targets: 0.5 * (outputs - targets) ** 2,
        data=(X, Y),
        **more,
    )


def run(update, task=None, key=KEY, epochs=3, batch_size=4, **more):
    return fit(key, task or make_task(), update, epochs=epochs, batch_size=batch_size, **more)


def by_hand(start, order_key, learning_rate, epochs, batch_size):
    """The same in NumPy's float64: parameters, and each epoch's mean loss and gradient norm."""
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    w, b = np.asarray(start["w"], np.float64)[:, 0], 0.0
    losses, norms = [], []
    for epoch in range(epochs):
        order = np.asarray(shuffle(jax.random.fold_in(order_key, epoch), N))
        total, of_epoch = 0.0, []
        for first in range(0, N, batch_size):
            batch = order[first : first + batch_size]
            error = x[batch] @ w + b - y[batch]
            total += (error**2 / 2).sum()
            g_w, g_b = x[batch].T @ error / len(batch), error.mean()
            of_epoch.append(np.sqrt((g_w**2).sum() + g_b**2))
            w, b = w - learning_rate * g_w, b - learning_rate * g_b
        losses.append(total / N)
        norms.append(np.mean(of_epoch))
    return w, b, losses, norms


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_it_is_the_loop_written_by_hand(batch_size):
    fitted = run(optax.sgd(0.1), batch_size=batch_size)
    order_key = jax.random.split(KEY, 4)[1]
    w, b, losses, norms = by_hand(fitted.start, order_key, 0.1, 3, batch_size)
    np.testing.assert_allclose(fitted.params["w"][:, 0], w, rtol=2e-5)
    np.testing.assert_allclose(fitted.params["b"], b, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(fitted.seen["train_loss"], losses, rtol=2e-5)
    np.testing.assert_allclose(fitted.seen["gradient_norm"], norms, rtol=2e-5)
    wrong = by_hand(fitted.start, order_key, 0.101, 3, batch_size)[0]
    assert np.abs(fitted.params["w"][:, 0] / wrong - 1).max() > 1e-3


def test_an_update_written_by_hand_has_the_bits_of_optax():
    class Descent:
        def init(self, params):
            return ()

        def update(self, gradient, state, params):
            return jax.tree.map(lambda g: -0.1 * g, gradient), state

    for one, other in zip(jax.tree.leaves(run(Descent())), jax.tree.leaves(run(optax.sgd(0.1))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_measure_is_averaged_as_the_loss_is():
    fitted = run(optax.sgd(0.1), make_task(measure=lambda o, t: {"half": 0.5 * (o - t) ** 2}))
    np.testing.assert_array_equal(fitted.seen["half"], fitted.seen["train_loss"])


def test_a_penalty_moves_the_parameters_and_is_no_part_of_the_loss():
    in_loss = run(optax.sgd(0.1), make_task(penalty=lambda p: 0.5 * 0.3 * jnp.sum(p["w"] ** 2)))
    in_update = run(optax.chain(optax.add_decayed_weights(0.3, fitting.matrices), optax.sgd(0.1)))
    np.testing.assert_allclose(in_loss.params["w"], in_update.params["w"], rtol=1e-5)
    np.testing.assert_allclose(in_loss.seen["train_loss"], in_update.seen["train_loss"], rtol=1e-5)
    assert np.abs(run(optax.sgd(0.1)).params["w"] - in_loss.params["w"]).max() > 1e-2


def test_the_start_is_what_came_before_the_first_step():
    fitted = run(optax.sgd(0.0))
    for one, other in zip(jax.tree.leaves(fitted.start), jax.tree.leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(one, other)
    first = np.asarray(make_batches(jax.random.fold_in(jax.random.split(KEY, 4)[1], 0), N, 4).examples)[0]
    error = np.asarray(X)[first] @ np.asarray(fitted.start["w"])[:, 0] - np.asarray(Y)[first]
    np.testing.assert_allclose(fitted.start_loss, np.mean(error**2 / 2), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 256, 257, 1000])
def test_a_shuffle_is_a_permutation(n):
    assert sorted(np.asarray(shuffle(KEY, n)).tolist()) == list(range(n))


@pytest.mark.parametrize(("n", "lanes"), [(100, 64), (129, 64), (256, 64), (257, 63), (256, 65)])
def test_many_lanes_are_sorted_in_one_kernel_or_in_several(n, lanes):
    """At the largest sizes that are one kernel its operations are still no task for threads, which would fail."""
    words = np.random.default_rng(0).integers(0, 2**32, (lanes, n), dtype=np.uint32)
    found = jax.jit(jax.vmap(fitting._sort))(words)
    np.testing.assert_array_equal(found, np.sort(words, axis=1))


@pytest.mark.parametrize("n", [1, 2, 3, 100, 256])
def test_lanes_are_shuffled_together_as_alone(n):
    keys = jax.random.split(KEY, 5)
    alone = [shuffle(key, n) for key in keys]
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda key: shuffle(key, n)))(keys), alone)


@pytest.mark.parametrize("packed", [True, False])
def test_every_order_is_as_likely(packed, monkeypatch):
    monkeypatch.setattr(fitting, "FEW", 256 if packed else 0)
    orders = np.asarray(jax.vmap(lambda key: shuffle(key, 4))(jax.random.split(KEY, 12_000)))
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.chisquare(counts + np.array([150] + [0] * 22 + [-150])).pvalue < 1e-3


def test_the_order_is_drawn_for_each_seed_or_shared():
    def order(key, how):
        task = make_task()._replace(data=(X, jnp.arange(N)), loss=lambda o, t: t.astype(jnp.float32) + 0 * o)
        return run(optax.sgd(0.0), task, key, epochs=2, batch_size=1, order=how).start_loss

    keys = jax.random.split(KEY, 30)
    assert len(np.unique(jax.vmap(lambda k: order(k, "per_seed"))(keys))) > 5
    assert len(np.unique(jax.vmap(lambda k: order(k, "shared"))(keys))) == 1


def test_no_lane_moves_an_epochs_examples_for_its_steps():
    """A scan wants the axis of its steps first: batches that are handed to it are transposed, all numbers of them."""

    def one(key):
        data = jax.random.normal(key, (N, INPUTS)), jax.random.normal(key, (N,))
        return run(optax.sgd(0.1), make_task()._replace(data=data), key, batch_size=5).params

    lanes = 64
    program = jax.jit(jax.vmap(one)).lower(jax.random.split(KEY, lanes)).as_text()
    shapes = [line.rsplit("-> ", 1)[1] for line in program.splitlines() if "stablehlo.transpose" in line]
    assert shapes
    assert not [shape for shape in shapes if f"2x{lanes}x5x{INPUTS}x" in shape]


def test_every_number_is_a_lane_of_one_program():
    traces = []

    @jax.jit
    def trial(rate, decay):
        traces.append(rate)
        return run(optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))).params["w"]

    results = [trial(rate, decay) for rate in (0.01, 0.1) for decay in (0.0, 0.5)]
    assert len(traces) == 1
    assert len({float(w[0, 0]) for w in results}) == 4


@pytest.mark.parametrize("rate", [30.0, 1e30])
def test_a_run_that_diverges_is_frozen_where_it_was_last_finite(rate):
    fitted = run(
        optax.sgd(rate), epochs=60, batch_size=N, probe=lambda p, key: {"w": p["w"][:, 0], "n": jnp.int32(7)}
    )
    bad = int(fitted.first_bad_step)
    assert 0 < bad < 60
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params))
    if bad > 1:  # the full batch: the same run, stopped one step before
        before = run(optax.sgd(rate), epochs=bad - 1, batch_size=N)
        assert int(before.first_bad_step) == 0
        np.testing.assert_array_equal(before.params["w"], fitted.params["w"])
    for name in ("train_loss", "gradient_norm", "w"):
        finite = np.isfinite(np.asarray(fitted.seen[name]))
        assert finite[: bad - 2].all()
        assert np.isnan(np.asarray(fitted.seen[name])[bad - 1 :]).all()
    assert (fitted.seen["n"] == 7).all()
    hidden = fitted.hide({"w": fitted.params["w"], "n": jnp.int32(7)})
    assert jnp.isnan(hidden["w"]).all()
    assert hidden["n"] == 7


def test_a_lane_that_diverges_changes_no_bit_of_another():
    def trial(rate):
        return run(optax.sgd(rate, momentum=0.9), epochs=40).params

    calm = jax.vmap(trial)(jnp.full(4, 0.05))
    beside = jax.vmap(trial)(jnp.array([0.05, 1e6, 0.05, jnp.nan]))
    for one, other in zip(jax.tree.leaves(calm), jax.tree.leaves(beside), strict=True):
        np.testing.assert_array_equal(one[::2], other[::2])
    assert int(jax.vmap(lambda r: run(optax.sgd(r)).first_bad_step)(jnp.array([0.05, jnp.nan]))[1]) == 1


def test_a_probe_has_a_key_for_each_epoch():
    fitted = run(optax.sgd(0.1), probe=lambda p, key: {"draw": jax.random.normal(key)})
    assert len(np.unique(fitted.seen["draw"])) == 3


def test_the_noise_of_a_step_is_its_own():
    task = make_task()._replace(apply=lambda p, x, key: jnp.full(len(x), jax.random.normal(key)) + 0 * p["b"])
    fitted = run(optax.sgd(0.0), task._replace(data=(X, jnp.zeros(N)), loss=lambda o, t: o), batch_size=N)
    assert len(np.unique(fitted.seen["train_loss"])) == 3


def test_float64_stays_float64():
    with jax.enable_x64(True):
        data = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (X, Y))
        task = make_task()._replace(
            data=data, init=lambda key: {"w": jnp.ones((INPUTS, 1)), "b": jnp.zeros(1)}
        )
        fitted = run(optax.sgd(jnp.float32(0.1)), task)
        assert fitted.params["w"].dtype == fitted.seen["train_loss"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"order": "random"}, "unknown order 'random'.*per_seed, shared"),
        ({"probe": lambda p, key: {"train_loss": 1.0}}, "train_loss"),
        ({"task": make_task()._replace(loss=lambda o, t: jnp.mean((o - t) ** 2))}, "one number an example"),
        ({"task": make_task()._replace(data=(X, Y[:4]))}, "one common length"),
    ],
)
def test_what_cannot_be_meant_gets_one_line(settings, line):
    with pytest.raises(UsageError, match=line) as refusal:
        run(optax.sgd(0.1), **settings)
    assert "\n" not in str(refusal.value)
