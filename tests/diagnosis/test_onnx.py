"""A model as a file of ONNX: what ONNX Runtime makes of it, what the export says of itself, and what it refuses."""

from __future__ import annotations

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxstab
from jaxstab.diagnosis import onnx as exporting
from jaxstab.errors import UsageError

jax2onnx = pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="nothing to run the files with")

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 6))
TOKENS = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])
ROUNDING = 1e-5
"""Relative to the largest entry: float32 sums of a few dozen terms in another order."""


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.gelu(x)))


class Transformer(nn.Module):
    """Tokens to the logits of each, and a summary of all."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return {"logits": nn.Dense(11)(x), "summary": x.mean(1)}


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.up, self.norm = nnx.Linear(6, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.down = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.norm(self.up(x))))


def run_file(path, *inputs):
    """The file's outputs, by ONNX Runtime, without a line of the code under test."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)})


def test_a_linen_module(tmp_path):
    variables = LinenMLP().init(KEY, X)
    export = jaxstab.to_onnx(LinenMLP(), (X,), tmp_path / "net.onnx", variables=variables)
    (found,) = run_file(export.path, X)
    np.testing.assert_allclose(found, LinenMLP().apply(variables, X), atol=1e-5)
    assert export.largest_difference is not None
    assert 0 <= export.largest_difference < ROUNDING
    assert export.operators.count("Gemm") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_keyword_arguments_of_the_call(tmp_path):
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, scale=1.0):
            self.sow("kept", "x", x + 1)
            return nn.Dense(3)(x) * scale

    variables = {"params": Scaled().init(KEY, X)["params"]}
    kwargs = {"scale": 7.0, "mutable": ["kept"]}
    export = jaxstab.to_onnx(Scaled(), (X,), tmp_path / "net.onnx", variables, kwargs)
    scaled, kept = run_file(export.path, X)
    np.testing.assert_allclose(scaled, 7 * Scaled().apply(variables, X), atol=1e-5)
    np.testing.assert_allclose(kept, X + 1, atol=1e-6)
    with pytest.raises(UsageError, match="unexpected keyword argument 'scales'"):
        jaxstab.to_onnx(Scaled(), (X,), tmp_path / "net.onnx", variables, {"scales": 7.0})


def test_an_nnx_module(tmp_path):
    model = NnxMLP(nnx.Rngs(0))
    model.eval()
    export = jaxstab.to_onnx(model, (X,), tmp_path / "net.onnx")
    np.testing.assert_allclose(run_file(export.path, X)[0], model(X), atol=1e-5)
    assert export.largest_difference is not None
    assert export.largest_difference < ROUNDING


def test_an_nnx_module_that_counts_its_calls_is_not_changed(tmp_path):
    class Counter(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.zeros(6))

        def __call__(self, x):
            self.calls.set_value(self.calls.get_value() + 1)
            return x * self.calls.get_value()

    model = Counter()
    export = jaxstab.to_onnx(model, (X,), tmp_path / "net.onnx")
    assert not model.calls.get_value().any()
    np.testing.assert_array_equal(run_file(export.path, X)[0], X)


def test_a_function_of_one_array_and_of_two(tmp_path):
    export = jaxstab.to_onnx(jnp.tanh, X, tmp_path / "one.onnx")
    assert export.operators == ("Tanh",)
    export = jaxstab.to_onnx(lambda x, y: x - 2 * y, (X, X**2), str(tmp_path / "two.onnx"))
    np.testing.assert_allclose(run_file(export.path, X, X**2)[0], X - 2 * X**2, rtol=1e-5, atol=1e-6)


def test_tokens_stay_integers_and_every_output_is_compared(tmp_path):
    variables = Transformer().init(KEY, TOKENS)
    export = jaxstab.to_onnx(Transformer(), (TOKENS,), tmp_path / "net.onnx", variables)
    session = onnxruntime.InferenceSession(str(export.path))
    assert [(i.type, i.shape) for i in session.get_inputs()] == [("tensor(int32)", [2, 4])]
    wanted = Transformer().apply(variables, TOKENS)
    logits, summary = run_file(export.path, TOKENS)
    np.testing.assert_allclose(logits, wanted["logits"], atol=1e-5)
    np.testing.assert_allclose(summary, wanted["summary"], atol=1e-5)
    assert export.largest_difference is not None
    assert export.largest_difference < ROUNDING


def test_operators_inside_a_loop_are_listed(tmp_path):
    def looped(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0]

    export = jaxstab.to_onnx(looped, (X,), tmp_path / "net.onnx")
    assert export.operators[0] == "Loop"
    assert "Sin" in export.operators[1:]


