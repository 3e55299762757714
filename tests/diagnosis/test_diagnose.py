"""`diagnose` names planted faults by layer and line, leaves healthy models alone, and says so in the user's terms.

The whole campaign is `python -m experiments.benchmarks.detection`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

import jaxstab
from experiments.benchmarks import faults
from experiments.benchmarks.detection import verdict
from experiments.benchmarks.faults import CUT, NAN, OVER, Fault, altered, line_of
from experiments.benchmarks.networks import (
    MLP,
    Attention,
    cross_entropy,
    function,
    parameters_of_function,
    vectors,
)
from jaxstab.diagnosis.producers import Search
from jaxstab.errors import UnstableError, UsageError

sys.path.append(str(Path(__file__).parent.parent / "observation"))
import models

X = jax.random.normal(jax.random.key(1), (16, 16))
diagnose = getattr(jaxstab.diagnose, "__wrapped__", jaxstab.diagnose)


def mlp(place="", change=None, **settings):
    planted = None if change is None else (place, change)
    return MLP(**{"depth": 2, "width": 16, "planted": planted, **settings})


def in_code(change, place, findings, gravity="grave", dtype="", where=None, **settings):
    name = f"{change.__name__} at {place}"
    return Fault(
        name, "MLP", mlp(place, change), (X,), findings, where or line_of(change), gravity, dtype, settings
    )


class Attending(nn.Module):
    """One attention."""

    planted: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(Attention(2, self.planted, name="attention")(x))


def attention(change, place, findings, gravity="grave", where=None):
    x = jax.random.normal(jax.random.key(2), (2, 12, 16))
    where = where or line_of(change)
    return Fault(change.__name__, "attention", Attending((place, change)), (x,), findings, where, gravity)


def by(factor):
    return altered(mlp(depth=3), X, "dense_1/kernel", lambda w: factor * w)


SQUARE = in_code(faults.square, "0", OVER, dtype="float16")
PLANTS = [
    in_code(faults.log_of_zero, "features", NAN),
    in_code(faults.distances, "0", NAN),
    SQUARE,
    in_code(faults.total, "1", OVER, dtype="float16"),
    in_code(faults.cancelled, "0", "digits lost", "warning", "float16"),
    attention(faults.no_key_visible, "masked", NAN),
    in_code(faults.thousandfold, "1", OVER, dtype="float16"),
    in_code(faults.below, "0", CUT, where="dense_0"),
    Fault("input of zeros", "MLP", mlp(), (0 * X,), CUT, "input 0"),
    Fault("large", "MLP", mlp(depth=3), (X,), "wrong gain", "dense_1", "warning", "", by(40.0)),
    Fault("zeros", "MLP", mlp(depth=3), (X,), CUT, "dense_1", "grave", "", by(0.0)),
    Fault("NaN", "MLP", mlp(depth=3), (X,), NAN, "dense_1/kernel", "grave", "", by(jnp.nan)),
    Fault("inf", "MLP", mlp(), (X.at[0, 0].set(jnp.inf),), NAN, "input 0"),
    Fault("deep and large", "function", function(), (parameters_of_function(20, 4.0), vectors()),
          "gradient explodes", "layer", "warning"),
    Fault("dropout", "MLP", mlp(drop=0.5, train=True), (X,), "random", "Dropout", "note", "",
          {"rngs": {"dropout": jax.random.key(0)}}),
]  # fmt: skip  # a fault a line


def said_of(fault, **settings):
    dtypes = (fault.dtype,) if fault.dtype else ()
    known = {"loss": cross_entropy, "seeds": 1, "dtypes": dtypes, **fault.settings, **settings}
    return diagnose(fault.model, *fault.inputs, **known)


class Stacked(nnx.Module):
    """Layers that are one stacked layer, with a key of dropout each."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        self.layers = nnx.data(make(rngs))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            linear, drop = layer
            return x + drop(nnx.tanh(linear(x)))

        return run(x, self.layers)


