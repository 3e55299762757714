"""A whole sweep, cut into chunks and run chunk by chunk within the memory there is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstab.engine import plan, room
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


class Part(NamedTuple):
    """Lanes of a chunk that one call of a program runs, and the arrays that will hold their results."""

    program: Program
    results: Any
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
        self.memory = room.check_memory(memory)
        self.data = [load_shared(family, group.spec) for group in self.groups]
        self.outlines: list[plan.Outline] = []
        self.programs: list[Program] = []
        for group, own in zip(self.groups, self.data, strict=True):
            arguments = plan.Arguments.of(group, own)
            names = plan.check_keep(keep, plan.output_names(family, group.spec, arguments))
            platform = self.devices[0].platform
            outline = plan.make_outline(family, group.spec, names, arguments, platform, tile)
            largest = functools.partial(plan.largest_array, family, keep=names, arguments=arguments)
            room.require_lane(group.spec, largest, outline.tile, self._room())
            capacity = max(LEAST_TILES, -(-outline.tiles_per_chunk // len(self.devices)))
            self.outlines.append(outline)
            self.programs.append(
                make_program(family, group.spec, names, outline.tile, capacity, self.devices)
            )
        lane_bytes = max(outline.lane_bytes for outline in self.outlines)
        room.require_results(len(space), len(self.seeds), lane_bytes)
        self._shared: dict[int, tuple[Any, ...]] = {}
        self._fitted: set[int] = set()  # groups whose program is known to fit
        self._alone: set[int] = set()  # groups that do not fit beside another chunk's results

    def chunks(self) -> list[Chunk]:
        """All chunks, in the order in which they run: every group advances alike through the seeds."""
        found = []
        for number, (group, outline) in enumerate(zip(self.groups, self.outlines, strict=True)):
            lanes = len(group.members) * len(self.seeds)
            size = outline.tile * outline.tiles_per_chunk
            starts = range(0, lanes, size)
            found += [
                (c / len(starts), Chunk(number, c, first, min(size, lanes - first)))
                for c, first in enumerate(starts)
            ]
        return [chunk for _, chunk in sorted(found)]

    def lanes_of(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """(number in the space's configurations, number in the seeds) of each lane."""
        lanes = np.arange(chunk.first, chunk.first + chunk.lanes)
        members = self.groups[chunk.group].members
        return members[lanes % len(members)], lanes // len(members)

    def run(
        self, chunks: Sequence[Chunk], stop: Callable[[], Any] = lambda: False
    ) -> Generator[tuple[Chunk, dict[str, np.ndarray]], None, None]:
        """Results chunk by chunk; the next one runs while the last is being dealt with.

        A chunk begins when the one before has ended, so that no more than one is ever half done; once `stop()`
        is true, none begins.
        """
        ended: tuple[Chunk, list[Part]] | None = None
        for chunk in chunks:
            if stop():
                break
            ahead = None if ended is None else self._start_ahead(chunk)
            if ended is not None:
                yield ended[0], _collect(ended[1])
                ended = None  # its arrays make room
            ended = chunk, self._end(chunk, ahead)
        if ended is not None:
            yield ended[0], _collect(ended[1])

    def _start_ahead(self, chunk: Chunk) -> list[Part] | None:
        """Begin a chunk beside the results of the last; None where these had better be dealt with first."""
        number = chunk.group
        if number not in self._fitted or number in self._alone or chunk.lanes > self.programs[number].lanes:
            return None
        try:
            return [self._start(chunk, slice(0, chunk.lanes))]
        except jax.errors.JaxRuntimeError:  # tried again alone, where any other reason than memory is raised
            self._alone.add(number)
            return None

    def _end(self, chunk: Chunk, started: list[Part] | None) -> list[Part]:
        """Wait until a chunk has run, with fewer tiles in flight each time that there is no memory left."""
        while True:
            try:
                return jax.block_until_ready(started) if started is not None else self._run_alone(chunk)
            except jax.errors.JaxRuntimeError as error:
                _require_exhaustion(error)
                started = None
                self._alone.add(chunk.group)
                self._halve(chunk.group, "the device ran out of memory")

    def _run_alone(self, chunk: Chunk) -> list[Part]:
        """Run a chunk in as many parts as its program needs; each leaves the device before the next begins."""
        self._fit(chunk.group)
        size = self.programs[chunk.group].lanes
        if chunk.lanes <= size:
            return jax.block_until_ready([self._start(chunk, slice(0, chunk.lanes))])
        return [
            part._replace(results=jax.device_get(part.results))
            for first in range(0, chunk.lanes, size)
            for part in [self._start(chunk, slice(first, min(first + size, chunk.lanes)))]
        ]

    def _start(self, chunk: Chunk, part: slice) -> Part:
        program, group = self.programs[chunk.group], self.groups[chunk.group]
        lanes = np.arange(chunk.first + part.start, chunk.first + part.stop)
        seeds = self.seeds[lanes // len(group.members)].astype(np.uint32)
        numbers = jax.tree.map(lambda x: x[lanes % len(group.members)], group.hparams)
        return Part(program, program.start(seeds, numbers, self._put_shared(chunk.group)), len(lanes))

    def _room(self) -> float:
        """Bytes that each device may use."""
        return room.available_memory(self.devices) if self.memory is None else self.memory / len(self.devices)

    def _fit(self, number: int) -> None:
        """Compile a group's program, once, with fewer tiles in flight until it fits the memory there is then."""
        while number not in self._fitted:
            needed = self.programs[number].memory(self._arguments(number), self._put_shared(number))
            there = self._room()
            if needed <= there:
                self._fitted.add(number)
                if 2 * needed > there:
                    self._alone.add(number)
                return
            self._halve(
                number, f"{needed / 2**20:.0f} MiB a device are needed and {there / 2**20:.0f} are there"
            )

    def _halve(self, number: int, reason: str) -> None:
        """Halve the tiles in flight, never the tile: results do not depend on the one, and do on the other."""
        program = self.programs[number]
        if program.capacity == LEAST_TILES:
            advice = (
                f"tile={program.tile // 2} would" if program.tile > 1 else "a smaller network or batch might"
            )
            raise UsageError(f"a tile of {program.tile} lanes does not fit: {reason}; {advice}.")
        settings = (program.family, program.spec, program.keep, program.tile)
        self.programs[number] = make_program(*settings, max(LEAST_TILES, program.capacity // 2), self.devices)

    def _arguments(self, number: int) -> tuple[np.ndarray, Any]:
        group = self.groups[number]
        return self.seeds[:1].astype(np.uint32), jax.tree.map(lambda x: x[:1], group.hparams)

    def _put_shared(self, number: int) -> tuple[Any, ...]:
        if number not in self._shared:
            self._shared[number] = tuple(self.programs[number].put_shared(x) for x in self.data[number])
        return self._shared[number]


def _collect(parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """A chunk's results, of all its parts."""
    collected = [part.program.collect(part.results, part.lanes) for part in parts]
    return {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}


def _require_exhaustion(error: Exception) -> None:
    """Any failure but that of memory is raised again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error


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
