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
    cores = jax.local_device_count()
    forward = partial(jaxstab.propagate, keep=["forward_rms"], progress=False)
    found: Curves = {"lanes": {}, "width": {}, "depth": {}, "configurations": {}, "devices": {}}
    found |= {"memory over width": {}, "memory over depth": {}}
    for name, sampler in SAMPLERS.items():
        of = partial(forward, sampler=sampler)
        lanes = (1, 4, 16, 64, 256) if sampler == "dense" else (1, 4, 16, 64, 256, 1024)
        found["lanes"][name] = curve(lanes, lambda n, of=of: (partial(of, seeds=n), n))
        sizes = [w for w in widths if sampler == "conditioned" or w <= 1024]
        found["width"][name] = curve(sizes, lambda w, of=of: stack(of, width=w))
        found["depth"][name] = curve(depths, lambda d, of=of: stack(of, depth=d))
        found["memory over width"][name] = [[w, mebibytes(sampler, width=w)] for w in sizes]
        found["memory over depth"][name] = [[d, mebibytes(sampler, depth=d)] for d in depths]
    fits = (1, 16, 64, 256, 1024, 4096)
    found["lanes"]["polynomial"] = curve(fits, lambda n: (partial(fit_polynomials, n), n))

    def gains(n: int) -> tuple[Callable[[], Any], int]:
        return partial(forward, seeds=256 // n, gain=np.linspace(0.5, 2, n), sampler="conditioned"), 256

    found["configurations"]["conditioned"] = curve((1, 4, 16, 64, 256), gains)
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= cores]
    for name, sampler in SAMPLERS.items():
        lanes = 64 if sampler == "dense" else 512
        of = partial(forward, seeds=lanes, sampler=sampler)
        found["devices"][name] = curve(counts, lambda n, of=of, lanes=lanes: (partial(of, devices=n), lanes))
    return found


def curve(values: Iterable[int], make: Callable[[int], tuple[Callable[[], Any], int]]) -> list[list[float]]:
    """[value, milliseconds a lane] for each value."""
    found = []
    for value in values:
        run, lanes = make(value)
        run()
        found.append([value, 1e3 * statistics.median(timed(run) for _ in range(3)) / lanes])
    return found


def stack(run: partial[Any], depth: int = 100, width: int = 256) -> tuple[Any, int]:
    """Whole tiles on every device, so many that a run takes a fraction of a second."""
    sampler = run.keywords["sampler"]
    (group,) = job(sampler, ["forward_rms"], depth=depth, width=width).groups
    tiles = group.cut.tile * jax.local_device_count()
    work = depth * width * (width if sampler == "dense" else 32)
    lanes = tiles * max(round(1e8 / work / tiles), 1)
    return partial(run, seeds=lanes, depth=depth, width=width), lanes


def fit_polynomials(seeds: int) -> Any:
    """A sweep of the chapter's polynomial regression."""
    space = jaxstab.grid(powers=4, epochs=400)
    return jaxstab.sweep(polynomials.regression, space, seeds, keep=["weights"], progress=False)


def job(sampler: str, keep: list[str], **size: int) -> Job:
    """A sweep of such stacks, of which nothing has run."""
    return Job(jaxstab.propagation, jaxstab.grid(sampler=sampler, **size), 64, keep, 1, None)


def mebibytes(sampler: str, **size: int) -> float:
    """MiB a lane of a tile, forward and backward, by the compiler's own account."""
    (group,) = job(sampler, ["forward_rms", "backward_rms"], **size).groups
    lane = np.zeros(1, np.uint32), jax.tree.map(lambda x: x[:1], group.hparams)
    return group.program.memory(lane, ()) / group.cut.tile / 2**20


LABELS = {
    "lanes": ("networks in a sweep", "ms a network"),
    "width": ("width, 100 layers", "ms a network"),
    "depth": ("layers, width 256", "ms a network"),
    "configurations": ("gains in one program, 256 networks", "ms a network"),
    "devices": ("CPU devices", "ms a network"),
    "memory over width": ("width, 100 layers, forward and backward", "MiB a network"),
    "memory over depth": ("layers, width 256, forward and backward", "MiB a network"),
}
COLOURS = {"explicit": "C0", "conditioned": "C1", "polynomial": "C2"}


def plot(curves: Curves) -> Figure:
    """One panel for each question, and a legend for all of them."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, panels = plt.subplots(2, 4, figsize=(14, 6))
    for axes, (panel, (x, y)) in zip(panels.flat, LABELS.items(), strict=False):
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
        if panel in ("configurations", "devices"):
            axes.set_yscale("linear")  # little changes there: no decades
        if panel == "devices":
            axes.set_xscale("linear")
            axes.set_xticks([n for n, _ in next(iter(curves[panel].values()))])
        for name, points in curves[panel].items():
            axes.plot(*np.transpose(points), marker="o", markersize=3, color=COLOURS[name])
        if panel == "width":
            values = np.array([point[0] for point in curves["width"]["conditioned"]], float)
            start = curves["width"]["conditioned"][-1][1]
            figures.theory(axes, values, start * values / values[-1])
        if axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
    marks = [Line2D([], [], marker="o", markersize=3, color=colour) for colour in COLOURS.values()]
    marks.append(next(line for line in panels.flat[1].lines if line.get_linestyle() == "--"))
    panels.flat[-1].axis("off")
    names = ["stack, explicit", "stack, conditioned", "polynomial regression", "of order width"]
    panels.flat[-1].legend(marks, names, loc="center", fontsize="medium")
    return figure
