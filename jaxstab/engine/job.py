"""A whole sweep, cut into chunks and run chunk by chunk within the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstab.engine import room
from jaxstab.engine.configurations import by_spec
from jaxstab.engine.group import Group, Part
from jaxstab.engine.space import Space, parse_seeds
from jaxstab.errors import UsageError
from jaxstab.trials.family import Family


class Chunk(NamedTuple):
    """Consecutive lanes of one group: the `number`-th of its cut."""

    group: int
    number: int
    lanes: range


class Job:
    """Everything checked and cut; nothing is compiled before `run`."""

    def __init__(
        self, family: Family, space: Space, seeds: Any, keep: Any, devices: Any, tile: Any, memory: Any = None
    ):
        self.family = family
        tile = check_tile(tile)
        configurations = by_spec(family, space)
        specs, chosen = family.settle([own.spec for own in configurations])
        self.space = space.settled(chosen)
        self.seeds = parse_seeds(seeds)
        self.devices = check_devices(devices)
        memory = room.check_memory(memory)
        given = (self.seeds, keep, tile, self.devices, memory)
        self.groups = [
            Group(family, own._replace(spec=spec), *given)
            for own, spec in zip(configurations, specs, strict=True)
        ]
        room.require_results(len(space), len(self.seeds), max(group.lane.bytes for group in self.groups))

    def chunks(self) -> list[Chunk]:
        """All chunks, in the order in which they run: every group advances alike through the seeds."""
        cuts = [group.cut for group in self.groups]
        found = [(n / len(cut), i, n) for i, cut in enumerate(cuts) for n in range(len(cut))]
        return [Chunk(i, n, cuts[i].chunk(n)) for _, i, n in sorted(found)]

    def places(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """(number in the space's configurations, number in the seeds) of each lane."""
        return self.groups[chunk.group].places(chunk.lanes)

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
            group = self.groups[chunk.group]
            ahead = None if ended is None else group.start_ahead(chunk.lanes)
            if ended is not None:
                yield ended[0], _collect(ended[1])
                ended = None  # its arrays make room
            ended = chunk, group.finish(chunk.lanes, ahead)
        if ended is not None:
            yield ended[0], _collect(ended[1])


def _collect(parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """A chunk's results, of all its parts."""
    collected = [part.program.collect(part.results, len(part.lanes)) for part in parts]
    return {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}


def check_tile(tile: Any) -> int | None:
    """A given tile: a whole number of lanes, or None for the rule."""
    if tile is None:
        return None
    if isinstance(tile, bool) or not isinstance(tile, (int, np.integer)) or tile < 1:
        raise UsageError(f"tile={tile!r}: a whole number of lanes, at least 1, is wanted.")
    return int(tile)


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
