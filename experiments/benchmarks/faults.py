"""Faults planted one at a time in the networks of `networks`, each with what should be said of it and where."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.networks import (
    CNN,
    MLP,
    Change,
    Recurrent,
    Residual,
    Transformer,
    cross_entropy,
    function,
    images,
    parameters_of_function,
    series,
    tokens,
    vectors,
)

Array = jax.Array


class Fault(NamedTuple):
    """A fault: what it is, where, and what a diagnosis should say."""

    name: str
    network: str
    model: Any
    inputs: tuple[Any, ...]
    findings: str
    """Kinds that name it, separated by |."""
    where: str
    """Regular expression of the path, or the file:line of the plant."""
    gravity: str = "grave"
    dtype: str = ""
    settings: Mapping[str, Any] = {}


def line_of(change: Callable[..., Any]) -> str:
    """file:line of the line of a plant that ends in `# here`."""
    lines, first = inspect.getsourcelines(inspect.unwrap(change))
    (found,) = [i for i, line in enumerate(lines) if "# here" in line]
    return f"{inspect.getsourcefile(change)}:{first + found}"


def log_of_zero(x: Array) -> Array:
    return jnp.log(nn.relu(x))  # here


def distances(x: Array) -> Array:
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    return x + jnp.sqrt(squares).mean(1)[..., None]  # here


def power(x: Array) -> Array:
    return jnp.abs(x - x[:, :1]) ** 0.3  # here


def norm_of_nothing(x: Array) -> Array:
    nothing = x - jax.lax.stop_gradient(x)
    length = jnp.linalg.norm(nothing, axis=-1, keepdims=True)  # here
    return x + length


def hidden_root(x: Array) -> Array:
    return jnp.where(x > 0, jnp.sqrt(x), 0.0)  # here


def share(x: Array) -> Array:
    part = nn.relu(x - 1000)
    return part / part.sum(-1, keepdims=True)  # here


def naive_softmax(x: Array) -> Array:
    e = jnp.exp(100 * jnp.abs(x))  # here
    return e / e.sum(-1, keepdims=True)


def arc(x: Array) -> Array:
    return jnp.arccos(jnp.clip(x, -1.0, 1.0))  # here


def branch(x: Array) -> Array:
    return jax.lax.cond(
        jnp.mean(x) < 100,
        lambda x: jnp.log(x - jnp.max(jnp.abs(x))),  # here
        lambda x: x,
        x,
    )


def no_key_visible(scores: Array) -> Array:
    row = jnp.where(jnp.arange(scores.shape[-2]) == 3, -jnp.inf, 0.0)
    return nn.softmax(scores + row[:, None])  # here


def no_key_visible_finite(scores: Array) -> Array:
    return nn.softmax(scores.at[..., 3, :].set(-1e30))  # here


def square(x: Array) -> Array:
    large = 3000 * x
    squared = large**2  # here
    return jnp.sqrt(squared + 1)


def total(x: Array) -> Array:
    added = jnp.sum(100 * jnp.abs(x) + 5000, axis=-1, keepdims=True)  # here
    return x / added


def exponential(x: Array) -> Array:
    grown = jnp.exp(16 * jnp.abs(x))  # here
    return x * grown / (1 + grown)


def variance(x: Array) -> Array:
    moved = x / (4 * jnp.max(jnp.abs(x))) + 100
    spread = jnp.mean(moved**2, -1, keepdims=True) - jnp.mean(moved, -1, keepdims=True) ** 2  # here
    return x * jax.lax.rsqrt(jnp.abs(spread) + 0.01)


def tiny_epsilon(x: Array) -> Array:
    small = x * 1e-5
    return small / jnp.sqrt(jnp.mean(small**2, -1, keepdims=True) + 1e-14)  # here


def thousandfold(x: Array) -> Array:
    return 1e5 * x  # here


def cancelled(x: Array) -> Array:
    return (x + 30000.0) - 30000.0  # here


def stopped(x: Array) -> Array:
    return jax.lax.stop_gradient(x)  # here


def rounded(x: Array) -> Array:
    return jnp.round(4 * x) / 4  # here


def chosen(x: Array) -> Array:
    return jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1])  # here


def below(x: Array) -> Array:
    return x - 1000.0  # here


def mostly_below(x: Array) -> Array:
    return x - 4.0  # here


def saturated(scores: Array) -> Array:
    return scores * 64.0  # here


def one_sample(x: Array) -> Array:
    return jnp.broadcast_to(x.mean(0), x.shape)  # here


def one_unit(x: Array) -> Array:
    return jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)  # here


def by_64(x: Array) -> Array:
    return 64 * x  # here


def log_of_softmax(logits: Array) -> Array:
    return -jnp.mean(jnp.log(nn.softmax(1000 * logits)))  # here


def squares(output: Array) -> Array:
    return jnp.sum((output - 255.0) ** 2)  # here


def tiny_loss(output: Array) -> Array:
    return 1e-7 * cross_entropy(output)


def altered(model: nn.Module, x: Array, path: str, change: Change, seed: int = 0) -> dict[str, Any]:
    """Settings with the variables of a linen module, one parameter of which was changed."""
    variables = model.init(jax.random.key(seed), x)
    names = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree.leaves_with_path(variables["params"])
    ]
    assert path in names, names
    found = [
        change(leaf) if name == path else leaf
        for name, leaf in zip(names, jax.tree.leaves(variables["params"]), strict=True)
    ]
    return {
        "variables": {
            **variables,
            "params": jax.tree.unflatten(jax.tree.structure(variables["params"]), found),
        }
    }


def planted(
    change: Change,
    network: str,
    place: str,
    findings: str,
    gravity: str = "grave",
    dtype: str = "",
    where: str | None = None,
    **settings: Any,
) -> Fault:
    """A fault at a place of a network."""
    model, inputs = NETWORKS[network]((place, change))
    name = change.__name__.replace("_", " ")
    return Fault(name, network, model, inputs, findings, where or line_of(change), gravity, dtype, settings)


NETWORKS: dict[str, Callable[[Any], tuple[Any, tuple[Any, ...]]]] = {
    "MLP": lambda p: (MLP(planted=p), (vectors(),)),
    "CNN": lambda p: (CNN(planted=p), (images(),)),
    "transformer": lambda p: (Transformer(planted=p), (tokens(),)),
    "scanned transformer": lambda p: (Transformer(is_scanned=True, planted=p), (tokens(),)),
    "NNX residual": lambda p: (Residual(planted=p), (vectors(),)),
    "GRU": lambda p: (Recurrent(planted=p), (series(),)),
    "function": lambda p: (function(p), (parameters_of_function(), vectors())),
}
NAN, OVER, CUT = "not finite", "overflow", "cut off from the loss"


def in_code() -> list[Fault]:
    """Faults in a line of code."""
    return [
        planted(log_of_zero, "MLP", "features", NAN), planted(log_of_zero, "CNN", "2", NAN),
        planted(log_of_zero, "scanned transformer", "hidden", NAN), planted(log_of_zero, "function", "logits", NAN),
        planted(distances, "MLP", "features", NAN), planted(distances, "GRU", "states", NAN),
        planted(power, "CNN", "pooled", NAN), planted(norm_of_nothing, "NNX residual", "2", NAN),
        planted(norm_of_nothing, "transformer", "stream", NAN), planted(hidden_root, "MLP", "2", NAN),
        planted(hidden_root, "function", "body", NAN), planted(share, "MLP", "5", NAN),
        planted(share, "transformer", "hidden", NAN), planted(naive_softmax, "MLP", "logits", NAN),
        planted(naive_softmax, "transformer", "scores", NAN), planted(arc, "NNX residual", "3", NAN),
        planted(branch, "GRU", "states", NAN), planted(no_key_visible, "transformer", "masked", NAN),
        planted(no_key_visible, "scanned transformer", "masked", NAN),
        planted(no_key_visible_finite, "transformer", "masked", "row masked", "warning"),
        planted(log_of_softmax, "CNN", "none", NAN, loss=log_of_softmax),
        planted(square, "MLP", "4", OVER, dtype="float16"), planted(square, "GRU", "states", OVER, dtype="float16"),
        planted(square, "function", "logits", OVER, dtype="float16"),
        planted(total, "CNN", "3", OVER, dtype="float16"), planted(total, "NNX residual", "1", OVER, dtype="float16"),
        planted(exponential, "transformer", "attended", OVER, dtype="float16"),
        planted(squares, "MLP", "none", OVER, dtype="float16", loss=squares),
        planted(variance, "MLP", "3", "digits lost", "warning", dtype="float16"),
        planted(tiny_epsilon, "MLP", "3", f"{NAN}|epsilon lost", "warning", dtype="float16"),
        planted(thousandfold, "NNX residual", "4", OVER, dtype="float16"),
        planted(cancelled, "MLP", "features", "digits lost", "warning", dtype="float16"),
        planted(stopped, "MLP", "4", CUT, where=r"dense_4|^MLP$"),
        planted(stopped, "scanned transformer", "embedded", CUT, where="embed|^Transformer$"),
        planted(rounded, "NNX residual", "logits", CUT, where="head|^Residual$"),
        planted(chosen, "CNN", "pooled", CUT, where=r"(conv|BatchNorm)_4|^CNN$"),
        planted(below, "MLP", "3", CUT, where=r"dense_3"),
        planted(mostly_below, "MLP", "2", "dead units", "warning", where="dense_2"),
        planted(saturated, "transformer", "scores", "softmax saturated", "warning", where="block_1/attention"),
        planted(saturated, "scanned transformer", "scores", "softmax saturated", "warning", where="attention"),
        planted(one_sample, "MLP", "2", "samples alike", "warning", where="dense_3|^MLP$"),
        planted(one_unit, "MLP", "2", "units alike", "warning", where="dense_2|^MLP$"),
        planted(by_64, "transformer", "embedded", "summand drowned", "warning", where="^Transformer$"),
        planted(tiny_loss, "MLP", "none", "gradient underflow", "warning", "float16", ".", loss=tiny_loss),
        planted(tiny_loss, "transformer", "none", "gradient underflow", "warning", "float16", ".", loss=tiny_loss),
    ]  # fmt: skip  # a fault a line


def in_parameters() -> list[Fault]:
    """Faults of initializers, settings and inputs."""
    wide = MLP(depth=2, width=1024)
    constant = MLP(kernel_init=nn.initializers.constant(0.05))
    sigmoid = MLP(depth=20, activation=nn.sigmoid, kernel_init=nn.initializers.lecun_normal())
    rnn = functools.partial(
        nn.SimpleCell, activation_fn=nn.relu, recurrent_kernel_init=nn.initializers.normal(0.5)
    )
    lost = MLP(normalize=functools.partial(nn.BatchNorm, use_running_average=False))
    tied = Transformer(is_tied=True, width=256)
    gain, explodes, vanishes = "wrong gain", "signal explodes", "gradient vanishes|signal vanishes"

    def altered_fault(
        name: str,
        network: str,
        model: Any,
        x: Array,
        path: str,
        change: Change,
        findings: str,
        where: str,
        gravity: str = "warning",
    ) -> Fault:
        settings = altered(model, x, path, change)
        return Fault(name, network, model, (x,), findings, where, gravity, "", settings)

    return [
        altered_fault("std 1 in one layer", "MLP", MLP(), vectors(), "dense_3/kernel", lambda w: w * 40, gain,
                      "dense_3"),
        altered_fault("small in one layer", "MLP", MLP(), vectors(), "dense_5/kernel", lambda w: w / 40, gain,
                      "dense_5"),
        altered_fault("fan-out in place of fan-in", "MLP", wide, vectors(), "head/kernel",
                      lambda w: w * np.sqrt(1024 / 10), gain, "head"),
        altered_fault("std 1 in one layer", "CNN", CNN(), images(), "conv_2/kernel", lambda w: w * 40, gain, "conv_2"),
        altered_fault("one layer of a scan is large", "scanned transformer", Transformer(is_scanned=True), tokens(),
                      "blocks/up/kernel", lambda w: w.at[2].multiply(40), gain, r"up\[2\]"),
        altered_fault("large values", "transformer", Transformer(), tokens(), "block_2/attention/value/kernel",
                      lambda w: w * 30, gain, "block_2/attention/value"),
        altered_fault("NaN in a parameter", "CNN", CNN(), images(), "conv_3/kernel", lambda w: w.at[0].set(jnp.nan),
                      NAN, "conv_3/kernel", "grave"),
        altered_fault("zeros in one layer", "MLP", MLP(), vectors(), "dense_4/kernel", jnp.zeros_like, CUT, "dense_4",
                      "grave"),
        Fault("one constant", "MLP", constant, (vectors(),), "units alike", "dense_0", "warning"),
        Fault("deep sigmoid", "MLP", sigmoid, (vectors(),), vanishes, "dense", "warning"),
        Fault("std 0.01 throughout", "MLP", MLP(kernel_init=nn.initializers.normal(0.01)), (vectors(),),
              f"{gain}|signal vanishes", "dense", "warning"),
        Fault("std 0.4 throughout", "MLP", MLP(depth=12, kernel_init=nn.initializers.normal(0.4)), (vectors(),),
              explodes, "dense", "warning"),
        Fault("gain 4 throughout", "function", function(), (parameters_of_function(20, 4.0), vectors()),
              "gradient explodes", "layer", "warning"),
        Fault("gain 0.3 throughout", "function", function(), (parameters_of_function(12, 0.3), vectors()),
              "signal vanishes", "layer", "warning"),
        Fault("recurrent weights too large", "RNN", Recurrent(cell=rnn), (series(),), explodes, "cell", "warning"),
        Fault("no norm, no scale", "transformer", Transformer(depth=24, is_normalized=False), (tokens(),), explodes,
              "block|attention|up|down", "warning"),
        Fault("batch norm of one", "MLP", lost, (vectors(1),), "normalized away|" + CUT, "BatchNorm", "warning"),
        Fault("tied to a unit embedding", "transformer", tied, (tokens(),), gain, "embed", "warning"),
        Fault("dropout in evaluation", "MLP", MLP(drop=0.5, train=True), (vectors(),), "random", "Dropout", "note",
              "", {"rngs": {"dropout": jax.random.key(0)}}),
        Fault("dropout in evaluation", "NNX residual", Residual(drop=0.5), (vectors(),), "random", "drop", "note"),
        Fault("pixels of 1e6", "CNN", CNN(), (1e6 * images(),), f"{NAN}|{OVER}", "input 0", "grave", "float16"),
        Fault("inf in the input", "MLP", MLP(), (vectors().at[0, 0].set(jnp.inf),), NAN, "input 0"),
        Fault("input of zeros", "GRU", Recurrent(), (0 * series(),), CUT, "input 0"),
    ]  # fmt: skip  # a fault a line


def faults() -> list[Fault]:
    """All of them."""
    model, x = Transformer(), tokens()
    zeros = altered(model, x, "head/kernel", jnp.zeros_like)
    silent = Fault("head of zeros", "transformer", model, (x,), "silent parameter", "", "note", "", zeros)
    return [*in_code(), *in_parameters(), silent]
