"""The chapter's trainings against their peers: many seeds of small regressions, a few of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxstab
from experiments import polynomial as polynomials
from experiments import weight_decay as decays
from experiments.benchmarks import fit_peers, torch_chapter
from experiments.benchmarks.race import Contest, Contestant, same_law
from experiments.benchmarks.setting import Setting, absent_torch, best_threads
from jaxstab.data import datasets
from jaxstab.trials import fitting, training

POWERS, EPOCHS = 4, 400
DECAY = 3


def polynomial(setting: Setting) -> Iterator[Contest]:
    """4,096 seeds of degree 3: 400 epochs of 10 steps, a fresh order for each."""
    seeds = max(int(setting.scale * 4096), 64)

    def ours() -> np.ndarray:
        space = jaxstab.grid(powers=POWERS, epochs=EPOCHS)
        found = jaxstab.sweep(polynomials.regression, space, seeds, keep=["weights"], progress=False)
        return found.weights.values

    work: dict[str, tuple[Any, int]] = {}
    if setting.torch is not None:
        setting.torch.set_num_threads(1)

        def torch_loop(n: int) -> np.ndarray:
            runs = (torch_chapter.fit_polynomial(seed, POWERS, EPOCHS) for seed in range(n))
            return np.array([[*run.values()] for run in runs])

        ensemble = partial(fit_peers.polynomial_by_torch_func, setting.torch, setting.device, POWERS, EPOCHS)
        work = {"torch loop": (torch_loop, 2), "torch.func": (ensemble, min(seeds, 1024))}
    work["numpy loop"] = partial(fit_peers.polynomial_by_numpy, POWERS, EPOCHS), 8
    work["optax loop"] = fit_peers.polynomial_by_optax(POWERS, EPOCHS), 16
    contestants = {"jaxstab": Contestant(ours, seeds, is_ours=True)}
    contestants |= {name: Contestant(partial(run, n), n) for name, (run, n) in work.items()}

    def agree() -> dict[str, float]:
        return {"jaxstab": same_law(ours()[:, 1], work["numpy loop"][0](64)[:, 1])}

    title, targets = f"polynomial, {seeds} seeds of 400 epochs", {"jaxstab": (2500, "torch loop")}
    yield Contest(title, "seed", contestants, targets, agree, absent_torch(setting))


def weight_decay(setting: Setting) -> Iterator[Contest]:
    """4,096 seeds of 100 epochs from scratch, lambda = 3; 24,220 random numbers a seed."""
    seeds = max(int(setting.scale * 4096), 64)

    def ours() -> np.ndarray:
        space = jaxstab.grid(way="scratch", decay=DECAY)
        found = jaxstab.sweep(decays.regression, space, seeds, keep=["w_norm"], progress=False)
        return found.w_norm.values[:, -1]

    work: dict[str, tuple[Any, int]] = {}
    if setting.torch is not None:
        setting.torch.set_num_threads(1)

        def torch_loop(n: int) -> np.ndarray:
            runs = (torch_chapter.decay_from_scratch(seed, DECAY) for seed in range(n))
            return np.array([[*run.values()] for run in runs])

        ensemble = partial(fit_peers.decay_by_torch_func, setting.torch, setting.device, DECAY)
        work = {"torch loop": (torch_loop, 8), "torch.func": (ensemble, min(seeds, 1024))}
    work["numpy loop"] = partial(fit_peers.decay_by_numpy, DECAY), 16
    contestants = {"jaxstab": Contestant(ours, seeds, is_ours=True, normals=24_320)}
    contestants |= {name: Contestant(partial(run, n), n, normals=24_320) for name, (run, n) in work.items()}

    def agree() -> dict[str, float]:
        return {"jaxstab": same_law(ours(), work["numpy loop"][0](128))}

    title, targets = f"weight decay, {seeds} seeds of 100 epochs", {"jaxstab": (300, "torch loop")}
    yield Contest(title, "seed", contestants, targets, agree, absent_torch(setting))


def mlp(setting: Setting) -> Iterator[Contest]:
    """784-256-10, 16 seeds: one data order for all, one for each, products of bfloat16."""
    data = datasets.load(setting.dataset, setting.fashion_mnist)
    family = training.from_folder(jaxstab.training, setting.fashion_mnist)
    epochs, seeds, batch = max(int(4 * setting.scale), 1), 16, 256
    inputs = data.train_images.shape[1]
    # two operations a weight forward, two for its gradient, two for its input's, which the first layer lacks
    flops = epochs * len(data.train_images) * (4.0 * inputs * 256 + 6.0 * 256 * 10)
    network = jaxstab.grid(
        dataset=setting.dataset,
        hidden={"256": (256,)},
        init="normal",
        gain=0.01,
        learning_rate=0.1,
        epochs=epochs,
        batch_size=batch,
    )

    def ours(order: str, precision: str, outputs: tuple[str, ...] = ("train_loss",)) -> Any:
        space = network * jaxstab.grid(order=order, precision=precision)
        found = jaxstab.sweep(family, space, seeds, keep=list(outputs), progress=False)
        return np.array([found[name].values[..., -1].ravel() for name in outputs])

    ways = {
        "shared order": ("shared", "highest"),
        "order per seed": ("per_seed", "highest"),
        "bfloat16, shared order": ("shared", "bfloat16"),
    }
    contestants = {
        name: Contestant(partial(ours, *way), seeds, is_ours=True, **{_kind(way[1]): flops})
        for name, way in ways.items()
    }
    if setting.torch is not None:

        def loop(n: int) -> list[torch_chapter.Sample]:
            return [torch_chapter.train_classifier(seed, "concise", data, epochs) for seed in range(n)]

        best_threads(setting, partial(loop, 1))
        contestants["torch loop"] = Contestant(partial(loop, 2), 2, float32=flops)
        ensemble = partial(
            fit_peers.classifier_by_torch_func, setting.torch, setting.device, data, epochs, batch
        )
        contestants["torch.func"] = Contestant(partial(ensemble, seeds), seeds, float32=flops)
    optax_loop = fit_peers.classifier_by_optax(data, epochs, batch)
    contestants["optax loop"] = Contestant(partial(optax_loop, 2), 2, float32=flops)

    def agree() -> dict[str, float]:
        found = {name: ours(*way, ("train_loss", "test_accuracy")) for name, way in ways.items()}
        shared = [shared_order(number, len(data.train_images), batch) for number in range(epochs)]
        peers = {"shared": optax_loop(24, shared), "per_seed": optax_loop(24)}
        losses = {
            f"{name}: loss": same_law(found[name][0], peers[order]) for name, (order, _) in ways.items()
        }
        accuracy = same_law(found["bfloat16, shared order"][1], found["shared order"][1])
        return losses | {"bfloat16, shared order: test accuracy": accuracy}

    title = f"classifier {inputs}-256-10 on {setting.dataset}, {seeds} seeds of {epochs} epochs"
    targets = dict(zip(ways, ((1.3, ""), (1.0, ""), (2.0, "")), strict=True))
    yield Contest(title, "seed", contestants, targets, agree, absent_torch(setting))


def shared_order(epoch: int, n: int, batch: int) -> np.ndarray:
    """The order in which `order="shared"` takes n examples in an epoch."""
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), epoch)
    return np.ravel(fitting.make_batches(key, n, batch).examples)[:n]


def _kind(precision: str) -> str:
    return "bfloat16" if precision == "bfloat16" else "float32"
