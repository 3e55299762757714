"""How fast a family runs here at each tile, beside the tile that the rule chooses.

Only measures: a sweep's tile never follows from a clock. Whoever wants the faster one gives it, `tile=...`, and
the manifest records it.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

from jaxstab.engine.job import Job
from jaxstab.engine.space import Space
from jaxstab.trials.family import Family

TILES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """Lanes a second of one Spec at each tile, and the rule's own choice (which is always among them)."""

    spec: str
    rates: dict[int, float]
    ruled: int

    @property
    def fastest(self) -> int:
        """The tile with the most lanes a second."""
        return max(self.rates, key=self.rates.__getitem__)


def measure_tiles(
    family: Family,
    space: Space,
    seeds: Any,
    *,
    keep: Sequence[str] | None = None,
    devices: Any = None,
    tiles: Sequence[int] = TILES,
) -> list[Measured]:
    """Run every Spec of a sweep at every tile: compiled first, then the median of rounds over all tiles in turn."""
    ruled = [group.cut.tile for group in Job(family, space, seeds, keep, devices, None).groups]
    jobs = {
        tile: Job(family, space, seeds, keep, devices, tile) for tile in sorted({*tiles, *ruled})
    }  # the rule's own may lie outside
    found = []
    for group, tile_of_rule in enumerate(ruled):
        wanted = {t: job for t, job in jobs.items() if t in tiles or t == tile_of_rule}
        rates: dict[int, list[float]] = {tile: [] for tile in wanted}
        for job in wanted.values():
            _lanes_a_second(job, group, most=1)
        for _ in range(ROUNDS):
            for tile, job in wanted.items():
                rates[tile].append(_lanes_a_second(job, group))
        medians = {tile: statistics.median(of_tile) for tile, of_tile in rates.items()}
        found.append(Measured(repr(jobs[tile_of_rule].groups[group].spec), medians, tile_of_rule))
    return found


def _lanes_a_second(job: Job, group: int, most: int | None = None) -> float:
    """Of one Spec's chunks (or the first `most`), results in hand."""
    chunks = [chunk for chunk in job.chunks() if chunk.group == group][:most]
    start = time.perf_counter()
    for _ in job.run(chunks):
        pass
    return sum(len(chunk.lanes) for chunk in chunks) / (time.perf_counter() - start)
