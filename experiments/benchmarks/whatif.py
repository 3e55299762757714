"""`what_if` against the real thing: `python -m experiments.benchmarks.whatif [--seeds 16] [--out FILE.md]`.

Predicted is the twin's relative error, real that of the same model with `dtype=` float16 or bfloat16 in its modules,
each against float32: mean |difference| / mean |value|, of outputs and of gradients. The real one is compiled with
xla_allow_excess_precision=False, without which XLA leaves roundings out that the program asks for. Every ratio has the
standard error of that many seeds. Then the line that overflows first, and what looking costs.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import jaxstab
from experiments.benchmarks.plants import PLANTS, first_overflow, inputs, line_of

FORMATS = ("float16", "bfloat16")
COMPILED = 3
"""How often each program is compiled, in turn."""
EXACT = {"xla_allow_excess_precision": False}


class MLP(nn.Module):
    """Dense layers of one width, optionally normalized, and a head."""

    activation: Callable[[Any], Any] = nn.relu
    is_normalized: bool = False
    width: int = 128
    depth: int = 6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.depth):
            x = nn.Dense(self.width, dtype=self.dtype)(x)
            x = nn.LayerNorm(dtype=self.dtype)(x) if self.is_normalized else x
            x = self.activation(x)
        return nn.Dense(10, dtype=self.dtype)(x)


class Transformer(nn.Module):
    """Four pre-norm blocks over 1,000 tokens."""

    width: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        x = nn.Embed(1000, self.width, dtype=self.dtype)(tokens)
        for _ in range(4):
            y = norm()(x)
            x = x + nn.MultiHeadDotProductAttention(4, dtype=self.dtype)(y, y)
            x = x + dense(self.width)(nn.gelu(dense(4 * self.width)(norm()(x))))
        return dense(1000)(norm()(x))


class CNN(nn.Module):
    """Convolutions with batch normalization."""

    channels: int = 32
    depth: int = 5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.depth):
            x = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, dtype=self.dtype)(x))
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class Residual(nnx.Module):
    """Four residual blocks of NNX."""

    def __init__(self, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, 128, 128, dtype=dtype, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(128, dtype=dtype, rngs=rngs) for _ in range(4)])
        self.layers = nnx.List([linear() for _ in range(4)])

    def __call__(self, x: Any) -> Any:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + nnx.silu(layer(norm(x)))
        return x


class Subject(NamedTuple):
    """A model: `draw(seed)` its parameters, `apply(dtype)` its function of (parameters, x)."""

    draw: Callable[[int], Any]
    apply: Callable[[Any], Callable[[Any, Any], Any]]
    x: jax.Array


def linen(kind: Any, x: jax.Array, **fields: Any) -> Subject:
    """A subject of a linen module; what is not a parameter stays as it was drawn with seed 0."""
    first = kind(**fields).init(jax.random.key(0), x)
    rest = {name: value for name, value in first.items() if name != "params"}

    def apply(dtype: Any) -> Callable[[Any, Any], Any]:
        model = kind(**fields, dtype=dtype)
        return lambda p, x: model.apply({"params": p, **rest}, x, mutable=["batch_stats"])[0]

    return Subject(lambda seed: kind(**fields).init(jax.random.key(seed), x)["params"], apply, x)


def residual(x: jax.Array) -> Subject:
    """The subject of NNX."""

    def apply(dtype: Any) -> Callable[[Any, Any], Any]:
        graph = nnx.graphdef(Residual(dtype, nnx.Rngs(0)))
        return lambda state, x: nnx.merge(graph, state)(x)

    return Subject(lambda seed: nnx.state(Residual(None, nnx.Rngs(seed))), apply, x)


def subjects() -> dict[str, Subject]:
    """Small ones, for accuracy."""
    vectors = jax.random.normal(jax.random.key(1), (64, 128))
    return {
        "ReLU": linen(MLP, vectors),
        "tanh": linen(MLP, vectors, activation=jnp.tanh),
        "GELU": linen(MLP, vectors, activation=nn.gelu),
        "exact GELU": linen(MLP, vectors, activation=functools.partial(nn.gelu, approximate=False)),
        "LayerNorm, ReLU": linen(MLP, vectors, is_normalized=True),
        "transformer": linen(Transformer, jax.random.randint(jax.random.key(1), (4, 64), 0, 1000)),
        "CNN, BatchNorm": linen(CNN, jax.random.normal(jax.random.key(1), (16, 16, 16, 3))),
        "NNX residual": residual(vectors),
    }


def large_subjects() -> dict[str, Subject]:
    """Sizes at which products take the time."""
    tokens = jax.random.randint(jax.random.key(1), (8, 128), 0, 1000)
    return {
        "MLP 30 x 1024, batch 512": linen(
            MLP, jax.random.normal(jax.random.key(1), (512, 1024)), width=1024, depth=30
        ),
        "CNN 6 x 64 channels, batch 32": linen(
            CNN, jax.random.normal(jax.random.key(1), (32, 32, 32, 3)), channels=64, depth=6
        ),
        "transformer 4 x 256, 8 x 128 tokens": linen(Transformer, tokens, width=256),
    }


def step_of(apply: Callable[[Any, Any], Any], weights: Any) -> Callable[[Any, Any], Any]:
    """(parameters, x) -> (outputs, gradients) of a loss that weighs every output; random weights, so that their
    sum is no cancellation."""

    def loss(p: Any, x: Any) -> Any:
        output = apply(p, x)
        return jnp.sum(output.astype(jnp.float32) * weights), output

    def step(p: Any, x: Any) -> Any:
        (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(p, x)
        return output, gradients

    return step


def relative(found: Any, wanted: Any) -> float:
    """mean |found - wanted| / mean |wanted| over all arrays of a pytree together."""
    a, b = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
        for tree in (found, wanted)
    )
    return float(np.abs(a - b).mean() / np.abs(b).mean())


def errors(subject: Subject, dtype: str, seeds: range) -> np.ndarray:
    """Relative errors [seed, outputs or gradients, predicted or real]."""
    shape = jax.eval_shape(subject.apply(None), subject.draw(0), subject.x).shape
    weights = jax.random.normal(jax.random.key(99), shape) / np.sqrt(np.prod(shape))
    half = subject.x.astype(dtype) if jnp.issubdtype(subject.x.dtype, jnp.floating) else subject.x
    rehearse = jax.jit(jaxstab.what_if(step_of(subject.apply(None), weights), dtype))
    real = jax.jit(step_of(subject.apply(jnp.dtype(dtype)), weights), compiler_options=EXACT)
    rows = []
    for seed in seeds:
        params = subject.draw(seed)
        wanted, twin = rehearse(params, subject.x)
        pairs = zip(twin.outputs, real(params, half), wanted, strict=True)
        rows.append([[relative(told, exact), relative(done, exact)] for told, done, exact in pairs])
    return np.array(rows)


def ratio(pairs: np.ndarray) -> tuple[float, float]:
    """Mean predicted over mean real of [seed, 2], and its standard error (linearized, seeds paired)."""
    told, real = pairs.T
    value = told.mean() / real.mean()
    return value, float(np.std(told - value * real, ddof=1) / real.mean() / np.sqrt(len(pairs)))


def accuracy(seeds: int) -> Iterator[str]:
    """Lines of the table of relative errors."""
    yield "| model | format | outputs: real | predicted / real | gradients: real | predicted / real |"
    yield "|---|---|---|---|---|---|"
    for name, subject in subjects().items():
        for dtype in FORMATS:
            found = errors(subject, dtype, range(1, seeds + 1))
            cells = []
            for i in range(2):
                value, error = ratio(found[:, i])
                cells += [f"{found[:, i, 1].mean():.2e}", f"{value:.3f} ± {error:.3f}"]
            yield f"| {name} | {dtype} | {' | '.join(cells)} |"


def overflows() -> Iterator[str]:
    """Lines of the table of first operations that are not finite in float16: line, iteration."""
    yield "| planted | its line | predicted: line, iteration | real: line, iteration | same |"
    yield "|---|---|---|---|---|"
    for name, plant in PLANTS.items():
        twin = jax.jit(jaxstab.what_if(plant, "float16"))(inputs())[1]
        look = jaxstab.observe(plant, statistics=("absmax",), at="operations")
        seen = jax.jit(look, compiler_options=EXACT)(inputs().astype(jnp.float16))[1]
        told, real = first_overflow(twin.seen, "absmax_rounded"), first_overflow(seen, "absmax")
        line = line_of(plant)
        cells = [f"{Path(at[0]).name}, {at[1]}" if at else "none" for at in (told, real)]
        same = told is not None and told == real and told[0] == line
        yield f"| {name} | {Path(line).name} | {' | '.join(cells)} | {'yes' if same else 'NO'} |"


def compiled(step: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The compiled function, and seconds of tracing and compiling."""
    jax.clear_caches()
    began = time.perf_counter()
    run = jax.jit(step).lower(*args).compile()
    return run, time.perf_counter() - began


