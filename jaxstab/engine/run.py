"""The public calls: sweep a family over a space and seeds, and theory over the same axes."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
import xarray as xr

from jaxstab.engine import plan
from jaxstab.engine.label import Layout, Table
from jaxstab.engine.program import Program, make_program
from jaxstab.engine.space import Space, grid, parse_seeds
from jaxstab.errors import UsageError
from jaxstab.trials.family import Family
from jaxstab.trials.propagation import propagation

SWEEP_KEYWORDS = ("keep", "store", "devices", "memory", "tile", "progress")


class Chunk(NamedTuple):
    """Consecutive lanes of one group. Of its C configurations, lane i is configuration i % C of seed i // C."""

    group: int
    number: int
    first: int
    lanes: int


class Job(NamedTuple):
    """A whole sweep, cut and ready to run."""

    family: Family
    space: Space
    seeds: np.ndarray
    groups: list[plan.Group]
    outlines: list[plan.Outline]
    programs: list[Program]
    shared: list[tuple[Any, ...]]

    def chunks(self) -> list[Chunk]:
        """All chunks, in the order in which they run: every group advances alike through the seeds."""
        found = []
        for number, (group, outline) in enumerate(zip(self.groups, self.outlines, strict=True)):
            lanes = len(group.members) * len(self.seeds)
            size = outline.tile * outline.tiles_per_chunk
            starts = range(0, lanes, size)
            found += [
                (c / len(starts), Chunk(number, c, first, min(size, lanes - first))) for c, first in enumerate(starts)
            ]
        return [chunk for _, chunk in sorted(found)]

    def lanes_of(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """(number in its group's configurations, number in the seeds) of each lane."""
        lanes = np.arange(chunk.first, chunk.first + chunk.lanes)
        configurations = len(self.groups[chunk.group].members)
        return lanes % configurations, lanes // configurations

    def run(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
        """Results chunk by chunk; the next one runs while the last is being dealt with."""
        waiting: collections.deque[tuple[Chunk, list[Any]]] = collections.deque()
        for chunk in chunks:
            waiting.append((chunk, list(self._start(chunk))))
            if len(waiting) > 1:
                yield self._collect(*waiting.popleft())
        while waiting:
            yield self._collect(*waiting.popleft())

    def _start(self, chunk: Chunk) -> Iterator[tuple[Any, int]]:
        program, group = self.programs[chunk.group], self.groups[chunk.group]
        configurations, seeds = self.lanes_of(chunk)
        for first in range(0, chunk.lanes, program.lanes):
            part = slice(first, first + program.lanes)
            numbers = jax.tree.map(lambda x, part=part: x[configurations[part]], group.hparams)
            own_seeds = self.seeds[seeds[part]].astype(np.uint32)
            yield program.start(own_seeds, numbers, self.shared[chunk.group]), len(own_seeds)

    def _collect(self, chunk: Chunk, parts: list[Any]) -> tuple[Chunk, dict[str, np.ndarray]]:
        program = self.programs[chunk.group]
        collected = [program.collect(results, lanes) for results, lanes in parts]
        return chunk, {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}


@functools.lru_cache(maxsize=32)
def load_shared(family: Family, spec: Any) -> tuple[Any, ...]:
    """What every lane of a Spec reads, loaded once: () or a tuple of one."""
    return () if family.shared is None else (family.shared(spec),)


def make_job(family: Family, space: Space, seeds: Any, keep: Any, devices: Any, tile: int | None) -> Job:
    """Check everything and cut a sweep into programs and chunks; nothing is compiled yet."""
    tile, groups, seeds = plan.check_tile(tile), plan.make_groups(family, space), parse_seeds(seeds)
    devices = _check_devices(devices)
    data = [load_shared(family, group.spec) for group in groups]
    outlines, programs, shared = [], [], []
    for group, own in zip(groups, data, strict=True):
        names = plan.check_keep(keep, plan.output_names(family, group, own))
        outline = plan.make_outline(family, group, names, own, devices[0].platform, tile)
        capacity = max(2, -(-outline.tiles_per_chunk // len(devices)))
        program = make_program(family, group.spec, names, outline.tile, capacity, devices)
        outlines.append(outline)
        programs.append(program)
        shared.append(tuple(program.put_shared(x) for x in own))
    return Job(family, space, seeds, groups, outlines, programs, shared)


def sweep(
    family: Family,
    space: Space,
    seeds: Any,
    *,
    keep: Sequence[str] | None = None,
    devices: Any = None,
    tile: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run every configuration of `space` for every seed: one compiled program for each Spec.

    Args:
        family: what to run (`jaxstab.propagation`, or your own made with `@jaxstab.family`).
        space: of `jaxstab.grid`, `zipped` or `sample`, or a product of them.
        seeds: N for 0..N-1, or distinct integers in [0, 2^31). A seed's key is the same for every configuration.
        keep: names of the outputs wanted; the others are neither computed nor stored. None for all.
        devices: how many local devices, or which; None for all.
        tile: lanes a tile; None for the rule that follows from the Spec. Results depend on it in the last bits.
        progress: show a bar on standard error; None for where that is a terminal.

    Returns:
        A Dataset over (axes, seed, the family's dimensions) with a `status` for each lane.

    Raises:
        UsageError: one line with the value and the choices, before anything is compiled.
    """
    if not isinstance(family, Family):
        raise UsageError(f"family={family!r}: a Family is wanted; make one with @jaxstab.family.")
    if not isinstance(space, Space):
        raise UsageError(f"space={space!r}: make one with jaxstab.grid, zipped or sample.")
    job = make_job(family, space, seeds, keep, devices, tile)
    table = Table(Layout.of(family, space, job.seeds), [outline.outputs for outline in job.outlines])
    total = len(space) * len(job.seeds)
    disable = None if progress is None else not progress
    with tqdm.tqdm(total=total, unit=" networks", desc=family.name, disable=disable, leave=False) as bar:
        for chunk, values in job.run(job.chunks()):
            configurations, seed_numbers = job.lanes_of(chunk)
            table.fill((job.groups[chunk.group].members[configurations], seed_numbers), values)
            bar.update(chunk.lanes)
    return table.dataset({"programs": len(job.groups)})


def propagate(seeds: Any = 32, **axes: Any) -> xr.Dataset:
    """`sweep(propagation, grid(axes), seeds)` in one call; sweep's keywords may stand among the axes."""
    keywords = {name: axes.pop(name) for name in SWEEP_KEYWORDS if name in axes}
    return sweep(propagation, grid(**axes), seeds, **keywords)


def predict(family: Family = propagation, **axes: Any) -> xr.Dataset:
    """Theory for the axes of a grid: the same variable names as the measurement, plus `*_low` and `*_high`."""
    if family.predict is None:
        raise UsageError(f"family {family.name!r} has no theory.")
    space = grid(**axes)
    predicted = [family.predict(*family.configure(settings)) for settings in space.configurations()]
    predicted = [{name: np.asarray(value) for name, value in one.items()} for one in predicted]
    table = Table(Layout.of(family, space, None), predicted)
    for number, one in enumerate(predicted):
        table.fill((np.array([number]),), {name: value[None] for name, value in one.items()})
    return table.dataset({"source": "theory"})


def _check_devices(devices: Any) -> tuple[Any, ...]:
    """Local devices to run on: all, the first N, or those given."""
    local = jax.local_devices()
    if devices is None:
        return tuple(local)
    if isinstance(devices, int) and not isinstance(devices, bool):
        if not 1 <= devices <= len(local):
            raise UsageError(f"devices={devices}: this process has {len(local)} ({local[0].platform}).")
        return tuple(local[:devices])
    chosen = tuple(devices)
    strangers = [d for d in chosen if d not in local]
    if strangers or not chosen:
        raise UsageError(f"devices={devices!r}: choose among {local}.")
    return chosen
