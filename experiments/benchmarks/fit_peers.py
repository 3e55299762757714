"""The chapter's regressions and classifier without jaxstab, where `torch_chapter` does not have them already.

Ensembles by `torch.func`, loops in NumPy with the gradients by hand, plain optax and flax under `jax.jit` in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab.data.images import ImageData


def draw_polynomial(rng: np.random.Generator, powers: int) -> tuple[np.ndarray, np.ndarray]:
    """The chapter's 100 training points."""
    x = rng.standard_normal((100, 1))
    features = np.power(x, np.arange(20)) / [math.gamma(i + 1) for i in range(20)]
    y = features[:, :4] @ [5, 1.2, -3.4, 5.6] + rng.normal(scale=0.1, size=100)
    return features[:, :powers].astype(np.float32), y.astype(np.float32)


def polynomial_by_numpy(powers: int, epochs: int, seeds: int) -> np.ndarray:
    """A loop over seeds; weights [seed, power]."""

    def one(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x, y = draw_polynomial(rng, powers)
        w = rng.uniform(-1, 1, powers).astype(np.float32) / np.float32(powers**0.5)
        for _ in range(epochs):
            order = rng.permutation(100)
            x_shuffled, y_shuffled = x[order], y[order]
            for i in range(0, 100, 10):
                a = x_shuffled[i : i + 10]
                w -= np.float32(0.002) * (a.T @ (a @ w - y_shuffled[i : i + 10]))
        return w

    return np.array([one(seed) for seed in range(seeds)])


def polynomial_by_torch_func(torch: Any, device: str, powers: int, epochs: int, seeds: int) -> np.ndarray:
    """All seeds at once, an order for each; weights [seed, power]."""
    data = [draw_polynomial(np.random.default_rng(seed), powers) for seed in range(seeds)]
    x = torch.tensor(np.array([x for x, _ in data]), device=device)
    y = torch.tensor(np.array([y for _, y in data]), device=device)
    w = (2 * torch.rand(seeds, powers, device=device) - 1) / powers**0.5
    gradient = torch.func.vmap(torch.func.grad(lambda w, a, b: ((a @ w - b) ** 2).mean()))
    for _ in range(epochs):
        order = torch.rand(seeds, 100, device=device).argsort(1)
        x_shuffled = x.gather(1, order[:, :, None].expand(-1, -1, powers))
        y_shuffled = y.gather(1, order)
        for i in range(0, 100, 10):
            w = w - 0.01 * gradient(w, x_shuffled[:, i : i + 10], y_shuffled[:, i : i + 10])
    return w.cpu().numpy()


def polynomial_by_optax(powers: int, epochs: int) -> Callable[[int], np.ndarray]:
    """One jitted run, as a scan over epochs and steps, called in a loop over seeds."""
    optimizer = optax.sgd(0.01)

    @jax.jit
    def one(key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        start, key = jax.random.split(key)
        w = jax.random.uniform(start, (powers,), minval=-1, maxval=1) / powers**0.5

        def step(state: Any, batch: jax.Array) -> tuple[Any, None]:
            w, memory = state

            def loss(w: jax.Array) -> jax.Array:
                return jnp.mean((x[batch] @ w - y[batch]) ** 2)

            change, memory = optimizer.update(jax.grad(loss)(w), memory)
            return (optax.apply_updates(w, change), memory), None

        def epoch(state: Any, key: jax.Array) -> tuple[Any, None]:
            order = jax.random.permutation(key, 100).reshape(10, 10)
            return jax.lax.scan(step, state, order)[0], None

        return jax.lax.scan(epoch, (w, optimizer.init(w)), jax.random.split(key, epochs))[0][0]

    def run(seeds: int) -> np.ndarray:
        data = (draw_polynomial(np.random.default_rng(seed), powers) for seed in range(seeds))
        return np.array([one(jax.random.key(seed), *xy) for seed, xy in enumerate(data)])

    return run


def decay_by_numpy(decay: float, seeds: int) -> np.ndarray:
    """Weight decay from scratch, a loop over seeds; norm of w [seed]."""
    rate, penalty = np.float32(0.003), np.float32(decay)

    def one(seed: int) -> float:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(
            (120, 200), np.float32
        )  # training and test examples, as the chapter draws them
        y = x @ np.full(200, 0.01, np.float32) + 0.05 + 0.01 * rng.standard_normal(120, np.float32)
        w, b = rng.standard_normal(200, np.float32), np.float32(0)
        for _ in range(100):
            order = rng.permutation(20)
            for i in range(0, 20, 5):
                batch = order[i : i + 5]
                a = x[batch]
                error = a @ w + b - y[batch]
                # the penalty is summed over the batch and divided by its size, as in the chapter
                w -= rate * (a.T @ error / 5 + penalty * w)
                b -= rate * error.mean()
        return float(np.linalg.norm(w))

    return np.array([one(seed) for seed in range(seeds)])


def decay_by_torch_func(torch: Any, device: str, decay: float, seeds: int) -> np.ndarray:
    """All seeds at once, an order for each; norm of w [seed]."""
    x = torch.randn(seeds, 120, 200, device=device)
    y = x.sum(2) * 0.01 + 0.05 + 0.01 * torch.randn(seeds, 120, device=device)
    w, b = torch.randn(seeds, 200, device=device), torch.zeros(seeds, device=device)

    def loss(w: Any, b: Any, a: Any, target: Any) -> Any:
        return ((a @ w + b - target) ** 2).mean() / 2 + decay * w.square().sum() / 2

    gradient = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))
    rows = torch.arange(seeds, device=device)[:, None]
    for _ in range(100):
        order = torch.rand(seeds, 20, device=device).argsort(1)
        for i in range(0, 20, 5):
            batch = order[:, i : i + 5]
            of_w, of_b = gradient(w, b, x[rows, batch], y[rows, batch])
            w, b = w - 0.003 * of_w, b - 0.003 * of_b
    return w.norm(dim=1).cpu().numpy()


