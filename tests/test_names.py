"""Names and records that mean the same in every process; hints that do not mislead; capabilities that are tried."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from jaxstab import machine
from jaxstab.errors import UsageError, require_choice
from jaxstab.names import describe, name_of_callable, spell


class Shape(enum.Enum):
    ROUND = 1


class Odd:
    """Its repr has an address."""


@dataclasses.dataclass(frozen=True)
class Curve:
    slope: float

    def __call__(self, x):
        return self.slope * x


def scaled(x, slope=1.0):
    return slope * x


def test_no_name_holds_an_address():
    assert name_of_callable(jax.nn.gelu) == "gelu"
    assert name_of_callable(functools.partial(scaled, slope=0.5)) == "scaled(slope=0.5)"
    assert name_of_callable(functools.partial(scaled, scaled)) == "scaled(scaled)"
    assert name_of_callable(Curve(2.0)) == "Curve"
    assert spell("text") == "text"
    for value in (Odd(), [Odd()], scaled, functools.partial(scaled, slope=Odd())):
        assert "0x" not in spell(value)
        assert "0x" not in json.dumps(describe(value))


def test_a_record_is_json_that_tells_values_apart():
    assert describe({"b": (1, 2.5), "a": None}) == {"b": [1, 2.5], "a": None}
    assert describe(frozenset({"x", "y", "w"})) == ["w", "x", "y"]
    assert describe(Shape.ROUND) == "Shape.ROUND"
    assert describe(float("inf")) == "inf"
    assert describe(np.float32(0.5)) == 0.5
    assert describe(Curve(2.0)) == {"callable": "Curve", "slope": 2.0}
    assert describe(np.arange(3)) != describe(np.arange(1, 4))
    assert describe(np.arange(3, dtype=np.float32)) == describe(jnp.arange(3, dtype=jnp.float32))


@pytest.mark.parametrize(
    ("value", "choices", "name"),
    [
        ("swish", ("mish", "silu"), "silu"),
        ("he_normal", ("kaiming_normal",), "kaiming_normal"),
        ("fp16", ("float16",), "float16"),
    ],
)
def test_what_the_field_calls_it_is_taken(value, choices, name):
    assert require_choice(value, choices, "thing") == name


@pytest.mark.parametrize(
    ("value", "choices", "said", "unsaid"),
    [
        ("float64", ("float32", "bfloat16", "float16"), "Choices: float32", "Did you mean"),
        ("tahn", ("tanh", "relu"), "Did you mean 'tanh'?", "zzz"),
        (
            "xavier",
            ("normal", "xavier_normal", "xavier_uniform"),
            "'xavier_normal' or 'xavier_uniform'?",
            "zzz",
        ),
        ("swish", ("mish", "relu"), "Choices: mish, relu", "Did you mean"),
    ],
)
def test_a_hint_is_given_where_it_is_a_slip_of_the_hand(value, choices, said, unsaid):
    with pytest.raises(UsageError) as refusal:
        require_choice(value, choices, "thing")
    assert said in str(refusal.value)
    assert unsaid not in str(refusal.value)


def test_activations_that_jax_has_are_named_and_numpys_are_explained():
    with pytest.raises(UsageError, match=r"activation=jax\.nn\.hard_tanh"):
        jaxstab.gain("hard_tanh")
    with pytest.raises(UsageError, match=r"np\.tanh.*jnp\.tanh"):
        jaxstab.gain(np.tanh)
    assert jaxstab.gain("swish") == jaxstab.gain("silu")
    with pytest.raises(UsageError) as refusal:
        jaxstab.gain(functools.partial(jax.nn.leaky_relu, negative_slope=0.2), "pytorch")
    assert "'leaky_relu(negative_slope=0.2)'" in str(refusal.value)


def test_two_lambdas_are_told_how_to_be_two():
    with pytest.raises(UsageError, match=r"stands there twice; tell them apart by labels: activation=\{"):
        jaxstab.grid(activation=[lambda x: x, lambda x: 2 * x])


def test_an_alias_is_the_same_program_as_its_name():
    data = jaxstab.propagate(
        seeds=1,
        depth=2,
        width=4,
        batch=2,
        activation=["swish", "silu"],
        init="he_normal",
        keep=["forward_rms"],
    )
    assert data.attrs["programs"] == 1
    assert data.activation.values.tolist() == ["swish", "silu"]


def test_what_the_processor_lists_does_not_decide_what_xla_can_do(monkeypatch):
    answers = []
    for flags in ("", "fpu avx512_bf16 amx_bf16"):
        monkeypatch.setattr(machine, "_fields", lambda flags=flags: {"flags": flags})
        machine.cpu_multiplies_bfloat16.cache_clear()
        answers.append(machine.cpu_multiplies_bfloat16())
    machine.cpu_multiplies_bfloat16.cache_clear()
    assert answers[0] == answers[1]


def test_a_product_that_xla_lacks_is_no_error_but_an_answer(monkeypatch):
    def fails(*_, **__):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: Unsupported element type")

    monkeypatch.setattr(jax, "block_until_ready", fails)
    machine.cpu_multiplies_bfloat16.cache_clear()
    assert machine.cpu_multiplies_bfloat16() is False
    machine.cpu_multiplies_bfloat16.cache_clear()