def test_the_line_says_what_was_written(tmp_path):
    export = jaxstab.to_onnx(lambda x: jnp.tanh(jnp.tanh(x)), (X,), tmp_path / "net.onnx")
    assert str(export) == (
        f"{tmp_path / 'net.onnx'}: opset {export.opset}, 2 operators (2 Tanh); largest relative difference of its"
        f" outputs {export.largest_difference:.2g}"
    )
    assert export.opset >= 13


def plant(monkeypatch, change):
    """jax2onnx exports not the function but what `change` makes of its outputs."""
    true = jax2onnx.to_onnx
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda f, *a, **k: true(lambda *x: change(f(*x)), *a, **k))


def test_another_function_in_the_file_is_seen(tmp_path, monkeypatch):
    def two(x):
        return 1000 * x, jnp.tanh(x)

    right = jaxstab.to_onnx(two, (X,), tmp_path / "right.onnx").largest_difference
    plant(monkeypatch, lambda out: (out[0], 1.01 * out[1]))  # in the small output alone
    wrong = jaxstab.to_onnx(two, (X,), tmp_path / "wrong.onnx").largest_difference
    assert right is not None
    assert right < ROUNDING
    assert wrong == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "change", [lambda out: (out[0][:1],), lambda out: (out[0], out[0]), lambda out: (out[0] / 0.0,)]
)
def test_other_shapes_and_numbers_that_are_not_finite_are_infinitely_far(tmp_path, monkeypatch, change):
    plant(monkeypatch, change)
    assert jaxstab.to_onnx(jnp.tanh, (X,), tmp_path / "net.onnx").largest_difference == float("inf")


def test_infinities_where_they_belong_are_no_difference(tmp_path):
    export = jaxstab.to_onnx(lambda x: x / 0.0, (X,), tmp_path / "net.onnx")
    assert np.isinf(run_file(export.path, X)[0]).all()
    assert export.largest_difference == 0


def test_without_onnxruntime_the_file_is_written_and_not_compared(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    export = jaxstab.to_onnx(jnp.tanh, (X,), tmp_path / "net.onnx")
    assert export.largest_difference is None
    assert "onnxruntime is not installed" in str(export)
    assert export.path.stat().st_size > 0


def test_without_jax2onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'jaxstab\[onnx\]'"):
        jaxstab.to_onnx(jnp.tanh, (X,), tmp_path / "net.onnx")


def unfit(x):
    return jnp.linalg.eigvals(x @ x.T)


WRONG = {
    "class": (LinenMLP, (X,), {}, ["class LinenMLP", "write LinenMLP(...)"]),
    "no function": ("net", (X,), {}, ["type str"]),
    "no variables": (LinenMLP(), (X,), {}, ["variables=model.init(", "LinenMLP"]),
    "variables of a function": (jnp.tanh, (X,), {"variables": {}}, ["linen", "tanh"]),
    "no inputs": (jnp.tanh, (), {}, ["tuple of example arrays"]),
    "inputs by name": (jnp.tanh, {"x": X}, {}, ["tuple of example arrays", "dict"]),
    "input of another kind": (lambda p, x: x, ({"w": X}, X), {}, ["input 0", "dict"]),
    "arity": (jnp.tanh, (X, X), {}, ["tanh does not run on (float32[5, 6], float32[5, 6])", "TypeError"]),
    "shape": (NnxMLP(nnx.Rngs(0)), (X.T,), {}, ["NnxMLP does not run on (float32[6, 5])"]),
    "no output": (lambda x: None, (X,), {}, ["returns no array"]),
    "output of another kind": (lambda x: (x, "done"), (X,), {}, ["type str, which is no array"]),
    "not in ONNX": (unfit, (X,), {}, ["jax2onnx cannot express unfit"]),
    "not in ONNX Runtime": (
        jnp.dot,
        (jnp.ones((3, 3), "bfloat16"),) * 2,
        {},
        ["ONNX Runtime does not run", "dot"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_and_leaves_the_file_as_it_was(tmp_path, case):
    model, inputs, more, said = WRONG[case]
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    with pytest.raises(UsageError) as raised:
        jaxstab.to_onnx(model, inputs, path, **more)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in said), message
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(("path", "said"), [("missing/net.onnx", "no folder"), (".", "is a folder")])
def test_a_path_that_cannot_be_written_is_refused_before_the_export(tmp_path, monkeypatch, path, said):
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda *_, **__: pytest.fail("exported"))
    with pytest.raises(UsageError, match=said):
        jaxstab.to_onnx(jnp.tanh, (X,), tmp_path / path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(exporting.Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        jaxstab.to_onnx(jnp.tanh, (X,), path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