class Classifier(nn.Module):
    """784-256-10 in Flax, as its own documentation would have it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        init = nn.initializers.normal(0.01)
        h = nn.relu(nn.Dense(256, kernel_init=init, precision="highest")(x))
        return nn.Dense(10, kernel_init=init, precision="highest")(h)


def classifier_by_optax(data: ImageData, epochs: int, batch_size: int) -> Callable[..., np.ndarray]:
    """One jitted epoch, called in a loop over epochs and seeds; mean loss of the last epoch [seed].

    What is returned takes the number of seeds and, if not every seed is to have its own, the orders [epoch, example].
    """
    model, optimizer = Classifier(), optax.sgd(0.1)
    x, y = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    whole = len(x) // batch_size * batch_size

    def step(state: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits: Any = model.apply(params, x[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[batch]).mean()

        value, gradient = jax.value_and_grad(loss)(state[0])
        change, memory = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], change), memory), value * len(batch)

    @jax.jit
    def epoch(state: Any, order: jax.Array) -> tuple[Any, jax.Array]:
        state, losses = jax.lax.scan(step, state, order[:whole].reshape(-1, batch_size))
        total = losses.sum()
        if whole < len(x):
            state, last = step(state, order[whole:])
            total += last
        return state, total / len(x)

    def run(seeds: int, orders: Any = None) -> np.ndarray:
        found = []
        for seed in range(seeds):
            params = model.init(jax.random.key(seed), x[:1])
            state, loss = (params, optimizer.init(params)), jnp.nan
            for number in range(epochs):
                key = jax.random.key(1000 * seed + number)
                order = jax.random.permutation(key, len(x)) if orders is None else orders[number]
                state, loss = epoch(state, order)
            found.append(float(loss))
        return np.array(found)

    return run


def classifier_by_torch_func(
    torch: Any, device: str, data: ImageData, epochs: int, batch_size: int, seeds: int
) -> np.ndarray:
    """All seeds at once on one data order; mean loss of the last epoch [seed]."""
    x = torch.tensor(np.asarray(data.train_images), device=device)
    y = torch.tensor(np.asarray(data.train_labels), dtype=torch.int64, device=device)
    params = [
        0.01 * torch.randn(seeds, x.shape[1], 256, device=device),
        torch.zeros(seeds, 256, device=device),
        0.01 * torch.randn(seeds, 256, 10, device=device),
        torch.zeros(seeds, 10, device=device),
    ]

    def loss(params: Any, a: Any, labels: Any) -> tuple[Any, Any]:
        w1, b1, w2, b2 = params
        value = torch.nn.functional.cross_entropy(torch.relu(a @ w1 + b1) @ w2 + b2, labels)
        return value, value.detach()

    gradient = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(0, None, None))
    mean = torch.zeros(seeds, device=device)
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(x), device=device).split(batch_size):
            gradients, values = gradient(params, x[batch], y[batch])
            params = [p - 0.1 * g for p, g in zip(params, gradients, strict=True)]
            losses.append(values * len(batch) / len(x))
        mean = torch.stack(losses).sum(0)
    return mean.cpu().numpy()
