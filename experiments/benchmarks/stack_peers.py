"""Deep stacks as people write them without jaxstab: loops in PyTorch and NumPy, ensembles, plain JAX.

One tanh network of `depth` layers, weights N(0, 1/width), inputs N(0, 1); what is wanted is the rms of every layer,
or of the gradient of a random read-out with respect to every layer. Each function here makes some networks and
returns [network, depth] on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Shape(NamedTuple):
    """Sizes of the network, and whether the gradient is wanted too."""

    depth: int
    width: int
    batch: int
    backward: bool


def by_numpy(shape: Shape, networks: int) -> np.ndarray:
    """A loop, float32, the gradient by hand."""
    rng, std = np.random.default_rng(), np.float32(shape.width**-0.5)
    size, matrix = (shape.batch, shape.width), (shape.width, shape.width)

    def one() -> list[float]:
        hs, ws = [rng.standard_normal(size, np.float32)], []
        for _ in range(shape.depth):
            w = rng.standard_normal(matrix, np.float32)
            w *= std
            hs.append(np.tanh(hs[-1] @ w))
            if shape.backward:
                ws.append(w)
        if not shape.backward:
            return [float(np.sqrt(np.mean(h * h))) for h in hs[1:]]
        gradient, found = rng.standard_normal(size, np.float32), []
        for h, w in zip(hs[:0:-1], reversed(ws), strict=True):
            found.append(float(np.sqrt(np.mean(gradient * gradient))))
            gradient = (gradient * (1 - h * h)) @ w.T
        return found[::-1]

    return np.array([one() for _ in range(networks)])


def torch_network(torch: Any, shape: Shape, device: str) -> Any:
    """One network, its weights drawn on the way; the rms of every layer's activations or gradients."""
    std, draw = shape.width**-0.5, partial(torch.randn, device=device)
    h = draw(shape.batch, shape.width)
    if shape.backward:
        h.requires_grad_()
    hs = []
    for _ in range(shape.depth):
        h = torch.tanh(h @ (draw(shape.width, shape.width) * std))
        hs.append(h)
    if shape.backward:
        hs = torch.autograd.grad((h * draw(shape.batch, shape.width)).sum(), hs)
    return torch.stack([x.square().mean().sqrt() for x in hs])


def by_torch(torch: Any, shape: Shape, device: str, networks: int) -> np.ndarray:
    """A loop over networks, weights drawn in place, results fetched once a network."""
    std = shape.width**-0.5

    def one() -> Any:
        if shape.backward:
            return torch_network(torch, shape, device)
        h, found = torch.randn(shape.batch, shape.width, device=device), []
        w = torch.empty(shape.width, shape.width, device=device)
        for _ in range(shape.depth):
            h = torch.tanh(h @ w.normal_(0, std))
            found.append(h.square().mean().sqrt())
        return torch.stack(found)

    with torch.set_grad_enabled(shape.backward):
        return np.array([one().cpu().numpy() for _ in range(networks)])


def compiled_torch(torch: Any, shape: Shape, device: str) -> Callable[[int], np.ndarray]:
    """The same loop around a `torch.compile`d layer: a whole network of 100 takes minutes to compile."""
    std = shape.width**-0.5

    @torch.compile
    def layer(h: Any) -> Any:
        return torch.tanh(h @ (torch.randn(shape.width, shape.width, device=device) * std))

    @torch.compile
    def rms(x: Any) -> Any:
        return x.square().mean().sqrt()

    def one() -> Any:
        h, hs = torch.randn(shape.batch, shape.width, device=device, requires_grad=shape.backward), []
        for _ in range(shape.depth):
            h = layer(h)
            hs.append(h)
        if shape.backward:
            readout = torch.randn(shape.batch, shape.width, device=device)
            hs = torch.autograd.grad((h * readout).sum(), hs)
        return torch.stack([rms(x) for x in hs])

    def run(networks: int) -> np.ndarray:
        with torch.set_grad_enabled(shape.backward):
            return np.array([one().cpu().numpy() for _ in range(networks)])

    return run


def by_torch_func(torch: Any, shape: Shape, device: str, networks: int) -> np.ndarray:
    """An ensemble: one batched product a layer for all networks, by `torch.func.vmap`."""

    def one(start: Any) -> Any:
        std, hs = shape.width**-0.5, []

        def forward(shifts: Any) -> Any:
            h = start
            hs.clear()
            for shift in shifts:
                w = torch.randn(shape.width, shape.width, device=device) * std
                h = torch.tanh(h @ w) + shift
                hs.append(h)
            return (h * torch.randn(shape.batch, shape.width, device=device)).sum()

        if not shape.backward:
            forward([0.0] * shape.depth)
            return torch.stack([h.square().mean().sqrt() for h in hs])
        zeros = [torch.zeros_like(start) for _ in range(shape.depth)]
        gradients = torch.func.grad(forward)(zeros)
        return torch.stack([g.square().mean().sqrt() for g in gradients])

    starts = torch.randn(networks, shape.batch, shape.width, device=device)
    return torch.func.vmap(one, randomness="different")(starts).cpu().numpy()


def jax_network(shape: Shape, key: jax.Array) -> jax.Array:
    """One network in plain JAX, as a scan."""
    start_key, key, readout = jax.random.split(key, 3)
    size = (shape.batch, shape.width)
    keys = jax.random.split(key, shape.depth)
    product = partial(jnp.matmul, precision="highest")

    def forward(shifts: jax.Array) -> tuple[jax.Array, jax.Array]:
        def layer(h: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            w = jax.random.normal(x[0], (shape.width, shape.width)) * shape.width**-0.5
            h = jnp.tanh(product(h, w)) + x[1]
            return h, jnp.sqrt(jnp.mean(h * h))

        h, rms = jax.lax.scan(layer, jax.random.normal(start_key, size), (keys, shifts))
        return (h * jax.random.normal(readout, size)).sum(), rms

    shifts = jnp.zeros((shape.depth, *size))
    if not shape.backward:
        return forward(shifts)[1]
    gradients = jax.grad(lambda shifts: forward(shifts)[0])(shifts)
    return jnp.sqrt(jnp.mean(gradients**2, axis=(1, 2)))


def jax_loop(shape: Shape) -> Callable[[int], np.ndarray]:
    """One jitted network, called in a loop."""
    network = jax.jit(partial(jax_network, shape))
    return lambda networks: np.array([network(jax.random.key(i)) for i in range(networks)])


def jax_vmap(shape: Shape) -> Callable[[int], np.ndarray]:
    """One jitted vmap over all networks."""
    many = jax.jit(jax.vmap(partial(jax_network, shape)))
    return lambda networks: np.asarray(many(jax.random.split(jax.random.key(0), networks)))