def test_samples_that_part_again_are_not_alike():
    """A learned query is the same for all of them; of what collapses everything after it is alike."""

    def attend(p, x, is_collapsed):
        with jax.named_scope("query"):
            q = jnp.broadcast_to(p["q"], x.shape) @ p["w"]
        with jax.named_scope("out"):
            return q if is_collapsed else q * (x @ p["w"])

    p = {"q": jnp.arange(16.0), "w": jax.random.normal(jax.random.key(0), (16, 16)) / 4}
    kinds = [
        [f.kind for f in diagnose(lambda p, x, c=c: attend(p, x, c), p, X, dtypes=()).findings]
        for c in (True, False)
    ]
    assert "samples alike" in kinds[0]
    assert "samples alike" not in kinds[1]


def test_keys_that_are_stacked_and_sums_inside_a_scan():
    found = diagnose(Stacked(nnx.Rngs(0)), X, seeds=2, dtypes=()).findings
    assert [f.kind for f in found] == ["random"]


def test_a_head_that_begins_at_zero_is_no_wrong_gain():
    net = MLP(depth=2, width=16)
    zero = altered(net, X, "head/kernel", jnp.zeros_like)
    found = diagnose(net, X, loss=cross_entropy, dtypes=(), **zero).findings
    assert [(f.kind, f.gravity) for f in found] == [("silent parameter", "note")]


def test_what_drowns_its_summands_is_named_and_a_polynomial_is_not():
    def stream(p, x, factor):
        with jax.named_scope("in"):
            x = factor * (x @ p["w"])
        for _ in range(3):
            with jax.named_scope("block"):
                x = x + jax.nn.gelu(x / factor) @ p["w"]
        return x

    p = {"w": jax.random.normal(jax.random.key(0), (16, 16)) / 4}
    (finding,) = diagnose(lambda p, x: stream(p, x, 100.0), p, X, dtypes=()).findings
    assert (finding.kind, finding.path) == ("summand drowned", "in")
    assert finding.evidence.endswith("so in 3 sums")
    assert diagnose(lambda p, x: stream(p, x, 1.0), p, X, dtypes=()).findings == ()

    def cubic(p, x):
        z = x @ p["w"]
        return z + 0.01 * z**3

    assert diagnose(cubic, p, X, dtypes=()).findings == ()


def test_a_recurrent_network_forgets_by_steps_and_that_is_a_note():
    def run(p, xs):
        def step(h, x):
            with jax.named_scope("cell"):
                return jnp.tanh(h @ p["w"] + x), None

        return jax.lax.scan(step, jnp.zeros((4, 16)), xs)[0]

    xs = jax.random.normal(jax.random.key(0), (20, 4, 16))
    p = {"w": jax.random.normal(jax.random.key(1), (16, 16)) / 8}
    (told,) = [f for f in diagnose(run, p, xs, dtypes=()).findings if f.kind == "gradient vanishes"]
    assert told.gravity == "note"
    assert "a step back in time" in told.evidence
    assert "20 steps" in told.evidence


@pytest.mark.parametrize("fault", PLANTS, ids=lambda fault: f"{fault.network}: {fault.name}")
def test_a_fault_is_named_where_it_is(fault):
    found = said_of(fault)
    assert verdict(fault, found.findings) == "named", found


def test_the_layers_that_pass_it_on_would_be_blamed_by_who_does_not_look_behind_them(monkeypatch):
    monkeypatch.setattr(Search, "_bad_behind", lambda *_: [])
    assert verdict(PLANTS[0], said_of(PLANTS[0]).findings) == "elsewhere"


def test_a_chain_longer_than_pythons_stack_and_with_many_ways_through_it():
    def deep(p, x):
        x = jnp.log(x - x)
        return p * jax.lax.scan(lambda x, _: (x + 0.5 * x, None), x, None, length=400)[0]

    (finding,) = diagnose(deep, jnp.ones(3), jnp.ones(3), dtypes=()).findings
    assert finding.evidence.startswith("log (forward)")


class Net(eqx.Module):
    first: eqx.nn.Linear

    def __call__(self, x):
        return jnp.tanh(jax.vmap(self.first)(x))


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(50, 16, embedding_init=nn.initializers.normal(1.0))(ids)
        return nn.Dense(50)(nn.LayerNorm()(x))


