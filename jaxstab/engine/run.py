"""The public calls: sweep a family over a space and seeds, and theory over the same axes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
import xarray as xr

from jaxstab.engine import identity
from jaxstab.engine.configurations import Configurations, by_spec
from jaxstab.engine.job import Chunk, Job
from jaxstab.engine.label import Layout, Table
from jaxstab.engine.space import Space, grid, parse_seeds
from jaxstab.engine.store import Store
from jaxstab.errors import Interrupted, UsageError
from jaxstab.trials.family import Family, Vectorized
from jaxstab.trials.manual import says
from jaxstab.trials.propagation import propagation
from jaxstab.trials.training import training

SWEEP_KEYWORDS = ("keep", "store", "devices", "memory", "tile", "progress")


def sweep(
    family: Family,
    space: Space,
    seeds: Any,
    *,
    keep: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    devices: Any = None,
    memory: float | None = None,
    tile: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run every configuration of `space` for every seed: one compiled program for each Spec.

    Args:
        family: what to run (`jaxstab.propagation`, or your own made with `@jaxstab.family`).
        space: of `jaxstab.grid`, `zipped` or `sample`, or a product of them.
        seeds: N for 0..N-1, or distinct integers in [0, 2^31). A seed's key is the same for every configuration.
        keep: names of the outputs wanted; the others are not stored, and computed only where `status` needs them,
            which is always there and never depends on `keep`. None for all.
        store: a folder to keep finished chunks in; the same call on the same folder resumes. More seeds make it
            grow, fewer are read from it.
        devices: how many local devices, or which; None for all.
        memory: bytes that may be used, of all devices together; None for what they have left.
        tile: lanes a tile; None for the rule that follows from the Spec. Results depend on it in the last bits.
        progress: show a bar on standard error; None for where that is a terminal.

    Returns:
        A Dataset over (axes, seed, the family's dimensions) with a `status` for each lane.

    Under `jax.distributed` every process makes the same call with the same `store`, and process i of N runs chunks
    i, i + N, ... of it, apart from the others: none waits for another. What a process returns is what the store
    held when its own share was done; lanes of chunks that others had not yet written have status `not_run`.

    Raises:
        UsageError: one line with the value and the choices, before anything is compiled.
        Interrupted: with a store, on SIGINT or SIGTERM, once the chunk in hand is written. Uncaught it ends the
            process with exit code 75.
    """
    if not isinstance(family, Family):
        raise UsageError(f"family={family!r}: a Family is wanted; make one with @jaxstab.family.")
    if not isinstance(space, Space):
        raise UsageError(f"space={space!r}: make one with jaxstab.grid, zipped or sample.")
    if store is None and jax.process_count() > 1:
        count = jax.process_count()
        raise UsageError(
            f"store=None with {count} processes: each would run it all; give a folder they share."
        )
    wanted = parse_seeds(seeds)
    held = None if store is None else Store(store).seeds()
    # a store that holds these seeds among others is asked for them, not refused
    is_part = held is not None and len(held) > len(wanted) and bool(np.isin(wanted, held).all())
    job = Job(family, space, held if is_part else wanted, keep, devices, tile, memory)
    layout = Layout.of(family, job.space, job.seeds)
    table = Table(layout, [group.lane.outputs for group in job.groups])
    with _bar(job, wanted, progress) as bar:
        if store is None:
            for chunk, values in job.run(job.chunks()):
                table.fill(job.places(chunk), values)
                bar.update(len(chunk.lanes))
        else:
            _run_stored(job, wanted, layout, table, Store(store), bar)
    data = table.dataset(
        {"programs": len({id(group.lane) for group in job.groups})}
        | ({} if store is None else {"store": str(store)})
    )
    return data.sel(seed=wanted) if is_part else data


@says(propagation)
def propagate(seeds: Any = 32, **axes: Any) -> xr.Dataset:
    """Send signals and gradients through random stacks: `sweep(propagation, grid(axes), seeds)` in one call.

    Sweep's keywords (`keep`, `store`, `devices`, `memory`, `tile`, `progress`) may stand among the axes. Returns a
    Dataset over (the axes that were given several values, seed, layer), with the `status` of each network.
    """
    keywords = {name: axes.pop(name) for name in SWEEP_KEYWORDS if name in axes}
    return sweep(propagation, grid(**axes), seeds, **keywords)


@says(training)
def train(seeds: Any = 4, **axes: Any) -> xr.Dataset:
    """Train image classifiers: `sweep(training, grid(axes), seeds)` in one call.

    Sweep's keywords (`keep`, `store`, `devices`, `memory`, `tile`, `progress`) may stand among the axes. Returns a
    Dataset over (the axes that were given several values, seed, epoch), with the `status` of each run.
    """
    keywords = {name: axes.pop(name) for name in SWEEP_KEYWORDS if name in axes}
    return sweep(training, grid(**axes), seeds, **keywords)


