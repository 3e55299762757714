"""How cost and memory grow: over lanes, width, depth, configurations, devices; measured, and drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxstab
from experiments import polynomial as polynomials
from experiments.benchmarks.race import timed
from experiments.benchmarks.setting import Setting
from jaxstab.engine.job import Job
from jaxstab.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLERS = {"explicit": "dense", "conditioned": "conditioned"}
Curves = dict[str, dict[str, list[Any]]]
"""panel -> curve -> [[x, y], ...]."""


def measure(setting: Setting) -> Curves:
    """Milliseconds a lane (the median of some runs), and MiB a lane by the compiler's own account."""
    widths = [w for w in (64, 128, 256, 512, 1024, 2048, 4096) if w <= 4096 * setting.scale or w <= 256]
    depths = (10, 30, 100, 300)
    forward = partial(jaxstab.propagate, keep=["forward_rms"], progress=False)
    found: Curves = {"lanes": {}, "width": {}, "depth": {}, "configurations": {}, "devices": {}, "memory": {}}
    for name, sampler in SAMPLERS.items():
        of = partial(forward, sampler=sampler)
        lanes = (1, 4, 16, 64, 256) if sampler == "dense" else (1, 4, 16, 64, 256, 1024)
        found["lanes"][f"propagation, {name}"] = curve(lanes, lambda n, of=of: (partial(of, seeds=n), n))
        sizes = [w for w in widths if sampler == "conditioned" or w <= 1024]
        found["width"][name] = curve(sizes, lambda w, of=of, name=name: stack(of, name, width=w))
        found["depth"][name] = curve(depths, lambda d, of=of, name=name: stack(of, name, depth=d))
        found["memory"][f"{name}, over width"] = [[w, mebibytes(sampler, width=w)] for w in sizes]
        found["memory"][f"{name}, over depth"] = [[d, mebibytes(sampler, depth=d)] for d in depths]
    fits = lambda n: (partial(fit_polynomials, n), n)  # noqa: E731
    found["lanes"]["polynomial"] = curve((1, 16, 64, 256, 1024, 4096), fits)

    def gains(n: int) -> tuple[Callable[[], Any], int]:
        return partial(forward, seeds=256 // n, gain=np.linspace(0.5, 2, n), sampler="conditioned"), 256

    found["configurations"]["gains x seeds = 256, conditioned"] = curve((1, 4, 16, 64, 256), gains)
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= jax.local_device_count()]
    for name, sampler in SAMPLERS.items():
        lanes = 64 if sampler == "dense" else 512
        one = lambda n, lanes=lanes, sampler=sampler: (  # noqa: E731
            partial(forward, seeds=lanes, sampler=sampler, devices=n), lanes,
        )  # fmt: skip
        found["devices"][name] = curve(counts, one)
    return found


def curve(values: Iterable[int], make: Callable[[int], tuple[Callable[[], Any], int]]) -> list[list[float]]:
    """[value, milliseconds a lane] for each value."""
    found = []
    for value in values:
        run, lanes = make(value)
        run()
        found.append([value, 1e3 * statistics.median(timed(run) for _ in range(3)) / lanes])
    return found


def stack(run: Callable[..., Any], name: str, depth: int = 100, width: int = 256) -> tuple[Any, int]:
    """So many networks of a size that a run takes a fraction of a second."""
    work = depth * width * (width if name == "explicit" else 256)
    lanes = min(max(int(2e8 / work), 2), 512)
    return partial(run, seeds=lanes, depth=depth, width=width), lanes


def fit_polynomials(seeds: int) -> Any:
    """A sweep of the chapter's polynomial regression."""
    space = jaxstab.grid(powers=4, epochs=400)
    return jaxstab.sweep(polynomials.regression, space, seeds, keep=["weights"], progress=False)


def mebibytes(sampler: str, depth: int = 100, width: int = 256) -> float:
    """MiB a lane, forward and backward."""
    space = jaxstab.grid(sampler=sampler, depth=depth, width=width)
    job = Job(jaxstab.propagation, space, 64, ["forward_rms", "backward_rms"], 1, None)
    (program,), (group,) = job.programs, job.groups
    lane = np.zeros(1, np.uint32), jax.tree.map(lambda x: x[:1], group.hparams)
    return program.memory(lane, ()) / program.tile / 2**20


LABELS = {
    "lanes": ("lanes in a sweep", "ms a lane"),
    "width": ("width, 100 layers", "ms a network"),
    "depth": ("depth, width 256", "ms a network"),
    "configurations": ("gains in one program", "ms a lane"),
    "devices": ("CPU devices", "ms a network"),
    "memory": ("width (100 layers), or depth (width 256)", "MiB a tile's lane"),
}


def plot(curves: Curves) -> Figure:
    """One panel for each question, both axes logarithmic."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(11, 5.6))
    for axes, (panel, (x, y)) in zip(panels.flat, LABELS.items(), strict=True):
        for name, points in curves[panel].items():
            axes.plot(*np.transpose(points), marker="o", markersize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
        if panel == "width":
            values = np.array([point[0] for point in curves["width"]["conditioned"]], float)
            start = curves["width"]["conditioned"][0][1]
            figures.theory(axes, values, start * values / values[0], label="of order width")
        axes.legend()
    return figure
