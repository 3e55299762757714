"""A whole sweep, cut into chunks and run chunk by chunk within the memory there is."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil

from jaxstab.engine import plan
from jaxstab.engine.program import Program, make_program
from jaxstab.engine.space import Space, parse_seeds
from jaxstab.errors import UsageError
from jaxstab.trials.family import Family

LEAST_TILES = 2
"""Room for two tiles in any program: with room for one, XLA would unroll the loop and round differently."""


class Chunk(NamedTuple):
    """Consecutive lanes of one group. Of its C configurations, lane i is configuration i % C of seed i // C."""

    group: int
    number: int
    first: int
    lanes: int


class Job:
    """Everything checked and cut; nothing is compiled before `run`."""

    def __init__(
        self, family: Family, space: Space, seeds: Any, keep: Any, devices: Any, tile: Any, memory: Any = None
    ):
        self.family, self.space = family, space
        tile = plan.check_tile(tile)
        self.groups = plan.make_groups(family, space)
        self.seeds = parse_seeds(seeds)
        self.devices = check_devices(devices)
        self.memory = check_memory(memory)
        self.data = [load_shared(family, group.spec) for group in self.groups]
        self.outlines: list[plan.Outline] = []
        self.programs: list[Program] = []
        for group, own in zip(self.groups, self.data, strict=True):
            names = plan.check_keep(keep, plan.output_names(family, group, own))
            outline = plan.make_outline(family, group, names, own, self.devices[0].platform, tile)
            capacity = max(LEAST_TILES, -(-outline.tiles_per_chunk // len(self.devices)))
            self.outlines.append(outline)
            self.programs.append(make_program(family, group.spec, names, outline.tile, capacity, self.devices))
        self._shared: dict[int, tuple[Any, ...]] = {}

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
        """(number in the space's configurations, number in the seeds) of each lane."""
        lanes = np.arange(chunk.first, chunk.first + chunk.lanes)
        members = self.groups[chunk.group].members
        return members[lanes % len(members)], lanes // len(members)

    def run(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
        """Results chunk by chunk; the next one runs while the last is being dealt with."""
        waiting: collections.deque[tuple[Chunk, Any]] = collections.deque()
        for chunk in chunks:
            waiting.append((chunk, self._attempt(lambda chunk=chunk: self._start(chunk), chunk)))
            if len(waiting) > 1:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _start(self, chunk: Chunk) -> list[tuple[Program, Any, int]]:
        program, group = self.programs[chunk.group], self.groups[chunk.group]
        self._fit(chunk.group)
        program = self.programs[chunk.group]
        lanes = np.arange(chunk.first, chunk.first + chunk.lanes)
        configurations, seeds = lanes % len(group.members), self.seeds[lanes // len(group.members)].astype(np.uint32)
        started = []
        for first in range(0, chunk.lanes, program.lanes):
            part = slice(first, first + program.lanes)
            numbers = jax.tree.map(lambda x, part=part: x[configurations[part]], group.hparams)
            results = program.start(seeds[part], numbers, self._put_shared(chunk.group))
            started.append((program, results, len(seeds[part])))
        return started

    def _finish(self, chunk: Chunk, started: Any) -> tuple[Chunk, dict[str, np.ndarray]]:
        try:
            collected = _collect(started)
        except jax.errors.JaxRuntimeError as error:
            self._halve(chunk.group, error)
            collected = self._attempt(lambda: _collect(self._start(chunk)), chunk)
        return chunk, {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}

    def _attempt(self, work: Any, chunk: Chunk) -> Any:
        """Do it, with fewer tiles in flight each time that the device has no memory left."""
        while True:
            try:
                return work()
            except jax.errors.JaxRuntimeError as error:
                self._halve(chunk.group, error)

    def _fit(self, number: int) -> None:
        """Compile a group's program, with fewer tiles in flight until it fits the memory."""
        while True:
            needed = self.programs[number].memory(self._arguments(number), self._put_shared(number))
            room = available_memory(self.devices) if self.memory is None else self.memory / len(self.devices)
            if needed <= room:
                return
            self._halve(number, f"{needed / 2**20:.0f} MiB a device are needed and {room / 2**20:.0f} are there")

    def _halve(self, number: int, reason: Any) -> None:
        """Halve the tiles in flight, never the tile: results do not depend on the one, and do on the other."""
        if not isinstance(reason, str) and "RESOURCE_EXHAUSTED" not in str(reason):
            raise reason
        program = self.programs[number]
        if program.capacity == LEAST_TILES:
            text = reason if isinstance(reason, str) else "the device ran out of memory"
            advice = f"tile={program.tile // 2} would" if program.tile > 1 else "a smaller network or batch might"
            raise UsageError(f"a tile of {program.tile} lanes does not fit: {text}; {advice}.")
        settings = (program.family, program.spec, program.keep, program.tile)
        self.programs[number] = make_program(*settings, max(LEAST_TILES, program.capacity // 2), self.devices)

    def _arguments(self, number: int) -> tuple[np.ndarray, Any]:
        group = self.groups[number]
        return self.seeds[:1].astype(np.uint32), jax.tree.map(lambda x: x[:1], group.hparams)

    def _put_shared(self, number: int) -> tuple[Any, ...]:
        if number not in self._shared:
            self._shared[number] = tuple(self.programs[number].put_shared(x) for x in self.data[number])
        return self._shared[number]


def _collect(started: Any) -> list[dict[str, np.ndarray]]:
    return [program.collect(results, lanes) for program, results, lanes in started]


@functools.lru_cache(maxsize=32)
def load_shared(family: Family, spec: Any) -> tuple[Any, ...]:
    """What every lane of a Spec reads, loaded once: () or a tuple of one."""
    return () if family.shared is None else (family.shared(spec),)


def check_devices(devices: Any) -> tuple[Any, ...]:
    """Local devices to run on: all, the first N, or those given."""
    local = jax.local_devices()
    if devices is None:
        return tuple(local)
    if isinstance(devices, int) and not isinstance(devices, bool):
        if not 1 <= devices <= len(local):
            raise UsageError(f"devices={devices}: this process has {len(local)} ({local[0].platform}).")
        return tuple(local[:devices])
    chosen = tuple(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else ()
    if not chosen or any(d not in local for d in chosen):
        raise UsageError(f"devices={devices!r}: choose how many, or which of {local}.")
    return chosen


def check_memory(memory: Any) -> float | None:
    """Bytes for all devices together, or None for what they have left."""
    if memory is None:
        return None
    if isinstance(memory, bool) or not isinstance(memory, (int, float)) or not memory > 0:
        raise UsageError(f"memory={memory!r}: a number of bytes above 0 is wanted.")
    return float(memory)


def available_memory(devices: Sequence[Any]) -> float:
    """Bytes that each device has left; no limit where neither device nor system says."""
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if devices[0].platform == "cpu":
        return 0.8 * psutil.virtual_memory().available / len(devices)
    return math.inf
