"""The configurations of one Spec on their way: how they are cut, the program that runs them, what memory it takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxstab.engine import room
from jaxstab.engine.configurations import Configurations
from jaxstab.engine.cut import Cut
from jaxstab.engine.lane import Arguments, Lane, keeping, trace
from jaxstab.engine.program import Program, make_program
from jaxstab.errors import UsageError, require_choice
from jaxstab.trials.family import Family

LEAST_TILES = 2
"""Room for two tiles in any program: with room for one, XLA would unroll the loop and round differently."""


class Part(NamedTuple):
    """Lanes that one call of a program runs, and the arrays that will hold their results."""

    program: Program
    results: Any
    lanes: range


class Group:
    """Everything checked and cut, nothing compiled before the first `start_ahead` or `finish`.

    Attributes: `spec`, `members` (numbers of its configurations in the space), `hparams` (float32 columns, as the
    program is given them), `data` (what every lane reads: () or a tuple of one), `lane`, `cut` and `program`.
    """

    def __init__(
        self,
        family: Family,
        configurations: Configurations,
        seeds: Int[np.ndarray, " seed"],
        keep: Any,
        tile: int | None,
        devices: Sequence[Any],
        memory: float | None,
    ):
        self.spec, self.members, columns = configurations
        spec, self.hparams = family.as_run(self.spec, jax.tree.map(np.float32, columns))
        self.data = load_shared(family, self.spec)
        self._seeds, self._devices, self._memory = seeds.astype(np.uint32), tuple(devices), memory
        whole = trace(family, spec, Arguments.of(self.hparams, self.data))
        self.lane = keeping(whole, _check_keep(keep, whole.keep))
        _check_dims(family, self.lane)
        tile = tile or whole.tile(devices[0].platform)
        self.cut = Cut(len(self.members), len(seeds), tile, self.lane.tiles_per_chunk(tile))
        room.require_lane(spec, functools.partial(self._largest_array, family), tile, self._room())
        self.program = make_program(
            self.lane, tile, max(LEAST_TILES, -(-self.cut.tiles_per_chunk // len(devices))), self._devices
        )
        self._is_fitted = False  # whether the program is known to fit the memory
        self._is_alone = False  # whether it does not fit beside another chunk's results

    def _largest_array(self, family: Family, spec: Any) -> int:
        return trace(family, spec, Arguments.of(self.hparams, self.data)).largest_array

    def places(self, lanes: range) -> tuple[np.ndarray, np.ndarray]:
        """(number in the space's configurations, number in the seeds) of each lane."""
        configuration, seed = self.cut.places(lanes)
        return self.members[configuration], seed

    def start_ahead(self, lanes: range) -> list[Part] | None:
        """Begin to run lanes beside the results of others; None where these had better be dealt with first."""
        if not self._is_fitted or self._is_alone or len(lanes) > self.program.lanes:
            return None
        try:
            return [self._start(lanes)]
        except jax.errors.JaxRuntimeError:  # tried again alone, where any other reason than memory is raised
            self._is_alone = True
            return None

    def finish(self, lanes: range, started: list[Part] | None) -> list[Part]:
        """Wait until lanes have run, with fewer tiles in flight each time that there is no memory left."""
        while True:
            try:
                return jax.block_until_ready(started) if started is not None else self._run_alone(lanes)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                started = None
                self._is_alone = True
                self._halve("the device ran out of memory")

    def _run_alone(self, lanes: range) -> list[Part]:
        """Run lanes in as many parts as the program needs; each leaves the device before the next begins."""
        self._fit()
        size = self.program.lanes
        if len(lanes) <= size:
            return jax.block_until_ready([self._start(lanes)])
        return [
            part._replace(results=jax.device_get(part.results))
            for first in range(0, len(lanes), size)
            for part in [self._start(lanes[first : first + size])]
        ]

    def _start(self, lanes: range) -> Part:
        configuration, seed = self.cut.places(lanes)
        numbers = jax.tree.map(lambda x: x[configuration], self.hparams)
        return Part(self.program, self.program.start(self._seeds[seed], numbers, self._shared), lanes)

    @functools.cached_property
    def _shared(self) -> tuple[Any, ...]:
        return tuple(map(self.program.put_shared, self.data))

    def _room(self) -> float:
        """Bytes that each device may use."""
        free = room.available_memory(self._devices)
        return free if self._memory is None else self._memory / len(self._devices)

    def _fit(self) -> None:
        """Compile the program, once, with fewer tiles in flight until it fits the memory there is then."""
        first = self._seeds[:1], jax.tree.map(lambda x: x[:1], self.hparams)
        while not self._is_fitted:
            needed, there = self.program.memory(first, self._shared), self._room()
            if needed <= there:
                self._is_fitted = True
                self._is_alone |= 2 * needed > there
                return
            self._halve(f"{needed / 2**20:.0f} MiB a device are needed and {there / 2**20:.0f} are there")

    def _halve(self, reason: str) -> None:
        """Halve the tiles in flight, never the tile: results do not depend on the one, and do on the other."""
        capacity, tile = self.program.capacity, self.cut.tile
        if capacity == LEAST_TILES:
            advice = f"tile={tile // 2} would" if tile > 1 else "a smaller network or batch might"
            raise UsageError(f"a tile of {tile} lanes does not fit: {reason}; {advice}.")
        self.program = make_program(self.lane, tile, max(LEAST_TILES, capacity // 2), self._devices)


@functools.lru_cache(maxsize=32)
def load_shared(family: Family, spec: Any) -> tuple[Any, ...]:
    """What every lane of a Spec reads, loaded once: () or a tuple of one."""
    return () if family.shared is None else (family.shared(spec),)


def _check_keep(keep: Any, names: Sequence[str]) -> tuple[str, ...]:
    """`keep` as a sorted tuple of known outputs; all of them for None."""
    if keep is None:
        return tuple(names)
    if isinstance(keep, str):
        raise UsageError(f"keep={keep!r}: a list of names is wanted, keep=[{keep!r}].")
    wanted = set(keep) - {"status"}
    return tuple(sorted(require_choice(name, names, "output in keep:") for name in wanted))


def _check_dims(family: Family, lane: Lane) -> None:
    """Refuse an output whose axes the family does not name."""
    for name in lane.keep:
        shape, dims = lane.outputs[name].shape, family.dims.get(name, ())
        if len(dims) != len(shape):
            raise UsageError(
                f"family {family.name!r}: output {name!r} has shape {shape}, but dims names {dims} for it."
            )
