"""Stacks of every kind of layer written out in float64, on jaxstab's own draws: what a campaign holds them against.

A network here is a Python loop over formulas, of ReLU. It shares no code with a layer's `__call__`, with
`jaxstab.trials.walk` or with the samplers. Forward it is NumPy; the same formulas in jax.numpy give its gradients, by
`jax.grad` of the whole, with respect to what is added to every state and every product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import random
from jaxstab.nets import initializers
from jaxstab.nets.layers.layer import Numbers
from jaxstab.nets.weights import Weight
from jaxstab.trials.stack import Spec

LEAST_PIVOT = 4 * 2.0**-23
"""A row of gradients that depends on others to this share of its square, times their number, adds none of its own."""


class Step:
    """One layer being walked: its draws, what is added to its products, and what was seen of it.

    apart: of rows that are multiplied in law, the least share that one has of its own; rounding grows by its inverse.
    """

    def __init__(self, spec: Spec, numbers: Numbers, drawn: Any, nudges: list[Any] | None, xp: Any) -> None:
        self.spec, self.numbers, self.drawn, self.xp = spec, numbers, drawn, xp
        self.nudges = nudges
        self.products: list[tuple[Any, Any]] = []
        self.preactivations: list[Any] = []
        self.apart = 1.0

    def product(self, name: str, h: Any) -> Any:
        """h W, of rows [.., width]; both are kept."""
        weight, rows = self.drawn[name], h.reshape(-1, h.shape[-1])
        if self.spec.sampler == "dense":
            y = rows @ np.asarray(weight.drawn, np.float64)
        else:
            y = in_law(weight, rows, self.xp)
            if self.xp is np:
                lower = np.asarray(np.linalg.qr(rows.T, mode="r")).T
                self.apart = min(
                    self.apart, float(np.min(abs(np.diag(lower)) / np.linalg.norm(lower, axis=1)))
                )
        y = y if self.nudges is None else y + self.nudges[len(self.products)]
        self.products.append((rows, y))
        return y.reshape(*h.shape[:-1], -1)

    def affine(self, name: str, h: Any) -> Any:
        """h W + b."""
        return self.product(name, h) + np.asarray(self.drawn["bias"], np.float64)

    def relu(self, z: Any) -> Any:
        """z where it is positive, else 0; z is kept."""
        self.preactivations.append(z)
        return self.xp.where(z > 0, z, 0.0)

    def drop(self, h: Any) -> Any:
        """h after dropout."""
        if not self.numbers.dropout:
            return h
        rate = float(self.numbers.dropout[0])
        kept = np.asarray(jax.random.uniform(self.drawn["mask"], h.shape, jnp.float32)) >= np.float32(rate)
        return h * kept / (1 - rate)

    def add(self, h: Any, branch: Any) -> Any:
        """a h + b branch."""
        return float(self.numbers.skip_scale) * h + float(self.numbers.branch_scale) * branch

    def norm(self, x: Any, axis: int = -1, centred: bool = True) -> Any:
        """x by its mean and rms along an axis, or by its rms alone."""
        x = x - x.mean(axis, keepdims=True) if centred else x
        return x / self.xp.sqrt((x**2).mean(axis, keepdims=True) + 1e-6)

    def sublayer(self, x: Any) -> Any:
        """Attention over tokens, or W2 relu(W1 x + b)."""
        if "query" not in self.drawn:
            return self.product("second", self.relu(self.affine("first", x)))
        heads = [self.product(name, x).reshape(*x.shape[:-1], self.spec.heads, -1).swapaxes(1, 2)
                 for name in ("query", "key", "value")]  # fmt: skip
        logits = heads[0] @ heads[1].swapaxes(2, 3) / math.sqrt(heads[0].shape[-1])
        share = self.xp.exp(float(self.numbers.qk_scale) * logits)
        mixed = share / share.sum(-1, keepdims=True) @ heads[2]
        return self.product("output", mixed.swapaxes(1, 2).reshape(x.shape))


def plain(step: Step, h: Any) -> Any:
    """relu(W h + b)."""
    return step.drop(step.relu(step.affine("weight", h)))


def convolution(step: Step, h: Any) -> Any:
    """relu(W on the patch around each pixel, + b), a patch by its rows, columns and channels."""
    kernel, side = step.spec.kernel, step.spec.side
    edge = ((kernel - 1) // 2, kernel // 2)
    mode = {"zero": "constant", "circular": "wrap"}[step.spec.padding]
    wide = step.xp.pad(h, ((0, 0), edge, edge, (0, 0)), mode=mode)
    patches = [
        [wide[:, r : r + kernel, c : c + kernel].reshape(len(h), -1) for c in range(side)]
        for r in range(side)
    ]
    return plain(step, step.xp.stack([step.xp.stack(row, 1) for row in patches], 1))


def residual(step: Step, h: Any) -> Any:
    """a h + b relu(W h + b), or with a second matrix."""
    branch = step.relu(step.affine("weight", h))
    return step.add(h, step.drop(step.product("second", branch) if "second" in step.drawn else branch))


def normalized(axis: int = -1, centred: bool = True) -> Callable[[Step, Any], Any]:
    """relu(norm(W h + b))."""
    return lambda step, h: step.drop(step.relu(step.norm(step.affine("weight", h), axis, centred)))


def lstm(step: Step, state: tuple[Any, Any]) -> tuple[Any, Any]:
    """Gates input, forget, new, output of (h, c)."""
    h, c = state
    i, f, g, o = step.xp.split(step.affine("weight", h), 4, axis=1)
    i, f, o = (1 / (1 + step.xp.exp(-z)) for z in (i, f, o))
    c = f * c + i * step.relu(g)
    return o * step.xp.where(c > 0, c, 0.0), c  # c is 0 where nothing was let in: the slope there is 0


FORMULAS: Mapping[str, Callable[[Step, Any], Any]] = MappingProxyType({
    "plain": plain,
    "recurrent": plain,
    "residual": residual,
    "normalized": normalized(),
    "rms_norm": normalized(centred=False),
    "batch_norm": normalized(axis=0),
    "lstm": lstm,
    "convolution": convolution,
    "attention": lambda step, h: step.drop(step.sublayer(h)),
    "residual_attention": lambda step, h: step.add(h, step.drop(step.sublayer(h))),
    "pre_ln": lambda step, h: step.add(h, step.drop(step.sublayer(step.norm(h)))),
    "post_ln": lambda step, h: step.norm(step.add(h, step.drop(step.sublayer(h)))),
})  # fmt: skip
"""The next state by kind."""


def in_law(weight: Weight, rows: Any, xp: Any) -> Any:
    """rows W of a Gaussian matrix given the rows: with H = L Q, y = s L Z, G = s [D Z'Q + L_D Z2 (I - Q'Q)]."""
    std = float(initializers.weight_std(str(weight.weights.init), weight.fan_in, weight.units)) * float(
        weight.gain
    )
    z_key, rest_key = jax.random.split(jax.random.wrap_key_data(jax.random.key_data(weight.drawn)))
    z = np.asarray(random.normal(z_key, (len(rows), weight.units)), np.float64)
    rest = np.asarray(random.normal(rest_key, rows.shape), np.float64)

    def factor(h: Any) -> tuple[Any, Any]:
        q, r = xp.linalg.qr(h.T)
        signs = xp.sign(xp.diagonal(r))
        return (r * signs[:, None]).T, (q * signs).T

    if xp is np:
        return std * factor(rows)[0] @ z

    @jax.custom_vjp
    def times(h: Any) -> Any:
        return std * factor(h)[0] @ z

    def back(frame: Any, d: Any) -> tuple[Any]:
        beyond = root(d @ d.T) @ rest
        return (std * (d @ z.T @ frame + beyond - beyond @ frame.T @ frame),)

    times.defvjp(lambda h: (times(h), factor(h)[1]), back)
    return times(rows)


def root(gram: Any) -> Any:
    """Lower triangular L, L L' = gram; no column where a row depends on those before it."""
    columns, left = [], gram
    for i in range(len(gram)):
        has_own = left[i, i] > LEAST_PIVOT * len(gram) * gram[i, i]
        pivot = jnp.where(has_own, left[i, i], 1.0)
        columns.append(jnp.where(has_own, left[:, i] / jnp.sqrt(pivot), 0.0))
        left = left - jnp.outer(columns[-1], columns[-1])
    return jnp.stack(columns, axis=1)