HEALTHY = {
    "linen": (mlp(), X),
    "tokens": (Tokens(), jnp.arange(40).reshape(4, 10)),
    "nnx": (models.Nnx("plain", nnx.Rngs(0)), models.inputs()),
    "equinox": (Net(eqx.nn.Linear(16, 16, key=jax.random.key(0))), X),
    "function": (lambda p, x: jnp.tanh(x @ p["w"]), {"w": 0.25 * X}, X),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_of_a_healthy_model_nothing_is_said(name):
    found = diagnose(*HEALTHY[name], seeds=2)
    assert not found.findings, found
    assert found.seeds == (2 if isinstance(HEALTHY[name][0], nn.Module) else 1)
    found.require("float16", headroom_bits=2)
    assert str(found).endswith("nothing found")
    assert "<table>" not in found._repr_html_()


def test_a_frozen_part_is_ignored_by_its_path_and_an_unknown_one_is_an_error():
    fault = in_code(faults.stopped, "1", CUT)
    assert not said_of(fault, ignore=["dense_0", "dense_1/"]).findings
    with pytest.raises(UsageError, match="no parameter under 'dense_9'"):
        said_of(fault, ignore=["dense_9"])


def test_it_is_required_printed_and_drawn(tmp_path):
    found = said_of(SQUARE)
    finding = found.findings[0]
    found.require()
    with pytest.raises(UnstableError, match="overflow"):
        found.require("float16")
    with pytest.raises(UsageError, match=r"bfloat16.* was not diagnosed"):
        found.require("bfloat16")
    whole = json.loads(found.to_json())
    assert whole["grave"]
    assert whole["findings"][0]["source"] == finding.source == line_of(faults.square)
    assert f"faults.py:{finding.source.rsplit(':', 1)[1]}" in str(found)
    assert "<table>" in found._repr_html_()
    assert found.headroom_bits("float16") < 0
    ax = found.plot()
    told = {text.get_text() for text in ax.get_legend().get_texts()}
    assert {"signal, rms", "signal, largest", "gradient, rms", "float16 ends"} <= told
    plt.close(ax.figure)
    assert {"dtype", "seed", "site"} <= set(found.operations.dims)
    assert {"seed", "site"} <= set(found.calls.dims)


def test_headroom_that_is_short_names_the_operation():
    with pytest.raises(UnstableError, match=r"bits of headroom in float16 at .*test_diagnose|networks"):
        diagnose(mlp(), 100 * X, dtypes=("float16",), seeds=1).require("float16", headroom_bits=12)


def test_seeds_share_their_programs():
    """Both runs compile the same number of programs, whatever XLA kept of those before."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: events.append(event))
    counts = []
    for seeds in (2, 2, 4):
        events.clear()
        diagnose(mlp(), X, seeds=seeds, dtypes=())
        counts.append(events.count("/jax/core/compile/backend_compile_duration"))
    assert counts[1] == counts[2] > 0


class Closed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(np.tanh(x))


MISTAKES = {
    "a class": ((MLP, X), {}, "MLP"),
    "a missing rng": ((mlp(drop=0.5, train=True), X), {}, "dropout"),
    "inputs that do not fit": ((mlp(), X), {"variables": mlp().init(jax.random.key(0), X[:, :8])}, "float32"),
    "variables without parameters": ((mlp(), X), {"variables": {}}, "'params'"),
    "a function that returns no arrays": ((lambda p, x: None, X, X), {}, "no arrays"),
    "a function without inputs": ((jnp.sin,), {}, "parameters as first input"),
    "parameters that are none": ((lambda p, x: x, "none", X), {}, "no array of floats"),
    "a model that turns its input into NumPy": ((Closed(), X), {}, "NumPy|numpy|Tracer"),
    "a loss of many numbers": ((mlp(), X), {"loss": lambda y: y}, "loss must return one number"),
    "a loss that fails": ((mlp(), X), {"loss": lambda y: y["a"]}, "loss does not run"),
    "an unknown dtype": ((mlp(), X), {"dtypes": ("float61",)}, "float61"),
    "no seeds": ((mlp(), X), {"seeds": 0}, "seeds=0"),
    "rngs that are none": ((mlp(), X), {"rngs": 3}, "rngs=3"),
    "variables of a function": ((jnp.sin, X), {"variables": {}}, "linen"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name):
    arguments, settings, told = MISTAKES[name]
    with pytest.raises(UsageError, match=told) as caught:
        diagnose(*arguments, **settings)
    assert "\n" not in str(caught.value)
