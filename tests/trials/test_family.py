"""Families: which parameter is traced, what is coerced, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from jaxstab.trials.family import Family


def descent(key, *, steps: int = 3, learning_rate: float = 0.1, name: str = "sgd"):
    start = jax.random.normal(key)

    def step(x, _):
        x = x - learning_rate * 2 * x
        return x, x**2

    return {"loss": jax.lax.scan(step, start, length=steps)[1]}


@pytest.fixture
def family() -> Family:
    return jaxstab.family(descent, dims={"loss": ("step",)})


def test_floats_are_traced_and_the_rest_is_static(family):
    assert set(family.spec_types) == {"steps", "name"}
    assert set(family.hparam_types) == {"learning_rate"}
    spec, hparams = family.configure({"steps": 5, "learning_rate": 1})
    assert (spec.steps, spec.name) == (5, "sgd")
    assert hparams.learning_rate == 1.0
    assert isinstance(hparams.learning_rate, float)


def test_a_whole_float_is_the_same_spec_as_an_int(family):
    assert family.configure({"steps": 2.0})[0] == family.configure({"steps": np.int64(2)})[0]
    assert isinstance(family.configure({"steps": 2.0})[0].steps, int)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rte": 1}, ["learning_rte", "learning_rate", "steps"]),
        ({"steps": 2.5}, ["steps=2.5", "whole number"]),
        ({"steps": True}, ["steps=True", "whole number"]),
        ({"steps": float("inf")}, ["steps=inf", "whole number"]),
        ({"learning_rate": "big"}, ["learning_rate='big'", "number"]),
        ({"learning_rate": None}, ["learning_rate=None", "number"]),
        ({"name": 3}, ["name=3", "str"]),
    ],
)
def test_a_wrong_value_is_named_in_one_line(family, settings, words):
    with pytest.raises(jaxstab.UsageError) as caught:
        family.configure(settings)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_an_annotation_that_would_compile_per_value_is_refused():
    def clipped(key, *, clip: float | None = None):
        return {}

    with pytest.raises(jaxstab.UsageError, match="clip"):
        jaxstab.family(clipped)


def test_a_parameter_without_annotation_is_refused():
    def bare(key, *, rate=0.1):
        return {}

    with pytest.raises(jaxstab.UsageError, match="annotate 'rate'"):
        jaxstab.family(bare)


def test_a_dimension_named_like_a_parameter_is_refused():
    with pytest.raises(jaxstab.UsageError, match="steps"):
        jaxstab.family(descent, dims={"loss": ("steps",)})


def test_a_parameter_without_default_must_be_given():
    @jaxstab.family
    def needs(key, *, scale: float):
        return {"x": scale}

    with pytest.raises(jaxstab.UsageError, match="scale"):
        needs.configure({})


def test_a_family_can_be_called_by_hand(family):
    losses = family(jax.random.key(0), steps=4, learning_rate=0.25)["loss"]
    assert losses.shape == (4,)
    np.testing.assert_allclose(losses[1:] / losses[:-1], 0.25, rtol=1e-6)


def test_vector_hyperparameters_are_traced():
    @jaxstab.family
    def vector(key, *, rates: tuple[float, ...] = (0.1, 0.2)):
        return {"total": sum(rates)}

    data = jaxstab.sweep(vector, jaxstab.grid(rates={"low": (0, 0.5), "high": [1, 2]}), seeds=1)
    assert data.rates.values.tolist() == ["low", "high"]
    np.testing.assert_allclose(data.total.values[:, 0], [0.5, 3.0])


def test_the_default_status_sees_a_number_that_is_not_finite():
    @jaxstab.family
    def inverse(key, *, x: float):
        return {"y": 1 / x, "count": jnp.int32(1)}

    data = jaxstab.sweep(inverse, jaxstab.grid(x=[0.0, 1.0]), seeds=2)
    assert data.status.values.tolist() == [[1, 1], [0, 0]]
    assert data.status.attrs["flag_meanings"] == "ok nonfinite not_run"
    assert data["count"].dtype == np.int32