@says(propagation, theory=True)
def predict(space: Space | None = None, *, family: Family = propagation, **axes: Any) -> xr.Dataset:
    """Theory for the axes of a grid (or for a space): the measurement's variable names, plus `*_low` and `*_high`.

    The latter bound 95 % of networks of the given width, where their law is known, and are NaN elsewhere.
    """
    if family.predict is None:
        raise UsageError(f"family {family.name!r} has no theory.")
    space = grid(**axes) if space is None else space
    groups = by_spec(family, space)
    values = [_theory(family, own) for own in groups]
    words = {name for one in values for name, array in one.items() if array.dtype.kind == "U"}
    texts = {name: np.full(len(space), "", object) for name in words}
    for own, one in zip(groups, values, strict=True):
        for name in words:
            texts[name][own.members] = one.pop(name)
    layout = Layout.of(family, space, None)  # a user's family may not say of which outputs it has a theory
    layout = dataclasses.replace(layout, outputs={**family.outputs, **layout.outputs})
    table = Table(layout, [{k: x[0] for k, x in one.items()} for one in values])
    for own, one in zip(groups, values, strict=True):
        table.fill((own.members,), one)
    data = table.dataset({"source": "theory"})
    dims = [dimension.name for dimension in space.dimensions]
    rows = table.layout.outputs
    return data.assign({
        name: (dims, text.astype(str).reshape(space.shape), {"long_name": rows[name].attrs(name)["long_name"]})
        for name, text in texts.items()
    })  # fmt: skip


def _theory(family: Family, own: Configurations) -> dict[str, np.ndarray]:
    """What theory says of the configurations of one Spec: arrays [configuration, ...]."""
    if isinstance(family.predict, Vectorized):
        return dict(family.predict.many(own.spec, own.hparams))
    assert family.predict is not None
    each = [family.predict(own.spec, own.one(i)) for i in range(len(own.members))]
    return {name: np.array([one[name] for one in each]) for name in each[0]}


def _bar(job: Job, wanted: np.ndarray, progress: bool | None) -> tqdm.tqdm:
    total = len(job.space) * len(wanted)
    disable = None if progress is None else not progress
    return tqdm.tqdm(
        total=total, unit=" networks", desc=job.family.name, disable=disable, leave=False, delay=2
    )


def _run_stored(
    job: Job, wanted: np.ndarray, layout: Layout, table: Table, store: Store, bar: tqdm.tqdm
) -> None:
    """Take what the store holds of the wanted seeds, run this process's share of the rest, write each chunk."""
    process, processes = jax.process_index(), jax.process_count()
    manifest = {
        "layout": layout.record(),
        "groups": identity.describe_groups(job.groups),
        "environment": identity.environment(job.devices[0]),
    }
    with _signals() as caught, store.hold(process, processes):
        store.begin(manifest)
        number_of = {chunk: number for number, chunk in enumerate(job.chunks())}
        present = store.chunks()
        asked = [chunk for chunk in number_of if np.isin(job.seeds[job.places(chunk)[1]], wanted).any()]
        missing = _take(job, table, store, bar, asked)
        own = [chunk for chunk in missing if number_of[chunk] % processes == process]
        done = 0
        with contextlib.closing(job.run(own, stop=lambda: caught)) as results:
            for chunk, values in results:
                replaced = present.get((chunk.group, chunk.number), ())
                store.write_chunk(chunk.group, chunk.number, values, replaced)
                table.fill(job.places(chunk), values)
                bar.update(len(chunk.lanes))
                done += 1
                if caught:
                    break
        if not caught:
            others = [chunk for chunk in missing if number_of[chunk] % processes != process]
            _take(job, table, store, bar, others)
    if caught:
        left = f"interrupted with {len(own) - done} chunks left"
        raise Interrupted(f"{left}; the same call on {store.path} resumes.")


def _take(job: Job, table: Table, store: Store, bar: tqdm.tqdm, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Fill in what the store holds of `chunks`; returns those that it does not."""
    present, missing = store.chunks(), []
    for chunk in chunks:
        paths = present.get((chunk.group, chunk.number), [])
        found = (store.read_chunk(path, len(chunk.lanes)) for path in paths)
        values = next((v for v in found if v is not None), None)
        if values is None:
            missing.append(chunk)
        else:
            table.fill(job.places(chunk), values)
            bar.update(len(chunk.lanes))
    return missing


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of obeying them, in the main thread; a second SIGINT is obeyed."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: set by other than Python, which cannot set it again
                signal.signal(number, handler)
