"""Deep stacks against their peers: what the chapter's 100 layers cost, and what width costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import jaxstab
from experiments.benchmarks import stack_peers
from experiments.benchmarks.race import Contest, Contestant, same_law
from experiments.benchmarks.setting import Setting, absent_torch, best_threads
from experiments.benchmarks.stack_peers import Shape

FORWARD, BACKWARD = ["forward_rms"], ["forward_rms", "backward_rms"]


def deep_stack(setting: Setting) -> Iterator[Contest]:
    """100 x 256, batch 16: forward, then forward and backward."""
    for backward, target in ((False, 12), (True, 7)):
        shape = Shape(100, 256, 16, backward)
        yield contest(setting, shape, {"conditioned": target, "explicit": 1}, peers=True)


def width(setting: Setting) -> Iterator[Contest]:
    """Forward at widths where the matrices are the cost."""
    for n, target, depth in ((1024, 40, 100), (4096, 150, 20)):
        yield contest(setting, Shape(depth, n, 16, False), {"conditioned": target}, peers=False)


def contest(setting: Setting, shape: Shape, targets: dict[str, float], peers: bool) -> Contest:
    """jaxstab's two samplers and everybody else on one shape."""
    many = max(int(setting.scale * 2**26 / (shape.depth * shape.width * shape.batch)) // 32 * 32, 16)
    few = max(int(setting.scale * 2**27 / (shape.depth * shape.width**2)), 2)
    normals = shape.depth * shape.width**2
    flops = 2.0 * shape.depth * shape.batch * shape.width**2 * (2 if shape.backward else 1)
    contestants = {
        "conditioned": Contestant(partial(ours, shape, "conditioned", many), many, is_ours=True),
        "explicit": Contestant(
            partial(ours, shape, "dense", few), few, is_ours=True, normals=normals, float32=flops
        ),
    }
    if not peers:
        del contestants["explicit"]
    work: dict[str, Callable[[int], Any]] = {}
    if setting.torch is not None:
        best_threads(setting, partial(stack_peers.by_torch, setting.torch, shape, setting.device, 1))
        work["torch loop"] = partial(stack_peers.by_torch, setting.torch, shape, setting.device)
    if peers:
        if setting.torch is not None:
            work["torch.func"] = partial(stack_peers.by_torch_func, setting.torch, shape, setting.device)
            work["torch.compile"] = stack_peers.compiled_torch(setting.torch, shape, setting.device)
        work["numpy loop"] = partial(stack_peers.by_numpy, shape)
        work["jax loop"] = stack_peers.jax_loop(shape)
        work["jax vmap"] = stack_peers.jax_vmap(shape)
    contestants |= {
        name: Contestant(partial(run, few), few, normals=normals, float32=flops) for name, run in work.items()
    }
    kind = "forward and backward" if shape.backward else "forward"
    return Contest(
        f"stack {shape.depth} x {shape.width}, batch {shape.batch}, {kind}",
        "network",
        contestants,
        {name: (factor, "") for name, factor in targets.items()},
        lambda: agreement(shape, contestants, work),
        absent_torch(setting),
    )


def ours(shape: Shape, sampler: str, networks: int) -> np.ndarray:
    """The public call; [network, depth] of what the peers return."""
    found = jaxstab.propagate(
        seeds=networks,
        depth=shape.depth,
        width=shape.width,
        batch=shape.batch,
        sampler=sampler,
        keep=BACKWARD if shape.backward else FORWARD,
        progress=False,
    )
    return (found.backward_rms if shape.backward else found.forward_rms).values


def agreement(shape: Shape, contestants: dict[str, Contestant], work: dict[str, Any]) -> dict[str, float]:
    """Smallest p, over three layers, of each of ours having the first peer's law."""
    peer = next(iter(work.values()))(48 if shape.width > 512 else 64)
    layers = [0, shape.depth // 2, shape.depth - 1]
    found = {name: one.run() for name, one in contestants.items() if one.is_ours}
    return {
        name: min(same_law(rms[:, layer], peer[:, layer]) for layer in layers) for name, rms in found.items()
    }
