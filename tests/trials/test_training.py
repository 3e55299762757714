"""The classifier: each number against NumPy or plain optax; what is off has the bits of what is not there."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxstab
from jaxstab.data import datasets, images
from jaxstab.trials import fitting, training
from jaxstab.trials.fitting import fit, make_batches
from jaxstab.trials.training import HParams, Spec

KEY = jax.random.key(5)
N, PIXELS, CLASSES = 24, 6, 10
RNG = np.random.default_rng(0)
DATA = images.ImageData(
    RNG.random((N, PIXELS), np.float32),
    np.arange(N, dtype=np.int32) % CLASSES,
    RNG.random((11, PIXELS), np.float32),
    np.arange(11, dtype=np.int32) % CLASSES,
)
SOFTMAX = Spec(hidden=(), init="lecun_normal", epochs=2, batch_size=8)
DEEP = Spec(hidden=(7, 5), epochs=3, batch_size=9, init="torch_default")


def trace(hparams: HParams) -> HParams:
    return jax.tree.map(jnp.float32, hparams)


@functools.lru_cache
def compiled(spec):
    return jax.jit(training.make_trial(spec))


def run_trial(spec=DEEP, **numbers):
    return compiled(spec)(KEY, trace(HParams(**numbers)), DATA)


def run_fit(spec, update, hparams=None):
    """The same run with an update of one's own; the parameters besides."""
    hparams = trace(hparams or HParams())
    data = images.ImageData(*map(jnp.asarray, DATA))

    def run(key):
        task = training.make_task(spec, hparams, data)
        return fit(key, task, update, epochs=spec.epochs, batch_size=spec.batch_size)

    return jax.jit(run)(KEY)


