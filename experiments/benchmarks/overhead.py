"""What the engine costs over a bare jitted call of the same tiles: `python -m experiments.benchmarks.overhead`.

The bare call is one compiled loop over the same tiles on the same devices, its arguments ready, its results
copied to NumPy; the engine adds cutting, dealing, labels and status, and a store its files. All run in turn, round
after round, and the medians of their times are compared. Chunks take a second or longer, as the rule makes them.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxstab
from experiments.benchmarks.subject import regression
from jaxstab.engine import plan
from jaxstab.engine.job import Job

SPACE = jaxstab.grid(steps=[2000], learning_rate=[0.05, 0.5, 1.0, 3.0])


def main(rounds: int = 7, chunks: int = 2, out: Path = Path("experiments/benchmarks/results")) -> None:
    """Measure, print, and write overhead.json."""
    job = Job(regression, SPACE, 3, None, None, None)
    lanes = chunks * job.outlines[0].tile * job.outlines[0].tiles_per_chunk
    seeds = lanes // len(SPACE)
    bare = make_bare(job, seeds)
    with tempfile.TemporaryDirectory() as scratch:
        stores = iter(range(10**6))
        runs: dict[str, Callable[[], Any]] = {
            "bare": bare,
            "engine": lambda: jaxstab.sweep(regression, SPACE, seeds, progress=False),
            "store": lambda: jaxstab.sweep(
                regression, SPACE, seeds, progress=False, store=Path(scratch) / str(next(stores))
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for one in range(rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if one:  # the first round compiles
                    seconds[name].append(time.perf_counter() - began)
    found = summary(seconds, seeds * len(SPACE), chunks)
    print(json.dumps(found, indent=1))
    out.mkdir(parents=True, exist_ok=True)
    (out / "overhead.json").write_text(json.dumps(found, indent=1) + "\n")


def summary(seconds: dict[str, list[float]], lanes: int, chunks: int) -> dict[str, Any]:
    """Medians, and the medians of each round's own ratios, which a machine's slow drift does not touch."""
    over = lambda a, b: statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))  # noqa: E731
    return {
        "cores": os.cpu_count(),
        "devices": jax.local_device_count(),
        "lanes": lanes,
        "rounds": len(seconds["bare"]),
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "seconds_a_chunk": round(statistics.median(seconds["bare"]) / chunks, 3),
        "engine_over_bare": round(over("engine", "bare"), 4),
        "store_over_engine": round(over("store", "engine"), 4),
    }


def make_bare(job: Job, seeds: int) -> Callable[[], np.ndarray]:
    """The same lanes as a plain JAX programmer would write them: one call, tiles in a loop on each device."""
    group, tile = job.groups[0], job.outlines[0].tile
    lanes = np.arange(seeds * len(SPACE))
    count = len(job.devices)
    mesh = Mesh(np.array(job.devices), ("device",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("device")
    lane = plan.kept_lane(regression, group.spec, ("loss",))

    def shard(seeds: Any, rates: Any) -> Any:
        return jax.lax.map(
            lambda x: jax.vmap(lambda s, r: lane(s, type(group.hparams)(r)))(*x), (seeds, rates)
        )

    def shaped(x: np.ndarray) -> jax.Array:
        return jax.device_put(jnp.asarray(x.reshape(-1, tile)), NamedSharding(mesh, split))

    arguments = shaped((lanes // len(SPACE)).astype(np.uint32)), shaped(group.hparams[0][lanes % len(SPACE)])
    run = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    assert len(lanes) % (tile * count) == 0, "lanes must fill the tiles of all devices"
    return lambda: np.asarray(run(*arguments)["loss"])


if __name__ == "__main__":
    tyro.cli(main)
