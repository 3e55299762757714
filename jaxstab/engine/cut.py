"""How the lanes of one Spec are cut: one law for whoever runs, stores, reads or checks them."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Cut:
    """`configurations` x `seeds` lanes, dealt into chunks of `tiles_per_chunk` tiles of `tile` lanes.

    Seeds are outermost: lane i is configuration i % configurations of seed i // configurations. More seeds then
    append chunks, and whatever has run of an interrupted sweep holds every configuration.
    """

    configurations: int
    seeds: int
    tile: int
    tiles_per_chunk: int

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-self.lanes // self._chunk_lanes)

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self.configurations * self.seeds

    @property
    def _chunk_lanes(self) -> int:
        return self.tile * self.tiles_per_chunk

    def chunk(self, number: int) -> range:
        """The lanes of one chunk; the last one may hold fewer than the others."""
        size = self._chunk_lanes
        return range(number * size, min((number + 1) * size, self.lanes))

    def places(self, lanes: range) -> tuple[Int[np.ndarray, " lane"], Int[np.ndarray, " lane"]]:
        """(number among the configurations, number among the seeds) of each lane."""
        numbers = np.arange(lanes.start, lanes.stop)
        return numbers % self.configurations, numbers // self.configurations