def assert_same_bits(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def softmax_by_hand(start, hparams: HParams, decoupled: bool):
    """Softmax regression in float64, in PyTorch's order: clip, L1, coupled decay, momentum, other decay."""
    w, b = (np.asarray(start["params"]["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
    m_w, m_b = np.zeros_like(w), np.zeros_like(b)
    x, labels = np.asarray(DATA.train_images, np.float64), np.asarray(DATA.train_labels)
    for epoch in range(SOFTMAX.epochs):
        order_key = jax.random.fold_in(jax.random.split(KEY, 4)[1], epoch)
        for batch in np.asarray(make_batches(order_key, N, SOFTMAX.batch_size).examples):
            logits = x[batch] @ w + b
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            error = (p - np.eye(CLASSES)[labels[batch]]) / len(batch)
            g_w, g_b = x[batch].T @ error, error.sum(0)
            shrink = min(1.0, hparams.clip_norm / math.sqrt((g_w**2).sum() + (g_b**2).sum()))
            g_w, g_b = g_w * shrink + hparams.l1 * np.sign(w), g_b * shrink
            if not decoupled:
                g_w = g_w + hparams.weight_decay * w
            m_w, m_b = hparams.momentum * m_w + g_w, hparams.momentum * m_b + g_b
            step = m_w + (hparams.weight_decay * w if decoupled else 0)
            w, b = w - hparams.learning_rate * step, b - hparams.learning_rate * m_b
    return w, b


NUMBERS = (
    {},
    {"weight_decay": 0.5},
    {"l1": 0.1},
    {"momentum": 0.8},
    {"clip_norm": 0.1},
    {"weight_decay": 0.5, "l1": 0.1, "momentum": 0.8, "clip_norm": 0.1},
)


@functools.lru_cache
def softmax_lanes(optimizer):
    """A run for each of NUMBERS, all of them lanes of one program."""
    lanes = [HParams(learning_rate=0.5, **numbers) for numbers in NUMBERS]
    stacked = jax.tree.map(lambda *values: jnp.array(values, jnp.float32), *lanes)
    return jax.vmap(lambda h: run_fit(SOFTMAX, training.make_update(optimizer, h), h))(stacked)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw"])
@pytest.mark.parametrize("lane", range(len(NUMBERS)), ids=["+".join(n) or "plain" for n in NUMBERS])
def test_each_number_does_what_it_says(optimizer, lane):
    fitted = jax.tree.map(lambda x: x[lane], softmax_lanes(optimizer))
    hparams = HParams(learning_rate=0.5, **NUMBERS[lane])
    w, b = softmax_by_hand(fitted.start, hparams, decoupled=optimizer == "sgdw")
    found = fitted.params["params"]["Dense_0"]
    np.testing.assert_allclose(found["kernel"], w, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(found["bias"], b, rtol=1e-4, atol=2e-6)
    if NUMBERS[lane]:
        without = softmax_by_hand(fitted.start, HParams(learning_rate=0.5), decoupled=False)[0]
        assert np.abs(found["kernel"] - without).max() > 1e-3


def test_adam_is_optax_own():
    numbers = trace(HParams(learning_rate=0.01, weight_decay=0.3))
    coupled = optax.chain(optax.add_decayed_weights(0.3, mask=fitting.matrices), optax.adam(0.01))
    decoupled = optax.adamw(0.01, weight_decay=0.3, mask=fitting.matrices)
    params = {"kernel": jax.random.normal(KEY, (4, 3)), "bias": jnp.ones(3)}
    ends = {}
    for name, expected in {"adam": coupled, "adamw": decoupled}.items():
        for update in (training.make_update(name, numbers), expected):
            end, memory = params, update.init(params)
            for step in range(3):
                gradient = jax.tree.map(lambda x, step=step: jnp.sin(x + step), end)
                change, memory = update.update(gradient, memory, end)
                end = optax.apply_updates(end, change)
            ends.setdefault(name, []).append(end)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends[name])
    assert jnp.abs(ends["adam"][0]["kernel"] - ends["adamw"][0]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw"])
def test_what_is_off_has_the_bits_of_what_is_not_there(optimizer):
    off = trace(HParams(weight_decay=0.0, l1=0.0, momentum=0.0, clip_norm=math.inf))
    assert_same_bits(run_fit(DEEP, training.make_update(optimizer, off)), plain_sgd())


@functools.lru_cache
def plain_sgd():
    return run_fit(DEEP, optax.sgd(jnp.float32(0.1)))


def test_dropout_of_rate_0_has_the_bits_of_none():
    none = run_trial(dropout=())
    assert_same_bits(run_trial(dropout=(0.0, 0.0)), none)
    for on in (
        {"weight_decay": 0.1},
        {"l1": 0.1},
        {"momentum": 0.1},
        {"clip_norm": 0.1},
        {"dropout": (0.0, 0.1)},
    ):
        with pytest.raises(AssertionError):
            assert_same_bits(run_trial(**on), none)


def test_clipping_that_is_off_lets_a_gradient_pass_whose_norm_overflows():
    gradient = {"w": jnp.full((2, 2), 1e30)}

    def change(norm):
        return training._clip(jnp.float32(norm)).update(gradient, optax.EmptyState())[0]["w"]

    np.testing.assert_array_equal(change(math.inf), gradient["w"])
    assert jnp.isfinite(change(1.0)).all()


def test_decay_and_l1_leave_the_biases_out():
    update = training.make_update("sgd", trace(HParams(learning_rate=0.5, weight_decay=1.0, l1=1.0)))
    params = {"params": {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}
    change, _ = update.update(jax.tree.map(jnp.zeros_like, params), update.init(params), params)
    np.testing.assert_array_equal(change["params"]["Dense_0"]["bias"], 0)
    np.testing.assert_array_equal(change["params"]["Dense_0"]["kernel"], -1.0)


def test_evaluation_drops_nothing():
    dropped, plain = (run_trial(dropout=rates, learning_rate=0.0) for rates in ((0.5, 0.5), ()))
    assert_same_bits(dropped["test_loss"], plain["test_loss"])
    assert (dropped["train_loss"] != plain["train_loss"]).all()


def test_the_gain_multiplies_what_is_drawn():
    ones, twos = (run_trial(gain=gain, learning_rate=0.0)["weight_norm"] for gain in (1.0, 2.0))
    np.testing.assert_allclose(twos, 2 * ones, rtol=1e-6)


def test_the_curves_are_those_of_the_final_parameters():
    hparams = HParams(learning_rate=0.1)
    fitted = run_fit(DEEP, training.make_update("sgd", trace(hparams)), hparams)
    seen = run_trial(learning_rate=0.1)
    weights = [np.asarray(fitted.params["params"][f"Dense_{i}"]["kernel"], np.float64) for i in range(3)]
    biases = [np.asarray(fitted.params["params"][f"Dense_{i}"]["bias"], np.float64) for i in range(3)]
    h = DATA.test_images
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        h = np.maximum(h @ w + b, 0)
    logits = h @ weights[-1] + biases[-1]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(
        seen["test_loss"][-1], -log_p[np.arange(11), DATA.test_labels].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(seen["test_accuracy"][-1], (logits.argmax(1) == DATA.test_labels).mean())
    np.testing.assert_allclose(
        seen["weight_norm"][-1], np.sqrt(sum((w**2).sum() for w in weights)), rtol=1e-5
    )


def test_the_loss_of_chance_is_the_entropy_of_the_labels():
    labels = jnp.array([0, 0, 1, 2])
    np.testing.assert_allclose(training.loss_of_chance(labels, 10), 1.5 * math.log(2), rtol=1e-6)


@pytest.fixture(scope="module")
def rates():
    return jaxstab.sweep(
        training.training,
        jaxstab.grid(learning_rate=[0.0, 0.1, 1e3, 1e30], hidden={"16": (16,)}, epochs=3),
        seeds=2,
    )


def test_a_sweep_tells_what_became_of_each_rate(rates):
    meanings = rates.status.attrs["flag_meanings"].split()
    assert [meanings[flag] for flag in rates.status[:, 0, 0].values] == [
        "untrained",
        "ok",
        "diverged",
        "nonfinite",
    ]
    assert rates.status.values[:, 0].tolist() == [[3, 3], [0, 0], [2, 2], [1, 1]]
    assert (rates.first_bad_step.sel(learning_rate=1e30) > 0).all()
    assert (rates.first_bad_step.isel(learning_rate=slice(3)) == 0).all()
    assert np.isnan(rates.test_loss.sel(learning_rate=1e30)).all()
    assert rates.attrs["programs"] == 1


def test_it_learns_digits(rates):
    learnt = rates.sel(learning_rate=0.1).squeeze()
    assert float(learnt.test_accuracy.isel(epoch=-1).min()) > 0.7
    assert (learnt.train_loss.diff("epoch") < 0).all()
    assert learnt.epoch.values.tolist() == [1, 2, 3]


def test_a_shared_order_goes_with_products_of_bfloat16():
    run = functools.partial(
        jaxstab.train,
        seeds=2,
        hidden={"256": (256,)},
        epochs=1,
        batch_size=256,
        order="shared",
        keep=["train_loss"],
    )
    rough, exact = run(precision="bfloat16"), run()
    np.testing.assert_allclose(rough.train_loss, exact.train_loss, rtol=0.01)
    assert (rough.train_loss != exact.train_loss).all()


def test_status_does_not_depend_on_what_is_kept(rates):
    kept = jaxstab.sweep(
        training.training,
        jaxstab.grid(learning_rate=[0.0, 0.1, 1e3, 1e30], hidden={"16": (16,)}, epochs=3),
        seeds=2,
        keep=["start_loss"],
    )
    np.testing.assert_array_equal(kept.status, rates.status)


def test_numbers_are_lanes_of_one_program(monkeypatch):
    traced = []
    make_task = training.make_task
    monkeypatch.setattr(training, "make_task", lambda *args: traced.append(1) or make_task(*args))
    family = dataclasses.replace(training.training)  # whose programs no other test has compiled
    small = {"hidden": {"4": (4,)}, "epochs": 1, "batch_size": 512}
    jaxstab.sweep(family, jaxstab.grid(gain=1.0, **small), seeds=1)
    once = len(traced)
    axes = {"gain": [0.5, 2.0], "l1": [0.0, 0.1], "momentum": [0.0, 0.9], "clip_norm": [1.0, math.inf]}
    many = jaxstab.sweep(
        family,
        jaxstab.grid(
            **axes, dropout={"0": (0.0,), "0.5": (0.5,)}, batch_size=500, hidden={"4": (4,)}, epochs=1
        ),
        seeds=1,
    )
    assert len(traced) == 2 * once
    assert many.attrs["programs"] == 1
    assert len(np.unique(many.train_loss)) > 8


def test_a_family_from_a_folder_reads_there(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load", lambda *where: asked.append(where) or DATA)
    there = training.from_folder(training.training, "there")
    for family in (there, training.training):
        assert family.shared(training.Spec(dataset="fashion_mnist")) is DATA
    assert asked == [("fashion_mnist", "there"), ("fashion_mnist", None)]
    assert there.outputs == training.training.outputs


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"dataset": "mnist"}, "unknown dataset 'mnist'.*digits, fashion_mnist"),
        ({"optimizer": "sgdm"}, "unknown optimizer 'sgdm'.*sgd, sgdw, adam, adamw"),
        ({"init": "xavier"}, "unknown init"),
        ({"activation": "rellu"}, "relu"),
        ({"order": "fixed"}, "unknown order 'fixed'"),
        ({"precision": "float32"}, "unknown precision"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"hidden": (4, 0)}, "at least one unit"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"momentum": -1}, "momentum=-1"),
        ({"l1": math.inf}, "l1=inf"),
        ({"clip_norm": 0}, "clip_norm=0.*infinity is off"),
        ({"dropout": (1.5,)}, "probability"),
        ({"dropout": (0.5, 0.5)}, "1 hidden layers"),
        ({"optimizer": "adam", "momentum": 0.9}, "adam has moments of its own"),
    ],
)
def test_what_cannot_be_meant_gets_one_line(settings, line):
    with pytest.raises(jaxstab.UsageError, match=line) as refusal:
        training.training.configure(settings)
    assert "\n" not in str(refusal.value)
