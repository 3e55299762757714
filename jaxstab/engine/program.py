"""One Spec as one compiled program that runs any number of tiles of lanes on any number of devices.

The number of tiles is an argument, so that a last, shorter chunk, another number of devices, or other gains next
time run the same machine code. A loop over tiles with room for at least two: one tile alone would let XLA unroll
the loop and round differently.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxstab.compiler import compiler_options
from jaxstab.engine.lane import Lane

SPLIT, WHOLE = PartitionSpec("device"), PartitionSpec()


class Program:
    """A lane's outputs, for `capacity` tiles of `tile` lanes on each of `devices`."""

    def __init__(self, lane: Lane, tile: int, capacity: int, devices: tuple[Any, ...]):
        self.lane, self.tile, self.capacity = lane, tile, capacity
        self.mesh = Mesh(np.array(devices), ("device",), axis_types=(AxisType.Auto,))
        self._compiled: dict[Any, Any] = {}

    @property
    def lanes(self) -> int:
        """Lanes that one call can hold."""
        return self.mesh.size * self.capacity * self.tile

    def start(self, seeds: np.ndarray, hparams: Any, shared: tuple[Any, ...]) -> Any:
        """Begin to run the lanes; returns arrays [device, tile number, lane, ...] that will hold the results."""
        arguments = self._arguments(seeds, hparams)
        return self.compile(*arguments, *shared)(*arguments, *shared)

    def memory(self, lanes: tuple[np.ndarray, Any], shared: tuple[Any, ...]) -> int:
        """Bytes that the program needs on each device, by the compiler's own analysis; 0 where it says nothing."""
        return _needed(self.compile(*self._arguments(*lanes), *shared))

    def _arguments(self, seeds: np.ndarray, hparams: Any) -> tuple[Any, ...]:
        tiles, slots = self._deal(len(seeds))
        # an empty slot repeats a lane: it is never run, or its result is never read
        lane_at = np.zeros(self.lanes, int)
        lane_at[slots] = np.arange(len(seeds))
        lane_at = lane_at.reshape(self.mesh.size, self.capacity, self.tile)
        numbers = jax.tree.map(lambda x: x[lane_at], (seeds, hparams))
        return jax.device_put((tiles, *numbers), NamedSharding(self.mesh, SPLIT))

    def put_shared(self, data: Any) -> Any:
        """Data that every lane reads, whole on every device."""
        return jax.device_put(data, NamedSharding(self.mesh, WHOLE))

    def collect(self, results: Any, lanes: int) -> dict[str, np.ndarray]:
        """Results of `lanes` lanes as NumPy arrays [lane, ...]."""
        _, slots = self._deal(lanes)
        return {name: np.asarray(x).reshape(self.lanes, *x.shape[3:])[slots] for name, x in results.items()}

    def compile(self, *arguments: Any) -> Any:
        """The machine code for arguments of these shapes, compiled at their first appearance."""
        signature = tuple((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
        if signature not in self._compiled:
            in_specs = (SPLIT, SPLIT, SPLIT, *(WHOLE for _ in arguments[3:]))
            mapped = jax.shard_map(
                self._run_tiles, mesh=self.mesh, in_specs=in_specs, out_specs=SPLIT, check_vma=False
            )
            with self.lane.computing():
                lowered = jax.jit(mapped).lower(*arguments)
                self._compiled[signature] = lowered.compile(
                    compiler_options(self.mesh.devices.flat[0].platform)
                )
        return self._compiled[signature]

    def _run_tiles(self, tiles: Any, seeds: Any, hparams: Any, *shared: Any) -> Any:
        """One device's share: arrays come with a leading axis of one device."""
        results = {
            name: jnp.zeros((self.capacity, self.tile, *s.shape), s.dtype)
            for name, s in self.lane.outputs.items()
        }

        def body(i: Any, results: Any) -> Any:
            one = self.lane.of_tile(*jax.tree.map(lambda x: x[0, i], (seeds, hparams)), *shared)
            return jax.tree.map(lambda whole, tile: whole.at[i].set(tile), results, one)

        return jax.tree.map(lambda x: x[None], jax.lax.fori_loop(0, tiles[0], body, results))

    def _deal(self, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        """How many tiles each device runs, as even as can be, int32 [device]; and each lane's slot, [lane]."""
        total = -(-lanes // self.tile)
        tiles = total // self.mesh.size + (np.arange(self.mesh.size) < total % self.mesh.size)
        first = np.cumsum(tiles) - tiles
        tile = np.arange(lanes) // self.tile
        device = np.searchsorted(first, tile, side="right") - 1
        place = device * self.capacity + tile - first[device]
        return tiles.astype(np.int32), place * self.tile + np.arange(lanes) % self.tile


@functools.lru_cache(maxsize=128)
def _needed(compiled: Any) -> int:
    """Bytes by the compiler's analysis, which takes longer than a small sweep does."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    needed = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return needed - analysis.alias_size_in_bytes


@functools.lru_cache(maxsize=128)
def make_program(lane: Lane, tile: int, capacity: int, devices: tuple[Any, ...]) -> Program:
    """The program of these settings; the same object, hence no second compilation, for the same settings."""
    return Program(lane, tile, capacity, devices)