def costs(rounds: int) -> Iterator[str]:
    """Lines of the table of ratios to the plain step."""
    yield "| model | with | step | trace and compile | temporary memory |"
    yield "|---|---|---|---|---|"
    for name, subject in large_subjects().items():
        apply, params = subject.apply(None), subject.draw(1)
        step = jax.value_and_grad(lambda p, x, apply=apply: jnp.mean(apply(p, x) ** 2))
        ways = {
            "plain": step,
            "what_if": jaxstab.what_if(step, "float16"),
            "observe, calls": jaxstab.observe(step),
            "observe, operations": jaxstab.observe(step, at="operations"),
        }
        made = {way: [] for way in ways}
        for _ in range(COMPILED):
            for way, f in ways.items():
                made[way] += [compiled(f, params, subject.x)]
        first = {way: statistics.median(cost for _, cost in own) for way, own in made.items()}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(rounds + 1):
            for way, ((run, _), *_) in made.items():
                began = time.perf_counter()
                jax.block_until_ready(run(params, subject.x))
                seconds[way] += [time.perf_counter() - began] if i else []  # the first round warms up
        times = {way: statistics.median(own) for way, own in seconds.items()}
        memory = {way: run.memory_analysis().temp_size_in_bytes for way, ((run, _), *_) in made.items()}
        for way in list(ways)[1:]:
            yield (
                f"| {name} | {way} | {times[way] / times['plain']:.2f} "
                f"| {first[way] / first['plain']:.2f} | {memory[way] / memory['plain']:.2f} |"
            )


def main(seeds: int = 16, rounds: int = 7, out: Path | None = None) -> int:
    """Print the tables; 1 if an overflow was placed elsewhere.

    Args:
        seeds: networks of each model and format.
        rounds: timed steps of each, in turn.
        out: where to write the tables as well.
    """
    parts = {
        f"Relative error against float32, {seeds} seeds": accuracy(seeds),
        "First operation that is not finite, float16": overflows(),
        f"Cost over the plain loss and gradients, median of {rounds} rounds in turn": costs(rounds),
    }
    lines = [f"{jax.devices()[0].platform}, {os.cpu_count()} cores, jax {jax.__version__}."]
    print(lines[0])
    for title, rows in parts.items():
        lines += ["", f"**{title}**", ""]
        print(f"\n{title}")
        for line in rows:
            lines.append(line)
            print(line, flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    lines += ["", f"Load of the machine at the end: {load:.1f}; other programs ran beside it."]
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    return 1 if any("| NO |" in line for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