def walk(
    spec: Spec, numbers: Numbers, draws: list[Any], x: Any, nudges: Any, xp: Any
) -> tuple[Any, list[Any]]:
    """(what the read-out reads, [(state, products, preactivations, apart)] of each layer)."""
    state = (x, 0 * x) if spec.kind == "lstm" else x
    seen = []
    for index, drawn in enumerate(draws):
        step = Step(spec, numbers, drawn, None if nudges is None else nudges[index][1], xp)
        state = FORMULAS[spec.kind](step, state)
        if nudges is not None:
            state = jax.tree.map(lambda a, b: a + b, state, nudges[index][0])
        seen.append((state, step.products, step.preactivations, step.apart))
    h = state[0] if spec.kind == "lstm" else state
    return (Step(spec, numbers, None, None, xp).norm(h) if spec.kind == "pre_ln" else h), seen


def statistics(
    spec: Spec, numbers: Numbers, seed: int, rounding: float = 0.0, trial: int = 0
) -> dict[str, np.ndarray]:
    """What `propagation` measures of one network, [layer] each; and "apart" (see `Step`).

    Every state and every product is off by normally distributed shares of itself, `rounding` in size, others in
    every `trial`.
    """
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), seed)
    input_key, layers_key, readout_key = jax.random.split(key, 3)
    is_reused = spec.kind in ("recurrent", "lstm")
    keys = [layers_key if is_reused else jax.random.fold_in(layers_key, i) for i in range(spec.depth)]
    draws = [spec.layers[i % len(spec.layers)].draw(k, numbers) for i, k in enumerate(keys)]
    x, readout = (np.asarray(random.normal(k, spec.shape), np.float64) for k in (input_key, readout_key))
    _, seen = walk(spec, numbers, draws, x, None, np)
    noise = np.random.default_rng([seed, trial])
    errors = [(state, [y for _, y in products]) for state, products, *_ in seen]
    errors = jax.tree.map(lambda a: rounding * a * noise.standard_normal(a.shape), errors)
    if rounding:
        _, seen = walk(spec, numbers, draws, x, errors, np)
    with jax.enable_x64(True):

        def loss(nudges: Any) -> Any:
            return jnp.sum(walk(spec, numbers, draws, jnp.asarray(x), nudges, jnp)[0] * readout)

        gradients = jax.tree.map(np.asarray, jax.grad(loss)(jax.tree.map(jnp.asarray, errors)))
    rows = [_of_layer(*layer, *gradient) for layer, gradient in zip(seen, gradients, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _of_layer(
    state: Any, products: Any, noted: Any, apart: float, of_state: Any, of_products: Any
) -> dict[str, Any]:
    h: Any = jax.tree.leaves(state)[0]
    weights = [rows.T @ d for (rows, _), d in zip(products, of_products, strict=True)]
    forward, backward = rms(h), rms(*jax.tree.leaves(of_state))
    with np.errstate(divide="ignore"):
        logs = np.log10([forward, backward])
    return {
        "forward_mean": h.mean(), "forward_std": h.std(ddof=1), "forward_rms": forward,
        "forward_absmax": np.abs(h).max(), "forward_entry": h.flat[0], "zero_fraction": np.mean(h == 0),
        "saturated_fraction": np.mean([np.mean(z <= 0) for z in noted]) if noted else math.nan,
        "correlation": np.mean([_cosine(one) for one in (h if h.ndim == 3 else [h.reshape(len(h), -1)])]),
        "backward_rms": backward, "weight_gradient_rms": rms(*weights),
        "log10_forward_rms": logs[0], "log10_backward_rms": logs[1], "apart": apart,
    }  # fmt: skip


def rms(*arrays: Any) -> float:
    """Root of the mean square of all entries."""
    return float(np.sqrt(np.mean(np.concatenate([np.ravel(one) for one in arrays]) ** 2)))


def _cosine(h: np.ndarray) -> float:
    """Mean over pairs of nonzero rows."""
    unit = np.array([row / np.linalg.norm(row) for row in h if row.any()])
    pairs = [unit[i] @ unit[j] for i in range(len(unit)) for j in range(i)]
    return float(np.mean(pairs)) if pairs else math.nan
